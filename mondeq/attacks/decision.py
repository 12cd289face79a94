"""An attack that sees predictions alone, so that no gradient misleads it: HopSkipJump, of Foolbox (Chen et al. 2020).

It starts at the nearest image of another class among those at hand and a few of noise, and follows the boundary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mondeq.attacks.base import ATTACKS, Attack, Target, foolbox, foolbox_model
from mondeq.attacks.geometry import Geometry

# p → how Foolbox calls the norm, and the power of the number of pixels that it divides by to say how finely it halves.
_NAMES = {2.0: ("l2", 1.5), math.inf: ("linf", 2.0)}
# The largest share of the distance that halving may leave, whatever the number of pixels.
_COARSEST = 1e-3
# Images of noise to start from; gradient steps per step along the boundary; predictions per estimate of its normal.
_NOISE, _STEPS_PER_STEP, _PREDICTIONS = 16, 6, 20


@ATTACKS.enrol("decision-based")
class DecisionBased(Attack):
    """A walk along the boundary of the class, whose normal is estimated from predictions at random points near by."""

    def unsuited(self, geometry: type[Geometry]) -> str | None:
        return None if geometry.order in _NAMES else f"knows no {geometry.__name__}"

    def check(self) -> None:
        foolbox("models.pytorch")
        foolbox("attacks.hop_skip_jump")

    def search(self, target: Target) -> Tensor:
        found = target.images.clone()
        starts, known = _starts(target)
        if not bool(known.any()):
            return found
        name, power = _NAMES[target.geometry.order]
        walk = _walk()(
            steps=-(-target.steps // _STEPS_PER_STEP),
            initial_gradient_eval_steps=_PREDICTIONS,
            gamma=min(1.0, _COARSEST * target.images[0].numel() ** power),
            constraint=name,
        )
        device = target.images.device
        # Foolbox draws from the generators that all share.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(torch.randint(2**31, (), generator=target.generator, device="cpu")))
            found[known] = walk.run(
                foolbox_model(target.network), target.images[known], target.labels[known], starting_points=starts[known]
            )
        return found


def _starts(target: Target) -> tuple[Tensor, Tensor]:
    """For each image the nearest candidate that is predicted otherwise, and whether there is one."""
    images = target.images
    noise = torch.rand(_NOISE, *images.shape[1:], generator=target.generator, dtype=images.dtype, device="cpu")
    candidates = torch.cat([images, noise.to(images)])
    same = target.network(candidates).argmax(1) == target.labels[:, None]
    apart = torch.cdist(images.flatten(1), candidates.flatten(1), p=target.geometry.order)
    distance, nearest = apart.masked_fill(same, torch.inf).min(1)
    return candidates[nearest], torch.isfinite(distance)


def _walk() -> Any:
    """HopSkipJump in which images do not share a step: Foolbox 3.3.4 divides normals by the length of all together."""

    class Walk(foolbox("attacks.hop_skip_jump").HopSkipJumpAttack):  # type: ignore[misc]  # without types
        def approximate_gradients(self, *arguments: Any) -> Any:
            normals = super().approximate_gradients(*arguments)
            lengths = normals.raw.flatten(1).norm(dim=1).clamp_min(1e-300)
            return type(normals)(normals.raw / lengths.reshape(-1, *[1] * (normals.raw.ndim - 1)))

    return Walk
