"""Convolutional monotone parameterizations, on one resolution or several: A = mI + FᵀF + G − Gᵀ with convolutions.

Images are padded with zeros to a torus that is k − 1 larger, on which all correlations are circular; the border that
padding adds is held at zero by the activation, so that nothing wraps around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

import splitting
from mondeq.errors import ConfigError
from mondeq.parameterizations.base import (
    PARAMETERIZATIONS,
    Correlations,
    Parameterization,
    StronglyMonotone,
    check_count,
    flat_input,
)
from mondeq.parameterizations.kernels import gram_skew, promised_monotonicity
from mondeq.settings import POSITIVE, Settings, Several, Truth, Whole, setting
from splitting import InvalidArgument, Layout, Torus, constant, is_transformed, norms, symbols, verified


@dataclass(frozen=True)
class ConvolutionalSettings(Settings):
    """The settings that convolutional parameterizations share.

    Args:
        kernel_size: k, the side of the convolutions, odd.
        m: Strong monotonicity, > 0.
        learn_m: Whether m is learned, starting from `m`.
        weight_norm: Whether length and direction of kernels are learned apart.
    """

    kernel_size: int = setting(Whole(1), 3, help="side of the convolutions, odd (default 3)")
    m: float = setting(POSITIVE, 1.0, help="strong monotonicity (default 1)")
    learn_m: bool = setting(Truth(), False, help="learn m, starting from --m")
    weight_norm: bool = setting(Truth(), False, help="learn length and direction of kernels")


class ConvolutionalInput(Parameterization):
    """The part that convolutional parameterizations share: U (channels, in_channels, k, k), b, the torus, the border.

    Their states are images with `channels` channels on a torus k − 1 larger than the input.

    Args:
        in_channels: Of the images x.
        channels: Of the part of a state that x feeds.
        image_size: The side of the images, or (height, width).
        kernel_size: k, odd.

    Raises:
        InvalidArgument: One of them is out of range, or the kernel larger than the image.
    """

    # The states of convolutions are large: 1e-7 costs a certificate less than a millionth of its radius.
    proving_tol = 1e-7

    def __init__(self, in_channels: int, channels: int, image_size: int | tuple[int, int], kernel_size: int) -> None:
        super().__init__()
        self.in_channels = check_count("in_channels", in_channels)
        self.kernel_size = _odd("kernel_size", kernel_size)
        self.image_size = _pair("image_size", image_size)
        if min(self.image_size) < kernel_size:
            raise InvalidArgument(f"`kernel_size` is {kernel_size}, larger than the image of {self.image_size}")
        self.in_features = in_channels * self.image_size[0] * self.image_size[1]
        self.size = self._torus_side(self.image_size)
        bound = (in_channels * kernel_size**2) ** -0.5
        self.U = nn.Parameter(torch.empty(channels, in_channels, kernel_size, kernel_size).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def _torus_side(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] + self.kernel_size - 1, size[1] + self.kernel_size - 1

    @property
    def in_shape(self) -> torch.Size:
        return torch.Size((self.in_channels, *self.image_size))

    def check_inputs(self, in_shape: Sequence[int]) -> None:
        flat = (self.in_features,)
        if tuple(in_shape) not in (flat, tuple(self.in_shape)):
            raise InvalidArgument(f"takes samples of shape {tuple(self.in_shape)} or {flat}, got {tuple(in_shape)}")

    def confined(self, activation: splitting.Activation) -> splitting.Activation:
        return splitting.Masked(activation, self.inside)

    @property
    def inside(self) -> Tensor:
        """Boolean, shaped to multiply states: false on the borders.

        It is derived from the configuration, and so is no buffer, which could be lost or left without values.
        """
        return _interior(self.size, self.kernel_size // 2, self.U.device)

    def source(self, x: Tensor) -> Tensor:
        field = self._source_field(self._input(x), self.U, self.b)
        return field.view(*self.size, len(self.U), len(x)).permute(3, 2, 0, 1)

    def _input(self, x: Tensor) -> Tensor:
        return flat_input(x, self.in_features, self.U, (self.in_channels, *self.image_size))

    def _source_field(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Ux + b as (height · width, channels, batch): one matrix product with the patches of every position."""
        k, (height, width) = self.kernel_size, self.size
        images = x.view(-1, self.in_channels, *self.image_size).permute(2, 3, 1, 0)
        padded = functional.pad(images, (0, 0, 0, 0, k - 1, k - 1, k - 1, k - 1))
        taps = [padded[i : i + height, j : j + width] for i in range(k) for j in range(k)]
        patches = torch.stack(taps, dim=2).view(height * width, self.in_channels * k**2, len(x))
        matrix = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
        return torch.baddbmm(bias[:, None], matrix.expand(len(patches), -1, -1), patches)

    def _magnitude(self, size: Tensor) -> Tensor:
        """|U| size + |b| in float64, as a field: what the rounding of the source is relative to."""
        weight, bias = self.U.detach().double().abs(), self.b.detach().double().abs()
        return self._source_field(size.double(), weight, bias)

    def source_rounding(self, size: Tensor) -> Tensor:
        terms = self.in_channels * self.kernel_size**2 + 8
        # Products below the normal numbers may vanish, whatever their size is relative to c.
        vanished = terms * torch.finfo(self.U.dtype).tiny * self.state_shape.numel() ** 0.5
        magnitude = self._magnitude(size).permute(2, 0, 1)
        return verified.rounding_factor(terms, self.U.dtype) * verified.vector_norm(magnitude) + vanished

    def input_norm(self, scale: Tensor) -> float:
        kernel = self._scaled_input(scale.double(), self.U.detach().double())
        rounding = symbols.symbol_rounding(self.kernel_size**2) * norms.frobenius(kernel.abs().sum((2, 3)))
        return verified.spectral_norm(symbols.stacked(Torus(*self.size).symbol(kernel)), perturbation=rounding)

    def input_norm_estimate(self, scale: Tensor) -> Tensor:
        symbol = symbols.as_complex(Torus(*self.size).symbol(self._scaled_input(scale.to(self.U), self.U)))
        gram = symbol.mH @ symbol if self.in_channels <= len(self.U) else symbol @ symbol.mH
        return torch.linalg.eigvalsh(gram)[:, -1].amax().clamp_min(0).sqrt()

    def _scaled_input(self, scale: Tensor, weight: Tensor) -> Tensor:
        """U with every input channel multiplied by the largest entry of `scale` (in_features,) in it."""
        largest = scale.abs().view(self.in_channels, -1).amax(1)
        return weight * largest[:, None, None]


class _Convolutional(ConvolutionalInput, StronglyMonotone):
    """The settings that both share."""

    channels: Any
    F_scale: Tensor | None
    Settings: ClassVar[type[Any]]

    def settings(self) -> ConvolutionalSettings:
        return type(self).Settings(
            kernel_size=self.kernel_size,
            m=self._fixed_m,
            learn_m=self.log_m is not None,
            weight_norm=self.F_scale is not None,
            channels=self.channels,
        )

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> Self:
        if len(in_shape) != 3:
            raise ConfigError(f"{cls.__name__} takes images (channels, height, width), got {tuple(in_shape)}")
        options = {name: getattr(settings, name) for name in ("kernel_size", "m", "learn_m", "weight_norm")}
        return cls(in_shape[0], settings.channels, (in_shape[1], in_shape[2]), **options)

    def extra_repr(self) -> str:
        return (
            f"in_channels={self.in_channels}, image_size={self.image_size}, kernel_size={self.kernel_size}, "
            f"m={float(self.m.detach()):.4g}"
        )


@dataclass(frozen=True)
class Conv2dSettings(ConvolutionalSettings):
    """Of Conv2d.

    Args:
        channels: Of the state.
    """

    channels: int = setting(Whole(1), None, help="channels of the state")


@PARAMETERIZATIONS.enrol("conv2d")
class Conv2d(_Convolutional):
    """z = σ(Wz + Ux + b) with W = (1 − m)I − FᵀF + Gᵀ − G for convolutions F, G, U; ‖U‖₂/m-Lipschitz.

    Images x are (batch, in_channels, height, width) or flattened, states (batch, channels, height + k − 1,
    width + k − 1), whose border is zero. Weights are initialised like those of torch.nn.Conv2d. Source: Winston &
    Kolter
    2020, arXiv 2006.08591.

    Args:
        in_channels: Of the images.
        channels: Of the states.
        image_size: The side of the images, or (height, width).
        kernel_size: k, odd.
        m: Strong monotonicity, > 0.
        learn_m: Whether m is learned, as exp(log_m) with `m` the initial value.
        weight_norm: Whether F_scale · F/‖F‖_F and G_scale · G/‖G‖_F are used for F and G, with learned scales that
            start at 1.

    Raises:
        InvalidArgument: One of them is out of range, or the kernel larger than the image.
    """

    Settings = Conv2dSettings

    @classmethod
    def example(cls) -> tuple[Conv2dSettings, torch.Size]:
        return Conv2dSettings(channels=2, m=0.5), torch.Size((1, 3, 4))

    def __init__(
        self,
        in_channels: int,
        channels: int,
        image_size: int | tuple[int, int],
        kernel_size: int = 3,
        m: float = 1.0,
        *,
        learn_m: bool = False,
        weight_norm: bool = False,
    ) -> None:
        super().__init__(in_channels, check_count("channels", channels), image_size, kernel_size)
        self.channels = channels
        self.state_shape = torch.Size((channels, *self.size))
        self.F, self.G = (nn.Parameter(_kernel(channels, channels, kernel_size)) for _ in range(2))
        self.F_scale, self.G_scale = (nn.Parameter(torch.ones(())) if weight_norm else None for _ in range(2))
        self._own_m(m, learn_m)

    def operator(self) -> splitting.ConvolutionOperator:
        F, G = _normalised(self.F, self.F_scale), _normalised(self.G, self.G_scale)
        # m is left to be proved from the kernel: FᵀF may add to it.
        return splitting.ConvolutionOperator(gram_skew(self.m, F, G), self.size)

    def correlations(self, scale: Tensor) -> Correlations:
        (kernel,) = self.operator().tensors
        inputs = self._scaled_input(scale.double(), self.U.detach().double())
        return Correlations(Torus(*self.size), kernel.detach().double(), inputs, self.inside)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, channels={self.channels}"


@dataclass(frozen=True)
class MultiscaleConv2dSettings(ConvolutionalSettings):
    """Of MultiscaleConv2d.

    Args:
        channels: Of every tier.
    """

    channels: tuple[int, ...] = setting(Several(Whole(1), least=1), None, help="channels of every tier")


@PARAMETERIZATIONS.enrol("multiscale-conv2d")
class MultiscaleConv2d(_Convolutional):
    """An equilibrium over tiers of decreasing resolution; W is block lower-bidiagonal, monotone like that of Conv2d.

    Tier i has images of size image_size/2^i, which must be whole, padded to tori k − 1 larger. A state is one flat
    tensor
    (batch, N), cut by `layout`. The input feeds the first tier. F and G have one kernel per tier, D one between
    neighbours, with stride 2. A single tier is a Conv2d. Source: Winston & Kolter 2020, arXiv 2006.08591, appendix D.

    Args:
        in_channels: Of the images.
        channels: Of every tier.
        image_size: The side of the images, or (height, width).
        kernel_size: k, odd.
        m: Strong monotonicity, > 0.
        learn_m: Whether m is learned, as exp(log_m) with `m` the initial value.
        weight_norm: Whether F, G and D are used with length and direction apart, with learned lengths that start at 1.

    Raises:
        InvalidArgument: One of them is out of range, or images cannot be halved so often.
    """

    Settings = MultiscaleConv2dSettings

    @classmethod
    def example(cls) -> tuple[MultiscaleConv2dSettings, torch.Size]:
        return MultiscaleConv2dSettings(channels=(1, 2), m=0.5), torch.Size((1, 4, 6))

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        image_size: int | tuple[int, int],
        kernel_size: int = 3,
        m: float = 1.0,
        *,
        learn_m: bool = False,
        weight_norm: bool = False,
    ) -> None:
        channels = _channels(channels)
        super().__init__(in_channels, channels[0], image_size, kernel_size)
        self.channels, tiers = channels, len(channels)
        smallest = 2 ** (tiers - 1)
        if any(side % smallest or side // smallest < 1 for side in self.image_size):
            raise InvalidArgument(
                f"`image_size` must be divisible by {smallest} for {tiers} tiers, got {self.image_size}; use fewer "
                "tiers or resize the images"
            )
        height, width = self.image_size
        self.layout = Layout(tuple(self._torus_side((height >> i, width >> i)) for i in range(tiers)), channels)
        if any(min(size) < kernel_size for size in self.layout.sizes):
            raise InvalidArgument(
                f"`kernel_size` is {kernel_size}, larger than the smallest tier {self.layout.sizes[-1]}"
            )
        self.state_shape = torch.Size((sum(self.layout.entries),))
        self.F, self.G = (nn.ParameterList(_kernel(c, c, kernel_size) for c in channels) for _ in range(2))
        self.D = nn.ParameterList(_kernel(below, above, kernel_size) for above, below in pairwise(channels))
        self.F_scale, self.G_scale = (nn.Parameter(torch.ones(tiers)) if weight_norm else None for _ in range(2))
        self.D_scale = nn.Parameter(torch.ones(tiers - 1)) if weight_norm else None
        self._own_m(m, learn_m)

    @property
    def inside(self) -> Tensor:
        return _interior_of_tiers(self.layout, self.kernel_size // 2, self.U.device)

    def operator(self) -> splitting.MultiscaleOperator:
        F, G, D = (
            [_normalised(kernel, None if scales is None else scales[i]) for i, kernel in enumerate(kernels)]
            for kernels, scales in ((self.F, self.F_scale), (self.G, self.G_scale), (self.D, self.D_scale))
        )
        kernels = [gram_skew(self.m, f, g) for f, g in zip(F, G, strict=True)]
        known: Callable[[], float] | None = None
        if not any(map(is_transformed, kernels)):  # where weights have no values, m is proved once they have
            known = promised_monotonicity(self.m, F, G)
        return splitting.MultiscaleOperator(kernels, F[1:], D, self.layout.sizes, strong_monotonicity=known)

    def source(self, x: Tensor) -> Tensor:
        field = self._source_field(self._input(x), self.U, self.b).view(*self.size, self.channels[0], len(x))
        rows = self.layout.field(0, field).flatten(0, 2)
        return functional.pad(rows, (0, 0, 0, self.state_shape[0] - len(rows))).mT

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, channels={self.channels}"


@constant
def _interior(size: tuple[int, int], border: int, device: torch.device) -> Tensor:
    """Boolean (height, width): true but on the border of a torus."""
    inside = torch.zeros(size, dtype=torch.bool, device=device)
    inside[border : size[0] - border, border : size[1] - border] = True
    return inside


@constant
def _interior_of_tiers(layout: Layout, border: int, device: torch.device) -> Tensor:
    """That of every tier, as a state."""
    masks = [_interior(size, border, device) for size in layout.sizes]
    images = [mask.expand(1, c, -1, -1) for mask, c in zip(masks, layout.channels, strict=True)]
    return layout.state(images)[0].contiguous()


def _kernel(out_channels: int, in_channels: int, size: int) -> Tensor:
    bound = (in_channels * size**2) ** -0.5
    return torch.empty(out_channels, in_channels, size, size).uniform_(-bound, bound)


def _normalised(kernel: Tensor, scale: Tensor | None) -> Tensor:
    """scale · kernel/‖kernel‖_F; the kernel itself without a scale."""
    if scale is None:
        return kernel
    return kernel * (scale / kernel.norm().clamp_min(torch.finfo(kernel.dtype).tiny))


def _odd(name: str, value: int) -> int:
    if check_count(name, value) % 2 == 0:
        raise InvalidArgument(f"`{name}` must be odd, so that a kernel has a centre, got {value}")
    return value


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return check_count(name, height), check_count(name, width)


def _channels(channels: Sequence[int]) -> tuple[int, ...]:
    if isinstance(channels, int) or not channels:
        raise InvalidArgument(f"`channels` must have one entry per tier, such as (16, 32, 60), got {channels!r}")
    return tuple(check_count("channels", c) for c in channels)
