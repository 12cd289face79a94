"""A = mI + FᵀF + G − Gᵀ with circular correlations on one torus or on several tiers of decreasing resolution.

F is block lower-bidiagonal: F_i acts on tier i, D_i leads from tier i to tier i + 1 with stride 2; G is chosen so that
the upper half of A cancels. That leaves A_ii = mI + F_iᵀF_i + D_iᵀD_i + G_i − G_iᵀ and A_{i+1,i} = 2 F_{i+1}ᵀ D_i, all
else 0, whose symmetric part is that of mI + FᵀF (Winston & Kolter 2020, arXiv 2006.08591, appendix D).
Every A_ii is inverted frequency by frequency, the tiers one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from splitting import norms, verified
from splitting.context import full_precision, is_recorded
from splitting.errors import InvalidType
from splitting.operators.base import AdjointView, Operator, Resolvent
from splitting.operators.kernels import (
    autocorrelation_gradient,
    block_kernel,
    block_sides,
    centre,
    check_kernels,
    resized,
    scalar,
    transposed,
)
from splitting.operators.layout import ImageLayout, Layout
from splitting.operators.symbols import (
    CHUNK,
    cayley,
    cayley_norm,
    frobenius,
    inverted,
    spectral_norm,
    stacked,
    times_hermitian,
    two_norm_bound,
    unstacked,
)
from splitting.operators.torus import Torus, symbol_rounding
from splitting.scratch import may_overwrite, scratch

Spectra = list[Tensor]


@dataclass(frozen=True)
class _Symbols:
    """The kernels of mI + FᵀF + G − Gᵀ; in the frequency domain, the symbols of A_ii, the stacked D_i and F_{i+1}.

    F is on the whole torus of its tier: as four images it would be a matrix four times as large.
    """

    kernels: list[Tensor]
    A: Spectra
    D: Spectra
    F: Spectra

    @property
    def couplings(self) -> list[tuple[Tensor, Tensor]]:
        """D_i and F_{i+1}, of which 2F_{i+1}ᵀD_i is made."""
        return list(zip(self.D, self.F, strict=True))

    def links(self, *, up: bool = False) -> list[_Link]:
        """F_{i+1}ᵀD_i of A, or D_iᵀF_{i+1} of its adjoint."""
        return [_Link(D, F, i, up) for i, (D, F) in enumerate(self.couplings)]

    @cached_property
    def stacked_A(self) -> Spectra:
        # They are kept with the symbols: made under inference mode they could not be saved for a backward pass.
        with torch.inference_mode(False):
            return [stacked(s) for s in self.A]


class MultiscaleOperator(Operator):
    """A on states (batch, N) that hold tiers of (channels, height, width) each, one after the other.

    F, G: one kernel (channels, channels, k, k) per tier, D: one (channels below, channels, k, k) between neighbours;
    k odd. m > 0: strong monotonicity, a number or a scalar tensor. sizes: (height, width) of every tier's torus; a tier
    with a successor has even sides, and its successor at least half of them (zeros fill the rest). `tiers` gives a
    state's images. Within a tier a state runs over rows, columns, channels; of a tier with a successor first over the
    pixels of equal parity. Raises InvalidArgument, InvalidType.
    """

    def __init__(
        self,
        F: Sequence[Tensor],
        G: Sequence[Tensor],
        D: Sequence[Tensor],
        m: float | Tensor,
        sizes: Sequence[tuple[int, int]],
    ) -> None:
        check_kernels(F, G, D, sizes)
        m = scalar(m, F[0])
        channels = tuple(kernel.shape[1] for kernel in F)
        self._layout = Layout(tuple((int(h), int(w)) for h, w in sizes), channels)
        super().__init__((m, *F, *G, *D), (sum(self._layout.entries),))

    def tiers(self, z: Tensor) -> list[Tensor]:
        """The tiers of states z as images (batch, channels, height, width)."""
        return self._layout.images(z)

    def state(self, tiers: Sequence[Tensor]) -> Tensor:
        """The states with these tiers, each (batch, channels, height, width): `tiers` inverted."""
        return self._layout.state(tiers)

    def apply(self, z: Tensor) -> Tensor:
        symbols = self._symbols()
        return self._multiply(symbols.stacked_A, symbols.links(), z)

    def _apply_adjoint(self, z: Tensor) -> Tensor:
        symbols = self._symbols()
        return self._multiply([s.mT for s in symbols.stacked_A], symbols.links(up=True), z)

    def _multiply(self, diagonal: Spectra, links: list[_Link], z: Tensor) -> Tensor:
        with full_precision(z.device):
            return self._multiply_exactly(diagonal, links, z)

    def _multiply_exactly(self, diagonal: Spectra, links: list[_Link], z: Tensor) -> Tensor:
        spectra = self._analyse(z)
        pairs = zip(diagonal, spectra, strict=True)
        images = [_product(f"image {i}", symbol, x) for i, (symbol, x) in enumerate(pairs)]
        for link in links:
            images[link.target] = images[link.target] + link(self._layout, 2 * spectra[link.origin])
        toruses = self._layout.toruses
        fields = [t.synthesise(x) for t, x in zip(toruses, images, strict=True)]
        return self._layout.unflat(torch.cat([f.flatten(0, 2) for f in fields]))

    @property
    def adjoint(self) -> Operator:
        return _Adjoint(self)

    def resolvent(self, alpha: float) -> Resolvent:
        return self._cached(("resolvent", alpha), lambda: self._invert(alpha))

    def _invert(self, alpha: float) -> _Substitution:
        symbols = self._symbols()
        return _Substitution(self._layout, [cayley(inverted(s, alpha)) for s in symbols.A], symbols, alpha)

    @property
    def strong_monotonicity(self) -> float:
        """m exactly: A is defined by its kernels, not by a rounded matrix."""
        return float(self.tensors[0].detach())

    @property
    def lipschitz(self) -> float:
        # The same numbers in float64 have the same L: it is proved once for both.
        exact = self.double()
        return exact._cached("lipschitz", exact._prove_lipschitz)

    def _prove_lipschitz(self) -> float:
        """Σ over diagonals of the largest block norm: ‖A_ii‖ are those of their symbols, the rest products of two."""
        symbols = self._symbols()
        diagonal = max(map(spectral_norm, symbols.stacked_A, self._symbol_errors(torch.float64)))
        if not symbols.D:
            return diagonal
        relative = self._symbol_rounding(torch.float64)
        sizes = self._kernel_sizes()
        F = [spectral_norm(s, relative * f) for s, (f, _, _) in zip(symbols.F, sizes[1:], strict=True)]
        D = [spectral_norm(s, relative * d) for s, (_, _, d) in zip(symbols.D, sizes, strict=False)]
        return verified.round_up(diagonal + max(2 * f * d for f, d in zip(F, D, strict=True)))

    @property
    def frobenius(self) -> float:
        def compute() -> float:
            symbols = self._symbols()
            squares = sum(_squared_size(t, s) for t, s in zip(self._layout.toruses, symbols.A, strict=True))
            for i, (D, F) in enumerate(symbols.couplings):
                largest = frobenius(unstacked(F)).amax().square()
                squares = squares + 4 * largest * _squared_size(self._layout.toruses[i], unstacked(D))
            return math.sqrt(float(squares))

        return self._cached("frobenius", compute)

    @property
    def norm_bound(self) -> float:
        # Around a multiple of I that is close to A the bound on blocks loses least.
        middle = 1 / self.typical_step
        return middle + self.distance_bound(middle)

    def distance_bound(self, shift: float) -> float:
        """max over tiers of a bound on ‖A_ii − shift·I‖, plus what couples tiers.

        For a tier with a successor those of mI + FᵀF + G − Gᵀ − shift·I and of DᵀD are added: seen on the whole torus,
        instead of as four images, the first has smaller matrices, whose bound is sharper and costs less.
        """

        def compute() -> float:
            symbols = self._symbols()
            whole = [t.symbol(k) for t, k in zip(self._layout.wholes, symbols.kernels[:-1], strict=False)]
            squares = [down * down for down, _ in self._coupling_norms]
            pairs = zip([*whole, symbols.A[-1]], [*squares, 0.0], strict=True)
            blocks = [float(two_norm_bound(symbol, shift)) + square for symbol, square in pairs]
            return max(blocks) + max((2 * down * same for down, same in self._coupling_norms), default=0.0)

        return self._cached(("distance_bound", shift), compute)

    @property
    def _coupling_norms(self) -> list[tuple[float, float]]:
        """Upper bounds (up to rounding) on ‖D_i‖ and ‖F_{i+1}‖."""

        def compute() -> list[tuple[float, float]]:
            pairs = self._symbols().couplings
            return [(float(two_norm_bound(unstacked(D))), float(two_norm_bound(unstacked(F)))) for D, F in pairs]

        return self._cached("coupling_norms", compute)

    def cayley_norm(self, alpha: float) -> float:
        """The largest ‖(I − αÂ_ii)(I + αÂ_ii)⁻¹‖₂ over the tiers, at a sample of frequencies, by power iteration.

        What couples tiers is left out: it decides about transients, not about the rate.
        """
        return max(cayley_norm(symbol, alpha) for symbol in self._cached("sample", self._sample))

    def _sample(self) -> Spectra:
        """The symbols of A_ii at the frequencies where they are largest, and at some that are evenly spaced."""
        samples = []
        for symbol in self._symbols().A:
            largest = frobenius(symbol).topk(min(_SAMPLED, len(symbol))).indices
            even = torch.arange(0, len(symbol), -(-len(symbol) // _SAMPLED), device=symbol.device)
            samples.append(symbol[torch.cat([largest, even])])
        return samples

    def rounding(self, z: Tensor) -> Tensor:
        relative, absolute = self._cached("rounding", self._rounding)
        return relative * verified.vector_norm(z) + absolute

    def _rounding(self) -> tuple[float, float]:
        """(a, b) with ‖fl(A z) − A z‖ ≤ a‖z‖ + b.

        a: the errors of transforms, products and symbols, each times what follows. b: what products below the normal
        numbers of the dtype may add.
        """
        sizes = self._kernel_sizes()
        size = 0.0
        for i, (f, g, d) in enumerate(sizes):
            size += float(self.tensors[0].detach()) + f * f + d * d + 2 * g + (2 * f * sizes[i - 1][2] if i else 0.0)
        per_pass = sum(
            t.rounding(self.dtype)
            + whole.rounding(self.dtype)
            + verified.gamma(8 * t.phases**2 * c + 16, self.dtype) * math.sqrt(2 * t.phases**2 * c)
            for t, whole, c in zip(self._layout.toruses, self._layout.wholes, self._layout.channels, strict=True)
        )
        symbol = sum(self._symbol_errors(self.dtype)) + 2 * size * self._symbol_rounding(self.dtype)
        absolute = 64 * self.state_shape.numel() ** 1.5 * torch.finfo(self.dtype).tiny * (1 + size)
        return verified.round_up(10 * size * per_pass + 4 * symbol), verified.round_up(absolute)

    def _kernel_sizes(self) -> list[tuple[float, float, float]]:
        """Upper bounds, per tier, on the 2-norm of the entrywise modulus of the symbols of F, G and D (0 for none)."""

        def size(kernel: Tensor, phases: int) -> float:
            return phases * norms.frobenius(kernel.detach().double().abs().sum((2, 3))) * (1 + 1e-12)

        _, F, G, D = self._kernels()
        toruses = self._layout.toruses
        downs = [size(d, t.phases) for d, t in zip(D, toruses, strict=False)] + [0.0]
        return [(size(f, t.phases), size(g, t.phases), d) for f, g, d, t in zip(F, G, downs, toruses, strict=True)]

    def _symbol_rounding(self, dtype: torch.dtype) -> float:
        """Upper bound on the error of a computed symbol relative to its kernel's size."""
        # FᵀF + G − Gᵀ has at most five times the entries of the larger kernel.
        return symbol_rounding(5 * self._taps, dtype)

    @property
    def _taps(self) -> int:
        """Number of entries, in space, of the largest kernel."""
        return max(k.shape[2] * k.shape[3] for k in self.tensors[1:])

    def _symbol_errors(self, dtype: torch.dtype) -> list[float]:
        """Upper bounds, per tier, on ‖fl(Â(ω)) − Â(ω)‖₂ where the symbols are computed in `dtype`."""
        _, F, _, D = self._kernels()
        # FᵀF is a sum over channels and taps, DᵀD one over channels.
        products = verified.gamma(16 * self._taps * max(max(k.shape[:2]) for k in (*F, *D)) + 64, dtype)
        relative = 4 * (self._symbol_rounding(dtype) + products)
        return [
            relative * (float(self.tensors[0].detach()) + f * f + d * d + 2 * g) for f, g, d in self._kernel_sizes()
        ]

    def double(self) -> Self:
        if self.dtype == torch.float64:
            return self
        return self._cached("double", lambda: self.replace(*(t.detach().double() for t in self.tensors)))

    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        symbols, layout = self._symbols(), self._layout
        toruses, wholes = layout.toruses, layout.wholes
        qs, zs = self._analyse(q, "q"), self._analyse(z)
        _, F, G, D = self._kernels()
        m_gradients, F_gradients, G_gradients, D_gradients = [], [], [], []
        for i, (torus, f, g) in enumerate(zip(toruses, F, G, strict=True)):
            P = torus.correlate(qs[i], zs[i])
            block = torus.kernel_gradient(P, (len(g), len(g), *block_sides(f, g)))
            m_gradients.append((block * centre(block)).sum())
            F_gradients.append(autocorrelation_gradient(block, f))
            G_gradients.append(resized(block - transposed(block), g.shape[2:]))
            if i < len(D):
                D_gradients.append(torus.kernel_gradient(times_hermitian(symbols.D[i], P), D[i].shape, stride=2))
        for i, (down, same) in enumerate(symbols.couplings):
            # 2⟨F q_{i+1}, D z_i⟩
            upper, whole = toruses[i], wholes[i + 1]
            below = layout.padded(i, _synthesised("passed", upper, _product("emitted", down, zs[i])))
            q_whole = _whole_spectrum(layout, i + 1, qs[i + 1])
            correlation = whole.correlate(_analysed("moved", whole, below), q_whole)
            F_gradients[i + 1] = F_gradients[i + 1] + 2 * whole.kernel_gradient(correlation, F[i + 1].shape)
            above = layout.cropped(i, _synthesised("passed", whole, _product("emitted", same, q_whole)))
            correlation = upper.correlate(_analysed("moved", upper, above), zs[i])
            D_gradients[i] = D_gradients[i] + 2 * upper.kernel_gradient(correlation, D[i].shape, stride=2)
        return (torch.stack(m_gradients).sum(), *F_gradients, *G_gradients, *D_gradients)

    def _kernels(self) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        tiers = len(self._layout.channels)
        m, kernels = self.tensors[0], self.tensors[1:]
        return m, kernels[:tiers], kernels[tiers : 2 * tiers], kernels[2 * tiers :]

    def _symbols(self) -> _Symbols:
        if is_recorded(*self.tensors):
            return self._transform_kernels()
        return self._cached("symbols", self._transform_kernels)

    def _transform_kernels(self) -> _Symbols:
        m, F, G, D = self._kernels()
        toruses = self._layout.toruses
        same = [stacked(t.symbol(f)) for t, f in zip(self._layout.wholes[1:], F[1:], strict=True)]
        down = [stacked(t.symbol(d, stride=2)) for t, d in zip(toruses, D, strict=False)]
        kernels = [block_kernel(m, f, g) for f, g in zip(F, G, strict=True)]
        diagonal = [t.symbol(k) for t, k in zip(toruses, kernels, strict=True)]
        for i, d in enumerate(down):
            diagonal[i] = torch.baddbmm(diagonal[i], d.mT, unstacked(d))
        return _Symbols(kernels, diagonal, down, same)

    def norm(self, z: Tensor) -> Tensor:
        if not may_overwrite(z):
            return super().norm(z)
        flat = self._layout.flat(z)
        total = flat.new_zeros(flat.shape[1])
        for rows in flat.split(_ROWS):
            squares = scratch("squares", tuple(rows.shape), rows)
            total += torch.mul(rows, rows, out=squares).sum(0)
        return total.sqrt_()

    def arranged(self, z: Tensor) -> Tensor:
        return self._layout.unflat(self._layout.flat(z))

    def _analyse(self, z: Tensor, name: str = "state") -> Spectra:
        """The transforms of the tiers of z, in memory that the next call with the same name overwrites."""
        toruses = self._layout.toruses
        return [
            _analysed(f"{name} {i}", t, f)
            for i, (t, f) in enumerate(zip(toruses, self._layout.fields(self._layout.flat(z)), strict=True))
        ]


class ConvolutionOperator(MultiscaleOperator):
    """A = mI + FᵀF + G − Gᵀ with circular correlations F, G on one torus, on states (batch, channels, height, width).

    F: (any, channels, k, k), G: (channels, channels, k, k), k odd and at most the side of the torus. m > 0: a number or
    a scalar tensor. size: (height, width). Raises InvalidArgument, InvalidType.
    """

    def __init__(self, F: Tensor, G: Tensor, m: float | Tensor, size: tuple[int, int]) -> None:
        if not (isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) for side in size)):
            raise InvalidType(f"`size` must be (height, width), got {size!r:.80}")
        super().__init__((F,), (G,), (), m, (size,))
        self._layout = ImageLayout(self._layout.sizes, self._layout.channels)
        self.state_shape = torch.Size((F.shape[1], *self._layout.sizes[0]))

    @property
    def strong_monotonicity(self) -> float:
        """m + σ_min(F)², the smallest eigenvalue of the symmetric part, proved frequency by frequency."""

        exact = self.double()

        def prove() -> float:
            m, F = float(exact.tensors[0].detach()), stacked(self._layout.toruses[0].symbol(exact.tensors[1]))
            error = exact._symbol_errors(torch.float64)[0]
            least = min(verified.smallest_eigenvalue(f.mT @ f, perturbation=error) for f in F.split(CHUNK))
            return max(verified.round_down(m + least), m)

        return exact._cached("strong_monotonicity", prove)


class _Adjoint(AdjointView):
    """Aᵀ as a view of A."""

    base: MultiscaleOperator

    def apply(self, z: Tensor) -> Tensor:
        return self.base._apply_adjoint(z)


# Rows of a state whose squares are summed at a time: few enough to stay in a cache.
_ROWS = 4096
# Frequencies of each kind at which the rate of an iteration is estimated.
_SAMPLED = 8


@dataclass(frozen=True)
class _Link:
    """FᵀD from a tier to the next, or DᵀF up from there: stacked matrices, between them a change of resolution."""

    D: Tensor
    F: Tensor
    tier: int  # the upper one
    up: bool

    @property
    def origin(self) -> int:
        return self.tier + self.up

    @property
    def target(self) -> int:
        return self.tier + (not self.up)

    def __call__(self, layout: Layout, spectrum: Tensor) -> Tensor:
        """What the target receives, in memory that the next link overwrites."""
        upper, whole = layout.toruses[self.tier], layout.wholes[self.tier + 1]
        if self.up:
            emitted = _product("emitted", self.F, _whole_spectrum(layout, self.origin, spectrum))
            image = layout.cropped(self.tier, _synthesised("passed", whole, emitted))
            return _product("received", self.D.mT, _analysed("moved", upper, image))
        emitted = _product("emitted", self.D, spectrum)
        image = layout.padded(self.tier, _synthesised("passed", upper, emitted))
        absorbed = _product("received", self.F.mT, _analysed("moved", whole, image))
        if layout.toruses[self.target] == whole:
            return absorbed
        field = layout.divided(_synthesised("passed", whole, absorbed))
        return _analysed("received", layout.toruses[self.target], field)


def _whole_spectrum(layout: Layout, tier: int, spectrum: Tensor) -> Tensor:
    """The spectrum of a tier on its whole torus."""
    torus, whole = layout.toruses[tier], layout.wholes[tier]
    if torus == whole:
        return spectrum
    return _analysed("whole", whole, layout.united(_synthesised("passed", torus, spectrum)))


class _Substitution(Resolvent):
    """(I + αA)⁻¹ for block bidiagonal A: tier after tier, each corrected by what the one before passes on.

    With C = 2V − I of a tier and e what it receives, the reflected resolvent is r = 2V(v − e) − v = C(v − e) − e.
    The solution of this tier is (r + v)/2, and αL(r + v) what the next one receives for a link L, A having 2L.
    """

    def __init__(
        self, layout: Layout, reflectors: Spectra, symbols: _Symbols, alpha: float, *, up: bool = False
    ) -> None:
        self.layout, self.reflectors, self.symbols, self.alpha, self.up = layout, reflectors, symbols, alpha, up
        self.order = range(len(reflectors))[:: -1 if up else 1]
        self.links = {link.target: link for link in symbols.links(up=up)}

    def __call__(self, v: Tensor) -> Tensor:
        return self.reflect(v).add_(v).mul_(0.5)

    def reflect(self, v: Tensor, memory: Tensor | None = None) -> Tensor:
        with full_precision(v.device):
            return self._substitute(v, memory)

    def _substitute(self, v: Tensor, memory: Tensor | None) -> Tensor:
        layout = self.layout
        flat = layout.flat(v)
        result = layout.memory(flat, memory)
        toruses, fields, targets = layout.toruses, layout.fields(flat), layout.fields(result)
        passed = flat  # for the first tier, which receives nothing
        for i in self.order:
            spectrum = _analysed("state", toruses[i], fields[i])
            if i in self.links:
                received = self.links[i](layout, passed)
                memory = scratch("corrected", tuple(spectrum.shape), spectrum) if may_overwrite(spectrum) else None
                corrected = torch.sub(spectrum, received, alpha=self.alpha, out=memory)
                reflected = received.baddbmm_(self.reflectors[i], corrected, beta=-self.alpha)
            else:
                reflected = _product("reflected", self.reflectors[i], spectrum)
            toruses[i].synthesise(reflected, out=targets[i])
            if i != self.order[-1]:
                passed = reflected.add_(spectrum)
        return layout.unflat(result)

    @property
    def adjoint(self) -> Resolvent:
        transposed = [c.mT for c in self.reflectors]
        return _Substitution(self.layout, transposed, self.symbols, self.alpha, up=not self.up)


def _analysed(slot: str, torus: Torus, field: Tensor) -> Tensor:
    """The transform of a field, in the scratch memory of `slot` where it may be."""
    shape = (torus.frequencies, 2 * field.shape[2], field.shape[3])
    return torus.analyse(field, out=scratch(slot, shape, field) if may_overwrite(field) else None)


def _synthesised(slot: str, torus: Torus, spectrum: Tensor) -> Tensor:
    """The field with this transform, in the scratch memory of `slot` where it may be."""
    shape = (torus.height, torus.width, spectrum.shape[1] // 2, spectrum.shape[2])
    return torus.synthesise(spectrum, out=scratch(slot, shape, spectrum) if may_overwrite(spectrum) else None)


def _product(slot: str, symbol: Tensor, spectrum: Tensor) -> Tensor:
    """symbol · spectrum at every frequency, in the scratch memory of `slot` where it may be."""
    shape = (len(symbol), symbol.shape[1], spectrum.shape[2])
    return torch.bmm(symbol, spectrum, out=scratch(slot, shape, spectrum) if may_overwrite(symbol, spectrum) else None)


def _squared_size(torus: Torus, symbol: Tensor) -> Tensor:
    """Squared Frobenius norm of the map with this symbol."""
    return frobenius(symbol).square() @ torus.weights(symbol) * (torus.height * torus.width)
