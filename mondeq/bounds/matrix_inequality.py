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
from mondeq.bounds.product import ASSUMPTIONS
from mondeq.pieces import Blocks
from splitting import InvalidArgument, norms, verified


@BOUNDS.enrol("matrix inequality")
class MatrixInequality(BoundMethod):
    """The smallest γ that the inequality proves for the last equilibrium with Λ = t·(its own metric) over t > 0.

    What comes before that equilibrium counts by its product bound. Never worse than the product bound in the same
    metric, up to the slack of the proof (1e-9 relative).
    """

    def unsuited(self, chain: Chain) -> str | None:
        return None if Tail.of(chain) is not None else "no dense equilibrium whose states go straight to the logits"

    def bound(self, chain: Chain) -> Bound:
        return prove(chain, None)


@BOUNDS.enrol("matrix inequality, optimised metric")
class OptimisedMetric(BoundMethod):
    """The same with a metric that is searched for, where the operator has none to begin with."""

    def unsuited(self, chain: Chain) -> str | None:
        tail = Tail.of(chain)
        if tail is None:
            return "no dense equilibrium whose states go straight to the logits"
        if tail.blocks.metric is not None:
            return "the operator has a metric of its own"
        size = len(tail.blocks.matrix)
        return None if size <= LARGEST_SEARCH else f"{size} units, and the search takes minutes beyond {LARGEST_SEARCH}"

    def bound(self, chain: Chain) -> Bound:
        return prove(chain, optimised_metric(chain))


@dataclass(frozen=True, eq=False)
class Tail:
    """The last equilibrium of a network with the linear read-out that its states go to.

    Args:
        number: That of its stage in the chain.
        blocks: Its matrices.
        head: The read-out C, (classes, n).
        trunk: The constant of what comes before it.
    """

    number: int
    blocks: Blocks
    head: Tensor
    trunk: float

    @staticmethod
    def of(chain: Chain) -> Tail | None:
        """That of a network.

        Args:
            chain: What is proved of the network.

        Returns:
            The tail; None where the last equilibrium has no matrices, or its states go elsewhere than to linear logits.
        """
        head = chain.stages[-1].rows()
        for number in reversed(range(len(chain.stages) - 1)):
            if head is None:
                return None
            stage = chain.stages[number]
            if (blocks := stage.blocks()) is not None:
                return Tail(number, blocks, head, chain.constant(chain.stages[:number]))
            head = stage.lift(head)
        return None

    @staticmethod
    def required(chain: Chain) -> Tail:
        """That of a network that has one.

        Args:
            chain: What is proved of the network.

        Returns:
            The tail.

        Raises:
            InvalidArgument: There is none.
        """
        tail = Tail.of(chain)
        if tail is None:
            raise InvalidArgument("`chain` has no dense equilibrium whose states go straight to the logits")
        return tail


def prove(chain: Chain, metric: Tensor | None) -> Bound:
    """Prove the inequality with Λ = t·metric over t > 0, for all logits and for every gap.

    Args:
        chain: Of a network with a dense equilibrium whose states go straight to the logits.
        metric: (n,), positive; by default the operator's own.

    Returns:
        The bound; inf where nothing is proved.

    Raises:
        InvalidArgument: The network is none of that kind.
    """
    tail = Tail.required(chain)
    head = tail.head
    pairs = head.new_zeros(len(head), len(head))
    try:
        value = _constants(_Problem.of(tail.blocks, metric), head, pairs)
    except LinAlgError:
        # Weights of such a scale that no eigenvalue routine copes: nothing is proved.
        value = math.inf
        pairs.fill_(math.inf).fill_diagonal_(0)
    if tail.trunk != 1:
        value = verified.round_up(value * tail.trunk)
        pairs = (pairs * tail.trunk * (1 + 1e-15) + verified.UNDERFLOW).fill_diagonal_(0)
    return Bound(value, "certified", "matrix inequality", ASSUMPTIONS, pairs).sealed(chain)


def _constants(problem: _Problem, head: Tensor, pairs: Tensor) -> float:
    """The constant of all logits; those of their gaps are written to `pairs`."""
    first, second = torch.tril_indices(len(head), len(head), -1, device=head.device)
    gaps = problem.prove((head[first] - head[second])[:, None])
    pairs[first, second] = pairs[second, first] = torch.tensor(gaps, dtype=pairs.dtype, device=pairs.device)
    return problem.prove(head[None])[0]


# The search costs a few n³ products per step: seconds up to here, minutes beyond.
LARGEST_SEARCH = 512


def optimised_metric(chain: Chain, *, steps: int = 150) -> Tensor:
    """Search for a diagonal Λ that makes the matrix inequality's γ small, from the operator's own metric.

    γ(Λ) = λ_max(K⁻¹(BBᵀ + CᵀC)) is quasi-convex in Λ (the inequality is linear in (Λ, γ) after a Schur complement), so
    a local search loses little: Adam on log Λ. The result proves nothing by itself; hand it to `prove`.

    Args:
        chain: Of a network with a dense equilibrium whose states go straight to the logits.
        steps: Of the search.

    Returns:
        The diagonal, (n,).

    Raises:
        InvalidArgument: The network is none of that kind.
    """
    tail = Tail.required(chain)
    blocks, head = tail.blocks, tail.head
    matrix, inputs = blocks.matrix, blocks.inputs
    start = matrix.new_ones(len(matrix)) if blocks.metric is None else blocks.metric.detach()
    if not bool(inputs.any()) or not bool(head.any()):
        return start  # a constant network needs no search
    try:
        gamma, t = _Problem.of(blocks, None).proposed(head)
    except LinAlgError:
        return start
    gram, output = inputs @ inputs.mT, head.mT @ head
    best, best_value = start, gamma
    with torch.enable_grad():
        log_metric = (start * t).log().to(matrix).requires_grad_()
        optimizer = torch.optim.Adam([log_metric], lr=0.05)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.025 * (1 + math.cos(math.pi * step / steps))
            value = _smallest_constant(log_metric.exp(), matrix, gram, output)
            if not bool(torch.isfinite(value)):
                break
            if float(value.detach()) < best_value:
                best, best_value = log_metric.detach().exp(), float(value.detach())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return best


def _smallest_constant(metric: Tensor, matrix: Tensor, gram: Tensor, head: Tensor) -> Tensor:
    """λ_max(K⁻¹(BBᵀ + CᵀC)), differentiable in the metric; NaN where K is not positive definite.

    Its gradient is that of the Rayleigh quotient vᵀ(BBᵀ + CᵀC)v/vᵀKv at the eigenvector v: no derivatives of
    factorisations are needed. gram: UUᵀ. head: CᵀC.
    """
    scaled = metric[:, None] * matrix
    products = metric[:, None] * gram * metric + head
    with torch.no_grad():
        chol, info = torch.linalg.cholesky_ex(scaled + scaled.mT)
        if int(info) != 0:
            return metric.new_tensor(math.nan)
        half = torch.linalg.solve_triangular(chol, products, upper=False)
        _, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(chol, half.mT, upper=False))
        v = torch.linalg.solve_triangular(chol.mT, vectors[:, -1:], upper=True)[:, 0]
    return (v @ products @ v) / (2 * (v @ scaled @ v))


@dataclass(frozen=True, eq=False)
class _Problem:
    """The inequality without its output, and the eigendecomposition of H that the proposal needs.

    K and B are in units in which their largest entries are near 1, and so is C when it comes, so that nothing overflows
    or vanishes: γ is 2^exponent times that of these units, times the unit of C.
    """

    symmetric: Tensor  # K
    symmetric_size: float  # ‖ΛA‖_F, which the rounding of K is relative to
    inputs: Tensor  # B = ΛU diag(1/std)
    gram: Tensor  # BBᵀ
    chol: Tensor  # L
    modes: Tensor  # eigenvectors of H
    levels: Tensor  # its eigenvalues
    exponent: int
    input_exponent: int

    @staticmethod
    def of(blocks: Blocks, metric: Tensor | None) -> _Problem:
        own = blocks.matrix.new_ones(len(blocks.matrix)) if blocks.metric is None else blocks.metric
        weight = (own if metric is None else metric).detach().double()
        scaled = weight[:, None] * blocks.matrix
        size = norms.frobenius(scaled)
        symmetric, power = verified.normalised(scaled + scaled.mT)
        inputs, input_power = verified.normalised(weight[:, None] * blocks.inputs)
        # Where K is not positive definite nothing can be proved, and NaN propagates to a bound of inf.
        chol, info = torch.linalg.cholesky_ex(symmetric)
        chol = chol if int(info) == 0 else torch.full_like(chol, math.nan)
        gram = inputs @ inputs.mT
        half = torch.linalg.solve_triangular(chol, inputs, upper=False)
        h = half @ half.mT
        levels, modes = torch.linalg.eigh(h) if int(info) == 0 else (chol[0], chol)
        size = verified.times_power(size, -power)
        return _Problem(
            symmetric, size, inputs, gram, chol, modes, levels.clamp_min(0), input_power - power, input_power
        )

    def prove(self, outputs: Tensor) -> list[float]:
        """For each output C z, C in (outputs, rows, n), a γ for which the inequality is proved; inf where none is."""
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
        """γ and t for output C z in their own units; not proved."""
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
        rounding = 2 * verified.rounding_factor(self.inputs.shape[1] + 16) * size
        return verified.smallest_eigenvalue(matrix, perturbation=rounding) >= 0

    def _propose(self, outputs: Tensor) -> list[tuple[float, float]]:
        """The best (γ, t) of each output in floating point, by golden-section search over μ, all at the same time."""
        top = float(self.levels[-1])
        if not 0 < top < math.inf:
            return [(math.inf, 1.0)] * len(outputs)
        p = self.modes.mT @ torch.linalg.solve_triangular(self.chol, outputs.mT, upper=False)

        def squared(mu: Tensor) -> Tensor:
            weighted = p * (mu[:, None] / (mu[:, None] - self.levels).sqrt())[:, :, None]
            return torch.linalg.eigvalsh(weighted.mT @ weighted)[:, -1]

        low, high = (torch.full_like(outputs[:, 0, 0], end) for end in (top * (1 + 1e-9), 2 * top))
        golden = (math.sqrt(5) - 1) / 2
        for _ in range(50):
            left, right = high - golden * (high - low), low + golden * (high - low)
            lower = squared(left) < squared(right)
            low, high = torch.where(lower, low, left), torch.where(lower, right, high)
        mu = (low + high) / 2
        gamma = squared(mu).sqrt()
        return list(zip(gamma.tolist(), (gamma / mu).tolist(), strict=True))
