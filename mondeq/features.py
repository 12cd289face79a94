"""What a classifier's linear head sees of a state: linear maps P with P Pᵀ = gain² I, so that ‖C P‖₂ = gain · ‖C‖₂."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Features(ABC):
    """P, as a value."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Rows of P."""

    @property
    @abstractmethod
    def gain(self) -> float:
        """‖P‖₂."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """How many entries of the state are summed for a feature."""

    @abstractmethod
    def __call__(self, z: Tensor) -> Tensor:
        """P z, (batch, count), for states z."""


@dataclass(frozen=True)
class Entries(Features):
    """The entries of a state from `start` on."""

    state_shape: torch.Size
    start: int = 0
    gain = 1.0
    terms = 1

    @property
    def count(self) -> int:
        return self.state_shape.numel() - self.start

    def __call__(self, z: Tensor) -> Tensor:
        # Cut across the rows of the transpose, which is how multiscale states lie in memory, and so their gradients.
        return z.mT[self.start :].mT if self.start else z.flatten(1)


@dataclass(frozen=True)
class AveragePool(Features):
    """Means over the size×size blocks of image-shaped states; rows and columns that fill no block are left out.

    Blocks are disjoint, so P Pᵀ = I/size² and the gain is 1/size. Order: channel, row, column.
    """

    state_shape: torch.Size
    size: int

    @property
    def gain(self) -> float:
        return 1 / self.size

    @property
    def terms(self) -> int:
        return self.size**2

    @property
    def count(self) -> int:
        channels, height, width = self.state_shape
        return channels * (height // self.size) * (width // self.size)

    def __call__(self, z: Tensor) -> Tensor:
        channels, height, width = self.state_shape
        # Two matrix products, in the order in which convolutional states lie in memory: so do their gradients then.
        field = z.permute(2, 3, 1, 0).reshape(height, -1)
        rows, columns = self._means(height, z), self._means(width, z)
        strips = (rows @ field).view(len(rows), width, -1)
        blocks = columns.expand(len(rows), -1, -1) @ strips
        return blocks.view(len(rows), len(columns), channels, len(z)).permute(3, 2, 0, 1).flatten(1)

    def _means(self, side: int, like: Tensor) -> Tensor:
        """The matrix (side // size, side) that averages `size` neighbours."""
        blocks = torch.arange(side, device=like.device) // self.size
        wanted = torch.arange(side // self.size, device=like.device)
        return (blocks == wanted[:, None]).to(like.dtype) / self.size
