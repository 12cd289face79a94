"""Problems whose solution is known before anything is solved."""

from dataclasses import dataclass

import torch
from torch import Tensor

import splitting
from tests.registry import ACTIVATIONS, SMALL_OPERATORS


@dataclass(frozen=True)
class Known:
    """A problem, its solution in float64, and how far in ‖·‖_Λ rounding c may have moved it, per sample."""

    problem: splitting.Inclusion
    answer: Tensor
    uncertainty: Tensor

    def distance(self, z: Tensor) -> Tensor:
        """‖z − z*‖_Λ per sample, in float64."""
        return self.problem.operator.double().norm(z.double() - self.answer)


def known(operator: str, activation: str, dtype: torch.dtype = torch.float64, batch: int = 3) -> Known:
    """With y chosen first, z = σ(y) is the equilibrium for c = y − z + A z, because then y = (I − A) z + c."""
    A = SMALL_OPERATORS[operator](dtype)
    prox = ACTIVATIONS[activation](tuple(A.state_shape), dtype)
    wide, sigma = A.double(), prox.rebind(*(t.double() for t in prox.tensors))
    y = 2 * torch.randn(batch, *A.state_shape, dtype=torch.float64)
    z = sigma(y)
    source = y - z + wide.apply(z)
    problem = splitting.Inclusion(A, source.to(dtype), prox)
    moved = wide.norm(source - problem.source) + 1e-15 * ((1 + A.frobenius) * wide.norm(z) + wide.norm(y))
    return Known(problem, z, moved / A.strong_monotonicity)
