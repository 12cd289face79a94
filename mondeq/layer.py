"""The equilibrium layer: x ↦ z*, solved by splitting, differentiated implicitly."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import splitting
from mondeq.parameterizations import Parameterization
from splitting.context import full_precision, is_recorded, is_transformed, uncompiled
from splitting.derived import Derived
from splitting.errors import InvalidType
from splitting.implicit import Monitor
from splitting.solve import OnFailure, check_options


class EquilibriumLayer(nn.Module):
    """z with z = σ(Wz + Ux + b), for the W, U, b that `linear` owns.

    activation, solver, tol, max_steps, backward_tol, on_failure: as in `splitting.equilibrium`. In training mode the
    operator is built at every call. In evaluation mode it is built, its resolvent inverted and its step tuned once:
    kept until a value, dtype or device of a weight, or any other attribute of `linear`, changes. monitor is called with
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

    @uncompiled
    def forward(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        """z (batch, *state_shape) for x (batch, …), differentiable in x and the weights.

        initial: states to start from, one per sample; no gradient flows to them. Computes in the dtype of the weights,
        also inside `torch.autocast`.
        """
        with full_precision(_device(x)):
            operator, solver = self._operator()
            return splitting.equilibrium(
                splitting.Inclusion(operator, self.linear.source(x), self.prox),
                solver,
                tol=self.tol,
                max_steps=self.max_steps,
                backward_tol=self.backward_tol,
                initial=initial,
                on_failure=self.on_failure,
                monitor=self.monitor,
            )

    @torch.no_grad()
    def solve(
        self, x: Tensor, *, tol: float | None = None, max_steps: int | None = None, initial: Tensor | None = None
    ) -> splitting.Solution:
        """The same point without a graph, with per-sample diagnostics; `initial` is a state to start from."""
        with full_precision(_device(x)):
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

    def _operator(self) -> tuple[splitting.Operator, splitting.Solver]:
        tensors, settings = _ingredients(self.linear)
        if self.training or any(map(is_transformed, tensors.values())):
            return self.linear.operator(), self.solver
        if self._kept is None or not self._kept.fits(tensors, settings, self.solver):
            # What is kept must serve later calls outside inference mode too.
            with torch.inference_mode(False), torch.no_grad():
                self._kept = _Kept.of(self.linear, tensors, settings, self.solver)
        operator = self._kept.operator
        if is_recorded(*tensors.values()):
            operator = operator.rebind(*self.linear.operator().tensors)
        return operator, self._kept.tuned

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


@dataclass(frozen=True)
class _Kept:
    """What evaluation keeps between calls, and what it was made of."""

    tensors: Derived
    names: tuple[str, ...]
    settings: dict[str, Any] | None  # None where they cannot be copied: then nothing tells whether they changed
    solver: splitting.Solver
    operator: splitting.Operator
    tuned: splitting.Solver

    @staticmethod
    def of(
        linear: Parameterization, tensors: dict[str, Tensor], settings: dict[str, Any], solver: splitting.Solver
    ) -> _Kept:
        try:
            copied = copy.deepcopy(settings)
        except Exception:  # whatever a stranger's attributes raise
            copied = None
        # The operator has copies of its own values too, which the comparison of the ingredients makes needless.
        operator = linear.operator().snapshot()
        return _Kept(Derived(list(tensors.values())), tuple(tensors), copied, solver, operator, solver.tuned(operator))

    def fits(self, tensors: dict[str, Tensor], settings: dict[str, Any], solver: splitting.Solver) -> bool:
        if self.solver != solver or self.names != tuple(tensors) or self.settings is None:
            return False
        try:
            same = bool(self.settings == settings)
        except Exception:  # the comparison of a stranger's attributes
            return False
        return same and self.tensors.fits(list(tensors.values()))


_INTERNAL = frozenset(vars(nn.Module()))


def _ingredients(linear: Parameterization) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All that can decide what `linear.operator()` is: weights and other tensors by name, and every plain attribute."""
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for prefix, module in linear.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in _INTERNAL}
        for name, value in {**module._parameters, **module._buffers, **own}.items():
            kind: dict[str, Any] = tensors if isinstance(value, Tensor) else settings
            kind[f"{prefix}.{name}"] = value
    return tensors, settings


def _device(x: object) -> torch.device:
    """That of the input; the source says what is wrong with what is no tensor."""
    return x.device if isinstance(x, Tensor) else torch.device("cpu")
