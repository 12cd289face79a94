"""Distortions of training images by torchvision, on bytes and before they travel: `mondeq train --augment`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from mondeq.errors import ConfigError

AUGMENTATIONS = ("none", "rand")
"""What `distortion` knows."""


def distortion(name: str, channels: int, generator: torch.Generator) -> Callable[[Tensor], Tensor] | None:
    """What distorts a batch of training images.

    Args:
        name: One of AUGMENTATIONS.
        channels: Of the images.
        generator: What random numbers come from.

    Returns:
        A function of uint8 images (batch, channels, height, width) on the CPU, which returns new ones; None for "none".

    Raises:
        ConfigError: torchvision is missing, or not one for this torch, or images are neither grey nor RGB.
    """
    return RandAugment(channels, generator) if name == "rand" else None


class RandAugment:
    """Two distortions of fourteen, drawn for every image: shears, shifts, turns, and changes of colour and contrast.

    What moves in is 0, as where images are shifted. Source: Cubuk, Zoph, Shlens & Le 2019, arXiv 1909.13719, as
    torchvision has it, at its magnitude of 9 of 30.

    Args:
        channels: Of the images.
        generator: What random numbers come from, one number for a batch. Those of the program are left alone.

    Raises:
        ConfigError: torchvision is missing, or not one for this torch, or images are neither grey nor RGB.
    """

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        if channels not in (1, 3):
            raise ConfigError(f"`augment` rand takes images of 1 or 3 channels, those of the data have {channels}")
        self.generator = generator
        try:
            transforms = importlib.import_module("torchvision.transforms.v2")
        # One that was built for another torch fails while it loads.
        except (ImportError, RuntimeError, OSError):
            raise ConfigError(
                '`augment` rand needs torchvision, one for this torch: pip install "mondeq[augment]"'
            ) from None
        self._distort: Callable[[Tensor], Tensor] = transforms.RandAugment()

    def __call__(self, images: Tensor) -> Tensor:
        """Distort each image by itself.

        Args:
            images: uint8 (batch, channels, height, width), on the CPU.

        Returns:
            New ones of the same kind.
        """
        seed = int(torch.randint(2**63 - 1, (), generator=self.generator, device="cpu"))
        # torchvision draws from the generator of the program, and from no other.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return torch.stack([self._distort(image) for image in images])
