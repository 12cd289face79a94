"""What a loss is: what training minimises, told how far a network can be moved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mondeq.network import Network
from mondeq.norms import Norm
from mondeq.pieces import Unproved
from mondeq.registry import Registry
from mondeq.settings import NoSettings
from mondeq.settings import Settings as AnySettings
from splitting import InvalidArgument


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    Args:
        radius: The radius that the loss asks margins for now, in pixel units.
        logit_scale: What logits are multiplied with before a cross-entropy.
        share: How much of all steps is done, in [0, 1].
    """

    radius: float
    logit_scale: float
    share: float


class Loss(ABC):
    """A loss. One file each; it enrols in `LOSSES`, and its `Settings` are options of the command line.

    Args:
        settings: An object of `Settings`; None for its defaults.

    Attributes:
        Settings: The class of its settings.
        norm: That of the radius, a name in NORMS.
    """

    Settings: ClassVar[type[AnySettings]] = NoSettings
    norm: ClassVar[str] = "l2"

    def __init__(self, settings: Any = None) -> None:
        self.settings: Any = self.Settings() if settings is None else settings

    def unsuited(self, network: Network, radius: float) -> str | None:
        """Return why this loss cannot train a network, or None where it can.

        Args:
            network: The network.
            radius: The radius that margins are asked for; with 0 no constants are needed.

        Returns:
            The reason, in one line; by default that a piece has no constant.
        """
        if not radius:
            return None
        try:
            with torch.no_grad():
                gap_estimates(network)
        except InvalidArgument as error:
            return str(error)
        return None

    def constants(self, network: Network) -> Tensor:
        """What the loss is told of a network that is trained for a radius; by default `gap_estimates`.

        Args:
            network: The network.

        Returns:
            (classes, classes), differentiable in the weights.

        Raises:
            InvalidArgument: A piece has no constant.
        """
        return gap_estimates(network)

    def of_batch(
        self, network: Network, images: Tensor, labels: Tensor, logits: Tensor, constants: Tensor, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        """The loss of a batch and the margins of its samples: by default what the constants say of the logits.

        A loss that looks at the images themselves, or at more of the network than its constants, overrides it.

        Args:
            network: The network, in training mode in training and in evaluation mode in evaluation.
            images: (batch, *in_shape).
            labels: (batch,) integers.
            logits: Those of the images, (batch, classes).
            constants: Those of the network; all zero where the radius of training is 0.
            progress: Where training stands.

        Returns:
            A scalar, and of each sample a number that is > 0 where it is certified by estimate, (batch,).
        """
        excess = margins(logits.detach(), labels, constants.detach(), progress.radius)
        return self(logits, labels, constants, progress), excess

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor, constants: Tensor, progress: Progress) -> Tensor:
        """The loss of a batch.

        Args:
            logits: (batch, classes).
            labels: (batch,) integers.
            constants: `gap_estimates(network)`, (classes, classes), differentiable in the weights; all zero where the
                radius of training is 0.
            progress: Where training stands.

        Returns:
            A scalar.
        """


LOSSES: Registry[Loss] = Registry("loss")
"""The losses by the names that `mondeq train --loss` takes."""


def margins(logits: Tensor, labels: Tensor, constants: Tensor, radius: float) -> Tensor:
    """By how much y_label exceeds every other y_j + radius·L_label,j.

    Args:
        logits: (batch, classes).
        labels: (batch,) integers.
        constants: L, (classes, classes).
        radius: How far images may move, in pixel units.

    Returns:
        The least excess of each sample, (batch,); where it is > 0 the sample is certified by estimate.
    """
    gaps = logits.gather(1, labels[:, None]) - logits - radius * constants[labels]
    return gaps.scatter(1, labels[:, None], torch.inf).amin(1)


def gap_estimates(network: Network) -> Tensor:
    """Constants of gaps of logits, differentiable in the weights, in logits per ℓ2 pixel unit.

    They are estimates in floating point that steer training; certificates are computed by `mondeq.certify` afterwards.

    Args:
        network: Any network of pieces with constants.

    Returns:
        (classes, classes).

    Raises:
        InvalidArgument: A piece has no constant.
    """
    constant, norm = torch.ones((), dtype=network.dtype, device=network.device), Norm()
    *trunk, last = network.places
    place = last
    try:
        for place in trunk:
            factor, norm = place.piece.lipschitz_estimate(norm, place.in_shape)
            constant = constant * (factor.to(constant) if isinstance(factor, Tensor) else factor)
        place = last
        return constant * last.piece.gap_estimates(norm, last.in_shape).to(constant)
    except Unproved as error:
        raise InvalidArgument(f"there is no margin to train for: the piece `{place.name}` {error}") from None
