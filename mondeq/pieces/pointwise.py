"""Pieces without weights that act entry by entry, or sort: 1-Lipschitz and exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mondeq.norms import Ball, Norm
from mondeq.pieces.base import PIECES, Adapter, Piece, Proof
from mondeq.pieces.linear import scaled_radius
from mondeq.settings import Settings, Whole, setting
from splitting import InvalidArgument


class ExactProof(Proof):
    """What rounds nothing.

    Args:
        module: What computes the output.
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
