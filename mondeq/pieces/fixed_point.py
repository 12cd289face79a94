"""General deep equilibrium layers: z* = f(z*, x) for any cell f. They solve and learn; nothing is proved of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import splitting
from mondeq.norms import Norm
from mondeq.pieces.base import Proof, Unproved
from mondeq.pieces.solved import SolvedPiece
from splitting import InvalidArgument, InvalidType, Monitor, OnFailure


class Equilibrium(SolvedPiece):
    """z with z = f(z, x), for any torch.nn.Module `cell` f (Bai, Kolter & Koltun 2019).

    Unlike that of EquilibriumLayer, this fixed point need not exist nor be the only one: solutions carry the error
    bound inf, and no network with such a layer can be certified. It is not saved by `mondeq.save` either, which knows
    no cells. Regularise with `splitting.jacobian_norm(layer.problem(x), z)`.

    Args:
        cell: (z, x) ↦ states like z, without regard to other samples of the batch.
        state_shape: The shape of one state z.
        solver: Broyden() by default; Iterate(…) and Anderson(Iterate()) work too.
        tol: Relative residual ‖f(z, x) − z‖/‖z‖ at which a sample stops.
        max_steps: Steps after which a solve gives up.
        backward_tol: That of the backward solve; `tol` by default.
        gradient: splitting.Implicit() by default, or a cheaper one.
        on_failure: What a solve that gives up does: "warn", "raise" or "return".
        monitor: Called with ("forward" | "backward", Solution) after every solve.

    Raises:
        InvalidType: `cell` or `solver` is none.
        InvalidArgument: A tolerance or number of steps is out of range.
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
        if not isinstance(cell, nn.Module):
            raise InvalidType(f"`cell` must be a torch.nn.Module of (z, x), got {type(cell).__name__}")
        solver = splitting.Broyden() if solver is None else solver
        super().__init__(solver, tol, max_steps, backward_tol, on_failure, monitor)
        self.cell, self.state_shape, self.gradient = cell, torch.Size(state_shape), gradient

    def problem(self, x: Tensor) -> splitting.FixedPoint:
        """The fixed point that is solved for inputs; methods start at 0.

        Args:
            x: Inputs (batch, …).

        Returns:
            z = f(z, x).

        Raises:
            InvalidType: `x` is no tensor.
        """
        if not isinstance(x, Tensor):
            raise InvalidType(f"`x` must be a tensor, got {type(x).__name__}; convert it with torch.as_tensor")
        return splitting.FixedPoint(self.cell, x, x.new_zeros(len(x), *self.state_shape))

    def forward(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        """The fixed points of inputs, differentiable in the inputs and the weights of the cell.

        Args:
            x: Inputs (batch, …).
            initial: States to start from, one per sample.

        Returns:
            z, (batch, *state_shape).

        Raises:
            InvalidType: Inputs or states are no such tensors.
            InvalidArgument: States have another shape, or the cell gives other shapes than it takes.
            NotConverged: A sample misses the tolerance and `on_failure` is "raise".
        """
        return splitting.equilibrium(
            self.problem(x), self.solver, initial=initial, gradient=self.gradient, **self.options
        )

    def solve(self, x: Tensor, *, initial: Tensor | None = None) -> splitting.Solution:
        """The same points without a graph, with diagnostics per sample; their `error_bound` is inf.

        Args:
            x: Inputs (batch, …).
            initial: States to start from, one per sample.

        Returns:
            The solution.

        Raises:
            InvalidType: Inputs or states are no such tensors.
            InvalidArgument: States have another shape, or the cell gives other shapes than it takes.
            NotConverged: A sample misses the tolerance and `on_failure` is "raise".
        """
        return splitting.solve(
            self.problem(x),
            self.solver,
            tol=self.tol,
            max_steps=self.max_steps,
            initial=initial,
            on_failure=self.on_failure,
        )

    # -- a piece of a network ----------------------------------------------------------------------------------------

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> Equilibrium:
        raise InvalidArgument("has a cell, which no file can hold; save its state_dict instead")

    def settings(self) -> Any:
        raise InvalidArgument("has a cell, which no file can hold; save its state_dict instead")

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        return self.state_shape

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        raise Unproved("is a general fixed point, of which nothing is proved; use an EquilibriumLayer")
