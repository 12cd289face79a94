"""Classifiers of images by the name of a preset and its settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from mondeq.errors import ConfigError
from mondeq.network import Network
from mondeq.presets.base import PRESETS, Images, Preset
from splitting import SplittingError


@dataclass(frozen=True, init=False)
class ModelConfig:
    """A preset by name, what it is to classify, and its settings: all that makes a network but its weights.

    Args:
        kind: A name in PRESETS: "dense", "lipschitz", "conv", "multiscale", "certified", "interval".
        **settings: Those of `Images` (image_shape, classes, mean, std, class_names) and of the preset, by name.

    Raises:
        ConfigError: One is unknown, missing, or not as it has to be.
    """

    kind: str
    images: Images
    preset: Preset

    def __init__(self, kind: str, **settings: Any) -> None:
        preset = PRESETS[kind]
        of_images = {each.name for each in fields(Images)}
        images = Images.from_dict({name: value for name, value in settings.items() if name in of_images})
        rest = preset.from_dict({name: value for name, value in settings.items() if name not in of_images})
        for name, value in (("kind", str(kind)), ("images", images), ("preset", rest)):
            object.__setattr__(self, name, value)
        rest.check_size(images)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> ModelConfig:
        """The configuration that JSON holds.

        Args:
            settings: "kind" and the settings, by name.

        Returns:
            The configuration.

        Raises:
            ConfigError: An entry is unknown, missing, or not as it has to be.
        """
        if not isinstance(settings.get("kind"), str):
            raise ConfigError(f"`kind` must be one of {', '.join(PRESETS)}, got {settings.get('kind')!r}")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, flat, as JSON can hold them."""
        return {"kind": self.kind, **self.images.to_dict(), **self.preset.to_dict()}


class Classifier(Network):
    """The network of a preset, with initial weights: images in [0, 1] in, logits out.

    Args:
        config: Which one.

    Raises:
        ConfigError: Its settings do not fit each other, or its weights do not fit in memory.
    """

    def __init__(self, config: ModelConfig) -> None:
        images = config.images
        try:
            super().__init__(config.preset.pieces(images), images.image_shape, class_names=images.class_names)
        except SplittingError as error:
            raise ConfigError(str(error)) from None
        except RuntimeError as error:
            # Of all that torch may complain of here, the allocator is what is left.
            raise ConfigError(f"a model of this size does not fit in memory; reduce its width ({error})") from None
