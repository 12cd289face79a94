"""Channels of zeros beside those of an image: an isometry that makes room for what layers compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mondeq.errors import ConfigError
from mondeq.norms import Box, Norm
from mondeq.pieces.base import PIECES, Piece, Proof
from mondeq.pieces.pointwise import ExactProof, exact_box
from mondeq.settings import Settings, Whole, setting
from splitting import InvalidArgument


@dataclass(frozen=True)
class PadChannelsSettings(Settings):
    """Of `PadChannels`.

    Args:
        channels: How many there are to be.
    """

    channels: int = setting(Whole(1))


@PIECES.enrol("pad-channels")
class PadChannels(Piece):
    """Images with as many channels as asked for, the new ones zero: 1-Lipschitz and exact.

    Args:
        channels: How many there are to be.
    """

    Settings = PadChannelsSettings

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = PadChannelsSettings(channels).channels

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> PadChannels:
        if len(in_shape) != 3 or in_shape[0] > settings.channels:
            raise ConfigError(f"`channels` is {settings.channels}, too few for samples of shape {tuple(in_shape)}")
        return cls(settings.channels)

    @classmethod
    def example(cls) -> tuple[PadChannelsSettings, torch.Size]:
        return PadChannelsSettings(5), torch.Size((3, 2, 2))

    def settings(self) -> PadChannelsSettings:
        return PadChannelsSettings(self.channels)

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        if len(in_shape) != 3 or in_shape[0] > self.channels:
            raise InvalidArgument(f"pads images to {self.channels} channels, got samples of shape {tuple(in_shape)}")
        return torch.Size((self.channels, *in_shape[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """Images with channels of zeros behind their own.

        Args:
            x: (batch, channels, height, width).

        Returns:
            (batch, `channels` of this piece, height, width).
        """
        return functional.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        return [ExactProof(self, norm.euclidean(), Norm(), self.out_shape(in_shape))]

    def box_estimate(self, box: Box) -> Box:
        return exact_box(self, box)
