"""Python's own numbers out of whatever kind was given (numpy's, torch's), and nothing out of anything else."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor


def whole(value: object) -> int | None:
    """The int that a value is.

    Args:
        value: Anything.

    Returns:
        The int of an int of Python or numpy or of a 0-dimensional integer tensor. None for all else, bool too.
    """
    value = _scalar(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def real(value: object) -> float | None:
    """The float that a value is.

    Args:
        value: Anything.

    Returns:
        The float of a number of Python, numpy or torch; ±inf for an int that is too large for one. None for what is no
        number, bool too.
    """
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def truth(value: object) -> bool | None:
    """The bool that a value is.

    Args:
        value: Anything.

    Returns:
        The bool of one of Python, numpy or torch, or None.
    """
    value = _scalar(value)
    return value if isinstance(value, bool) else None


def entries(value: object) -> tuple[Any, ...] | None:
    """What a list, tuple or one-dimensional array or tensor holds.

    Args:
        value: Anything.

    Returns:
        The entries; None for all else, such as a text.
    """
    if isinstance(value, (np.ndarray, Tensor)):
        return tuple(value.tolist()) if value.ndim == 1 and not _is_meta(value) else None
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else None


def shown(value: object) -> str:
    """A value for a message: one short line, also of a number of five thousand digits.

    Args:
        value: Anything.

    Returns:
        The line, with long values cut in their middle.
    """
    short = reprlib.Repr()
    short.maxlong = short.maxstring = short.maxother = 60
    if isinstance(value, int) and abs(value) >= 10**60:
        return f"a whole number of {value.bit_length()} bits"
    return " ".join(short.repr(value).split())


def _scalar(value: object) -> object:
    """A numpy scalar or a 0-dimensional array or tensor as a Python value."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 0 and not _is_meta(value):
        return value.item()
    return value


def _is_meta(value: object) -> bool:
    """Whether `value` has no numbers in it."""
    return isinstance(value, Tensor) and value.is_meta
