"""Forward–backward splitting: z⁺ = prox_{αf}(z − α(A z − c)), converging for 0 < α < 2m/L²."""

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
class ForwardBackward(SteppedSolver):
    """Forward–backward splitting: one product with A per step, contraction √(1 − 2αm + α²L²) (Lions & Mercier 1979).

    step: 0 < α < 2m/L²; "auto" is m/L², which minimises the factor. No resolvent is needed, but L/m counts twice:
    slow where L ≫ m.
    """

    def bind(self, problem: Problem) -> Iteration:
        problem = require_inclusion(problem, type(self).__name__)
        require_monotone(problem.operator, "forward–backward")
        m, lipschitz = problem.operator.strong_monotonicity, problem.operator.lipschitz
        alpha = m / lipschitz**2 if self.step == "auto" else float(self.step)
        require_below(alpha, 2 * m / lipschitz**2, f"forward–backward (2m/L² with m={m:.4g}, L={lipschitz:.4g})")
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
