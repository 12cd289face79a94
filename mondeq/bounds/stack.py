"""The matrix inequality over several equilibria in a row: their states, joined to those of one, are seen together."""

from __future__ import annotations

from mondeq.bounds.base import BOUNDS, Bound, BoundMethod, Chain
from mondeq.bounds.optimised_metric import prove_optimised, too_large
from mondeq.bounds.states import joined
from splitting import InvalidArgument

ALONE = "no two dense equilibria with linear maps between them, straight before the logits"


@BOUNDS.enrol("matrix inequality, stack")
class Stack(BoundMethod):
    """The smallest γ proved for all last equilibria that have matrices, with a diagonal Λ of its own per output.

    It is for up to `LARGEST_SEARCH` units of all equilibria together.
    """

    def unsuited(self, chain: Chain) -> str | None:
        states = joined(chain)
        return ALONE if states is None else too_large(states)

    def bound(self, chain: Chain) -> Bound:
        states = joined(chain)
        if states is None:
            raise InvalidArgument(f"`chain` has {ALONE}")
        return prove_optimised(chain, states, "matrix inequality over the stack, a metric per gap")
