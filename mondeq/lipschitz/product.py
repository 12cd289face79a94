"""Product bounds: ‖W_o P Λ^-½‖₂ ‖Λ^½ U diag(1/std)‖₂ / m, and the same for every difference of two rows of W_o.

P is what the head sees of a state: all of it, its last tier, or averages over blocks, for which ‖P‖₂ is less than 1.
"""

from __future__ import annotations

from torch import Tensor

from mondeq.lipschitz.bound import Bound
from mondeq.models import Classifier, check_exact, fingerprint
from splitting import norms, verified

_ASSUMPTIONS = "exact equilibrium of the stored weights; inputs anywhere in pixel space"


def product_bound(exact: Classifier) -> Bound:
    """‖W_o P Λ^-½‖₂ ‖Λ^½ U diag(1/std)‖₂ / m (Pabbaraju, Winston & Kolter 2021), for a float64 classifier.

    pairs[i, j] replaces W_o by the difference of its rows i and j: a gap is more regular than two logits.
    """
    check_exact(exact)
    input_gain = _input_gain(exact)
    head = metric_head(exact)
    value = verified.spectral_norm(head, perturbation=_rounding(head)) * input_gain
    differences = head[:, None, :] - head[None, :, :]
    sizes = verified.vector_norm(differences.flatten(0, 1)).reshape(len(head), len(head))
    # Products of tiny constants may vanish, and a bound of 0 would certify everything.
    pairs = (sizes + 2 * _rounding(head)) * input_gain * (1 + 1e-15) + verified.UNDERFLOW
    pairs.fill_diagonal_(0)
    bound = Bound(verified.round_up(value + verified.UNDERFLOW), "certified", "product", _ASSUMPTIONS, pairs)
    return bound.sealed(fingerprint(exact))


def metric_head(exact: Classifier) -> Tensor:
    """W_o ‖P‖ Λ^-½: the read-out in coordinates in which the metric is Euclidean and P has orthonormal rows."""
    metric = exact.linear.operator().metric
    head = exact.head_weight.detach() * exact.features.gain
    return head if metric is None else head / metric.sqrt()


def _input_gain(exact: Classifier) -> float:
    """‖Λ^½ U diag(1/std)‖₂/m ≥ Lipschitz constant of image ↦ z*, from the 2-norm to the Λ-norm; inf if m ≤ 0."""
    m = exact.linear.operator().strong_monotonicity
    gain = verified.round_up(exact.linear.input_norm(exact.pixel_scale()) * (1 + 1e-15))
    return verified.round_up(gain / m) if m > 0 else float("inf")


def _rounding(head: Tensor) -> float:
    """Each entry of W_o Λ^-½ is right to a few roundings."""
    return 4 * verified.gamma(1) * norms.frobenius(head)
