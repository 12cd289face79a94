"""Two layers with the same weights under the same head, and how right their answers are."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import mondeq
import splitting
from experiments.benchmarks.textbook import TextbookLayer

CLASSES = 10
MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels in [0, 1]
TOLERANCES = (1e-2, 7e-3, 5e-3, 3e-3, 2e-3, 1e-3)

Batch = tuple[Tensor, Tensor]


class Network(nn.Module):
    """Logits of a linear head on the states of a dense layer. Other layers override what is below `forward`."""

    def __init__(self, layer: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.layer(images))

    def classify(self, state: Any) -> Tensor:
        """The logits of what the layer returned."""
        logits: Tensor = self.head(state)
        return logits

    def flat(self, state: Any) -> Tensor:
        """What the layer returned as (batch, entries), in an order that textbook and ours share."""
        values: Tensor = state
        return values

    def weights(self) -> list[Tensor]:
        """F, G, U, b and the head's weight and bias."""
        if isinstance(self.layer, TextbookLayer):
            own: list[Tensor] = [self.layer.F.weight, self.layer.G.weight, self.layer.U.weight, self.layer.U.bias]
        else:
            linear = self.layer.linear
            own = [linear.F, linear.G, linear.U, linear.b]
        return [*own, self.head.weight, self.head.bias]


@dataclass(frozen=True)
class Pair:
    """Textbook and ours with m = 1, the same random initial weights, the same batches of random images and labels.

    as_accurate: ours at the loosest of TOLERANCES at which no error on the first batch is larger than the textbook's,
    whose criterion means something else; in evaluation mode the gradient does not count. outcomes: see `outcome`.
    """

    textbook: Network
    ours: Network
    as_accurate: Network
    batches: list[Batch]
    outcomes: dict[str, dict[str, Any]]

    @classmethod
    def random(cls, in_features: int, features: int, batch: int, batches: int, *, training: bool) -> Pair:
        linear = mondeq.Dense(in_features, features, m=1.0)
        head = nn.Linear(features, CLASSES)
        drawn = [(random_images(batch, in_features), torch.randint(CLASSES, (batch,))) for _ in range(batches)]
        textbook = Network(textbook_copy(linear, 1.0, tol=TOLERANCES[0]), copy.deepcopy(head))
        return cls.compared(textbook, lambda layer: Network(layer, head), linear, drawn, training=training)

    @classmethod
    def compared(
        cls,
        textbook: Network,
        network: Callable[[mondeq.EquilibriumLayer], Network],
        linear: mondeq.Parameterization,
        batches: Sequence[Batch],
        *,
        training: bool,
    ) -> Pair:
        """`textbook` and ours, which is `network` of a layer on `linear`."""
        textbook.train(training)
        exact = solve_and_differentiate(exact_network(network, linear), batches[0])
        target = outcome(textbook, batches[0], exact)
        compared = ("error_worst_sample", "gradient_error") if training else ("error_worst_sample",)
        ours = {tol: network(mondeq.EquilibriumLayer(linear, tol=tol)).train(training) for tol in TOLERANCES}
        reached: dict[float, dict[str, Any]] = {}
        for equal in TOLERANCES:
            reached[equal] = outcome(ours[equal], batches[0], exact)
            if all(reached[equal][error] <= target[error] for error in compared):
                break
        outcomes = {"textbook": target, "mondeq": reached[TOLERANCES[0]], "mondeq, as accurate": reached[equal]}
        return cls(textbook, ours[TOLERANCES[0]], ours[equal], list(batches), outcomes)


def exact_network(network: Callable[[mondeq.EquilibriumLayer], Network], linear: mondeq.Parameterization) -> Network:
    """The network in float64, solved to 1e-12 by another method."""
    layer = mondeq.EquilibriumLayer(linear, solver=splitting.Anderson(), tol=1e-12, on_failure="raise")
    return copy.deepcopy(network(layer)).double()


def outcome(network: Network, batch: Batch, exact: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Steps, success and errors of one forward and backward pass.

    exact: state and gradient from a float64 solve to 1e-12. `error` is ‖z − z*‖/‖z*‖, its largest value over the
    samples and that of the whole batch; `gradient_error` is ‖g − g*‖/‖g*‖ over all weights.
    """
    network = copy.deepcopy(network)
    solutions: dict[str, splitting.Solution] = {}
    if isinstance(network.layer, mondeq.EquilibriumLayer):
        network.layer.monitor = solutions.__setitem__
    state, gradient = solve_and_differentiate(network, batch)
    best, best_gradient = exact
    return {
        "error_worst_sample": float(relative(state - best, best).max()),
        "error_batch": float((state - best).norm() / best.norm()),
        "gradient_error": float((gradient - best_gradient).norm() / best_gradient.norm()),
        **(_our_report(solutions) if solutions else _textbook_report(network.layer)),
        "tolerance": network.layer.tol,
    }


def relative(difference: Tensor, value: Tensor) -> Tensor:
    """‖difference‖/‖value‖ per sample."""
    size = torch.linalg.vector_norm(value, dim=1).clamp_min(torch.finfo(value.dtype).tiny)
    return torch.linalg.vector_norm(difference, dim=1) / size


def solve_and_differentiate(network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """The state and the gradient of the cross-entropy in all weights, flat; both as float64."""
    images, labels = batch
    weights = network.weights()
    state = network.layer(images.to(weights[0].dtype))
    gradients = torch.autograd.grad(functional.cross_entropy(network.classify(state), labels), weights)
    return network.flat(state).detach().double(), torch.cat([g.flatten() for g in gradients]).double()


def _textbook_report(layer: Any) -> dict[str, Any]:
    return {
        "forward_steps": layer.forward_steps,
        "backward_steps": layer.backward_steps,
        "success": max(layer.forward_steps, layer.backward_steps) < layer.max_steps,
        "status": "stops on the relative change of the whole batch and reports nothing",
    }


def _our_report(solutions: dict[str, splitting.Solution]) -> dict[str, Any]:
    return {
        "forward_steps": len(solutions["forward"].history),
        "backward_steps": len(solutions["backward"].history),
        "success": all(solution.status.ok for solution in solutions.values()),
        "status": {role: str(solution.status) for role, solution in solutions.items()},
        "residual": {role: float(solution.residual.max()) for role, solution in solutions.items()},
        "error_bound_worst_sample": float(solutions["forward"].error_bound.max()),
    }


def random_images(count: int, size: int) -> Tensor:
    """Normalised random images: a fifth of the pixels lit, as in MNIST, with about its mean and standard deviation."""
    lit = torch.rand(count, size) < 0.19
    return (lit * (0.4 + 0.6 * torch.rand(count, size)) - MEAN) / STD


def textbook_copy(linear: mondeq.Dense, m: float, *, tol: float) -> TextbookLayer:
    """The textbook layer with the weights of `linear`."""
    layer = TextbookLayer(linear.in_features, linear.features, m, tol=tol).to(linear.U.dtype)
    with torch.no_grad():
        layer.U.weight.copy_(linear.U)
        layer.U.bias.copy_(linear.b)
        layer.F.weight.copy_(linear.F)
        layer.G.weight.copy_(linear.G)
    return layer


class TrainingStep:
    """Forward, cross-entropy, backward and Adam on the next of a few batches.

    The learning rate is 0: every step does all the work of a step and leaves the initial weights as they are.
    """

    def __init__(self, network: Network, batches: list[Batch], *, fused: bool | None) -> None:
        self.network = copy.deepcopy(network).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.0, fused=fused)
        self.batches: Iterator[Batch] = itertools.cycle(batches)

    def __call__(self) -> None:
        images, labels = next(self.batches)
        self.optimizer.zero_grad()
        functional.cross_entropy(self.network(images), labels).backward()
        self.optimizer.step()


class Evaluation:
    """Forward in evaluation mode, without a graph, on the next of a few batches."""

    def __init__(self, network: Network, batches: list[Batch]) -> None:
        self.network = copy.deepcopy(network).eval()
        self.batches: Iterator[Batch] = itertools.cycle(batches)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        logits: Tensor = self.network(next(self.batches)[0])
        return logits
