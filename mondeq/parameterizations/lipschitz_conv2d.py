"""The Lipschitz-bounded convolution: x ↦ C z is γ-Lipschitz for every value of the weights, by what FᵀF contains.

The operator is A = mI + FᵀF + G − Gᵀ with F = [C/√(2γ); Uᵀ/√(2γ); V]. Since σ is monotone with slopes in [0, 1],
⟨Δz, UΔx⟩ ≥ ⟨Δz, AΔz⟩ ≥ m‖Δz‖² + (‖CΔz‖² + ‖UᵀΔz‖²)/(2γ), and so ‖CΔz‖² ≤ 2γ‖UᵀΔz‖‖Δx‖ − ‖UᵀΔz‖² ≤ γ²‖Δx‖².
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import splitting
from mondeq.errors import ConfigError
from mondeq.parameterizations.base import PARAMETERIZATIONS, Readable, check_count, check_positive
from mondeq.parameterizations.convolutional import ConvolutionalInput
from mondeq.parameterizations.kernels import gram_skew, promised_monotonicity, proved_monotonicity, transposed
from mondeq.settings import POSITIVE, Settings, Whole, setting
from splitting import norms, verified


@dataclass(frozen=True)
class LipschitzConv2dSettings(Settings):
    """Of LipschitzConv2d.

    Args:
        channels: Of the state z.
        out_channels: Of y = C z.
        kernel_size: k, the side of the convolutions, odd.
        gamma: γ > 0, in units of output per input.
        m: Strong monotonicity, > 0; small against FᵀF for a map that comes close to γ.
    """

    channels: int = setting(Whole(1), help="channels of the state z")
    out_channels: int = setting(Whole(1), help="channels of the output")
    kernel_size: int = setting(Whole(1), 3, help="side of the convolutions, odd (default 3)")
    gamma: float = setting(POSITIVE, 1.0, help="γ, in units of output per input")
    m: float = setting(POSITIVE, 0.01, help="strong monotonicity; small against FᵀF for a map that comes close to γ")


@PARAMETERIZATIONS.enrol("lipschitz-conv2d")
class LipschitzConv2d(ConvolutionalInput, Readable):
    """z = σ(Wz + Ux + b) and its read-out y = C z + d for images, with ‖y₁ − y₂‖₂ ≤ γ ‖x₁ − x₂‖₂ built in.

    C, U, V and G are convolutions, I − W = mI + (CᵀC + UUᵀ)/(2γ) + VᵀV + G − Gᵀ is diagonal in frequency. Images y are
    (batch, out_channels, height, width), states live on a torus k − 1 larger, with a border of zeros. γ holds for every
    activation: it needs no more than slopes in [0, 1]. LipschitzDense has a diagonal metric Λ besides. For a positively
    homogeneous σ, such as ReLU, that adds nothing: z in other units is another U, C, V and G. For others the family is
    the one of Λ = I.

    Args:
        in_channels: Of the images x.
        channels: Of the states.
        out_channels: Of the images y.
        image_size: The side of the images, or (height, width).
        kernel_size: k, odd.
        gamma: γ > 0, in units of output per input.
        m: Strong monotonicity, > 0. The smaller it is against FᵀF, the closer to γ the map can come, and the more steps
            a solve takes.

    Raises:
        InvalidArgument: One of them is out of range, or the kernel larger than the image.
    """

    Settings = LipschitzConv2dSettings

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        image_size: int | tuple[int, int],
        kernel_size: int = 3,
        gamma: float = 1.0,
        *,
        m: float = 0.01,
    ) -> None:
        super().__init__(in_channels, check_count("channels", channels), image_size, kernel_size)
        self.channels, self.out_channels = channels, check_count("out_channels", out_channels)
        self.gamma, self.m = check_positive("gamma", gamma), check_positive("m", m)
        self.state_shape = torch.Size((channels, *self.size))
        bound = (channels * kernel_size**2) ** -0.5
        kernels = (torch.empty(out, channels, kernel_size, kernel_size) for out in (out_channels, channels, channels))
        self.C, self.V, self.G = (nn.Parameter(kernel.uniform_(-bound, bound)) for kernel in kernels)
        self.d = nn.Parameter(torch.zeros(out_channels))

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> LipschitzConv2d:
        if len(in_shape) != 3:
            raise ConfigError(f"LipschitzConv2d takes images (channels, height, width), got {tuple(in_shape)}")
        size = in_shape[1], in_shape[2]
        return cls(
            in_shape[0],
            settings.channels,
            settings.out_channels,
            size,
            settings.kernel_size,
            settings.gamma,
            m=settings.m,
        )

    @classmethod
    def example(cls) -> tuple[LipschitzConv2dSettings, torch.Size]:
        return LipschitzConv2dSettings(3, 2, gamma=1.5, m=0.1), torch.Size((2, 4, 3))

    def settings(self) -> LipschitzConv2dSettings:
        return LipschitzConv2dSettings(self.channels, self.out_channels, self.kernel_size, self.gamma, self.m)

    @property
    def gain(self) -> float:  # type: ignore[override]  # γ by another name
        return self.gamma

    @property
    def out_shape(self) -> torch.Size:  # type: ignore[override]  # it depends on the image
        return torch.Size((self.out_channels, *self.image_size))

    def _parts(self) -> tuple[Tensor, Tensor]:
        """m and F. Where U puts the image is a shift, which UUᵀ does not see."""
        m = torch.tensor(self.m, dtype=self.U.dtype, device=self.U.device)
        tied = torch.cat([self.C, transposed(self.U)])
        # Not (2γ)^-½, which may overflow.
        return m, torch.cat([tied * (self.gamma**-0.5 * 0.5**0.5), self.V])

    def operator(self) -> splitting.ConvolutionOperator:
        m, F = self._parts()
        known = promised_monotonicity(m, [F], [self.G])
        return splitting.ConvolutionOperator(gram_skew(m, F, self.G), self.size, strong_monotonicity=known)

    def reserve(self) -> float:
        m, F = self._parts()
        # ‖·‖₂ of a symbol is at most that of the sums of moduli over taps; entries of F are right to six roundings.
        size = norms.frobenius(F.detach().double().abs().sum((2, 3)))
        scaling = 4 * verified.rounding_factor(6, F.dtype) * size * size
        return verified.round_down(proved_monotonicity(m, F, self.G) - scaling)

    def monotonicity_estimate(self) -> float:
        return self.m

    def root_metric_estimate(self) -> None:
        return None

    def read(self, z: Tensor) -> Tensor:
        # The border of the torus is what a kernel reaches: on the image itself nothing wraps around.
        return functional.conv2d(z, self.C, self.d)

    def read_rounding(self, z: Tensor) -> Tensor:
        terms = self.channels * self.kernel_size**2 + 5
        kernel, offset = (weight.detach().double().abs() for weight in (self.C, self.d))
        size = functional.conv2d(z.double().abs(), kernel, offset)
        vanished = terms * self.out_shape.numel() * torch.finfo(self.C.dtype).tiny
        return verified.rounding_factor(terms, self.C.dtype) * verified.vector_norm(size) + vanished

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, channels={self.channels}, out_channels={self.out_channels}, "
            f"image_size={self.image_size}, kernel_size={self.kernel_size}, gamma={self.gamma:.4g}, m={self.m:.4g}"
        )
