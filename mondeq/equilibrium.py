"""General deep equilibrium layers: z* = f(z*, x) for any cell f. They solve and learn; nothing is proved of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import splitting
from splitting.errors import InvalidType
from splitting.implicit import Monitor
from splitting.solve import OnFailure, check_options


class Equilibrium(nn.Module):
    """z with z = f(z, x), for any torch.nn.Module `cell` f (Bai, Kolter & Koltun 2019).

    Unlike that of EquilibriumLayer, this fixed point need not exist nor be the only one: solutions carry the error
    bound inf, and no network with such a layer can be certified.

    cell: (z, x) ↦ states like z, without regard to other samples of the batch. state_shape: of one state z. solver:
    Broyden() by default; Iterate(…) and Anderson(Iterate()) work too. tol: relative residual ‖f(z, x) − z‖/‖z‖ at which
    a sample stops. gradient: splitting.Implicit() by default, or a cheaper one. All else as in `splitting.equilibrium`.
    Regularise with `splitting.jacobian_norm(layer.problem(x), z)`. Raises InvalidType, InvalidArgument.
    """

    def __init__(
        self,
        cell: nn.Module,
        state_shape: Sequence[int],
        solver: splitting.Solver | None = None,
        tol: float = 1e-3,
        max_steps: int = 50,
        *,
        backward_tol: float | None = None,
        gradient: splitting.Gradient | None = None,
        on_failure: OnFailure = "warn",
        monitor: Monitor | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(cell, nn.Module):
            raise InvalidType(f"`cell` must be a torch.nn.Module of (z, x), got {type(cell).__name__}")
        self.cell, self.state_shape = cell, torch.Size(state_shape)
        self.solver = splitting.Broyden() if solver is None else solver
        self.tol, self.max_steps = tol, max_steps
        self.backward_tol = tol if backward_tol is None else backward_tol
        self.gradient, self.on_failure, self.monitor = gradient, on_failure, monitor
        check_options(self.solver, max_steps, on_failure, tol=tol, backward_tol=self.backward_tol)

    def problem(self, x: Tensor) -> splitting.FixedPoint:
        """The fixed point that is solved for inputs x (batch, …); methods start at 0."""
        if not isinstance(x, Tensor):
            raise InvalidType(f"`x` must be a tensor, got {type(x).__name__}; convert it with torch.as_tensor")
        return splitting.FixedPoint(self.cell, x, x.new_zeros(len(x), *self.state_shape))

    def forward(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        """z (batch, *state_shape), differentiable in x and the weights of the cell. initial: states to start from."""
        return splitting.equilibrium(
            self.problem(x),
            self.solver,
            tol=self.tol,
            max_steps=self.max_steps,
            backward_tol=self.backward_tol,
            initial=initial,
            on_failure=self.on_failure,
            monitor=self.monitor,
            gradient=self.gradient,
        )

    def solve(self, x: Tensor, *, initial: Tensor | None = None) -> splitting.Solution:
        """The same point without a graph, with diagnostics per sample; its `error_bound` is inf."""
        return splitting.solve(
            self.problem(x),
            self.solver,
            tol=self.tol,
            max_steps=self.max_steps,
            initial=initial,
            on_failure=self.on_failure,
        )
