"""An activation on a part of every state, 0 on the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from splitting.errors import InvalidType
from splitting.prox.base import Activation
from splitting.prox.enclosure import Slopes


class Masked(Activation):
    """The activation `inner` where a mask is true, 0 elsewhere: f plus the indicator of z = 0 off the mask.

    Used for the border that makes circular convolutions zero-padded.

    Args:
        inner: The activation inside.
        mask: Boolean, broadcasts against states.

    Raises:
        InvalidType: If inner is no Activation, or mask no boolean tensor.
    """

    def __init__(self, inner: Activation, mask: Tensor) -> None:
        if not isinstance(inner, Activation):
            raise InvalidType(f"`inner` must be an Activation, got {type(inner).__name__}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise InvalidType("`mask` must be a boolean tensor; pass mask.bool()")
        self.inner, self.mask = inner, mask

    @property
    def homogeneous(self) -> bool:  # type: ignore[override]  # as `inner` is
        return self.inner.homogeneous

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.inner.tensors

    def __call__(self, y: Tensor) -> Tensor:
        return self.inner(y) * self.mask

    def derivative(self, y: Tensor) -> Tensor:
        return self.inner.derivative(y) * self.mask

    def derivative_at(self, z: Tensor) -> Tensor | None:
        inside = self.inner.derivative_at(z)
        return None if inside is None else inside.mul_(self.mask)

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        lower, upper = self.inner.slopes(low, high)
        return lower * self.mask, upper * self.mask

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return torch.where(self.mask, self.inner.point(v, alpha), v / alpha)

    def proximal(self, v: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
        z = self.inner.proximal(v, alpha, out)
        return z * self.mask if out is None else z.mul_(self.mask)

    def rebind(self, *tensors: Tensor) -> Masked:
        return Masked(self.inner.rebind(*tensors), self.mask)

    def tensor_gradient(self, y: Tensor, p: Tensor) -> tuple[Tensor | None, ...]:
        return self.inner.tensor_gradient(y, p * self.mask)
