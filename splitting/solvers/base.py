"""What a splitting method is: a frozen value that binds to a problem and then steps.

`solver.bind(problem)` fixes the step α, checks it against the method's theorem and prepares what every step needs;
the iteration it returns maps each `State.carry` to the next state. Only `splitting.solve` loops.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType
from splitting.inclusion import Inclusion
from splitting.operators import Operator


class State(NamedTuple):
    """One iterate.

    carry: all that the next step needs; for the methods without memory it is the fixed-point variable, a tensor.
    value: the approximate solution, (batch, *state_shape); the next step may overwrite it.
    gap: upper bound (up to rounding) on ‖r‖_Λ per sample for some r ∈ A·value − c + ∂f(value).
    """

    carry: Any
    value: Tensor
    gap: Tensor


class Iteration(ABC):
    """A method bound to a problem. `init` starts at a guess of the solution (None: a good start of its own).

    rounding: what share of the relative residual the rounding of a step can hide. Iterates that differ by less than
    their last digit look equal; that is far from a solution where a step is much shorter or much longer than 1/L.
    """

    rounding: float = 0.0

    @abstractmethod
    def init(self, guess: Tensor | None) -> Any:
        """The carry to start from."""

    @abstractmethod
    def step(self, carry: Any) -> State:
        """One step of the method. It may overwrite what `carry` holds."""


@dataclass(frozen=True)
class Solver(ABC):
    """A splitting method, as a frozen value."""

    @abstractmethod
    def bind(self, problem: Inclusion) -> Iteration:
        """This method on `problem`. Raises InvalidArgument for a step outside the method's theorem."""

    def tuned(self, operator: Operator) -> Self:
        """This solver with a step worth its cost when many problems share `operator`; itself if α is given."""
        return self


@dataclass(frozen=True)
class SteppedSolver(Solver):
    """A method with a step size. step: α > 0, or "auto" for a step inside the method's theorem."""

    step: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.step == "auto":
            return
        if isinstance(self.step, bool) or not isinstance(self.step, (int, float)):
            raise InvalidType(f'`step` must be a number or "auto", got {self.step!r}')
        if not 0 < self.step < math.inf:
            raise InvalidArgument(f'`step` must be finite and > 0, got {self.step}; "auto" picks one')


def hidden_share(operator: Operator, spread: float) -> float:
    """`Iteration.rounding` for iterates whose last digits count `spread` times in r/(‖A‖ ‖z‖ + ‖c‖).

    A sixteenth: digits that are dropped seldom conspire.
    """
    return torch.finfo(operator.dtype).eps / 32 * spread


def require_below(step: float, limit: float, theorem: str) -> None:
    """Refuse a step that the convergence theorem does not cover, saying what it does cover."""
    if not 0 < step < limit:
        raise InvalidArgument(
            f'`step` must lie in (0, {limit:.6g}) for {theorem}, got {step:.6g}; use step="auto" or a solver that '
            "converges for every step, such as PeacemanRachford()"
        )


def require_monotone(operator: Operator, method: str) -> None:
    """Refuse an operator that cannot be shown to be strongly monotone."""
    m = operator.strong_monotonicity
    if not m > 0:
        raise InvalidArgument(
            f"{method} needs a strongly monotone `operator`, but its monotonicity constant is only known to be "
            f"≥ {m:.3g}; increase m or use float64"
        )
