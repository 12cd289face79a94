"""The equilibrium layer: x ↦ z*, solved by splitting, differentiated implicitly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import splitting
from mondeq.parameterizations import Parameterization
from splitting.errors import InvalidType
from splitting.implicit import Monitor
from splitting.operators.base import is_recorded, is_transformed
from splitting.solve import OnFailure, check_options


class EquilibriumLayer(nn.Module):
    """z with z = σ(Wz + Ux + b), for the W, U, b that `linear` owns.

    activation, solver, tol, max_steps, backward_tol, on_failure: as in `splitting.equilibrium`. In training mode the
    operator is built at every call. In evaluation mode it is built, its resolvent inverted and its step tuned once
    per set of weights: kept until a weight's value, dtype or device changes. monitor is called with
    ("forward" | "backward", Solution) after every solve.
    """

    def __init__(
        self,
        linear: Parameterization,
        activation: splitting.Activation | None = None,
        solver: splitting.Solver | None = None,
        tol: float = 1e-5,
        max_steps: int = 300,
        *,
        backward_tol: float | None = None,
        on_failure: OnFailure = "warn",
        monitor: Monitor | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(linear, Parameterization):
            raise InvalidType(f"`linear` must be a Parameterization such as mondeq.Dense, got {type(linear).__name__}")
        activation = splitting.ReLU() if activation is None else activation
        if not isinstance(activation, splitting.Activation):
            raise InvalidType(f"`activation` must be one such as splitting.ReLU(), got {activation!r}")
        self.linear = linear
        self.activation = activation
        self.solver = splitting.PeacemanRachford() if solver is None else solver
        self.tol, self.max_steps = tol, max_steps
        self.backward_tol = tol if backward_tol is None else backward_tol
        self.on_failure, self.monitor = on_failure, monitor
        check_options(self.solver, max_steps, on_failure, tol=tol, backward_tol=self.backward_tol)
        self._kept: _Kept | None = None

    def forward(self, x: Tensor) -> Tensor:
        """z (batch, *state_shape) for x (batch, …), differentiable in x and the weights.

        Computes in the dtype of the weights, also inside `torch.autocast`.
        """
        with torch.autocast(self._device.type, enabled=False):
            operator, solver = self._operator()
            return splitting.equilibrium(
                splitting.Inclusion(operator, self.linear.source(x), self.prox),
                solver,
                tol=self.tol,
                max_steps=self.max_steps,
                backward_tol=self.backward_tol,
                on_failure=self.on_failure,
                monitor=self.monitor,
            )

    @torch.no_grad()
    def solve(
        self, x: Tensor, *, tol: float | None = None, max_steps: int | None = None, initial: Tensor | None = None
    ) -> splitting.Solution:
        """The same point without a graph, with per-sample diagnostics; `initial` is a state to start from."""
        with torch.autocast(self._device.type, enabled=False):
            operator, solver = self._operator()
            return splitting.solve(
                splitting.Inclusion(operator, self.linear.source(x), self.prox),
                solver,
                tol=self.tol if tol is None else tol,
                max_steps=self.max_steps if max_steps is None else max_steps,
                initial=initial,
                on_failure=self.on_failure,
            )

    @property
    def prox(self) -> splitting.Activation:
        """The activation as the equilibrium has it: that of a convolution is zero on the border."""
        return self.linear.confined(self.activation)

    @property
    def _device(self) -> torch.device:
        return next(self.linear.parameters()).device

    def _operator(self) -> tuple[splitting.Operator, splitting.Solver]:
        weights = [*self.linear.parameters(), *self.linear.buffers()]
        if self.training or any(map(is_transformed, weights)):
            return self.linear.operator(), self.solver
        if self._kept is None or not self._kept.matches(weights, self.solver):
            # What is kept must serve later calls outside inference mode too.
            with torch.inference_mode(False), torch.no_grad():
                operator = self.linear.operator()
                self._kept = _Kept(
                    [w.detach().clone() for w in weights], self.solver, operator, self.solver.tuned(operator)
                )
        operator = self._kept.operator
        if is_recorded(*weights):
            operator = operator.rebind(*self.linear.operator().tensors)
        return operator, self._kept.tuned

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


@dataclass(frozen=True)
class _Kept:
    """What evaluation keeps between calls, and the weights it is valid for.

    Values are compared, not version counters: weights changed through `.data` count as changed too.
    """

    weights: list[Tensor]
    solver: splitting.Solver
    operator: splitting.Operator
    tuned: splitting.Solver

    def matches(self, weights: list[Tensor], solver: splitting.Solver) -> bool:
        if self.solver != solver or len(self.weights) != len(weights):
            return False
        same_kind = all(k.dtype == w.dtype and k.device == w.device for k, w in zip(self.weights, weights, strict=True))
        return same_kind and all(map(torch.equal, self.weights, weights))
