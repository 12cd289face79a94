"""Bounds from the matrix inequality ΛA + AᵀΛ − (ΛUUᵀΛ + CᵀC)/γ ⪰ 0, which makes x ↦ C z γ-Lipschitz.

Revay, Wang & Manchester 2020 (arXiv 2010.01732), for any positive diagonal Λ. Scaling Λ by t > 0 and eliminating t
leaves a convex function of one number: with K = ΛA + AᵀΛ = LLᵀ, P = L⁻¹Cᵀ and H = L⁻¹ΛU(ΛU)ᵀL⁻ᵀ,
γ² = min over μ ∈ (λ_max(H), 2λ_max(H)] of μ² λ_max(Pᵀ(μI − H)⁻¹P), at t = γ/μ. This proposes γ; Cholesky proves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, but not listed in its stub

from mondeq.bounds.base import BOUNDS, Bound, BoundMethod, Chain
from mondeq.bounds.product import concluded
from mondeq.bounds.states import MISSING, States, last, required
from splitting import norms, verified


@BOUNDS.enrol("matrix inequality")
class MatrixInequality(BoundMethod):
    """The smallest γ that the inequality proves for the last equilibrium with Λ = t·(its own metric) over t > 0.

    What comes before that equilibrium counts by its product bound. Never worse than the product bound in the same
    metric, up to the slack of the proof (1e-9 relative).
    """

    def unsuited(self, chain: Chain) -> str | None:
        return MISSING if last(chain) is None else None

    def bound(self, chain: Chain) -> Bound:
        return prove(chain, None)


def prove(chain: Chain, metric: Tensor | None) -> Bound:
    """Prove the inequality with Λ = t·metric over t > 0, for all logits and for every gap.

    Args:
        chain: Of a network with a dense equilibrium whose states go straight to the logits.
        metric: (n,), positive; by default the operator's own.

    Returns:
        The bound. Where nothing is proved it is the product bound, and says so.

    Raises:
        InvalidArgument: The network is none of that kind.
    """
    states = required(chain)
    try:
        problem = Problem.of(states, metric)
        value, *gaps = problem.prove(states.head[None]) + problem.prove(states.gaps[:, None])
    except LinAlgError:
        # Weights of such a scale that no eigenvalue routine copes: nothing is proved.
        value, *gaps = [math.inf] * (1 + len(states.gaps))
    return concluded(chain, states.trunk, value, gaps, "matrix inequality")


@dataclass(frozen=True, eq=False)
class Problem:
    """The inequality without its output, and the eigendecomposition of H that the proposal needs.

    K and B are in units in which their largest entries are near 1, and so is C when it comes, so that nothing overflows
    or vanishes: γ is 2^exponent times that of these units, times the unit of C.

    Args:
        symmetric: K.
        symmetric_size: ‖ΛA‖_F, which the rounding of K is relative to.
        symmetric_error: What the error of A makes of K.
        inputs: B = ΛU diag(1/std).
        gram: BBᵀ.
        chol: L.
        modes: Eigenvectors of H.
        levels: Its eigenvalues.
        exponent: The power of two that γ is larger by.
        input_exponent: That which B is larger by.
    """

    symmetric: Tensor
    symmetric_size: float
    symmetric_error: float
    inputs: Tensor
    gram: Tensor
    chol: Tensor
    modes: Tensor
    levels: Tensor
    exponent: int
    input_exponent: int

    @staticmethod
    def of(states: States, metric: Tensor | None) -> Problem:
        """The inequality of some states.

        Args:
            states: A, U and the error of A.
            metric: The diagonal of Λ, (n,); by default the operator's own.

        Returns:
            The problem.
        """
        blocks = states.blocks
        own = blocks.matrix.new_ones(len(blocks.matrix)) if blocks.metric is None else blocks.metric
        weight = (own if metric is None else metric).detach().double()
        scaled = weight[:, None] * blocks.matrix
        size = norms.frobenius(scaled)
        symmetric, power = verified.normalised(scaled + scaled.mT)
        # In units of its own before Λ comes, so that no U ≠ 0 vanishes.
        inputs, own_power = verified.normalised(blocks.inputs)
        inputs, input_power = verified.normalised(weight[:, None] * inputs)
        input_power += own_power
        # Where K is not positive definite nothing can be proved, and NaN propagates to a bound of inf.
        chol, info = torch.linalg.cholesky_ex(symmetric)
        good = int(info) == 0 and bool((weight > 0).all())
        chol = chol if good else torch.full_like(chol, math.nan)
        gram = inputs @ inputs.mT
        half = torch.linalg.solve_triangular(chol, inputs, upper=False)
        h = half @ half.mT
        levels, modes = torch.linalg.eigh(h) if good else (chol[0], chol)
        size = verified.times_power(size, -power)
        error = verified.round_up(2 * float(weight.amax()) * verified.times_power(states.error, -power))
        return Problem(
            symmetric, size, error, inputs, gram, chol, modes, levels.clamp_min(0), input_power - power, input_power
        )

    def prove(self, outputs: Tensor) -> list[float]:
        """For each output C z a γ for which the inequality is proved.

        Args:
            outputs: C, (outputs, rows, n).

        Returns:
            The numbers, inf where none is proved.
        """
        if not bool(self.inputs.any()):
            return [0.0] * len(outputs)
        scaled = [verified.normalised(C) for C in outputs]
        proposed = self._propose(torch.stack([C for C, _ in scaled])) if scaled else []
        return [self._prove(C, power, *found) for (C, power), found in zip(scaled, proposed, strict=True)]

    def _prove(self, C: Tensor, power: int, gamma: float, t: float) -> float:
        if not bool(C.any()):
            return 0.0
        slack = 1e-9
        while math.isfinite(gamma) and slack < 1e-2:
            if self._holds(C, gamma * (1 + slack), t):
                value = verified.times_power(gamma * (1 + slack), self.exponent + power)
                return verified.round_up(value + verified.UNDERFLOW)
            slack *= 10
        return math.inf

    def proposed(self, C: Tensor) -> tuple[float, float]:
        """γ and t for an output Cz in their own units; not proved.

        Args:
            C: (rows, n).

        Returns:
            Both numbers.
        """
        C, power = verified.normalised(C)
        ((gamma, t),) = self._propose(C[None])
        return verified.times_power(gamma, self.exponent + power), verified.times_power(t, power - self.input_exponent)

    def _holds(self, C: Tensor, gamma: float, t: float) -> bool:
        """Whether t K − (t² BBᵀ + CᵀC)/γ ⪰ 0 is proved, rounding included."""
        products = t * t * self.gram + C.mT @ C
        matrix = t * self.symmetric - products / gamma
        matrix = (matrix + matrix.mT) / 2
        size = 2 * t * self.symmetric_size + float(t * t * self.inputs.square().sum() + C.square().sum()) / gamma
        # 16: entries of K, B and C carry a few roundings of their own.
        rounding = 2 * verified.rounding_factor(max(self.inputs.shape[1], len(C)) + 16) * size
        rounding += t * self.symmetric_error * (1 + 1e-12)
        return verified.smallest_eigenvalue(matrix, perturbation=rounding) >= 0

    def _propose(self, outputs: Tensor) -> list[tuple[float, float]]:
        """The best (γ, t) of each output in floating point."""
        p = self.modes.mT @ torch.linalg.solve_triangular(self.chol, outputs.mT, upper=False)
        return best_scales(p, self.levels)


def best_scales(p: Tensor, levels: Tensor) -> list[tuple[float, float]]:
    """(γ, t) by golden-section search over μ, all at the same time, in floating point.

    Args:
        p: What C is in the modes of H, QᵀL⁻¹Cᵀ, (outputs, n, rows).
        levels: The eigenvalues of H, (n,).

    Returns:
        Both numbers for every output; (inf, 1) where H is 0 or not finite.
    """
    top = float(levels.amax())
    if not 0 < top < math.inf:
        return [(math.inf, 1.0)] * len(p)

    def squared(mu: Tensor) -> Tensor:
        weighted = p * (mu[:, None] / (mu[:, None] - levels).sqrt())[:, :, None]
        return torch.linalg.eigvalsh(weighted.mT @ weighted)[:, -1]

    low, high = (torch.full_like(p[:, 0, 0], end) for end in (top * (1 + 1e-9), 2 * top))
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(50):
        left, right = high - golden * (high - low), low + golden * (high - low)
        lower = squared(left) < squared(right)
        low, high = torch.where(lower, low, left), torch.where(lower, right, high)
    mu = (low + high) / 2
    gamma = squared(mu).sqrt()
    return list(zip(gamma.tolist(), (gamma / mu).tolist(), strict=True))
