"""`python -m experiments.deep_equilibrium`: a general deep equilibrium network, z = f(z, x), on MNIST.

Nothing is proved about it. It shows what the general solvers do beside the monotone networks: accuracy, solver steps
and seconds go to FILE as JSON. The cell is the residual one of the deep equilibrium tutorial by Kolter, Duvenaud and
Johnson (NeurIPS 2020).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import mondeq
import splitting
from mondeq import data
from mondeq.files import write_json


class Cell(nn.Module):
    """f(z, x) = n(ReLU(z + n(x + conv(n(ReLU(conv z)))))) with group norms n, on images (channels, height, width).

    Args:
        channels: The channels of z and x, a multiple of 8.
        inner: The channels between the two convolutions, a multiple of 8.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.inward = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.outward = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in (inner, channels, channels))
        for convolution in (self.inward, self.outward):
            nn.init.normal_(convolution.weight, std=0.01)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """One application of the cell.

        Args:
            z: The states (batch, channels, height, width).
            x: What the layer is given, shaped like z.

        Returns:
            The new states, shaped like z.
        """
        y = self.norms[0](self.inward(z).relu())
        y = self.norms[1](x + self.outward(y))
        state: Tensor = self.norms[2]((z + y).relu())
        return state


class Network(nn.Module):
    """A stem that quarters the resolution, the equilibrium, a linear head.

    Args:
        shape: The (channels, height, width) of an image.
        classes: The number of classes.
        channels: The channels of the state, a multiple of 8.
        monitor: Is called with the role, "forward" or "backward", and the solution of every solve.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, channels: int, monitor: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], channels, 3, stride=2, padding=1), nn.GroupNorm(8, channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.GroupNorm(8, channels),
        )  # fmt: skip
        state_shape = (channels, -(-shape[1] // 4), -(-shape[2] // 4))
        self.layer = mondeq.Equilibrium(
            Cell(channels, 2 * channels),
            state_shape,
            splitting.Broyden(memory=12),
            tol=1e-2,
            max_steps=15,
            backward_tol=2e-2,
            on_failure="return",
            monitor=monitor,
        )
        self.head = nn.Linear(math.prod(state_shape), classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of images.

        Args:
            images: Images (batch, channels, height, width).

        Returns:
            The logits (batch, classes).
        """
        logits: Tensor = self.head(self.layer(self.stem(images)).flatten(1))
        return logits


@dataclass
class Steps:
    """Solver steps and failures, counted over samples.

    Args:
        total: The number of steps of all samples together.
        missed: The number of samples that missed the tolerance.
        samples: The number of samples.
    """

    total: int = 0
    missed: int = 0
    samples: int = 0

    def add(self, solution: splitting.Solution) -> None:
        """Count the samples of a solve.

        Args:
            solution: The solve.
        """
        self.total += int(solution.steps.sum())
        self.missed += int((~solution.converged).sum())
        self.samples += len(solution.steps)

    def figures(self) -> dict[str, float]:
        """The mean number of solver steps per sample, and the share of samples that missed the tolerance.

        Returns:
            The two figures as "steps" and "missed".
        """
        count = max(self.samples, 1)
        return {"steps": self.total / count, "missed": self.missed / count}


def train(dataset: data.Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Train a network by Adam and a one-cycle rate, and judge it by the test set.

    Args:
        dataset: The data.
        options: The command line: `epochs`, `channels` and `seed` are read.

    Returns:
        The figures of the last epoch and of the test set, ready for JSON.
    """
    torch.manual_seed(options.seed)
    steps = {"forward": Steps(), "backward": Steps()}
    network = Network(
        tuple(dataset.train.images.shape[1:]),
        len(dataset.classes),
        options.channels,
        lambda role, s: steps[role].add(s),
    )
    generator = torch.Generator().manual_seed(options.seed)
    train, test = data.batches(dataset.train, 128, generator=generator), data.batches(dataset.test, 500)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=options.epochs * len(train))
    started = time.perf_counter()
    for epoch in range(options.epochs):
        steps["forward"], steps["backward"] = Steps(), Steps()
        for images, labels in tqdm(train, f"epoch {epoch + 1}/{options.epochs}", disable=None):
            loss = functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - started
    figures = {role: counted.figures() for role, counted in steps.items()}
    with torch.no_grad():
        network.eval()
        right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in test)
    return {
        "test_accuracy": right / len(dataset.test),
        "train_seconds": seconds,
        "solver": figures,
        "parameters": sum(p.numel() for p in network.parameters()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seed": options.seed,
    }


def main(arguments: list[str] | None = None) -> int:
    """Train and print the figures.

    Args:
        arguments: The command line; that of the process by default.

    Returns:
        The exit code, 0.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.deep_equilibrium", description=__doc__)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where MNIST is or goes")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--channels", type=int, default=16, help="of the state, a multiple of 8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures there, as JSON")
    parser.add_argument("--smoke", action="store_true", help="one epoch of a tiny network on digits")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.channels = 1, 8
    dataset = data.load("digits") if options.smoke else data.load("mnist", options.data_dir)
    figures = train(dataset, options)
    if options.out is not None:
        write_json(options.out, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
