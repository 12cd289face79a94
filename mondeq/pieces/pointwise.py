"""Pieces without weights that act entry by entry, or sort: nondecreasing, 1-Lipschitz and exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mondeq.errors import ConfigError
from mondeq.norms import Ball, Box, Norm
from mondeq.pieces.base import PIECES, Adapter, Piece, Proof
from mondeq.pieces.linear import scaled_radius
from mondeq.settings import Real, Settings, Whole, setting
from splitting import InvalidArgument


class ExactProof(Proof):
    """What rounds nothing and decreases nowhere.

    Args:
        module: What computes the output, nondecreasing in every entry.
        constant: An upper bound on ‖Δoutput‖/‖Δinput‖.
        norm: What the output is measured in.
        out_shape: The shape of one output.
    """

    def __init__(self, module: nn.Module, constant: float, norm: Norm, out_shape: torch.Size) -> None:
        self.module, self.constant, self.norm, self.out_shape = module, constant, norm, out_shape

    def enclose(self, ball: Ball) -> Ball:
        # In place is for training: here the centre of the ball belongs to somebody else.
        radius = ball.radius if self.constant == 1 else scaled_radius(self.constant, ball.radius)
        return Ball(self.module(ball.centre.clone()), radius, self.norm)

    def enclose_box(self, box: Box) -> Box:
        return exact_box(self.module, box)


def exact_box(module: nn.Module, box: Box) -> Box:
    """The image of a box under a module that rounds nothing and is nondecreasing in every entry.

    Args:
        module: The module.
        box: What contains the inputs.

    Returns:
        What contains the outputs.
    """
    return box.through(lambda x: module(x.clone()))


@PIECES.enrol("relu")
class ReLUPiece(Adapter):
    """torch.nn.ReLU: 1-Lipschitz in every diagonal norm."""

    wraps = nn.ReLU

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        return nn.ReLU()

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        return in_shape

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        return [ExactProof(self.module, 1.0, norm, in_shape)]

    def box_estimate(self, box: Box) -> Box:
        return exact_box(self.module, box)


FINITE = Real("a finite number", lambda _: True)


@dataclass(frozen=True)
class HardtanhSettings(Settings):
    """Of torch.nn.Hardtanh.

    Args:
        low: What is taken for all that is less.
        high: What is taken for all that is more.
    """

    low: float = setting(FINITE, -1.0)
    high: float = setting(FINITE, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high:
            raise ConfigError(f"`low` must be less than `high`, got {self.low} and {self.high}")


@PIECES.enrol("hardtanh")
class HardtanhPiece(Adapter):
    """torch.nn.Hardtanh, min(max(x, low), high): 1-Lipschitz in every diagonal norm.

    In front of all others, with low 0 and high 1, it makes the network one of images: what lies outside [0, 1] is the
    same to it as the nearest image.
    """

    Settings = HardtanhSettings
    wraps = nn.Hardtanh

    def settings(self) -> HardtanhSettings:
        return HardtanhSettings(self.module.min_val, self.module.max_val)

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        return nn.Hardtanh(settings.low, settings.high)

    def check(self) -> None:
        try:
            self.settings()
        except ConfigError as error:
            raise InvalidArgument(str(error)) from None

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        return in_shape

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        return [ExactProof(self.module, 1.0, norm, in_shape)]

    def box_estimate(self, box: Box) -> Box:
        return exact_box(self.module, box)


@dataclass(frozen=True)
class GroupSortSettings(Settings):
    """Of `GroupSort`.

    Args:
        size: How many neighbouring channels are sorted together.
    """

    size: int = setting(Whole(2), 2)


@PIECES.enrol("group-sort")
class GroupSort(Piece):
    """Groups of neighbouring channels in increasing order (Anil, Lucas & Grosse 2019): 1-Lipschitz, keeping the norm.

    Args:
        size: How many channels make a group; their number must be a multiple of it.
    """

    Settings = GroupSortSettings

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.size = GroupSortSettings(size).size

    def settings(self) -> GroupSortSettings:
        return GroupSortSettings(self.size)

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> GroupSort:
        return cls(settings.size)

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        if not in_shape or in_shape[0] % self.size:
            raise InvalidArgument(f"sorts groups of {self.size} channels, got samples of shape {tuple(in_shape)}")
        return in_shape

    def forward(self, x: Tensor) -> Tensor:
        """Every group of channels sorted.

        Args:
            x: (batch, channels, …).

        Returns:
            The same shape.
        """
        return x.unflatten(1, (-1, self.size)).sort(dim=2).values.flatten(1, 2)

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        # Sorting mixes entries of different weights, so that only the 2-norm is kept.
        return [ExactProof(self, norm.euclidean(), Norm(), self.out_shape(in_shape))]

    def box_estimate(self, box: Box) -> Box:
        return exact_box(self, box)
