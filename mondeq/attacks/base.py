"""What an attack is, and what it is told: images, their classes, and the network as something to differentiate."""

from __future__ import annotations

import copy
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mondeq.attacks.geometry import Geometry
from mondeq.errors import ConfigError
from mondeq.network import Network
from mondeq.registry import Registry

# An attack looks for points; whether they fool anybody is asked of the exact network afterwards.
_TOL, _MAX_STEPS = 1e-5, 300


class Watched(nn.Module):
    """A network for attacks: float64, differentiated at its equilibria, every gradient counted.

    Logits are divided by how far apart they are at the images. That changes no prediction, and no loss is blinded by a
    network that is sure of itself.

    Args:
        exact: What `exact_copy` returned. It is copied.
        images: Those under attack, (N, *in_shape) float64.

    Attributes:
        gradients: How many images' gradients were computed.
        zeros: How many of these were exactly 0.
    """

    def __init__(self, exact: Network, images: Tensor) -> None:
        super().__init__()
        self.network = copy.deepcopy(exact)
        for layer in self.network.solved():
            layer.tol = layer.backward_tol = max(layer.tol, _TOL)
            layer.max_steps, layer.on_failure = _MAX_STEPS, "return"
        self.gradients = self.zeros = 0
        logits = self.network(images)
        apart = float((logits.amax(1) - logits.amin(1)).median())
        self.unit = apart if 0 < apart < float("inf") else 1.0
        self.eval()

    def forward(self, points: Tensor) -> Tensor:
        """The logits in units of their distance at the images.

        Args:
            points: (batch, *in_shape) float64.

        Returns:
            (batch, classes).
        """
        if points.requires_grad:
            points.register_hook(self._count)
        return self.network(points) / self.unit

    def _count(self, gradients: Tensor) -> None:
        self.gradients += len(gradients)
        self.zeros += int((gradients == 0).flatten(1).all(1).sum())


@dataclass(frozen=True, eq=False)
class Target:
    """What attacks are told.

    Args:
        network: The network.
        images: (N, *in_shape) float64 in [0, 1]. Attacked images stay in that box.
        labels: The classes that the network gives them and is to be talked out of, (N,).
        radii: The distances that are asked about, each (N,), for attacks that search a ball.
        geometry: The norm of the distances.
        steps: The effort: of gradient attacks the number of steps in each search.
        generator: What attacks draw from, on the CPU.
    """

    network: Watched
    images: Tensor
    labels: Tensor
    radii: list[Tensor]
    geometry: type[Geometry]
    steps: int
    generator: torch.Generator

    def gradient(self, loss: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and the gradient of a loss by implicit differentiation.

        Args:
            loss: From logits (batch, classes) to losses (batch,).
            points: (batch, *in_shape).

        Returns:
            The logits at the points, and the gradients, shaped like the points.
        """
        with torch.enable_grad():
            moving = points.clone().requires_grad_()
            logits = self.network(moving)
            (gradient,) = torch.autograd.grad(loss(logits).sum(), moving)
        return logits.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)


class Attack(ABC):
    """A way to look for images of another class near given ones. One file each; it enrols in `ATTACKS`."""

    def unsuited(self, geometry: type[Geometry]) -> str | None:
        """Why this attack has no answer in a norm.

        Args:
            geometry: The norm.

        Returns:
            The reason, or None where it has one, as by default.
        """
        return None

    def check(self) -> None:  # noqa: B027  # most need nothing
        """Raise where something is missing that the attack needs.

        Raises:
            ConfigError: A library is missing; the message says how to install it.
        """

    @abstractmethod
    def search(self, target: Target) -> Tensor:
        """For every image the nearest point that was found with another class.

        Args:
            target: What is attacked.

        Returns:
            (N, *in_shape) in [0, 1]; anything of another class or not, the image itself say, where none was found.
        """


ATTACKS: Registry[Attack] = Registry("attack")
"""The attacks by name, in the order in which reports show them."""


def prepared(geometry: type[Geometry], names: Iterable[str] | None = None) -> dict[str, Attack]:
    """Attacks that can be run.

    Args:
        geometry: The norm.
        names: Which of `ATTACKS`; by default all that suit the norm.

    Returns:
        The attacks by name.

    Raises:
        ConfigError: There is none of such a name, one does not suit the norm, or it lacks a library.
    """
    wanted = {name: ATTACKS[name]() for name in (ATTACKS if names is None else names)}
    found = {}
    for name, attack in wanted.items():
        reason = attack.unsuited(geometry)
        if reason is None:
            attack.check()
            found[name] = attack
        elif names is not None:
            raise ConfigError(f"the attack {name!r} {reason}; choose another")
    if not found:
        raise ConfigError(f"`attacks` are none; choose some of {', '.join(ATTACKS)}")
    return found


def foolbox(module: str) -> Any:
    """A module of the Foolbox library.

    Args:
        module: Its name, "attacks.hop_skip_jump" say.

    Returns:
        The module.

    Raises:
        ConfigError: Foolbox is missing.
    """
    try:
        return importlib.import_module(f"foolbox.{module}")
    except ImportError:
        raise ConfigError('attacks need the foolbox package: pip install "mondeq[attack]"') from None


def foolbox_model(network: Watched) -> Any:
    """A network as Foolbox takes it.

    Args:
        network: The network.

    Returns:
        The model of Foolbox.

    Raises:
        ConfigError: Foolbox is missing.
    """
    return foolbox("models.pytorch").PyTorchModel(network, bounds=(0, 1), device=network.network.device)
