"""Projected gradient descent on the margin y_label − y_j (Madry et al. 2018; the loss of Carlini & Wagner 2017).

The rival j is the likeliest other class at every point, from the image and from a random point of the ball; then each
of the two classes that are likeliest at the image.
"""

from __future__ import annotations

from torch import Tensor

from mondeq.attacks.base import ATTACKS, Attack, Target
from mondeq.attacks.descent import Loss, nearest_by_descent

# (rival, random start): the rival class is the likeliest other at every point, or number 1, 2, … at the clean image.
_SEARCHES = ((0, False), (0, True), (1, False), (2, True))


@ATTACKS.enrol("pgd margin")
class MarginDescent(Attack):
    """Descent on differences of logits, whose gradients do not vanish where a network is sure of itself."""

    def search(self, target: Target) -> Tensor:
        logits = target.network(target.images)
        ranking = logits.scatter(1, target.labels[:, None], -float("inf")).argsort(1, descending=True)

        def towards(rival: int) -> Loss:
            def loss(rows: Tensor, logits: Tensor) -> Tensor:
                own = target.labels[rows, None]
                others = logits.scatter(1, own, -float("inf"))
                chosen = others.amax(1) if rival == 0 else others.gather(1, ranking[rows, rival - 1, None])[:, 0]
                return chosen - logits.gather(1, own)[:, 0]

            return loss

        possible = [(towards(rival), start) for rival, start in _SEARCHES if rival < logits.shape[1]]
        return nearest_by_descent(target, possible)
