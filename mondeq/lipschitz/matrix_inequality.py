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

from mondeq.lipschitz.bound import Bound
from mondeq.models import Classifier, check_exact, fingerprint
from mondeq.parameterizations import DenseInput
from splitting import norms, verified
from splitting.errors import InvalidType

_ASSUMPTIONS = "exact equilibrium of the stored weights; inputs anywhere in pixel space"


def matrix_inequality_bound(exact: Classifier, metric: Tensor | None = None) -> Bound:
    """The smallest γ that the inequality proves with Λ = t·metric over t > 0, for all logits and for every gap.

    exact: a float64 classifier on a dense parameterization. metric: (n,), positive; by default the operator's own.
    Never worse than the product bound with the same metric, up to the slack of the proof (1e-9 relative).
    """
    check_exact(exact)
    head = exact.head_weight.detach()
    pairs = head.new_zeros(len(head), len(head))
    try:
        value = _constants(_Problem.of(exact, metric), head, pairs)
    except LinAlgError:
        # Weights of such a scale that no eigenvalue routine copes: nothing is proved.
        value = math.inf
        pairs.fill_(math.inf).fill_diagonal_(0)
    return Bound(value, "certified", "matrix inequality", _ASSUMPTIONS, pairs).sealed(fingerprint(exact))


def _constants(problem: _Problem, head: Tensor, pairs: Tensor) -> float:
    """The constant of all logits; those of their gaps are written to `pairs`."""
    for i in range(len(head)):
        for j in range(i):
            pairs[i, j] = pairs[j, i] = problem.prove((head[i] - head[j])[None])
    return problem.prove(head)


# The search costs a few n³ products per step: seconds up to here, minutes beyond.
LARGEST_SEARCH = 512


def optimised_metric(exact: Classifier, *, steps: int = 150) -> Tensor:
    """A diagonal Λ, (n,), that makes the matrix inequality's γ small, by Adam on log Λ from the operator's own metric.

    γ(Λ) = λ_max(K⁻¹(BBᵀ + CᵀC)) is quasi-convex in Λ (the inequality is linear in (Λ, γ) after a Schur complement), so
    a local search loses little. The result proves nothing by itself; hand it to `matrix_inequality_bound`.
    """
    operator = _dense(exact).operator()
    matrix, head = operator.matrix.detach(), exact.head_weight.detach()
    inputs = _dense(exact).U.detach() * exact.pixel_scale()
    start = matrix.new_ones(len(matrix)) if operator.metric is None else operator.metric.detach()
    if not bool(inputs.any()) or not bool(head.any()):
        return start  # a constant network needs no search
    try:
        gamma, t = _Problem.of(exact, None).proposed(head)
    except LinAlgError:
        return start
    best, best_value = start, gamma
    with torch.enable_grad():
        log_metric = (start * t).log().to(matrix).requires_grad_()
        optimizer = torch.optim.Adam([log_metric], lr=0.05)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.025 * (1 + math.cos(math.pi * step / steps))
            value = _gamma(log_metric.exp(), matrix, inputs, head)
            if not bool(torch.isfinite(value)):
                break
            if float(value.detach()) < best_value:
                best, best_value = log_metric.detach().exp(), float(value.detach())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return best


def _dense(exact: Classifier) -> DenseInput:
    linear = exact.linear
    if not isinstance(linear, DenseInput):
        raise InvalidType(f"the matrix inequality needs a dense parameterization, got {type(linear).__name__}")
    return linear


def _gamma(metric: Tensor, matrix: Tensor, inputs: Tensor, head: Tensor) -> Tensor:
    """λ_max(K⁻¹(BBᵀ + CᵀC)), differentiable in the metric; NaN where K is not positive definite."""
    scaled = metric[:, None] * matrix
    chol, info = torch.linalg.cholesky_ex(scaled + scaled.mT)
    if int(info) != 0:
        return metric.new_tensor(math.nan)
    columns = torch.cat([metric[:, None] * inputs, head.mT], dim=1)
    half = torch.linalg.solve_triangular(chol, columns, upper=False)
    return torch.linalg.eigvalsh(half @ half.mT)[-1]


@dataclass(frozen=True, eq=False)
class _Problem:
    """The inequality without its output, and the eigendecomposition of H that the proposal needs.

    K and B are in units in which their largest entries are near 1, and so is C when it comes, so that nothing overflows
    or vanishes: γ is 2^exponent times that of these units, times the unit of C.
    """

    symmetric: Tensor  # K
    symmetric_size: float  # ‖ΛA‖_F, which the rounding of K is relative to
    inputs: Tensor  # B = ΛU diag(1/std)
    chol: Tensor  # L
    modes: Tensor  # eigenvectors of H
    levels: Tensor  # its eigenvalues
    exponent: int
    input_exponent: int

    @staticmethod
    def of(exact: Classifier, metric: Tensor | None) -> _Problem:
        linear = _dense(exact)
        operator = linear.operator()
        own = torch.ones_like(linear.b) if operator.metric is None else operator.metric
        weight = (own if metric is None else metric).detach()
        scaled = weight[:, None] * operator.matrix.detach()
        size = norms.frobenius(scaled)
        symmetric, power = verified.normalised(scaled + scaled.mT)
        inputs, input_power = verified.normalised(weight[:, None] * linear.U.detach() * exact.pixel_scale())
        # Where K is not positive definite nothing can be proved, and NaN propagates to a bound of inf.
        chol, info = torch.linalg.cholesky_ex(symmetric)
        chol = chol if int(info) == 0 else torch.full_like(chol, math.nan)
        half = torch.linalg.solve_triangular(chol, inputs, upper=False)
        h = half @ half.mT
        levels, modes = torch.linalg.eigh(h) if int(info) == 0 else (chol[0], chol)
        size = verified.times_power(size, -power)
        return _Problem(symmetric, size, inputs, chol, modes, levels.clamp_min(0), input_power - power, input_power)

    def prove(self, C: Tensor) -> float:
        """A γ for which the inequality is proved to hold with output C z, C (rows, n); inf if none is found."""
        if not bool(C.any()) or not bool(self.inputs.any()):
            return 0.0
        C, power = verified.normalised(C)
        gamma, t = self._propose(C)
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
        gamma, t = self._propose(C)
        return verified.times_power(gamma, self.exponent + power), verified.times_power(t, power - self.input_exponent)

    def _holds(self, C: Tensor, gamma: float, t: float) -> bool:
        """Whether t K − (t² BBᵀ + CᵀC)/γ ⪰ 0 is proved, rounding included."""
        products = t * t * (self.inputs @ self.inputs.mT) + C.mT @ C
        matrix = t * self.symmetric - products / gamma
        matrix = (matrix + matrix.mT) / 2
        size = 2 * t * self.symmetric_size + float(t * t * self.inputs.square().sum() + C.square().sum()) / gamma
        # 16: entries of K, B and C carry a few roundings of their own.
        rounding = 2 * verified.gamma(self.inputs.shape[1] + 16) * size
        return verified.smallest_eigenvalue(matrix, perturbation=rounding) >= 0

    def _propose(self, C: Tensor) -> tuple[float, float]:
        """The best (γ, t) in floating point, by golden-section search over μ."""
        top = float(self.levels[-1])
        if not 0 < top < math.inf:
            return math.inf, 1.0
        p = self.modes.mT @ torch.linalg.solve_triangular(self.chol, C.mT, upper=False)

        def squared(mu: float) -> float:
            weighted = p * (mu / (mu - self.levels).sqrt())[:, None]
            return float(torch.linalg.eigvalsh(weighted.mT @ weighted)[-1])

        low, high = top * (1 + 1e-9), 2 * top
        golden = (math.sqrt(5) - 1) / 2
        for _ in range(50):
            left, right = high - golden * (high - low), low + golden * (high - low)
            low, high = (low, right) if squared(left) < squared(right) else (left, high)
        mu = (low + high) / 2
        gamma = math.sqrt(squared(mu))
        return gamma, gamma / mu
