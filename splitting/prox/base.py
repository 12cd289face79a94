"""What an activation is, and the two that it makes of itself: its linearisation, and itself in other units.

For σ = prox_f, z = prox_{αf}(v) is z = σ(y) with y the root of α y + (1 − α) σ(y) = v, whose slope in y lies in
[min(α, 1), max(α, 1)]; then s = y − z ∈ ∂f(z).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from splitting.context import is_transformed
from splitting.errors import InvalidArgument, InvalidType
from splitting.prox.enclosure import Slopes, mean_slopes, outward
from splitting.prox.newton import root
from splitting.scratch import recycled

Step = Callable[[Tensor, Tensor | None], Tensor]
"""v, out ↦ prox_{αf}(v) for one α; written to `out` if it is not None, which may be v."""


class Activation(ABC):
    """An activation σ = prox_f for a convex f: elementwise, nondecreasing and 1-Lipschitz. Shapes are kept.

    A subclass gives `__call__` (σ) and `derivative` (σ′, any selection at kinks). All else follows from these, and a
    closed form may replace what follows. `splitting.check_activation` looks for a violation of what is promised here.

    Attributes:
        homogeneous: Whether σ(κy) = κσ(y) for every κ > 0.
    """

    homogeneous: ClassVar[bool] = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors the activation is made of and gradients flow to; none for a fixed function."""
        return ()

    @abstractmethod
    def __call__(self, y: Tensor) -> Tensor:
        """The activation σ(y).

        Args:
            y: Pre-activations, of any shape that the activation's tensors broadcast to.

        Returns:
            σ(y), of the shape of y.
        """

    @abstractmethod
    def derivative(self, y: Tensor) -> Tensor:
        """The slope σ′(y); at a kink any selection between the slopes beside it.

        Args:
            y: Pre-activations.

        Returns:
            σ′(y) ∈ [0, 1], of the shape of y.
        """

    def derivative_at(self, z: Tensor) -> Tensor | None:
        """The slope σ′(y) in terms of the value z = σ(y), which saves computing y.

        Args:
            z: Values σ(y).

        Returns:
            σ′(y) as a new tensor of the shape of z, or None where z does not determine it or nobody has said how.
        """
        return None

    def linearised(self, y: Tensor) -> Activation:
        """The activation of the linear equilibria that differentiating one at y leads to: multiplication by σ′(y).

        Those are the adjoint and the tangent one, ż = σ′(y) ⊙ (W ż + ċ).

        Args:
            y: Pre-activations of a solution, y = W z* + c.

        Returns:
            An activation made of σ′(y), through which derivatives with respect to y flow.
        """
        return Scale.of_slopes(self.derivative(y))

    def linearised_at(self, z: Tensor) -> Activation | None:
        """The same as `linearised` in terms of z = σ(y), as a value: without derivatives with respect to y.

        Args:
            z: Values σ(y), a solution z*.

        Returns:
            `linearised(y)`, or None where z alone does not determine it, as `derivative_at` says.
        """
        d = self.derivative_at(z)
        return None if d is None else Scale.of_slopes(d)

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        """Proved interval of the slopes [σ(b) − σ(a)]/(b − a) over all low ≤ a < b ≤ high, entry by entry.

        That is inf and sup of σ′ there, rounded outward; between equal ends, the slopes on both sides. What is known
        of every activation is [0, 1].

        Args:
            low: Lower ends of the pre-activations; may be −inf.
            high: Upper ends, low ≤ high, which broadcast against low; may be inf.

        Returns:
            The lower and the upper ends, within [0, 1], of the dtype of low.
        """
        shape = torch.broadcast_shapes(low.shape, high.shape)
        return low.new_zeros(shape), low.new_ones(shape)

    def chords(self, low: Tensor, high: Tensor, reach: Tensor) -> Slopes:
        """Proved interval of the slopes [σ(b) − σ(a)]/(b − a) over a in [low, high] and |b − a| ≤ reach, b ≠ a.

        A chord is a mean of slopes: of those of all parts of [a, b] on either side.

        Args:
            low: Lower ends of one end of the chords.
            high: Upper ends, low ≤ high, shaped like low.
            reach: Their largest length, ≥ 0, shaped like low; may be inf.

        Returns:
            The lower and the upper ends, within [0, 1], of the dtype of low.
        """
        return mean_slopes(self.slopes, low, high, reach)

    def proximal(self, v: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
        """The proximal step prox_{αf}(v) = σ(point(v, α)); for α = 1 it is σ(v).

        Args:
            v: What to take the step of.
            alpha: α > 0.
            out: Where to write the result, if given; may be v.

        Returns:
            prox_{αf}(v), of the shape of v.
        """
        z = self(self.point(v, alpha))
        return z if out is None else out.copy_(z)

    def proximal_at(self, alpha: float) -> Step:
        """The map prox_{αf} for the many steps of one solve, with what they share computed once.

        Args:
            alpha: α > 0.

        Returns:
            A function of v and out, as `proximal` is; `out` may be None.
        """
        return lambda v, out: self.proximal(v, alpha, out)

    def scaled(self, factor: Tensor) -> Activation:
        """The activation y ↦ κσ(y/κ): what σ becomes where states are measured in units of 1/κ.

        Args:
            factor: κ > 0, shaped to multiply states.

        Returns:
            `Scaled(self, factor)`, or this activation itself where it is homogeneous.
        """
        return self if self.homogeneous else Scaled(self, factor)

    def point(self, v: Tensor, alpha: float) -> Tensor:
        """The pre-activation y with α y + (1 − α) σ(y) = v, so that prox_{αf}(v) = σ(y).

        By default Newton's method, safeguarded by bisection in the bracket that the slope bounds give.

        Args:
            v: What the proximal step is taken of.
            alpha: α > 0.

        Returns:
            y, of the shape of v.
        """
        return root(self, self.derivative, v, alpha)

    def rebind(self, *tensors: Tensor) -> Activation:
        """This activation made of other tensors.

        Args:
            *tensors: As many as `tensors`, in the same order.

        Returns:
            The activation with `tensors` in place of its own; itself if it has none.
        """
        return self

    def tensor_gradient(self, y: Tensor, p: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient ∂⟨p, σ(y)⟩/∂t for each t of `tensors`.

        Args:
            y: Pre-activations.
            p: Cotangents, of the shape of y.

        Returns:
            One gradient for each tensor, of its shape, or None where it is 0.
        """
        return ()


class Scale(Activation):
    """The activation σ(y) = d ⊙ y of the backward pass, with 0 ≤ d ≤ 1 and f(z) = Σ (1/dᵢ − 1) zᵢ²/2.

    prox_{αf}(v) = d v / (d + α(1 − d)), which is 0 where d = 0.

    Args:
        d: Slopes, which broadcast against states.

    Raises:
        InvalidType: If d is no tensor.
        InvalidArgument: If d has entries outside [0, 1], of which no f is convex.
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
        """The scale of slopes d = σ′(y), without a look at their values, which nobody then has to wait for.

        Args:
            d: What an activation promises to lie in [0, 1].

        Returns:
            Scale(d).
        """
        scale = object.__new__(cls)
        scale.d = d
        return scale

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.d,)

    def proximal_at(self, alpha: float) -> Step:
        denominator = torch.mul(self.d, 1 - alpha, out=recycled(self.d)).add_(alpha)
        multiplier = torch.div(self.d, denominator, out=denominator)
        return lambda v, out: torch.mul(v, multiplier, out=out)

    def proximal(self, v: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
        return self.proximal_at(alpha)(v, out)

    def __call__(self, y: Tensor) -> Tensor:
        return self.d * y

    def derivative(self, y: Tensor) -> Tensor:
        return self.d.expand_as(y)

    def derivative_at(self, z: Tensor) -> Tensor:
        return self.d.expand_as(z).clone()

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        d = self.d.detach().double().expand(torch.broadcast_shapes(self.d.shape, low.shape, high.shape))
        return outward((d, d), low.dtype)

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return v / (alpha + (1 - alpha) * self.d)

    def rebind(self, *tensors: Tensor) -> Scale:
        return Scale.of_slopes(*tensors)

    def tensor_gradient(self, y: Tensor, p: Tensor) -> tuple[Tensor | None, ...]:
        return ((p * y).sum_to_size(self.d.shape),)


class Scaled(Activation):
    """The activation y ↦ κσ(y/κ) = prox_g(y), g(z) = κ²f(z/κ); prox_{αg}(v) = κ prox_{αf}(v/κ).

    Exact where κ is a power of two.

    Args:
        inner: σ.
        factor: κ > 0, shaped to multiply states.
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

    def slopes(self, low: Tensor, high: Tensor) -> Slopes:
        return self.inner.slopes(self._divided(low, -math.inf), self._divided(high, math.inf))

    def _divided(self, end: Tensor, direction: float) -> Tensor:
        """end/κ, moved on in `direction` where it was rounded."""
        quotient = end / self.factor
        power_of_two = torch.frexp(self.factor).mantissa == 0.5
        exact = (end == 0) | (power_of_two & (quotient * self.factor == end))
        return torch.where(exact, quotient, torch.nextafter(quotient, torch.full_like(quotient, direction)))

    def point(self, v: Tensor, alpha: float) -> Tensor:
        return self.inner.point(v / self.factor, alpha) * self.factor

    def proximal(self, v: Tensor, alpha: float, out: Tensor | None = None) -> Tensor:
        return torch.mul(self.inner.proximal(v / self.factor, alpha), self.factor, out=out)

    def rebind(self, *tensors: Tensor) -> Scaled:
        return Scaled(self.inner.rebind(*tensors), self.factor)
