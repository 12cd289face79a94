"""The matrix inequality of a convolutional equilibrium, one frequency at a time, whatever linear map follows it.

With one number of Λ per channel, ΛA + AᵀΛ and ΛU are one matrix per frequency. In units of Λ in which μ = γ/t = 1,
M(Λ) = ΛA + AᵀΛ − ΛUUᵀΛ ≻ 0 is a matter of every frequency alone, and x ↦ Cz is γ-Lipschitz with
γ² = λ_max(C M⁻¹ Cᵀ), to which the frequencies are added up: C, which averages and flattens too, need not be a
convolution. γ² is convex in Λ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mondeq.bounds.base import BOUNDS, Bound, BoundMethod, Chain
from mondeq.bounds.product import concluded
from mondeq.parameterizations import Correlations
from splitting import InvalidArgument, norms, symbols, verified

MISSING = "no convolutional equilibrium whose states go straight, or through averages, to the logits"
# Σ over frequencies of (2·channels)³: a step of the search takes ten seconds beyond. Numbers that are held at a time.
MOST_WORK, _AT_ONCE = 2.0**36, 2**22


@BOUNDS.enrol("matrix inequality, per frequency")
class PerFrequency(BoundMethod):
    """The smallest γ that the inequality proves for the last equilibrium with one number of Λ per channel.

    Λ is optimised for all gaps together. What comes before that equilibrium counts by its product bound.
    """

    def unsuited(self, chain: Chain) -> str | None:
        images = _images(chain)
        if images is None:
            return MISSING
        frequencies, channels = images.correlations.torus.frequencies, len(images.correlations.operator)
        if frequencies * (2.0 * channels) ** 3 > MOST_WORK:
            return f"{channels} channels at {frequencies} frequencies, and the search takes many minutes"
        return None

    def bound(self, chain: Chain) -> Bound:
        images = _images(chain)
        if images is None:
            raise InvalidArgument(f"`chain` has {MISSING}")
        problem = _Problem.of(images)
        value, gaps = problem.prove(problem.search())
        return concluded(chain, images.trunk, value, gaps, "matrix inequality per frequency, a metric per channel")


@dataclass(frozen=True, eq=False)
class _Images:
    """The last equilibrium: its kernels, C (classes, channels, height, width), the constant of what comes before."""

    correlations: Correlations
    head: Tensor
    trunk: float


def _images(chain: Chain) -> _Images | None:
    """None where the last equilibrium has no kernels, or its states do not go straight to linear logits."""
    head = chain.stages[-1].rows()
    for number in reversed(range(len(chain.stages) - 1)):
        if head is None:
            return None
        stage = chain.stages[number]
        if (found := stage.correlations()) is not None:
            # States are 0 outside, and so C may be.
            head = head.view(len(head), *stage.out_shape) * found.inside
            return _Images(found, head, chain.constant(chain.stages[:number]))
        head = stage.lift(head)
    return None


@dataclass(frozen=True, eq=False)
class _Problem:
    """Kernels and transforms in units in which their largest entries are near 1; γ is 2^exponent times that of these.

    Args:
        operator: The symbol of A, (frequencies, 2n, n).
        inputs: That of U, (frequencies, 2n, d).
        head: The transforms of the rows of C, (frequencies, 2n, classes), scaled so that their squares add up to ‖C‖².
        operator_error: How far A(ω) may be from the exact one, in the 2-norm.
        inputs_error: The same of U(ω).
        head_error: The same of all of C together, in the Frobenius norm.
        exponent: See above.
    """

    operator: Tensor
    inputs: Tensor
    head: Tensor
    operator_error: float
    inputs_error: float
    head_error: float
    exponent: int

    @staticmethod
    def of(images: _Images) -> _Problem:
        torus = images.correlations.torus
        kernel, power = verified.normalised(images.correlations.operator)
        inputs, input_power = verified.normalised(images.correlations.inputs)
        head, head_power = verified.normalised(images.head)
        operator = torus.symbol(kernel)
        spectra = torus.analyse(head.permute(2, 3, 1, 0).contiguous()) * torus.weights(operator).sqrt()[:, None, None]
        # √2: frequencies that stand for their mirrors count twice.
        error = 2 * (torus.rounding(torch.float64) + 8 * verified.rounding_factor(1)) * norms.frobenius(head)
        return _Problem(
            operator,
            torus.symbol(inputs),
            spectra,
            _symbol_error(kernel),
            _symbol_error(inputs),
            verified.round_up(error),
            head_power + input_power - power,
        )

    def search(self) -> Tensor:
        """The Λ per channel that makes the sum over gaps of (γ/γ₀)² small, γ₀ that of Λ = λI; it proves nothing."""
        n = self.operator.shape[2]
        start = self._largest_multiple() * self.operator.new_ones(n)
        factor = self._weighted_gaps(start)
        if factor is None:
            return start
        rows = self.head @ factor

        def objective(log_metric: Tensor) -> tuple[float, Tensor]:
            return self._objective(log_metric.exp(), rows)

        return _descend(objective, start.log()).exp()

    def _largest_multiple(self) -> float:
        """λ that makes the logits' γ least for Λ = λI, on a grid up to the largest λ with M ≻ 0."""
        top = max(
            float(torch.linalg.eigvalsh(_whitened(A + A.mT, U))[:, -1].amax()) for A, U, _ in self._chunks(self.head)
        )
        if not 0 < top < math.inf:
            return 1.0
        grid = [1 / (top * (1 + 2.0**-k)) for k in range(8)]
        ones = self.operator.new_ones(self.operator.shape[2])
        return min(grid, key=lambda each: self._objective(each * ones, self.head)[0])

    def _weighted_gaps(self, metric: Tensor) -> Tensor | None:
        """Q with QQᵀ = Σ (e_i − e_j)(e_i − e_j)ᵀ/γ_ij², the sum over gaps as one over few rows."""
        gram = self.head.new_zeros(self.head.shape[2], self.head.shape[2])
        for A, U, C in self._chunks(self.head):
            chol, info = torch.linalg.cholesky_ex(_inequality(A, U, metric))
            if bool(info.any()):
                return None
            half = torch.linalg.solve_triangular(chol, C, upper=False).flatten(0, 1)
            gram += half.mT @ half
        squares = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
        weights = torch.where(squares > 1e-12 * gram.diagonal().amax(), 1 / squares, 0.0).fill_diagonal_(0)
        levels, modes = torch.linalg.eigh(torch.diag_embed(weights.sum(0)) - weights)
        return modes[:, 1:] * levels[1:].clamp_min(0).sqrt()

    def _objective(self, metric: Tensor, rows: Tensor) -> tuple[float, Tensor]:
        """tr(C M⁻¹ Cᵀ) and its gradient in log Λ: −2 y∘(Ay − UUᵀΛy) summed, y = M⁻¹Cᵀ; inf where M is none."""
        n, total = len(metric), 0.0
        gradient, twice = torch.zeros_like(metric), torch.cat([metric, metric])
        for A, U, C in self._chunks(rows):
            chol, info = torch.linalg.cholesky_ex(_inequality(A, U, metric))
            if bool(info.any()):
                return math.inf, gradient
            y = torch.cholesky_solve(C, chol)
            total += float((C * y).sum())
            r = A @ y - U @ (U.mT @ (twice[:, None] * y))
            gradient -= 2 * (y * r).sum((0, 2)).view(2, n).sum(0) * metric
        return (total if math.isfinite(total) else math.inf), gradient

    def prove(self, metric: Tensor) -> tuple[float, list[float]]:
        """γ of all logits and of every gap, proved for a Λ; inf where nothing is.

        With Y ≈ M⁻¹Cᵀ and R = Cᵀ − MY, C M⁻¹Cᵀ = CY + YᵀR + RᵀM⁻¹R, and M ⪰ s > 0 by Cholesky at every frequency.
        """
        classes = self.head.shape[2]
        first, second = torch.tril_indices(classes, classes, -1, device=self.head.device)
        nothing = math.inf, [math.inf] * len(first)
        if not bool(self.head.any()) or not bool(self.inputs.any()):
            return 0.0, [0.0] * len(first)
        least, gram = math.inf, self.head.new_zeros(classes, classes)
        residual = solution = 0.0  # ‖R‖² and ‖Y‖²
        for A, U, C in self._chunks(self.head):
            M, error = _inequality(A, U, metric), self._error(A, U, metric)
            least = min(least, verified.smallest_eigenvalue(M, perturbation=error))
            if not least > 0:
                return nothing
            Y = torch.cholesky_solve(C, torch.linalg.cholesky(M))
            rounding = verified.rounding_factor(M.shape[1] + 8)
            lengths, sizes = (torch.linalg.matrix_norm(part) for part in (Y, C))
            left = torch.linalg.matrix_norm(C - M @ Y) + rounding * sizes
            left = left + (rounding * torch.linalg.matrix_norm(M) + error) * lengths
            residual, solution = residual + float(left.square().sum()), solution + float(lengths.square().sum())
            gram += C.flatten(0, 1).mT @ Y.flatten(0, 1)
        r, y = math.sqrt(residual) + self.head_error, math.sqrt(solution)
        dot = self.head_error + 2 * verified.rounding_factor(self.head[..., 0].numel() + 8) * norms.frobenius(self.head)
        wrong = ((dot + r) * y + r * r / least) * (1 + 1e-9) + 1e-290
        if not math.isfinite(wrong):
            return nothing
        gram = (gram + gram.mT) / 2
        squares = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
        gaps = squares[first, second].clamp_min(0) + 2 * wrong + 8 * 2.0**-52 * float(gram.abs().amax())
        value = verified.largest_eigenvalue(gram, perturbation=wrong)
        return self._root(value), [self._root(gap) for gap in gaps.tolist()]

    def _root(self, squared: float) -> float:
        root = verified.round_up(math.sqrt(max(squared, 0.0)))
        return verified.round_up(verified.times_power(root, self.exponent) + verified.UNDERFLOW)

    def _error(self, A: Tensor, U: Tensor, metric: Tensor) -> float:
        """How far the computed M may be from the exact one at any of some frequencies, in the 2-norm."""
        largest, entries = float(metric.amax()), U.shape[2]
        a, u = (float(torch.linalg.matrix_norm(part).amax()) * largest for part in (A, U))
        wrong, wrong_inputs = largest * self.operator_error, largest * self.inputs_error
        rounding = 8 * verified.rounding_factor(1) * a + 2 * verified.rounding_factor(entries + 8) * u * u
        return verified.round_up((2 * wrong + 2 * u * wrong_inputs + wrong_inputs**2 + rounding) * (1 + 1e-9))

    def _chunks(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A and U as stacked matrices, and some transforms, a few frequencies at a time."""
        count = max(_AT_ONCE // (2 * self.operator.shape[2]) ** 2, 1)
        parts = (self.operator, self.inputs, rows)
        for operator, inputs, columns in zip(*(part.split(count) for part in parts), strict=True):
            yield symbols.stacked(operator), symbols.stacked(inputs), columns


def _inequality(A: Tensor, U: Tensor, metric: Tensor) -> Tensor:
    """M at some frequencies, symmetric to the last bit."""
    twice = torch.cat([metric, metric])[:, None]
    K, B = twice * A, twice * U
    M = K + K.mT - B @ B.mT
    return (M + M.mT) / 2


def _whitened(K: Tensor, U: Tensor) -> Tensor:
    """L⁻¹UUᵀL⁻ᵀ with K = LLᵀ; NaN where K is not positive definite."""
    chol, info = torch.linalg.cholesky_ex(K)
    half = torch.linalg.solve_triangular(torch.where((info == 0)[:, None, None], chol, math.nan), U, upper=False)
    return half @ half.mT if bool(torch.isfinite(half).all()) else torch.full_like(K[:1, :1, :1], math.nan)


def _symbol_error(kernel: Tensor) -> float:
    """How far a computed symbol may be from the exact one at any frequency, in the 2-norm."""
    return symbols.symbol_rounding(kernel[0, 0].numel()) * norms.frobenius(kernel.abs().sum((2, 3))) * (1 + 1e-9)


def _descend(objective: Callable[[Tensor], tuple[float, Tensor]], x: Tensor, *, steps: int = 40) -> Tensor:
    """A point where a function is small, by BFGS with backtracking; `objective` gives value and gradient."""
    value, gradient = objective(x)
    inverse = torch.eye(len(x)).to(x) / max(float(gradient.norm()), 1e-300)
    for _ in range(steps):
        direction = -inverse @ gradient
        slope, step = float(direction @ gradient), min(1.0, 1 / max(float(direction.abs().amax()), 1e-300))
        found, changed = objective(x + step * direction)
        while not found <= value + 1e-4 * step * slope and step > 1e-6:
            step /= 3
            found, changed = objective(x + step * direction)
        if not found < value:
            return x
        moved, turned = step * direction, changed - gradient
        x, gradient, gained, value = x + moved, changed, value - found, found
        if gained <= 1e-6 * value:
            return x
        curvature = float(moved @ turned)
        if curvature > 1e-12 * float(moved.norm() * turned.norm()):
            left = torch.eye(len(x)).to(x) - torch.outer(moved, turned) / curvature
            inverse = left @ inverse @ left.mT + torch.outer(moved, moved) / curvature
    return x
