"""A feed-forward rival of the `certified` preset: the same stack with SLL layers, certified by the same bounds.

    mondeq train --import experiments/sll.py --model sll --data folder:PATH --radius 36/255 --out runs/sll

An SLL layer is y = x − 2 W T⁻¹ ReLU(Wᵀx + b), T diagonal with T_ii = Σ_j |WᵀW|_ij q_j/q_i, q > 0 learned: then
T ⪰ WᵀW, and y is 1-Lipschitz. For convolutions |WᵀW| is that of the kernel of WᵀW, summed over its taps. Source:
Araujo, Havens, Delattre, Allauzen & Hu 2023, arXiv 2303.03169.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import mondeq
from mondeq.presets import CertifiedPreset, Images
from mondeq.settings import Whole
from splitting import InvalidArgument, norms, verified

# T is taken larger by this much, so that its own rounding in float64 leaves it an upper bound.
_ROOM = 1e-9


@dataclass(frozen=True)
class SLLSettings(mondeq.Settings):
    """Of `SLLConv2d`.

    Args:
        hidden: Channels between W and Wᵀ.
        kernel_size: k, odd.
    """

    hidden: int = mondeq.setting(Whole(1), 4)
    kernel_size: int = mondeq.setting(Whole(1), 3)


@mondeq.PIECES.enrol("sll-conv2d")
class SLLConv2d(mondeq.Piece):
    """y = x − 2 W T⁻¹ ReLU(Wᵀx + b) for images, Wᵀ a convolution with zero padding.

    Args:
        channels: Of x and y.
        hidden: Of Wᵀx.
        kernel_size: k, odd.
    """

    Settings = SLLSettings

    def __init__(self, channels: int, hidden: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, channels, kernel_size, kernel_size))
        nn.init.xavier_normal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.log_q = nn.Parameter(torch.zeros(hidden))

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> SLLConv2d:
        return cls(in_shape[0], settings.hidden, settings.kernel_size)

    def settings(self) -> SLLSettings:
        return SLLSettings(len(self.weight), self.weight.shape[-1])

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        if len(in_shape) != 3 or in_shape[0] != self.weight.shape[1]:
            raise InvalidArgument(f"takes images of {self.weight.shape[1]} channels, got {tuple(in_shape)}")
        return in_shape

    def forward(self, x: Tensor) -> Tensor:
        """y for images (batch, channels, height, width)."""
        reach = self.weight.shape[-1] // 2
        active = functional.conv2d(x, self.weight, self.bias, padding=reach).relu()
        scaled = active * (2 / self.dominating())[:, None, None]
        return x - functional.conv_transpose2d(scaled, self.weight, padding=reach)

    def dominating(self) -> Tensor:
        """The diagonal of T, (hidden,)."""
        q, side = self.log_q.exp(), self.weight.shape[-1]
        gram = functional.conv2d(self.weight, self.weight, padding=side - 1).abs().sum((2, 3))
        tiny = torch.finfo(gram.dtype).tiny
        return ((gram * (q / q[:, None])).sum(1) * (1 + _ROOM)).clamp_min(tiny)

    def proofs(self, norm: mondeq.Norm, in_shape: torch.Size) -> Sequence[mondeq.Proof]:
        return [_SLLProof(self, norm, in_shape)]

    def lipschitz_estimate(self, norm: mondeq.Norm, in_shape: torch.Size) -> tuple[float, mondeq.Norm]:
        return norm.euclidean(), mondeq.Norm()


class _SLLProof(mondeq.Proof):
    def __init__(self, piece: SLLConv2d, norm: mondeq.Norm, shape: torch.Size) -> None:
        self.piece, self.norm, self.out_shape, self.constant = piece, mondeq.Norm(), shape, norm.euclidean()
        weight = piece.weight.detach().double()
        # ‖·‖₂ of either convolution is at most that of the sums of moduli over taps.
        self.size = norms.frobenius(weight.abs().sum((2, 3)))
        self.factor = float((2 / piece.dominating().detach().double()).amax()) * (1 + 1e-9)
        self.bias = norms.frobenius(piece.bias.detach().double()) * (shape.numel() / shape[0]) ** 0.5
        self.unit = verified.rounding_factor(4 * max(weight.shape[:2]) * weight[0, 0].numel() + 32)

    def enclose(self, ball: mondeq.Ball) -> mondeq.Ball:
        length = verified.vector_norm(ball.centre)
        # Twice: every sum is relative to its moduli, and passes through what follows it.
        rounding = 2 * self.unit * (length + self.factor * self.size * (self.size * length + self.bias))
        return mondeq.Ball(self.piece(ball.centre), (self.constant * ball.radius + rounding) * (1 + 1e-9), self.norm)


@mondeq.PRESETS.enrol("sll")
@dataclass(frozen=True)
class SLLPreset(CertifiedPreset):
    """The `certified` preset with an SLL layer, of as many channels and hidden ones, in the place of every reflected
    convolution."""

    def pieces(self, images: Images) -> dict[str, nn.Module]:
        pieces = super().pieces(images)
        for name, piece in pieces.items():
            linear = getattr(piece, "linear", None)
            if isinstance(linear, mondeq.ReflectedConv2d):
                pieces[name] = SLLConv2d(linear.in_channels, linear.hidden, linear.kernel_size)
        return pieces
