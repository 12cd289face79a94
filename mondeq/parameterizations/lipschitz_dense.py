"""The Lipschitz-bounded parameterization: x ↦ W_o z is γ-Lipschitz for every value of the weights.

W = I − Ψ(W_oᵀW_o/(2γ) + Ψ⁻¹UUᵀΨ⁻¹/(2γ) + VᵀV + εI + Sᵀ − S), Ψ = Λ⁻¹ (Revay, Wang & Manchester 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import splitting
from mondeq.parameterizations.base import PARAMETERIZATIONS, DenseInput, Readable, check_count, check_positive
from mondeq.settings import POSITIVE, Settings, Whole, setting
from splitting import full_precision


@dataclass(frozen=True)
class LipschitzDenseSettings(Settings):
    """Of LipschitzDense.

    Args:
        features: n, the width of the equilibrium state.
        out_features: The number of outputs.
        gamma: γ > 0, in units of output per input.
        epsilon: ε > 0, which keeps the matrix inequality strict.
    """

    features: int = setting(Whole(1), help="n, the width of the equilibrium state")
    out_features: int = setting(Whole(1), help="the number of outputs")
    gamma: float = setting(POSITIVE, 1.0, help="γ, in units of output per input")
    epsilon: float = setting(POSITIVE, 0.01, help="keeps the matrix inequality strict")


@PARAMETERIZATIONS.enrol("lipschitz-dense")
class LipschitzDense(DenseInput, Readable):
    """z = σ(Wz + Ux + b) and its read-out W_o z + b_o, with ‖W_o(z₁ − z₂)‖₂ ≤ γ ‖x₁ − x₂‖₂ built in.

    The operator is A = Ψ(W_oᵀW_o/(2γ) + ΛUUᵀΛ/(2γ) + VᵀV + εI + Sᵀ − S), Ψ = Λ⁻¹, monotone in the metric
    Λ = exp(log_metric), which is learned; ΛA + AᵀΛ − W_oᵀW_o/γ − ΛUUᵀΛ/γ = 2VᵀV + 2εI ≻ 0 is the matrix inequality that
    gives γ. Source: Revay, Wang & Manchester 2020, arXiv 2010.01732.

    Args:
        in_features: Entries of x, of any shape (flattened).
        features: n, entries of z.
        out_features: Entries of W_o z.
        gamma: γ > 0, in units of output per input.
        epsilon: ε > 0, which keeps the inequality strict and the operator well conditioned.

    Raises:
        InvalidArgument: One of them is out of range.
    """

    Settings = LipschitzDenseSettings

    def __init__(
        self, in_features: int, features: int, out_features: int, gamma: float = 1.0, *, epsilon: float = 0.01
    ) -> None:
        super().__init__(in_features, features)
        self.out_features = check_count("out_features", out_features)
        self.gamma = check_positive("gamma", gamma)
        self.epsilon = check_positive("epsilon", epsilon)
        scale = features**-0.5
        self.W_o = nn.Parameter(torch.empty(out_features, features).uniform_(-scale, scale))
        self.b_o = nn.Parameter(torch.zeros(out_features))
        self.V = nn.Parameter(torch.empty(features, features).uniform_(-scale, scale))
        self.S = nn.Parameter(torch.empty(features, features).uniform_(-scale, scale))
        self.log_metric = nn.Parameter(torch.zeros(features))

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> LipschitzDense:
        return cls(in_shape.numel(), settings.features, settings.out_features, settings.gamma, epsilon=settings.epsilon)

    @classmethod
    def example(cls) -> tuple[LipschitzDenseSettings, torch.Size]:
        return LipschitzDenseSettings(6, 2), torch.Size((3,))

    def settings(self) -> LipschitzDenseSettings:
        return LipschitzDenseSettings(self.features, self.out_features, self.gamma, self.epsilon)

    @property
    def gain(self) -> float:  # type: ignore[override]  # γ by another name
        return self.gamma

    @property
    def out_shape(self) -> torch.Size:  # type: ignore[override]  # it depends on the width
        return torch.Size((self.out_features,))

    @property
    def readout(self) -> tuple[Tensor, Tensor]:
        return self.W_o, self.b_o

    def read(self, z: Tensor) -> Tensor:
        return functional.linear(z, self.W_o, self.b_o)

    def operator(self) -> splitting.DenseOperator:
        with full_precision(self.U.device):
            return self._assemble()

    def _assemble(self) -> splitting.DenseOperator:
        metric = self.log_metric.exp()
        scaled = metric[:, None] * self.U
        gram = self.W_o.mT @ self.W_o + scaled @ scaled.mT
        inner = torch.addmm(self.S.mT - self.S + gram / (2 * self.gamma), self.V.mT, self.V)
        inner = inner + self.epsilon * torch.eye(self.features, dtype=gram.dtype, device=gram.device)
        return splitting.DenseOperator(inner / metric[:, None], metric=metric)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, features={self.features}, out_features={self.out_features}, "
            f"gamma={self.gamma:.4g}, epsilon={self.epsilon:.4g}"
        )
