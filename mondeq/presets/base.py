"""Presets: networks for image classification that are made of a few settings."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from mondeq import values
from mondeq.errors import ConfigError
from mondeq.pieces.normalise import MEANS, STDS
from mondeq.registry import Registry
from mondeq.settings import Rule, Settings, Several, Text, Whole, setting
from mondeq.solving import LayerSettings

# A weight of more entries than this would take exabytes.
_MOST_ENTRIES = 2**57


@dataclass(frozen=True)
class _Classes(Rule):
    needed: str = "≥ 2, a whole number"

    def read(self, value: object) -> int | None:
        return Whole(2).read(value)


@dataclass(frozen=True)
class Images(Settings):
    """What is to be classified: shape, classes and statistics of the pixels.

    Args:
        image_shape: (channels, height, width).
        classes: How many there are, ≥ 2.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
        class_names: One per class, or none where they are not known.

    Raises:
        ConfigError: They do not fit each other, or one breaks its rule.
    """

    image_shape: tuple[int, int, int] = setting(Several(Whole(1), least=3))
    classes: int = setting(_Classes())
    mean: tuple[float, ...] = setting(MEANS)
    std: tuple[float, ...] = setting(STDS)
    class_names: tuple[str, ...] = setting(Several(Text("a name")), ())

    def __post_init__(self) -> None:
        shape, mean, std = (values.entries(v) for v in (self.image_shape, self.mean, self.std))
        if shape is None or len(shape) != 3 or mean is None or std is None or not len(mean) == len(std) == shape[0]:
            raise ConfigError(
                f"`image_shape` must be (channels, height, width) with one `mean` and `std` per channel, got "
                f"{values.shown(self.image_shape)}, {_counted(mean, 'mean')}, {_counted(std, 'std')}"
            )
        super().__post_init__()
        if len(set(self.class_names)) != len(self.class_names):
            raise ConfigError(f"`class_names` must be different names, got {values.shown(self.class_names)}")
        if self.class_names and len(self.class_names) != self.classes:
            raise ConfigError(
                f"`class_names` must name all {self.classes} classes or none, got {len(self.class_names)}"
            )

    @property
    def pixels(self) -> int:
        """How many numbers an image has."""
        return math.prod(self.image_shape)


@dataclass(frozen=True)
class Preset(LayerSettings):
    """The settings of a preset, which all are options of the command line. One file each; it enrols in `PRESETS`.

    Attributes:
        recipe: What `mondeq train` starts from, over the defaults: settings of the preset and of training.
        certified_recipe: The same where a radius is trained for.
        digits_recipe: What is different on the 8×8 digits.
        normalises: Whether pixels are divided by their standard deviation. A constant that is promised in pixels wants
            them as they are.
    """

    recipe: ClassVar[dict[str, Any]] = {}
    certified_recipe: ClassVar[dict[str, Any]] = {}
    digits_recipe: ClassVar[dict[str, Any]] = {}
    # Whether pixels are divided by their standard deviation. A constant that is promised in pixels wants them as they
    # are.
    normalises: ClassVar[bool] = True

    @abstractmethod
    def pieces(self, images: Images) -> dict[str, nn.Module]:
        """The pieces, with initial weights, by name.

        Args:
            images: What is to be classified.

        Returns:
            The modules in their order.

        Raises:
            ConfigError: The settings do not fit the images.
            SplittingError: The same.
        """

    @abstractmethod
    def largest(self, images: Images) -> int:
        """The number of entries of the largest weight.

        Args:
            images: What is to be classified.

        Returns:
            The number.
        """

    def check_size(self, images: Images) -> None:
        """Refuse tensors that no machine can hold, before one is asked for.

        Args:
            images: What is to be classified.

        Raises:
            ConfigError: A weight would be of that size.
        """
        largest = self.largest(images)
        if largest > _MOST_ENTRIES:
            raise ConfigError(f"a model of this size fits no memory (2^{largest.bit_length()} weights)")


PRESETS: Registry[Preset] = Registry("kind")
"""The presets by the names that `mondeq train --model` and `ModelConfig` take."""


def _counted(entries: tuple[Any, ...] | None, name: str) -> str:
    return f"no sequence of {name}s" if entries is None else f"{len(entries)} {name}s"
