"""The norms that attacks know their way in: sizes, balls and steepest directions, by the names in `NORMS`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mondeq.registry import Registry
from splitting import verified


class Geometry(ABC):
    """A norm as an attack needs it. It enrols in `GEOMETRIES` by the name that `NORMS` have for it.

    Attributes:
        order: p of ‖x‖_p.
    """

    order: ClassVar[float]

    @staticmethod
    @abstractmethod
    def size(steps: Tensor) -> Tensor:
        """A proved upper bound on the norm of each step from an image, the rounding of the subtraction included.

        Args:
            steps: (batch, …) float64, the computed difference of two images.

        Returns:
            (batch,) float64.
        """

    @staticmethod
    @abstractmethod
    def direction(gradients: Tensor) -> Tensor:
        """The step of norm 1 along which a loss grows fastest; 0 where the gradient is.

        Args:
            gradients: (batch, …).

        Returns:
            Of the same shape.
        """

    @staticmethod
    @abstractmethod
    def project(steps: Tensor, radius: Tensor) -> Tensor:
        """The nearest steps of norm ≤ radius.

        Args:
            steps: (batch, …).
            radius: (batch,).

        Returns:
            Of the shape of `steps`.
        """

    @staticmethod
    @abstractmethod
    def draw(like: Tensor, generator: torch.Generator) -> Tensor:
        """Steps that are uniform in the ball of radius 1.

        Args:
            like: (batch, …); what is drawn has its shape, dtype and device.
            generator: What they are drawn from, on the CPU.

        Returns:
            The steps.
        """

    @classmethod
    def reach(cls, shape: Sequence[int]) -> float:
        """The norm of the longest step within the box [0, 1].

        Args:
            shape: That of one image.

        Returns:
            An upper bound on it.
        """
        return float(cls.size(torch.ones(1, *shape, dtype=torch.float64, device="cpu")))


GEOMETRIES: Registry[Geometry] = Registry("norm of attacks")
"""The norms that attacks know, by name."""


@GEOMETRIES.enrol("l2")
class L2Geometry(Geometry):
    """‖x‖₂."""

    order = 2.0

    @staticmethod
    def size(steps: Tensor) -> Tensor:
        return verified.vector_norm(steps) * (1 + 4 * verified.unit_roundoff(torch.float64))

    @staticmethod
    def direction(gradients: Tensor) -> Tensor:
        # By the largest entry first, so that no square vanishes or overflows.
        scaled = gradients / _columns(_largest(gradients).clamp_min(_tiny(gradients)), gradients)
        return scaled / _columns(scaled.flatten(1).norm(dim=1).clamp_min(0.5), gradients)

    @staticmethod
    def project(steps: Tensor, radius: Tensor) -> Tensor:
        length = verified.vector_norm(steps).clamp_min(_tiny(steps)).to(steps)
        return steps * _columns((radius / length).clamp_max(1), steps)

    @staticmethod
    def draw(like: Tensor, generator: torch.Generator) -> Tensor:
        shape = len(like), like[0].numel() + 2
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        # The first d coordinates of a uniform point of the sphere in d + 2 dimensions are uniform in the ball.
        return torch.nn.functional.normalize(drawn, dim=1)[:, :-2].reshape(like.shape).to(like)


@GEOMETRIES.enrol("linf")
class LInfGeometry(Geometry):
    """The largest |xᵢ|."""

    order = math.inf

    @staticmethod
    def size(steps: Tensor) -> Tensor:
        return _largest(steps.double()) * (1 + 4 * verified.unit_roundoff(torch.float64)) + verified.UNDERFLOW

    @staticmethod
    def direction(gradients: Tensor) -> Tensor:
        return gradients.sign()

    @staticmethod
    def project(steps: Tensor, radius: Tensor) -> Tensor:
        most = _columns(radius, steps)
        return steps.clamp(-most, most)

    @staticmethod
    def draw(like: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64, device="cpu")
        return (2 * drawn - 1).to(like)


def _largest(x: Tensor) -> Tensor:
    return x.flatten(1).abs().amax(1)


def _columns(values: Tensor, like: Tensor) -> Tensor:
    """`values` (batch,) shaped to multiply `like` (batch, …)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
