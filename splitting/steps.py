"""Choosing α for Peaceman–Rachford: the contraction factor ‖(I − αA)(I + αA)⁻¹‖_Λ, and the α that minimises it.

Both are estimates. They decide how fast a solve is, never what is claimed about its result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from splitting.context import in_full_precision
from splitting.operators import Operator, Resolvent

_GOLDEN = (math.sqrt(5) - 1) / 2


# Up to this order the norm of the map is taken from its matrix; power iteration is for what is too large for that.
_DENSE_ORDER = 256


@torch.no_grad()
@in_full_precision
def contraction_factor(operator: Operator, alpha: float, *, iterations: int = 20) -> float:
    """The contraction factor ‖(I − αA)(I + αA)⁻¹‖_Λ of Peaceman–Rachford on an operator, an estimate.

    The map is 2V − I, V = (I + αA)⁻¹, applied through the resolvent, so any operator will do. For states of up to 256
    entries the result is right to rounding. Larger operators say it themselves (`Operator.cayley_norm`, for
    convolutions from a sample of frequencies and without what couples tiers) or get block power iteration from eight
    start vectors: two or three digits, from below.

    Args:
        operator: A.
        alpha: α > 0.
        iterations: Rounds of power iteration, where there are any.

    Returns:
        The factor; below 1 where A is strongly monotone.
    """
    known = _known_factor(operator, alpha)
    if known is not None:
        return known
    resolvent = operator.resolvent(alpha)
    root = operator.tensors[0].new_ones(()) if operator.root_metric is None else operator.root_metric
    entries = operator.state_shape.numel()
    if entries <= _DENSE_ORDER:
        basis = torch.eye(entries, device=operator.device, dtype=operator.dtype).reshape(-1, *operator.state_shape)
        return _largest_singular_value(_cayley(resolvent, basis / root) * root)
    # A chirp looks random to A, and unlike random numbers may be drawn under torch.func.vmap.
    index = torch.arange(8 * entries, device=operator.device, dtype=torch.float64)
    block = torch.cos(_GOLDEN * index.square()).to(operator.dtype).reshape(8, *operator.state_shape)
    image = block
    for _ in range(iterations):
        image = _cayley(resolvent, _orthonormal(block) / root) * root
        block = _cayley(resolvent.adjoint, image * root) / root
    return _largest_singular_value(image)


def best_step(operator: Operator) -> float:
    """The step to use when an operator is solved with many times: the largest one whose rate is nearly optimal.

    Golden-section search over log α around 1/rms(A) minimises the contraction factor ρ(α), a quasi-convex function of
    it. The factor is the worst case over all directions; what an iteration meets contracts better under larger steps,
    so the step then grows by tenths while −log ρ stays within a tenth of its best. Costs about a dozen resolvents,
    remembered with the operator.

    Args:
        operator: A.

    Returns:
        α for PeacemanRachford and DouglasRachford, an estimate of the best one.

    Raises:
        InvalidArgument: If A holds NaN or inf, or overflows.
    """

    def search() -> float:
        centre = math.log(operator.typical_step)
        # Below 1/L and above 1/σ_min(A) no step is best; the latter may be far above 1/rms(A).
        low, high = centre - math.log(8), centre + math.log(1000)
        while high - low > 0.2:
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            low, high = (low, right) if rate(left) > rate(right) else (left, high)
        x = (low + high) / 2
        enough = 0.9 * rate(x)
        for _ in range(12):
            if not rate(x + 0.1) >= enough:
                break
            x += 0.1
        return math.exp(x)

    rates: dict[float, float] = {}

    def rate(log_alpha: float) -> float:
        key = round(log_alpha, 9)
        if key not in rates:
            alpha = math.exp(log_alpha)
            factor = _known_factor(operator, alpha)
            if factor is None:
                # A throw-away handle: the resolvents tried on the way would only fill the operator's cache.
                trial = operator.replace(*(t.detach() for t in operator.tensors))
                factor = contraction_factor(trial, alpha, iterations=12)
            rates[key] = -math.log(max(factor, 1e-6))
        return rates[key]

    return operator.cached("best step", search)


def _known_factor(operator: Operator, alpha: float) -> float | None:
    """What a large operator says of itself. For small ones the norm is computed."""
    return operator.cayley_norm(alpha) if operator.state_shape.numel() > _DENSE_ORDER else None


def _cayley(resolvent: Resolvent, v: Tensor) -> Tensor:
    return 2 * resolvent(v) - v


def _largest_singular_value(rows: Tensor) -> float:
    flat = rows.flatten(1).double()
    return float(torch.linalg.eigvalsh(flat @ flat.mT)[-1].clamp_min(0).sqrt()) if len(flat) else 0.0


def _orthonormal(block: Tensor) -> Tensor:
    return torch.linalg.qr(block.flatten(1).mT).Q.mT.reshape(block.shape)
