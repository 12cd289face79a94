"""Forward–backward–forward (Tseng 2000): y = prox_{αf}(z − α(A z − c)), z⁺ = y − α(A y − A z), for 0 < α < 1/L."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from splitting.operators import Operator
from splitting.problems import Inclusion
from splitting.solvers.base import Iteration, State, SteppedSolver, hidden_share, proved_monotonicity


@dataclass(frozen=True)
class ForwardBackwardForward(SteppedSolver):
    """Tseng's method: two products with A per step and no resolvent.

    It converges for 0 < α < 1/L where m > 0 (Tseng 2000): steps of order 1/L instead of the m/L² of forward–backward.
    The right choice where inverting is impossible and A is far from symmetric.

    Args:
        step: α, or "auto" for 0.9/L.

    Raises:
        InvalidType: If step is neither a number nor "auto".
        InvalidArgument: If step is not finite and > 0.
    """

    theorem: ClassVar[str] = "0 < α < 1/L"

    def admissible(self, operator: Operator) -> tuple[float, float]:
        proved_monotonicity(operator, type(self).__name__)
        return 0.0, 1 / operator.lipschitz

    def automatic_step(self, operator: Operator) -> float:
        _, limit = self.admissible(operator)
        return 0.9 * limit

    def _iteration(self, problem: Inclusion, alpha: float) -> Iteration:
        return _ForwardBackwardForward(problem, alpha)


class _ForwardBackwardForward(Iteration):
    def __init__(self, problem: Inclusion, alpha: float) -> None:
        self.problem, self.alpha = problem, alpha
        self.prox = problem.prox.proximal_at(alpha)
        self.rounding = hidden_share(problem.operator, 1 / (alpha * problem.operator.norm_bound))

    def init(self, guess: Tensor | None) -> Tensor:
        return self.problem.prox(self.problem.source) if guess is None else guess

    def step(self, carry: Tensor) -> State:
        operator, alpha = self.problem.operator, self.alpha
        forward = operator.apply(carry)
        y = self.prox(carry - alpha * (forward - self.problem.source), None)
        change = operator.apply(y) - forward
        # r = A y − c + s with s = (carry − y)/α − (A carry − c)
        gap = operator.norm(change + (carry - y) / alpha)
        return State(y - alpha * change, y, gap)
