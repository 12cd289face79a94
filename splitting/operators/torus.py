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


# Up to this side a transform is one matrix product, beyond it two with factors of the side. The result is ready for the
# channel products, which beats the fast transform with the permutations it needs; that is for sides with a factor
# larger than the second number.
_LARGEST_SIDE, _LARGEST_FACTOR = 64, 256

Stage = tuple[int, Tensor]


@dataclass(frozen=True)
class Torus:
    """An h×w torus whose fields have `phases`² sub-images per image channel. height, width count field positions.

    Of the first axis the frequencies are kept whose remainder modulo its first factor N₁ is at most N₁/2, of the second
    all, in the order in which the matrix products of a transform leave them (`row_frequencies`, `column_frequencies`).
    """

    height: int
    width: int
    phases: int = 1

    @property
    def rows(self) -> int:
        """Number of frequencies kept of the first axis; the second keeps all."""
        first, second = self._factors[0]
        return (first // 2 + 1) * second

    @property
    def frequencies(self) -> int:
        return self.rows * self.width

    @property
    def row_frequencies(self) -> Tensor:
        return _remainder_first(*self._factors[0])[: self.rows]

    @property
    def column_frequencies(self) -> Tensor:
        return _remainder_first(*self._factors[1])

    def analyse(self, field: Tensor, out: Tensor | None = None) -> Tensor:
        """The transform of a field (h, w, n, batch), as (frequencies, 2n, batch); written to `out` if given."""
        _, _, n, batch = field.shape
        shape = (self.frequencies, 2 * n, batch)
        if not self._by_product:
            parts = torch.view_as_real(torch.fft.rfft2(field, dim=(1, 0))).permute(0, 1, 4, 2, 3)
            return parts.reshape(shape) if out is None else _filled(out, parts)
        result = _run(_forward_stages(self, field.dtype, field.device), field, out).view(shape)
        return result if out is None else out

    def synthesise(self, spectrum: Tensor, out: Tensor | None = None) -> Tensor:
        """The field with this transform: `analyse` inverted; written to `out` if given."""
        batch, n = spectrum.shape[2], spectrum.shape[1] // 2
        if not self._by_product:
            parts = spectrum.view(self.rows, self.width, 2, n, batch)
            values = torch.complex(parts[:, :, 0], parts[:, :, 1])
            field = torch.fft.irfft2(values, s=(self.width, self.height), dim=(1, 0))
            return field if out is None else _filled(out, field)
        stages = _inverse_stages(self, spectrum.dtype, spectrum.device)
        return _run(stages, spectrum, out).view(self.height, self.width, n, batch)

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
        memory = scratch("torus", (len(q), 2 * n, 2 * k), q) if may_overwrite(q, z) else None
        products = torch.bmm(q, z.mT, out=memory)
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
        if not self._by_product:
            return verified.gamma(64 * math.ceil(math.log2(self.height * self.width)) + 64, dtype)
        (first, second), columns = self._factors
        spread = (first + 2) / math.sqrt(first) + sum(2 * math.sqrt(f) for f in (second, *columns) if f > 1)
        return 2 * verified.gamma(2 * max(first, *columns) + 16, dtype) * spread

    def _tap_phases(self, kernel: Tensor, stride: int, *, weighted: bool = False) -> Tensor:
        sizes = (kernel.shape[2], kernel.shape[3])
        return _tap_phases(self, sizes, stride, weighted, kernel.dtype, kernel.device)

    @property
    def _by_product(self) -> bool:
        return max(_factors(self.height)[0], _factors(self.width)[0]) <= _LARGEST_FACTOR

    @property
    def _factors(self) -> tuple[tuple[int, int], tuple[int, int]]:
        if not self._by_product:
            return (self.height, 1), (self.width, 1)
        return _factors(self.height), _factors(self.width)


def _factors(side: int) -> tuple[int, int]:
    """(N₁, N₂) with N₁N₂ = side and N₁ ≥ N₂ as close as they can be; (side, 1) for a small side."""
    second = 1 if side <= _LARGEST_SIDE else max(d for d in range(1, math.isqrt(side) + 1) if side % d == 0)
    return side // second, second


def _remainder_first(first: int, second: int) -> Tensor:
    """The frequencies below first · second, k₁ + first · k₂ at place (k₁, k₂)."""
    return (torch.arange(first)[:, None] + first * torch.arange(second)).flatten()


def _run(stages: list[Stage], data: Tensor, out: Tensor | None) -> Tensor:
    """`data` multiplied by one stage after the other, the last of which writes to `out` if given."""
    for i, (count, matrices) in enumerate(stages):
        data = data.reshape(count, matrices.shape[2], -1)
        shape = (count, matrices.shape[1], data.shape[2])
        memory = None
        if i + 1 == len(stages):
            memory = None if out is None else out.view(shape)
        elif may_overwrite(data):
            memory = scratch(f"stage {i % 2}", shape, data)
        if count == 1:
            data = torch.mm(matrices[0], data[0], out=None if memory is None else memory[0])
        else:
            data = torch.bmm(matrices.expand(count, -1, -1), data, out=memory)
    return data


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


def _angles(frequencies: Tensor, positions: Tensor, size: int) -> Tensor:
    """2π·frequency·position/size in float64, reduced exactly before it is multiplied by π; (frequencies, positions)."""
    return (frequencies[:, None] * positions % size).double() * (2 * math.pi / size)


def _complex_stage(angle: Tensor) -> Tensor:
    """(…, F, P) angles as real matrices (…, 2F, 2P) from (part, position) to (frequency, part)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cos, sin], -1), torch.cat([-sin, cos], -1)], dim=-2).flatten(-3, -2)


def _stages(torus: Torus) -> list[Stage]:
    """The matrices (count or 1, p, q) of the transform, each applied to what is then seen as (count, q, all else).

    A side N₁N₂ is transformed over n₁ of n = N₂n₁ + n₂, then over n₂ with what depends on both (Cooley & Tukey 1965):
    X(k₁ + N₁k₂) = Σ_{n₂} e^(−2πi n₂(k₁ + N₁k₂)/N) Σ_{n₁} e^(−2πi n₁k₁/N₁) x(N₂n₁ + n₂).
    """
    (h1, h2), (w1, w2) = torus._factors
    angle = _angles(torch.arange(h1 // 2 + 1), torch.arange(h1), h1)
    stages = [(1, torch.stack([angle.cos(), -angle.sin()], dim=1).flatten(0, 1)[None])]
    if h2 > 1:
        angle = _angles(torus.row_frequencies, torch.arange(h2), torus.height).view(-1, h2, h2)
        stages.append((len(angle), _complex_stage(angle)))
    stages.append((torus.rows, _complex_stage(_angles(torch.arange(w1), torch.arange(w1), w1))[None]))
    if w2 > 1:
        angle = _angles(torus.column_frequencies, torch.arange(w2), torus.width).view(-1, w2, w2)
        stages.append((torus.rows * w1, _complex_stage(angle).repeat(torus.rows, 1, 1)))
    return stages


@_constant
def _forward_stages(torus: Torus, dtype: torch.dtype, device: torch.device) -> list[Stage]:
    return [(count, matrices.to(device, dtype)) for count, matrices in _stages(torus)]


@_constant
def _inverse_stages(torus: Torus, dtype: torch.dtype, device: torch.device) -> list[Stage]:
    (_, first), *others = _stages(torus)
    weights = _row_weights(torus._factors[0][0]).repeat_interleave(2) / (torus.height * torus.width)
    backwards = [*others[::-1], (1, first * weights[:, None])]
    return [(count, matrices.mT.to(device, dtype).contiguous()) for count, matrices in backwards]


@_constant
def _weights(torus: Torus, dtype: torch.dtype, device: torch.device) -> Tensor:
    first, second = torus._factors[0]
    weights = _row_weights(first).repeat_interleave(second * torus.width) / (torus.height * torus.width)
    return weights.to(device, dtype)


def _row_weights(first: int) -> Tensor:
    """How many frequencies of a real signal those with remainder 0, …, ⌊first/2⌋ stand for: themselves and mirrors."""
    weights = torch.full((first // 2 + 1,), 2.0, dtype=torch.float64)
    weights[0] = 1
    if first % 2 == 0:
        weights[-1] = 1
    return weights


@_constant
def _tap_phases(
    torus: Torus, sizes: tuple[int, int], stride: int, weighted: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(frequencies · part · phases out · phases in, taps): what each tap gives to a symbol, times the weight or not."""
    rows = _axis_phases(torus.height, torus.row_frequencies, torus.phases, sizes[0], stride)
    columns = _axis_phases(torus.width, torus.column_frequencies, torus.phases, sizes[1], stride)
    both = torch.einsum("fabt,gcdu->fgacbdtu", rows, columns)
    parts = torch.view_as_real(both).reshape(torus.frequencies, -1, sizes[0] * sizes[1], 2).permute(0, 3, 1, 2)
    if weighted:
        parts = parts * _weights(torus, torch.float64, torch.device("cpu"))[:, None, None, None]
    return parts.reshape(-1, sizes[0] * sizes[1]).to(device, dtype)


def _axis_phases(size: int, frequencies: Tensor, phases: int, taps: int, stride: int) -> Tensor:
    """(frequencies, phases out, phases in, taps): e^(iΩΔ) where tap d leads from fine position a to phase b of the
    coarse position Δ away, a + d = b + phases·Δ; 0 where it leads to another phase."""
    result = torch.zeros(len(frequencies), phases // stride, phases, taps, dtype=torch.complex128)
    for a in range(phases // stride):
        for tap in range(taps):
            offset = a + tap - taps // 2
            angle = _angles(frequencies, torch.tensor([offset // phases]), size)[:, 0]
            result[:, a, offset % phases, tap] = torch.polar(torch.ones_like(angle), angle)
    return result
