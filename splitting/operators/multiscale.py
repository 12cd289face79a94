"""Circular correlations given by their kernels, on one torus or on several tiers of decreasing resolution.

On one torus A z = K ⋆ z. Tier i of several has a kernel K_i, and D_i leads from it to tier i + 1 with stride 2:
A_ii = K_i + D_iᵀD_i, A_{i+1,i} = 2F_{i+1}ᵀD_i, all else 0. Then ⟨z, A z⟩ = Σ ⟨z_i, (K_i − F_iᵀF_i) z_i⟩ +
‖D_i z_i + F_{i+1} z_{i+1}‖², F_0 = 0, so that A is as monotone as the worst K_i − F_iᵀF_i is (Winston & Kolter 2020,
arXiv 2006.08591, appendix D). Every A_ii is inverted frequency by frequency, the tiers one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Self

import torch
from torch import Tensor

from splitting import norms, verified
from splitting.context import asking_is_free, full_precision, is_recorded, on_host
from splitting.errors import InvalidArgument
from splitting.operators.base import Operator, Resolvent
from splitting.operators.inverse import Probe, judge
from splitting.operators.kernels import check_kernel, check_size, check_square, check_tiers
from splitting.operators.layout import ImageLayout, Layout, divided, united
from splitting.operators.symbols import (
    CHUNK,
    cayley,
    cayley_norm,
    frobenius,
    inverted,
    spectral_norm,
    stacked,
    symbol_rounding,
    times_hermitian,
    two_norm_bound,
    unstacked,
)
from splitting.operators.torus import Torus
from splitting.scratch import product, recycled

Spectra = list[Tensor]

# Frequencies of each kind at which the rate of an iteration is estimated.
_SAMPLED = 8


@dataclass(frozen=True)
class _Symbols:
    """In the frequency domain: the symbols of A_ii, the stacked D_i and F_{i+1}.

    F is on the whole torus of its tier: as four images it would be a matrix four times as large.
    """

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
    """Correlations on tiers of decreasing resolution, each coupled to the next: A_ii and A_{i+1,i} as above.

    A state (batch, N) holds the tiers one after the other; `tiers` gives them as images. Within a tier a state runs
    over rows, columns, channels; in a tier with a successor first over the pixels of equal parity.

    Args:
        kernels: K_i of every tier, (channels, channels, k, k), k odd. A kernel larger than its torus wraps around.
        F: F_i of every tier but the first, (any, channels, k, k).
        D: D_i of every tier but the last, (what F_{i+1} maps to, channels, k, k).
        sizes: (height, width) of every tier's torus. A tier with a successor has even sides, and its successor at least
            half of them; zeros fill the rest.
        strong_monotonicity: A lower bound on m that is known by construction. Left out, the smallest eigenvalue of the
            Hermitian part of K_i − F_iᵀF_i is proved frequency by frequency on first use, in float64. A function is
            called on first use, as `Operator` says.

    Raises:
        InvalidArgument: Shapes or sizes do not fit.
        InvalidType: A kernel is none, or of another dtype.
    """

    def __init__(
        self,
        kernels: Sequence[Tensor],
        F: Sequence[Tensor],
        D: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        *,
        strong_monotonicity: float | Callable[[], float] | None = None,
    ) -> None:
        check_tiers(kernels, F, D, sizes)
        self._layout = Layout(tuple((int(h), int(w)) for h, w in sizes), tuple(map(len, kernels)))
        super().__init__((*kernels, *F, *D), (sum(self._layout.entries),), strong_monotonicity=strong_monotonicity)

    def tiers(self, z: Tensor) -> list[Tensor]:
        """The tiers of states as images.

        Args:
            z: States (batch, *state_shape).

        Returns:
            One tensor (batch, channels, height, width) per tier.
        """
        return self._layout.images(z)

    def state(self, tiers: Sequence[Tensor]) -> Tensor:
        """The states with these tiers: `tiers` inverted.

        Args:
            tiers: One tensor (batch, channels, height, width) per tier.

        Returns:
            States (batch, *state_shape).
        """
        return self._layout.state(tiers)

    def apply(self, z: Tensor) -> Tensor:
        symbols = self._symbols()
        return self._multiply(symbols.stacked_A, symbols.links(), z)

    def apply_adjoint(self, z: Tensor) -> Tensor:
        symbols = self._symbols()
        return self._multiply([s.mT for s in symbols.stacked_A], symbols.links(up=True), z)

    def _multiply(self, diagonal: Spectra, links: list[_Link], z: Tensor) -> Tensor:
        with full_precision(z.device):
            spectra = self._analyse(z)
            images = [product(symbol, x) for symbol, x in zip(diagonal, spectra, strict=True)]
            for link in links:
                images[link.target] = images[link.target] + link(self._layout, 2 * spectra[link.origin])
            toruses = self._layout.toruses
            return self._layout.joined([t.synthesise(x) for t, x in zip(toruses, images, strict=True)])

    def resolvent(self, alpha: float) -> Resolvent:
        resolvent = self.cached(("resolvent", alpha), lambda: self._invert(alpha))
        judge(resolvent.probes)
        return resolvent

    def _invert(self, alpha: float) -> _Substitution:
        symbols, reflectors, probes = self._symbols(), [], []
        for symbol in symbols.A:
            inverse, probe = inverted(symbol, alpha)
            reflectors.append(cayley(inverse))
            probes.append(probe)
        return _Substitution(self._layout, reflectors, symbols, alpha, probes=tuple(probes))

    @property
    def strong_monotonicity(self) -> float:
        known = self.known_monotonicity
        # The same numbers in float64 have the same m and L: they are proved once for both.
        exact = self.double()
        return exact.cached("strong monotonicity", exact._prove_monotonicity) if known is None else known

    def _prove_monotonicity(self) -> float:
        """The smallest eigenvalue of the Hermitian part of K_i − F_iᵀF_i at any frequency."""
        kernels, F, _ = self._in_metric()
        least = math.inf
        for i, (torus, kernel) in enumerate(zip(self._layout.wholes, kernels, strict=True)):
            symbols, error = [stacked(torus.symbol(kernel))], _symbol_error(kernel, torch.float64)
            if i:
                symbols.append(stacked(torus.symbol(F[i - 1])))
                error += _square_error(F[i - 1], torch.float64, _size(kernel))
            for block, *same in zip(*(s.split(CHUNK) for s in symbols), strict=True):
                part = (block + block.mT) / 2
                part = part - same[0].mT @ same[0] if same else part
                least = min(least, verified.smallest_eigenvalue((part + part.mT) / 2, perturbation=error))
        return least

    @property
    def lipschitz(self) -> float:
        exact = self.double()
        return exact.cached("lipschitz", exact._prove_lipschitz)

    def _prove_lipschitz(self) -> float:
        """Σ over diagonals of the largest block norm: ‖A_ii‖ are those of their symbols, the rest products of two."""
        symbols, (kernels, F, D) = self._symbols_in_metric(), self._in_metric()
        diagonal = max(map(spectral_norm, symbols.stacked_A, _block_errors(kernels, D, torch.float64)))
        same = [spectral_norm(s, _symbol_error(f, torch.float64)) for s, f in zip(symbols.F, F, strict=True)]
        down = [spectral_norm(s, _symbol_error(d, torch.float64)) for s, d in zip(symbols.D, D, strict=True)]
        return verified.round_up(diagonal + max((2 * f * d for f, d in zip(same, down, strict=True)), default=0.0))

    def difference_norm(self, other: Operator) -> float:
        # ‖ΔA_ii‖ ≤ ‖ΔK_i‖ + ‖ΔD_i‖(‖D_i‖ + ‖D′_i‖), and ‖ΔA_{i+1,i}‖ ≤ 2‖ΔF_{i+1}‖‖D_i‖ + 2‖F′_{i+1}‖‖ΔD_i‖.
        tensors, others = ([t.detach().double() for t in op.tensors] for op in (self, other))
        alike = [t.shape for t in tensors] == [t.shape for t in others]
        if not isinstance(other, MultiscaleOperator) or other._layout != self._layout or not alike:
            return super().difference_norm(other)
        # A difference of entries is right to one rounding.
        differences = [theirs - ours for ours, theirs in zip(tensors, others, strict=True)]
        (_, _, D), (_, F_other, D_other) = self._norms(tensors), self._norms(others)
        kernel_changes, same_changes, down_changes = self._norms(differences)
        more = [change * (a + b) for change, a, b in zip(down_changes, D, D_other, strict=True)]
        diagonal = max(change + extra for change, extra in zip(kernel_changes, [*more, 0.0], strict=True))
        links = [
            2 * (same_change * down + same * down_change)
            for same_change, down, same, down_change in zip(same_changes, D, F_other, down_changes, strict=True)
        ]
        return verified.round_up(verified.round_up(diagonal + max(links, default=0.0)))

    def _norms(self, tensors: Sequence[Tensor]) -> tuple[list[float], ...]:
        """Proved upper bounds on the norms, in the metric, of K, F and D for float64 tensors in place of the own."""
        layout = self._layout

        def norm(torus: Torus, kernel: Tensor, stride: int = 1) -> float:
            return spectral_norm(stacked(torus.symbol(kernel, stride=stride)), _symbol_error(kernel, torch.float64))

        kernels, F, D = self.replace(*tensors)._in_metric()
        return (
            [norm(torus, kernel) for torus, kernel in zip(layout.wholes, kernels, strict=True)],
            [norm(torus, kernel) for torus, kernel in zip(layout.wholes[1:], F, strict=True)],
            [norm(torus, kernel, stride=2) for torus, kernel in zip(layout.toruses[:-1], D, strict=True)],
        )

    @property
    def frobenius(self) -> float:
        def compute() -> float:
            free = asking_is_free(self.device)
            return math.sqrt(float(self._squares()) if free else self._measured()["squares"])

        return self.cached("frobenius", compute)

    def _squares(self) -> Tensor:
        """‖Λ^½ A Λ^-½‖²_F, a scalar tensor."""
        symbols = self._symbols_in_metric()
        squares = reduce(add, map(_squared_size, self._layout.toruses, symbols.A))
        for i, (D, F) in enumerate(symbols.couplings):
            largest = frobenius(unstacked(F)).amax().square()
            squares = squares + 4 * largest * _squared_size(self._layout.toruses[i], unstacked(D))
        return squares

    def _measures(self) -> dict[str, Tensor]:
        squares = self._squares()
        # What `typical_step` makes of them on the host, of which Peaceman–Rachford needs the distance bound.
        root = torch.full((), math.sqrt(max(self.state_shape.numel(), 1)), dtype=torch.float64, device=self.device)
        step = torch.div(root, squares.double().sqrt()).clamp_max(torch.finfo(self.dtype).max / 1024)
        shift = torch.where(squares > 0, 1 / step, 1.0)
        norms = {f"coupling {i}": norm for i, norm in enumerate(self._coupling_measures())}
        blocks = {f"block {i}": norm for i, norm in enumerate(self._block_measures(shift))}
        return {"squares": squares, "shift": shift, **norms, **blocks, **super()._measures()}

    @property
    def norm_bound(self) -> float:
        # Around a multiple of I that is close to A the bound on blocks loses least.
        middle = 1 / self.typical_step
        return middle + self.distance_bound(middle)

    def distance_bound(self, shift: float) -> float:
        # The largest bound on ‖A_ii − shift·I‖, plus what couples tiers. For a tier with a successor those of
        # K_i − shift·I and of DᵀD are added: seen on the whole torus, instead of as four images, the first has smaller
        # matrices, whose bound is sharper and costs less.
        def compute() -> float:
            squares = [down * down for down, _ in self._coupling_norms]
            pairs = zip(self._block_norms(shift), [*squares, 0.0], strict=True)
            blocks = [norm + square for norm, square in pairs]
            return max(blocks) + max((2 * down * same for down, same in self._coupling_norms), default=0.0)

        return self.cached(("distance bound", shift), compute)

    def _block_norms(self, shift: float) -> list[float]:
        if asking_is_free(self.device):
            return [float(norm) for norm in self._block_measures(shift)]
        measured = self._measured()
        if shift == measured["shift"]:
            return [measured[f"block {i}"] for i in range(len(self._layout.channels))]
        return on_host(*self._block_measures(shift))

    def _block_measures(self, shift: float | Tensor) -> Iterator[Tensor]:
        """Upper bounds (up to rounding) on ‖K_i − shift·I‖, of the last tier on ‖A_ii − shift·I‖."""
        symbols, (kernels, _, _) = self._symbols_in_metric(), self._in_metric()
        whole = [t.symbol(k) for t, k in zip(self._layout.wholes, kernels[:-1], strict=False)]
        return (two_norm_bound(symbol, shift) for symbol in (*whole, symbols.A[-1]))

    @property
    def _coupling_norms(self) -> list[tuple[float, float]]:
        """Upper bounds (up to rounding) on ‖D_i‖ and ‖F_{i+1}‖."""

        def compute() -> list[tuple[float, float]]:
            if asking_is_free(self.device):
                found = [float(norm) for norm in self._coupling_measures()]
            else:
                measured = self._measured()
                found = [measured[f"coupling {i}"] for i in range(2 * len(self._layout.channels) - 2)]
            return list(zip(found[::2], found[1::2], strict=True))

        return self.cached("coupling norms", compute)

    def _coupling_measures(self) -> Iterator[Tensor]:
        return (two_norm_bound(unstacked(symbol)) for pair in self._symbols().couplings for symbol in pair)

    def cayley_norm(self, alpha: float) -> float:
        # The largest ‖(I − αÂ_ii)(I + αÂ_ii)⁻¹‖₂ over the tiers, at a sample of frequencies, by power iteration. What
        # couples tiers is left out: it decides about transients, not about the rate.
        return max(cayley_norm(symbol, alpha) for symbol in self.cached("sample", self._sample))

    def _sample(self) -> Spectra:
        """The symbols of A_ii at the frequencies where they are largest, and at some that are evenly spaced."""
        samples = []
        for symbol in self._symbols_in_metric().A:
            largest = frobenius(symbol).topk(min(_SAMPLED, len(symbol))).indices
            even = torch.arange(0, len(symbol), -(-len(symbol) // _SAMPLED), device=symbol.device)
            samples.append(symbol[torch.cat([largest, even])])
        return samples

    def rounding(self, z: Tensor) -> Tensor:
        relative, absolute = self.cached("rounding", self._rounding)
        return relative * verified.vector_norm(z) + absolute

    def _rounding(self) -> tuple[float, float]:
        """(a, b) with ‖fl(A z) − A z‖_Λ ≤ a‖z‖₂ + b.

        a: the errors of transforms, products and symbols, each times what follows. b: what products below the normal
        numbers of the dtype may add.
        """
        kernels, F, D = self._kernels()
        size, symbol = sum(map(_size, kernels)), sum(_block_errors(kernels, D, self.dtype))
        for f, d in zip(F, D, strict=True):
            down, same = _size(d), _size(f)
            size += down * down + 2 * down * same
            symbol += 2 * (down * _symbol_error(f, self.dtype) + same * _symbol_error(d, self.dtype))
        per_pass = sum(
            t.rounding(self.dtype)
            + whole.rounding(self.dtype)
            + verified.rounding_factor(8 * t.phases**2 * c + 16, self.dtype) * math.sqrt(2 * t.phases**2 * c)
            for t, whole, c in zip(self._layout.toruses, self._layout.wholes, self._layout.channels, strict=True)
        )
        absolute = 64 * self.state_shape.numel() ** 1.5 * torch.finfo(self.dtype).tiny * (1 + size)
        root = 1.0 if self.root_metric is None else float(self.root_metric.amax())
        return verified.round_up(root * (10 * size * per_pass + 4 * symbol)), verified.round_up(root * absolute)

    def double(self) -> Self:
        if self.dtype == torch.float64:
            return self

        known, metric = self.known_monotonicity, None if self.metric is None else self.metric.double()
        twin = self.cached("double", lambda: self.replace(*(t.detach().double() for t in self.tensors), metric=metric))
        twin.cached("known monotonicity", lambda: known)
        return twin

    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        symbols, layout = self._symbols(), self._layout
        toruses, wholes = layout.toruses, layout.wholes
        qs, zs = self._analyse(q), self._analyse(z)
        kernels, F, D = self._kernels()
        kernel_gradients, F_gradients, D_gradients = [], [], []
        for i, (torus, kernel) in enumerate(zip(toruses, kernels, strict=True)):
            P = torus.correlate(qs[i], zs[i])
            kernel_gradients.append(torus.kernel_gradient(P, kernel.shape))
            if i < len(D):
                D_gradients.append(torus.kernel_gradient(times_hermitian(symbols.D[i], P), D[i].shape, stride=2))
        for i, (down, same) in enumerate(symbols.couplings):
            # 2⟨F q_{i+1}, D z_i⟩
            upper, whole = toruses[i], wholes[i + 1]
            below = layout.padded(i, upper.synthesise(product(down, zs[i])))
            q_whole = _whole_spectrum(layout, i + 1, qs[i + 1])
            F_gradients.append(2 * whole.kernel_gradient(whole.correlate(whole.analyse(below), q_whole), F[i].shape))
            above = layout.cropped(i, whole.synthesise(product(same, q_whole)))
            correlation = upper.correlate(upper.analyse(above), zs[i])
            D_gradients[i] = D_gradients[i] + 2 * upper.kernel_gradient(correlation, D[i].shape, stride=2)
        return *kernel_gradients, *F_gradients, *D_gradients

    def _kernels(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """K, F and D."""
        tiers = len(self._layout.channels)
        return self.tensors[:tiers], self.tensors[tiers : 2 * tiers - 1], self.tensors[2 * tiers - 1 :]

    def _in_metric(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The kernels of Λ^½AΛ^-½."""
        return self._kernels()

    def _symbols(self) -> _Symbols:
        if is_recorded(*self.tensors):
            return self._transformed(*self._kernels())
        return self.cached("symbols", lambda: self._transformed(*self._kernels()))

    def _symbols_in_metric(self) -> _Symbols:
        if self.metric is None:
            return self.cached("symbols", lambda: self._transformed(*self._kernels()))
        return self.cached("symbols in the metric", lambda: self._transformed(*self._in_metric()))

    def _transformed(self, kernels: Sequence[Tensor], F: Sequence[Tensor], D: Sequence[Tensor]) -> _Symbols:
        toruses = self._layout.toruses
        same = [stacked(t.symbol(f)) for t, f in zip(self._layout.wholes[1:], F, strict=True)]
        down = [stacked(t.symbol(d, stride=2)) for t, d in zip(toruses[:-1], D, strict=True)]
        diagonal = [t.symbol(k) for t, k in zip(toruses, kernels, strict=True)]
        for i, d in enumerate(down):
            diagonal[i] = torch.baddbmm(diagonal[i], d.mT, unstacked(d))
        return _Symbols(diagonal, down, same)

    def arranged(self, z: Tensor) -> Tensor:
        return self._layout.arranged(z)

    def norm(self, z: Tensor) -> Tensor:
        if is_recorded(z):
            return super().norm(z)
        # Five times as fast as the norm of a tensor whose last axis is the batch: that is 10 % of a training step.
        fields = self._layout.fields(z if self.root_metric is None else z * self.root_metric)
        return torch.stack([torch.mul(f, f, out=recycled(f)).sum((0, 1, 2)) for f in fields]).sum(0).sqrt()

    def _analyse(self, z: Tensor) -> Spectra:
        """The transforms of the tiers of z."""
        return [t.analyse(f) for t, f in zip(self._layout.toruses, self._layout.fields(z), strict=True)]


class ConvolutionOperator(MultiscaleOperator):
    """The circular correlation A z = K ⋆ z with a kernel on a torus, for states (batch, channels, height, width).

    (A z)[o, x] = Σ_{i, t} K[o, i, t] z[i, x + t − centre].

    Args:
        kernel: K, (channels, channels, k, k), float32 or float64, of odd sides; the centre is the origin. A kernel
            larger than the torus wraps around.
        size: (height, width) of the torus.
        metric: The diagonal of Λ, positive, one number per channel: (channels,) or (channels, 1, 1). None for Λ = I.
        strong_monotonicity: A lower bound on m that is known by construction. Left out, the smallest eigenvalue of the
            Hermitian part is proved frequency by frequency on first use, in float64. A function is called on first
            use, as `Operator` says.

    Raises:
        InvalidArgument: The kernel or the metric does not fit.
        InvalidType: The kernel is none, or of another dtype, or the size is no pair of integers.
    """

    def __init__(
        self,
        kernel: Tensor,
        size: tuple[int, int],
        *,
        metric: Tensor | None = None,
        strong_monotonicity: float | Callable[[], float] | None = None,
    ) -> None:
        check_kernel("kernel", kernel, kernel)
        check_square("kernel", kernel)
        channels = len(kernel)
        if metric is not None and tuple(metric.shape) not in ((channels,), (channels, 1, 1)):
            raise InvalidArgument(
                f"`metric` must have shape ({channels},), one number per channel, got {tuple(metric.shape)}"
            )
        self._layout = ImageLayout((check_size(size),), (channels,))
        Operator.__init__(
            self,
            (kernel,),
            (channels, *self._layout.sizes[0]),
            metric=None if metric is None else metric.view(channels, 1, 1),
            strong_monotonicity=strong_monotonicity,
        )

    @property
    def kernel(self) -> Tensor:
        """K, (channels, channels, k, k)."""
        return self.tensors[0]

    def _in_metric(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        if self.metric is None:
            return self._kernels()
        root = self.metric.double().sqrt().to(self.dtype)
        return (root[:, None] * self.kernel / root,), (), ()


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
        """What the target receives."""
        upper, whole = layout.toruses[self.tier], layout.wholes[self.tier + 1]
        if self.up:
            emitted = product(self.F, _whole_spectrum(layout, self.origin, spectrum))
            image = layout.cropped(self.tier, whole.synthesise(emitted))
            return product(self.D.mT, upper.analyse(image))
        image = layout.padded(self.tier, upper.synthesise(product(self.D, spectrum)))
        absorbed = product(self.F.mT, whole.analyse(image))
        target = layout.toruses[self.target]
        return absorbed if target == whole else target.analyse(divided(whole.synthesise(absorbed)))


def _whole_spectrum(layout: Layout, tier: int, spectrum: Tensor) -> Tensor:
    """The spectrum of a tier on its whole torus."""
    torus, whole = layout.toruses[tier], layout.wholes[tier]
    return spectrum if torus == whole else whole.analyse(united(torus.synthesise(spectrum)))


class _Substitution(Resolvent):
    """(I + αA)⁻¹ for block bidiagonal A: tier after tier, each corrected by what the one before passes on.

    With C = 2V − I of a tier and e what it receives, the reflected resolvent is r = 2V(v − e) − v = C(v − e) − e.
    The solution of this tier is (r + v)/2, and αL(r + v) what the next one receives for a link L, A having 2L.
    """

    def __init__(
        self,
        layout: Layout,
        reflectors: Spectra,
        symbols: _Symbols,
        alpha: float,
        *,
        up: bool = False,
        probes: tuple[Probe, ...] = (),
    ) -> None:
        self.layout, self.reflectors, self.symbols, self.alpha, self.up = layout, reflectors, symbols, alpha, up
        self.probes = probes
        self.order = range(len(reflectors))[:: -1 if up else 1]
        self.links = {link.target: link for link in symbols.links(up=up)}

    def __call__(self, v: Tensor) -> Tensor:
        return self.reflect(v).add_(v).mul_(0.5)

    def reflect(self, v: Tensor) -> Tensor:
        with full_precision(v.device):
            return self._substitute(v)

    def _substitute(self, v: Tensor) -> Tensor:
        layout = self.layout
        fields = layout.fields(v)
        results = list(fields)
        passed = fields[0]  # for the first tier, which receives nothing
        for i in self.order:
            spectrum = layout.toruses[i].analyse(fields[i])
            if i in self.links:
                received = self.alpha * self.links[i](layout, passed)
                reflected = product(self.reflectors[i], spectrum - received).sub_(received)
            else:
                reflected = product(self.reflectors[i], spectrum)
            results[i] = layout.toruses[i].synthesise(reflected)
            passed = reflected.add_(spectrum)
        return layout.joined(results)

    @property
    def adjoint(self) -> Resolvent:
        transposed = [c.mT for c in self.reflectors]
        return _Substitution(self.layout, transposed, self.symbols, self.alpha, up=not self.up)


def _squared_size(torus: Torus, symbol: Tensor) -> Tensor:
    """Squared Frobenius norm of the map with this symbol."""
    return frobenius(symbol).square() @ torus.weights(symbol) * (torus.height * torus.width)


def _size(kernel: Tensor) -> float:
    """Upper bound on the 2-norm of the entrywise modulus of the symbol of a kernel, on a divided torus as well.

    There each tap permutes the sub-images, so that the moduli are diagonalised by characters, over sums of moduli.
    """
    return norms.frobenius(kernel.detach().double().abs().sum((2, 3))) * (1 + 1e-12)


def _symbol_error(kernel: Tensor, dtype: torch.dtype) -> float:
    """Upper bound on ‖fl(K̂(ω)) − K̂(ω)‖₂, computed in `dtype`, with room for scaling the kernel by a metric."""
    return 2 * symbol_rounding(kernel.shape[2] * kernel.shape[3] + 8, dtype) * _size(kernel)


def _square_error(kernel: Tensor, dtype: torch.dtype, added: float = 0.0) -> float:
    """That of K̂ᴴK̂ together with the sum of it and something of size `added`."""
    size = _size(kernel)
    products = verified.rounding_factor(16 * max(kernel.shape[:2]) + 64, dtype)
    return 4 * (size * _symbol_error(kernel, dtype) + products * (size * size + added))


def _block_errors(kernels: Sequence[Tensor], D: Sequence[Tensor], dtype: torch.dtype) -> list[float]:
    """Upper bounds, per tier, on ‖fl(Â_ii(ω)) − Â_ii(ω)‖₂ for A_ii = K_i + D_iᵀD_i."""
    errors = [_symbol_error(kernel, dtype) for kernel in kernels]
    for i, d in enumerate(D):
        errors[i] += _square_error(d, dtype, _size(kernels[i]))
    return errors
