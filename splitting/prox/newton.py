"""The root y of α y + (1 − α) σ(y) = v for any nondecreasing, 1-Lipschitz σ, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from splitting.context import asking_is_free


def root(sigma: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor], v: Tensor, alpha: float) -> Tensor:
    """Root y of h(y) = α y + (1 − α) σ(y) − v by Newton's method inside a shrinking bracket.

    The slope of h lies in [min(α, 1), max(α, 1)], which gives the first bracket. On the CPU the loop ends when no entry
    moves any more; elsewhere it runs a fixed number of steps, since asking would synchronise: for α near 1 as many as
    Newton's method needs where σ is smooth, otherwise as many as bisection does. An inexact y
    costs accuracy of the iteration only: error bounds use s = y − σ(y), a subgradient for every y.

    Args:
        sigma: σ, elementwise.
        derivative: σ′, elementwise.
        v: What the prox is taken of, of any shape.
        alpha: α > 0.

    Returns:
        y, of the shape of v.
    """
    if alpha == 1:
        return v
    flattest, steepest = min(alpha, 1.0), max(alpha, 1.0)
    y = v
    h = (1 - alpha) * (sigma(y) - y)
    ends = y - h / flattest, y - h / steepest
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    # Saturated activations put the root at an end of the bracket; rounding must not count it as outside.
    pad = 1e-3 * (high - low)
    low, high = low - pad, high + pad
    may_ask = asking_is_free(y.device)
    digits = -math.log2(torch.finfo(y.dtype).eps)
    steps = 12 if steepest <= 4 * flattest else 12 + 4 * math.ceil(digits + math.log2(steepest / flattest))
    for k in range(200 if may_ask else min(steps, 200)):
        h = alpha * y + (1 - alpha) * sigma(y) - v
        low, high = torch.where(h < 0, y, low), torch.where(h > 0, y, high)
        newton = y - h / (alpha + (1 - alpha) * derivative(y))
        # Kinks can make Newton cycle; every fourth step bisects, whatever it proposes, once it has had its chance.
        inside = (newton >= low) & (newton <= high)
        resolution = 4 * torch.finfo(y.dtype).eps * (1 + y.abs())
        if k >= 12 and k % 4 == 3:
            inside &= (newton - y).abs() <= resolution  # what has arrived stays, whatever other entries still need
        following = torch.where(inside, newton, low + (high - low) / 2)
        moved = (following - y).abs() > resolution
        y = following
        if may_ask and not bool(moved.any()):
            break
    return y
