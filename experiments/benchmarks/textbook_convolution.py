"""Convolutional equilibrium layers as their paper describes them: Winston & Kolter 2020, arXiv 2006.08591, appendix D.

z = σ(Wz + Ux + b) on tiers of halving resolution, W_ii = (1 − m)I − F_iᵀF_i − D_iᵀD_i + G_iᵀ − G_i and
W_{i+1,i} = −2F_{i+1}ᵀD_i, by Peaceman–Rachford splitting with α = 1. One tier is the single convolution. Nothing is
shared with `splitting` or `mondeq`, and nothing is made slower than the description needs: plain torch throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Tiers = tuple[Tensor, ...]

# From this order on, a stack of matrices is inverted one by one: batched LU with several threads is silently wrong
# in some builds of torch.
_SINGLY = 150


class TextbookConvolution(nn.Module):
    """x (batch, in_channels, n, n) ↦ the tiers of z, each (batch, channels, s, s) with s = n/2ⁱ + 2.

    Images are zero-padded by one pixel and the tori wrap around. F_i, G_i: 3×3 circular correlations on tier i;
    D_i: one with stride 2 from tier i to the next, filled up by a zero row and column. Each is its free kernel divided
    by its Frobenius norm, times √g, h, √gn (all 1 at first). U feeds the first tier only. σ is ReLU, and zero on the
    border.

    Every forward pass inverts the blocks of all frequencies, iterates until the relative change ‖z⁺ − z‖/‖z⁺‖ of the
    whole batch, summed over the tiers, is ≤ tol, reading both norms at every step, and applies W once more where the
    graph is recorded. The backward pass solves the adjoint equation the same way.
    forward_steps, backward_steps: how many steps the last passes took.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        image_size: int,
        m: float = 1.0,
        *,
        alpha: float = 1.0,
        tol: float = 1e-2,
        max_steps: int = 500,
    ) -> None:
        super().__init__()
        self.sides = [image_size // 2**i + 2 for i in range(len(channels))]
        self.channels = list(channels)
        self.U = nn.Conv2d(in_channels, channels[0], 3)
        self.F = nn.ParameterList([_random_kernel(c, c) for c in channels])
        self.G = nn.ParameterList([_random_kernel(c, c) for c in channels])
        self.D = nn.ParameterList([_random_kernel(b, a) for a, b in pairwise(channels)])
        self.g, self.h, self.gn = (nn.Parameter(torch.ones(len(each))) for each in (self.F, self.G, self.D))
        self.m, self.alpha, self.tol, self.max_steps = m, alpha, tol, max_steps
        self.forward_steps = self.backward_steps = 0

    def forward(self, x: Tensor) -> Tiers:
        source = self._source(x)
        with torch.no_grad():
            inverse = self._inverse()
            z = self._solve(source, inverse)
        z = _activate([c + w for c, w in zip(source, self._kernels().multiply(z), strict=True)])
        result: Tiers = _Adjoint.apply(self, inverse, *z)  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def residual(self, x: Tensor, z: Tiers) -> float:
        """‖z − σ(Wz + Ux + b)‖/‖z‖, over the tiers and the whole batch."""
        image = _activate([c + w for c, w in zip(self._source(x), self._kernels().multiply(z), strict=True)])
        missing = torch.stack([(a - b).norm() for a, b in zip(z, image, strict=True)]).norm()
        return float(missing / torch.stack([tier.norm() for tier in z]).norm())

    def _source(self, x: Tensor) -> Tiers:
        """Ux + b"""
        first = functional.conv2d(_wrapped(functional.pad(x, (1, 1, 1, 1))), self.U.weight, self.U.bias)
        rest = zip(self.channels[1:], self.sides[1:], strict=True)
        return (first, *(first.new_zeros(len(x), channels, side, side) for channels, side in rest))

    def _kernels(self) -> _Kernels:
        return _Kernels(
            [g.sqrt() * k / k.norm() for g, k in zip(self.g, self.F, strict=True)],
            [h * k / k.norm() for h, k in zip(self.h, self.G, strict=True)],
            [g.sqrt() * k / k.norm() for g, k in zip(self.gn, self.D, strict=True)],
            self.m,
        )

    def _inverse(self) -> _Inverse:
        """(I + α(I − W))⁻¹"""
        kernels = self._kernels()
        return _Inverse(kernels, [kernels.invert(i, side, self.alpha) for i, side in enumerate(self.sides)], self.alpha)

    def _solve(self, source: Tiers, inverse: _Inverse) -> Tiers:
        z = u = tuple(map(torch.zeros_like, source))
        change, self.forward_steps = float("inf"), 0
        while change > self.tol and self.forward_steps < self.max_steps:
            reflected = [2 * a - b for a, b in zip(z, u, strict=True)]
            half = inverse([torch.add(r, c, alpha=self.alpha) for r, c in zip(reflected, source, strict=True)])
            u = tuple(2 * w - r for w, r in zip(half, reflected, strict=True))
            previous, z = z, _activate(u)
            change, self.forward_steps = _relative_change(z, previous), self.forward_steps + 1
        return z

    def solve_adjoint(self, g: Tiers, derivative: Tiers, inverse: _Inverse) -> Tiers:
        """g + Wᵀq with q = D(Wᵀq + g), D = σ′ of zeros and ones: the gradient that z must receive instead of g."""
        q = u = tuple(map(torch.zeros_like, g))
        change, self.backward_steps = float("inf"), 0
        while change > self.tol and self.backward_steps < self.max_steps:
            reflected = [2 * a - b for a, b in zip(q, u, strict=True)]
            half = inverse.transposed(reflected)
            u = tuple(2 * w - r for w, r in zip(half, reflected, strict=True))
            previous, q = (
                q,
                tuple(d * torch.add(v, e, alpha=self.alpha) for d, v, e in zip(derivative, u, g, strict=True)),
            )
            change, self.backward_steps = _relative_change(q, previous), self.backward_steps + 1
        return tuple(e + w for e, w in zip(g, inverse.kernels.multiply_transposed(q), strict=True))


class _Adjoint(torch.autograd.Function):
    """The identity on z, whose backward pass is the implicit one."""

    @staticmethod
    def forward(ctx: Any, layer: TextbookConvolution, inverse: _Inverse, *z: Tensor) -> Tiers:
        ctx.layer, ctx.inverse, ctx.derivative = layer, inverse, tuple((tier > 0).to(tier.dtype) for tier in z)
        return tuple(tier.view_as(tier) for tier in z)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.layer.solve_adjoint(g, ctx.derivative, ctx.inverse)


@dataclass(frozen=True)
class _Kernels:
    """The kernels as they are used, and the products with W that they make, in space."""

    F: list[Tensor]
    G: list[Tensor]
    D: list[Tensor]
    m: float

    def multiply(self, z: Sequence[Tensor]) -> Tiers:
        """W z"""
        result = [self._diagonal(i, tier, sign=1) for i, tier in enumerate(z)]
        for i in range(len(self.D)):
            result[i + 1] = result[i + 1] - 2 * self.down(i, z[i])
        return tuple(result)

    def multiply_transposed(self, q: Sequence[Tensor]) -> Tiers:
        """Wᵀ q"""
        result = [self._diagonal(i, tier, sign=-1) for i, tier in enumerate(q)]
        for i in range(len(self.D)):
            result[i] = result[i] - 2 * self.up(i, q[i + 1])
        return tuple(result)

    def _diagonal(self, i: int, z: Tensor, sign: int) -> Tensor:
        """(1 − m)z − FᵀFz − DᵀDz ± (Gᵀz − Gz)"""
        F, G, wrapped = self.F[i], self.G[i], _wrapped(z)
        result = (1 - self.m) * z - _correlate_transposed(functional.conv2d(wrapped, F), F)
        skew = functional.conv_transpose2d(wrapped, G, padding=2) - functional.conv2d(wrapped, G)
        result = torch.add(result, skew, alpha=sign)
        if i < len(self.D):
            result = result - _stride_transposed(functional.conv2d(wrapped, self.D[i], stride=2), self.D[i])
        return result

    def down(self, i: int, z: Tensor) -> Tensor:
        """F_{i+1}ᵀ D_i z"""
        return _correlate_transposed(functional.pad(_stride(z, self.D[i]), (0, 1, 0, 1)), self.F[i + 1])

    def up(self, i: int, q: Tensor) -> Tensor:
        """D_iᵀ F_{i+1} q"""
        return _stride_transposed(_correlate(q, self.F[i + 1])[..., :-1, :-1], self.D[i])

    def invert(self, i: int, side: int, alpha: float) -> _BlockInverse | _GroupedInverse:
        """((1 + αm)I + α(FᵀF + DᵀD + G − Gᵀ))⁻¹ on tier i."""
        grouped = i < len(self.D)
        F, G = _blocks(self.F[i], side, grouped), _blocks(self.G[i], side, grouped)
        identity = torch.eye(F.shape[2], dtype=F.dtype, device=F.device)
        inverse = _inv((1 + alpha * self.m) * identity + alpha * (F.mT @ F + G - G.mT))
        return _woodbury(inverse, _blocks(self.D[i], side, grouped), alpha) if grouped else _BlockInverse(inverse)


@dataclass(frozen=True)
class _BlockInverse:
    """A matrix per frequency."""

    blocks: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        return _image(torch.bmm(_spectrum(v), self.blocks.mT), v.shape)

    @property
    def transposed(self) -> _BlockInverse:
        return _BlockInverse(self.blocks.mT)


@dataclass(frozen=True)
class _GroupedInverse:
    """E − LP: E with a matrix per frequency, L and P with one from and to what four aliased frequencies share."""

    E: Tensor
    L: Tensor
    P: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        spectrum = _spectrum(v, grouped=True)
        correction = torch.bmm(torch.bmm(_wide(spectrum), self.P.mT), self.L.mT)
        result = torch.bmm(spectrum, self.E.mT).unflatten(0, (-1, 4))
        result -= correction.unflatten(2, (4, -1)).transpose(1, 2)
        return _image(result.flatten(0, 1), v.shape, grouped=True)

    @property
    def transposed(self) -> _GroupedInverse:
        return _GroupedInverse(self.E.mT, self.P.mT, self.L.mT)


def _woodbury(E: Tensor, D: Tensor, alpha: float) -> _GroupedInverse:
    """(E⁻¹ + αRᵀR)⁻¹ = E − αERᵀ(I + αRERᵀ)⁻¹RE, with R = D/2 of the four aliased frequencies side by side."""
    P, R = _wide(D @ E / 2), _wide(D / 2)
    right = (E @ D.mT / 2).reshape(len(P), P.shape[2], -1)
    identity = torch.eye(P.shape[1], dtype=E.dtype, device=E.device)
    return _GroupedInverse(E, alpha * right @ _inv(identity + alpha * P @ R.mT), P)


def _wide(matrices: Tensor) -> Tensor:
    """(4k, rows, columns) as (k, rows, 4 columns): what belongs to aliased frequencies, side by side."""
    return matrices.unflatten(0, (-1, 4)).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class _Inverse:
    """(I + α(I − W))⁻¹ by substitution from tier to tier."""

    kernels: _Kernels
    diagonal: list[_BlockInverse | _GroupedInverse]
    alpha: float

    def __call__(self, v: Sequence[Tensor]) -> Tiers:
        result = [self.diagonal[0](v[0])]
        for i in range(1, len(v)):
            result.append(self.diagonal[i](torch.sub(v[i], self.kernels.down(i - 1, result[-1]), alpha=2 * self.alpha)))
        return tuple(result)

    def transposed(self, v: Sequence[Tensor]) -> Tiers:
        result = [self.diagonal[-1].transposed(v[-1])]
        for i in reversed(range(len(v) - 1)):
            result.append(
                self.diagonal[i].transposed(torch.sub(v[i], self.kernels.up(i, result[-1]), alpha=2 * self.alpha))
            )
        return tuple(reversed(result))


def _random_kernel(out: int, inner: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(out, inner, 3, 3).uniform_(-1, 1) / (3 * inner**0.5))


def _wrapped(x: Tensor) -> Tensor:
    return functional.pad(x, (1, 1, 1, 1), mode="circular")


def _correlate(x: Tensor, kernel: Tensor) -> Tensor:
    return functional.conv2d(_wrapped(x), kernel)


def _correlate_transposed(x: Tensor, kernel: Tensor) -> Tensor:
    return functional.conv_transpose2d(_wrapped(x), kernel, padding=2)


def _stride(x: Tensor, kernel: Tensor) -> Tensor:
    return functional.conv2d(_wrapped(x), kernel, stride=2)


def _stride_transposed(x: Tensor, kernel: Tensor) -> Tensor:
    """What reaches beyond the near sides belongs to the far ones."""
    wide = functional.conv_transpose2d(x, kernel, stride=2)
    wide = torch.cat([wide[..., 1:-1, :], wide[..., -1:, :] + wide[..., :1, :]], dim=2)
    return torch.cat([wide[..., 1:-1], wide[..., -1:] + wide[..., :1]], dim=3)


def _activate(tiers: Sequence[Tensor]) -> Tiers:
    """ReLU inside, 0 on the border."""
    inside = [functional.pad(t.new_ones(t.shape[2] - 2, t.shape[3] - 2), (1, 1, 1, 1)) for t in tiers]
    return tuple((tier * mask).relu_() for tier, mask in zip(tiers, inside, strict=True))


def _spectrum(x: Tensor, grouped: bool = False) -> Tensor:
    """(frequencies, batch, 2 channels): all frequencies, real parts before imaginary parts."""
    parts = torch.view_as_real(torch.fft.fft2(x)).permute(2, 3, 0, 4, 1)
    return (_group(parts) if grouped else parts).reshape(-1, len(x), 2 * x.shape[1])


def _image(spectrum: Tensor, shape: torch.Size, grouped: bool = False) -> Tensor:
    """`_spectrum` inverted."""
    batch, channels, height, width = shape
    if grouped:
        parts = spectrum.view(height // 2, width // 2, 2, 2, batch, 2, channels)
        parts = parts.permute(4, 6, 2, 0, 3, 1, 5).reshape(batch, channels, height, width, 2)
    else:
        parts = spectrum.view(height, width, batch, 2, channels).permute(2, 4, 0, 1, 3).contiguous()
    return torch.fft.ifft2(torch.view_as_complex(parts)).real


def _blocks(kernel: Tensor, side: int, grouped: bool) -> Tensor:
    """(frequencies, 2 out, 2 in): the real form [[Re, −Im], [Im, Re]] of what a correlation multiplies with."""
    placed = functional.pad(kernel.flip(2, 3), (0, side - 3, 0, side - 3)).roll((-1, -1), (2, 3))
    symbol = torch.fft.fft2(placed).permute(2, 3, 0, 1)
    symbol = (_group(symbol) if grouped else symbol).reshape(-1, *kernel.shape[:2])
    upper, lower = torch.cat([symbol.real, -symbol.imag], 2), torch.cat([symbol.imag, symbol.real], 2)
    return torch.cat([upper, lower], 1)


def _group(values: Tensor) -> Tensor:
    """(height, width, …) in an order in which the four frequencies that stride 2 cannot tell apart are neighbours."""
    height, width = values.shape[:2]
    split = values.unflatten(0, (2, height // 2)).unflatten(2, (2, width // 2))
    return split.movedim((1, 3), (0, 1))


def _inv(matrices: Tensor) -> Tensor:
    if matrices.shape[-1] < _SINGLY:
        return torch.linalg.inv(matrices)
    return torch.stack([torch.linalg.inv(matrix) for matrix in matrices])


def _relative_change(new: Tiers, old: Tiers) -> float:
    """Σ ‖new − old‖/‖new‖ over the tiers, each over the whole batch, on the host."""
    return sum((n - o).norm().item() / (1e-6 + n.norm().item()) for n, o in zip(new, old, strict=True))
