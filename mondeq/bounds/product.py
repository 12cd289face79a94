"""Product bounds: the constants of all stages multiplied, and for the logits that of every difference of two.

For one equilibrium that is ‖W_o P Λ^-½‖₂ ‖Λ^½ U diag(1/std)‖₂ / m (Pabbaraju, Winston & Kolter 2021).
"""

from __future__ import annotations

from mondeq.bounds.base import BOUNDS, Bound, BoundMethod, Chain
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
        value = verified.round_up(last.constant * last.norm.euclidean() * gain + verified.UNDERFLOW)
        return Bound(value, "certified", "product", ASSUMPTIONS, pairs).sealed(chain)
