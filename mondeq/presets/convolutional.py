"""The convolutional presets: one convolutional equilibrium, on one resolution or several, and a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from mondeq.parameterizations import Conv2d, MultiscaleConv2d
from mondeq.parameterizations.convolutional import ConvolutionalSettings
from mondeq.pieces import AveragePool, Entries, EquilibriumLayer, Normalise
from mondeq.presets.base import PRESETS, Images, Preset
from mondeq.settings import Several, Whole, setting
from splitting import InvalidArgument


@dataclass(frozen=True)
class _ConvolutionalPreset(Preset, ConvolutionalSettings):
    """The part that both share."""

    channels: tuple[int, ...] = setting(Several(Whole(1), least=1), (), help="channels of every tier; conv has one")

    digits_recipe: ClassVar[dict[str, Any]] = {"epochs": 20}

    def _options(self) -> dict[str, object]:
        names = ("kernel_size", "m", "learn_m", "weight_norm")
        return {name: getattr(self, name) for name in names}

    def largest(self, images: Images) -> int:
        widest = max(self.channels)
        channels, height, width = images.image_shape
        state = widest * (height + self.kernel_size) * (width + self.kernel_size)
        return max(state * images.classes, widest * max(widest, channels) * self.kernel_size**2)


@PRESETS.enrol("conv")
@dataclass(frozen=True)
class ConvPreset(_ConvolutionalPreset):
    """Conv2d(channels, …), averages over blocks of `pool`×`pool`, and a linear head.

    Args:
        channels: One number, the channels of the state.
        pool: The side of the blocks that are averaged before the head.
    """

    channels: tuple[int, ...] = setting(
        Several(Whole(1), least=1, most=1), (), help="of conv one number, of multiscale one per tier"
    )
    pool: int = setting(Whole(1), 4, help="conv: average over K×K blocks before the head (default 4)")

    recipe: ClassVar[dict[str, Any]] = {
        "channels": (54,),
        "epochs": 10,
        "lr": 4e-3,
        "batch_size": 128,
        "weight_norm": True,
        "tol": 1e-2,
    }
    certified_recipe: ClassVar[dict[str, Any]] = recipe
    digits_recipe: ClassVar[dict[str, Any]] = {"channels": (24,), "epochs": 20, "pool": 2}

    def pieces(self, images: Images) -> dict[str, nn.Module]:
        channels, *size = images.image_shape
        linear = Conv2d(channels, self.channels[0], tuple(size), **self._options())  # type: ignore[arg-type]
        if self.pool > min(linear.size):
            raise InvalidArgument(f"`pool` is {self.pool}, larger than a state of {linear.size}")
        height, width = (side // self.pool for side in linear.size)
        return {
            "normalise": Normalise(images.mean, images.std),
            "layer": EquilibriumLayer(linear, **self.options()),
            "pool": AveragePool(self.pool),
            "flatten": nn.Flatten(),
            "head": nn.Linear(self.channels[0] * height * width, images.classes),
        }


@PRESETS.enrol("multiscale")
@dataclass(frozen=True)
class MultiscalePreset(_ConvolutionalPreset):
    """MultiscaleConv2d(channels, …), its last tier, and a linear head.

    Args:
        channels: Of every tier.
    """

    recipe: ClassVar[dict[str, Any]] = {
        "channels": (16, 32, 32), "epochs": 10, "lr": 4e-3, "batch_size": 128, "weight_norm": True, "tol": 1e-2,
    }  # fmt: skip
    certified_recipe: ClassVar[dict[str, Any]] = recipe
    # 8×8 pixels can be halved three times, and are still images after the first.
    digits_recipe: ClassVar[dict[str, Any]] = {"channels": (16, 32), "epochs": 20}

    def pieces(self, images: Images) -> dict[str, nn.Module]:
        channels, *size = images.image_shape
        linear = MultiscaleConv2d(channels, self.channels, tuple(size), **self._options())  # type: ignore[arg-type]
        last = linear.layout.entries[-1]
        return {
            "normalise": Normalise(images.mean, images.std),
            "layer": EquilibriumLayer(linear, **self.options()),
            "tier": Entries(linear.state_shape.numel() - last),
            "head": nn.Linear(last, images.classes),
        }
