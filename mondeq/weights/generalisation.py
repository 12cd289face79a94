"""How often a trained network is wrong on new images, bounded with probability 1 − δ: PAC-Bayes with margins.

Weights w are compared with w + u, u ~ N(0, s²I). Where the noise moves no logit of any image by γ/4 in half of its
draws, PAC-Bayes turns ‖w − w₀‖² into a bound (Neyshabur, Bhojanapalli & Srebro 2018, lemma 1). How far logits of an
equilibrium move does not grow with any depth (Pabbaraju, Winston & Kolter 2021).
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mondeq import arguments, values
from mondeq.bounds import Chain
from mondeq.modes import proving
from mondeq.network import Network
from mondeq.norms import Ball, Norm
from mondeq.parameterizations import Noise, normal_norm
from mondeq.pieces import Proof
from splitting import InvalidArgument, verified

# Scales of the noise that are tried, each with its share of δ: 2^(−k/2) for |k| up to this.
_SCALES = 120


@dataclass(frozen=True)
class GeneralisationBound:
    """P(wrong) ≤ training_error + complexity for images drawn like the training images, with probability 1 − delta.

    Args:
        value: training_error + complexity. From 1 on it says nothing.
        training_error: The share of training images whose label does not lead by more than `margin`.
        complexity: 4 √((‖w − w₀‖²/(2s²) + ln(6M/δₖ))/(M − 1)).
        margin: γ, in logits.
        delta: δ.
        noise: s, the largest of the scales tried at which noise is proved to move no logit by γ/4.
        distance: ‖w − w₀‖₂ of the weights that are disturbed.
        samples: M, the number of training images.
    """

    value: float
    training_error: float
    complexity: float
    margin: float
    delta: float
    noise: float
    distance: float
    samples: int


def generalisation_bound(
    model: Network,
    images: Tensor,
    labels: Tensor,
    *,
    margin: float,
    delta: float = 0.05,
    initial: Network | None = None,
) -> GeneralisationBound:
    """A bound on the error on new images of a dense equilibrium with a linear head, from weights and training images.

    It holds with probability 1 − δ over independent training images, for pixels in [0, 1], and a margin and initial
    weights chosen without looking at the training images. It is often larger than 1. What rounding does to the matrices
    that are assembled from the weights is not counted.

    Args:
        model: Pieces without weights, an equilibrium of which noise is known (mondeq.Dense), a linear head.
        images: The images that it was trained on, (M, *in_shape) in [0, 1]; all of them.
        labels: Their classes, (M,).
        margin: γ > 0, in logits.
        delta: δ, between 0 and 1.
        initial: The network before training, from whose weights distances count; from 0 by default.

    Returns:
        The bound with what it is made of.

    Raises:
        InvalidType: Arguments are of other types, or model(x) may not be what its pieces say.
        InvalidArgument: The network is of another structure, or an argument is out of range.
    """
    chain = Chain.of(model)
    chain.require_logits()
    gamma, chance = _positive("margin", margin, math.inf), _positive("delta", delta, 1.0)
    exact = chain.exact
    arguments.check_images(exact.in_shape, images)
    arguments.check_values(images, exact.device, "no bound holds for them")
    arguments.check_labels(exact.classes, labels, len(images))
    if len(images) < 2:
        raise InvalidArgument(f"`images` must be at least two, got {len(images)}")
    with proving(exact.device):
        disturbed = _Disturbed.of(chain)
        k = disturbed.largest_scale(gamma)
        distance = _distance(exact, None if initial is None else Chain.of(initial).exact)
        error = _training_error(chain, images, labels, gamma)
    scale = _scale(k)
    count = len(images)
    # Every k has the share 1/((|k| + 1)(|k| + 2)) of δ, which sum to less than 2; half of it each.
    part = chance / (2 * (abs(k) + 1) * (abs(k) + 2))
    inner = (distance * distance / (2 * scale * scale) + math.log(6 * count / part)) / (count - 1)
    complexity = verified.round_up(4 * math.sqrt(inner) * (1 + 1e-12))
    return GeneralisationBound(
        verified.round_up(error + complexity), error, complexity, gamma, chance, scale, distance, count
    )


def _scale(k: int) -> float:
    return 2.0 ** (k / 2)


@dataclass(frozen=True)
class _Disturbed:
    """How far noise of the weights moves logits, for every image with pixels in [0, 1].

    Args:
        stage: The equilibrium.
        inputs: An upper bound on ‖x‖₂ of what it is given.
        state: An upper bound on ‖z‖₂.
        row: The length of the longest row of the head.
        units: Entries of z.
        classes: Rows of the head.
    """

    stage: Proof
    inputs: float
    state: float
    row: float
    units: int
    classes: int

    @staticmethod
    def of(chain: Chain) -> _Disturbed:
        """Raises InvalidArgument for a network of another structure."""
        rows = chain.stages[-1].rows()
        stage = chain.stages[-2] if len(chain.stages) > 1 else chain.stages[-1]
        # The rows of other heads are no weights: noise of these is not noise of the rows.
        plain = type(list(chain.exact.children())[-1]) is torch.nn.Linear
        if rows is None or not plain or stage.noise(1.0, 1.0) is None or _weights(chain) != 2:
            raise InvalidArgument(
                "`model` must be pieces without weights, a dense equilibrium (mondeq.Dense) and a linear head: of "
                "other networks it is not known what noise does"
            )
        # Every image lies in the ball around the grey one that its corners lie on.
        centre = torch.full((1, *chain.exact.in_shape), 0.5, dtype=torch.float64, device=chain.exact.device)
        ball = Ball(centre, verified.vector_norm(centre), Norm())
        for each in chain.stages[:-2]:
            ball = each.enclose(ball)
        inputs, state = (_size(each) for each in (ball, stage.enclose(ball)))
        longest = float(verified.vector_norm(rows).amax())
        return _Disturbed(stage, inputs, state, longest, rows.shape[1], len(rows))

    def movement(self, scale: float) -> float:
        """What at least half of all noise of N(0, scale²) moves no logit by more than."""
        events = self._noise(scale, 0.0).bounds + 2 * self.classes
        deviation = math.sqrt(2 * math.log(2 * events))
        noise = self._noise(scale, deviation)
        shift = noise.operator * self.state + noise.inputs * self.inputs + noise.bias
        moved = shift / noise.strong_monotonicity
        row = normal_norm(scale, deviation, self.units)
        return (self.row * moved + row * (self.state + moved) + scale * deviation) * (1 + 1e-9)

    def largest_scale(self, margin: float) -> int:
        """The number of the largest scale at which logits move by less than a quarter of the margin."""
        numbers = range(-_SCALES, _SCALES + 1)
        # More noise moves more.
        few = bisect.bisect_left(numbers, True, key=lambda k: not self.movement(_scale(k)) < margin / 4)
        if few == 0:
            raise InvalidArgument(f"`margin` is {margin}, too small for any noise of these weights; give a larger one")
        return numbers[few - 1]

    def _noise(self, scale: float, deviation: float) -> Noise:
        noise = self.stage.noise(scale, deviation)
        if noise is None or not noise.strong_monotonicity > 0:
            return Noise(math.inf, math.inf, math.inf, 1.0, 1)
        return noise


def _weights(chain: Chain) -> int:
    """How many pieces have weights."""
    return sum(any(True for _ in place.module.parameters()) for place in chain.exact.places)


def _size(ball: Ball) -> float:
    return float((verified.vector_norm(ball.centre) + ball.radius * ball.norm.euclidean()) * (1 + 1e-12))


def _distance(exact: Network, initial: Network | None) -> float:
    """‖w − w₀‖₂ of all weights, w₀ = 0 without a network."""
    ours = dict(exact.named_parameters())
    zero = {name: torch.zeros_like(w) for name, w in ours.items()}
    theirs = zero if initial is None else dict(initial.named_parameters())
    if [(name, w.shape) for name, w in ours.items()] != [(name, w.shape) for name, w in theirs.items()]:
        raise InvalidArgument("`initial` must have weights of the same names and shapes as `model`")
    parts = [w - theirs[name].to(w) for name, w in ours.items()]
    return float(verified.vector_norm(torch.cat([part.flatten() for part in parts])[None])) * (1 + 1e-12)


def _training_error(chain: Chain, images: Tensor, labels: Tensor, margin: float) -> float:
    """The share of images whose label is not proved to lead by more than the margin."""
    wrong = 0
    size = chain.at_once
    for part, truth in zip(images.split(size), labels.to(images.device).long().split(size), strict=True):
        logits = chain.stages[-1].logits(chain.enclose(part.double()))
        lead = logits.value.gather(1, truth[:, None]) - logits.value - logits.slack(truth)
        good = (lead > margin * (1 + 1e-12)).scatter(1, truth[:, None], True).all(1)
        wrong += int((~good).sum())
    return wrong / len(images)


def _positive(name: str, value: object, limit: float) -> float:
    number = values.real(value)
    if number is None or not 0 < number < limit:
        raise InvalidArgument(f"`{name}` must be a number > 0 and < {limit:g}, got {values.shown(value)}")
    return number
