"""Forward–backward splitting: z⁺ = prox_{αf}(z − α(A z − c)), converging for 0 < α < 2m/L²."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from splitting.operators import Operator
from splitting.problems import Inclusion
from splitting.solvers.base import Iteration, State, SteppedSolver, hidden_share, proved_monotonicity


@dataclass(frozen=True)
class ForwardBackward(SteppedSolver):
    """Forward–backward splitting: one product with A per step and no resolvent.

    It converges for 0 < α < 2m/L² where m > 0, with contraction factor √(1 − 2αm + α²L²) (Lions & Mercier 1979). L/m
    counts twice: slow where L ≫ m.

    Args:
        step: α, or "auto" for m/L², which minimises the factor.

    Raises:
        InvalidType: If step is neither a number nor "auto".
        InvalidArgument: If step is not finite and > 0.
    """

    theorem: ClassVar[str] = "0 < α < 2m/L²"

    def admissible(self, operator: Operator) -> tuple[float, float]:
        m = proved_monotonicity(operator, type(self).__name__)
        # In two divisions, since L² may leave the numbers where 2m/L² is an ordinary one.
        return 0.0, 2 * m / operator.lipschitz / operator.lipschitz

    def automatic_step(self, operator: Operator) -> float:
        _, limit = self.admissible(operator)
        return limit / 2

    def _iteration(self, problem: Inclusion, alpha: float) -> Iteration:
        return _ForwardBackward(problem, alpha)


class _ForwardBackward(Iteration):
    def __init__(self, problem: Inclusion, alpha: float) -> None:
        self.problem, self.alpha = problem, alpha
        self.prox = problem.prox.proximal_at(alpha)
        self.rate = problem.operator.distance_bound(1 / alpha)
        self.rounding = hidden_share(problem.operator, 1 / (alpha * problem.operator.norm_bound))

    def init(self, guess: Tensor | None) -> Tensor:
        return self.problem.prox(self.problem.source) if guess is None else guess

    def step(self, carry: Tensor) -> State:
        v = carry - self.alpha * (self.problem.operator.apply(carry) - self.problem.source)
        z = self.prox(v, None)
        # r = A z − c + (v − z)/α = (A − I/α)(z − carry)
        return State(z, z, self.rate * self.problem.operator.norm(z - carry))
