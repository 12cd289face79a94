"""Certified radii: how far every pixel vector may move, in ℓ2, before the prediction can change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

import splitting
from mondeq import arguments
from mondeq.lipschitz import Bound, best_pairs, lipschitz_bounds
from mondeq.models import Classifier, exact_copy, fingerprint
from mondeq.scrutiny import proving
from splitting import verified
from splitting.errors import InvalidArgument

# State entries solved for at a time, in float64 and with the memory of Anderson acceleration: about 2 GiB.
_ENTRIES_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class Report:
    """What `certify` found, one entry per sample; radii in ℓ2, units of pixels in [0, 1].

    radius: no image closer than this has another prediction; 0 where nothing is certified. correct: prediction equals
    label. prediction: computed class; that of the exact network where radius > 0. error_bound: proved bound on the
    solver's error in the state. bounds: the Lipschitz bounds used.
    """

    radius: Tensor
    correct: Tensor
    prediction: Tensor
    error_bound: Tensor
    bounds: dict[str, Bound]

    @property
    def accuracy(self) -> float:
        """Share of samples predicted correctly."""
        return _mean(self.correct)

    def certified_accuracy(self, radii: Iterable[float]) -> dict[float, float]:
        """Share of samples that are correct and proved to stay so for every perturbation of norm ≤ r, for each r.

        radii: numbers ≥ 0. Where nothing is proved (radius 0) nothing is counted, at r = 0 either: that r asks for the
        prediction of the exact network itself. Raises InvalidArgument.
        """
        proved = self.correct & (self.radius > 0)
        return {r: _mean(proved & (self.radius >= r)) for r in arguments.radii(radii)}


def certify(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int | None = None,
    bounds: dict[str, Bound] | None = None,
) -> Report:
    """Radii within which the exact network's prediction is proved constant.

    radius = min over j of (y_i − y_j − δ_ij)/L_ij with i the prediction, L_ij the smallest certified constant of that
    gap and δ_ij a proved bound on the error of the computed gap: the solver's, and all rounding. images: (N, C, H, W)
    in [0, 1], float; labels: (N,) integers. batch_size: images solved at a time (None: at most 500, fewer where their
    states are large). bounds: those of `lipschitz_bounds(model)` for its present weights, where they are at hand.
    Everything is computed in float64. Raises InvalidArgument or InvalidType for NaN or inf images, wrong shapes, labels
    out of range, bounds of other weights, and for a model of which it is not certain that model(x) is the network that
    its weights say: one with hooks, parametrizations, overridden methods or an activation steeper than 1.
    """
    exact = exact_copy(model)
    _check(exact, images, labels)
    most = min(max(_ENTRIES_AT_ONCE // exact.linear.state_shape.numel(), 1), 500)
    batch_size = most if batch_size is None else arguments.count("batch_size", batch_size)
    bounds = lipschitz_bounds(model) if bounds is None else bounds
    with proving(exact.device):
        gaps = _GapCertifier(exact, best_pairs(bounds, fingerprint(exact)))
        parts = [gaps.radii(chunk.double()) for chunk in images.split(batch_size)] or [gaps.radii(images.double())]
        radius, prediction, error = (torch.cat(column) for column in zip(*parts, strict=True))
        return Report(radius, prediction == labels.to(prediction.device), prediction, error, dict(bounds))


class _GapCertifier:
    """What all batches share: head differences in the metric, gap constants, the operator."""

    def __init__(self, exact: Classifier, pairs: Tensor) -> None:
        self.exact = exact
        self.pairs = pairs.to(exact.head_weight.device)
        self.operator = exact.linear.operator()
        self.solver = exact.layer.solver.tuned(self.operator)
        head = exact.head_weight
        differences = (head[:, None] - head[None]).flatten(0, 1)
        if self.operator.root_metric is not None:
            differences = differences / self.operator.root_metric
        # ‖(w_i − w_j)PΛ^-½‖ converts an error of the state in the Λ-norm into one of the gap.
        gains = verified.vector_norm(differences).reshape(len(head), len(head))
        self.gap_gain = gains * exact.features.gain * (1 + 1e-12)

    def radii(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Radius, prediction and state error of float64 images."""
        exact = self.exact
        x = exact.prepare(images)
        problem = splitting.Inclusion(self.operator, exact.linear.source(x), exact.layer.prox)
        solution = splitting.solve(problem, self.solver, tol=exact.layer.tol, max_steps=exact.layer.max_steps)
        error = solution.error_bound + self._source_error(images)
        logits = exact.readout(solution.value)
        prediction = logits.argmax(1)
        gap = logits.gather(1, prediction[:, None]) - logits
        slack = self.gap_gain[prediction] * error[:, None] + self._readout_error(solution.value)
        radius = (gap - slack) / self.pairs[prediction] * (1 - 1e-12)
        radius.scatter_(1, prediction[:, None], torch.inf)
        # NaN (an infinite slack over an infinite constant, say) certifies nothing.
        return radius.amin(1).nan_to_num(nan=0.0, posinf=torch.inf).clamp_min(0), prediction, error

    def _source_error(self, images: Tensor) -> Tensor:
        """‖z*(c) − z*(fl(c))‖_Λ ≤ ‖c − fl(c)‖_Λ/m, c = U(x − mean)/std + b."""
        mean, std = self.exact.normalise.constants(images)
        size = ((images.abs() + mean.abs()) / std).flatten(1)
        return self.exact.linear.source_rounding(size) / self.operator.strong_monotonicity

    def _readout_error(self, z: Tensor) -> Tensor:
        """Rounding of the difference of any two logits, (batch, 1)."""
        head, bias, features = self.exact.head_weight, self.exact.head_bias, self.exact.features
        size = (features(z.abs()) @ head.abs().mT + bias.abs()).amax(1, keepdim=True)
        terms = head.shape[1] + features.terms + 4
        return 2 * verified.gamma(terms) * size + 2 * terms * verified.UNDERFLOW


def _mean(mask: Tensor) -> float:
    return float(mask.double().mean()) if mask.numel() else 0.0


def _check(model: Classifier, images: Tensor, labels: Tensor) -> None:
    shape = model.config.image_shape
    if isinstance(images, Tensor) and (images.ndim != 4 or tuple(images.shape[1:]) != shape):
        raise InvalidArgument(f"`images` must have shape (N, {', '.join(map(str, shape))}), got {tuple(images.shape)}")
    arguments.check_images(model.config, images)
    arguments.check_values(images, model.device, "nothing can be certified for them")
    arguments.check_labels(model.config, labels, len(images))
