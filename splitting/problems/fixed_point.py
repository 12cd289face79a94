"""General fixed points z = f(z, x): solved like everything else, with nothing proved about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from splitting.errors import InvalidArgument, InvalidType
from splitting.problems.base import Problem


@dataclass(frozen=True, eq=False)
class FixedPoint(Problem):
    """The problem z = f(z, x) for any f, such as a torch.nn.Module: a deep equilibrium model.

    (Bai, Kolter & Koltun 2019.) Whether there is a solution, and only one, is not known: `error_bound` is inf.

    Args:
        f: (z, x, *parameters) ↦ states like z; samples must not see each other.
        source: x, batch first.
        like: States (batch, …), whose shape, dtype and device all states have, and where methods start if no guess is
            given.
        parameters: Tensors besides x that gradients are to flow to; the weights of a Module are found.

    Raises:
        InvalidType: If f cannot be called, or source or like is no tensor.
        InvalidArgument: If like is not of floating point and at least two dimensions, or source has another number of
            samples.
    """

    f: Callable[..., Tensor]
    source: Tensor
    like: Tensor
    parameters: tuple[Tensor, ...] = ()
    overflow = "f does not contract here; damp it with Iterate(damping), bound its weights or start elsewhere"

    def __post_init__(self) -> None:
        if not callable(self.f):
            raise InvalidType(f"`f` must be a function of (z, x), got {type(self.f).__name__}")
        for name in ("source", "like"):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                raise InvalidType(f"`{name}` must be a tensor, got {type(value).__name__}")
        if self.like.ndim < 2 or not self.like.is_floating_point():
            raise InvalidArgument(
                f"`like` must be states (batch, …) of floating point, got {self.like.dtype} {tuple(self.like.shape)}"
            )
        if self.source.shape[:1] != self.like.shape[:1]:
            raise InvalidArgument(
                f"`source` must have the {len(self.like)} samples of `like`, got shape {tuple(self.source.shape)}"
            )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.source, *self._weights.values(), *self.parameters)

    @property
    def _weights(self) -> dict[str, Tensor]:
        return dict(self.f.named_parameters()) if isinstance(self.f, nn.Module) else {}

    def map(self, z: Tensor) -> Tensor:
        return self._checked(self.f(z, self.source, *self.parameters))

    def at(self, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """The map f(z, x) with other tensors in the places of this problem's.

        Args:
            z: States, like `like`.
            tensors: As many as `self.tensors`, in the same order.

        Returns:
            f(z, x, *parameters), of the shape of z.

        Raises:
            InvalidArgument: If f gives another shape.
            InvalidType: If f gives another dtype or device, or no tensor.
        """
        names = list(self._weights)
        source, weights, parameters = tensors[0], tensors[1 : 1 + len(names)], tensors[1 + len(names) :]
        if isinstance(self.f, nn.Module):
            given = dict(zip(names, weights, strict=True))
            return self._checked(functional_call(self.f, given, (z, source, *parameters)))
        return self._checked(self.f(z, source, *parameters))

    def _checked(self, image: Tensor) -> Tensor:
        self.check_state("f(z, x)", image)
        return image

    def frozen(self) -> FixedPoint:
        parameters = tuple(p.detach() for p in self.parameters)
        return replace(self, source=self.source.detach(), like=self.like.detach(), parameters=parameters)

    def snapshot(self) -> FixedPoint:
        return self.frozen()  # nothing is claimed of a solution later that a change could make wrong

    def scale(self) -> Callable[[Tensor], Tensor]:
        return self.norm

    def judged(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return z, self.norm(image - z)

    def error_bound(self, z: Tensor) -> Tensor:
        return torch.full((len(z),), math.inf, dtype=torch.float64, device=z.device)
