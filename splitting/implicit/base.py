"""What every differentiated solve shares: its options, and the choice of how derivatives are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType
from splitting.loop import OnFailure, Solution, announce, run
from splitting.problems import Problem
from splitting.solvers import Solver

Monitor = Callable[[str, Solution], None]
"""Who is told of every solve: ("forward" | "backward", solution) ↦ nothing. It must not change the value."""


@dataclass(frozen=True, eq=False)
class Options:
    """How a solve and those of its derivatives are done.

    Attributes:
        solver: The method.
        tol: The tolerance of the solve.
        max_steps: The most steps that each solve takes.
        backward_tol: The tolerance of the solves of its derivatives.
        initial: A guess of the solution, or None.
        on_failure: "raise", "warn" or "return".
        monitor: What is called after every solve, or None.
        role: "forward" or "backward", for messages and monitor.
    """

    solver: Solver
    tol: float
    max_steps: int
    backward_tol: float
    initial: Tensor | None
    on_failure: OnFailure
    monitor: Monitor | None
    role: str = "forward"

    def solve(self, problem: Problem) -> Tensor:
        """The solution of a frozen problem, as a value; announced and monitored.

        Args:
            problem: What to solve.

        Returns:
            z*, (batch, *state_shape), without a graph.

        Raises:
            NotConverged: If a sample misses tol and on_failure is "raise".
            InvalidArgument: If the monitor changes the solution.
        """
        with torch.no_grad():
            solution = run(problem, self.solver, self.tol, self.max_steps, self.initial)
        announce(solution, self.on_failure, f"{self.role} pass: ")
        if self.monitor is not None:
            written = solution.value._version
            self.monitor(self.role, solution)
            if solution.value._version != written:
                raise InvalidArgument("`monitor` has changed the value of the solution; let it change a copy")
        return solution.value

    def of_adjoint(self) -> Options:
        """The options of the linear problem that differentiating leads to.

        Returns:
            These with the backward tolerance and role, and without a guess.
        """
        return replace(self, tol=self.backward_tol, initial=None, role="backward")


@singledispatch
def differentiable(problem: Problem, options: Options) -> Tensor:
    """The solution of a problem, with the derivatives of the solution map. A kind of problem registers its own way.

    Args:
        problem: What to solve.
        options: How to solve it and what its derivatives lead to.

    Returns:
        z*, (batch, *state_shape).

    Raises:
        InvalidType: If nobody has registered a way for problems of this kind.
    """
    raise InvalidType(f"`problem` is a {type(problem).__name__}, whose solutions nobody has said how to differentiate")
