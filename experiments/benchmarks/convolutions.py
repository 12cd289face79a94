"""The networks of the convolutional benchmarks: textbook and ours with the same weights under the same head."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import mondeq
from experiments.benchmarks.competitors import (
    CLASSES,
    TOLERANCES,
    Batch,
    Network,
    Pair,
    exact_network,
    solve_and_differentiate,
)
from experiments.benchmarks.textbook_convolution import TextbookConvolution

POOL = 4
IN_CHANNELS = 3

Convolution = mondeq.Conv2d | mondeq.MultiscaleConv2d


class TextbookNetwork(Network):
    """One tier: the means over 4×4 blocks of its torus go to the head. Several: the last one, border included."""

    def classify(self, state: Any) -> Tensor:
        # Ours has the last tier in the order of rows, columns, channels.
        features = functional.avg_pool2d(state[0], POOL) if len(state) == 1 else state[-1].permute(0, 2, 3, 1)
        logits: Tensor = self.head(features.flatten(1))
        return logits

    def flat(self, state: Any) -> Tensor:
        return torch.cat([tier.flatten(1) for tier in state], dim=1)

    def weights(self) -> list[Tensor]:
        """F, G, D, U, b and the head's weight and bias."""
        layer = self.layer
        return [*layer.F, *layer.G, *layer.D, layer.U.weight, layer.U.bias, self.head.weight, self.head.bias]


class OurNetwork(Network):
    """The same of ours."""

    def __init__(self, layer: mondeq.EquilibriumLayer, head: nn.Linear) -> None:
        super().__init__(layer, head)
        self.features = features(layer.linear)

    def classify(self, state: Any) -> Tensor:
        logits: Tensor = self.head(self.features(state).flatten(1))
        return logits

    def flat(self, state: Any) -> Tensor:
        return torch.cat([tier.flatten(1) for tier in tiers(self.layer.linear, state)], dim=1)

    def weights(self) -> list[Tensor]:
        linear = self.layer.linear
        return [*_kernels(linear), linear.U, linear.b, self.head.weight, self.head.bias]


def convolution(channels: Sequence[int], image_size: int, m: float = 1.0) -> Convolution:
    """Random initial weights; kernels normalised as in 2020. One entry of `channels` per tier."""
    if len(channels) == 1:
        return mondeq.Conv2d(IN_CHANNELS, channels[0], image_size, m=m, weight_norm=True)
    return mondeq.MultiscaleConv2d(IN_CHANNELS, channels, image_size, m=m, weight_norm=True)


def features(linear: Any) -> mondeq.Piece:
    """What picks the part of a state of `linear` that the head sees, flattened."""
    if isinstance(linear, mondeq.Conv2d):
        return mondeq.AveragePool(POOL)
    return mondeq.Entries(linear.state_shape.numel() - linear.layout.entries[-1])


def tiers(linear: Any, state: Tensor) -> tuple[Tensor, ...]:
    """The tiers of a state of `linear`, each (batch, channels, height, width)."""
    return (state,) if isinstance(linear, mondeq.Conv2d) else tuple(linear.layout.images(state))


def new_head(linear: Convolution) -> nn.Linear:
    return nn.Linear(features(linear).out_shape(linear.state_shape).numel(), CLASSES)


def textbook_copy(linear: Convolution, m: float, *, tol: float) -> TextbookConvolution:
    """The textbook layer with the weights of `linear`, whose scales must be 1."""
    channels = (linear.channels,) if isinstance(linear, mondeq.Conv2d) else linear.channels
    layer = TextbookConvolution(linear.in_channels, channels, linear.image_size[0], m, tol=tol).to(linear.U.dtype)
    with torch.no_grad():
        own = [*layer.F, *layer.G, *layer.D, layer.U.weight, layer.U.bias]
        for weight, value in zip(own, [*_kernels(linear), linear.U, linear.b], strict=True):
            weight.copy_(value)
    return layer


def _kernels(linear: Any) -> list[Tensor]:
    """F, G and D, the tiers of each in a row."""
    return [linear.F, linear.G] if isinstance(linear, mondeq.Conv2d) else [*linear.F, *linear.G, *linear.D]


def random_batch(batch: int, image_size: int) -> Batch:
    """Normalised random images and labels."""
    return torch.randn(batch, IN_CHANNELS, image_size, image_size), torch.randint(CLASSES, (batch,))


def random_pair(channels: Sequence[int], image_size: int, batch: int, batches: int) -> Pair:
    """Textbook and ours in training mode with m = 1, random weights, images and labels."""
    linear = convolution(channels, image_size)
    head = new_head(linear)
    textbook = TextbookNetwork(textbook_copy(linear, 1.0, tol=TOLERANCES[0]), copy.deepcopy(head))
    drawn = [random_batch(batch, image_size) for _ in range(batches)]
    return Pair.compared(textbook, lambda layer: OurNetwork(layer, head), linear, drawn, training=True)


def check_reference(pair: Pair, samples: int) -> dict[str, float]:
    """How well what errors are measured against, our float64 solve, fits the textbook's equation and its gradient.

    residual: ‖z − σ(Wz + Ux + b)‖/‖z‖ with the textbook's W. gradient: ‖g − g′‖/‖g′‖, g′ of the textbook in float64,
    solved to a relative change of 1e-12. On the first `samples` images.
    """
    images, labels = (part[:samples] for part in pair.batches[0])
    exact = exact_network(lambda layer: OurNetwork(layer, pair.ours.head), pair.ours.layer.linear)
    textbook = copy.deepcopy(pair.textbook).double()
    textbook.layer.tol = 1e-12
    _, gradient = solve_and_differentiate(exact, (images, labels))
    _, target = solve_and_differentiate(textbook, (images, labels))
    return {
        "residual": equation_residual(textbook.layer, exact.layer, images.double()),
        "gradient": float((gradient - target).norm() / target.norm()),
    }


def equation_residual(textbook: TextbookConvolution, layer: mondeq.EquilibriumLayer, images: Tensor) -> float:
    """‖z − σ(Wz + Ux + b)‖/‖z‖ of the z that `layer` returns, with the textbook's W."""
    with torch.no_grad():
        return textbook.residual(images, tiers(layer.linear, layer(images)))
