"""What a problem is to the loop, to methods and to derivatives: one state per sample, found as a fixed point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType


@dataclass(frozen=True, eq=False)
class Extent:
    """How large the samples of a problem are, and how large they may be.

    Attributes:
        problem: The problem with norms that neither overflow nor vanish for ordinary samples.
        sizes: The smallest size of a sample and the largest, (2,); None where there is no sample.
        low: The smallest size of an ordinary sample.
        high: The largest.
    """

    problem: Problem
    sizes: Tensor | None
    low: float
    high: float

    def is_ordinary(self, least: float, most: float) -> bool:
        """Whether all samples are ordinary.

        Args:
            least: The first of `sizes`.
            most: The second.

        Returns:
            False also where a size is NaN.
        """
        return self.low <= least <= most <= self.high


class Problem(ABC):
    """Find the states z (batch, *state_shape) that solve a problem per sample.

    Attributes:
        source: What the samples differ in, batch first.
        like: States, for their shape, dtype and device.
        overflow: What may be the cause where z leaves the finite numbers.
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
        """The map T of which exactly the solutions are fixed points.

        Args:
            z: States, (batch, *state_shape).

        Returns:
            T(z), of the same shape; differentiable in z and in all that the problem is made of.
        """

    @abstractmethod
    def frozen(self) -> Problem:
        """This problem for a computation during which its tensors keep their values, and without a graph.

        Returns:
            A problem on the same memory.
        """

    @abstractmethod
    def snapshot(self) -> Problem:
        """This problem for as long as one likes.

        Returns:
            A problem on copies of the tensors, which no change of these reaches.
        """

    @abstractmethod
    def scale(self) -> Callable[[Tensor], Tensor]:
        """The function z ↦ what a residual at z is relative to, with what all steps share computed once.

        Of a frozen problem, like `in_range` and `lost`.

        Returns:
            A function of states (batch, *state_shape) that gives one number per sample, (batch,).
        """

    @abstractmethod
    def error_bound(self, z: Tensor) -> Tensor:
        """Proved upper bound on the distance of z from the solution, per sample.

        Args:
            z: States, (batch, *state_shape), wherever they came from.

        Returns:
            The bounds, (batch,), float64; inf where nothing is proved.

        Raises:
            InvalidArgument: If z has another shape than the problem's states.
            InvalidType: If z is no tensor, or of another dtype or device.
        """

    def check_state(self, name: str, state: Tensor) -> None:
        """Raise unless a tensor is one state per sample.

        Args:
            name: The argument to name in the message.
            state: What should be (batch, *state_shape), of the dtype and device of the problem.

        Raises:
            InvalidArgument: If it has another shape.
            InvalidType: If it is no tensor, or of another dtype or device.
        """
        check_state(name, state, self.like.shape[1:], self.like, batch=len(self.like))

    @property
    def root_metric(self) -> Tensor | None:
        """The diagonal of Λ^½ for the metric Λ that states are measured in, or None for Λ = I."""
        return None

    def norm(self, z: Tensor) -> Tensor:
        """The norm ‖z‖_Λ of each sample.

        Args:
            z: States, (batch, *state_shape).

        Returns:
            The norms, (batch,).
        """
        return torch.linalg.vector_norm(z, dim=tuple(range(1, z.ndim)))

    @abstractmethod
    def judged(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Of z and T(z), the state that can be judged by them, and how good it is.

        Args:
            z: States, (batch, *state_shape).
            image: T(z) = map(z).

        Returns:
            One of the two, and a bound on its residual per sample: (batch,), up to rounding, in the units of `scale`.
        """

    def extent(self, tol: float) -> Extent | None:
        """What `in_range` looks at, for a host that does not want to look now.

        Args:
            tol: The tolerance of the relative residual that it is to be solved to.

        Returns:
            The sizes of the samples; None where `in_range` does not depend on them.
        """
        return None

    def in_range(self, tol: float) -> tuple[Problem, Tensor] | None:
        """This problem in units in which no number overflows or vanishes.

        Args:
            tol: The tolerance of the relative residual that it is to be solved to.

        Returns:
            The problem in such units, and these as factors of z; None where it is in range as it is.
        """
        return None

    def lost(self, z: Tensor, converted: Tensor, units: Tensor) -> Tensor:
        """The relative residual that converting a solution back may have added by rounding.

        Args:
            z: The solution of the problem that `in_range` gave.
            converted: z/units as it was rounded.
            units: Those that `in_range` gave.

        Returns:
            What to add to the residual, (batch,).
        """
        return z.new_zeros(len(z))


def check_state(name: str, state: Tensor, shape: torch.Size, like: Tensor, *, batch: int | None = None) -> None:
    """Raise unless a tensor is one state per sample.

    Args:
        name: The argument to name in the message.
        state: What should be (batch, *shape).
        shape: The shape of one state.
        like: A tensor of the dtype and device that the state should have.
        batch: How many samples it should have; any number by default.

    Raises:
        InvalidArgument: If it has another shape.
        InvalidType: If it is no tensor, or of another dtype or device.
    """
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
