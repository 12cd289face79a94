"""Elementwise activations σ as proximal operators: σ = prox_f for a convex f, and prox_{αf} for every α > 0.

For σ = prox_f, z = prox_{αf}(v) is z = σ(y) with y the root of α y + (1 − α) σ(y) = v, whose slope in y lies in
[min(α, 1), max(α, 1)]; then s = y − z ∈ ∂f(z). (f is convex exactly when σ is nondecreasing and 1-Lipschitz:
Combettes & Pesquet 2020, arXiv 1808.07526.) New activations subclass `Activation` and give σ and σ′.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splitting.context import is_transformed
from splitting.errors import InvalidArgument, InvalidType
from splitting.scratch import may_overwrite, recycled

Step = Callable[[Tensor, Tensor | None], Tensor]
"""v, out ↦ prox_{αf}(v) for one α; written to `out` if it is not None, which may be v."""


class Activation(ABC):
    """σ = prox_f, elementwise, nondecreasing and 1-Lipschitz. Shapes are kept.

    A subclass gives `__call__` (σ) and `derivative` (σ′, any selection at kinks); `point` has a safeguarded Newton
    default that a closed form may replace. `splitting.check_activation` verifies a new one. `homogeneous` says that
    σ(κy) = κσ(y) for every κ > 0.
    """

    homogeneous: ClassVar[bool] = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors the activation is made of and gradients flow to; none for a fixed function."""
        return ()

    @abstractmethod
    def __call__(self, y: Tensor) -> Tensor:
        """σ(y)."""

    @abstractmethod
    def derivative(self, y: Tensor) -> Tensor:
        """σ′(y) ∈ [0, 1]."""

    def derivative_at(self, z: Tensor) -> Tensor | None:
        """σ′(y) in terms of z = σ(y), as a new tensor; None where z does not determine it, or nobody has said how."""
        return None

    def prox(self, v: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
        """prox_{αf}(v) = σ(point(v, α)); written to `out` if given, which may be v."""
        z = self(self.point(v, alpha))
        return z if out is None else out.copy_(z)

    def prox_at(self, alpha: float) -> Step:
        """prox_{αf} for the many steps of one solve, with what they share computed once."""
        return lambda v, out: self.prox(v, alpha, out)

    def scaled(self, factor: Tensor) -> Activation:
        """y ↦ κσ(y/κ) for factors κ > 0, shaped to multiply states: what σ becomes where states are measured in 1/κ."""
        return self if self.homogeneous else Scaled(self, factor)

    def point(self, v: Tensor, alpha: float) -> Tensor:
        """The pre-activation y with α y + (1 − α) σ(y) = v, so that prox_{αf}(v) = σ(y).

        Newton's method, safeguarded by bisection in the bracket that the slope bounds give.
        """
        return _newton(self, v, alpha)

    def rebind(self, *tensors: Tensor) -> Activation:
        """This activation made of `tensors`."""
        return self

    def tensor_gradient(self, y: Tensor, p: Tensor) -> tuple[Tensor | None, ...]:
        """∂⟨p, σ(y)⟩/∂t for each t of `tensors`."""
        return ()


@dataclass(frozen=True)
class Identity(Activation):
    """σ(y) = y, f = 0: the inclusion is the linear system A z = c."""

    homogeneous: ClassVar[bool] = True

    def __call__(self, y: Tensor) -> Tensor:
        return y

    def derivative(self, y: Tensor) -> Tensor:
        return torch.ones_like(y)

    def derivative_at(self, z: Tensor) -> Tensor:
        return torch.ones_like(z)

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return v


@dataclass(frozen=True)
class ReLU(Activation):
    """σ(y) = max(y, 0), f the indicator of z ≥ 0; its prox does not depend on α."""

    homogeneous: ClassVar[bool] = True

    def __call__(self, y: Tensor) -> Tensor:
        return y.relu()

    def derivative(self, y: Tensor) -> Tensor:
        return (y > 0).to(y.dtype)

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return torch.where(v > 0, v, v / alpha)

    def derivative_at(self, z: Tensor) -> Tensor:
        # z ≥ 0
        return torch.sign(z, out=recycled(z)) if may_overwrite(z) else z.sign()

    def prox(self, v: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
        return v.relu() if out is None else torch.clamp_min(v, 0, out=out)


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """σ(y) = y for y > 0, slope·y otherwise; 0 < slope ≤ 1."""

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

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return torch.where(v > 0, v, v / (alpha + (1 - alpha) * self.slope))


@dataclass(frozen=True)
class SoftThreshold(Activation):
    """σ(y) = sign(y)·max(|y| − threshold, 0), f = threshold·|z|; threshold ≥ 0."""

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

    def point(self, v: Tensor, alpha: float) -> Tensor:
        outside = v + (1 - alpha) * self.threshold * v.sign()
        return torch.where(v.abs() > alpha * self.threshold, outside, v / alpha)


@dataclass(frozen=True)
class Box(Activation):
    """σ(y) = min(max(y, low), high): projection onto [low, high]."""

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

    def point(self, v: Tensor, alpha: float) -> Tensor:
        z = self(v)
        return z + (v - z) / alpha


@dataclass(frozen=True)
class Tanh(Activation):
    """σ(y) = tanh y."""

    def __call__(self, y: Tensor) -> Tensor:
        return y.tanh()

    def derivative(self, y: Tensor) -> Tensor:
        return 1 - y.tanh().square()

    def derivative_at(self, z: Tensor) -> Tensor:
        return 1 - z.square()


@dataclass(frozen=True)
class Sigmoid(Activation):
    """σ(y) = 1/(1 + e^(−y)), which is 1/4-Lipschitz."""

    def __call__(self, y: Tensor) -> Tensor:
        return y.sigmoid()

    def derivative(self, y: Tensor) -> Tensor:
        s = y.sigmoid()
        return s * (1 - s)

    def derivative_at(self, z: Tensor) -> Tensor:
        return z * (1 - z)


@dataclass(frozen=True)
class Softplus(Activation):
    """σ(y) = log(1 + e^y)."""

    def __call__(self, y: Tensor) -> Tensor:
        return torch.logaddexp(y, y.new_zeros(()))

    def derivative(self, y: Tensor) -> Tensor:
        return y.sigmoid()

    def derivative_at(self, z: Tensor) -> Tensor:
        return -torch.expm1(-z)


def _keep(activation: Activation, *names: str) -> None:
    """Keep parameters as numbers, which nobody else can change. Raises InvalidType for what is none."""
    for name in names:
        value = getattr(activation, name)
        try:
            object.__setattr__(activation, name, float(value))
        except (TypeError, ValueError, RuntimeError):
            raise InvalidType(f"`{name}` must be a number, got {value!r:.80}") from None


class Scale(Activation):
    """σ(y) = d ⊙ y with 0 ≤ d ≤ 1, f(z) = Σ (1/dᵢ − 1) zᵢ²/2: the "activation" of the backward pass.

    d broadcasts against states. prox_{αf}(v) = d v / (d + α(1 − d)), which is 0 where d = 0. Raises InvalidType,
    InvalidArgument for entries outside [0, 1], of which no f is convex.
    """

    homogeneous: ClassVar[bool] = True

    def __init__(self, d: Tensor) -> None:
        if not isinstance(d, Tensor):
            raise InvalidType(f"`d` must be a tensor, got {type(d).__name__}")
        if not (d.is_meta or is_transformed(d)) and not bool(((d >= 0) & (d <= 1)).all()):
            low, high = d.detach().aminmax()
            raise InvalidArgument(
                f"`d` must have entries in [0, 1], got {float(low):.6g} … {float(high):.6g}; clamp it"
            )
        self.d = d

    @classmethod
    def of_slopes(cls, d: Tensor) -> Scale:
        """That of slopes d = σ′(y), which an activation promises to lie in [0, 1]: nobody has to wait for a look."""
        scale = object.__new__(cls)
        scale.d = d
        return scale

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.d,)

    def prox_at(self, alpha: float) -> Step:
        denominator = torch.mul(self.d, 1 - alpha, out=recycled(self.d)).add_(alpha)
        multiplier = torch.div(self.d, denominator, out=denominator)
        return lambda v, out: torch.mul(v, multiplier, out=out)

    def prox(self, v: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
        return self.prox_at(alpha)(v, out)

    def __call__(self, y: Tensor) -> Tensor:
        return self.d * y

    def derivative(self, y: Tensor) -> Tensor:
        return self.d.expand_as(y)

    def derivative_at(self, z: Tensor) -> Tensor:
        return self.d.expand_as(z).clone()

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return v / (alpha + (1 - alpha) * self.d)

    def rebind(self, *tensors: Tensor) -> Scale:
        return Scale.of_slopes(*tensors)

    def tensor_gradient(self, y: Tensor, p: Tensor) -> tuple[Tensor | None, ...]:
        return ((p * y).sum_to_size(self.d.shape),)


class Masked(Activation):
    """`inner` where `mask` is true, 0 elsewhere: f plus the indicator of z = 0 off the mask.

    mask: boolean, broadcasts against states. Used for the border that makes circular convolutions zero-padded.
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

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return torch.where(self.mask, self.inner.point(v, alpha), v / alpha)

    def derivative_at(self, z: Tensor) -> Tensor | None:
        inside = self.inner.derivative_at(z)
        return None if inside is None else inside.mul_(self.mask)

    def prox(self, v: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
        z = self.inner.prox(v, alpha, out)
        return z * self.mask if out is None else z.mul_(self.mask)

    def rebind(self, *tensors: Tensor) -> Masked:
        return Masked(self.inner.rebind(*tensors), self.mask)

    def tensor_gradient(self, y: Tensor, p: Tensor) -> tuple[Tensor | None, ...]:
        return self.inner.tensor_gradient(y, p * self.mask)


class Scaled(Activation):
    """y ↦ κσ(y/κ) = prox_g(y) for an activation σ and factors κ > 0: g(z) = κ²f(z/κ), prox_{αg}(v) = κ prox_{αf}(v/κ).

    factor: κ, shaped to multiply states. Exact where κ is a power of two.
    """

    def __init__(self, inner: Activation, factor: Tensor) -> None:
        self.inner, self.factor = inner, factor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.inner.tensors

    def __call__(self, y: Tensor) -> Tensor:
        return self.inner(y / self.factor) * self.factor

    def derivative(self, y: Tensor) -> Tensor:
        return self.inner.derivative(y / self.factor)

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return self.inner.point(v / self.factor, alpha) * self.factor

    def prox(self, v: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
        return torch.mul(self.inner.prox(v / self.factor, alpha), self.factor, out=out)

    def rebind(self, *tensors: Tensor) -> Scaled:
        return Scaled(self.inner.rebind(*tensors), self.factor)


def _newton(activation: Activation, v: Tensor, alpha: float) -> Tensor:
    """Root y of h(y) = α y + (1 − α) σ(y) − v by Newton's method inside a shrinking bracket.

    The slope bounds give the first bracket. On the CPU the loop ends when no entry moves any more; elsewhere it
    runs a fixed number of steps, since asking would synchronise. An inexact y costs accuracy of the iteration
    only: error bounds use s = y − σ(y), a subgradient for every y.
    """
    if alpha == 1:
        return v
    flattest, steepest = min(alpha, 1.0), max(alpha, 1.0)
    y = v
    h = (1 - alpha) * (activation(y) - y)
    ends = y - h / flattest, y - h / steepest
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    # Saturated activations put the root at an end of the bracket; rounding must not count it as outside.
    pad = 1e-3 * (high - low)
    low, high = low - pad, high + pad
    on_host = y.device.type == "cpu"
    for k in range(200 if on_host else 12 + 2 * math.ceil(math.log2(steepest / flattest))):
        sigma = activation(y)
        h = alpha * y + (1 - alpha) * sigma - v
        low, high = torch.where(h < 0, y, low), torch.where(h > 0, y, high)
        newton = y - h / (alpha + (1 - alpha) * activation.derivative(y))
        # Kinks can make Newton cycle; every fourth step bisects, whatever it proposes, once it has had its chance.
        inside = (newton >= low) & (newton <= high) & (k < 12 or k % 4 != 3)
        following = torch.where(inside, newton, low + (high - low) / 2)
        moved = (following - y).abs() > 4 * torch.finfo(y.dtype).eps * (1 + y.abs())
        y = following
        if on_host and not bool(moved.any()):
            break
    return y
