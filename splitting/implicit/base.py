"""What every differentiated solve shares: its options, and the choice of how derivatives are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType
from splitting.problems import Problem
from splitting.solve import OnFailure, Solution, announce, run
from splitting.solvers import Solver

Monitor = Callable[[str, Solution], None]


@dataclass(frozen=True, eq=False)
class Options:
    """How a solve and those of its derivatives are done. role: "forward" or "backward", for messages and monitor."""

    solver: Solver
    tol: float
    max_steps: int
    backward_tol: float
    initial: Tensor | None
    on_failure: OnFailure
    monitor: Monitor | None
    role: str = "forward"

    def solve(self, problem: Problem) -> Tensor:
        """The solution of a frozen problem, as a value; announced and monitored."""
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
        """Those of the linear problem that differentiating leads to."""
        return replace(self, tol=self.backward_tol, initial=None, role="backward")


@singledispatch
def differentiable(problem: Problem, options: Options) -> Tensor:
    """The solution of `problem`, with the derivatives of the solution map. A kind of problem registers its own way."""
    raise InvalidType(f"`problem` is a {type(problem).__name__}, whose solutions nobody has said how to differentiate")
