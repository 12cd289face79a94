"""Forward–backward–forward (Tseng 2000): y = prox_{αf}(z − α(A z − c)), z⁺ = y − α(A y − A z), for 0 < α < 1/L."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from splitting.problems import Inclusion, Problem
from splitting.solvers.base import (
    Iteration,
    State,
    SteppedSolver,
    hidden_share,
    require_below,
    require_inclusion,
    require_monotone,
)


@dataclass(frozen=True)
class ForwardBackwardForward(SteppedSolver):
    """Tseng's method: two products with A per step, no resolvent, and steps of order 1/L instead of m/L².

    step: 0 < α < 1/L; "auto" is 0.9/L. The right choice where inverting is impossible and A is far from symmetric.
    """

    def bind(self, problem: Problem) -> Iteration:
        problem = require_inclusion(problem, type(self).__name__)
        require_monotone(problem.operator, "forward–backward–forward")
        lipschitz = problem.operator.lipschitz
        alpha = 0.9 / lipschitz if self.step == "auto" else float(self.step)
        require_below(alpha, 1 / lipschitz, f"forward–backward–forward (1/L with L={lipschitz:.4g})")
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
