"""How far equilibria and logits move with the weights, proved image by image.

For z = σ(Wz + Ux + b) and z̄ = σ(W̄z̄ + Ūx + b̄), strongly monotone with m and m̄, and σ(0) = 0:

    ‖z̄ − z‖ ≤ ‖ΔW z + ΔU x + Δb‖/m̄ ≤ ‖ΔW‖ ‖Ux + b‖/(m m̄) + ‖ΔU x + Δb‖/m̄.

The first holds for every σ, and z is known once it is computed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mondeq import arguments
from mondeq.bounds import Chain
from mondeq.modes import proving
from mondeq.network import Network
from mondeq.norms import Ball, Norm
from mondeq.parameterizations import Parameterization
from mondeq.pieces import Logits
from splitting import InvalidArgument, InvalidType, verified


@dataclass(frozen=True, eq=False)
class Movement:
    """What other weights make of images: a value per image. It is proved of exact networks.

    Args:
        logits: Bounds on ‖ȳ − y‖₂ of the logits, (N,) float64.
        prediction: The computed class of the network, (N,).
        same: Whether the exact networks of both weights are proved to predict it, (N,).
    """

    logits: Tensor
    prediction: Tensor
    same: Tensor


class Comparison:
    """A network with other weights beside it, and what is proved of both, prepared once for any number of images.

    Args:
        chain: What is proved of the network, as `Chain.of(model)` gives it.
        moved: The same of the network with other weights.

    Raises:
        InvalidType: They are on different devices.
        InvalidArgument: They have other pieces, or give no logits.
    """

    def __init__(self, chain: Chain, moved: Chain) -> None:
        chain.require_logits()
        if _outline(chain) != _outline(moved):
            raise InvalidArgument("`moved` must have the pieces and settings of `model`, and other weights only")
        device, other = chain.exact.device, moved.exact.device
        if device != other:
            raise InvalidType(f"`moved` is on {other}, `model` on {device}; move one of them")
        self.chain, self.moved = chain, moved

    def movement(self, images: Tensor, *, batch_size: int | None = None) -> Movement:
        """How far logits move with the weights, as `mondeq.movement` proves it.

        Args:
            images: (N, *in_shape), floating point, in [0, 1].
            batch_size: Images at a time; by default at most 500, fewer where their states are large.

        Returns:
            The bounds.

        Raises:
            InvalidType: Images are no tensor, or elsewhere than the weights.
            InvalidArgument: They have the wrong shape or are not finite.
        """
        exact = self.chain.exact
        arguments.check_images(exact.in_shape, images)
        arguments.check_values(images, exact.device, "nothing is known of them")
        batch_size = self.chain.at_once if batch_size is None else arguments.count("batch_size", batch_size)
        with proving(exact.device):
            parts = [self._columns(part.double()) for part in images.split(batch_size)]
            return Movement(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _columns(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those of a Movement, for float64 images."""
        ball = near = Ball(images, images.new_zeros(len(images)), Norm())
        for stage, moved in zip(self.chain.stages[:-1], self.moved.stages[:-1], strict=True):
            ball, near = stage.follow(moved, ball, near)
        last, last_moved = self.chain.stages[-1], self.moved.stages[-1]
        logits, logits_moved = last.logits(ball), last_moved.logits(near)
        prediction = logits.value.argmax(1)
        same = _predicted(logits, prediction) & _predicted(logits_moved, prediction)
        ends = [end.radius * end.norm.euclidean() for end in last.follow(last_moved, ball, near)]
        return (ends[0] + ends[1]) * (1 + 1e-15), prediction, same


def movement(model: Network, moved: Network, images: Tensor, *, batch_size: int | None = None) -> Movement:
    """Prove how far logits move with the weights, and for which images the prediction stays.

    Equilibria are solved for with the weights of `model` only. Those of `moved` are bounded by the residual that other
    weights leave at them, ‖ΔW z + ΔU x + Δb‖/m̄, without the units at which σ is flat all the way. The bound goes from
    stage to stage, with the constants of `moved`.

    Args:
        model: A network of pieces with proved constants.
        moved: One of the same pieces and settings with other weights.
        images: (N, *in_shape), floating point, in [0, 1].
        batch_size: Images at a time; by default at most 500, fewer where their states are large.

    Returns:
        The bounds.

    Raises:
        InvalidType: `model` or `moved` is no network, images are no tensor, or model(x) may not be what its pieces say.
        InvalidArgument: The two have other pieces, a piece has no proved constant, or images have the wrong shape or
            are not finite.
    """
    return Comparison(Chain.of(model), Chain.of(moved)).movement(images, batch_size=batch_size)


def _outline(chain: Chain) -> list[Any]:
    """What two networks have in common that differ in their weights."""
    pieces = [(type(place.piece), place.piece.settings()) for place in chain.exact.places]
    return [tuple(chain.exact.in_shape), pieces]


def _predicted(logits: Logits, chosen: Tensor) -> Tensor:
    """Whether the exact logits are proved to have their largest at `chosen`, for each sample."""
    lead = logits.value.gather(1, chosen[:, None]) - logits.value - logits.slack(chosen)
    # Not ≤ 0, where something is NaN.
    return (lead * (1 - 1e-12) > 0).scatter(1, chosen[:, None], True).all(1)


def state_movement(linear: Parameterization, moved: Parameterization, x: Tensor) -> Tensor:
    """Bounds on ‖z̄ − z‖₂ before anything is solved: ‖ΔW‖‖Ux + b‖/(m m̄) + ‖ΔU x + Δb‖/m̄, for σ with σ(0) = 0.

    Norms are those of the metrics, in which m and m̄ are proved; ΔU x + Δb is taken as one. It is the bound of
    Pabbaraju, Winston & Kolter (2021). `movement` has sharper ones, for any activation.

    Args:
        linear: W, U and b.
        moved: W̄, Ū and b̄ of the same kind.
        x: Inputs (batch, …).

    Returns:
        The bounds, (batch,) float64; inf where m or m̄ is not proved to be positive.

    Raises:
        InvalidType: `linear` or `moved` is no parameterization, or `x` is no tensor.
        InvalidArgument: They take other inputs or have other states.
    """
    first, second = (_exact(name, each) for name, each in (("linear", linear), ("moved", moved)))
    if type(first) is not type(second) or first.state_shape != second.state_shape:
        raise InvalidArgument("`moved` must be of the kind and shapes of `linear`, with other weights only")
    if not isinstance(x, Tensor):
        raise InvalidType(f"`x` must be a tensor, got {type(x).__name__}; convert it with torch.as_tensor")
    with proving(x.device):
        x = x.double()
        A, A_moved = first.operator(), second.operator()
        norm, norm_moved = (Norm(None if op.metric is None else op.metric.double().sqrt()) for op in (A, A_moved))
        size, stretch = x.abs().flatten(1), norm_moved.stretch(norm)
        c, c_moved = first.source(x), second.source(x)
        rounding = first.source_rounding(size)
        state = (norm.of(c) + rounding) / A.strong_monotonicity
        few = verified.rounding_factor(1) * norm_moved.of(c.abs() + c_moved.abs())
        source = norm_moved.of(c_moved - c) + second.source_rounding(size) + stretch * rounding + few
        distance = (A_moved.difference_norm(A) * stretch * state + source) / A_moved.strong_monotonicity
        proved = A.strong_monotonicity > 0 and A_moved.strong_monotonicity > 0
        bound = distance * Norm().stretch(norm_moved) * (1 + 1e-12)
        return bound if proved else torch.full_like(bound, torch.inf)


def _exact(name: str, linear: Any) -> Parameterization:
    """A copy in float64."""
    if not isinstance(linear, Parameterization):
        raise InvalidType(f"`{name}` must be a Parameterization such as mondeq.Dense, got {type(linear).__name__}")
    linear.check_contract()
    return copy.deepcopy(linear).double().requires_grad_(False)
