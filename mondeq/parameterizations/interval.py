"""The interval parameterization: rows of |W| sum to less than 1, so that boxes have an equilibrium as states have.

W = (1 − m) T with every row of T divided by its ℓ1 norm where that exceeds 1: ‖W‖_∞ ≤ 1 − m for every T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import splitting
from mondeq.parameterizations.base import PARAMETERIZATIONS, DenseInput
from mondeq.settings import Real, Settings, Whole, setting
from splitting import full_precision

MARGIN = Real("a number in (0, 1)", lambda value: 0 < value < 1)


@dataclass(frozen=True)
class IntervalDenseSettings(Settings):
    """Of IntervalDense.

    Args:
        features: n, the width of the equilibrium state.
        m: In (0, 1); rows of |W| sum to 1 − m at most.
    """

    features: int = setting(Whole(1), help="n, the width of the equilibrium state")
    m: float = setting(MARGIN, 0.5, help="interval: rows of |W| sum to at most 1 - m (default 0.5)")


@PARAMETERIZATIONS.enrol("interval-dense")
class IntervalDense(DenseInput):
    """z = σ(Wz + Ux + b) with W_ij = (1 − m) T_ij / max(1, Σ_k |T_ik|), so that ‖W‖_∞ ≤ 1 − m for every T.

    For every nondecreasing, 1-Lipschitz σ and every value of the weights, two iterations converge by the factor 1 − m
    in the largest entry: that of states, and that of boxes [z, z̄] under the embedded network

        z = σ(W⁺z + W⁻z̄ + the lower ends of Ux + b),   z̄ = σ(W⁺z̄ + W⁻z + the upper ends),

    with W = W⁺ + W⁻ split by sign. For ReLU nothing is lost by a plain maximum norm: where some positive diagonal D
    makes ‖D⁻¹WD‖_∞ < 1, rescaling states by D gives the same network with ‖W‖_∞ < 1.

    The splitting solvers see A = I − W, monotone in the metric Λ = diag(y) with (I − |W|ᵀ) y = 1. Since |W| 1 ≤
    (1 − m) 1 and |W|ᵀ y ≤ y, the symmetric part of ΛA has entries ≥ m y/2 on the all-ones vector and nonpositive bounds
    off its diagonal, so that it is ⪰ (m/2) Λ (an M-matrix is diagonally stable).

    Source: the maximum-norm conditions of Jafarpour, Davydov, Proskurnikov & Bullo 2021, arXiv 2106.03194, and the
    embedded network of Wei & Kolter 2022. There the diagonal of W may be any negative number; for ReLU that is a row of
    smaller weights, which a row can be here without it.

    Args:
        in_features: Entries of x, of any shape (flattened).
        features: n, entries of z.
        m: In (0, 1).

    Raises:
        InvalidArgument: `in_features` or `features` is no integer ≥ 1.
        ConfigError: `m` is out of range.
    """

    Settings = IntervalDenseSettings

    def __init__(self, in_features: int, features: int, m: float = 0.5) -> None:
        super().__init__(in_features, features)
        self.m = IntervalDenseSettings(features, m).m
        self.T = nn.Parameter(torch.randn(features, features) / features)
        # Small rows of either sign, so that boxes do not grow on their way at first (Shi, Wang, Zhang, Yi & Hsieh
        # 2021).
        with torch.no_grad():
            self.U.normal_(std=2.5 / in_features)
            self.b.zero_()

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> IntervalDense:
        return cls(in_shape.numel(), settings.features, settings.m)

    @classmethod
    def example(cls) -> tuple[IntervalDenseSettings, torch.Size]:
        return IntervalDenseSettings(6, 0.4), torch.Size((3,))

    def settings(self) -> IntervalDenseSettings:
        return IntervalDenseSettings(self.features, self.m)

    @property
    def W(self) -> Tensor:
        """The hidden weight, (n, n), differentiable in T."""
        return (1 - self.m) * self.T / self.T.abs().sum(1, keepdim=True).clamp_min(1)

    def contraction(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.W, self.U, self.b

    def operator(self) -> splitting.DenseOperator:
        with full_precision(self.U.device):
            W = self.W
            eye = torch.eye(self.features, dtype=W.dtype, device=W.device)
            metric = torch.linalg.solve(eye - W.detach().abs().mT, eye.new_ones(self.features))
            return splitting.DenseOperator(eye - W, metric=metric)

    def operator_weights(self) -> list[Tensor]:
        return [self.T]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, features={self.features}, m={self.m:.4g}"
