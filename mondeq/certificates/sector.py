"""Constants of outputs of z = σ(Wz + Ux + b) where the chord slopes of σ are known to lie in [l, l + w].

With Δz = lΔy + p and N = I − l + Al, NΔy = (I − A)p + UΔx. Let Y be rows near RN⁻¹ for some rows R, so that
RΔy = Y(I − A)p + YUΔx + (R − YN)Δy. Units with w = 0 have p = 0. For the others pᵢ(Δyᵢ − pᵢ/wᵢ) ≥ 0, hence, with these
rows of Y first and in units of p̂ = p/√w,

    p̂ᵀKp̂ ≤ 2p̂ᵀBΔx + 2η‖Δx‖²,    K = 2Λ − Λ√w P√w − (Λ√w P√w)ᵀ, P = (Y(I − A)) of these units, B = √wΛYU.

If M = K − BBᵀ/μ ≻ 0, then every output s = vᵀp̂ + dᵀ(Δx − Bᵀp̂/μ) has s² ≤ (1 + 2η/μ)(‖d‖² + μ vᵀM⁻¹v)‖Δx‖².
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, but not listed in its stub

from mondeq.pieces import Blocks
from splitting import norms, verified

# Squares of smaller entries of U vanish, and nothing is proved of them.
_LEAST = 2.0**-400
# μ as multiples of the smallest for which M could be positive definite.
_LEVELS = 1 + torch.logspace(-3, 1.5, 12, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, eq=False)
class System:
    """What all images share: z = σ(Wz + Ux + b) by its matrices, and the multipliers of the inequality.

    Args:
        matrix: A, (n, n) float64, as all of these.
        gram: UUᵀ, (n, n), with U in units in which inputs are measured.
        weight: Λ, (n,), positive.
        input_size: ‖U‖_F.
        terms: How many terms the sums of this arithmetic have.
        spread: A bound on ‖Δy‖/‖Δx‖, wherever x is.
    """

    matrix: Tensor
    gram: Tensor
    weight: Tensor
    input_size: float
    terms: int
    spread: float

    @staticmethod
    def of(blocks: Blocks, weight: Tensor, state: float) -> System:
        """The system of an equilibrium.

        Args:
            blocks: Its matrices.
            weight: Λ, (n,), positive.
            state: A bound on ‖Δz‖₂/‖Δx‖.

        Returns:
            The system, in main memory.
        """
        matrix, inputs, weight = (t.detach().to("cpu", torch.float64) for t in (blocks.matrix, blocks.inputs, weight))
        size = norms.frobenius(inputs)
        # Δy = (I − A)Δz + UΔx.
        spread = verified.round_up((1 + norms.frobenius(matrix)) * state + size)
        terms = inputs.shape[1] + 4 * len(matrix) + 32
        # Λ counts only up to a factor.
        return System(matrix, inputs @ inputs.mT, weight / weight.amax(), size, terms, spread)

    def near(self, lower: Tensor, upper: Tensor, rows: Tensor) -> Inequality:
        """The inequality for outputs `rows` z where chord slopes are known.

        Args:
            lower: Lower ends of the slopes, (n,) float64.
            upper: Upper ends.
            rows: C, (outputs, n).

        Returns:
            The inequality. Its outputs are the pre-activations of the free units, then `rows` z.
        """
        width = torch.where(upper > lower, (upper - lower) * (1 + 2.0**-50), 0.0)
        free = width.nonzero()[:, 0]
        return Inequality(self, free, width[free].sqrt(), lower, rows)


@dataclass(frozen=True, eq=False)
class Inequality:
    """The inequality near one image, in floating point until `proved` is asked.

    Args:
        system: What all images share.
        free: The units whose slope is not known, (q,).
        root: √w of these.
        lower: l, (n,).
        rows: C, (outputs, n).
    """

    system: System
    free: Tensor
    root: Tensor
    lower: Tensor
    rows: Tensor

    def best(self, weight: Tensor) -> Tensor:
        """Proved constants of the outputs, for the μ that makes a weighted sum of their squares smallest.

        Args:
            weight: Of the outputs, (q + outputs,).

        Returns:
            (q + outputs,), inf where nothing is proved.
        """
        if len(weight) == 0:
            return weight
        try:
            levels, squares = self.proposed() if len(self.free) else (torch.ones_like(self.lower[:1]), weight[None])
            return self.proved(float(levels[(squares * weight).sum(1).nan_to_num(nan=torch.inf).argmin()]))
        except LinAlgError:
            # Weights of such a scale that nothing is found: nothing is proved.
            return torch.full_like(weight, torch.inf)

    @cached_property
    def _wanted(self) -> Tensor:
        """R: Δy of the free units, and C l Δy."""
        eye = torch.eye(len(self.lower), dtype=torch.float64, device="cpu")
        return torch.cat([eye[self.free], self.rows * self.lower])

    @cached_property
    def _reduced(self) -> Tensor:
        """N."""
        return self.system.matrix * self.lower + torch.diag_embed(1 - self.lower)

    @cached_property
    def _found(self) -> Tensor:
        """Y."""
        return torch.linalg.solve(self._reduced, self._wanted, left=False)

    @cached_property
    def _forward(self) -> Tensor:
        """What p̂ adds to every output, (q + outputs, q)."""
        moved = self._found[:, self.free] - self._found @ self.system.matrix[:, self.free]
        moved[len(self.free) :] += self.rows[:, self.free]
        return moved * self.root

    @cached_property
    def _gram(self) -> Tensor:
        """YUUᵀYᵀ."""
        return self._found @ self.system.gram @ self._found.mT

    @cached_property
    def _weighted(self) -> Tensor:
        return self.root * self.system.weight[self.free]

    @cached_property
    def _own(self) -> Tensor:
        """K."""
        half = self._weighted[:, None] * self._forward[: len(self.free)]
        return torch.diag_embed(2 * self.system.weight[self.free]) - half - half.mT

    @cached_property
    def _inputs(self) -> Tensor:
        """BBᵀ."""
        q = len(self.free)
        return self._weighted[:, None] * self._gram[:q, :q] * self._weighted

    @cached_property
    def _cross(self) -> Tensor:
        """B d of every output, (q + outputs, q)."""
        return self._gram[:, : len(self.free)] * self._weighted

    @cached_property
    def _modes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues of L⁻¹BBᵀL⁻ᵀ, K = LLᵀ, and in its eigenvectors what p̂ adds to outputs, and B d.

        Raises:
            LinAlgError: K is not positive definite, or no eigenvalues are found.
        """
        chol = torch.linalg.cholesky(self._own)
        half = torch.linalg.solve_triangular(chol, self._inputs, upper=False)
        levels, modes = torch.linalg.eigh(torch.linalg.solve_triangular(chol, half.mT, upper=False))
        both = torch.linalg.solve_triangular(chol, torch.cat([self._forward, self._cross]).mT, upper=False)
        forward, cross = (modes.mT @ both).mT.chunk(2)
        return levels.clamp_min(0), forward, cross

    def proposed(self) -> tuple[Tensor, Tensor]:
        """The squared constants by choice of μ, not proved.

        Returns:
            μ (choices,) and the squares (choices, q + outputs).

        Raises:
            LinAlgError: None are found.
        """
        levels, forward, cross = self._modes
        choices = _LEVELS * levels[-1]
        sums = (choices[:, None, None] * forward + cross).square() / (choices[:, None] - levels)[:, None, :]
        return choices, self._gram.diagonal() + sums.sum(-1)

    def proved(self, level: float) -> Tensor:
        """Constants of the outputs that hold in exact arithmetic.

        Args:
            level: μ > 0.

        Returns:
            (q + outputs,), inf where nothing is proved.
        """
        q, system = len(self.free), self.system
        if not (system.input_size > _LEAST and (level > 0 or q == 0)):
            return self._found.new_full((len(self._wanted),), torch.inf)
        g, Y = verified.rounding_factor(system.terms), norms.frobenius(self._found)
        A, top = len(self.lower) ** 0.5 + norms.frobenius(system.matrix), float(system.weight.amax())
        size = norms.frobenius(self._wanted) + A * Y
        left = (self._wanted - self._found @ self._reduced).norm(dim=1) * (1 + g) + 4 * g * size
        # What is left of Δy in outputs of C is what rounding of C adds too.
        left[q:] += 2 * g * (1 + self.rows.norm(dim=1))
        gram_error = 8 * g * (Y * system.input_size) ** 2
        own_error = 8 * g * top * (q + Y * A)
        lengths = self._gram.diagonal().clamp_min(0) + gram_error
        if q == 0:
            return (lengths.sqrt() + left * system.spread) * (1 + 1e-12)
        matrix = self._own - self._inputs / level
        factor = verified.minorant(matrix, perturbation=own_error + 2 * top * top * gram_error / level)
        if factor is None:
            return torch.full_like(lengths, torch.inf)
        chol, floor = factor
        vectors = (self._forward + self._cross / level).mT
        solved = torch.linalg.solve_triangular(chol, vectors, upper=False)
        vector_error = 8 * g * (Y * A + float(self.rows.norm())) + 2 * top * gram_error / level
        rest = (vectors - chol @ solved).norm(dim=0) + 4 * g * norms.frobenius(chol) * solved.norm(dim=0)
        heights = solved.norm(dim=0) * (1 + g) + (rest + vector_error) * floor**-0.5
        slack = 1 + 2 * top * float(left[:q].norm()) * system.spread**2 / level
        squares = slack * (lengths + level * heights.square())
        return (squares.sqrt() + left * system.spread) * (1 + 1e-12)
