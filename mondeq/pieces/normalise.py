"""Normalisation of images: (x − mean)/std per channel. Measured in units of std, it is an isometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mondeq import arguments
from mondeq.errors import ConfigError
from mondeq.norms import Ball, Box, Norm
from mondeq.pieces.base import PIECES, Piece, Proof
from mondeq.settings import Real, Settings, Several, setting
from splitting import InvalidArgument, verified

# float32 holds these and their reciprocals.
_LEAST_STD, _MOST_STD, _MOST_MEAN = 2.0**-126, 2.0**126, 2.0**127
MEANS = Several(Real("a finite number of a size that float32 holds", lambda value: abs(value) <= _MOST_MEAN))
STDS = Several(
    Real(
        "a finite number > 0 of a size that float32 holds, like its reciprocal (is a channel constant?)",
        lambda value: _LEAST_STD <= value <= _MOST_STD,
    )
)


@dataclass(frozen=True)
class NormaliseSettings(Settings):
    """Of `Normalise`: one number per channel, of pixels in [0, 1].

    Args:
        mean: What is subtracted.
        std: What is divided by, > 0.
    """

    mean: tuple[float, ...] = setting(MEANS)
    std: tuple[float, ...] = setting(STDS)


@PIECES.enrol("normalise")
class Normalise(Piece):
    """(x − mean)/std per channel, for images (batch, channels, height, width).

    Args:
        mean: One number per channel; not a weight.
        std: One number > 0 per channel; not a weight.

    Raises:
        ConfigError: They are no such numbers.
    """

    Settings = NormaliseSettings

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        checked = NormaliseSettings(mean, std)  # type: ignore[arg-type]  # read as tuples
        if len(checked.mean) != len(checked.std) or not checked.mean:
            raise ConfigError(
                f"one `mean` and `std` per channel are needed, got {len(checked.mean)} means, {len(checked.std)} stds"
            )
        self._mean, self._std = checked.mean, checked.std

    @classmethod
    def example(cls) -> tuple[NormaliseSettings, torch.Size]:
        return NormaliseSettings((0.4, 0.6), (0.5, 0.25)), torch.Size((2, 3, 4))

    def settings(self) -> NormaliseSettings:
        return NormaliseSettings(self._mean, self._std)

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> Normalise:
        return cls(settings.mean, settings.std)

    def check(self) -> None:
        try:
            checked = self.settings()
        except ConfigError as error:
            raise InvalidArgument(str(error)) from None
        if len(checked.mean) != len(checked.std):
            raise InvalidArgument(f"`mean` has {len(checked.mean)} numbers and `std` {len(checked.std)}")

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        if len(in_shape) != 3 or in_shape[0] != len(self._mean):
            raise InvalidArgument(
                f"has one mean and std for each of {len(self._mean)} channels, got samples of shape {tuple(in_shape)}"
            )
        return in_shape

    def forward(self, images: Tensor) -> Tensor:
        """Images normalised.

        Args:
            images: (batch, channels, height, width), floating point.

        Returns:
            The same shape.

        Raises:
            InvalidArgument: They are not floating point.
        """
        mean, std = self.constants(images)
        return (images - mean) / std

    def constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std for images.

        Args:
            like: The images.

        Returns:
            Both as (channels, 1, 1), of the dtype and on the device of `like`.

        Raises:
            InvalidArgument: They are not floating point.
        """
        arguments.check_floating(like)
        pair = torch.tensor([self._mean, self._std], dtype=like.dtype, device=like.device)[:, :, None, None]
        return pair[0], pair[1]

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        return [_NormaliseProof(self, norm, in_shape)]

    def lipschitz_estimate(self, norm: Norm, in_shape: torch.Size) -> tuple[float, Norm]:
        return 1.0, self.scaled(norm)

    def box_estimate(self, box: Box) -> Box:
        # A difference is wrong by a rounding of itself, or by what leaves the normal numbers, and then divided.
        _, std = self.constants(box.lower)
        return box.through(self, ulps=2).widened(4 * torch.finfo(std.dtype).tiny / std)

    def scaled(self, norm: Norm) -> Norm:
        """The norm in which a normalised image is as large as the image was.

        Args:
            norm: What the image is measured in.

        Returns:
            The norm with std·ρ for ρ.
        """
        std = torch.tensor(self._std, dtype=torch.float64, device="cpu")[:, None, None]
        return Norm(std if norm.root is None else std.to(norm.root.device) * norm.root)


class _NormaliseProof(Proof):
    def __init__(self, piece: Normalise, norm: Norm, in_shape: torch.Size) -> None:
        # std·ρ is rounded where ρ is not 1.
        self.constant = 1.0 if norm.root is None else verified.round_up(1.0)
        self.piece, self.norm, self.out_shape = piece, piece.scaled(norm), in_shape

    def enclose(self, ball: Ball) -> Ball:
        mean, std = self.piece.constants(ball.centre)
        rounding = 4 * verified.rounding_factor(1) * ((ball.centre.abs() + mean.abs()) / std)
        own = self.norm.of(rounding) + self.out_shape.numel() * 4 * verified.UNDERFLOW
        return Ball(self.piece(ball.centre), ball.radius + own, self.norm)

    def enclose_box(self, box: Box) -> Box:
        return self.piece.box_estimate(box)
