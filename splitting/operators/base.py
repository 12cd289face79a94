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
from splitting.context import asking_is_free, on_host
from splitting.derived import Derived
from splitting.errors import InvalidArgument

T = TypeVar("T")

# Metrics of up to this power of two leave float32 norms room enough.
_ORDINARY_POWER = 20


class Resolvent(ABC):
    """V = (I + αA)⁻¹ as a value: call it on states."""

    @abstractmethod
    def __call__(self, v: Tensor) -> Tensor:
        """V v.

        Args:
            v: States (batch, *state_shape).

        Returns:
            States like v, in a new tensor.
        """

    @abstractmethod
    def reflect(self, v: Tensor) -> Tensor:
        """(2V − I) v: the reflected resolvent.

        Args:
            v: States (batch, *state_shape).

        Returns:
            States like v, in a new tensor.
        """

    @property
    @abstractmethod
    def adjoint(self) -> Resolvent:
        """Vᵀ = (I + αAᵀ)⁻¹, the resolvent of the operator's adjoint. It shares the factors of this one."""


class Operator(ABC):
    """A linear map A on states, strongly monotone in its metric.

    A is always that of the values that its tensors have now. What is derived from them (assembled matrices, resolvents,
    bounds) is computed on demand, goes through `cached`, and is kept until a value changes. `frozen` makes that
    comparison once for a whole computation.

    Args:
        tensors: What A is made of and what gradients flow to.
        state_shape: The shape of one state.
        metric: The diagonal of Λ, positive, shaped to multiply states; None for Λ = I.
        strong_monotonicity: A lower bound on m that is known by construction of these values; None if there is none.
            A function without arguments is called if somebody asks for m. It is to compute from values that nobody
            changes.
    """

    tensors: tuple[Tensor, ...]
    """What A is made of and what gradients flow to."""
    state_shape: torch.Size
    """The shape of one state."""
    metric: Tensor | None
    """The diagonal of Λ, shaped to multiply states; None for Λ = I."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        state_shape: Sequence[int],
        *,
        metric: Tensor | None = None,
        strong_monotonicity: float | Callable[[], float] | None = None,
    ) -> None:
        self.tensors = tuple(tensors)
        self.state_shape = torch.Size(state_shape)
        self.metric = None if metric is None else metric.detach()
        self._derived: Derived | None = None
        self._is_frozen = False
        self._promise: tuple[Derived, Callable[[], float]] | None = None
        if callable(strong_monotonicity):
            # Beside values of its own: to compare those of `cached` right after construction would ask an accelerator.
            self._promise = Derived(self._decisive), strong_monotonicity
        elif strong_monotonicity is not None:
            self.cached("known monotonicity", lambda: float(strong_monotonicity))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of A and of its states: float32 or float64."""
        return self.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of A and of its states."""
        return self.tensors[0].device

    @abstractmethod
    def apply(self, z: Tensor) -> Tensor:
        """A z, differentiable in z and in `tensors`.

        Args:
            z: States (batch, *state_shape).

        Returns:
            States like z.
        """

    @abstractmethod
    def apply_adjoint(self, z: Tensor) -> Tensor:
        """Aᵀ z, differentiable in z and in `tensors`.

        Args:
            z: States (batch, *state_shape).

        Returns:
            States like z.
        """

    @property
    def adjoint(self) -> Operator:
        """Aᵀ, which has the metric Λ⁻¹ and the same m and L. It shares all results with A."""
        return Adjoint(self)

    @abstractmethod
    def resolvent(self, alpha: float) -> Resolvent:
        """(I + αA)⁻¹, checked on a probe.

        Args:
            alpha: The step α > 0.

        Returns:
            The resolvent, the same object as long as no value changes.

        Raises:
            ResolventError: The computed inverse does not invert.
        """

    @property
    @abstractmethod
    def strong_monotonicity(self) -> float:
        """m: a proved lower bound, rounding included. It may be ≤ 0, and then nothing is guaranteed."""

    @property
    @abstractmethod
    def lipschitz(self) -> float:
        """L: a proved upper bound on ‖Λ^½ A Λ^-½‖₂, rounding included."""

    @property
    @abstractmethod
    def frobenius(self) -> float:
        """‖Λ^½ A Λ^-½‖_F. It is cheap, and never less than ‖Λ^½ A Λ^-½‖₂ (up to rounding)."""

    @property
    def norm_bound(self) -> float:
        """A cheap upper bound (up to rounding) on ‖Λ^½ A Λ^-½‖₂: ‖·‖_F unless the structure of A gives a better one."""
        return self.frobenius

    def distance_bound(self, shift: float) -> float:
        """A cheap upper bound (up to rounding) on ‖Λ^½ (A − shift·I) Λ^-½‖₂: what residuals are bounded with.

        Args:
            shift: Any number.

        Returns:
            The bound, in units of A.
        """
        return self.norm_bound + abs(shift)

    def difference_norm(self, other: Operator) -> float:
        """A proved upper bound on ‖Λ^½ (A − A′) Λ^-½‖₂ in this operator's metric, rounding included.

        This one is L + L′, the second in the metric of A: a kind that knows better says so.

        Args:
            other: A′, on states of the same shape.

        Returns:
            The bound, in units of A.
        """
        ours, theirs = (1.0 if op.metric is None else op.metric.double() for op in (self, other))
        ratio = torch.as_tensor(ours / theirs, dtype=torch.float64).sqrt()
        spread = verified.round_up(float(ratio.amax() / ratio.amin()))
        return verified.round_up(self.lipschitz + spread * other.lipschitz)

    def cayley_norm(self, alpha: float) -> float | None:
        """An estimate of ‖(I − αA)(I + αA)⁻¹‖_Λ for choosing α.

        Args:
            alpha: The step α > 0.

        Returns:
            The estimate where the structure of A makes it cheap; otherwise None.
        """
        return None

    def arranged(self, z: Tensor) -> Tensor:
        """States of the same values, with the strides that this operator's own results have.

        Args:
            z: States (batch, *state_shape).

        Returns:
            z itself where it already lies so, else a copy.
        """
        return z

    @abstractmethod
    def rounding(self, z: Tensor) -> Tensor:
        """An upper bound on ‖fl(A z) − A z‖_Λ for `apply` in this dtype.

        Args:
            z: States (batch, *state_shape).

        Returns:
            The bound per sample, float64 (batch,).
        """

    @abstractmethod
    def double(self) -> Operator:
        """The operator of the same numbers in float64."""

    @abstractmethod
    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        """∂⟨q, A z⟩/∂t for each t of `tensors`, summed over the batch and itself differentiable.

        Args:
            q: States (batch, *state_shape).
            z: States like q.

        Returns:
            One tensor like t for each t of `tensors`; None for one that needs no gradient.
        """

    def frozen(self) -> Self:
        """This operator for a computation during which its tensors keep their values. They are compared only now."""
        return self if self._is_frozen else self.rebind(*self.tensors)

    def rebind(self, *tensors: Tensor) -> Self:
        """This operator on other handles of the *same values*: results are shared, gradients flow to the handles.

        Args:
            *tensors: One for each of `tensors`. Like `frozen`, it relies on them to keep their values.

        Returns:
            The operator of these handles.
        """
        return self._bound(tensors, self.metric, self._current())

    def snapshot(self) -> Self:
        """This operator on copies of its values, which no change of its own tensors reaches."""
        current = self._current()
        metric = None if self.metric is None else current.values[-1]
        return self._bound(current.values[: len(self.tensors)], metric, current)

    def replace(self, *tensors: Tensor, metric: Tensor | None = None) -> Self:
        """The operator of this kind that is made of new values. Nothing is shared or known of it by construction.

        Args:
            *tensors: One for each of `tensors`.
            metric: The diagonal of another Λ; None keeps the metric.

        Returns:
            The new operator.
        """
        return self._bound(tensors, self.metric if metric is None else metric.detach(), None)

    def cached(self, key: object, compute: Callable[[], T]) -> T:
        """A result that is computed once per set of values of `tensors` and `metric`.

        Args:
            key: What tells this result from others, hashable.
            compute: Makes it; called without a graph and in full precision.

        Returns:
            What `compute()` returned for the present values.
        """
        return self._current().result(key, compute)

    @property
    def known_monotonicity(self) -> float | None:
        """The lower bound on m that was given at construction; None without one, and once a value has changed."""

        def prove() -> float | None:
            promise = self._promise
            return promise[1]() if promise is not None and promise[0].fits(self._decisive) else None

        return self.cached("known monotonicity", prove)

    @property
    def root_metric(self) -> Tensor | None:
        """The diagonal of Λ^½ in the operator's dtype; None for Λ = I."""
        metric = self.metric
        return None if metric is None else self.cached("root metric", lambda: metric.double().sqrt().to(self.dtype))

    def norm(self, z: Tensor) -> Tensor:
        """‖z‖_Λ of each sample.

        Args:
            z: States (batch, *state_shape).

        Returns:
            Norms (batch,) in the dtype of z.
        """
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
        power = self.cached("power of the metric", lambda: self._metric_power(metric))
        if abs(power) <= _ORDINARY_POWER:
            return self
        return self.replace(*self.tensors, metric=verified.normalised(metric.double())[0]).frozen()

    def _metric_power(self, metric: Tensor) -> int:
        if asking_is_free(self.device):
            return verified.normalised(metric.double())[1]
        return verified.exponent_of(self._measured()["metric"])

    def _measured(self) -> dict[str, float]:
        """The values of `_measures`, read in one transfer: for devices where asking is not free."""

        def read() -> dict[str, float]:
            measures = self._measures()
            return dict(zip(measures, on_host(*measures.values()), strict=True))

        return self.cached("measured", read)

    def _measures(self) -> dict[str, Tensor]:
        """Scalar tensors of the numbers that every solve needs on the host, by name."""
        if self.metric is None or self.metric.numel() == 0:
            return {"metric": torch.zeros((), device=self.device)}
        sizes = self.metric.double().abs()
        return {"metric": sizes.amax(), "inverse metric": sizes.reciprocal().amax()}

    @property
    def typical_step(self) -> float:
        """√n/‖A‖_F in the metric: the reciprocal of A's root-mean-square singular value, the cheap choice of α.

        Raises:
            InvalidArgument: ‖A‖_F is not finite.
        """
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
        """What belongs to the present values: new, and empty, if they have changed."""
        if self._derived is not None and self._is_frozen:
            return self._derived
        if self._derived is None or not self._derived.fits(self._decisive):
            self._derived = Derived(self._decisive)
        return self._derived

    @property
    def _decisive(self) -> tuple[Tensor, ...]:
        """All tensors that decide what A and its metric are."""
        return self.tensors if self.metric is None else (*self.tensors, self.metric)

    def _bound(self, tensors: Sequence[Tensor], metric: Tensor | None, derived: Derived | None) -> Self:
        """The operator of this kind on other tensors and their metric, frozen if it is given what they derive."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.tensors, twin.metric, twin._derived, twin._is_frozen = tuple(tensors), metric, derived, derived is not None
        if derived is None:
            twin._promise = None  # it was made for other values
        return twin


def _of_base(name: str) -> Any:
    """The attribute that a view has of its base."""
    return property(lambda view: getattr(view.base, name))


class Adjoint(Operator):
    """Aᵀ as a view of A: the same tensors and results, the metric Λ⁻¹.

    Scaling A by Λ^½ from the left and Aᵀ by Λ^-½ gives transposes of one matrix: all norms and m are those of A.

    Args:
        base: A.
    """

    base: Operator
    """A."""

    def __init__(self, base: Operator) -> None:
        self.base = base

    tensors, state_shape = _of_base("tensors"), _of_base("state_shape")
    strong_monotonicity, known_monotonicity = _of_base("strong_monotonicity"), _of_base("known_monotonicity")
    lipschitz, frobenius, norm_bound = _of_base("lipschitz"), _of_base("frobenius"), _of_base("norm_bound")
    distance_bound, cayley_norm = _of_base("distance_bound"), _of_base("cayley_norm")
    arranged = _of_base("arranged")
    adjoint = property(lambda view: view.base)

    @property
    def metric(self) -> Tensor | None:  # type: ignore[override]  # a view has none of its own
        # In float64, in which the reciprocal is that of the metric to a rounding that all bounds have room for.
        return None if self.base.metric is None else self.base.metric.double().reciprocal()

    def apply(self, z: Tensor) -> Tensor:
        return self.base.apply_adjoint(z)

    def apply_adjoint(self, z: Tensor) -> Tensor:
        return self.base.apply(z)

    def resolvent(self, alpha: float) -> Resolvent:
        return self.base.resolvent(alpha).adjoint

    def norm(self, z: Tensor) -> Tensor:
        return self.base.norm(z) if self.metric is None else super().norm(z)

    def _measured(self) -> dict[str, float]:
        return {"metric": self.base._measured()["inverse metric"]}

    def rounding(self, z: Tensor) -> Tensor:
        # ‖z‖ in the metric Λ⁻¹ is ‖Λ⁻¹z‖_Λ.
        return self.base.rounding(z if self.metric is None else z * self.metric)

    def double(self) -> Operator:
        return self.base.double().adjoint

    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        return self.base.pairing_gradient(z, q)

    def cached(self, key: object, compute: Callable[[], T]) -> T:
        return self.base.cached(("adjoint", key), compute)

    def frozen(self) -> Self:
        return type(self)(self.base.frozen())

    def rebind(self, *tensors: Tensor) -> Self:
        return type(self)(self.base.rebind(*tensors))

    def snapshot(self) -> Self:
        return type(self)(self.base.snapshot())

    def replace(self, *tensors: Tensor, metric: Tensor | None = None) -> Self:
        return type(self)(self.base.replace(*tensors, metric=None if metric is None else metric.reciprocal()))
