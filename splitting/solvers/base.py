"""What a splitting method is: a frozen value that binds to a problem and then steps.

`solver.bind(problem)` fixes the step α, checks it against the method's theorem and prepares what every step needs;
the iteration it returns maps each `State.carry` to the next state. Only `splitting.solve` loops.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType
from splitting.operators import Operator
from splitting.problems import Inclusion, Problem


class State(NamedTuple):
    """One iterate of a method.

    Attributes:
        carry: All that the next step needs; for the methods without memory the fixed-point variable, a tensor.
        value: The approximate solution, (batch, *state_shape); the next step may overwrite it.
        gap: Upper bound, up to rounding, on ‖r‖_Λ per sample for some r ∈ A·value − c + ∂f(value).
    """

    carry: Any
    value: Tensor
    gap: Tensor


class Iteration(ABC):
    """A method bound to a problem.

    Attributes:
        rounding: What share of the relative residual the rounding of a step can hide. Iterates that differ by less
            than their last digit look equal; that is far from a solution where a step is much shorter or much longer
            than 1/L.
    """

    rounding: float = 0.0

    @abstractmethod
    def init(self, guess: Tensor | None) -> Any:
        """The carry to start from.

        Args:
            guess: States near the solution, (batch, *state_shape), or None for a good start of the method's own.

        Returns:
            What `step` takes first.
        """

    @abstractmethod
    def step(self, carry: Any) -> State:
        """One step of the method.

        Args:
            carry: What `init` or the last step gave; the step may overwrite it.

        Returns:
            The next state.
        """


@dataclass(frozen=True)
class Solver(ABC):
    """A splitting method, as a frozen value."""

    @abstractmethod
    def bind(self, problem: Problem) -> Iteration:
        """This method on a problem.

        Args:
            problem: What to solve. It is not to change as long as the iteration is used.

        Returns:
            The iteration that `splitting.solve` runs.

        Raises:
            InvalidType: If the method cannot split a problem of this kind.
            InvalidArgument: If the step lies outside the method's theorem.
        """

    def admissible(self, operator: Operator) -> tuple[float, float]:
        """The open interval of steps α for which the method's theorem says that it converges on an operator.

        Args:
            operator: A, with its strong monotonicity m and its Lipschitz constant L.

        Returns:
            Its ends, the second of which may be inf.

        Raises:
            InvalidType: If the method has no step α.
            InvalidArgument: If no step is admissible, because the theorem needs m > 0 and that is not proved.
        """
        raise InvalidType(f"{type(self).__name__} has no step α, so no `operator` limits it; there is none to choose")

    def tuned(self, operator: Operator) -> Self:
        """This solver with a step worth its cost when many problems share an operator.

        Args:
            operator: The operator that they share.

        Returns:
            A solver with that step; itself if α is given, or if the method has nothing to tune.
        """
        return self

    def rescaled(self, factor: float) -> Self:
        """This solver with a step that is a multiple of its own.

        Args:
            factor: A finite number > 0.

        Returns:
            A solver with the step factor · α; itself where α is "auto", or the method has none.

        Raises:
            InvalidArgument: The new step is not finite and > 0.
        """
        return self


@dataclass(frozen=True)
class SteppedSolver(Solver):
    """A method for inclusions with a step size.

    Args:
        step: α > 0, or "auto" for a step inside the method's theorem.

    Raises:
        InvalidType: If step is neither a number nor "auto".
        InvalidArgument: If step is not finite and > 0.
    """

    step: float | Literal["auto"] = "auto"
    theorem: ClassVar[str]  # which α `admissible` admits, as a formula

    def __post_init__(self) -> None:
        if self.step == "auto":
            return
        if isinstance(self.step, bool) or not isinstance(self.step, (int, float)):
            raise InvalidType(f'`step` must be a number or "auto", got {self.step!r}')
        if not 0 < self.step < math.inf:
            raise InvalidArgument(f'`step` must be finite and > 0, got {self.step}; "auto" picks one')

    def rescaled(self, factor: float) -> Self:
        return self if self.step == "auto" else replace(self, step=factor * self.step)

    @abstractmethod
    def admissible(self, operator: Operator) -> tuple[float, float]: ...

    @abstractmethod
    def automatic_step(self, operator: Operator) -> float:
        """The step that "auto" stands for on an operator.

        Args:
            operator: A.

        Returns:
            α.
        """

    def chosen_step(self, operator: Operator) -> float:
        """The step that this solver takes on an operator: the given one or the automatic one.

        Args:
            operator: A.

        Returns:
            α, inside of `admissible(operator)`.

        Raises:
            InvalidArgument: If α is not admissible.
        """
        low, high = self.admissible(operator)
        alpha = self.automatic_step(operator) if self.step == "auto" else float(self.step)
        if not low < alpha < high:
            raise InvalidArgument(
                f"`step` must lie in ({low:.6g}, {high:.6g}) for {type(self).__name__} ({self.theorem} with "
                f"m={operator.strong_monotonicity:.4g}, L={operator.lipschitz:.4g}), got {alpha:.6g}; use "
                'step="auto" or a solver that converges for every step, such as PeacemanRachford()'
            )
        return alpha

    def bind(self, problem: Problem) -> Iteration:
        if not isinstance(problem, Inclusion):
            raise InvalidType(
                f"`problem` is a {type(problem).__name__}, which {type(self).__name__} cannot split; use "
                "Anderson(Iterate()), Broyden() or Iterate()"
            )
        return self._iteration(problem, self.chosen_step(problem.operator))

    @abstractmethod
    def _iteration(self, problem: Inclusion, alpha: float) -> Iteration:
        """This method on `problem` with the step `alpha`, which is admissible."""


def hidden_share(operator: Operator, spread: float) -> float:
    """The `Iteration.rounding` of iterates whose last digits count `spread` times in r/(‖A‖ ‖z‖ + ‖c‖).

    A sixteenth: digits that are dropped seldom conspire.

    Args:
        operator: A, for its dtype.
        spread: How much larger a change of the residual is than the change of an iterate that causes it, both
            relative.

    Returns:
        A share of the relative residual.
    """
    return torch.finfo(operator.dtype).eps / 32 * spread


def proved_monotonicity(operator: Operator, method: str) -> float:
    """The strong monotonicity of an operator, for methods that converge only where it is positive.

    Args:
        operator: A.
        method: Who asks, for the message.

    Returns:
        m > 0.

    Raises:
        InvalidArgument: If A cannot be shown to be strongly monotone.
    """
    m = operator.strong_monotonicity
    if not m > 0:
        raise InvalidArgument(
            f"{method} needs a strongly monotone `operator`, but its monotonicity constant is only known to be "
            f"≥ {m:.3g}; increase m or use float64"
        )
    return m
