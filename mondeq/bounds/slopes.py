"""Bounds by enumeration: between any two inputs Δz = δΔv with a slope δ in [0, 1] per unit, whatever the activation.

Δy = J(δ)Δx with J(δ) = C(I − δW)⁻¹δU. Along one δ_i this is a line, J₀ + s(δ_i)·(rank one) with s monotone, so that
‖J(δ)‖ is largest where every slope is 0 or 1: at the 2ⁿ activation patterns of ReLU. With S the units of slope 1 it is
‖C_S A_SS⁻¹ U_S‖. No bound for all activations is smaller, and for ReLU none where every pattern occurs at some input.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, but not listed in its stub

from mondeq.bounds.base import BOUNDS, Bound, BoundMethod, Chain
from mondeq.bounds.product import concluded
from mondeq.bounds.states import MISSING, States, joined, last
from splitting import InvalidArgument, norms, verified

# 2ⁿ inverses: a second up to here.
LARGEST_ENUMERATION, MOST_CLASSES = 14, 100
# Patterns at a time.
_PATTERNS = 2**10


@BOUNDS.enrol("slopes")
class Slopes(BoundMethod):
    """The largest ‖J(δ)‖ over all patterns of slopes 0 and 1 of the last equilibria that have matrices."""

    def unsuited(self, chain: Chain) -> str | None:
        states = _states(chain)
        if states is None:
            return MISSING
        size, classes = len(states.blocks.matrix), len(states.head)
        if size > LARGEST_ENUMERATION:
            return f"{size} units, and the patterns of more than {LARGEST_ENUMERATION} are too many"
        if classes > MOST_CLASSES:
            return f"{classes} classes, and the gaps of more than {MOST_CLASSES} are too many"
        return None

    def bound(self, chain: Chain) -> Bound:
        states = _states(chain)
        if states is None:
            raise InvalidArgument(f"`chain` has {MISSING}")
        # Between patterns the network is regular because A is strongly monotone; where that is not proved, nothing is.
        proved = all(math.isfinite(stage.constant) for stage in chain.stages)
        value, *gaps = _largest(states) if proved else [math.inf] * (1 + len(states.gaps))
        return concluded(chain, states.trunk, value, gaps, "largest over all slopes in [0, 1]")


def _states(chain: Chain) -> States | None:
    """All equilibria that can be joined, or the last one where those would be too many units."""
    longest = joined(chain)
    return last(chain) if longest is None or len(longest.blocks.matrix) > LARGEST_ENUMERATION else longest


def _largest(states: States) -> list[float]:
    """Proved bounds for all logits and for every gap."""
    matrix, power = verified.normalised(states.blocks.matrix)
    inputs, input_power = verified.normalised(states.blocks.inputs)
    error = verified.times_power(states.error, -power) + 4 * verified.rounding_factor(1) * norms.frobenius(matrix)
    outputs = [states.head, *states.gaps[:, None]]
    scaled = [verified.normalised(C) for C in outputs]
    inputs = _square(inputs)
    found = [0.0] * len(outputs)
    try:
        for patterns in _patterns(len(matrix), matrix).split(_PATTERNS):
            inverses = _Inverses(matrix, patterns, error)
            parts = (inverses.norm(C, inputs) for C, _ in scaled)
            found = [max(a, b) for a, b in zip(found, parts, strict=True)]
    except LinAlgError:
        return [math.inf] * len(outputs)
    powers = (p + input_power - power for _, p in scaled)
    return [
        verified.round_up(verified.times_power(f, p) + verified.UNDERFLOW) if f else 0.0
        for f, p in zip(found, powers, strict=True)
    ]


def _patterns(n: int, like: Tensor) -> Tensor:
    """All 2ⁿ patterns, (2ⁿ, n)."""
    numbers = torch.arange(2**n, device=like.device)[:, None]
    return ((numbers >> torch.arange(n, device=like.device)) & 1).to(like)


def _square(inputs: Tensor) -> Tensor:
    """A matrix B of at most n columns with BBᵀ ⪰ UUᵀ, the rounding of everything included."""
    n, entries = inputs.shape
    if entries <= n:
        return inputs
    gram = inputs @ inputs.mT
    # Twice what products and factorisation may round.
    shift = 4 * verified.rounding_factor(n + entries + 16) * float(inputs.square().sum()) + entries * verified.UNDERFLOW
    return torch.linalg.cholesky((gram + gram.mT) / 2 + shift * torch.eye(n).to(gram))


class _Inverses:
    """(A_SS)⁻¹ of some patterns, each as the matrix with the identity on the units of slope 0, with its error.

    X ≈ A⁻¹ with ‖I − XA‖ ≤ q < 1 gives ‖A⁻¹‖ ≤ ‖X‖/(1 − q), and CA⁻¹U = CXU + (C − CXA)A⁻¹U.
    """

    def __init__(self, matrix: Tensor, patterns: Tensor, error: float) -> None:
        self.patterns = patterns
        inactive = torch.diag_embed(1 - patterns)
        self.matrices = patterns[:, :, None] * matrix * patterns[:, None] + inactive
        self.inverses = torch.linalg.inv(self.matrices)
        n = len(matrix)
        self.rounding = 4 * verified.rounding_factor(n + 4)
        self.sizes, sizes = _sizes(self.inverses), _sizes(self.matrices)
        eye = torch.eye(n).to(matrix)
        self.error = error
        q = _sizes(eye - self.inverses @ self.matrices) + self.rounding * (self.sizes * sizes + n) + self.sizes * error
        self.gains = torch.where(q < 0.5, self.sizes / (1 - q) * (1 + 1e-12), math.inf)
        self.matrix_sizes = sizes

    def norm(self, C: Tensor, inputs: Tensor) -> float:
        """A bound on ‖C A_SS⁻¹ U_S‖ over the patterns."""
        if not bool(C.any()) or not bool(inputs.any()):
            return 0.0
        rows = C * self.patterns[:, None]
        size = norms.frobenius(C)
        Y = rows @ self.inverses
        left = _sizes(rows - Y @ self.matrices)
        y = _sizes(Y)
        left = left + self.rounding * (size + y * self.matrix_sizes) + y * self.error
        columns = self.patterns[:, :, None] * inputs
        length = norms.frobenius(inputs)
        J = Y @ columns
        errors = (left * self.gains + self.rounding * y) * length * (1 + 1e-12) + 1e-300
        if not bool(torch.isfinite(errors).all()):
            return math.inf
        if len(C) == 1:
            return float((verified.vector_norm(J[:, 0]) + errors).amax()) * (1 + 1e-14)
        return verified.spectral_norm(J, perturbation=float(errors.amax()))


def _sizes(matrices: Tensor) -> Tensor:
    """Upper bounds on ‖·‖_F of each matrix."""
    return verified.vector_norm(matrices)
