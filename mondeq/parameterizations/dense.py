"""The dense monotone parameterization: W = (1 − m)I − FᵀF + Gᵀ − G, so A = I − W = mI + FᵀF + G − Gᵀ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import splitting
from mondeq.parameterizations.base import PARAMETERIZATIONS, DenseInput, Noise, StronglyMonotone, normal_norm
from mondeq.settings import POSITIVE, Settings, Truth, Whole, setting
from splitting import full_precision, is_recorded, norms, verified


@dataclass(frozen=True)
class DenseSettings(Settings):
    """Of Dense.

    Args:
        features: n, the width of the equilibrium state.
        m: Strong monotonicity, > 0.
        learn_m: Whether m is learned, starting from `m`.
    """

    features: int = setting(Whole(1), help="n, the width of the equilibrium state")
    m: float = setting(POSITIVE, 1.0, help="strong monotonicity (default 1)")
    learn_m: bool = setting(Truth(), False, help="learn m, starting from --m")


@PARAMETERIZATIONS.enrol("dense")
class Dense(DenseInput, StronglyMonotone):
    """z = σ(Wz + Ux + b) with W = (1 − m)I − FᵀF + Gᵀ − G: one solution for every F, G, and ‖U‖₂/m-Lipschitz.

    Weights are initialised like those of torch.nn.Linear. Source: Winston & Kolter 2020, arXiv 2006.08591.

    Args:
        in_features: Entries of x, of any shape (flattened).
        features: n, entries of z.
        m: Strong monotonicity, > 0.
        learn_m: Whether m is learned, as exp(log_m) with `m` the initial value.

    Raises:
        InvalidArgument: One of them is out of range.
    """

    Settings = DenseSettings

    def __init__(self, in_features: int, features: int, m: float = 1.0, *, learn_m: bool = False) -> None:
        super().__init__(in_features, features)
        bound = features**-0.5
        self.F = nn.Parameter(torch.empty(features, features).uniform_(-bound, bound))
        self.G = nn.Parameter(torch.empty(features, features).uniform_(-bound, bound))
        self._own_m(m, learn_m)

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> Dense:
        return cls(in_shape.numel(), settings.features, settings.m, learn_m=settings.learn_m)

    @classmethod
    def example(cls) -> tuple[DenseSettings, torch.Size]:
        return DenseSettings(6, 0.5), torch.Size((3,))

    def settings(self) -> DenseSettings:
        return DenseSettings(self.features, self._fixed_m, self.log_m is not None)

    def operator(self) -> splitting.DenseOperator:
        return GramSkewOperator(self.F, self.G, self.m)

    def operator_weights(self) -> list[Tensor]:
        return [weight for weight in (self.F, self.G, self.log_m) if weight is not None]

    def noise(self, scale: float, deviation: float) -> Noise:
        n, m = self.features, float(self.m.detach())
        F, U, b = (normal_norm(scale, deviation, *sides) for sides in ((n, n), (n, self.in_features), (n,)))
        size = verified.spectral_norm(self.F)
        # ΔA = FᵀΔF + ΔFᵀF + ΔFᵀΔF + ΔG − ΔGᵀ, and m times a power of e where it is learned.
        growth = 0.0 if self.log_m is None else scale * deviation
        operator = 2 * size * F + F * F + 2 * F + m * (math.expm1(growth) if growth < 700 else math.inf)
        return Noise(operator * (1 + 1e-12), U, b, m * math.exp(-growth) * (1 - 1e-12), 4 + (self.log_m is not None))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, features={self.features}, m={float(self.m.detach()):.4g}"


class GramSkewOperator(splitting.DenseOperator):
    """A = mI + FᵀF + G − Gᵀ with gradients to F, G and m.

    It is assembled outside the graph. Gradients reach F through two thin products, instead of through an (n, n) one,
    when the batch is small.

    Args:
        F: (any, n).
        G: (n, n).
        m: A scalar tensor.
    """

    def __init__(self, F: Tensor, G: Tensor, m: Tensor) -> None:
        splitting.Operator.__init__(self, (F, G, m), (len(G),))

    @property
    def matrix(self) -> Tensor:
        return self._assemble() if is_recorded(*self.tensors) else self.cached("matrix", self._assemble)

    def _assemble(self) -> Tensor:
        F, G, m = self.tensors
        with full_precision(F.device):
            return torch.addmm(G - G.mT, F.mT, F) + torch.diag_embed(m.expand(len(G)))

    @property
    def strong_monotonicity(self) -> float:
        """m less the rounding of the assembly; where that is a lot, what can be proved from the matrix, if better."""
        by_construction = self.by_construction
        if by_construction > 0.99 * float(self.tensors[2].detach()):
            return by_construction
        return max(by_construction, super().strong_monotonicity)

    @property
    def by_construction(self) -> float:
        """m less the rounding of the assembly: what is proved of A without FᵀF."""
        return self.cached("by construction", self._by_construction)

    def _by_construction(self) -> float:
        F, G, m = self.tensors
        size = norms.frobenius(F.double())
        entries = size * size + 2 * norms.frobenius(G.double()) + float(m)
        # Products below the normal numbers may vanish, whatever their size is relative to A.
        vanished = 4 * (len(F) + 4) * len(G) * torch.finfo(self.dtype).tiny
        return verified.round_down(float(m) - verified.rounding_factor(len(F) + 4, self.dtype) * entries - vanished)

    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        F, _, _ = self.tensors
        outer = q.mT @ z
        thin = 3 * len(q) < len(F)
        gradient = torch.addmm((q @ F.mT).mT @ z, (z @ F.mT).mT, q) if thin else F @ (outer + outer.mT)
        return gradient, outer - outer.mT, (q * z).sum()
