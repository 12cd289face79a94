"""How much logits can change with the image: proved bounds, one method a file, and an estimate beside them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from mondeq import arguments
from mondeq.bounds.base import BOUNDS, Bound, BoundMethod, Chain, Method, best_pairs
from mondeq.bounds.frequencies import PerFrequency
from mondeq.bounds.local import local_jacobian_bound, local_jacobian_norms
from mondeq.bounds.matrix_inequality import MatrixInequality
from mondeq.bounds.optimised_metric import OptimisedMetric
from mondeq.bounds.product import Product
from mondeq.bounds.slopes import Slopes
from mondeq.bounds.stack import Stack
from mondeq.modes import proving
from mondeq.network import Network


def lipschitz_bounds(
    model: Network, images: Tensor | None = None, *, norm: str = "l2", chain: Chain | None = None
) -> dict[str, Bound]:
    """Bounds on the map from pixels in [0, 1] to logits (in ℓ2), normalisation included, by every method that suits.

    All but the estimate are certified, each with constants for every logit gap in `pairs`. With `images`, "local
    Jacobian" is an estimate from below, so that the true constant (in ℓ2) lies between it and the smallest certified
    value.

    Args:
        model: Any network of pieces with proved constants.
        images: (N, *in_shape), floating point; None for no estimate.
        norm: That of changes of the image, a name in NORMS: "l2", "linf".
        chain: What `Chain.of(model, norm)` proved, where it is at hand.

    Returns:
        {method: Bound}.

    Raises:
        ConfigError: There is no such norm.
        InvalidType: model(x) may not be what its pieces say (overridden methods, say), or images are no tensor.
        InvalidArgument: A piece has no proved constant (the message names it), model(x) may not be what its pieces say
            (hooks, an activation steeper than 1), images have the wrong shape, or the chain is of other weights or of
            another norm.
    """
    if chain is None:
        chain = Chain.of(model, norm)
    else:
        chain.require_owner(model, norm)
    chain.require_logits()
    if images is not None:
        arguments.check_images(chain.exact.in_shape, images)
    with proving(chain.exact.device):
        methods = {name: kind() for name, kind in BOUNDS.items()}
        suited = {name: method for name, method in methods.items() if method.unsuited(chain) is None}
        bounds = {name: _timed(partial(method.bound, chain)) for name, method in suited.items()}
        if images is not None:
            bounds["local Jacobian"] = _timed(partial(local_jacobian_bound, model, images))
    return bounds


def _timed(compute: Callable[[], Bound]) -> Bound:
    start = time.perf_counter()
    bound = compute()
    return replace(bound, seconds=time.perf_counter() - start)


__all__ = [
    "BOUNDS",
    "Bound",
    "BoundMethod",
    "Chain",
    "MatrixInequality",
    "Method",
    "OptimisedMetric",
    "PerFrequency",
    "Product",
    "Slopes",
    "Stack",
    "best_pairs",
    "lipschitz_bounds",
    "local_jacobian_bound",
    "local_jacobian_norms",
]
