"""Symbols: a complex (n_out, n_in) matrix per frequency, kept as (frequencies, 2 n_out, n_in).

Real parts are above imaginary parts. `stacked` makes of a symbol the real matrices [[Re, −Im], [Im, Re]], (2 n_out,
2 n_in), that multiply transforms and symbols.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from splitting import verified
from splitting.operators.inverse import Probe, complex_inverse, verify_inverse
from splitting.scratch import product, recycled

# Frequencies whose matrices are taken to float64 at a time.
CHUNK = 128
# Of a Gram matrix, before power iteration for its norm.
_SQUARINGS = 8


def stacked(symbol: Tensor) -> Tensor:
    """The real matrices that multiply with a symbol.

    Args:
        symbol: (frequencies, 2 n_out, n_in).

    Returns:
        (frequencies, 2 n_out, 2 n_in).
    """
    count, rows, inner = symbol.shape
    real, imaginary = symbol.view(count, 2, rows // 2, inner).unbind(1)
    result = recycled(symbol, (count, 2, rows // 2, 2, inner))
    result[:, :, :, 0] = symbol.view(count, 2, rows // 2, inner)
    result[:, 0, :, 1] = imaginary
    result[:, 0, :, 1].neg_()
    result[:, 1, :, 1] = real
    return result.view(count, rows, 2 * inner)


def as_complex(symbol: Tensor) -> Tensor:
    """The complex matrices of a symbol.

    Args:
        symbol: (frequencies, 2 n_out, n_in).

    Returns:
        (frequencies, n_out, n_in), complex.
    """
    real, imaginary = symbol.chunk(2, 1)
    return torch.complex(real, imaginary)


def unstacked(matrices: Tensor) -> Tensor:
    """The symbol of stacked matrices: `stacked` inverted.

    Args:
        matrices: (frequencies, 2 n_out, 2 n_in).

    Returns:
        (frequencies, 2 n_out, n_in), a view.
    """
    return matrices[:, :, : matrices.shape[2] // 2]


def times_hermitian(matrices: Tensor, symbol: Tensor) -> Tensor:
    """Stacked matrices times symbol + symbolᴴ.

    Args:
        matrices: (frequencies, 2 n_out, 2n).
        symbol: (frequencies, 2n, n).

    Returns:
        A symbol (frequencies, 2 n_out, n).
    """
    n = symbol.shape[2]
    real, imaginary = symbol.chunk(2, 1)
    result = torch.baddbmm(product(matrices, symbol), matrices[..., :n], real.mT)
    return torch.baddbmm(result, matrices[..., n:], imaginary.mT, alpha=-1)


def symbol_rounding(taps: int, dtype: torch.dtype = torch.float64) -> float:
    """An upper bound on the error of a computed symbol, relative to the sums of moduli of its taps, entry by entry.

    Args:
        taps: Entries of the kernel in space.
        dtype: Of the computation.

    Returns:
        The bound, relative.
    """
    # A sum over taps of products with phases that are off by some 35 roundings.
    return verified.rounding_factor(taps + 40, dtype)


def inverted(symbol: Tensor, alpha: float) -> tuple[Tensor, Probe]:
    """(I + αÂ(ω))⁻¹, verified on a probe at every frequency.

    Args:
        symbol: Â, (frequencies, 2n, n).
        alpha: α > 0.

    Returns:
        A symbol like Â, and its probe, which is to be judged where asking is not free.

    Raises:
        ResolventError: The inverse at some frequency does not invert.
    """
    shifted = _shifted(symbol, alpha)
    inverse = complex_inverse(shifted)
    ones = torch.ones(symbol.shape[:2], dtype=symbol.dtype, device=symbol.device)
    return inverse, verify_inverse(lambda v: _times(shifted, v), lambda v: _times(inverse, v), ones)


def _shifted(symbol: Tensor, alpha: float) -> Tensor:
    """I + α·symbol."""
    result = torch.mul(symbol, alpha, out=recycled(symbol))
    result.diagonal(dim1=1, dim2=2).add_(1)
    return result


def _times(symbol: Tensor, v: Tensor) -> Tensor:
    """The symbol times one vector (2n) per frequency, real part above imaginary part."""
    n = symbol.shape[2]
    parts = symbol @ v.view(-1, 2, n).mT
    return torch.cat([parts[:, :n, 0] - parts[:, n:, 1], parts[:, n:, 0] + parts[:, :n, 1]], 1)


def cayley(inverse: Tensor) -> Tensor:
    """The stacked 2V − I.

    Args:
        inverse: The symbol V, (frequencies, 2n, n). It is overwritten.

    Returns:
        (frequencies, 2n, 2n).
    """
    inverse.mul_(2).diagonal(dim1=1, dim2=2).sub_(1)
    return stacked(inverse)


def cayley_norm(symbol: Tensor, alpha: float) -> float:
    """‖(I − αŜ)(I + αŜ)⁻¹‖₂, the largest over all frequencies, estimated by power iteration.

    What counts is how far from 1 it is, and for an ill-conditioned Ŝ many singular values are near 1. Those of the
    squared Gram matrices are not: the power is 2^(k+1) after k squarings.

    Args:
        symbol: Ŝ, (frequencies, 2n, n).
        alpha: α > 0.

    Returns:
        An estimate from below.
    """
    matrices = cayley(complex_inverse(_shifted(symbol, alpha)))
    power, log_norm = matrices.mT @ matrices, matrices.new_zeros(len(matrices))
    for squared in range(_SQUARINGS):
        # In units of its own size, lest it vanish.
        size = power.norm(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(power.dtype).tiny)
        log_norm += size.flatten().log() / 2**squared
        power = torch.linalg.matrix_power(power / size, 2)
    index = torch.arange(4 * power.shape[1], dtype=power.dtype, device=power.device)
    vectors = torch.cos(index.square()).view(-1, 4).expand(len(power), -1, -1)
    for _ in range(12):
        vectors = power @ functional.normalize(vectors, dim=1)
    log_norm += vectors.norm(dim=1).amax(1).log() / 2**_SQUARINGS
    return float((log_norm / 2).exp().amax())


def spectral_norm(matrices: Tensor, error: float) -> float:
    """A proved upper bound on ‖·‖₂ at every frequency.

    Args:
        matrices: Stacked ones, float64.
        error: How far from them, in the 2-norm, the exact ones may be.

    Returns:
        The bound, the largest over all frequencies.
    """
    return max(verified.spectral_norm(chunk, perturbation=error) for chunk in matrices.split(CHUNK))


def two_norm_bound(symbol: Tensor, shift: float | Tensor = 0.0) -> Tensor:
    """An upper bound, up to rounding, on ‖B‖₂ for B = symbol − shift·I: the Schatten 4-norm ‖BᴴB‖_F^½.

    Args:
        symbol: (frequencies, 2 n_out, n_in).
        shift: Any number, or a scalar tensor; 0 where the symbol is not square.

    Returns:
        The largest over all frequencies, a scalar tensor, float64.
    """
    if isinstance(shift, Tensor) or shift:
        symbol = recycled(symbol).copy_(symbol)
        symbol.diagonal(dim1=1, dim2=2).sub_(shift)
    real, imaginary = symbol.chunk(2, 1)
    mixed = real.mT @ imaginary
    parts = symbol.mT @ symbol, mixed - mixed.mT
    # In float64 the squares of squares neither overflow nor underflow.
    squares = [torch.linalg.vector_norm(part, dim=(1, 2), dtype=torch.float64).square_() for part in parts]
    return (squares[0] + squares[1]).amax().sqrt().sqrt()


def frobenius(symbol: Tensor) -> Tensor:
    """‖·‖_F at every frequency.

    Args:
        symbol: (frequencies, 2 n_out, n_in).

    Returns:
        (frequencies,).
    """
    return torch.linalg.vector_norm(symbol, dim=(1, 2))
