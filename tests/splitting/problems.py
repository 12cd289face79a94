"""Problems whose solution is known before anything is solved, and problems of every scale."""

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

import splitting
from tests.registry import ACTIVATIONS, DTYPES, SMALL_OPERATORS


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


def dense(operator: splitting.Operator) -> Tensor:
    """The matrix of A acting on flattened states, in float64, read off its columns."""
    exact, n = operator.double(), operator.state_shape.numel()
    return exact.apply(torch.eye(n, dtype=torch.float64).reshape(n, *operator.state_shape)).flatten(1).mT


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log10(low), math.log10(high)).map(lambda exponent: 10**exponent)


def scaled_problem(
    seed: int, gain: float, skew: float, m: float, spread: float, activation: str, dtype: torch.dtype
) -> splitting.Inclusion:
    """Two samples of four unknowns with ΛA = mI + FᵀF + G − Gᵀ, the entries of Λ within 10^±spread (0: Λ = I)."""
    torch.manual_seed(seed)
    F, G = (size * torch.randn(4, 4, dtype=torch.float64) for size in (gain, skew))
    matrix, metric = m * torch.eye(4, dtype=torch.float64) + F.mT @ F + G - G.mT, None
    if spread > 0:
        metric = torch.logspace(-spread, spread, 4, dtype=torch.float64).to(dtype)
        matrix = matrix / metric[:, None].double()
    operator = splitting.DenseOperator(matrix.to(dtype), metric=metric)
    return splitting.Inclusion(operator, torch.randn(2, 4, dtype=dtype), ACTIVATIONS[activation]((4,), dtype))


# F and G from 1e-3 to 1e3, m from 1e-3 to 1e2, every activation, with a metric and without, in both dtypes.
scaled_problems = st.builds(
    scaled_problem,
    seed=st.integers(0, 2**16),
    gain=log_uniform(1e-3, 1e3),
    skew=log_uniform(1e-3, 1e3),
    m=log_uniform(1e-3, 1e2),
    spread=st.sampled_from([0.0, 0.5, 2.0]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    dtype=st.sampled_from(DTYPES),
)
