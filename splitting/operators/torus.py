"""Shift-invariant maps on an h×w torus, in the frequency domain: X(ω) = Σ_y x(y) e^(−iω·y), one matrix per frequency.

A field (h, w, n, batch) is transformed to (frequencies, 2n, batch): real parts above imaginary parts, on the half of
the frequencies that determines a real signal. A symbol is what a convolution multiplies with there, a complex
(n_out, n_in) matrix per frequency; it is kept in the same way, (frequencies, 2 n_out, n_in). `stacked` makes of it the
real (2 n_out, 2 n_in) matrices [[Re, −Im], [Im, Re]] that multiply transforms and symbols.

With `phases` = 2 each channel of a field holds one of the 2×2 interleaved sub-images of a torus of twice the size, so
that subsampling by 2, which couples frequencies there, becomes shift-invariant here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from splitting import verified
from splitting.scratch import may_overwrite, scratch

T = TypeVar("T")


def _constant(compute: Callable[..., T]) -> Callable[..., T]:
    """`compute` remembered; under inference mode, too, it makes tensors that can be saved for a backward pass."""

    @lru_cache(maxsize=64)
    def ordinary(*arguments: Any) -> T:
        with torch.inference_mode(False), torch.no_grad():
            return compute(*arguments)

    return ordinary


# Up to this side a transform is a matrix product into memory that is ready for the channel products, which beats the
# fast transform with the permutations it needs.
_LARGEST_PRODUCT = 64


@dataclass(frozen=True)
class Torus:
    """An h×w torus whose fields have `phases`² sub-images per image channel. height, width count field positions."""

    height: int
    width: int
    phases: int = 1

    @property
    def rows(self) -> int:
        """Number of frequencies kept of the first axis; the second keeps all."""
        return self.height // 2 + 1

    @property
    def frequencies(self) -> int:
        return self.rows * self.width

    def analyse(self, field: Tensor, out: Tensor | None = None) -> Tensor:
        """The transform of a field (h, w, n, batch), as (frequencies, 2n, batch); written to `out` if given."""
        _, _, n, batch = field.shape
        shape = (self.frequencies, 2 * n, batch)
        if not self._by_product:
            parts = torch.view_as_real(torch.fft.rfft2(field, dim=(1, 0))).permute(0, 1, 4, 2, 3)
            return parts.reshape(shape) if out is None else _filled(out, parts)
        first, second = _forward_matrices(self, field.dtype, field.device)
        half = _product(first, field.reshape(self.height, -1)).view(self.rows, 2 * self.width, n * batch)
        second = second.expand(self.rows, -1, -1)
        if out is None:
            return torch.bmm(second, half).view(shape)
        torch.bmm(second, half, out=out.view(half.shape))
        return out

    def synthesise(self, spectrum: Tensor, out: Tensor | None = None) -> Tensor:
        """The field with this transform: `analyse` inverted; written to `out` if given."""
        batch, n = spectrum.shape[2], spectrum.shape[1] // 2
        shape = (self.height, self.width, n, batch)
        if not self._by_product:
            parts = spectrum.view(self.rows, self.width, 2, n, batch)
            values = torch.complex(parts[:, :, 0], parts[:, :, 1])
            field = torch.fft.irfft2(values, s=(self.width, self.height), dim=(1, 0))
            return field if out is None else _filled(out, field)
        first, second = _inverse_matrices(self, spectrum.dtype, spectrum.device)
        columns = spectrum.reshape(self.rows, 2 * self.width, n * batch)
        half = _product(second.expand(self.rows, -1, -1), columns).view(2 * self.rows, -1)
        return torch.mm(first, half, out=None if out is None else out.view(self.height, -1)).view(shape)

    def symbol(self, kernel: Tensor, *, stride: int = 1) -> Tensor:
        """The symbol of the correlation with `kernel` (out, in, k, k), k odd, centred.

        n_in = phases² in; n_out = phases² out, or out where stride = phases subsamples the result.
        """
        out, inner = kernel.shape[:2]
        values = self._tap_phases(kernel, stride) @ kernel.reshape(out * inner, -1).mT
        values = values.view(self.frequencies, -1, self.phases**2, out, inner).transpose(2, 3)
        return values.reshape(self.frequencies, -1, self.phases**2 * inner)

    def kernel_gradient(self, symbol_gradient: Tensor, kernel: Tensor, *, stride: int = 1) -> Tensor:
        """∂/∂kernel of Σ_ω weight(ω) Re ⟨H(ω), symbol(ω)⟩ for H = `symbol_gradient`, in the form of a symbol."""
        out, inner = kernel.shape[:2]
        values = symbol_gradient.view(self.frequencies, -1, out, self.phases**2, inner).transpose(2, 3)
        phases = self._tap_phases(kernel, stride, weighted=True)
        return (phases.mT @ values.reshape(-1, out * inner)).mT.reshape(kernel.shape)

    def correlate(self, q: Tensor, z: Tensor) -> Tensor:
        """q̂ ẑᴴ summed over the batch, as a symbol: ⟨q, S z⟩ = Σ_ω weight(ω) Re ⟨correlate(ω), S(ω)⟩ for symbols S.

        q, z: transforms (frequencies, 2n, batch).
        """
        n, k = q.shape[1] // 2, z.shape[1] // 2
        products = _product(q, z.mT)
        real = products[:, :n, :k] + products[:, n:, k:]
        return torch.cat([real, products[:, n:, :k] - products[:, :n, k:]], 1)

    def weights(self, like: Tensor) -> Tensor:
        """How much each kept frequency counts in a sum over all: 1/(hw), twice that where its mirror is not kept."""
        return _weights(self, like.dtype, like.device)

    def rounding(self, dtype: torch.dtype) -> float:
        """Upper bound on ‖fl(Tx) − Tx‖/(‖T‖‖x‖) for the transform T of this torus and for its inverse.

        For the matrix products it is proved, with Frobenius norms for those of the moduli. For the fast transform it is
        Higham's bound (2002, theorem 24.2) with room for radices other than 2, which is taken to hold for the library.
        """
        h, w = self.height, self.width
        if not self._by_product:
            return verified.gamma(64 * math.ceil(math.log2(h * w)) + 64, dtype)
        return 2 * verified.gamma(2 * max(h, w) + 16, dtype) * ((h + 2) / math.sqrt(h) + 2 * math.sqrt(w))

    def _tap_phases(self, kernel: Tensor, stride: int, *, weighted: bool = False) -> Tensor:
        sizes = (kernel.shape[2], kernel.shape[3])
        return _tap_phases(self, sizes, stride, weighted, kernel.dtype, kernel.device)

    @property
    def _by_product(self) -> bool:
        return max(self.height, self.width) <= _LARGEST_PRODUCT


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for matrices or stacks of them; in scratch memory where it may be."""
    multiply = torch.mm if a.ndim == 2 else torch.bmm
    memory = scratch("torus", (*a.shape[:-1], b.shape[-1]), b) if may_overwrite(a, b) else None
    return multiply(a, b, out=memory)


def _filled(out: Tensor, values: Tensor) -> Tensor:
    out.view(values.shape).copy_(values)
    return out


def stacked(symbol: Tensor) -> Tensor:
    """The real matrices (frequencies, 2 n_out, 2 n_in) that multiply with a symbol."""
    count, rows, inner = symbol.shape
    real, imaginary = symbol.view(count, 2, rows // 2, inner).unbind(1)
    result = symbol.new_empty(count, 2, rows // 2, 2, inner)
    result[:, :, :, 0] = symbol.view(count, 2, rows // 2, inner)
    result[:, 0, :, 1] = -imaginary
    result[:, 1, :, 1] = real
    return result.view(count, rows, 2 * inner)


def adjoint(symbol: Tensor) -> Tensor:
    """The conjugate transposes, as a symbol."""
    real, imaginary = symbol.chunk(2, 1)
    return torch.cat([real.mT, -imaginary.mT], 1)


def as_complex(symbol: Tensor) -> Tensor:
    """The complex matrices (frequencies, n_out, n_in) of a symbol."""
    real, imaginary = symbol.chunk(2, 1)
    return torch.complex(real, imaginary)


def _angles(frequencies: int, positions: Tensor, size: int) -> Tensor:
    """2π·frequency·position/size in float64, reduced exactly before it is multiplied by π; (frequencies, positions)."""
    index = torch.arange(frequencies)[:, None] * positions[None]
    return (index % size).double() * (2 * math.pi / size)


@_constant
def _forward_matrices(torus: Torus, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (2 rows, h): real and imaginary part of each frequency; columns (2w, 2w): from (part, x) to (ω, part)."""
    angle = _angles(torus.rows, torch.arange(torus.height), torus.height)
    first = torch.stack([angle.cos(), -angle.sin()], dim=1).flatten(0, 1)
    angle = _angles(torus.width, torch.arange(torus.width), torus.width)
    cos, sin = angle.cos(), angle.sin()
    second = torch.stack([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], dim=1).flatten(0, 1)
    return first.to(device, dtype), second.to(device, dtype)


@_constant
def _inverse_matrices(torus: Torus, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    first, second = _forward_matrices(torus, torch.float64, torch.device("cpu"))
    weights = _row_weights(torus.height).repeat_interleave(2) / (torus.height * torus.width)
    return (first.mT * weights).to(device, dtype).contiguous(), second.mT.to(device, dtype).contiguous()


@_constant
def _weights(torus: Torus, dtype: torch.dtype, device: torch.device) -> Tensor:
    weights = _row_weights(torus.height)[:, None].expand(-1, torus.width) / (torus.height * torus.width)
    return weights.flatten().to(device, dtype)


def _row_weights(height: int) -> Tensor:
    weights = torch.full((height // 2 + 1,), 2.0, dtype=torch.float64)
    weights[0] = 1
    if height % 2 == 0:
        weights[-1] = 1
    return weights


@_constant
def _tap_phases(
    torus: Torus, sizes: tuple[int, int], stride: int, weighted: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(frequencies · part · phases out · phases in, taps): what each tap gives to a symbol, times the weight or not."""
    rows = _axis_phases(torus.height, torus.rows, torus.phases, sizes[0], stride)
    columns = _axis_phases(torus.width, torus.width, torus.phases, sizes[1], stride)
    both = torch.einsum("fabt,gcdu->fgacbdtu", rows, columns)
    parts = torch.view_as_real(both).reshape(torus.frequencies, -1, sizes[0] * sizes[1], 2).permute(0, 3, 1, 2)
    if weighted:
        parts = parts * _weights(torus, torch.float64, torch.device("cpu"))[:, None, None, None]
    return parts.reshape(-1, sizes[0] * sizes[1]).to(device, dtype)


def _axis_phases(size: int, frequencies: int, phases: int, taps: int, stride: int) -> Tensor:
    """(frequencies, phases out, phases in, taps): e^(iΩΔ) where tap d leads from fine position a to phase b of the
    coarse position Δ away, a + d = b + phases·Δ; 0 where it leads to another phase."""
    result = torch.zeros(frequencies, phases // stride, phases, taps, dtype=torch.complex128)
    for a in range(phases // stride):
        for tap in range(taps):
            offset = a + tap - taps // 2
            angle = _angles(frequencies, torch.tensor([offset // phases]), size)[:, 0]
            result[:, a, offset % phases, tap] = torch.polar(torch.ones_like(angle), angle)
    return result
