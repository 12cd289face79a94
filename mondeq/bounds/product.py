"""Product bounds: the constants of all stages multiplied, and for the logits that of every difference of two.

For one equilibrium that is ‖W_o P Λ^-½‖₂ ‖Λ^½ U diag(1/std)‖₂ / m (Pabbaraju, Winston & Kolter 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mondeq.bounds.base import BOUNDS, Bound, BoundMethod, Chain, product
from splitting import verified

ASSUMPTIONS = "exact equilibrium of the stored weights; inputs anywhere in pixel space"


@BOUNDS.enrol("product")
class Product(BoundMethod):
    """pairs[i, j] replaces the last constant by that of y_i − y_j: a gap is more regular than two logits."""

    def bound(self, chain: Chain) -> Bound:
        *trunk, last = chain.stages
        gain = chain.constant(trunk)
        # Products of tiny constants may vanish, and a bound of 0 would certify everything.
        pairs = last.gaps() * gain * (1 + 1e-15) + verified.UNDERFLOW
        pairs.fill_diagonal_(0)
        value = verified.round_up(product([last.constant, last.norm.euclidean(), gain]) + verified.UNDERFLOW)
        return Bound(value, "certified", "product", ASSUMPTIONS, pairs).sealed(chain)


def concluded(chain: Chain, trunk: float, value: float, gaps: Sequence[float], method: str) -> Bound:
    """The bound of a method that proves numbers one by one, with the product bound where it proves none.

    Args:
        chain: What is proved of the network.
        trunk: The constant of what comes before the stage that the numbers are about.
        value: That of all logits, inf where none is proved.
        gaps: Those of y_i − y_j, j < i, in the order of `torch.tril_indices`.
        method: Its name.

    Returns:
        The bound, sealed; `method` says of how many constants the product bound had to stand in for.
    """
    classes = chain.exact.out_shape[0]
    pairs = torch.zeros(classes, classes, dtype=torch.float64, device=chain.exact.device)
    first, second = torch.tril_indices(classes, classes, -1, device=pairs.device)
    pairs[first, second] = pairs[second, first] = torch.tensor(gaps, dtype=pairs.dtype, device=pairs.device)
    if trunk != 1:
        value = verified.round_up(value * trunk)
        pairs = (pairs * trunk * (1 + 1e-15) + verified.UNDERFLOW).fill_diagonal_(0)
    failed = int(torch.isinf(pairs).sum()) // 2 + math.isinf(value)
    if failed:
        product = Product().bound(chain)
        value = product.value if math.isinf(value) else value
        pairs = torch.where(torch.isinf(pairs), product.pairs.to(pairs), pairs)  # type: ignore[union-attr]
        method = f"{method}; product for {failed} of {1 + len(gaps)} constants that it does not prove"
    return Bound(value, "certified", method, ASSUMPTIONS, pairs).sealed(chain)
