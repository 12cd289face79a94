"""Kernels in space (out, in, k, k): mI + FᵀF + G − Gᵀ as one correlation, and the checks of what it is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from splitting.errors import InvalidArgument, InvalidType


def block_kernel(m: Tensor, F: Tensor, G: Tensor) -> Tensor:
    """The kernel of mI + FᵀF + G − Gᵀ."""
    sides = block_sides(F, G)
    return resized(autocorrelation(F), sides) + resized(G - transposed(G) + m * centre(G), sides)


def block_sides(F: Tensor, G: Tensor) -> tuple[int, int]:
    """The sides of the kernel of mI + FᵀF + G − Gᵀ."""
    return max(2 * F.shape[2] - 1, G.shape[2]), max(2 * F.shape[3] - 1, G.shape[3])


def autocorrelation(F: Tensor) -> Tensor:
    """The kernel of FᵀF, with sides 2k − 1: Σ_t F_tᵀ F_{t+d} at d."""
    out, inner, height, width = F.shape
    products = (F.permute(2, 3, 1, 0).reshape(-1, out) @ F.flatten(1)).view(height, width, inner, inner, height, width)
    total = F.new_zeros(())
    for a in range(height):
        for b in range(width):
            total = total + functional.pad(products[a, b], (width - 1 - b, b, height - 1 - a, a))
    return total


def autocorrelation_gradient(gradient: Tensor, F: Tensor) -> Tensor:
    """∂/∂F of ⟨gradient, `autocorrelation`(F)⟩, for a gradient with sides of at least 2k − 1."""
    height, width = F.shape[2:]
    even = resized(gradient + transposed(gradient), (2 * height - 1, 2 * width - 1))
    taps = []
    for a in range(height):
        for b in range(width):
            reached = even[:, :, height - 1 - a : 2 * height - 1 - a, width - 1 - b : 2 * width - 1 - b]
            taps.append(torch.einsum("ojuv,ijuv->oi", F, reached))
    return torch.stack(taps, 2).view_as(F)


def resized(kernel: Tensor, sides: Sequence[int]) -> Tensor:
    """The kernel with odd `sides` around the same centre: zeros appended, or entries cut off."""
    height, width = ((new - old) // 2 for new, old in zip(sides, kernel.shape[2:], strict=True))
    return functional.pad(kernel, (width, width, height, height))


def transposed(kernel: Tensor) -> Tensor:
    """The kernel of the adjoint correlation."""
    return kernel.transpose(0, 1).flip(2, 3)


def centre(kernel: Tensor) -> Tensor:
    """The kernel of the identity, shaped like `kernel`."""
    height, width = kernel.shape[2] // 2, kernel.shape[3] // 2
    identity = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)[:, :, None, None]
    return functional.pad(identity, (width, width, height, height))


def scalar(m: float | Tensor, like: Tensor) -> Tensor:
    """m as a scalar tensor of the dtype and device of `like`."""
    if isinstance(m, Tensor):
        if m.dtype != like.dtype:
            raise InvalidType(f"`m` is {m.dtype} but the kernels are {like.dtype}; convert one of them")
        if m.ndim != 0:
            raise InvalidArgument(f"`m` must be a scalar, got a tensor of shape {tuple(m.shape)}")
        return m
    if isinstance(m, bool) or not isinstance(m, (int, float)):
        raise InvalidType(f"`m` must be a number or a scalar tensor, got {m!r:.80}")
    if not 0 < m < math.inf:
        raise InvalidArgument(f"`m` must be finite and > 0, got {m}")
    return torch.tensor(m, dtype=like.dtype, device=like.device)


def check_kernels(
    F: Sequence[Tensor], G: Sequence[Tensor], D: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
) -> None:
    if not len(F) == len(G) == len(D) + 1 == len(sizes):
        raise InvalidArgument(
            f"`F`, `G`, `sizes` must have one entry per tier and `D` one less, got {len(F)}, {len(G)}, {len(sizes)}, "
            f"{len(D)}"
        )
    named = [*(("F", f) for f in F), *(("G", g) for g in G), *(("D", d) for d in D)]
    for name, kernel in named:
        if not isinstance(kernel, Tensor) or kernel.ndim != 4:
            raise InvalidType(f"`{name}` must be kernels (out, in, k, k), got {_described(kernel)}")
        if kernel.dtype not in (torch.float32, torch.float64):
            raise InvalidType(f"`{name}` must be float32 or float64, got {kernel.dtype}; convert it")
        if kernel.dtype != F[0].dtype:
            raise InvalidType(f"`{name}` is {kernel.dtype} but the first kernel is {F[0].dtype}; convert one of them")
        if kernel.shape[2] % 2 == 0 or kernel.shape[3] % 2 == 0:
            raise InvalidArgument(f"`{name}` must have odd sides, got a kernel of {tuple(kernel.shape[2:])}")
    for i, (height, width) in enumerate(sizes):
        channels = F[i].shape[1]
        if channels < 1 or tuple(G[i].shape[:2]) != (channels, channels):
            raise InvalidArgument(
                f"`G` of tier {i} must map {channels} channels to {channels}, as `F` has, got {tuple(G[i].shape[:2])}"
            )
        reaching = [F[i], G[i], *D[i : i + 1]]
        if any(k.shape[2] > height or k.shape[3] > width for k in reaching):
            raise InvalidArgument(f"`sizes` of tier {i} is {height}×{width}, smaller than a kernel on it (`size`)")
        if i + 1 < len(sizes):
            _check_descent(i, D[i], (channels, F[i + 1].shape[0]), sizes)


def _described(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.80}"


def _check_descent(i: int, kernel: Tensor, channels: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> None:
    if (kernel.shape[1], kernel.shape[0]) != channels:
        raise InvalidArgument(
            f"`D` of tier {i} must map {channels[0]} channels to {channels[1]}, got a kernel of {tuple(kernel.shape)}"
        )
    for side, below in zip(sizes[i], sizes[i + 1], strict=True):
        if side % 2 or below < side // 2:
            raise InvalidArgument(
                f"`sizes` of tier {i} is {sizes[i]} and of the next {sizes[i + 1]}: the first must be even and the "
                "second at least half of it"
            )
