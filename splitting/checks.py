"""Public verifiers: how far a point is from the solution, and whether operators and activations keep their word."""

from __future__ import annotations

import torch
from torch import Tensor

from splitting.context import in_full_precision
from splitting.errors import InvalidArgument
from splitting.operators import Operator
from splitting.problems import Problem
from splitting.prox import Activation


def error_bound(problem: Problem, z: Tensor) -> Tensor:
    """Proved upper bound on ‖z − z*‖_Λ for each sample and any z, wherever it came from.

    How it is proved: see `splitting.Inclusion.error_bound`.

    Args:
        problem: What z* solves.
        z: States, (batch, *state_shape).

    Returns:
        The bounds, (batch,), float64; inf where nothing is proved, as of every FixedPoint.

    Raises:
        InvalidArgument: If z has another shape than the problem's states.
        InvalidType: If z is no tensor, or of another dtype or device.
    """
    return problem.error_bound(z)


@torch.no_grad()
@in_full_precision
def check_adjoint(operator: Operator, *, batch: int = 4, seed: int = 0) -> float:
    """The relative defect of ⟨x, A y⟩ = ⟨Aᵀx, y⟩ on random states.

    Args:
        operator: A, with its `adjoint` Aᵀ.
        batch: How many pairs of states are tried.
        seed: What they are drawn from.

    Returns:
        The largest of |⟨x, A y⟩ − ⟨Aᵀx, y⟩|/(‖A y‖ ‖x‖): a few roundings for a right adjoint.
    """
    x, y = _random(operator, batch, seed), _random(operator, batch, seed + 1)
    image, back = operator.apply(y), operator.adjoint.apply(x)
    scale = (image.flatten(1).norm(dim=1) * x.flatten(1).norm(dim=1)).clamp_min(torch.finfo(x.dtype).tiny)
    return float((((x * image).flatten(1).sum(1) - (back * y).flatten(1).sum(1)).abs() / scale).max())


@torch.no_grad()
@in_full_precision
def check_resolvent(operator: Operator, alpha: float, *, batch: int = 4, seed: int = 0) -> float:
    """The relative defect of (I + αA) V v = v and of its adjoint on random states.

    Args:
        operator: A, with its `resolvent(alpha)` V.
        alpha: α > 0.
        batch: How many states are tried.
        seed: What they are drawn from.

    Returns:
        The larger of the two ‖(I + αA) V v − v‖/‖v‖: roundings times the condition for a right resolvent.
    """
    v = _random(operator, batch, seed)
    defect = 0.0
    for a in (operator, operator.adjoint):
        w = a.resolvent(alpha)(v)
        defect = max(defect, float((w + alpha * a.apply(w) - v).norm() / v.norm()))
    return defect


@torch.no_grad()
@in_full_precision
def check_monotone(operator: Operator, *, batch: int = 64, seed: int = 0) -> float:
    """The smallest ⟨z, A z⟩_Λ/‖z‖²_Λ over random states.

    Args:
        operator: A, with its metric Λ.
        batch: How many states are tried.
        seed: What they are drawn from.

    Returns:
        That number, which must not be below `operator.strong_monotonicity`.
    """
    z = _random(operator, batch, seed)
    weighted = z if operator.metric is None else z * operator.metric
    return float(((weighted * operator.apply(z)).flatten(1).sum(1) / operator.norm(z).square()).min())


@torch.no_grad()
def check_activation(activation: Activation, *, low: float = -20.0, high: float = 20.0, points: int = 4001) -> None:
    """Verify on a grid that an activation keeps its promises. Passing is evidence, not a proof.

    These are: σ is nondecreasing and 1-Lipschitz, σ′ ∈ [0, 1] lies between the slopes beside it, `slopes` leaves out no
    secant, and `point` solves α y + (1 − α) σ(y) = v.

    Args:
        activation: σ, whose tensors broadcast to the grid, of shape (points,).
        low: Where the grid begins.
        high: Where it ends.
        points: How many points it has, evenly spread.

    Raises:
        InvalidArgument: Naming the property that fails, and where.
    """
    y = torch.linspace(low, high, points, dtype=torch.float64, device="cpu")
    sigma, slope = activation(y), activation.derivative(y)
    secant = sigma.diff() / y.diff()
    _require((secant >= -1e-12).all(), activation, "decreases somewhere", y[:-1][secant < -1e-12])
    _require((secant <= 1 + 1e-12).all(), activation, "is steeper than 1 somewhere", y[:-1][secant > 1 + 1e-12])
    outside = (slope < 0) | (slope > 1)
    _require(~outside.any(), activation, "has a derivative outside [0, 1]", y[outside])
    # A derivative between the neighbouring secants, up to curvature: wrong formulas miss by far more.
    below, above = torch.minimum(secant[1:], secant[:-1]), torch.maximum(secant[1:], secant[:-1])
    wrong = (slope[1:-1] < below - 1e-2) | (slope[1:-1] > above + 1e-2)
    _require(~wrong.any(), activation, "has a derivative that is not its slope", y[1:-1][wrong])
    # Between neighbours, and over the whole grid.
    for start, end in ((y[:-1], y[1:]), (y[:1].expand(points - 1), y[-1:].expand(points - 1))):
        lower, upper = activation.slopes(start, end)
        missed = (secant < lower - 1e-12) | (secant > upper + 1e-12)
        _require(~missed.any(), activation, "has slopes that leave out a secant", y[:-1][missed])
    for alpha in (0.01, 0.5, 1.0, 3.0, 100.0):
        point = activation.point(y, alpha)
        defect = (alpha * point + (1 - alpha) * activation(point) - y).abs()
        unsolved = defect > 1e-9 * (1 + y.abs()) * max(alpha, 1)
        _require(~unsolved.any(), activation, f"does not solve its prox equation for α = {alpha}", y[unsolved])


def _require(holds: Tensor, activation: Activation, failure: str, where: Tensor) -> None:
    if not bool(holds):
        raise InvalidArgument(f"{type(activation).__name__} {failure}, first at y = {float(where[0]):.6g}")


def _random(operator: Operator, batch: int, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    state = torch.randn(batch, *operator.state_shape, generator=generator, dtype=torch.float64, device="cpu")
    return state.to(operator.device, operator.dtype)
