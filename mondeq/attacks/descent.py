"""Projected gradient ascent of a loss in balls of given radii (Madry et al. 2018), each image with a radius of its own.

x ← Π(x + 2.5 r/n · d), d the steepest direction of the norm, Π into the box [0, 1] and then into the ball. What the box
takes away would otherwise be missing in the ball; towards the image nothing leaves the box.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mondeq.attacks.base import Target

Loss = Callable[[Tensor, Tensor], Tensor]
"""From the rows of the images and their logits to what is to grow, (batch,)."""

# Inside the ball under rounding too.
_SHRINK = 1 - 1e-9


def nearest_by_descent(target: Target, searches: list[tuple[Loss, bool]]) -> Tensor:
    """The nearest points of another class that searches in the target's balls pass.

    What was fooled within a radius is not searched there again.

    Args:
        target: What is attacked.
        searches: Loss, and whether to start from a random point of the ball, one search after the other.

    Returns:
        (N, *in_shape).
    """
    best, distance = target.images.clone(), torch.full_like(target.images.flatten(1)[:, 0], torch.inf)
    for radius in target.radii:
        for loss, random_start in searches:
            rows = ((distance > radius) & (radius > 0)).nonzero()[:, 0]
            if len(rows):
                points, sizes = _ascend(target, rows, radius[rows] * _SHRINK, loss, random_start)
                nearer = sizes < distance[rows]
                best[rows[nearer]], distance[rows[nearer]] = points[nearer], sizes[nearer]
    return best


def _ascend(target: Target, rows: Tensor, radius: Tensor, loss: Loss, random_start: bool) -> tuple[Tensor, Tensor]:
    """The nearest points of another class on the way, and their distances, inf where there are none."""
    images, labels, geometry = target.images[rows], target.labels[rows], target.geometry
    column = radius.reshape(-1, *[1] * (images.ndim - 1))
    points = images
    if random_start:
        points = (images + column * geometry.draw(images, target.generator)).clamp(0, 1)
    best, distance = images.clone(), torch.full_like(radius, torch.inf)
    for step in range(target.steps + 1):
        last = step == target.steps
        if last:
            logits, gradient = target.network(points), torch.zeros_like(points)
        else:
            logits, gradient = target.gradient(lambda logits: loss(rows, logits), points)
        sizes = geometry.size(points - images)
        nearer = (logits.argmax(1) != labels) & (sizes < distance)
        best[nearer], distance[nearer] = points[nearer], sizes[nearer]
        if bool(torch.isfinite(distance).all()):
            break
        if not last:
            moved = points + 2.5 / target.steps * column * geometry.direction(gradient)
            points = images + geometry.project(moved.clamp(0, 1) - images, radius)
    return best, distance
