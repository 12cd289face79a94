"""Means over blocks of images. Disjoint k×k blocks make P with P Pᵀ = I/k², so that ‖P‖₂ = 1/k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mondeq.errors import ConfigError
from mondeq.norms import Ball, Box, Norm
from mondeq.pieces.base import PIECES, Adapter, Arithmetic, Piece, Proof, Unproved
from mondeq.pieces.linear import scaled_radius
from mondeq.settings import Settings, Whole, setting
from splitting import InvalidArgument, verified


class _PoolProof(Proof):
    def __init__(self, pool: nn.Module, size: int, norm: Norm, in_shape: Sequence[int], out_shape: torch.Size) -> None:
        self.pool, self.size, self.norm, self.in_shape, self.out_shape = pool, size, Norm(), in_shape, out_shape
        gain = norm.euclidean()
        self.constant = 1 / size if gain == 1 and size & (size - 1) == 0 else verified.round_up(gain / size)

    def enclose(self, ball: Ball) -> Ball:
        rounding = verified.rounding_factor(self.size**2 + 5) * verified.vector_norm(self.pool(ball.centre.abs()))
        own = rounding + self.out_shape.numel() * self.size**2 * verified.UNDERFLOW
        return Ball(self.pool(ball.centre), scaled_radius(self.constant, ball.radius) + own, self.norm)

    def enclose_box(self, box: Box) -> Box:
        return _pooled(self.pool, self.size, box)

    def lift(self, rows: Tensor) -> Tensor:
        spread = rows.view(len(rows), *self.out_shape) / self.size**2
        spread = spread.repeat_interleave(self.size, 2).repeat_interleave(self.size, 3)
        lifted = rows.new_zeros(len(rows), *self.in_shape)
        lifted[:, :, : spread.shape[2], : spread.shape[3]] = spread
        return lifted.flatten(1)


def _pooled(pool: nn.Module, size: int, box: Box) -> Box:
    """The means of what lies in a box."""
    return box.affine(pool, pool, box.lower.new_zeros(()), size**2)


@dataclass(frozen=True)
class PoolSettings(Settings):
    """Of pieces that average.

    Args:
        size: The side of their blocks.
    """

    size: int = setting(Whole(1), 2)


class _Averaging(Arithmetic):
    """The arithmetic that both share."""

    Settings = PoolSettings

    def lipschitz_estimate(self, norm: Norm, in_shape: torch.Size) -> tuple[float, Norm]:
        return norm.euclidean() / self.settings().size, Norm()  # type: ignore[attr-defined]


@PIECES.enrol("average-pool")
class AveragePool(_Averaging, Piece):
    """Means over disjoint size×size blocks of images; rows and columns that fill no block are left out.

    Args:
        size: The side of the blocks.
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.size = PoolSettings(size).size

    def settings(self) -> PoolSettings:
        return PoolSettings(self.size)

    def box_estimate(self, box: Box) -> Box:
        return _pooled(self, self.size, box)

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> AveragePool:
        if len(in_shape) != 3 or settings.size > min(in_shape[1:]):
            raise ConfigError(f"`pool` is {settings.size}, larger than a state of {tuple(in_shape[1:])}")
        return cls(settings.size)

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        if len(in_shape) != 3 or self.size > min(in_shape[1:]):
            raise InvalidArgument(f"averages {self.size}×{self.size} blocks, got samples of shape {tuple(in_shape)}")
        return torch.Size((in_shape[0], in_shape[1] // self.size, in_shape[2] // self.size))

    def forward(self, z: Tensor) -> Tensor:
        """The means of images.

        Args:
            z: (batch, channels, height, width).

        Returns:
            (batch, channels, height // size, width // size).
        """
        channels, height, width = z.shape[1:]
        # Two matrix products, in the order in which convolutional states lie in memory: so do their gradients then.
        field = z.permute(2, 3, 1, 0).reshape(height, -1)
        rows, columns = self._means(height, z), self._means(width, z)
        strips = (rows @ field).view(len(rows), width, -1)
        blocks = columns.expand(len(rows), -1, -1) @ strips
        return blocks.view(len(rows), len(columns), channels, len(z)).permute(3, 2, 0, 1)

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        return [_PoolProof(self, self.size, norm, in_shape, self.out_shape(in_shape))]

    def _means(self, side: int, like: Tensor) -> Tensor:
        """The matrix (side // size, side) that averages `size` neighbours."""
        blocks = torch.arange(side, device=like.device) // self.size
        wanted = torch.arange(side // self.size, device=like.device)
        return (blocks == wanted[:, None]).to(like.dtype) / self.size


@PIECES.enrol("avg-pool2d")
class AvgPool2dPiece(_Averaging, Adapter):
    """torch.nn.AvgPool2d with disjoint blocks and no padding."""

    wraps = nn.AvgPool2d

    def settings(self) -> PoolSettings:
        return PoolSettings(self.module.kernel_size)

    def box_estimate(self, box: Box) -> Box:
        return _pooled(self.module, self.module.kernel_size, box)

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        return nn.AvgPool2d(settings.size)

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        try:
            return self.module(torch.empty(1, *in_shape, device="meta")).shape[1:]
        except (RuntimeError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise InvalidArgument(f"does not take samples of shape {tuple(in_shape)}: {reason}") from None

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        module, size = self.module, self.module.kernel_size
        plain = isinstance(size, int) and module.stride == size and module.padding == 0 and not module.ceil_mode
        if not plain or module.divisor_override is not None:
            raise Unproved("is an AvgPool2d with overlapping blocks or padding, of which nothing is proved")
        return [_PoolProof(module, size, norm, in_shape, self.out_shape(in_shape))]
