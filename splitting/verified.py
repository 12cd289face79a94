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

UNDERFLOW = 2.0**-1022
"""What an operation may be off by where its result leaves the normal numbers of float64.

That holds even where the processor is told to take subnormal numbers for 0 (`torch.set_flush_denormal`).
"""


def unit_roundoff(dtype: torch.dtype) -> float:
    """The unit roundoff u of a dtype: rounding changes a number by u times itself at most.

    Args:
        dtype: A floating-point dtype.

    Returns:
        u; for float32 that of the least exact matrix product that torch is now allowed to use.
    """
    if dtype == torch.float32:
        settings = [getattr(torch.backends, name).matmul.fp32_precision for name in ("mkldnn", "cuda")]
        return max(_FLOAT32_PRODUCT_ROUNDOFF.get(setting, 2.0**-8) for setting in settings)
    return torch.finfo(dtype).eps / 2


def rounding_factor(terms: int, dtype: torch.dtype = torch.float64) -> float:
    """γ_k = k·u/(1 − k·u), which bounds the relative error of a sum of k products in any order (Higham 2002, §3).

    Args:
        terms: k.
        dtype: Of the arithmetic.

    Returns:
        γ_k; inf where k·u ≥ 1 and no bound holds.
    """
    error = terms * unit_roundoff(dtype)
    return error / (1 - error) if error < 1 else math.inf


def smallest_eigenvalue(matrix: Tensor, *, perturbation: float = 0.0) -> float:
    """A proved lower bound on λ_min of every symmetric matrix near a given one.

    An eigenvalue routine proposes a shift just below λ_min. The bound is returned only once Cholesky of
    matrix − shift·I has run through, which proves it (Rump 2006).

    Args:
        matrix: (…, n, n), float64, symmetric to the last bit.
        perturbation: How far from it, in the 2-norm, a matrix may be.

    Returns:
        The bound, of several matrices the smallest; −inf if an entry is not finite.
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
    phi = 2 * rounding_factor(2 * n + 8)
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


def minorant(matrix: Tensor, *, perturbation: float = 0.0) -> tuple[Tensor, float] | None:
    """R and δ > 0 with S ⪰ RRᵀ + δI for every symmetric matrix S near a given one.

    So ‖x‖² over S⁻¹ is at most ‖R⁻¹x‖², and at most ‖x‖²/δ. Cholesky of the matrix less a little more than rounding and
    perturbation proves it, where it runs through (Rump 2006).

    Args:
        matrix: (n, n), float64, symmetric to the last bit.
        perturbation: How far from it, in the 2-norm, S may be.

    Returns:
        R, lower triangular, and δ; None where nothing is proved, as for a matrix of extreme scale.
    """
    n, trace = len(matrix), float(_traces(matrix))
    # Between these, nothing of weight vanishes or overflows.
    if not 2.0**-200 < trace < 2.0**200:
        return None
    floor = 1e-9 * trace / n
    shift = perturbation + 4 * rounding_factor(2 * n + 8) * trace + floor
    shifted = matrix.clone()
    shifted.diagonal().sub_(shift)
    factor, info = torch.linalg.cholesky_ex(shifted)
    return None if int(info) != 0 else (factor, floor)


def _traces(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).abs().sum(-1)


def largest_eigenvalue(matrix: Tensor, *, perturbation: float = 0.0) -> float:
    """A proved upper bound on λ_max of every symmetric matrix near a given one, as `smallest_eigenvalue` has it.

    Args:
        matrix: (…, n, n), float64, symmetric to the last bit.
        perturbation: How far from it, in the 2-norm, a matrix may be.

    Returns:
        The bound, of several matrices the largest; inf if an entry is not finite.
    """
    return -smallest_eigenvalue(-matrix, perturbation=perturbation)


def spectral_norm(matrix: Tensor, *, perturbation: float = 0.0) -> float:
    """A proved upper bound on ‖M‖₂ of every matrix M near a given one.

    ‖M‖₂² = λ_max of the smaller Gram matrix, whose rounding error is at most γ_k ‖M‖_F² in the 2-norm.

    Args:
        matrix: (…, rows, columns), floating point; taken to float64.
        perturbation: How far from it, in the 2-norm, M may be.

    Returns:
        The bound, of several matrices the largest; inf if an entry is not finite.
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
    error = 2 * rounding_factor(tall.shape[-2] + 2) * float(scaled.square().sum((-2, -1)).amax())
    # Entries that scaling rounded, and squares, may have vanished.
    error += 4 * tall.shape[-2] * tall.shape[-1] * UNDERFLOW
    squared = max(largest_eigenvalue(gram, perturbation=error), 0.0)
    return round_up(times_power(round_up(math.sqrt(squared)), exponent) + UNDERFLOW + perturbation)


def normalised(x: Tensor) -> tuple[Tensor, int]:
    """y and k with x = y·2^k and the largest modulus of y in [½, 1).

    Args:
        x: Any shape, float64.

    Returns:
        (y, k), exact but for entries 2⁻¹⁰²² times smaller than the largest.
    """
    exponent = exponent_of(float(x.abs().amax()) if x.numel() else 0.0)
    return _times_power(x, -exponent), exponent


def exponent_of(largest: float) -> int:
    """The power of two that `normalised` divides by.

    Args:
        largest: The largest modulus.

    Returns:
        k with largest·2^−k in [½, 1); 0 for what is not finite.
    """
    return math.frexp(largest)[1] if math.isfinite(largest) else 0


def times_power(value: float, exponent: int) -> float:
    """value·2^exponent.

    Args:
        value: Any number.
        exponent: Any integer.

    Returns:
        The product; inf where it is too large.
    """
    return float(_times_power(value, exponent))


def _times_power(value: T, exponent: int) -> T:
    # In two steps, since 2^exponent alone may leave the exponent range.
    half = exponent // 2
    return value * 2.0**half * 2.0 ** (exponent - half)


def vector_norm(x: Tensor) -> Tensor:
    """A proved upper bound on the 2-norm of each sample.

    Args:
        x: (batch, …), floating point.

    Returns:
        (batch,), float64.
    """
    flat = x.detach().to(torch.float64).flatten(1)
    if flat.shape[1] == 0:
        return flat.new_zeros(len(flat))
    # Dividing by the largest entry keeps squares from underflowing or overflowing.
    largest = flat.abs().amax(1)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    norm = torch.linalg.vector_norm(flat / scale[:, None], dim=1) * scale
    return norm * (1 + 2 * rounding_factor(flat.shape[1] + 4)) + 4 * flat.shape[1] * UNDERFLOW


def round_up(value: float) -> float:
    """A float64 a little above a number: it covers the rounding of the few operations that led to it.

    Args:
        value: What up to some four operations on float64 numbers gave.

    Returns:
        value·(1 + 2⁻⁵⁰), rounded up.
    """
    return math.nextafter(value * (1 + math.copysign(2.0**-50, value)), math.inf)


def round_down(value: float) -> float:
    """A float64 a little below a number: it covers the rounding of the few operations that led to it.

    Args:
        value: What up to some four operations on float64 numbers gave.

    Returns:
        −round_up(−value).
    """
    return -round_up(-value)
