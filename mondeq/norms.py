"""Norms in which changes are measured on their way through a network, and the balls that they make.

Inside a network they are weighted 2-norms ‖x‖ = ‖ρ x‖₂ with a diagonal ρ > 0. At its entrance a user may ask in other
norms of the pixels, which `NORMS` know how to compare with the 2-norm.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    "InputNorm",
    "LInf",
    "Norm",
    "spectral_estimate",
]


class InputNorm(ABC):
    """A norm of images, by its name in `NORMS`.

    Attributes:
        symbol: How it is written.
    """

    symbol: ClassVar[str]

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

    @staticmethod
    def euclidean(shape: Sequence[int]) -> float:
        return 1.0


@NORMS.enrol("linf")
class LInf(InputNorm):
    """The largest |xᵢ|; ‖x‖₂ ≤ √n ‖x‖_∞ for n entries."""

    symbol = "ℓ∞"

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


def spectral_estimate(matrix: Tensor) -> Tensor:
    """‖M‖₂ in floating point, differentiable.

    Args:
        matrix: M.

    Returns:
        A scalar tensor.
    """
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    return torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt()
