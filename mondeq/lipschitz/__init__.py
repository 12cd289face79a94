"""How much logits can change with the image, in ℓ2 per pixel unit: proved bounds, and an estimate beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from mondeq.lipschitz.bound import Bound
from mondeq.lipschitz.local import local_jacobian_bound, local_jacobian_norms
from mondeq.lipschitz.matrix_inequality import LARGEST_SEARCH, matrix_inequality_bound, optimised_metric
from mondeq.lipschitz.product import product_bound
from mondeq.models import Classifier, exact_copy
from mondeq.parameterizations import DenseInput
from splitting.errors import InvalidArgument


def lipschitz_bounds(model: Classifier, images: Tensor | None = None) -> dict[str, Bound]:
    """{method: Bound} of the map from pixels in [0, 1] to logits, normalisation included.

    "product" and, for dense networks, "matrix inequality" are certified, each with constants for every logit gap in
    `pairs`; so is "matrix inequality, optimised metric", tried where there is no metric to begin with. With `images`,
    "local Jacobian" is an estimate from below, so the true constant lies between it and the smallest certified value.
    """
    exact = exact_copy(model)
    bounds = {"product": product_bound(exact)}
    dense = isinstance(exact.linear, DenseInput)
    if dense:
        bounds["matrix inequality"] = matrix_inequality_bound(exact)
    if dense and exact.linear.operator().metric is None and exact.linear.state_shape.numel() <= LARGEST_SEARCH:
        bounds["matrix inequality, optimised metric"] = matrix_inequality_bound(exact, optimised_metric(exact))
    if images is not None:
        bounds["local Jacobian"] = local_jacobian_bound(model, images)
    return bounds


def pair_constants(model: Classifier) -> Tensor:
    """The smallest certified constant of every logit gap, (classes, classes) float64, over all methods."""
    return best_pairs(lipschitz_bounds(model))


def best_pairs(bounds: dict[str, Bound]) -> Tensor:
    """The entrywise minimum of the certified `pairs`."""
    certified = [b.pairs for b in bounds.values() if b.kind == "certified" and b.pairs is not None]
    if not certified:
        raise InvalidArgument("`bounds` hold no certified constants of gaps; pass those of lipschitz_bounds(model)")
    return torch.stack(certified).amin(0)


__all__ = [
    "Bound",
    "best_pairs",
    "lipschitz_bounds",
    "local_jacobian_bound",
    "local_jacobian_norms",
    "matrix_inequality_bound",
    "optimised_metric",
    "pair_constants",
    "product_bound",
]
