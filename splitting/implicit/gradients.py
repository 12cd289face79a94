"""How the gradient of a solve is taken: exactly, or by an approximation that costs less."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from splitting.errors import InvalidArgument
from splitting.implicit.base import Options, differentiable
from splitting.problems import Problem


@dataclass(frozen=True)
class Gradient(ABC):
    """A way of differentiating a solve, as a frozen value."""

    @abstractmethod
    def __call__(self, problem: Problem, options: Options) -> Tensor:
        """The solution of a problem, with a graph.

        Args:
            problem: What to solve.
            options: How.

        Returns:
            z*, (batch, *state_shape), through which gradients flow to `problem.tensors`.
        """


@dataclass(frozen=True)
class Implicit(Gradient):
    """The gradient of the solution map, by solving the adjoint problem; derivatives of every order."""

    def __call__(self, problem: Problem, options: Options) -> Tensor:
        return differentiable(problem, options)


@dataclass(frozen=True)
class OneStep(Gradient):
    """The gradient of one application of the map at the solution: Jacobian-free backpropagation (Fung et al. 2022).

    An approximation that leaves out (I − J)⁻ᵀ: a descent direction where the map contracts enough, and cheap.
    """

    def __call__(self, problem: Problem, options: Options) -> Tensor:
        return problem.map(options.solve(problem.frozen()))


@dataclass(frozen=True)
class Unrolled(Gradient):
    """The gradient of k damped applications z⁺ = z + β(T(z) − z) of the map, from the solution on.

    The "phantom gradient" of Geng et al. 2021. An approximation: the first k terms of a Neumann series. Memory grows
    with k.

    Args:
        steps: k ≥ 1.
        damping: β in (0, 1].

    Raises:
        InvalidArgument: If steps is no integer ≥ 1, or damping lies outside (0, 1].
    """

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InvalidArgument(f"`steps` must be an integer ≥ 1, got {self.steps!r}")
        if not 0 < self.damping <= 1:
            raise InvalidArgument(f"`damping` must lie in (0, 1], got {self.damping!r}")

    def __call__(self, problem: Problem, options: Options) -> Tensor:
        z = options.solve(problem.frozen())
        for _ in range(self.steps):
            z = z + self.damping * (problem.map(z) - z)
        return z
