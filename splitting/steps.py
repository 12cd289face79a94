"""Choosing α for Peaceman–Rachford: the contraction factor ‖(I − αA)(I + αA)⁻¹‖_Λ, and the α that minimises it.

Both are estimates. They decide how fast a solve is, never what is claimed about its result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from splitting.operators import Operator

_GOLDEN = (math.sqrt(5) - 1) / 2


def contraction_factor(operator: Operator, alpha: float, *, iterations: int = 20) -> float:
    """Estimate, from below, of ‖(I − αA)(I + αA)⁻¹‖_Λ: `iterations` rounds of block power iteration.

    The map is 2V − I, applied through the resolvent, so any operator will do. Eight seeded start vectors give
    about three digits.
    """
    resolvent = operator.resolvent(alpha)
    adjoint = resolvent.adjoint
    root = operator.tensors[0].new_ones(()) if operator.root_metric is None else operator.root_metric
    count = min(8, operator.state_shape.numel())
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(count, *operator.state_shape, generator=generator).to(operator.device, operator.dtype)
    image = block
    with torch.no_grad():
        for _ in range(iterations):
            v = _orthonormal(block) / root
            image = (2 * resolvent(v) - v) * root
            w = image * root
            block = (2 * adjoint(w) - w) / root
    return float(torch.linalg.matrix_norm(image.flatten(1).double(), 2)) if count else 0.0


def best_step(operator: Operator) -> float:
    """The step to use when an operator is solved with many times: the largest one whose rate is nearly optimal.

    Golden-section search over log α around 1/rms(A) minimises the contraction factor ρ(α), a quasi-convex function of
    it. The factor is the worst case over all directions; what an iteration meets contracts better under larger steps,
    so the step then grows by tenths while −log ρ stays within a tenth of its best. Costs about a dozen resolvents,
    remembered with the operator.
    """

    def search() -> float:
        centre = math.log(operator.typical_step)
        low, high = centre - math.log(8), centre + math.log(8)
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
            # A throw-away handle: the resolvents tried on the way would only fill the operator's cache.
            trial = operator.replace(*(t.detach() for t in operator.tensors))
            rates[key] = -math.log(max(contraction_factor(trial, math.exp(log_alpha), iterations=12), 1e-6))
        return rates[key]

    return operator._cached("best_step", search)


def _orthonormal(block: Tensor) -> Tensor:
    return torch.linalg.qr(block.flatten(1).mT).Q.mT.reshape(block.shape)
