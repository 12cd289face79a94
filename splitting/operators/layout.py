"""Where the tiers of a state are, and what is between neighbouring tiers: a change of resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from splitting.operators.torus import Torus


@dataclass(frozen=True)
class Layout:
    """Where the tiers of a state (batch, N) are.

    States made here are views of contiguous tensors (N, batch), in which all work is done.

    Args:
        sizes: (height, width) of each tier's torus.
        channels: Channels of each tier.
    """

    sizes: tuple[tuple[int, int], ...]
    channels: tuple[int, ...]

    @cached_property
    def toruses(self) -> tuple[Torus, ...]:
        """All but the last tier are seen as four interleaved images, which makes their stride shift-invariant."""
        *strided, last = self.sizes
        return (*(Torus(height // 2, width // 2, 2) for height, width in strided), Torus(*last))

    @cached_property
    def wholes(self) -> tuple[Torus, ...]:
        """The toruses of the tiers, none of them divided."""
        return tuple(Torus(*size) for size in self.sizes)

    @cached_property
    def entries(self) -> tuple[int, ...]:
        """How many entries of a state each tier has."""
        return tuple(c * h * w for c, (h, w) in zip(self.channels, self.sizes, strict=True))

    def arranged(self, z: Tensor) -> Tensor:
        """States in the memory order of those made here.

        Args:
            z: States (batch, N).

        Returns:
            The same states, `z` itself where it already lies so.
        """
        return z.mT.contiguous().mT

    def fields(self, z: Tensor) -> list[Tensor]:
        """The tiers of states, as the transforms of their toruses take them.

        Args:
            z: States (batch, N).

        Returns:
            One contiguous tensor (height, width, channels of the torus, batch) per tier.
        """
        shapes = [(t.height, t.width, t.phases**2 * c) for t, c in zip(self.toruses, self.channels, strict=True)]
        return [p.view(*s, len(z)) for p, s in zip(self.arranged(z).mT.split(self.entries), shapes, strict=True)]

    def joined(self, fields: Sequence[Tensor]) -> Tensor:
        """The states with these fields: `fields` inverted.

        Args:
            fields: One tensor (height, width, channels of the torus, batch) per tier.

        Returns:
            States (batch, N).
        """
        return torch.cat([field.flatten(0, 2) for field in fields]).mT

    def images(self, z: Tensor) -> list[Tensor]:
        """The tiers of states.

        Args:
            z: States (batch, N).

        Returns:
            One tensor (batch, channels, height, width) per tier.
        """
        images = [united(f) if t.phases == 2 else f for f, t in zip(self.fields(z), self.toruses, strict=True)]
        return [image.permute(3, 2, 0, 1) for image in images]

    def state(self, images: Sequence[Tensor]) -> Tensor:
        """The states with these tiers: `images` inverted.

        Args:
            images: One tensor (batch, channels, height, width) per tier.

        Returns:
            States (batch, N).
        """
        return self.joined([self.field(i, image.permute(2, 3, 1, 0)) for i, image in enumerate(images)])

    def field(self, tier: int, image: Tensor) -> Tensor:
        """An image of a tier as a field on its torus.

        Args:
            tier: The number of the tier.
            image: (height, width, channels, batch).

        Returns:
            (height, width, channels of the torus, batch).
        """
        return divided(image) if self.toruses[tier].phases == 2 else image

    def padded(self, tier: int, image: Tensor) -> Tensor:
        """What a strided correlation gave as an image of the next tier: zeros are appended at the far sides.

        Args:
            tier: The number of the tier that was correlated.
            image: (height, width, channels, batch).

        Returns:
            An image of tier + 1.
        """
        (rows, columns), (height, width) = image.shape[:2], self.sizes[tier + 1]
        return functional.pad(image, (0, 0, 0, 0, 0, width - columns, 0, height - rows))

    def cropped(self, tier: int, image: Tensor) -> Tensor:
        """The adjoint of `padded`: an image of the next tier, cut to what a strided correlation can have given.

        Args:
            tier: The number of the tier that was correlated.
            image: An image of tier + 1, (height, width, channels, batch).

        Returns:
            The part of it, contiguous.
        """
        return image[: self.toruses[tier].height, : self.toruses[tier].width].contiguous()


class ImageLayout(Layout):
    """That of a single tier whose states are images (batch, channels, height, width)."""

    def arranged(self, z: Tensor) -> Tensor:
        return z.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)

    def fields(self, z: Tensor) -> list[Tensor]:
        return [self.arranged(z).permute(2, 3, 1, 0)]

    def joined(self, fields: Sequence[Tensor]) -> Tensor:
        return fields[0].permute(3, 2, 0, 1)

    def images(self, z: Tensor) -> list[Tensor]:
        return [z]

    def state(self, images: Sequence[Tensor]) -> Tensor:
        return images[0]


def _sub_images(image: Tensor) -> Tensor:
    """(2h, 2w, c, batch) as its four sub-images (h, w, 2, 2, c, batch), a view."""
    height, width, channels, batch = image.shape
    return image.view(height // 2, 2, width // 2, 2, channels, batch).transpose(1, 2)


def _whole(field: Tensor) -> Tensor:
    """A field (h, w, 4c, batch) of sub-images as (h, 2, w, 2, c, batch), a view in which pixels are in order."""
    height, width, channels, batch = field.shape
    return field.view(height, width, 2, 2, channels // 4, batch).transpose(1, 2)


def divided(image: Tensor) -> Tensor:
    """The field of the four interleaved sub-images of an image.

    Args:
        image: (2h, 2w, c, batch).

    Returns:
        (h, w, 4c, batch).
    """
    return _sub_images(image.contiguous()).flatten(2, 4)


def united(field: Tensor) -> Tensor:
    """The image with a field of sub-images: `divided` inverted.

    Args:
        field: (h, w, 4c, batch).

    Returns:
        (2h, 2w, c, batch).
    """
    return _whole(field).flatten(2, 3).flatten(0, 1)
