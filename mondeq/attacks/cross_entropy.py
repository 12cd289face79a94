"""Projected gradient ascent of the cross-entropy (Madry et al. 2018): all classes at once, where the margin sees two.

The logits of an image are divided by its own clean margin, since those of a network that is sure of itself have
gradients that are 0 in floating point.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from mondeq.attacks.base import ATTACKS, Attack, Target
from mondeq.attacks.descent import nearest_by_descent


@ATTACKS.enrol("pgd cross-entropy")
class CrossEntropyDescent(Attack):
    """Ascent of −log softmax(y/s)_label, s the margin of the clean image; from the image and from a random point."""

    def search(self, target: Target) -> Tensor:
        top = target.network(target.images).topk(2, dim=1).values
        margin = (top[:, :1] - top[:, 1:]).clamp_min(1e-6)

        def loss(rows: Tensor, logits: Tensor) -> Tensor:
            return cross_entropy(logits / margin[rows], target.labels[rows], reduction="none")

        return nearest_by_descent(target, [(loss, False), (loss, True)])
