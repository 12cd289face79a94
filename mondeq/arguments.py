"""What a user hands in beside a model, checked: images, labels, radii. One line says what came and what is due."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mondeq import values
from splitting import InvalidArgument, InvalidType

_LABEL_TYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_images(shape: Sequence[int], images: Tensor) -> None:
    """Raise unless images are floating point and of the shape that a network takes.

    Args:
        shape: The shape of one sample.
        images: What is to be (batch, *shape).

    Raises:
        InvalidType: They are no tensor.
        InvalidArgument: They have another shape, or are not floating point.
    """
    if not isinstance(images, Tensor):
        raise InvalidType(f"`images` must be a tensor, got a {type(images).__name__}; use torch.as_tensor(images)")
    if tuple(images.shape[1:]) != tuple(shape):
        expected = ", ".join(map(str, shape))
        raise InvalidArgument(f"`images` must have shape (batch, {expected}), got {tuple(images.shape)}")
    check_floating(images)


def check_floating(images: Tensor) -> None:
    """Raise unless images are floating point: bytes are not pixels in [0, 1].

    Args:
        images: A tensor.

    Raises:
        InvalidArgument: They are not.
    """
    if not images.is_floating_point():
        raise InvalidArgument(f"`images` must be floating point in [0, 1], got {images.dtype}; divide bytes by 255")


def check_values(images: Tensor, device: torch.device, consequence: str) -> None:
    """Raise unless images are where the weights are, and finite.

    Args:
        images: A tensor.
        device: Where the weights are.
        consequence: What NaN or inf would mean, for the message.

    Raises:
        InvalidType: They are elsewhere.
        InvalidArgument: They hold NaN or inf.
    """
    if images.device != device:
        raise InvalidType(f"`images` are on {images.device}, the weights on {device}; move one of them")
    if not bool(torch.isfinite(images).all()):
        raise InvalidArgument(f"`images` hold NaN or inf; {consequence}")


def check_labels(classes: int, labels: Tensor, count: int) -> None:
    """Raise unless labels are integers that name classes.

    Args:
        classes: How many classes there are.
        labels: What is to be (count,) integers in 0 … classes − 1.
        count: How many labels there are to be.

    Raises:
        InvalidType: They are no tensor.
        InvalidArgument: They have another shape or dtype, or one of them names no class.
    """
    if not isinstance(labels, Tensor):
        raise InvalidType(
            f"`labels` must be a tensor of {count} integers, got a {type(labels).__name__}; use torch.as_tensor(labels)"
        )
    if labels.shape != (count,) or labels.dtype not in _LABEL_TYPES or labels.is_meta:
        raise InvalidArgument(f"`labels` must be {count} integers, got {labels.dtype} {tuple(labels.shape)}")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InvalidArgument(f"`labels` must lie in 0 … {classes - 1}, got {int(labels.min())} … {int(labels.max())}")


def count(name: str, value: object) -> int:
    """A whole number ≥ 1 as an int.

    Args:
        name: What the argument is called, for the message.
        value: What was given.

    Returns:
        The number.

    Raises:
        InvalidArgument: It is none.
    """
    number = values.whole(value)
    if number is None or not 1 <= number < 2**63:
        raise InvalidArgument(f"`{name}` must be an integer ≥ 1, got {values.shown(value)}")
    return number


def radii(given: Iterable[float]) -> list[float]:
    """Radii as floats ≥ 0, inf included.

    Args:
        given: Numbers.

    Returns:
        The numbers, in their order.

    Raises:
        InvalidType: They are no list of things.
        InvalidArgument: One of them is NaN, negative or no number.
    """
    entries = values.entries(list(given) if isinstance(given, Iterable) and not isinstance(given, str) else given)
    if entries is None:
        raise InvalidType(f"`radii` must be numbers ≥ 0 in a list, got {values.shown(given)}")
    numbers = [values.real(entry) for entry in entries]
    for entry, number in zip(entries, numbers, strict=True):
        if number is None or math.isnan(number) or number < 0:
            raise InvalidArgument(f"`radii` must be numbers ≥ 0, got {values.shown(entry)}")
    return [number for number in numbers if number is not None]
