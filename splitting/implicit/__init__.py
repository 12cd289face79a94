"""Solutions as differentiable functions of what their problems are made of."""

from __future__ import annotations

from torch import Tensor

import splitting.implicit.fixed_point
import splitting.implicit.inclusion  # noqa: F401  both register how they are differentiated
from splitting.errors import InvalidType
from splitting.implicit.base import Monitor, Options, differentiable
from splitting.implicit.gradients import Gradient, Implicit, OneStep, Unrolled
from splitting.implicit.jacobian import jacobian_norm
from splitting.loop import OnFailure, check_options
from splitting.problems import Problem
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
    """The solution z* of a problem as a differentiable function of all that it is made of.

    Memory does not grow with the number of steps.

    Of an Inclusion it is a function of its source, operator and activation tensors. Where σ has kinks the derivative is
    that of the selection `prox.derivative`. It supports backward and double backward, torch.func.vjp, jvp, grad, and
    vmap over the source (one batched solve) or over operator tensors (one solve per slice).

    Of a FixedPoint it is a function of its source, the weights of f and its `parameters`. It supports backward of every
    order.

    Args:
        problem: An Inclusion 0 ∈ A z − c + ∂f(z), or a FixedPoint z = f(z, x), which takes solvers of its own.
        solver: The method, of the adjoint solves too; PeacemanRachford() by default.
        tol: Stop a sample once its relative residual (`Solution.residual`) is ≤ tol.
        max_steps: Stop every solve after so many steps.
        backward_tol: The tolerance of the adjoint solves; tol by default.
        initial: A guess of the solution to start from, shaped like the states; it gets no gradient.
        on_failure: Whether to raise NotConverged, to issue a ConvergenceWarning or just to return when a sample misses
            its tolerance: "raise", "warn" or "return".
        monitor: Called with ("forward" | "backward", Solution) after every solve.
        gradient: Implicit() by default; OneStep() and Unrolled(…) are cheaper approximations.

    Returns:
        z*, (batch, *state_shape).

    Raises:
        InvalidArgument: If an argument lies outside its range, the solver's theorem does not cover its step or the
            operator, monitor has changed a solution, or f uses a tensor whose gradient would be lost.
        InvalidType: If an argument is of the wrong type, dtype or device, or the solver cannot split the problem.
        NotConverged: If a sample misses its tolerance and on_failure is "raise".
        ResolventError: If a computed resolvent does not invert.
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
