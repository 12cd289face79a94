"""Pieces that only move or leave out entries: they are 1-Lipschitz, and nothing is rounded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mondeq.errors import ConfigError
from mondeq.norms import Ball, Box, Norm
from mondeq.pieces.base import PIECES, Adapter, Arithmetic, Piece, Proof
from mondeq.settings import Settings, Whole, setting
from splitting import InvalidArgument


class _MovedProof(Proof):
    """Entries keep their weights in the norm wherever they go."""

    constant = 1.0

    def __init__(self, module: nn.Module, norm: Norm, in_shape: torch.Size, out_shape: torch.Size) -> None:
        self.module, self.in_shape, self.out_shape = module, in_shape, out_shape
        self.norm = norm if norm.root is None else Norm(module(norm.root.expand(in_shape)[None])[0])

    def enclose(self, ball: Ball) -> Ball:
        return Ball(self.module(ball.centre), ball.radius, self.norm)

    def enclose_box(self, box: Box) -> Box:
        return box.through(self.module)

    def lift(self, rows: Tensor) -> Tensor:
        # The transpose of a selection puts entries back to where they were taken from.
        places = torch.arange(self.in_shape.numel(), device=rows.device, dtype=torch.float64).view(1, *self.in_shape)
        lifted = rows.new_zeros(len(rows), self.in_shape.numel())
        lifted[:, self.module(places).flatten().long()] = rows
        return lifted


class Moving(Arithmetic):
    """The arithmetic of what moves or leaves out entries."""

    @property
    @abstractmethod
    def mover(self) -> nn.Module:
        """The module that does it."""

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        try:
            return self.mover(torch.empty(1, *in_shape, device="meta")).shape[1:]
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise InvalidArgument(f"does not take samples of shape {tuple(in_shape)}: {reason}") from None

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        return [_MovedProof(self.mover, norm, in_shape, self.out_shape(in_shape))]

    def lipschitz_estimate(self, norm: Norm, in_shape: torch.Size) -> tuple[float, Norm]:
        (proof,) = self.proofs(norm, in_shape)
        return 1.0, proof.norm

    def box_estimate(self, box: Box) -> Box:
        return box.through(self.mover)


class _TorchMover(Moving, Adapter):
    @property
    def mover(self) -> nn.Module:
        return self.module


@PIECES.enrol("flatten")
class FlattenPiece(_TorchMover):
    """torch.nn.Flatten of whole samples."""

    wraps = nn.Flatten

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        return nn.Flatten()

    def check(self) -> None:
        if (self.module.start_dim, self.module.end_dim) != (1, -1):
            raise InvalidArgument("flattens only a part of the dimensions; use torch.nn.Flatten()")


@PIECES.enrol("identity")
class IdentityPiece(_TorchMover):
    """torch.nn.Identity."""

    wraps = nn.Identity

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True)
class PixelUnshuffleSettings(Settings):
    """Of torch.nn.PixelUnshuffle.

    Args:
        factor: The side of the blocks that become channels.
    """

    factor: int = setting(Whole(1), 2)


@PIECES.enrol("pixel-unshuffle")
class PixelUnshufflePiece(_TorchMover):
    """torch.nn.PixelUnshuffle: blocks of pixels become channels."""

    Settings = PixelUnshuffleSettings
    wraps = nn.PixelUnshuffle

    def settings(self) -> PixelUnshuffleSettings:
        return PixelUnshuffleSettings(self.module.downscale_factor)

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        return nn.PixelUnshuffle(settings.factor)


@dataclass(frozen=True)
class EntriesSettings(Settings):
    """Of `Entries`.

    Args:
        start: The first entry that is kept.
    """

    start: int = setting(Whole(0), 0)


@PIECES.enrol("entries")
class Entries(Moving, Piece):
    """The entries of flat states from `start` on: the last tier of a multiscale state, say.

    Args:
        start: The first entry that is kept.
    """

    Settings = EntriesSettings

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.start = EntriesSettings(start).start

    @property
    def mover(self) -> nn.Module:
        return self

    @classmethod
    def example(cls) -> tuple[EntriesSettings, torch.Size]:
        return EntriesSettings(2), torch.Size((7,))

    def settings(self) -> EntriesSettings:
        return EntriesSettings(self.start)

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> Entries:
        return cls(settings.start)

    def forward(self, z: Tensor) -> Tensor:
        """States without their first entries.

        Args:
            z: (batch, n).

        Returns:
            z[:, start:].

        Raises:
            InvalidArgument: They are not flat, or nothing would be left.
        """
        if z.ndim != 2 or z.shape[1] <= self.start:
            raise InvalidArgument(f"has no entry {self.start} in states of shape {tuple(z.shape[1:])}")
        # Cut across the rows of the transpose, which is how multiscale states lie in memory, and so their gradients.
        return z.mT[self.start :].mT if self.start else z


@dataclass(frozen=True)
class CropSettings(Settings):
    """Of `Crop`.

    Args:
        border: The width of the border that is cut off.
    """

    border: int = setting(Whole(1), 1)


@PIECES.enrol("crop")
class Crop(Moving, Piece):
    """Images without their border, which convolutional states hold at zero.

    Args:
        border: Its width; (k − 1)/2 for states of a convolution with kernels of side k.
    """

    Settings = CropSettings

    def __init__(self, border: int = 1) -> None:
        super().__init__()
        self.border = CropSettings(border).border

    @property
    def mover(self) -> nn.Module:
        return self

    def settings(self) -> CropSettings:
        return CropSettings(self.border)

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> Crop:
        if len(in_shape) != 3 or min(in_shape[1:]) <= 2 * settings.border:
            raise ConfigError(f"`border` is {settings.border}, too wide for samples of shape {tuple(in_shape)}")
        return cls(settings.border)

    def forward(self, x: Tensor) -> Tensor:
        """The inside of images.

        Args:
            x: (batch, channels, height, width).

        Returns:
            (batch, channels, height − 2·border, width − 2·border).

        Raises:
            InvalidArgument: They are no images, or nothing would be left.
        """
        if x.ndim != 4 or min(x.shape[2:]) <= 2 * self.border:
            raise InvalidArgument(f"cuts off {self.border} on every side of {tuple(x.shape[1:])}; nothing is left")
        return x[:, :, self.border : -self.border, self.border : -self.border]
