"""What a problem is to the loop, to methods and to derivatives: one state per sample, found as a fixed point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType


class Problem(ABC):
    """Find the states z (batch, *state_shape) that solve a problem per sample.

    source: what the samples differ in, batch first. like: states, for their shape, dtype and device. overflow: what may
    be the cause where z leaves the finite numbers.
    """

    source: Tensor
    like: Tensor
    overflow: str

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All that decides the solution, as far as the problem knows it."""

    @abstractmethod
    def map(self, z: Tensor) -> Tensor:
        """A map of which exactly the solutions are fixed points; differentiable in z and in all that it is made of."""

    @abstractmethod
    def frozen(self) -> Problem:
        """This problem for a computation during which its tensors keep their values, and without a graph."""

    @abstractmethod
    def snapshot(self) -> Problem:
        """This problem on copies of its tensors, which no change of these reaches."""

    @abstractmethod
    def scale(self) -> Callable[[Tensor], Tensor]:
        """z ↦ what a residual at z is relative to, per sample, with what all steps share computed once.

        Of a frozen problem, like `in_range` and `lost`.
        """

    @abstractmethod
    def error_bound(self, z: Tensor) -> Tensor:
        """Proved upper bound on the distance of z from the solution, per sample, float64; inf where none is proved."""

    def check_state(self, name: str, state: Tensor) -> None:
        """Raise InvalidArgument or InvalidType, naming the argument `name`, unless `state` is one state per sample."""
        check_state(name, state, self.like.shape[1:], self.like, batch=len(self.like))

    @property
    def root_metric(self) -> Tensor | None:
        """The diagonal of Λ^½ for the metric Λ that states are measured in, or None for Λ = I."""
        return None

    def norm(self, z: Tensor) -> Tensor:
        """‖z‖_Λ of each sample."""
        return torch.linalg.vector_norm(z, dim=tuple(range(1, z.ndim)))

    @abstractmethod
    def judged(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Of z and image = map(z), the state that can be judged by them, and a bound on its residual per sample.

        The bound is one up to rounding, in the units of `scale`.
        """

    def in_range(self, tol: float) -> tuple[Problem, Tensor] | None:
        """This problem in units in which no number overflows or vanishes, and these as factors of z. None: it is so."""
        return None

    def lost(self, z: Tensor, converted: Tensor, units: Tensor) -> Tensor:
        """The relative residual, per sample, that rounding may have added in `converted` = z/units."""
        return z.new_zeros(len(z))


def check_state(name: str, state: Tensor, shape: torch.Size, like: Tensor, *, batch: int | None = None) -> None:
    """Raise unless `state` is (batch, *shape), of the dtype and device of `like`, with `batch` samples if given."""
    if not isinstance(state, Tensor):
        raise InvalidType(f"`{name}` must be a tensor, got {type(state).__name__}")
    if state.shape[1:] != shape or state.ndim != len(shape) + 1:
        raise InvalidArgument(
            f"`{name}` must have shape (batch, {', '.join(map(str, shape))}), got {tuple(state.shape)}"
        )
    if state.dtype != like.dtype:
        raise InvalidType(f"`{name}` is {state.dtype} but the problem is {like.dtype}; convert one of them")
    if state.device != like.device:
        raise InvalidType(f"`{name}` is on {state.device} but the problem is on {like.device}; move one of them")
    if batch is not None and len(state) != batch:
        raise InvalidArgument(f"`{name}` has {len(state)} samples but the source has {batch}")
