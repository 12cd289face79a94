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
    """The α that minimises the contraction factor, by golden-section search over log α around 1/rms(A).

    Costs about a dozen resolvents; the result is remembered with the operator. Within a few per cent of optimal.
    """

    def search() -> float:
        centre = math.log(operator.typical_step)
        low, high = centre - math.log(8), centre + math.log(8)
        inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
        values = [_factor(operator, x) for x in inner]
        while high - low > 0.15:
            if values[0] < values[1]:
                high, inner = inner[1], [inner[1] - _GOLDEN * (inner[1] - low), inner[0]]
                values = [_factor(operator, inner[0]), values[0]]
            else:
                low, inner = inner[0], [inner[1], inner[0] + _GOLDEN * (high - inner[0])]
                values = [values[1], _factor(operator, inner[1])]
        return math.exp(inner[0] if values[0] < values[1] else inner[1])

    return operator._cached("best_step", search)


def _factor(operator: Operator, log_alpha: float) -> float:
    # A throw-away handle: the resolvents tried on the way would only fill the operator's cache.
    trial = operator.replace(*(t.detach() for t in operator.tensors))
    return contraction_factor(trial, math.exp(log_alpha))


def _orthonormal(block: Tensor) -> Tensor:
    return torch.linalg.qr(block.flatten(1).mT).Q.mT.reshape(block.shape)
