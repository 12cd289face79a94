"""Affine pieces of torch, x ↦ W x + b: dense ones, and convolutions with zero padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mondeq.errors import ConfigError
from mondeq.norms import Ball, Box, Norm, spectral_estimate
from mondeq.pieces.base import PIECES, Adapter, Logits, Piece, Proof, Unproved
from mondeq.settings import Settings, Truth, Whole, setting
from splitting import InvalidArgument, Torus, norms, symbols, verified


class LinearProof(Proof):
    """W x + b for float64 weights: constants by spectral norm, those of differences row by row.

    Args:
        weight: W, (rows, n).
        bias: b, (rows,); None for 0.
        norm: What inputs are measured in.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, norm: Norm) -> None:
        self.weight = weight.detach()
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        # In coordinates in which the norm of the inputs is the 2-norm.
        self.scaled = _scaled(self.weight, norm)
        # Each entry is right to a few roundings.
        self.error = 4 * verified.rounding_factor(1) * norms.frobenius(self.scaled)
        self.constant = verified.spectral_norm(self.scaled, perturbation=self.error)
        self.norm, self.out_shape = Norm(), torch.Size((len(weight),))

    def gaps(self) -> Tensor:
        return self._gaps

    @cached_property
    def _gaps(self) -> Tensor:
        # Row by row: all differences of a thousand classes at once would not fit in memory.
        sizes = torch.stack([verified.vector_norm(self.scaled - row) for row in self.scaled])
        return (sizes + 2 * self.error).fill_diagonal_(0)

    def enclose(self, ball: Ball) -> Ball:
        value = functional.linear(ball.centre, self.weight, self.bias)
        size = functional.linear(ball.centre.abs(), self.weight.abs(), self.bias.abs())
        own = verified.vector_norm(size) * self._rounding + self._vanished * len(self.weight)
        return Ball(value, scaled_radius(self.constant, ball.radius) + own, self.norm)

    def logits(self, ball: Ball) -> Logits:
        value = functional.linear(ball.centre, self.weight, self.bias)
        size = functional.linear(ball.centre.abs(), self.weight.abs(), self.bias.abs()).amax(1, keepdim=True)
        return Logits(value, self._gaps, ball.radius, 2 * self._rounding * size + 2 * self._vanished)

    def enclose_box(self, box: Box) -> Box:
        return linear_box(self.weight, self.bias, box)

    def least_gaps(self, box: Box, chosen: Tensor) -> Tensor:
        return linear_gaps(self.weight, self.bias, box, chosen)

    def rows(self) -> Tensor:
        return self.weight

    @property
    def _rounding(self) -> float:
        return verified.rounding_factor(self.weight.shape[1] + 5)

    @property
    def _vanished(self) -> float:
        """What products below the normal numbers may add."""
        return (self.weight.shape[1] + 5) * verified.UNDERFLOW


@dataclass(frozen=True)
class LinearSettings(Settings):
    """Of torch.nn.Linear.

    Args:
        features: The number of outputs.
        bias: Whether there is a bias.
    """

    features: int = setting(Whole(1))
    bias: bool = setting(Truth(), True)


@PIECES.enrol("linear")
class LinearPiece(Adapter):
    """torch.nn.Linear on flat samples: ‖W‖₂-Lipschitz."""

    Settings = LinearSettings
    wraps = nn.Linear

    @classmethod
    def example(cls) -> tuple[LinearSettings, torch.Size]:
        return LinearSettings(3), torch.Size((5,))

    def settings(self) -> LinearSettings:
        return LinearSettings(self.module.out_features, self.module.bias is not None)

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        if len(in_shape) != 1:
            raise ConfigError(f"a linear piece takes flat samples, got {tuple(in_shape)}; put a flatten before it")
        return nn.Linear(in_shape[0], settings.features, bias=settings.bias)

    def check(self) -> None:
        _check_weight(self.module, (self.module.out_features, self.module.in_features))

    @property
    def in_shape(self) -> torch.Size:  # type: ignore[override]  # it depends on the module
        return torch.Size((self.module.in_features,))

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        if tuple(in_shape) != (self.module.in_features,):
            raise InvalidArgument(f"takes samples of shape ({self.module.in_features},), got {tuple(in_shape)}")
        return torch.Size((self.module.out_features,))

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        return [LinearProof(self.module.weight, self.module.bias, norm)]

    def lipschitz_estimate(self, norm: Norm, in_shape: torch.Size) -> tuple[Tensor, Norm]:
        return spectral_estimate(_scaled(self.module.weight, norm)), Norm()

    def gap_estimates(self, norm: Norm, in_shape: torch.Size) -> Tensor:
        return row_distances(_scaled(self.module.weight, norm))

    def box_estimate(self, box: Box) -> Box:
        return linear_box(self.module.weight, self.module.bias, box)

    def least_gap_estimates(self, box: Box, chosen: Tensor) -> Tensor:
        return linear_gaps(self.module.weight, self.module.bias, box, chosen)


def linear_box(weight: Tensor, bias: Tensor | None, box: Box) -> Box:
    """The image of a box under x ↦ W x + b, rounded outward and differentiable.

    Args:
        weight: W, (rows, n), right to a rounding of each entry.
        bias: b, (rows,); None for 0.
        box: What contains x, (batch, n).

    Returns:
        What contains W x + b, (batch, rows).
    """
    moduli, offset = weight.abs(), weight.new_zeros(len(weight)) if bias is None else bias
    return box.affine(
        lambda x: functional.linear(x, weight), lambda x: functional.linear(x, moduli), offset, weight.shape[1]
    )


def linear_gaps(weight: Tensor, bias: Tensor | None, box: Box, chosen: Tensor) -> Tensor:
    """Lower bounds on y_chosen − y_j for y = W x + b and x in a box, rounded outward and differentiable.

    The difference is bounded as a row w_chosen − w_j of its own, so that what moves both logits costs nothing.

    Args:
        weight: W, (classes, n).
        bias: b, (classes,); None for 0.
        box: What contains x, (batch, n).
        chosen: A class for every sample, (batch,).

    Returns:
        (batch, classes).
    """
    offset = weight.new_zeros(len(weight)) if bias is None else bias
    # Class by class: the rows of all samples at once would not fit in memory.
    samples = [(chosen == label).nonzero()[:, 0] for label in range(len(weight))]
    found = [
        linear_box(weight[label] - weight, offset[label] - offset, Box(box.lower[own], box.upper[own])).lower
        for label, own in enumerate(samples)
    ]
    return torch.cat(found)[torch.cat(samples).argsort()]


def row_distances(matrix: Tensor) -> Tensor:
    """The distances of all pairs of rows, differentiable.

    Args:
        matrix: (rows, n).

    Returns:
        (rows, rows).
    """
    # The diagonal is 0; the tiny term keeps its square root differentiable.
    return (matrix[:, None] - matrix).square().sum(-1).add(1e-30).sqrt()


def _scaled(weight: Tensor, norm: Norm) -> Tensor:
    """`weight` in coordinates in which the norm of the inputs is the 2-norm."""
    return weight if norm.root is None else weight / norm.root.flatten().to(weight)


@PIECES.enrol("normalised-linear")
class NormalisedLinear(Piece):
    """W x + b with rows of W of length 1: every difference of two logits is ‖w_i − w_j‖ ≤ 2-Lipschitz.

    Logits of a 1-Lipschitz trunk cannot gain by the length of rows, which would only have to be certified away.

    Args:
        in_features: Entries of x.
        out_features: Entries of the output.
    """

    Settings = LinearSettings

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(out_features))

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> NormalisedLinear:
        if len(in_shape) != 1 or not settings.bias:
            raise ConfigError(f"a normalised-linear piece has a bias and takes flat samples, got {tuple(in_shape)}")
        return cls(in_shape[0], settings.features)

    @classmethod
    def example(cls) -> tuple[LinearSettings, torch.Size]:
        return LinearSettings(3), torch.Size((5,))

    def settings(self) -> LinearSettings:
        return LinearSettings(len(self.weight))

    @property
    def rows(self) -> Tensor:
        """The rows as they are used, (out_features, in_features)."""
        return functional.normalize(self.weight, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of inputs.

        Args:
            x: (batch, in_features).

        Returns:
            (batch, out_features).
        """
        return functional.linear(x, self.rows, self.bias)

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        if tuple(in_shape) != (self.weight.shape[1],):
            raise InvalidArgument(f"takes samples of shape ({self.weight.shape[1]},), got {tuple(in_shape)}")
        return torch.Size((len(self.weight),))

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        # The exact network is the one whose rows are normalised in float64.
        return [LinearProof(self.rows, self.bias, norm)]

    def lipschitz_estimate(self, norm: Norm, in_shape: torch.Size) -> tuple[Tensor, Norm]:
        return spectral_estimate(_scaled(self.rows, norm)), Norm()

    def gap_estimates(self, norm: Norm, in_shape: torch.Size) -> Tensor:
        return row_distances(_scaled(self.rows, norm))

    def box_estimate(self, box: Box) -> Box:
        return linear_box(self.rows, self.bias, box)

    def least_gap_estimates(self, box: Box, chosen: Tensor) -> Tensor:
        return linear_gaps(self.rows, self.bias, box, chosen)


class _ConvolutionProof(Proof):
    """A zero-padded correlation is a part of the circular one on a torus k − 1 larger, whatever its stride."""

    def __init__(self, module: nn.Conv2d, norm: Norm, in_shape: torch.Size, out_shape: torch.Size) -> None:
        self.module, self.norm, self.out_shape = module, Norm(), out_shape
        kernel = module.weight.detach()
        sides = [side + k - 1 for side, k in zip(in_shape[1:], kernel.shape[2:], strict=True)]
        rounding = symbols.symbol_rounding(kernel[0, 0].numel()) * norms.frobenius(kernel.abs().sum((2, 3)))
        symbol = symbols.stacked(Torus(*sides).symbol(_odd(kernel)))
        gain = verified.spectral_norm(symbol, perturbation=rounding)
        self.constant = verified.round_up(gain * norm.euclidean())

    def enclose(self, ball: Ball) -> Ball:
        kernel, bias = self.module.weight.detach(), self.module.bias
        bias = kernel.new_zeros(len(kernel)) if bias is None else bias.detach()
        options: dict[str, Any] = {"stride": self.module.stride, "padding": self.module.padding}
        value = functional.conv2d(ball.centre, kernel, bias, **options)
        size = functional.conv2d(ball.centre.abs(), kernel.abs(), bias.abs(), **options)
        terms = kernel[0].numel() + 5
        own = (
            verified.rounding_factor(terms) * verified.vector_norm(size)
            + terms * verified.UNDERFLOW * self.out_shape.numel()
        )
        return Ball(value, scaled_radius(self.constant, ball.radius) + own, self.norm)

    def enclose_box(self, box: Box) -> Box:
        return _convolution_box(self.module, box)


@dataclass(frozen=True)
class ConvolutionSettings(Settings):
    """Of torch.nn.Conv2d with zero padding, without groups and dilation.

    Args:
        channels: Of the output.
        kernel_size: The side of the kernels.
        stride: Pixels from one output to the next.
        padding: Rows and columns of zeros on every side.
        bias: Whether there is a bias.
    """

    channels: int = setting(Whole(1))
    kernel_size: int = setting(Whole(1), 3)
    stride: int = setting(Whole(1), 1)
    padding: int = setting(Whole(0), 0)
    bias: bool = setting(Truth(), True)


@PIECES.enrol("conv2d")
class ConvolutionPiece(Adapter):
    """torch.nn.Conv2d with zero padding: its constant is that of the circular convolution on a larger torus."""

    Settings = ConvolutionSettings
    wraps = nn.Conv2d

    @classmethod
    def example(cls) -> tuple[ConvolutionSettings, torch.Size]:
        return ConvolutionSettings(3, padding=1, stride=2), torch.Size((2, 5, 6))

    def settings(self) -> ConvolutionSettings:
        module = self.module
        return ConvolutionSettings(
            module.out_channels, module.kernel_size[0], module.stride[0], module.padding[0], module.bias is not None
        )

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        if len(in_shape) != 3:
            raise ConfigError(f"a conv2d piece takes images (channels, height, width), got {tuple(in_shape)}")
        return nn.Conv2d(
            in_shape[0],
            settings.channels,
            settings.kernel_size,
            stride=settings.stride,
            padding=settings.padding,
            bias=settings.bias,
        )

    def check(self) -> None:
        module = self.module
        _check_weight(module, (module.out_channels, module.in_channels // module.groups, *module.kernel_size))

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        module = self.module
        if len(in_shape) != 3 or in_shape[0] != module.in_channels:
            raise InvalidArgument(f"takes images of {module.in_channels} channels, got {tuple(in_shape)}")
        sample, kernel = (torch.empty(shape, device="meta") for shape in ((1, *in_shape), module.weight.shape))
        options = module.stride, module.padding, module.dilation, module.groups
        try:
            return functional.conv2d(sample, kernel, None, *options).shape[1:]
        except RuntimeError:
            raise InvalidArgument(
                f"has kernels of {tuple(kernel.shape[2:])}, too large for {tuple(in_shape)}"
            ) from None

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        module = self.module
        plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
        if not plain or isinstance(module.padding, str):
            raise Unproved("is a Conv2d with groups, dilation or another padding than so many zeros; nothing is proved")
        return [_ConvolutionProof(module, norm, in_shape, self.out_shape(in_shape))]

    def box_estimate(self, box: Box) -> Box:
        return _convolution_box(self.module, box)


def _convolution_box(module: Any, box: Box) -> Box:
    """The image of a box under a correlation with zero padding."""
    kernel, moduli = module.weight, module.weight.abs()
    bias = kernel.new_zeros(len(kernel)) if module.bias is None else module.bias
    options: dict[str, Any] = {"stride": module.stride, "padding": module.padding}
    return box.affine(
        lambda x: functional.conv2d(x, kernel, **options),
        lambda x: functional.conv2d(x, moduli, **options),
        bias[:, None, None],
        kernel[0].numel(),
    )


def _check_weight(module: Any, shape: tuple[int, ...]) -> None:
    if tuple(module.weight.shape) != shape:
        raise InvalidArgument(f"a {type(module).__name__} says {shape} and has a weight {tuple(module.weight.shape)}")


def _odd(kernel: Tensor) -> Tensor:
    """`kernel` with zeros that make its sides odd."""
    return functional.pad(kernel, (0, 1 - kernel.shape[3] % 2, 0, 1 - kernel.shape[2] % 2))


def scaled_radius(constant: float, radius: Tensor) -> Tensor:
    """constant·radius rounded upwards, 0 where the radius is 0, also for a constant of inf.

    Args:
        constant: ≥ 0.
        radius: (batch,) float64, ≥ 0.

    Returns:
        The product, (batch,).
    """
    return torch.where(radius != 0, constant * radius * (1 + 1e-12) + verified.UNDERFLOW, 0.0)
