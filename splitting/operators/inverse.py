"""Inverses of I + αA for monotone A, one matrix or a stack of them: computed without pivoting, checked on a probe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from splitting.context import asking_is_free, on_host
from splitting.errors import ResolventError
from splitting.scratch import recycled

# Up to this order the library's inverse of one matrix is as fast as matrix products make ours.
_ORDER = 128
# For stacks the library's inverse is slow beyond this order, and from order 150 on, with several threads, it can be
# silently wrong.
_STACK_ORDER = 16
# Entries of the stack that is inverted at a time on a CPU: what is done to it stays in a cache.
_CHUNK_ENTRIES = 2**20


def block_inverse(matrix: Tensor) -> Tensor:
    """Inverses by recursive 2×2 block elimination without pivoting: for large n several times as fast as LU.

    Stable for I + αA with A monotone: the symmetric part of such a matrix (in its diagonal metric) is at least I,
    every Schur complement inherits that, so no pivot block is ill conditioned beyond the matrix itself
    (Golub & Van Loan, Matrix Computations, §4.2). The result is to be verified, as `verify_inverse` does.

    Args:
        matrix: (…, n, n).

    Returns:
        The inverses, shaped like the matrices.
    """
    n = matrix.shape[-1]
    if n <= (_ORDER if matrix.ndim == 2 else _STACK_ORDER):
        return torch.linalg.inv_ex(matrix).inverse
    h = n // 2
    p = block_inverse(matrix[..., :h, :h])
    below, right = matrix[..., h:, :h] @ p, p @ matrix[..., :h, h:]
    schur = block_inverse(matrix[..., h:, h:] - below @ matrix[..., :h, h:])
    result = torch.empty_like(matrix)
    upper = right @ schur
    result[..., h:, h:] = schur
    result[..., :h, h:] = -upper
    result[..., h:, :h] = -(schur @ below)
    result[..., :h, :h] = p + upper @ below
    return result


def complex_inverse(symbol: Tensor) -> Tensor:
    """Inverses of complex matrices R + iJ by real arithmetic.

    The inverse is X + iY with X = (R + J R⁻¹ J)⁻¹ and Y = −R⁻¹ J X. Stable where `block_inverse` is: this eliminates
    blocks of the real form [[R, −J], [J, R]], whose symmetric part is at least I where that of R + iJ is.

    Args:
        symbol: (count, 2n, n), R above J.

    Returns:
        (count, 2n, n), X above Y.
    """
    n = symbol.shape[2]
    result = recycled(symbol)
    size = max(_CHUNK_ENTRIES // (n * n), 1) if symbol.device.type == "cpu" else len(symbol)
    for chunk, inverse in zip(symbol.split(size), result.split(size), strict=True):
        real, imaginary = chunk[:, :n], chunk[:, n:]
        moved = block_inverse(real) @ imaginary
        inverse[:, :n] = block_inverse(torch.baddbmm(real, imaginary, moved))
        inverse[:, n:] = (moved @ inverse[:, :n]).neg_()
    return result


class Probe:
    """How wrong a computed inverse is on a probe. It is judged once the host knows the number.

    Args:
        error: The relative error, a scalar tensor.
    """

    error: Tensor
    """The relative error, a scalar tensor."""
    passed: bool
    """Whether the error was seen and is small enough."""

    def __init__(self, error: Tensor) -> None:
        self.error, self.passed = error, False

    def judge(self, error: float) -> None:
        """Raise unless the error is small enough.

        Args:
            error: The value of `error`.

        Raises:
            ResolventError: It is too large.
        """
        dtype = self.error.dtype
        allowed = math.sqrt(torch.finfo(dtype).eps) * 16
        if not error <= allowed:
            raise ResolventError(
                f"the computed inverse of I + αA is wrong by {error:.1e} on a probe (allowed {allowed:.1e}): A is not "
                f"finite, not monotone, or too ill conditioned for {dtype}; use float64 or check the weights"
            )
        self.passed = True


_later: ContextVar[list[Probe] | None] = ContextVar("_later", default=None)


@contextmanager
def judged_later() -> Iterator[list[Probe]]:
    """A block in which no probe is judged. Whoever opens it has to.

    Yields:
        The probes of the inverses that were used in the block and that nobody has judged yet.
    """
    probes: list[Probe] = []
    token = _later.set(probes)
    try:
        yield probes
    finally:
        _later.reset(token)


def judge(probes: Sequence[Probe]) -> None:
    """Judge the probes that have not passed yet, in one transfer; inside of `judged_later` note them instead.

    Args:
        probes: Those of the inverses that are about to be used.

    Raises:
        ResolventError: An inverse is wrong.
    """
    waiting = [probe for probe in probes if not probe.passed]
    later = _later.get()
    if later is not None:
        later.extend(waiting)
    elif waiting:
        for probe, error in zip(waiting, on_host(*(probe.error for probe in waiting)), strict=True):
            probe.judge(error)


def verify_inverse(forward: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], ones: Tensor) -> Probe:
    """Check V(Mp) = p for every row p of a probe with entries of varied size and sign.

    Where asking is not free, `judge` is to be called before what is computed with the inverse is used.

    Args:
        forward: M.
        inverse: V.
        ones: Gives the shape (rows, …), dtype and device of the probe.

    Returns:
        The probe with the largest relative error of a row, judged already where asking is free.

    Raises:
        ResolventError: That error exceeds 16 times the square root of the dtype's resolution. Rounding stays far below
            that for every inverse worth using, and a wrong one does not.
    """
    rows = ones.flatten(1)
    chirp = torch.cos(torch.arange(1, rows.shape[1] + 1, device=ones.device, dtype=torch.float64))
    probe = (rows * chirp.to(ones.dtype)).reshape(ones.shape)
    back = inverse(forward(probe))
    size = probe.flatten(1).norm(dim=1).clamp_min(torch.finfo(ones.dtype).tiny)
    result = Probe(((back - probe).flatten(1).norm(dim=1) / size).nan_to_num(nan=math.inf).amax())
    if asking_is_free(ones.device):
        result.judge(float(result.error))
    return result
