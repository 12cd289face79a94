"""Peaceman–Rachford and Douglas–Rachford splitting, on the shifted reflected variable s = 2z − u + αc.

p = (2V − I) s, u⁺ = p + αc, z⁺ = prox_{αf}(u⁺), s⁺ = 2z⁺ − u⁺ + αc = 2z⁺ − p, with V = (I + αA)⁻¹. Adding αc before
the reflection and after it, instead of 2αVc after it, makes a resolvent per step all that a solve costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from splitting.operators import Operator
from splitting.problems import Inclusion
from splitting.scratch import recycled
from splitting.solvers.base import Iteration, State, SteppedSolver, hidden_share
from splitting.steps import best_step


@dataclass(frozen=True)
class PeacemanRachford(SteppedSolver):
    """Peaceman–Rachford splitting: one resolvent (I + αA)⁻¹ per step.

    It converges for every α > 0 where m > 0, with contraction factor ‖(I − αA)(I + αA)⁻¹‖_Λ ≤
    √(1 − 4αm/(1 + 2αm + α²L²)) (Lions & Mercier 1979; Winston & Kolter 2020).

    Args:
        step: α, or "auto" for the reciprocal of A's root-mean-square singular value; `tuned` replaces that by nearly
            the minimiser of the exact factor (`splitting.best_step`).

    Raises:
        InvalidType: If step is neither a number nor "auto".
        InvalidArgument: If step is not finite and > 0.
    """

    theorem: ClassVar[str] = "0 < α"

    def admissible(self, operator: Operator) -> tuple[float, float]:
        return 0.0, math.inf

    def automatic_step(self, operator: Operator) -> float:
        return operator.typical_step

    def _iteration(self, problem: Inclusion, alpha: float) -> Iteration:
        return _PeacemanRachford(problem, alpha)

    def tuned(self, operator: Operator) -> Self:
        return replace(self, step=best_step(operator)) if self.step == "auto" else self


@dataclass(frozen=True)
class DouglasRachford(PeacemanRachford):
    """Douglas–Rachford splitting: the average of Peaceman–Rachford with the identity.

    Half the speed at best where Peaceman–Rachford contracts well; it converges for every α > 0 even if A is only
    monotone.

    Args:
        step: α, as in PeacemanRachford.

    Raises:
        InvalidType: If step is neither a number nor "auto".
        InvalidArgument: If step is not finite and > 0.
    """

    def _iteration(self, problem: Inclusion, alpha: float) -> Iteration:
        return _Averaged(super()._iteration(problem, alpha))


class _PeacemanRachford(Iteration):
    def __init__(self, problem: Inclusion, alpha: float) -> None:
        self.problem, self.alpha = problem, alpha
        self.prox = problem.prox.proximal_at(alpha)
        self.resolvent = problem.operator.resolvent(alpha)
        source = problem.operator.arranged(problem.source)
        self.shift = torch.mul(source, alpha, out=recycled(source))
        # r = (A − I/α)(z⁺ − Vs) and z⁺ − Vs = (s⁺ − s)/2
        self.rate = problem.operator.distance_bound(1 / alpha) / 2
        # ‖s‖ ≤ ‖z‖ + α(‖A‖ ‖z‖ + ‖c‖), and a change of s counts (‖A‖ + 1/α)/2 times.
        length = alpha * problem.operator.norm_bound
        self.rounding = hidden_share(problem.operator, length + 1 / length)

    def init(self, guess: Tensor | None) -> Tensor:
        if guess is None:
            # Where A = I/α, the solution is prox_{αf}(αc), with u = αc and s = 2z.
            return self.prox(self.shift, recycled(self.shift)).mul_(2)
        # u = z + α(c − Az), so s = z + αAz.
        return torch.add(guess, self.problem.operator.apply(guess), alpha=self.alpha)

    def step(self, carry: Tensor) -> State:
        p = self.resolvent.reflect(carry)
        u = torch.add(p, self.shift, out=recycled(p))
        z = self.prox(u, u)
        following = torch.lerp(p, z, 2.0, out=p)
        return State(following, z, self.rate * self.problem.operator.norm(carry.sub_(following)))


class _Averaged(Iteration):
    """(t + T(t))/2 for the iteration map T of another method."""

    def __init__(self, inner: Iteration) -> None:
        self.inner = inner
        self.rounding = inner.rounding

    def init(self, guess: Tensor | None) -> Tensor:
        return self.inner.init(guess)

    def step(self, carry: Tensor) -> State:
        state = self.inner.step(carry.clone())
        return state._replace(carry=carry.lerp_(state.carry, 0.5))
