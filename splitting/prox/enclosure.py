"""Intervals that hold every slope [σ(b) − σ(a)]/(b − a) with low ≤ a < b ≤ high, in spite of rounding.

All is computed in float64 and rounded outward. Where low or high is NaN, nothing is excluded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from splitting.verified import UNDERFLOW

Slopes = tuple[Tensor, Tensor]
"""Lower and upper ends."""

# exp is taken to be right to four units in the last place. The few operations that follow add as many; this is 16 times
# as much as both.
_RELATIVE = 2.0**-45

# Into how many parts a chord is cut.
_PARTS = 32


def piecewise_linear(low: Tensor, high: Tensor, kinks: Sequence[float], slopes: Sequence[float]) -> Slopes:
    """Of σ with slopes[i] between kinks[i − 1] and kinks[i], from −∞ to ∞: exactly what occurs in [low, high].

    Where low = high, the slopes on both sides of it.

    Args:
        low: Lower ends of the arguments of σ.
        high: Upper ends, which broadcast against low.
        kinks: Where the slope changes, nondecreasing; a piece between equal ones counts as absent.
        slopes: One more than kinks.

    Returns:
        The least and the largest slope, in float64.
    """
    low, high = torch.broadcast_tensors(low.detach().double(), high.detach().double())
    point, unknown = low == high, low.isnan() | high.isnan()
    lower, upper = torch.full_like(low, math.inf), torch.full_like(low, -math.inf)
    for (start, end), slope in zip(pairwise([-math.inf, *kinks, math.inf]), slopes, strict=True):
        if start < end:
            missed = torch.where(point, (low > end) | (high < start), (low >= end) | (high <= start))
            met = unknown | ~missed
            lower, upper = (
                torch.where(met, lower.clamp_max(slope), lower),
                torch.where(met, upper.clamp_min(slope), upper),
            )
    return lower, upper


def squared_sech(low: Tensor, high: Tensor) -> Slopes:
    """Of tanh, whose slope 1/cosh² rises up to 0 and falls from there.

    Args:
        low: Lower ends of the arguments.
        high: Upper ends, which broadcast against low.

    Returns:
        Bounds on the least and the largest value of 1/cosh² in [low, high], in float64.
    """
    low, high = low.detach().double(), high.detach().double()
    nearest, farthest = torch.maximum(low, -high).clamp_min(0), torch.maximum(low.abs(), high.abs())

    def value(y: Tensor) -> Tensor:
        t = torch.exp(-2 * y)
        return 4 * t / (1 + t).square()

    return around(value(farthest), value(nearest))


def mean_slopes(slopes: Callable[[Tensor, Tensor], Slopes], low: Tensor, high: Tensor, reach: Tensor) -> Slopes:
    """Of chords from a in [low, high] to a ± t, t ≤ reach, by the slopes in parts of equal length.

    A mean over [0, t] is monotone in t within a part, where the slope in that part counts as constant. So its extremes
    are means over whole parts, or the slope in the first.

    Args:
        slopes: Proved slopes in an interval, as `Activation.slopes` gives them.
        low: Lower ends of a.
        high: Upper ends, shaped like low.
        reach: Shaped like low.

    Returns:
        Lower and upper ends, of the dtype of low.
    """
    # Parts come first, so that what an activation is made of still broadcasts against states.
    count = torch.arange(1, _PARTS + 1, dtype=torch.float64, device=low.device).view(-1, *[1] * low.ndim)
    near, far, reach = low.double(), high.double(), reach.double()
    starts, ends = reach * ((count - 1) / _PARTS), reach * (count / _PARTS)
    # Ends of parts are rounded.
    room = 2.0**-50 * (torch.maximum(near.abs(), far.abs()) + ends) + UNDERFLOW
    above = slopes(near + starts - room, far + ends + room)
    below = slopes(near - ends - room, far - starts + room)
    lower = torch.minimum(above[0].cumsum(0), below[0].cumsum(0)) / count
    upper = torch.maximum(above[1].cumsum(0), below[1].cumsum(0)) / count
    lower, upper = around(lower.amin(0), upper.amax(0))
    # No mean leaves the range of the slopes: one slope stays what it is.
    lower = torch.maximum(lower, torch.minimum(above[0], below[0]).amin(0).double())
    upper = torch.minimum(upper, torch.maximum(above[1], below[1]).amax(0).double())
    return outward((lower, upper), low.dtype)


def around(lower: Tensor, upper: Tensor) -> Slopes:
    """Ends moved apart by what a few operations and one exponential may have rounded, inside of [0, 1].

    Args:
        lower: Computed lower ends, in float64.
        upper: Computed upper ends, in float64.

    Returns:
        Ends of an interval that holds the exact one.
    """
    margin = 8 * UNDERFLOW
    return (lower * (1 - _RELATIVE) - margin).clamp_min(0), (upper * (1 + _RELATIVE) + margin).clamp_max(1)


def outward(slopes: Slopes, dtype: torch.dtype) -> Slopes:
    """Float64 ends in `dtype`, rounded away from each other and kept in [0, 1], where every slope lies.

    Args:
        slopes: Lower and upper ends, in float64. Where one is NaN, neither is known.
        dtype: What to return them in.

    Returns:
        Ends of an interval that holds the given one as far as that lies in [0, 1].
    """
    unknown = slopes[0].isnan() | slopes[1].isnan()
    slopes = slopes[0].masked_fill(unknown, 0), slopes[1].masked_fill(unknown, 1)
    lower, upper = (end.to(dtype) for end in slopes)
    infinity = torch.full((), math.inf, dtype=dtype, device=lower.device)
    lower = torch.where(lower.double() > slopes[0], torch.nextafter(lower, -infinity), lower)
    upper = torch.where(upper.double() < slopes[1], torch.nextafter(upper, infinity), upper)
    return lower.clamp(0, 1), upper.clamp(0, 1)
