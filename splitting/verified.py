"""Bounds on eigenvalues and norms that hold in exact arithmetic although they are computed in floating point.

γ_k = k·u / (1 − k·u) bounds the relative error of any sum of k products in any order (Higham 2002, §3).
A Cholesky factorisation that runs to completion proves λ_min(S) ≥ −φ·tr(S), φ = γ_{n+1}/(1 − γ_{n+1}) (Rump 2006).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Significand bits that a float32 matrix product keeps at torch's three precision settings.
_FLOAT32_PRODUCT_ROUNDOFF = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}

# The spacing of subnormal float64 numbers.
_SMALLEST = 2.0**-1074


def unit_roundoff(dtype: torch.dtype) -> float:
    """Unit roundoff u of `dtype`; for float32 that of the matrix products torch is currently allowed to use."""
    if dtype == torch.float32:
        return _FLOAT32_PRODUCT_ROUNDOFF[torch.get_float32_matmul_precision()]
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
    n = matrix.shape[-1]
    if n == 0:
        return math.inf
    if not bool(torch.isfinite(matrix).all()):
        return -math.inf
    estimate = float(torch.linalg.eigvalsh(matrix)[..., 0].amin())
    scale = float(_traces(matrix).amax()) + n * abs(estimate) + torch.finfo(torch.float64).tiny
    # Twice the terms that Rump's proof counts: room for blocked kernels that multiply by reciprocals.
    phi = 2 * gamma(2 * n + 8)
    margin = phi * scale
    while True:
        shift = estimate - margin
        shifted = matrix.clone()
        shifted.diagonal(dim1=-2, dim2=-1).sub_(shift)
        trace = float(_traces(shifted).amax())
        if not bool(torch.linalg.cholesky_ex(shifted).info.any()):
            proved = shift - phi * trace - 2 * unit_roundoff(torch.float64) * (trace + abs(shift))
            return round_down(proved - perturbation)
        margin *= 4


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
    if matrix.numel() == 0:
        return perturbation
    if not bool(torch.isfinite(matrix).all()):
        return math.inf
    # A power of two keeps the squares inside the exponent range and loses nothing.
    exponent = math.frexp(float(matrix.abs().max()))[1]
    scaled = torch.ldexp(matrix, torch.tensor(-exponent))
    tall = scaled if scaled.shape[-2] >= scaled.shape[-1] else scaled.mT
    gram = tall.mT @ tall
    gram = (gram + gram.mT) / 2
    error = 2 * gamma(tall.shape[-2] + 2) * float(scaled.square().sum((-2, -1)).amax())
    squared = max(largest_eigenvalue(gram, perturbation=error), 0.0)
    return round_up(math.ldexp(round_up(math.sqrt(squared)), exponent) + perturbation)


def vector_norm(x: Tensor) -> Tensor:
    """Upper bound on the 2-norm of each row of x (batch, …), one float64 per row."""
    flat = x.detach().to(torch.float64).flatten(1)
    if flat.shape[1] == 0:
        return flat.new_zeros(len(flat))
    # Dividing by the largest entry keeps squares from underflowing or overflowing.
    largest = flat.abs().amax(1)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    norm = torch.linalg.vector_norm(flat / scale[:, None], dim=1) * scale
    # Subnormal products are off by absolute amounts.
    return norm * (1 + 2 * gamma(flat.shape[1] + 4)) + 4 * flat.shape[1] * _SMALLEST


def round_up(value: float) -> float:
    """A float64 a little above `value`: covers the rounding of the few scalar operations that led to it."""
    return math.nextafter(value * (1 + math.copysign(2.0**-50, value)), math.inf)


def round_down(value: float) -> float:
    """A float64 a little below `value`: covers the rounding of the few scalar operations that led to it."""
    return -round_up(-value)
