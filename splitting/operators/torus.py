"""Shift-invariant maps on an h×w torus, in the frequency domain: X(ω) = Σ_y x(y) e^(−iω·y), one matrix per frequency.

A field (h, w, n, batch) is transformed to (frequencies, 2n, batch): real parts above imaginary parts, on the half of
the frequencies that determines a real signal. A convolution multiplies with its symbol there.

With `phases` = 2 each channel of a field holds one of the 2×2 interleaved sub-images of a torus of twice the size, so
that subsampling by 2, which couples frequencies there, becomes shift-invariant here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splitting import verified
from splitting.context import constant
from splitting.scratch import product

# Up to this side a transform is one matrix product, beyond it two with factors of the side. The result is ready for the
# channel products, which beats the fast transform with the permutations it needs: with that, a training step takes 1.4
# times as long on tori of side 66 and 96. The fast transform is for sides with a factor larger than the second number.
_LARGEST_SIDE, _LARGEST_FACTOR = 64, 256

Exchange = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Stage:
    """One matrix product of a transform.

    Data are seen as (*axes, rest), their axes put in `order`, the first of them merged to `count`, the others
    contracted with `matrices`.

    Args:
        axes: The lengths of the axes.
        order: Their order.
        count: The product of the lengths of those that are merged.
        matrices: (count or 1, p, q).
    """

    axes: tuple[int, ...]
    order: tuple[int, ...]
    count: int
    matrices: Tensor

    def arranged(self, data: Tensor) -> Tensor:
        """Data as the matrices take them: a view wherever the strides allow it.

        Args:
            data: (*axes, rest), in any shape of that order.

        Returns:
            (count, q, rest).
        """
        axes = data.reshape(*self.axes, -1).permute(*self.order, len(self.axes))
        return axes.reshape(self.count, self.matrices.shape[2], -1)


@dataclass(frozen=True)
class Torus:
    """An h×w torus whose fields have phases² sub-images per image channel.

    Of the second axis the frequencies are kept whose remainder modulo its first factor N₁ is at most N₁/2, of the first
    all, in the order in which the matrix products of a transform leave them: by `column_frequencies`, then by
    `row_frequencies`.

    Args:
        height: Rows of a field.
        width: Columns of a field.
        phases: How many times as long the sides of an image are: 1 or 2.
    """

    height: int
    width: int
    phases: int = 1

    @property
    def columns(self) -> int:
        """How many frequencies are kept of the second axis; the first keeps all."""
        first, second = self._factors[1]
        return (first // 2 + 1) * second

    @property
    def frequencies(self) -> int:
        """How many frequencies are kept."""
        return self.columns * self.height

    @property
    def row_frequencies(self) -> Tensor:
        """The frequencies of the first axis in their order, (height,)."""
        return _remainder_first(*self._factors[0])

    @property
    def column_frequencies(self) -> Tensor:
        """The frequencies of the second axis that are kept, in their order, (columns,)."""
        return _remainder_first(*self._factors[1])[: self.columns]

    def analyse(self, field: Tensor) -> Tensor:
        """The transform of a field.

        Args:
            field: (height, width, n, batch).

        Returns:
            (frequencies, 2n, batch).
        """
        _, _, n, batch = field.shape
        if not self._by_product:
            parts = torch.view_as_real(torch.fft.rfft2(field, dim=(0, 1))).permute(1, 0, 4, 2, 3)
            return parts.reshape(self.frequencies, 2 * n, batch)
        stages = _forward_stages(self, field.dtype, field.device)
        return _run(stages, field).view(self.frequencies, 2 * n, batch)

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """The field with a transform: `analyse` inverted.

        Args:
            spectrum: (frequencies, 2n, batch).

        Returns:
            (height, width, n, batch).
        """
        batch, n = spectrum.shape[2], spectrum.shape[1] // 2
        if not self._by_product:
            parts = spectrum.view(self.columns, self.height, 2, n, batch)
            values = torch.complex(parts[:, :, 0], parts[:, :, 1]).transpose(0, 1)
            return torch.fft.irfft2(values, s=(self.height, self.width), dim=(0, 1))
        stages = _inverse_stages(self, spectrum.dtype, spectrum.device)
        return _run(stages, spectrum).view(self.height, self.width, n, batch)

    def symbol(self, kernel: Tensor, *, stride: int = 1) -> Tensor:
        """The symbol of the correlation with a kernel. Taps beyond the torus wrap around.

        Args:
            kernel: (out, in, k, k) of odd sides, centred.
            stride: 1, or `phases` to subsample the result.

        Returns:
            (frequencies, 2 n_out, n_in) with n_in = phases² in, and n_out = phases² out or, subsampled, out.
        """
        out, inner = kernel.shape[:2]
        phases, taps = self._tap_phases(kernel.shape[2:], kernel, stride), kernel.reshape(out * inner, -1).mT
        values = product(phases[None], taps[None])
        values = values.view(self.frequencies, -1, self.phases**2, out, inner).transpose(2, 3)
        return values.reshape(self.frequencies, -1, self.phases**2 * inner)

    def kernel_gradient(self, symbol_gradient: Tensor, shape: Sequence[int], *, stride: int = 1) -> Tensor:
        """∂/∂kernel of Σ_ω weight(ω) Re ⟨H(ω), symbol(ω)⟩.

        Args:
            symbol_gradient: H, in the form of a symbol.
            shape: Of the kernel.
            stride: As in `symbol`.

        Returns:
            The gradient, shaped like the kernel.
        """
        out, inner, *sides = shape
        values = symbol_gradient.view(self.frequencies, -1, out, self.phases**2, inner).transpose(2, 3)
        phases = self._tap_phases(sides, symbol_gradient, stride, weighted=True)
        return (phases.mT @ values.reshape(-1, out * inner)).mT.reshape(shape)

    def correlate(self, q: Tensor, z: Tensor) -> Tensor:
        """q̂ ẑᴴ summed over the batch: ⟨q, S z⟩ = Σ_ω weight(ω) Re ⟨correlate(ω), S(ω)⟩ for symbols S.

        Args:
            q: A transform (frequencies, 2n, batch).
            z: A transform (frequencies, 2k, batch).

        Returns:
            A symbol (frequencies, 2n, k).
        """
        n, k = q.shape[1] // 2, z.shape[1] // 2
        products = product(q, z.mT).view(-1, 2, n, 2, k)
        real, imaginary = products[:, 0, :, 0] + products[:, 1, :, 1], products[:, 1, :, 0] - products[:, 0, :, 1]
        return torch.cat([real, imaginary], 1)

    def weights(self, like: Tensor) -> Tensor:
        """How much each kept frequency counts in a sum over all: 1/(hw), twice that where its mirror is not kept.

        Args:
            like: Gives dtype and device.

        Returns:
            (frequencies,).
        """
        return _weights(self, like.dtype, like.device)

    def rounding(self, dtype: torch.dtype) -> float:
        """Upper bound on ‖fl(Tx) − Tx‖/(‖T‖‖x‖) for the transform T of this torus and for its inverse.

        For the matrix products it is proved, with Frobenius norms for those of the moduli. For the fast transform it is
        Higham's bound (2002, theorem 24.2) with room for radices other than 2, which is taken to hold for the library.

        Args:
            dtype: Of the transform.

        Returns:
            The bound, relative.
        """
        if not self._by_product:
            return verified.rounding_factor(64 * math.ceil(math.log2(self.height * self.width)) + 64, dtype)
        rows, (first, second) = self._factors
        spread = (first + 2) / math.sqrt(first) + sum(2 * math.sqrt(f) for f in (second, *rows) if f > 1)
        return 2 * verified.rounding_factor(2 * max(first, *rows) + 16, dtype) * spread

    def _tap_phases(self, sides: Sequence[int], like: Tensor, stride: int, *, weighted: bool = False) -> Tensor:
        return _tap_phases(self, tuple(sides), stride, weighted, like.dtype, like.device)

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


def _run(stages: list[Stage], data: Tensor) -> Tensor:
    """`data` through one stage after the other."""
    for stage in stages:
        data = product(stage.matrices.expand(stage.count, -1, -1), stage.arranged(data))
    return data


def _angles(frequencies: Tensor, positions: Tensor, size: int) -> Tensor:
    """2π·frequency·position/size in float64, reduced exactly before it is multiplied by π; (frequencies, positions)."""
    return (frequencies[:, None] * positions % size).double() * (2 * math.pi / size)


def _real_form(angle: Tensor) -> Tensor:
    """Multiplication by e^(−i·angle), (…, p, q), as real numbers (…, p, part, q, part)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], dim=-3)


def _factor_matrices(torus: Torus) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """What transforms the factors of the width and then those of the height: (frequency, part, position) for the first,
    (frequency, part, position, part) for the others, one of those per frequency of the first factor for a second one.

    A side N₁N₂ is transformed over n₁ of n = N₂n₁ + n₂, then over n₂ with what depends on both (Cooley & Tukey 1965):
    X(k₁ + N₁k₂) = Σ_{n₂} e^(−2πi n₂(k₁ + N₁k₂)/N) Σ_{n₁} e^(−2πi n₁k₁/N₁) x(N₂n₁ + n₂).
    """

    def second(frequencies: Tensor, factor: int, side: int) -> Tensor | None:
        if factor == 1:
            return None
        return _real_form(_angles(frequencies, torch.arange(factor), side).view(-1, factor, factor))

    (h1, h2), (w1, w2) = torus._factors
    width = _real_form(_angles(torch.arange(w1 // 2 + 1), torch.arange(w1), w1))[..., 0]
    height = _real_form(_angles(torch.arange(h1), torch.arange(h1), h1))
    columns, rows = torus.column_frequencies, torus.row_frequencies
    return width, second(columns, w2, torus.width), height, second(rows, h2, torus.height)


@constant
def _forward_stages(torus: Torus, dtype: torch.dtype, device: torch.device) -> list[Stage]:
    (h1, h2), (w1, w2) = torus._factors
    h, w, k1, columns = torus.height, torus.width, w1 // 2 + 1, torus.columns
    first, second, third, fourth = _factor_matrices(torus)
    # The order of what a product contracts is such that the next one needs no copy where a side is not factored.
    if second is None:
        stages = [Stage((h, w), (0, 1), h, first.transpose(0, 1).reshape(1, -1, w1))]
        exchange: Exchange = (h1, h2, 2, columns), (3, 0, 2, 1)
    else:
        matrices = second.transpose(1, 2).transpose(3, 4).reshape(k1, 2 * w2, 2 * w2)
        stages = [
            Stage((h, w1), (0, 1), h, first.reshape(1, -1, w1)),
            Stage((h * k1, 2 * w2), (0, 1), h * k1, matrices.repeat(h, 1, 1)),
        ]
        exchange = (h1, h2, k1, 2, w2), (2, 4, 0, 3, 1)
    stages.append(Stage(*exchange, columns, third.reshape(1, 2 * h1, 2 * h1)))
    if fourth is not None:
        matrices = fourth.transpose(3, 4).reshape(h1, 2 * h2, 2 * h2)
        stages.append(Stage((columns * h1, 2 * h2), (0, 1), columns * h1, matrices.repeat(columns, 1, 1)))
    return [replace(stage, matrices=stage.matrices.to(device, dtype)) for stage in stages]


@constant
def _inverse_stages(torus: Torus, dtype: torch.dtype, device: torch.device) -> list[Stage]:
    (h1, h2), (w1, w2) = torus._factors
    h, k1, columns = torus.height, w1 // 2 + 1, torus.columns
    first, second, third, fourth = _factor_matrices(torus)
    first = first * (_half_weights(w1) / (torus.height * torus.width))[:, None, None]
    stages = []
    if fourth is not None:
        matrices = fourth.permute(0, 4, 3, 1, 2).reshape(h1, 2 * h2, 2 * h2)
        stages.append(Stage((columns * h1, 2 * h2), (0, 1), columns * h1, matrices.repeat(columns, 1, 1)))
    stages.append(Stage((columns, 2 * h1), (0, 1), columns, third.permute(3, 2, 0, 1).reshape(1, 2 * h1, 2 * h1)))
    exchange: Exchange = (k1, w2, 2, h1, h2), (3, 4, 0, 1, 2)
    if second is not None:
        matrices = second.permute(0, 4, 3, 1, 2).reshape(k1, 2 * w2, 2 * w2)
        stages.append(Stage(*exchange, h * k1, matrices.repeat(h, 1, 1)))
        exchange = (h, 2 * k1), (0, 1)
    stages.append(Stage(*exchange, h, first.permute(2, 0, 1).reshape(1, w1, 2 * k1)))
    return [replace(stage, matrices=stage.matrices.to(device, dtype)) for stage in stages]


@constant
def _weights(torus: Torus, dtype: torch.dtype, device: torch.device) -> Tensor:
    first, second = torus._factors[1]
    weights = _half_weights(first).repeat_interleave(second * torus.height) / (torus.height * torus.width)
    return weights.to(device, dtype)


def _half_weights(first: int) -> Tensor:
    """How many frequencies of a real signal those with remainder 0, …, ⌊first/2⌋ stand for: themselves and mirrors."""
    weights = torch.full((first // 2 + 1,), 2.0, dtype=torch.float64)
    weights[0] = 1
    if first % 2 == 0:
        weights[-1] = 1
    return weights


@constant
def _tap_phases(
    torus: Torus, sizes: tuple[int, ...], stride: int, weighted: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(frequencies · part · phases out · phases in, taps): what each tap gives to a symbol, times the weight or not."""
    rows = _axis_phases(torus.height, torus.row_frequencies, torus.phases, sizes[0], stride)
    columns = _axis_phases(torus.width, torus.column_frequencies, torus.phases, sizes[1], stride)
    both = torch.einsum("fabt,gcdu->gfacbdtu", rows, columns)
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
