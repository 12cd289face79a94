"""The matrix inequality with a metric of its own for every output: all logits, and each gap.

Scaling Λ so that μ = γ/t = 1, γ² = λ_max(C M(Λ)⁻¹ Cᵀ) with M(Λ) = ΛA + AᵀΛ − ΛUUᵀΛ ≻ 0. M is concave in Λ, so that γ²
is convex; for a gap, C one row c, it is smooth too, and Newton's method finds its minimum. The searches prove nothing:
the inequality with the Λ that they found does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, but not listed in its stub

from mondeq.bounds.base import BOUNDS, Bound, BoundMethod, Chain
from mondeq.bounds.matrix_inequality import Problem
from mondeq.bounds.product import concluded
from mondeq.bounds.states import MISSING, States, last, required
from splitting import verified

# The searches cost a few n³ products per step and output: seconds up to here, minutes beyond.
LARGEST_SEARCH, MOST_WORK = 512, 2.0**33
# Numbers that the matrices of the gaps that are searched for at a time take.
_AT_ONCE = 2**23


@BOUNDS.enrol("matrix inequality, optimised metric")
class OptimisedMetric(BoundMethod):
    """The smallest γ that the inequality proves for the last equilibrium with a diagonal Λ of its own per output."""

    def unsuited(self, chain: Chain) -> str | None:
        states = last(chain)
        return MISSING if states is None else too_large(states)

    def bound(self, chain: Chain) -> Bound:
        return prove_optimised(chain, required(chain), "matrix inequality, a metric per gap")


def too_large(states: States) -> str | None:
    """Why a search for metrics would take too long.

    Args:
        states: What it would be for.

    Returns:
        The reason; None where there is none.
    """
    size, classes = len(states.blocks.matrix), len(states.head)
    if size > LARGEST_SEARCH:
        return f"{size} units, and the search takes minutes beyond {LARGEST_SEARCH}"
    if size**3 * classes**2 / 2 > MOST_WORK:
        return f"{size} units and {classes} classes, and the search for every gap takes minutes"
    return None


def prove_optimised(chain: Chain, states: States, method: str) -> Bound:
    """Search for a metric per output, and prove the inequality with each.

    Args:
        chain: What is proved of the network.
        states: Its states that have matrices.
        method: What the bound is to say that it was computed by.

    Returns:
        The bound. Where nothing is proved it is the product bound, and says so.
    """
    value, *gaps = [math.inf] * (1 + len(states.gaps))
    try:
        value = _proved(states, optimised_metric(states), states.head)
        metrics = gap_metrics(states)
        gaps = [_proved(states, *found) for found in zip(metrics, states.gaps[:, None], strict=True)]
    except LinAlgError:
        pass  # weights of such a scale that no eigenvalue routine copes: nothing is proved
    return concluded(chain, states.trunk, value, gaps, method)


def _proved(states: States, metric: Tensor, output: Tensor) -> float:
    return Problem.of(states, metric).prove(output[None])[0]


def gap_metrics(states: States, *, steps: int = 25) -> Tensor:
    """For every gap the Λ that minimises γ² = cM(Λ)⁻¹cᵀ, by Newton's method from the operator's own metric.

    With y = M⁻¹cᵀ, G = UUᵀ and r = Ay − GΛy the gradient is −2 y∘r and the Hessian 2JᵀM⁻¹J + 2 diag(y)G diag(y),
    J = diag(r) + (Aᵀ − ΛG) diag(y); M is kept positive definite by a barrier.

    Args:
        states: Dense states that go straight to the logits.
        steps: The most that are taken.

    Returns:
        The diagonals, (gaps, n), which prove nothing by themselves.

    Raises:
        LinAlgError: The weights are of such a scale that no eigenvalue routine copes.
    """
    start = _start(states)
    matrix, _ = verified.normalised(states.blocks.matrix)
    inputs, _ = verified.normalised(states.blocks.inputs)
    gaps = states.gaps
    size = gaps.abs().amax(1, keepdim=True)
    gaps = gaps / torch.where(size > 0, size, 1.0)
    if start is None:
        own = states.blocks.metric
        return gaps.new_ones(gaps.shape) if own is None else own.double().expand_as(gaps)
    search = _Search(matrix, inputs @ inputs.mT)
    chunks = gaps.split(max(_AT_ONCE // len(matrix) ** 2, 1))
    return torch.cat([search.minimise(start.expand_as(chunk), chunk, steps) for chunk in chunks])


def _start(states: States) -> Tensor | None:
    """The own metric, scaled so that μ = 1 is best for all logits, of A and U as `gap_metrics` normalises them."""
    blocks = states.blocks
    own = blocks.matrix.new_ones(len(blocks.matrix)) if blocks.metric is None else blocks.metric.detach().double()
    if not bool(blocks.inputs.any()) or not bool(states.head.any()):
        return None
    gamma, t = Problem.of(states, None).proposed(states.head)
    _, power = verified.normalised(blocks.matrix)
    _, input_power = verified.normalised(blocks.inputs)
    scale = verified.times_power(t / gamma, 2 * input_power - power) if 0 < gamma < math.inf else math.nan
    return own * scale if math.isfinite(scale) else None


class _Search:
    """Newton's method for some gaps at the same time, on γ²/γ₀² − τ log det M with τ from 1/n down to 1e-3/n.

    The barrier keeps M well inside the positive definite matrices, up to whose boundary γ² may be finite.
    """

    def __init__(self, matrix: Tensor, gram: Tensor) -> None:
        self.matrix, self.gram = matrix, gram

    def minimise(self, metric: Tensor, gaps: Tensor, steps: int) -> Tensor:
        value, _ = self._factored(metric, gaps)
        gaps = gaps / torch.where((value > 0) & torch.isfinite(value), value, 1.0).sqrt()[:, None]
        for number in range(steps):
            barrier = max(2.0**-number, 1e-3) / len(self.matrix)
            now, chol = self._factored(metric, gaps, barrier)
            direction, decrement = self._direction(metric, gaps, chol, barrier)
            step, pending = torch.ones_like(now), torch.ones_like(now, dtype=torch.bool)
            for _ in range(20):
                found, _ = self._factored(metric + step[:, None] * direction, gaps, barrier)
                pending &= ~(found <= now - 0.1 * step * decrement)
                if not bool(pending.any()):
                    break
                step = torch.where(pending, step / 2, step)
            step = torch.where(pending | ~torch.isfinite(now), 0.0, step)
            metric = metric + step[:, None] * direction.nan_to_num(0.0, 0.0, 0.0)
            if barrier * len(self.matrix) <= 1e-3 and not bool((step * decrement > 1e-4).any()):
                break
        return metric

    def _factored(self, metric: Tensor, gaps: Tensor, barrier: float = 0.0) -> tuple[Tensor, Tensor]:
        """The function of every gap, inf where M is not positive definite, and the Cholesky factor of M."""
        scaled = metric[:, :, None] * self.matrix
        M = scaled + scaled.mT - metric[:, :, None] * self.gram * metric[:, None]
        chol, info = torch.linalg.cholesky_ex(M)
        half = torch.linalg.solve_triangular(chol, gaps[:, :, None], upper=False)
        value = half.square().sum((1, 2)) - 2 * barrier * chol.diagonal(dim1=1, dim2=2).log().sum(1)
        return torch.where((info == 0) & (metric > 0).all(1) & torch.isfinite(value), value, math.inf), chol

    def _direction(self, metric: Tensor, gaps: Tensor, chol: Tensor, barrier: float) -> tuple[Tensor, Tensor]:
        """Newton's step and how fast the function falls along it."""
        y = torch.cholesky_solve(gaps[:, :, None], chol)[:, :, 0]
        inverse = torch.cholesky_inverse(chol)
        # The derivative of M in λ_i is e_i b_iᵀ + b_i e_iᵀ with b_i the rows of this.
        rows = self.matrix - self.gram * metric[:, None]
        products = rows @ inverse
        r = (rows @ y[:, :, None])[:, :, 0]
        J = rows.mT * y[:, None] + torch.diag_embed(r)
        half = torch.linalg.solve_triangular(chol, J, upper=False)
        hessian = half.mT @ half + y[:, :, None] * self.gram * y[:, None]
        hessian = hessian + barrier * (products * products.mT + inverse * (products @ rows.mT + self.gram))
        gradient = -2 * (y * r + barrier * products.diagonal(dim1=1, dim2=2))
        # In units of the metric, so that a unit that hardly matters is left alone and not sent far away.
        hessian, gradient = 2 * metric[:, :, None] * hessian * metric[:, None], metric * gradient
        shift = 1e-12 * hessian.diagonal(dim1=1, dim2=2).amax(1) + 1e-300
        factor, _ = torch.linalg.cholesky_ex(hessian + torch.diag_embed(shift[:, None].expand_as(metric)))
        step = -torch.cholesky_solve(gradient[:, :, None], factor)[:, :, 0]
        return metric * step, -(gradient * step).sum(1)


def optimised_metric(states: States, *, steps: int = 150) -> Tensor:
    """Search for a diagonal Λ that makes the inequality's γ for all logits small, from the operator's own metric.

    γ(Λ) = λ_max(K⁻¹(BBᵀ + CᵀC)) is quasi-convex in Λ (the inequality is linear in (Λ, γ) after a Schur complement), so
    a local search loses little: Adam on log Λ. The result proves nothing by itself.

    Args:
        states: Dense states that go straight to the logits.
        steps: Of the search.

    Returns:
        The diagonal, (n,).
    """
    blocks, head = states.blocks, states.head
    matrix, inputs = blocks.matrix, blocks.inputs
    start = matrix.new_ones(len(matrix)) if blocks.metric is None else blocks.metric.detach()
    if not bool(inputs.any()) or not bool(head.any()):
        return start  # a constant network needs no search
    try:
        gamma, t = Problem.of(states, None).proposed(head)
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
