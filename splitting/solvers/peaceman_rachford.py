"""Peaceman–Rachford and Douglas–Rachford splitting, on the reflected variable t = 2z − u.

w = V(t + αc), u⁺ = 2w − t = (2V − I) t + 2αVc, z⁺ = prox_{αf}(u⁺), t⁺ = 2z⁺ − u⁺, with V = (I + αA)⁻¹.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from splitting.inclusion import Inclusion
from splitting.operators import Operator
from splitting.scratch import lend
from splitting.solvers.base import Iteration, State, SteppedSolver
from splitting.steps import best_step


@dataclass(frozen=True)
class PeacemanRachford(SteppedSolver):
    """Peaceman–Rachford splitting: one resolvent per step, convergent for every α > 0 under strong monotonicity.

    Contraction factor ‖(I − αA)(I + αA)⁻¹‖_Λ ≤ √(1 − 4αm/(1 + 2αm + α²L²)) (Lions & Mercier 1979; Winston & Kolter
    2020). step: "auto" is the reciprocal of A's root-mean-square singular value; `tuned` replaces it by the
    minimiser of the exact factor.
    """

    def bind(self, problem: Inclusion) -> Iteration:
        alpha = problem.operator.typical_step if self.step == "auto" else float(self.step)
        return _PeacemanRachford(problem, alpha)

    def tuned(self, operator: Operator) -> Self:
        return replace(self, step=best_step(operator)) if self.step == "auto" else self


@dataclass(frozen=True)
class DouglasRachford(PeacemanRachford):
    """Douglas–Rachford splitting: the average of Peaceman–Rachford with the identity.

    Half the speed at best where Peaceman–Rachford contracts well; it converges for every α > 0 even if A is only
    monotone. Steps as in PeacemanRachford.
    """

    def bind(self, problem: Inclusion) -> Iteration:
        return _Averaged(super().bind(problem))


class _PeacemanRachford(Iteration):
    """t and u take turns in two tensors, z has a third: a step allocates nothing of the size of a state.

    Those of t and u are lent: a carry is valid as long as its iteration lives.
    """

    def __init__(self, problem: Inclusion, alpha: float) -> None:
        self.problem, self.alpha = problem, alpha
        self.resolvent = problem.operator.resolvent(alpha)
        # 2αVc = α((2V − I)c + c)
        self.shift = self.resolvent.reflect(problem.source, problem.source, lend(self, problem.source)).mul_(alpha)
        # r = (A − I/α)(z⁺ − w) and z⁺ − w = (t⁺ − t)/2
        self.rate = problem.operator.distance_bound(1 / alpha) / 2
        self.z = torch.empty_like(self.shift)
        self.spare = lend(self, self.shift)

    def init(self, guess: Tensor | None) -> Tensor:
        if guess is None:
            # The state after one step from t = 0, which needs no product.
            z = self.problem.prox.prox(self.shift, self.alpha, self.z)
            return torch.lerp(self.shift, z, 2.0, out=lend(self, self.shift))
        return guess - self.alpha * (self.problem.source - self.problem.operator.apply(guess))

    def step(self, carry: Tensor) -> State:
        u = self.resolvent.reflect(carry, self.shift, self.spare)
        z = self.problem.prox.prox(u, self.alpha, self.z)
        following = torch.lerp(u, z, 2.0, out=u)
        self.spare = carry.sub_(following)
        return State(following, z, self.rate * self.problem.operator.norm(self.spare))


class _Averaged(Iteration):
    """(t + T(t))/2 for the iteration map T of another method."""

    def __init__(self, inner: Iteration) -> None:
        self.inner = inner

    def init(self, guess: Tensor | None) -> Tensor:
        return self.inner.init(guess)

    def step(self, carry: Tensor) -> State:
        state = self.inner.step(carry.clone())
        return state._replace(carry=carry.lerp_(state.carry, 0.5))
