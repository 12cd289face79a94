"""Plain iteration z⁺ = z + β(T(z) − z) of the map T of which the solutions are fixed points."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType
from splitting.problems import Problem
from splitting.solvers.base import Iteration, Solver, State


@dataclass(frozen=True)
class Iterate(Solver):
    """Damped iteration of any problem's map: f for a FixedPoint, z ↦ σ(Wz + c) for an Inclusion.

    It converges where T contracts; a smaller β helps where T turns more than it shrinks (Krasnosel'skii 1955, Mann
    1953). A monotone inclusion has methods that always converge. There is no step α.

    Args:
        damping: β in (0, 1]; 1 is plain (Picard) iteration.

    Raises:
        InvalidType: If damping is no number.
        InvalidArgument: If damping lies outside (0, 1].
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.damping, bool) or not isinstance(self.damping, (int, float)):
            raise InvalidType(f"`damping` must be a number, got {self.damping!r}")
        if not 0 < self.damping <= 1:
            raise InvalidArgument(f"`damping` must lie in (0, 1], got {self.damping}")

    def bind(self, problem: Problem) -> Iteration:
        return _Iterate(problem, self.damping)


class _Iterate(Iteration):
    def __init__(self, problem: Problem, damping: float) -> None:
        self.problem, self.damping = problem, damping

    def init(self, guess: Tensor | None) -> Tensor:
        return self.problem.like if guess is None else guess

    def step(self, carry: Tensor) -> State:
        image = self.problem.map(carry)
        following = image if self.damping == 1 else carry.lerp(image, self.damping)
        return State(following, *self.problem.judged(carry, image))
