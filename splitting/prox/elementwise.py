"""The usual activations: one function of a number each, with closed forms where there are any."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType
from splitting.prox.base import Activation
from splitting.prox.enclosure import Slopes, around, outward, piecewise_linear, squared_sech
from splitting.scratch import may_overwrite, recycled


@dataclass(frozen=True)
class Identity(Activation):
    """The identity σ(y) = y, f = 0: the inclusion is the linear system A z = c."""

    homogeneous: ClassVar[bool] = True

    def __call__(self, y: Tensor) -> Tensor:
        return y

    def derivative(self, y: Tensor) -> Tensor:
        return torch.ones_like(y)

    def derivative_at(self, z: Tensor) -> Tensor:
        return torch.ones_like(z)

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        return outward(piecewise_linear(low, high, (), (1,)), low.dtype)

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return v


@dataclass(frozen=True)
class ReLU(Activation):
    """The rectifier σ(y) = max(y, 0), f the indicator of z ≥ 0; its prox does not depend on α."""

    homogeneous: ClassVar[bool] = True

    def __call__(self, y: Tensor) -> Tensor:
        return y.relu()

    def derivative(self, y: Tensor) -> Tensor:
        return (y > 0).to(y.dtype)

    def derivative_at(self, z: Tensor) -> Tensor:
        # z ≥ 0
        return torch.sign(z, out=recycled(z)) if may_overwrite(z) else z.sign()

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        return outward(piecewise_linear(low, high, (0,), (0, 1)), low.dtype)

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return torch.where(v > 0, v, v / alpha)

    def proximal(self, v: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
        return v.relu() if out is None else torch.clamp_min(v, 0, out=out)


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """The leaky rectifier: σ(y) = y for y > 0, slope·y otherwise.

    Args:
        slope: In (0, 1].

    Raises:
        InvalidType: If slope is no number.
        InvalidArgument: If slope lies outside (0, 1].
    """

    homogeneous: ClassVar[bool] = True

    slope: float = 0.01

    def __post_init__(self) -> None:
        _keep(self, "slope")
        if not 0 < self.slope <= 1:
            raise InvalidArgument(f"`slope` must lie in (0, 1], got {self.slope}; for slope 0 use ReLU()")

    def __call__(self, y: Tensor) -> Tensor:
        return torch.where(y > 0, y, self.slope * y)

    def derivative(self, y: Tensor) -> Tensor:
        # Not between two numbers, which would be of the default dtype.
        return torch.where(y > 0, torch.ones_like(y), self.slope)

    def derivative_at(self, z: Tensor) -> Tensor:
        return self.derivative(z)

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        return outward(piecewise_linear(low, high, (0,), (self.slope, 1)), low.dtype)

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return torch.where(v > 0, v, v / (alpha + (1 - alpha) * self.slope))


@dataclass(frozen=True)
class SoftThreshold(Activation):
    """Soft thresholding σ(y) = sign(y)·max(|y| − threshold, 0), f = threshold·|z|.

    Args:
        threshold: Finite and ≥ 0, in the units of y.

    Raises:
        InvalidType: If threshold is no number.
        InvalidArgument: If threshold is negative or not finite.
    """

    threshold: float = 1.0

    def __post_init__(self) -> None:
        _keep(self, "threshold")
        if not 0 <= self.threshold < math.inf:
            raise InvalidArgument(f"`threshold` must be finite and ≥ 0, got {self.threshold}")

    def __call__(self, y: Tensor) -> Tensor:
        return y - y.clamp(-self.threshold, self.threshold)

    def derivative(self, y: Tensor) -> Tensor:
        return (y.abs() > self.threshold).to(y.dtype)

    def derivative_at(self, z: Tensor) -> Tensor:
        return (z != 0).to(z.dtype)

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        return outward(piecewise_linear(low, high, (-self.threshold, self.threshold), (1, 0, 1)), low.dtype)

    def point(self, v: Tensor, alpha: float) -> Tensor:
        outside = v + (1 - alpha) * self.threshold * v.sign()
        return torch.where(v.abs() > alpha * self.threshold, outside, v / alpha)


@dataclass(frozen=True)
class Box(Activation):
    """The projection σ(y) = min(max(y, low), high) onto [low, high], f its indicator; its prox does not depend on α.

    Args:
        low: Lower end; may be −inf.
        high: Upper end, ≥ low; may be inf.

    Raises:
        InvalidType: If low or high is no number.
        InvalidArgument: If low exceeds high, or one of them is NaN.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _keep(self, "low", "high")
        if not self.low <= self.high:
            raise InvalidArgument(f"`low` must not exceed `high`, got low={self.low}, high={self.high}")

    def __call__(self, y: Tensor) -> Tensor:
        return y.clamp(self.low, self.high)

    def derivative(self, y: Tensor) -> Tensor:
        return ((y > self.low) & (y < self.high)).to(y.dtype)

    def derivative_at(self, z: Tensor) -> Tensor:
        return self.derivative(z)

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        return outward(piecewise_linear(low, high, (self.low, self.high), (0, 1, 0)), low.dtype)

    def point(self, v: Tensor, alpha: float) -> Tensor:
        z = self(v)
        return z + (v - z) / alpha


@dataclass(frozen=True)
class Tanh(Activation):
    """The hyperbolic tangent σ(y) = tanh y."""

    def __call__(self, y: Tensor) -> Tensor:
        return y.tanh()

    def derivative(self, y: Tensor) -> Tensor:
        return 1 - y.tanh().square()

    def derivative_at(self, z: Tensor) -> Tensor:
        return 1 - z.square()

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        return outward(squared_sech(low, high), low.dtype)


@dataclass(frozen=True)
class Sigmoid(Activation):
    """The logistic function σ(y) = 1/(1 + e^(−y)), which is 1/4-Lipschitz."""

    def __call__(self, y: Tensor) -> Tensor:
        return y.sigmoid()

    def derivative(self, y: Tensor) -> Tensor:
        s = y.sigmoid()
        return s * (1 - s)

    def derivative_at(self, z: Tensor) -> Tensor:
        return z * (1 - z)

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        # σ(y) = (1 + tanh(y/2))/2; halves and quarters are exact.
        lower, upper = squared_sech(low.double() / 2, high.double() / 2)
        return outward((lower / 4, upper / 4), low.dtype)


@dataclass(frozen=True)
class Softplus(Activation):
    """The soft rectifier σ(y) = log(1 + e^y)."""

    def __call__(self, y: Tensor) -> Tensor:
        return torch.logaddexp(y, y.new_zeros(()))

    def derivative(self, y: Tensor) -> Tensor:
        return y.sigmoid()

    def derivative_at(self, z: Tensor) -> Tensor:
        return -torch.expm1(-z)

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        low, high = torch.broadcast_tensors(low, high)
        return outward(around(*(end.detach().double().sigmoid() for end in (low, high))), low.dtype)


def _keep(activation: Activation, *names: str) -> None:
    """Keep parameters as numbers, which nobody else can change. Raises InvalidType for what is none."""
    for name in names:
        value = getattr(activation, name)
        try:
            object.__setattr__(activation, name, float(value))
        except (TypeError, ValueError, RuntimeError):
            raise InvalidType(f"`{name}` must be a number, got {value!r:.80}") from None
