"""The nearest image of another class by adapting the radius: fast minimum norm, of Foolbox (Pintor et al. 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mondeq.attacks.base import ATTACKS, Attack, Target, foolbox, foolbox_model
from mondeq.attacks.geometry import Geometry

# Radii that end exactly on the boundary, as those of a linear network do, never leave the class.
_BEYOND = 1.001
# p → the attack of Foolbox.
_KINDS = {2.0: "L2FMNAttack", math.inf: "LInfFMNAttack"}


@ATTACKS.enrol("minimum norm")
class MinimumNorm(Attack):
    """Descent on the margin in a ball that shrinks while the class is another, and grows while it is not."""

    def unsuited(self, geometry: type[Geometry]) -> str | None:
        return None if geometry.order in _KINDS else f"knows no {geometry.__name__}"

    def check(self) -> None:
        foolbox("models.pytorch")
        foolbox("attacks.fast_minimum_norm")

    def search(self, target: Target) -> Tensor:
        kind = getattr(foolbox("attacks.fast_minimum_norm"), _KINDS[target.geometry.order])

        class Projected(kind):  # type: ignore[misc, valid-type]  # Foolbox says nothing of its types
            """With a projection into the box and then the ball: Foolbox 3.3.4 projects by itself for p = ∞ alone, and
            what the box takes away afterwards is missing in the ball."""

            def project(self, x: Any, x0: Any, epsilon: Any) -> Any:
                steps = x.raw.clamp(0, 1) - x0.raw
                radius = epsilon.raw.nan_to_num(0.0) * _BEYOND
                return type(x)(x0.raw + target.geometry.project(steps, radius))

            def normalize(self, gradients: Any) -> Any:
                """The steepest step of the norm, in units of how far the boundary is: Foolbox has 1 for all images."""
                return type(gradients)(target.geometry.direction(gradients.raw) * strides)

        strides = _strides(target)
        with torch.enable_grad():
            found = Projected(steps=target.steps).run(foolbox_model(target.network), target.images, target.labels)
        return found.detach().nan_to_num(0.0)


def _strides(target: Target) -> Tensor:
    """How far the boundary is from every image to first order, shaped to multiply images; 1 where nothing is seen."""
    own = target.labels[:, None]

    def margin(logits: Tensor) -> Tensor:
        return (logits.gather(1, own) - logits.scatter(1, own, -math.inf).amax(1, keepdim=True))[:, 0]

    logits, gradient = target.gradient(margin, target.images)
    distance = margin(logits) / (gradient * target.geometry.direction(gradient)).flatten(1).sum(1)
    known = torch.isfinite(distance) & (distance > 0)
    reach = target.geometry.reach(target.images.shape[1:])
    return distance.where(known, 1.0).clamp_max(reach).reshape(-1, *[1] * (gradient.ndim - 1))
