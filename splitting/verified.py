"""Bounds on eigenvalues and norms that hold in exact arithmetic although they are computed in floating point.

γ_k = k·u / (1 − k·u) bounds the relative error of any sum of k products in any order (Higham 2002, §3).
A Cholesky factorisation that runs to completion proves λ_min(S) ≥ −φ·tr(S), φ = γ_{n+1}/(1 − γ_{n+1}) (Rump 2006).
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T", float, Tensor)

# What torch's settings of float32 products mean: the unit roundoff of the format that factors are rounded to.
_FLOAT32_PRODUCT_ROUNDOFF = {"none": 2.0**-24, "ieee": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}

# No operation is off by more than this where its result leaves the normal numbers of float64, even where the processor
# is told to take subnormal numbers for 0 (`torch.set_flush_denormal`).
UNDERFLOW = 2.0**-1022


def unit_roundoff(dtype: torch.dtype) -> float:
    """Unit roundoff u of `dtype`; for float32 that of the least exact matrix product torch is now allowed to use."""
    if dtype == torch.float32:
        settings = [getattr(torch.backends, name).matmul.fp32_precision for name in ("mkldnn", "cuda")]
        return max(_FLOAT32_PRODUCT_ROUNDOFF.get(setting, 2.0**-8) for setting in settings)
    return torch.finfo(dtype).eps / 2


def gamma(terms: int, dtype: torch.dtype = torch.float64) -> float:
    """γ_k for a sum of k = `terms` products in `dtype`; inf where k·u ≥ 1 and no bound holds."""
    error = terms * unit_roundoff(dtype)
    return error / (1 - error) if error < 1 else math.inf


def smallest_eigenvalue(matrix: Tensor, *, perturbation: float = 0.0) -> float:
    """Proved lower bound on λ_min of every symmetric matrix within `perturbation` (2-norm) of `matrix`.

    `matrix` is (…, n, n), float64, symmetric to the last bit; of several matrices it is the smallest of all. An
    eigenvalue routine proposes a shift just below λ_min; the bound is returned only once Cholesky of
    `matrix − shift·I` has run through, which proves it.
    Returns −inf if `matrix` is not finite.
    """
    matrix = matrix.detach().to("cpu", torch.float64)
    if matrix.shape[-1] == 0:
        return math.inf
    if not bool(torch.isfinite(matrix).all()):
        return -math.inf
    if not bool(matrix.any()):
        return -perturbation
    scaled, exponent = normalised(matrix)
    return round_down(times_power(_smallest_eigenvalue(scaled), exponent) - UNDERFLOW - perturbation)


def _smallest_eigenvalue(matrix: Tensor) -> float:
    """The same for entries of modulus at most 1, so that nothing overflows or vanishes."""
    n = matrix.shape[-1]
    estimate = float(torch.linalg.eigvalsh(matrix)[..., 0].amin())
    # Twice the terms that Rump's proof counts: room for blocked kernels that multiply by reciprocals.
    phi = 2 * gamma(2 * n + 8)
    margin = phi * (float(_traces(matrix).amax()) + n * abs(estimate))
    # λ_min is at least −n: a shift below that proves nothing new, and is never reached by a sound routine.
    while margin < 4 * n + 4:
        shift = estimate - margin
        shifted = matrix.clone()
        shifted.diagonal(dim1=-2, dim2=-1).sub_(shift)
        trace = float(_traces(shifted).amax())
        if not bool(torch.linalg.cholesky_ex(shifted).info.any()):
            return shift - phi * trace - 2 * unit_roundoff(torch.float64) * (trace + abs(shift))
        margin *= 4
    return -2.0 * n  # Gershgorin, with room for rounding


def _traces(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).abs().sum(-1)


def largest_eigenvalue(matrix: Tensor, *, perturbation: float = 0.0) -> float:
    """Proved upper bound on λ_max of every symmetric matrix within `perturbation` of `matrix`; see above."""
    return -smallest_eigenvalue(-matrix, perturbation=perturbation)


def spectral_norm(matrix: Tensor, *, perturbation: float = 0.0) -> float:
    """Proved upper bound on ‖M‖₂ for every M within `perturbation` (2-norm) of `matrix`, of shape (…, rows, columns).

    ‖M‖₂² = λ_max of the smaller Gram matrix, whose rounding error is at most γ_k ‖M‖_F² in the 2-norm.
    Returns inf if `matrix` is not finite.
    """
    matrix = matrix.detach().to("cpu", torch.float64)
    if not bool(matrix.any()):
        return perturbation
    if not bool(torch.isfinite(matrix).all()):
        return math.inf
    scaled, exponent = normalised(matrix)
    tall = scaled if scaled.shape[-2] >= scaled.shape[-1] else scaled.mT
    gram = tall.mT @ tall
    gram = (gram + gram.mT) / 2
    error = 2 * gamma(tall.shape[-2] + 2) * float(scaled.square().sum((-2, -1)).amax())
    # Entries that scaling rounded, and squares, may have vanished.
    error += 4 * tall.shape[-2] * tall.shape[-1] * UNDERFLOW
    squared = max(largest_eigenvalue(gram, perturbation=error), 0.0)
    return round_up(times_power(round_up(math.sqrt(squared)), exponent) + UNDERFLOW + perturbation)


def normalised(x: Tensor) -> tuple[Tensor, int]:
    """x = y·2^k with the largest modulus of y in [½, 1): (y, k). Exact but for entries 2⁻¹⁰²² times smaller."""
    largest = float(x.abs().amax()) if x.numel() else 0.0
    exponent = math.frexp(largest)[1] if math.isfinite(largest) else 0
    return _times_power(x, -exponent), exponent


def times_power(value: float, exponent: int) -> float:
    """value·2^exponent; inf where that is too large."""
    return float(_times_power(value, exponent))


def _times_power(value: T, exponent: int) -> T:
    # In two steps, since 2^exponent alone may leave the exponent range.
    half = exponent // 2
    return value * 2.0**half * 2.0 ** (exponent - half)


def vector_norm(x: Tensor) -> Tensor:
    """Upper bound on the 2-norm of each row of x (batch, …), one float64 per row."""
    flat = x.detach().to(torch.float64).flatten(1)
    if flat.shape[1] == 0:
        return flat.new_zeros(len(flat))
    # Dividing by the largest entry keeps squares from underflowing or overflowing.
    largest = flat.abs().amax(1)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    norm = torch.linalg.vector_norm(flat / scale[:, None], dim=1) * scale
    return norm * (1 + 2 * gamma(flat.shape[1] + 4)) + 4 * flat.shape[1] * UNDERFLOW


def round_up(value: float) -> float:
    """A float64 a little above `value`: covers the rounding of the few scalar operations that led to it."""
    return math.nextafter(value * (1 + math.copysign(2.0**-50, value)), math.inf)


def round_down(value: float) -> float:
    """A float64 a little below `value`: covers the rounding of the few scalar operations that led to it."""
    return -round_up(-value)
