"""How much logits can change with the image, in ℓ2 per pixel unit: proved bounds, and an estimate beside them."""

from __future__ import annotations

from torch import Tensor

from mondeq import arguments
from mondeq.lipschitz.bound import Bound, best_pairs
from mondeq.lipschitz.local import local_jacobian_bound, local_jacobian_norms
from mondeq.lipschitz.matrix_inequality import LARGEST_SEARCH, matrix_inequality_bound, optimised_metric
from mondeq.lipschitz.product import product_bound
from mondeq.models import Classifier, exact_copy
from mondeq.parameterizations import DenseInput
from mondeq.scrutiny import proving


def lipschitz_bounds(model: Classifier, images: Tensor | None = None) -> dict[str, Bound]:
    """{method: Bound} of the map from pixels in [0, 1] to logits, normalisation included.

    "product" and, for dense networks, "matrix inequality" are certified, each with constants for every logit gap in
    `pairs`; so is "matrix inequality, optimised metric", tried where there is no metric to begin with. With `images`,
    "local Jacobian" is an estimate from below, so the true constant lies between it and the smallest certified value.
    Raises InvalidType or InvalidArgument where model(x) may not be what its weights say (hooks, overridden methods, an
    activation steeper than 1), and for images of the wrong shape.
    """
    exact = exact_copy(model)
    if images is not None:
        arguments.check_images(exact.config, images)
    with proving(exact.device):
        bounds = {"product": product_bound(exact)}
        dense = isinstance(exact.linear, DenseInput)
        if dense:
            bounds["matrix inequality"] = matrix_inequality_bound(exact)
        if dense and exact.linear.operator().metric is None and exact.linear.state_shape.numel() <= LARGEST_SEARCH:
            bounds["matrix inequality, optimised metric"] = matrix_inequality_bound(exact, optimised_metric(exact))
        if images is not None:
            bounds["local Jacobian"] = local_jacobian_bound(exact, images)
    return bounds


def pair_constants(model: Classifier) -> Tensor:
    """The smallest certified constant of every logit gap, (classes, classes) float64, over all methods."""
    return best_pairs(lipschitz_bounds(model))


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
