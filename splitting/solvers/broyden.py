"""Broyden's method with limited memory, per sample, for g(z) = T(z) − z = 0.

H approximates the inverse Jacobian of g, first −I: z⁺ = z − H g, and H⁺ = H + (Δz − HΔg)(ΔzᵀH)/(ΔzᵀHΔg) makes
H⁺Δg = Δz. H is kept as −I + Σ uᵢvᵢᵀ over the last `memory` updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from splitting.errors import InvalidArgument
from splitting.problems import Problem
from splitting.solvers.base import Iteration, Solver, State


@dataclass(frozen=True)
class Broyden(Solver):
    """Broyden's ("good") method on any problem's map (Broyden 1965; for networks Bai, Kolter & Koltun 2019).

    It converges fast near a solution where the Jacobian of T − I is regular, whether T contracts or not; from afar
    nothing is promised. It has no step α.

    Args:
        memory: Updates kept, ≥ 1; costs 2·memory states.

    Raises:
        InvalidArgument: If memory is no integer ≥ 1.
    """

    memory: int = 20

    def __post_init__(self) -> None:
        if isinstance(self.memory, bool) or not isinstance(self.memory, int) or self.memory < 1:
            raise InvalidArgument(f"`memory` must be an integer ≥ 1, got {self.memory!r}")

    def bind(self, problem: Problem) -> Iteration:
        return _Broyden(problem, self.memory)


class _Memory(NamedTuple):
    """The state z and g(z), and the factors u, v (batch, memory, n) of the updates, of which `taken` were made."""

    z: Tensor
    g: Tensor
    left: Tensor
    right: Tensor
    taken: int


class _Broyden(Iteration):
    def __init__(self, problem: Problem, memory: int) -> None:
        self.problem, self.memory = problem, memory

    def init(self, guess: Tensor | None) -> _Memory:
        z = self.problem.like if guess is None else guess
        flat = z.flatten(1)
        left = flat.new_zeros(len(flat), self.memory, flat.shape[1])
        return _Memory(z, self.problem.map(z) - z, left, left.clone(), 0)

    def step(self, carry: _Memory) -> State:
        z, g, left, right, taken = carry
        move = -_times(left, right, g.flatten(1))
        following = z + move.view_as(z)
        g_following = self.problem.map(following) - following
        self._update(left, right, move, (g_following - g).flatten(1), taken % self.memory)
        return State(_Memory(following, g_following, left, right, taken + 1), *self.problem.judged(z, z + g))

    @staticmethod
    def _update(left: Tensor, right: Tensor, move: Tensor, change: Tensor, slot: int) -> None:
        """Write the update for Δz = move, Δg = change into `slot`, in place of the oldest."""
        left[:, slot], right[:, slot] = 0, 0
        image = _times(left, right, change)
        row = _times(right, left, move)  # ΔzᵀH
        size = (row * change).sum(1, keepdim=True)
        # Where a sample no longer moves there is nothing to learn.
        smallest = torch.finfo(size.dtype).eps * (row.norm(dim=1, keepdim=True) * change.norm(dim=1, keepdim=True))
        usable = (size.abs() > smallest) & torch.isfinite(size)
        left[:, slot] = torch.where(usable, (move - image) / size, 0.0)
        right[:, slot] = torch.where(usable, row, 0.0)


def _times(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """(−I + Σ leftᵢ rightᵢᵀ) x for each sample."""
    weights = torch.bmm(right, x[:, :, None])
    return torch.baddbmm(-x[:, :, None], left.mT, weights).squeeze(2)
