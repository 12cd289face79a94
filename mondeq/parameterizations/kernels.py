"""Kernels in space (out, in, k, k) of odd sides: mI + FᵀF + G − Gᵀ as one correlation, and what rounding does to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from splitting import full_precision, norms, verified


def gram_skew(m: Tensor, F: Tensor, G: Tensor) -> Tensor:
    """The kernel of mI + FᵀF + G − Gᵀ, differentiable.

    Args:
        m: A scalar tensor.
        F: (any, channels, k, k).
        G: (channels, channels, k, k).

    Returns:
        (channels, channels, 2k − 1, 2k − 1).
    """
    height, width = (side // 2 for side in F.shape[2:])
    identity = torch.diag_embed(m.expand(len(G)))[:, :, None, None]
    small = G - transposed(G) + functional.pad(identity, (width, width, height, height))
    with full_precision(F.device):
        return gram(F) + functional.pad(small, (width, width, height, height))


def gram(F: Tensor) -> Tensor:
    """The kernel of FᵀF, with sides 2k − 1: Σ_t F_tᵀ F_{t+d} at d.

    Args:
        F: (any, channels, k, k).

    Returns:
        (channels, channels, 2k − 1, 2k − 1).
    """
    out, inner, height, width = F.shape
    taps = F.permute(2, 3, 1, 0).reshape(-1, out)
    products = (taps @ taps.mT).view(height * width, inner, height * width, inner).transpose(1, 2)
    rows, columns = (torch.arange(side, device=F.device) for side in (height, width))
    place = (rows[:, None] * (2 * width - 1) + columns).flatten()
    offsets = place - place[:, None] + place[-1]
    total = F.new_zeros((2 * height - 1) * (2 * width - 1), inner, inner)
    total = total.index_add(0, offsets.flatten(), products.flatten(0, 1))
    return total.permute(1, 2, 0).reshape(inner, inner, 2 * height - 1, 2 * width - 1)


def proved_monotonicity(m: Tensor, F: Tensor, G: Tensor) -> float:
    """m less the rounding of `gram_skew`: a lower bound on the monotonicity of what is left of it without FᵀF.

    Args:
        m: A scalar tensor.
        F: (any, channels, k, k).
        G: (channels, channels, k, k).

    Returns:
        The bound, which holds on a torus of any size. It may be ≤ 0 where F or G is huge.
    """
    terms, (_, channels, height, width) = F[:, 0].numel() + 4, F.shape
    # ‖·‖₂ of a symbol is at most that of the sums of moduli over taps, which for FᵀF are SᵀS with those of F for S.
    f, g = (norms.frobenius(kernel.detach().double().abs().sum((2, 3))) for kernel in (F, G))
    exact = float(m.detach())
    # Products below the normal numbers may vanish, whatever their size is relative to A.
    vanished = 16 * terms * channels * height * width * torch.finfo(F.dtype).tiny
    error = verified.rounding_factor(terms, F.dtype) * (f * f + 2 * g + exact) * (1 + 1e-12) + vanished
    return verified.round_down(exact - error)


def promised_monotonicity(m: Tensor, F: Sequence[Tensor], G: Sequence[Tensor]) -> Callable[[], float]:
    """The least `proved_monotonicity` of some kernels as they are now, proved when it is asked for.

    Training never asks.

    Args:
        m: A scalar tensor.
        F: One kernel for each of `G`.
        G: Kernels.

    Returns:
        A function that gives the bound.
    """
    m, *kernels = (t.detach().clone() for t in (m, *F, *G))
    pairs = tuple(zip(kernels[: len(F)], kernels[len(F) :], strict=True))
    return partial(_least_monotonicity, m, pairs)


def _least_monotonicity(m: Tensor, pairs: tuple[tuple[Tensor, Tensor], ...]) -> float:
    proved = [proved_monotonicity(m, f, g) for f, g in pairs]
    # `min` may pass NaN over.
    return min(proved) if all(value == value for value in proved) else math.nan


def transposed(kernel: Tensor) -> Tensor:
    """The kernel of the adjoint correlation.

    Args:
        kernel: (out, in, k, k).

    Returns:
        (in, out, k, k).
    """
    return kernel.transpose(0, 1).flip(2, 3)
