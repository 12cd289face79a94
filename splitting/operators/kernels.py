"""Kernels in space (out, in, k, k) of odd sides, and the checks of what operators are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType


def check_size(size: object) -> tuple[int, int]:
    """A size (height, width).

    Args:
        size: What was given.

    Returns:
        The same.

    Raises:
        InvalidType: It is no pair of integers.
        InvalidArgument: A side is < 1.
    """
    if not (isinstance(size, Sequence) and len(size) == 2 and all(type(side) is int for side in size)):
        raise InvalidType(f"`size` must be (height, width), got {size!r:.80}")
    if min(size) < 1:
        raise InvalidArgument(f"`size` must have sides ≥ 1, got {tuple(size)}")
    return size[0], size[1]


def check_kernel(name: str, kernel: object, like: object) -> None:
    """Raise unless a kernel has odd sides and the dtype of another.

    Args:
        name: What the argument is called, for the message.
        kernel: What is to be (out, in, k, k).
        like: The first kernel.

    Raises:
        InvalidType: It is no such tensor, or of another dtype.
        InvalidArgument: A side is even.
    """
    if not isinstance(kernel, Tensor) or kernel.ndim != 4:
        got = f"a tensor of shape {tuple(kernel.shape)}" if isinstance(kernel, Tensor) else f"{kernel!r:.80}"
        raise InvalidType(f"`{name}` must be (out, in, k, k), got {got}")
    if kernel.dtype not in (torch.float32, torch.float64):
        raise InvalidType(f"`{name}` must be float32 or float64, got {kernel.dtype}; convert it")
    if isinstance(like, Tensor) and kernel.dtype != like.dtype:
        raise InvalidType(f"`{name}` is {kernel.dtype} but the first kernel is {like.dtype}; convert one of them")
    if kernel.shape[2] % 2 == 0 or kernel.shape[3] % 2 == 0:
        raise InvalidArgument(f"`{name}` must have odd sides, got a kernel of {tuple(kernel.shape[2:])}")


def check_square(name: str, kernel: Tensor) -> None:
    """Raise unless a kernel maps channels to as many.

    Args:
        name: What the argument is called, for the message.
        kernel: (out, in, k, k).

    Raises:
        InvalidArgument: It does not.
    """
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[0] < 1:
        raise InvalidArgument(f"`{name}` must map channels to as many, got a kernel of {tuple(kernel.shape)}")


def check_tiers(
    kernels: Sequence[Tensor], F: Sequence[Tensor], D: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> None:
    """Raise unless these are the kernels of tiers on tori.

    Args:
        kernels: One per tier, from the tier to itself.
        F: One per tier but the first.
        D: One per tier but the last, to the next.
        sizes: (height, width) of each torus.

    Raises:
        InvalidType: One of them is no kernel or no size.
        InvalidArgument: Their numbers, channels or sides do not fit each other.
    """
    if not len(kernels) == len(F) + 1 == len(D) + 1 == len(sizes):
        raise InvalidArgument(
            "`kernels` and `sizes` must have one entry per tier, `F` and `D` one less, got "
            f"{len(kernels)}, {len(sizes)}, {len(F)}, {len(D)}"
        )
    for name, given in (("kernels", kernels), ("F", F), ("D", D)):
        for kernel in given:
            check_kernel(name, kernel, kernels[0])
    for kernel in kernels:
        check_square("kernels", kernel)
    for size in sizes:
        check_size(size)
    for i, (f, d) in enumerate(zip(F, D, strict=True)):
        above, below = len(kernels[i]), len(kernels[i + 1])
        if f.shape[1] != below:
            raise InvalidArgument(
                f"`F` of tier {i + 1} must act on its {below} channels, got a kernel of {tuple(f.shape)}"
            )
        if (d.shape[1], d.shape[0]) != (above, f.shape[0]):
            raise InvalidArgument(
                f"`D` of tier {i} must map {above} channels to the {f.shape[0]} that `F` maps to, got a kernel of "
                f"{tuple(d.shape)}"
            )
        for side, smaller in zip(sizes[i], sizes[i + 1], strict=True):
            if side % 2 or smaller < side // 2:
                raise InvalidArgument(
                    f"`sizes` of tier {i} is {sizes[i]} and of the next {sizes[i + 1]}: the first must be even and "
                    "the second at least half of it"
                )
