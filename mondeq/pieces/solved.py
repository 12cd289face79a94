"""What layers share that solve something in `forward`: solver, tolerances, what happens to failures, who watches."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import splitting
from mondeq.pieces.base import Piece
from splitting import Monitor, OnFailure, check_options


class SolvedPiece(Piece):
    """A piece whose output is the solution of a problem.

    Args:
        solver: The method.
        tol: Relative residual at which a sample stops.
        max_steps: Steps after which a solve gives up.
        backward_tol: That of the backward solve; `tol` where it is None.
        on_failure: What a solve that gives up does: "warn", "raise" or "return".
        monitor: Called with ("forward" | "backward", Solution) after every solve.

    Raises:
        InvalidType: `solver` is none.
        InvalidArgument: A tolerance or number of steps is out of range.
    """

    def __init__(
        self,
        solver: splitting.Solver,
        tol: float,
        max_steps: int,
        backward_tol: float | None,
        on_failure: OnFailure,
        monitor: Monitor | None,
    ) -> None:
        super().__init__()
        self.solver, self.tol, self.max_steps = solver, tol, max_steps
        self.backward_tol = tol if backward_tol is None else backward_tol
        self.on_failure, self.monitor = on_failure, monitor
        check_options(solver, max_steps, on_failure, tol=tol, backward_tol=self.backward_tol)

    @property
    def options(self) -> dict[str, Any]:
        """What `splitting.equilibrium` is called with."""
        return {
            "tol": self.tol,
            "max_steps": self.max_steps,
            "backward_tol": self.backward_tol,
            "on_failure": self.on_failure,
            "monitor": self.monitor,
        }

    def forward(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        """The solutions for inputs, differentiable.

        Args:
            x: Inputs (batch, …).
            initial: States to start from, one per sample.

        Returns:
            What the piece makes of the solutions.
        """
        raise NotImplementedError  # a subclass solves something

    def tuned(self, solver: splitting.Solver) -> splitting.Solver:
        """A solver with its step tuned to the weights as they are, where its method has one.

        Args:
            solver: The method.

        Returns:
            The same method.
        """
        return solver

    def sharpen(self) -> None:
        self.monitor, self.on_failure = None, "warn"
