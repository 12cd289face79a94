"""Norms that neither overflow nor vanish where squares of entries do, up to rounding: `verified` has proved ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frobenius(x: Tensor, norm: float | None = None) -> float:
    """‖x‖_F of all entries, up to rounding. Entries whose squares overflow or vanish count as well.

    Args:
        x: Any shape, floating point.
        norm: What torch takes for the norm, where that was read already.

    Returns:
        The norm; NaN or inf where an entry is.
    """
    norm = float(torch.linalg.vector_norm(x)) if norm is None else norm
    info = torch.finfo(x.dtype)
    # Squares of entries that count are normal numbers, and their sum is finite.
    if math.sqrt(info.tiny) / info.eps < norm < math.sqrt(info.max):
        return norm
    largest = float(torch.linalg.vector_norm(x, math.inf))
    if largest == 0 or not math.isfinite(largest):
        return largest
    return float(torch.linalg.vector_norm(x / largest)) * largest
