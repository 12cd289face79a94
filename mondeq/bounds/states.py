"""The states that bounds see with their matrices: of the last equilibrium, or of the last ones joined to a single one.

Equilibria in a row with linear maps M between them, z₂ = σ(W₂z₂ + U₂Mz₁ + …), are one equilibrium of (z₁, z₂): its
operator is block lower-triangular, [[A₁, 0], [−U₂M, A₂]], its input map [U₁; 0], its read-out [0, C].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, but not listed in its stub

from mondeq.bounds.base import Chain
from mondeq.pieces import Blocks, Proof
from splitting import InvalidArgument, norms, verified

MISSING = "no dense equilibrium whose states go straight to the logits"


@dataclass(frozen=True, eq=False)
class States:
    """Dense states that go straight to the logits.

    Args:
        blocks: Their matrices.
        head: C of the logits Cz, (classes, n).
        trunk: The constant of what comes before them.
        first: The number of the stage that they begin with.
        error: How far A may be from the exact one, in the Frobenius norm.
    """

    blocks: Blocks
    head: Tensor
    trunk: float
    first: int
    error: float = 0.0

    @property
    def gaps(self) -> Tensor:
        """C of every gap y_i − y_j, j < i, in the order of `torch.tril_indices`."""
        first, second = torch.tril_indices(len(self.head), len(self.head), -1, device=self.head.device)
        return self.head[first] - self.head[second]


def last(chain: Chain) -> States | None:
    """The states of the last equilibrium.

    Args:
        chain: Of any network.

    Returns:
        The states; None where they have no matrices, or do not go straight to linear logits.
    """
    head = chain.stages[-1].rows()
    for number in reversed(range(len(chain.stages) - 1)):
        if head is None:
            return None
        stage = chain.stages[number]
        if (blocks := stage.blocks()) is not None:
            return States(blocks, head, chain.constant(chain.stages[:number]), number)
        head = stage.lift(head)
    return None


def required(chain: Chain) -> States:
    """The same, for what has nothing to say without.

    Args:
        chain: Of a network that has such states.

    Returns:
        The states.

    Raises:
        InvalidArgument: It has none.
    """
    states = last(chain)
    if states is None:
        raise InvalidArgument(f"`chain` has {MISSING}")
    return states


def joined(chain: Chain) -> States | None:
    """The states of the last equilibria that have matrices and linear maps between them, as those of one.

    Args:
        chain: Of any network.

    Returns:
        The states, with a metric in which they are monotone where one is found; None where there is only one
        equilibrium, or none.
    """
    alone = states = last(chain)
    while states is not None and (longer := _lengthened(chain, states)) is not None:
        states = longer
    return None if states is alone else states


def _lengthened(chain: Chain, states: States) -> States | None:
    """The states together with those of the equilibrium before them."""
    found, blocks = _before(chain, states), states.blocks
    if found is None:
        return None
    number, earlier, link, error = found
    n, k = len(earlier.matrix), len(blocks.matrix)
    matrix, inputs = link.new_zeros(n + k, n + k), link.new_zeros(n + k, earlier.inputs.shape[1])
    matrix[:n, :n], matrix[n:, :n], matrix[n:, n:], inputs[:n] = earlier.matrix, -link, blocks.matrix, earlier.inputs
    head = torch.cat([states.head.new_zeros(len(states.head), n), states.head], 1)
    metric = torch.cat([_weight(earlier, link, blocks), _own_metric(blocks)])
    trunk = chain.constant(chain.stages[:number])
    return States(Blocks(matrix, metric, inputs), head, trunk, number, verified.round_up(states.error + error))


def _before(chain: Chain, states: States) -> tuple[int, Blocks, Tensor, float] | None:
    """The equilibrium before some states, how its states reach them, and the error of that matrix."""
    link, error = states.blocks.inputs, 0.0
    for number in reversed(range(states.first)):
        stage = chain.stages[number]
        if stage.norm.root is not None:
            return None  # `inputs` are in other units
        if (blocks := stage.blocks()) is not None:
            return number, blocks, link, error
        found = _through(stage, link, error)
        if found is None:
            return None
        link, error = found
    return None


def _through(stage: Proof, link: Tensor, error: float) -> tuple[Tensor, float] | None:
    """A matrix and its error in front of a linear stage."""
    if (lifted := stage.lift(link)) is not None:
        rounding = 2 * verified.rounding_factor(1) * norms.frobenius(link) + link.numel() * verified.UNDERFLOW
        return lifted, verified.round_up(error * stage.constant + rounding)
    if (matrix := stage.rows()) is None:
        return None
    size = norms.frobenius(link) * norms.frobenius(matrix)
    rounding = 2 * verified.rounding_factor(len(matrix) + 4) * size + link.numel() * len(matrix) * verified.UNDERFLOW
    return link @ matrix, verified.round_up(error * stage.constant + rounding)


def _own_metric(blocks: Blocks) -> Tensor:
    return blocks.matrix.new_ones(len(blocks.matrix)) if blocks.metric is None else blocks.metric.detach().double()


def _weight(earlier: Blocks, link: Tensor, later: Blocks) -> Tensor:
    """s·Λ₁ that makes the pair monotone: s K₁ ≻ MᵀU₂ᵀΛ₂ K₂⁻¹ Λ₂U₂M, K = ΛA + AᵀΛ. It proves nothing."""
    own, other = _own_metric(earlier), _own_metric(later)
    first, second = own[:, None] * earlier.matrix, other[:, None] * later.matrix
    try:
        chol = torch.linalg.cholesky(first + first.mT)
        half = torch.linalg.solve_triangular(
            torch.linalg.cholesky(second + second.mT), other[:, None] * link, upper=False
        )
        passed = torch.linalg.matrix_norm(torch.linalg.solve_triangular(chol, half.mT, upper=False), 2)
    except LinAlgError:
        return own
    return own * (2 * passed.square()).clamp_min(1e-12)
