"""Where the tiers of a state are, and what is between neighbouring tiers: a change of resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from splitting.operators.torus import Torus
from splitting.scratch import may_overwrite, recycled, scratch


@dataclass(frozen=True)
class Layout:
    """Where the tiers of a state (batch, N) are. sizes: (height, width) of each tier's torus. channels: of each."""

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
        return tuple(c * h * w for c, (h, w) in zip(self.channels, self.sizes, strict=True))

    def fields(self, flat: Tensor) -> list[Tensor]:
        """The tiers of flat states (entries, batch), each (height, width, channels of its torus, batch)."""
        shapes = [(t.height, t.width, t.phases**2 * c) for t, c in zip(self.toruses, self.channels, strict=True)]
        return [p.view(*s, flat.shape[1]) for p, s in zip(flat.split(self.entries), shapes, strict=True)]

    def images(self, z: Tensor) -> list[Tensor]:
        """The tiers of states z as images (batch, channels, height, width)."""
        fields = self.fields(self.flat(z))
        images = [joined(f) if t.phases == 2 else f for f, t in zip(fields, self.toruses, strict=True)]
        return [image.permute(3, 2, 0, 1) for image in images]

    def state(self, images: Sequence[Tensor]) -> Tensor:
        """The states with these tiers, each (batch, channels, height, width): `images` inverted."""
        fields = [image.permute(2, 3, 1, 0) for image in images]
        return torch.cat([self.field(i, f).flatten(0, 2) for i, f in enumerate(fields)]).mT

    def field(self, tier: int, image: Tensor) -> Tensor:
        """An image (height, width, channels, batch) of a tier, as a field on its torus."""
        return interleaved(image) if self.toruses[tier].phases == 2 else image

    # What these four give may lie in memory that the next call of the same one overwrites.

    def padded(self, tier: int, image: Tensor) -> Tensor:
        """What a strided correlation of `tier` gave, as an image of the next tier: zeros appended at the far sides."""
        return _padded(image, *self.sizes[tier + 1])

    def cropped(self, tier: int, image: Tensor) -> Tensor:
        """The adjoint of `padded`: an image of the next tier, cut to what `tier` can have given."""
        return _copied("cropped", image[: self.toruses[tier].height, : self.toruses[tier].width])

    def divided(self, image: Tensor) -> Tensor:
        """An image as the field of its four sub-images."""
        return _copied("divided", _sub_images(image)).flatten(2, 4)

    def united(self, field: Tensor) -> Tensor:
        """The image of which a field has the sub-images: `divided` undone."""
        return _copied("united", _whole(field)).flatten(2, 3).flatten(0, 1)

    def flat(self, z: Tensor) -> Tensor:
        """States as (entries, batch), contiguous: what all work is done on. States made here are views of that."""
        return z.mT.contiguous()

    def unflat(self, flat: Tensor) -> Tensor:
        """`flat` undone, without a copy."""
        return flat.mT

    def memory(self, flat: Tensor, memory: Tensor | None) -> Tensor:
        """Memory like `flat`: that of the states `memory` if they lie in it as those made here do."""
        if memory is not None:
            candidate = self.flat(memory)
            if candidate.data_ptr() == memory.data_ptr() and candidate.shape == flat.shape:
                return candidate
        return recycled(flat)


class ImageLayout(Layout):
    """That of a single tier whose states are images (batch, channels, height, width)."""

    def images(self, z: Tensor) -> list[Tensor]:
        return [z]

    def state(self, images: Sequence[Tensor]) -> Tensor:
        return images[0]

    def flat(self, z: Tensor) -> Tensor:
        return z.permute(2, 3, 1, 0).contiguous().flatten(0, 2)

    def unflat(self, flat: Tensor) -> Tensor:
        return flat.view(*self.sizes[0], *self.channels, flat.shape[1]).permute(3, 2, 0, 1)


def _sub_images(image: Tensor) -> Tensor:
    """(2h, 2w, c, batch) as its four sub-images (h, w, 2, 2, c, batch), a view."""
    height, width, channels, batch = image.shape
    return image.view(height // 2, 2, width // 2, 2, channels, batch).transpose(1, 2)


def _whole(field: Tensor) -> Tensor:
    """A field (h, w, 4c, batch) of sub-images as (h, 2, w, 2, c, batch), a view in which pixels are in order."""
    height, width, channels, batch = field.shape
    return field.view(height, width, 2, 2, channels // 4, batch).transpose(1, 2)


def interleaved(image: Tensor) -> Tensor:
    """(2h, 2w, c, batch) as the field (h, w, 4c, batch) of its four sub-images."""
    return _sub_images(image.contiguous()).flatten(2, 4)


def joined(field: Tensor) -> Tensor:
    """`interleaved` undone."""
    return _whole(field).flatten(2, 3).flatten(0, 1)


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    """`image` with zeros appended at the far sides, in scratch memory where it may be."""
    rows, columns, *rest = image.shape
    if (rows, columns) == (height, width):
        return image
    if not may_overwrite(image):
        return functional.pad(image, (0, 0, 0, 0, 0, width - columns, 0, height - rows))
    result = scratch("padded", (height, width, *rest), image)
    result[rows:].zero_()
    result[:, columns:].zero_()
    result[:rows, :columns] = image
    return result


def _copied(slot: str, values: Tensor) -> Tensor:
    """`values` in contiguous memory, in the scratch memory of `slot` where it may be."""
    if values.is_contiguous() or not may_overwrite(values):
        return values.contiguous()
    return scratch(slot, tuple(values.shape), values).copy_(values)
