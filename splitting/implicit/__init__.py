"""Solutions as differentiable functions of what their problems are made of."""

from __future__ import annotations

from torch import Tensor

import splitting.implicit.fixed_point
import splitting.implicit.inclusion  # noqa: F401  both register how they are differentiated
from splitting.errors import InvalidType
from splitting.implicit.base import Monitor, Options, differentiable
from splitting.implicit.gradients import Gradient, Implicit, OneStep, Unrolled
from splitting.implicit.jacobian import jacobian_norm
from splitting.problems import Problem
from splitting.solve import OnFailure, check_options
from splitting.solvers import PeacemanRachford, Solver

__all__ = [
    "Gradient",
    "Implicit",
    "Monitor",
    "OneStep",
    "Options",
    "Unrolled",
    "differentiable",
    "equilibrium",
    "jacobian_norm",
]


def equilibrium(
    problem: Problem,
    solver: Solver | None = None,
    *,
    tol: float = 1e-6,
    max_steps: int = 500,
    backward_tol: float | None = None,
    initial: Tensor | None = None,
    on_failure: OnFailure = "warn",
    monitor: Monitor | None = None,
    gradient: Gradient | None = None,
) -> Tensor:
    """The solution z* of `problem` as a differentiable function of all that it is made of.

    Arguments as in `splitting.solve`; backward_tol (default: tol) is the tolerance of the adjoint solves. monitor is
    called with ("forward" | "backward", Solution) after every solve. gradient: Implicit() by default; OneStep() and
    Unrolled(…) are cheaper approximations. Memory does not grow with the number of steps.

    Of an Inclusion: a function of its source, operator and activation tensors. Where σ has kinks the derivative is that
    of the selection `prox.derivative`. Supports backward and double backward, torch.func.vjp, jvp, grad, and vmap over
    the source (one batched solve) or over operator tensors (one solve per slice). Of a FixedPoint: a function of its
    source, the weights of f and its `parameters`; supports backward of every order. Raises InvalidArgument and
    InvalidType.
    """
    if not isinstance(problem, Problem):
        raise InvalidType(f"`problem` must be a splitting.Inclusion or FixedPoint, got {type(problem).__name__}")
    gradient = Implicit() if gradient is None else gradient
    if not isinstance(gradient, Gradient):
        raise InvalidType(f"`gradient` must be one such as splitting.Implicit(), got {gradient!r}")
    solver = PeacemanRachford() if solver is None else solver
    backward_tol = tol if backward_tol is None else backward_tol
    check_options(solver, max_steps, on_failure, tol=tol, backward_tol=backward_tol)
    if initial is not None:
        problem.check_state("initial", initial)
    return gradient(problem, Options(solver, tol, max_steps, backward_tol, initial, on_failure, monitor))
