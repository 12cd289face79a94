"""Norms in which changes are measured on their way through a network, and the balls and boxes that they make.

Inside a network they are weighted 2-norms ‖x‖ = ‖ρ x‖₂ with a diagonal ρ > 0. At its entrance a user may ask in other
norms of the pixels, which `NORMS` know how to compare with the 2-norm.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mondeq.registry import Registry
from splitting import verified

__all__ = [
    "L2",
    "NORMS",
    "Ball",
    "Box",
    "InputNorm",
    "LInf",
    "Norm",
    "spectral_estimate",
]


class InputNorm(ABC):
    """A norm of images, by its name in `NORMS`.

    Attributes:
        symbol: How it is written.
        radii: What is certified at where nobody says otherwise, pixels in [0, 1].
        makes_boxes: Whether the ball around x of radius r is the box [x − r, x + r].
    """

    symbol: ClassVar[str]
    radii: ClassVar[tuple[float, ...]]
    makes_boxes: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def euclidean(shape: Sequence[int]) -> float:
        """An upper bound on ‖x‖₂ over all x of norm 1.

        Args:
            shape: That of one x.

        Returns:
            The bound.
        """


NORMS: Registry[InputNorm] = Registry("norm")
"""The norms of images by the names that `norm=` and `--norm` take."""


@NORMS.enrol("l2")
class L2(InputNorm):
    """‖x‖₂."""

    symbol = "ℓ2"
    radii = (0.1, 0.2, 0.5, 1.0, 1.58)

    @staticmethod
    def euclidean(shape: Sequence[int]) -> float:
        return 1.0


@NORMS.enrol("linf")
class LInf(InputNorm):
    """The largest |xᵢ|; ‖x‖₂ ≤ √n ‖x‖_∞ for n entries."""

    symbol = "ℓ∞"
    radii = (0.01, 0.03, 0.1, 0.2, 0.3, 0.4)
    makes_boxes = True

    @staticmethod
    def euclidean(shape: Sequence[int]) -> float:
        return verified.round_up(math.sqrt(math.prod(shape)))


@dataclass(frozen=True, eq=False)
class Norm:
    """‖x‖ = ‖ρ x‖₂.

    Args:
        root: The diagonal ρ > 0, float64, shaped to multiply samples; None for 1.
    """

    root: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """An upper bound on the norm of each sample.

        Args:
            x: (batch, …).

        Returns:
            (batch,) float64.
        """
        if self.root is None:
            return verified.vector_norm(x)
        return verified.vector_norm(x.double() * self.root.to(x.device)) * (
            1 + 4 * verified.unit_roundoff(torch.float64)
        )

    def euclidean(self) -> float:
        """An upper bound on ‖x‖₂ over all x of norm 1.

        Returns:
            1/min ρ, rounded upwards.
        """
        return 1.0 if self.root is None else verified.round_up(1 / float(self.root.amin()))

    def stretch(self, other: Norm) -> float:
        """An upper bound on the norm of x in this norm over all x of norm 1 in another.

        Args:
            other: The other norm, of the same samples.

        Returns:
            max ρ/ρ′, rounded upwards.
        """
        if self.root is None:
            return other.euclidean()
        ratio = self.root if other.root is None else self.root / other.root
        return verified.round_up(float(ratio.amax()))

    def of_inputs(self, shape: Sequence[int]) -> Tensor | None:
        """1/ρ of every entry of a sample.

        A map that is multiplied by it from the right takes the 2-norm where it took this one.

        Args:
            shape: That of one sample.

        Returns:
            The entries, flat; None for 1.
        """
        return None if self.root is None else (1 / self.root).expand(*shape).flatten()


@dataclass(frozen=True, eq=False)
class Ball:
    """For each sample a region that contains the exact value, whatever was rounded or left unsolved on the way.

    Args:
        centre: The computed values, (batch, …) float64.
        radius: A proved bound on the distance of the exact values, (batch,) float64.
        norm: What the distance is measured in.
    """

    centre: Tensor
    radius: Tensor
    norm: Norm

    def around(self, centre: Tensor) -> Ball:
        """A ball around other centres that contains this one.

        Args:
            centre: The other centres, (batch, …) float64.

        Returns:
            The ball, in the same norm.
        """
        distance = self.norm.of(self.centre - centre) * (1 + 4 * verified.unit_roundoff(torch.float64))
        return Ball(centre, (self.radius + distance) * (1 + 4 * verified.unit_roundoff(torch.float64)), self.norm)


@dataclass(frozen=True, eq=False)
class Box:
    """For each sample an interval for every entry that contains the exact value, whatever was rounded on the way.

    Its operations round outward in the dtype of the box, and are differentiable: what they give contains every exact
    result, for a float64 box in a proof as for a float32 box that steers training.

    Args:
        lower: The lower ends, (batch, …).
        upper: The upper ends, like `lower`. Where nothing is known the ends are infinite or NaN.
    """

    lower: Tensor
    upper: Tensor

    @staticmethod
    def around(x: Tensor, radius: Tensor | float) -> Box:
        """All that is at most `radius` from x in every entry.

        Args:
            x: (batch, …).
            radius: Numbers ≥ 0 that broadcast against x.

        Returns:
            The box.
        """
        return Box(x, x).widened(torch.as_tensor(radius, dtype=x.dtype, device=x.device))

    def widened(self, by: Tensor) -> Box:
        """The box with both ends moved outward.

        Args:
            by: How far, ≥ 0; it broadcasts against the ends.

        Returns:
            A box that contains the exact one.
        """
        # Two additions on either side, and what is added to cover their rounding.
        unit, tiny = 4 * verified.unit_roundoff(by.dtype), _floor(by.dtype)
        below = by + (unit * (self.lower.abs() + by) + tiny)
        above = by + (unit * (self.upper.abs() + by) + tiny)
        return Box(self.lower - below, self.upper + above)

    def through(self, function: Callable[[Tensor], Tensor], ulps: int = 0) -> Box:
        """The image under a function that is nondecreasing in every entry.

        Args:
            function: What it is.
            ulps: How many units in the last place of its result it may be off by.

        Returns:
            A box that contains all exact results.
        """
        lower, upper = function(self.lower), function(self.upper)
        if not ulps:
            return Box(lower, upper)
        size = torch.maximum(lower.abs(), upper.abs())
        return Box(lower, upper).widened(2 * ulps * verified.unit_roundoff(size.dtype) * size)

    def affine(
        self, product: Callable[[Tensor], Tensor], magnitude: Callable[[Tensor], Tensor], offset: Tensor, terms: int
    ) -> Box:
        """The image under x ↦ M x + offset, by midpoint and half the width: M mid ± |M| half.

        Entries of M that are right to a rounding will do.

        Args:
            product: x ↦ M x.
            magnitude: x ↦ |M| x, with the moduli of the entries.
            offset: What is added; it broadcasts against M x.
            terms: How many products an entry of M x sums at most.

        Returns:
            A box that contains all exact results.
        """
        dtype = self.lower.dtype
        rounding, tiny = verified.rounding_factor(terms + 8, dtype), _floor(dtype)
        middle = (self.lower + self.upper) / 2
        half = torch.maximum(self.upper - middle, middle - self.lower)
        # What is rounded is relative to |M| |mid| + |offset|, and half the width is itself rounded.
        spread = magnitude(half + (rounding * (middle.abs() + half) + tiny)) + rounding * offset.abs()
        value = product(middle) + offset
        return Box(value, value).widened(spread * (1 + 2 * rounding) + terms * tiny)

    def plus(self, other: Box) -> Box:
        """All sums of an entry of this box and one of another.

        Args:
            other: The other box, of the same shape.

        Returns:
            A box that contains the exact sums.
        """
        summed = Box(self.lower + other.lower, self.upper + other.upper)
        return summed.widened(torch.zeros((), dtype=self.lower.dtype, device=self.lower.device))

    def contains(self, other: Box) -> Tensor:
        """Whether another box lies in this one.

        Args:
            other: The other box, of the same shape.

        Returns:
            (batch,) bool; False where an end is NaN.
        """
        inside = (self.lower <= other.lower) & (other.upper <= self.upper)
        return inside.flatten(1).all(1)


def _floor(dtype: torch.dtype) -> float:
    """More than what an operation may lose where its result leaves the normal numbers.

    It is so much more that products with it stay normal: processors are slow with others.
    """
    return float(torch.finfo(dtype).tiny ** 0.75)


def spectral_estimate(matrix: Tensor) -> Tensor:
    """‖M‖₂ in floating point, differentiable.

    Args:
        matrix: M.

    Returns:
        A scalar tensor.
    """
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    return torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt()
