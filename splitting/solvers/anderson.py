"""Safeguarded Anderson acceleration of another method's fixed-point map T (type II, per sample).

The next point is Tx − Σ γᵢ ΔTxᵢ with γ minimising ‖f − Σ γᵢ Δfᵢ‖_Λ, f = Tx − x, over the last `memory` differences.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType
from splitting.operators import Operator
from splitting.problems import Problem
from splitting.solvers.base import Iteration, Solver, State
from splitting.solvers.peaceman_rachford import PeacemanRachford

# An extrapolated point is kept only if it shrinks the fixed-point residual by this factor. Otherwise the plain step
# from the last kept point is taken, which contracts: convergence is linear whatever the extrapolation does.
_REQUIRED_DECREASE = 0.99


@dataclass(frozen=True)
class Anderson(Solver):
    """Anderson acceleration (type II) around `inner`, safeguarded by inner's own contraction.

    It converges whenever inner's map is a contraction, as those of Peaceman–Rachford, Douglas–Rachford and
    forward–backward are; around forward–backward–forward the safeguard is a heuristic. Worth it for tight tolerances
    and contraction factors near 1. The idea of a safeguard is that of Zhang, O'Donoghue & Boyd 2020, who treat type I.

    Args:
        inner: The method to accelerate, without memory of its own; PeacemanRachford() by default.
        memory: Differences kept, ≥ 1; costs 2·memory states.

    Raises:
        InvalidType: If inner is no solver, or one with a memory.
        InvalidArgument: If memory is no integer ≥ 1.
    """

    inner: Solver = field(default_factory=PeacemanRachford)
    memory: int = 5

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Solver) or isinstance(self.inner, Anderson):
            raise InvalidType(
                f"`inner` must be a solver without memory, such as PeacemanRachford(), got {self.inner!r}"
            )
        if isinstance(self.memory, bool) or not isinstance(self.memory, int) or self.memory < 1:
            raise InvalidArgument(f"`memory` must be an integer ≥ 1, got {self.memory!r}")

    def bind(self, problem: Problem) -> Iteration:
        return _Anderson(self.inner.bind(problem), problem, self.memory)

    def admissible(self, operator: Operator) -> tuple[float, float]:
        return self.inner.admissible(operator)

    def tuned(self, operator: Operator) -> Self:
        return replace(self, inner=self.inner.tuned(operator))

    def rescaled(self, factor: float) -> Self:
        return replace(self, inner=self.inner.rescaled(factor))


class _Memory(NamedTuple):
    """x: where to evaluate T next, an extrapolation unless `plain`. Last kept point: image T x, residual f, ‖f‖."""

    x: Tensor
    plain: Tensor
    image: Tensor
    residual: Tensor
    size: Tensor
    image_steps: Tensor  # (batch, memory, n): ΔTx
    residual_steps: Tensor  # (batch, memory, n): Δf
    taken: int


class _Anderson(Iteration):
    def __init__(self, inner: Iteration, problem: Problem, memory: int) -> None:
        self.inner, self.problem, self.memory = inner, problem, memory
        self.rounding = inner.rounding

    def init(self, guess: Tensor | None) -> _Memory:
        x = self.inner.init(guess)
        flat = x.flatten(1)
        steps = flat.new_zeros(len(flat), self.memory, flat.shape[1])
        nothing = torch.zeros_like(flat)
        plain = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        return _Memory(x, plain, nothing, nothing, flat.new_zeros(len(flat)), steps, steps.clone(), 0)

    def step(self, carry: _Memory) -> State:
        state = self.inner.step(carry.x.clone())
        image = state.carry.flatten(1)
        residual = image - carry.x.flatten(1)
        size = self.problem.norm(state.carry - carry.x)
        keep = carry.plain | (size <= _REQUIRED_DECREASE * carry.size)
        if carry.taken > 0:
            self._remember(carry, image, residual, keep)
        column = keep[:, None]
        image = torch.where(column, image, carry.image)
        residual = torch.where(column, residual, carry.residual)
        following = image
        if carry.taken > 0:
            weights = self._weights(carry.residual_steps, residual)
            following = image - torch.bmm(weights[:, None], carry.image_steps).squeeze(1)
        kept = _Memory(
            following.reshape(carry.x.shape),
            ~keep if carry.taken > 0 else keep,
            image,
            residual,
            torch.where(keep, size, carry.size),
            carry.image_steps,
            carry.residual_steps,
            carry.taken + 1,
        )
        return state._replace(carry=kept)

    def _remember(self, carry: _Memory, image: Tensor, residual: Tensor, keep: Tensor) -> None:
        """Write the newest differences into their slot; a rejected sample forgets all, and so steps plainly."""
        slot = (carry.taken - 1) % self.memory
        carry.image_steps[:, slot] = image - carry.image
        carry.residual_steps[:, slot] = residual - carry.residual
        # Filling, not multiplying by 0: a rejected point may have overflowed.
        rejected = ~keep[:, None, None]
        carry.image_steps.masked_fill_(rejected, 0)
        carry.residual_steps.masked_fill_(rejected, 0)

    def _weights(self, steps: Tensor, residual: Tensor) -> Tensor:
        """γ (batch, memory) by regularised normal equations; unused slots are zero rows and get γ = 0."""
        root = self.problem.root_metric
        if root is not None:
            root = root.expand(self.problem.like.shape[1:]).flatten()
            steps, residual = steps * root, residual * root
        gram = torch.bmm(steps, steps.mT)
        scale = gram.diagonal(dim1=1, dim2=2).sum(1)
        info = torch.finfo(gram.dtype)
        ridge = 10 * info.eps * scale + info.tiny
        gram = gram + ridge[:, None, None] * torch.eye(self.memory, dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve_ex(gram, torch.bmm(steps, residual[:, :, None])).result.squeeze(2)
