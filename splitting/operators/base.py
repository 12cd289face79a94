"""Linear operators A of the inclusion 0 ∈ A z − c + ∂f(z): what A can do.

An operator is a value. It acts on states (batch, *state_shape) and carries the diagonal metric Λ in which it is
monotone: ⟨z, A z⟩_Λ ≥ m ‖z‖²_Λ with ⟨x, y⟩_Λ = Σ λᵢ xᵢ yᵢ, and L = ‖Λ^½ A Λ^-½‖₂. Λ = I when `metric` is None.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from splitting import verified
from splitting.context import full_precision
from splitting.derived import Derived
from splitting.errors import InvalidArgument

T = TypeVar("T")

# Metrics of up to this power of two leave float32 norms room enough.
_ORDINARY_POWER = 20


class Resolvent(ABC):
    """V = (I + αA)⁻¹ as a value: call it on states. `resolvent.adjoint` equals the resolvent of A's adjoint."""

    @abstractmethod
    def __call__(self, v: Tensor) -> Tensor:
        """V v for states v (batch, *state_shape)."""

    @abstractmethod
    def reflect(self, v: Tensor, memory: Tensor | None = None) -> Tensor:
        """(2V − I) v: the reflected resolvent, in as few passes over memory as the operator can.

        memory: a tensor like v, not v itself, that may be overwritten and returned.
        """

    @property
    @abstractmethod
    def adjoint(self) -> Resolvent:
        """Vᵀ = (I + αAᵀ)⁻¹, sharing this one's factors."""


class Operator(ABC):
    """A linear map A on states, strongly monotone in its metric.

    tensors: what A is made of and what gradients flow to. state_shape: of one state. metric: the diagonal of Λ, shaped
    to multiply states, or None for Λ = I. strong_monotonicity: m where it is known by construction of these values.
    A is always that of the values that its tensors have now. What is derived from them (assembled matrices, resolvents,
    bounds) is computed on demand and kept until a value changes; `frozen` makes that comparison once for a computation.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        state_shape: Sequence[int],
        *,
        metric: Tensor | None = None,
        strong_monotonicity: float | None = None,
    ) -> None:
        self.tensors = tuple(tensors)
        self.state_shape = torch.Size(state_shape)
        self.metric = None if metric is None else metric.detach()
        self._derived: Derived | None = None
        self._is_frozen = False
        if strong_monotonicity is not None:
            self._results["strong_monotonicity"] = float(strong_monotonicity)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @abstractmethod
    def apply(self, z: Tensor) -> Tensor:
        """A z for states z (batch, *state_shape); differentiable in z and in `tensors`."""

    @property
    @abstractmethod
    def adjoint(self) -> Operator:
        """Aᵀ, with metric Λ⁻¹ and the same m and L."""

    @abstractmethod
    def resolvent(self, alpha: float) -> Resolvent:
        """(I + αA)⁻¹, checked on a probe. Raises ResolventError if the computed inverse does not invert."""

    @property
    @abstractmethod
    def strong_monotonicity(self) -> float:
        """m: a proved lower bound, rounding included. May be ≤ 0, and then nothing is guaranteed."""

    @property
    @abstractmethod
    def lipschitz(self) -> float:
        """L: a proved upper bound on ‖Λ^½ A Λ^-½‖₂, rounding included."""

    @property
    @abstractmethod
    def frobenius(self) -> float:
        """‖Λ^½ A Λ^-½‖_F: cheap, and never less than ‖Λ^½ A Λ^-½‖₂ (up to rounding)."""

    @property
    def norm_bound(self) -> float:
        """Cheap upper bound (up to rounding) on ‖Λ^½ A Λ^-½‖₂; ‖·‖_F unless the structure of A gives a better one."""
        return self.frobenius

    def distance_bound(self, shift: float) -> float:
        """Cheap upper bound (up to rounding) on ‖Λ^½ (A − shift·I) Λ^-½‖₂: what residuals are bounded with."""
        return self.norm_bound + abs(shift)

    def cayley_norm(self, alpha: float) -> float | None:
        """‖(I − αA)(I + αA)⁻¹‖_Λ, estimated for choosing α, where the structure of A makes that cheap; else None."""
        return None

    def arranged(self, z: Tensor) -> Tensor:
        """z in the memory order that this operator works on: itself where it already lies so, else a copy."""
        return z

    @abstractmethod
    def rounding(self, z: Tensor) -> Tensor:
        """Upper bound, per sample, on ‖fl(A z) − A z‖_Λ for `apply` in this dtype."""

    @abstractmethod
    def double(self) -> Operator:
        """The same numbers in float64."""

    def frozen(self) -> Self:
        """This operator for a computation during which its tensors keep their values, which are compared only now."""
        return self if self._is_frozen else self.rebind(*self.tensors)

    def rebind(self, *tensors: Tensor) -> Self:
        """This operator on other handles of the *same values*: results are shared, gradients flow to `tensors`.

        Like `frozen`, it relies on them to keep their values.
        """
        twin = self.replace(*tensors)
        twin._derived, twin._is_frozen = self._current(), True
        return twin

    def snapshot(self) -> Self:
        """This operator on copies of its values, which no change of its own tensors reaches."""
        current = self._current()
        metric = None if self.metric is None else current.values[-1]
        twin = self.replace(*current.values[: len(self.tensors)], metric=metric)
        twin._derived, twin._is_frozen = current, True
        return twin

    def replace(self, *tensors: Tensor, metric: Tensor | None = None) -> Self:
        """The operator of this kind made of new values, with the same metric unless another is given."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.tensors = tensors
        twin.metric = self.metric if metric is None else metric.detach()
        twin._derived, twin._is_frozen = None, False
        return twin

    @abstractmethod
    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        """∂⟨q, A z⟩/∂t for each t of `tensors`, itself differentiable; None for a t that needs none."""

    @property
    def root_metric(self) -> Tensor | None:
        """The diagonal of Λ^½ in the operator's dtype, or None for Λ = I."""
        metric = self.metric
        return None if metric is None else self._cached("root_metric", lambda: metric.double().sqrt().to(self.dtype))

    def norm(self, z: Tensor) -> Tensor:
        """‖z‖_Λ of each sample of z (batch, *state_shape)."""
        root = self.root_metric
        # Over all dimensions instead of flattened: a state may lie in memory in another order than its shape's.
        return torch.linalg.vector_norm(z if root is None else z * root, dim=tuple(range(1, z.ndim)))

    def balanced(self) -> Self:
        """This operator with its metric times a power of two, so that the largest λ is near 1.

        Nothing but norms depends on the scale of a metric, and these must neither overflow nor vanish.
        """
        metric = self.metric
        if metric is None:
            return self
        power = self._cached("power of the metric", lambda: verified.normalised(metric.double())[1])
        if abs(power) <= _ORDINARY_POWER:
            return self
        return self.replace(*self.tensors, metric=verified.normalised(metric.double())[0]).frozen()

    @property
    def typical_step(self) -> float:
        """√n/‖A‖_F in the metric: the reciprocal of A's root-mean-square singular value, the cheap step choice."""
        size = self.frobenius
        if not math.isfinite(size):
            raise InvalidArgument(
                f"`operator` has ‖A‖_F = {size}: A holds NaN or inf or overflows {self.dtype}, or its metric is not "
                "positive; check the weights, use float64 or rescale"
            )
        # For A = 0 any step will do; otherwise one that the dtype can hold.
        largest = torch.finfo(self.dtype).max / 1024
        return min(math.sqrt(max(self.state_shape.numel(), 1)) / size, largest) if size else 1.0

    def _current(self) -> Derived:
        """What belongs to the present values: a new, empty one if they have changed."""
        if self._derived is not None and self._is_frozen:
            return self._derived
        tensors = self.tensors if self.metric is None else (*self.tensors, self.metric)
        if self._derived is None or not self._derived.fits(tensors):
            self._derived = Derived(tensors)
        return self._derived

    @property
    def _results(self) -> dict[Any, Any]:
        return self._current().results

    def _cached(self, key: object, compute: Callable[[], T]) -> T:
        """`compute()`, once per set of values, without a graph and in full precision."""
        results = self._results
        if key not in results:
            with torch.inference_mode(False), torch.no_grad(), full_precision(self.device):
                results[key] = compute()
        value: T = results[key]
        return value


class AdjointView(Operator):
    """Aᵀ as a view of `base`: same tensors, a cache within its cache, metric Λ⁻¹. A subclass gives `apply`.

    Scaling A by Λ^½ from the left and Aᵀ by Λ^-½ gives transposes of one matrix: m, L and ‖·‖_F are the base's.
    """

    def __init__(self, base: Operator) -> None:
        self.base = base
        self.state_shape = base.state_shape

    @property
    def metric(self) -> Tensor | None:  # type: ignore[override]  # nor a metric
        # In float64, in which the reciprocal is that of the metric to a rounding that all bounds have room for.
        return None if self.base.metric is None else self.base.metric.double().reciprocal()

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]  # a view has no tensors of its own
        return self.base.tensors

    def _current(self) -> Derived:
        return self.base._current()

    @property
    def _results(self) -> dict[Any, Any]:
        results: dict[Any, Any] = self.base._results.setdefault("adjoint", {})
        return results

    @property
    def adjoint(self) -> Operator:
        return self.base

    def resolvent(self, alpha: float) -> Resolvent:
        return self.base.resolvent(alpha).adjoint

    @property
    def strong_monotonicity(self) -> float:
        return self.base.strong_monotonicity

    @property
    def lipschitz(self) -> float:
        return self.base.lipschitz

    @property
    def frobenius(self) -> float:
        return self.base.frobenius

    @property
    def norm_bound(self) -> float:
        return self.base.norm_bound

    def distance_bound(self, shift: float) -> float:
        return self.base.distance_bound(shift)

    def cayley_norm(self, alpha: float) -> float | None:
        return self.base.cayley_norm(alpha)

    def arranged(self, z: Tensor) -> Tensor:
        return self.base.arranged(z)

    def norm(self, z: Tensor) -> Tensor:
        return self.base.norm(z) if self.metric is None else super().norm(z)

    def rounding(self, z: Tensor) -> Tensor:
        return self.base.rounding(z)

    def double(self) -> Operator:
        return self.base.double().adjoint

    def frozen(self) -> Self:
        return type(self)(self.base.frozen())

    def rebind(self, *tensors: Tensor) -> Self:
        return type(self)(self.base.rebind(*tensors))

    def snapshot(self) -> Self:
        return type(self)(self.base.snapshot())

    def replace(self, *tensors: Tensor, metric: Tensor | None = None) -> Self:
        return type(self)(self.base.replace(*tensors, metric=None if metric is None else metric.reciprocal()))

    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        return self.base.pairing_gradient(z, q)
