"""Classifiers: images in [0, 1] → normalisation → equilibrium layer → linear head → logits."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import splitting
from mondeq.errors import ConfigError
from mondeq.features import AveragePool, Entries, Features
from mondeq.layer import EquilibriumLayer
from mondeq.parameterizations import Conv2d, Dense, DenseInput, LipschitzDense, MultiscaleConv2d, Parameterization
from splitting.errors import InvalidArgument, SplittingError

ACTIVATIONS: dict[str, type[splitting.Activation]] = {
    "relu": splitting.ReLU,
    "leaky-relu": splitting.LeakyReLU,
    "tanh": splitting.Tanh,
    "sigmoid": splitting.Sigmoid,
    "softplus": splitting.Softplus,
    "soft-threshold": splitting.SoftThreshold,
    "box": splitting.Box,
    "identity": splitting.Identity,
}
SOLVERS: dict[str, splitting.Solver] = {
    "peaceman-rachford": splitting.PeacemanRachford(),
    "douglas-rachford": splitting.DouglasRachford(),
    "forward-backward": splitting.ForwardBackward(),
    "forward-backward-forward": splitting.ForwardBackwardForward(),
    "anderson": splitting.Anderson(splitting.PeacemanRachford()),
}
KINDS = ("dense", "lipschitz", "conv", "multiscale")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a classifier's architecture; with the weights it is the whole model.

    kind: one of KINDS. image_shape: (channels, height, width). classes: number of logits. mean, std: per channel, of
    pixels in [0, 1]. features: n of Dense and LipschitzDense. channels: of Conv2d, one number, and MultiscaleConv2d,
    one per tier. kernel_size, weight_norm: of both. pool: side of the blocks that Conv2d's states are averaged over
    before the head. m, learn_m: of all but LipschitzDense. gamma, epsilon: of LipschitzDense, γ in logits per pixel
    unit (the normalisation is accounted for). activation, solver: names of ACTIVATIONS and SOLVERS. Raises ConfigError.
    """

    kind: str
    image_shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    features: int = 0
    channels: tuple[int, ...] = ()
    kernel_size: int = 3
    pool: int = 4
    weight_norm: bool = False
    m: float = 1.0
    learn_m: bool = False
    gamma: float = 1.0
    epsilon: float = 0.01
    activation: str = "relu"
    solver: str = "peaceman-rachford"
    tol: float = 1e-4
    max_steps: int = 300

    def __post_init__(self) -> None:
        _choose("kind", self.kind, KINDS)
        _choose("activation", self.activation, tuple(ACTIVATIONS))
        _choose("solver", self.solver, tuple(SOLVERS))
        channels = self.image_shape[0] if len(self.image_shape) == 3 else 0
        if channels < 1 or len(self.mean) != channels or len(self.std) != channels:
            raise ConfigError(
                f"`image_shape` must be (channels, height, width) with one `mean` and `std` per channel, got "
                f"{self.image_shape}, {len(self.mean)} means, {len(self.std)} stds"
            )
        if not all(math.isfinite(value) for value in self.mean):
            raise ConfigError(f"`mean` must be finite, got {self.mean}")
        if not all(0 < value < math.inf for value in self.std):
            raise ConfigError(f"`std` must be > 0 in every channel and finite, got {self.std}; is a channel constant?")
        convolutional = self.kind in ("conv", "multiscale")
        if convolutional and (not self.channels or (self.kind == "conv" and len(self.channels) != 1)):
            needed = "one number" if self.kind == "conv" else "one number per tier"
            raise ConfigError(f"`channels` must be {needed} for a {self.kind} model, got {self.channels or 'none'}")
        if isinstance(self.pool, bool) or not isinstance(self.pool, int) or self.pool < 1:
            raise ConfigError(f"`pool` must be an integer ≥ 1, got {self.pool!r}")
        if not isinstance(self.classes, int) or self.classes < 2:
            raise ConfigError(f"`classes` must be ≥ 2, a whole number, got {self.classes}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """A configuration read back from JSON. Unknown, missing and mistyped entries are errors."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown model setting(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise ConfigError(f"incomplete or mistyped model settings: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Normalise(nn.Module):
    """(x − mean)/std per channel, for images (batch, channels, height, width). mean, std: numbers, not weights."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self._mean, self._std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        mean, std = self.constants(images)
        return (images - mean) / std

    def constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """mean and std as (channels, 1, 1), of the dtype and on the device of `like`."""
        pair = torch.tensor([self._mean, self._std], dtype=like.dtype, device=like.device)[:, :, None, None]
        return pair[0], pair[1]


class Classifier(nn.Module):
    """Logits (batch, classes) of images (batch, channels, height, width) with values in [0, 1].

    The logits are linear in the equilibrium state: `head_weight` `features`(z) + `head_bias`. `config` rebuilds the
    architecture.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.normalise = Normalise(config.mean, config.std)
        self.layer = EquilibriumLayer(
            _parameterization(config),
            ACTIVATIONS[config.activation](),
            SOLVERS[config.solver],
            config.tol,
            config.max_steps,
        )
        self.features = _features(config, self.layer.linear)
        # LipschitzDense bounds its own read-out, so it owns it.
        self.head = None if config.kind == "lipschitz" else nn.Linear(self.features.count, config.classes)

    @property
    def linear(self) -> Parameterization:
        return self.layer.linear

    @property
    def head_weight(self) -> Tensor:
        """W_o (classes, features.count)"""
        return self.linear.W_o if isinstance(self.linear, LipschitzDense) else self._own_head.weight

    @property
    def head_bias(self) -> Tensor:
        """b_o (classes,)"""
        return self.linear.b_o if isinstance(self.linear, LipschitzDense) else self._own_head.bias

    @property
    def _own_head(self) -> nn.Linear:
        assert self.head is not None  # noqa: S101  only LipschitzDense comes without
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        return self.readout(self.layer(self.prepare(images)))

    def prepare(self, images: Tensor) -> Tensor:
        """What the equilibrium layer sees of `images`. Raises InvalidArgument for images of another shape."""
        if tuple(images.shape[1:]) != tuple(self.config.image_shape) or images.ndim != 4:
            expected = ", ".join(map(str, self.config.image_shape))
            raise InvalidArgument(f"`images` must have shape (batch, {expected}), got {tuple(images.shape)}")
        normalised: Tensor = self.normalise(images)
        return normalised

    def readout(self, z: Tensor) -> Tensor:
        """Logits of states z."""
        return functional.linear(self.features(z), self.head_weight, self.head_bias)

    def pixel_scale(self) -> Tensor:
        """d(prepare)/d(images): 1/std of every input entry, (in_features,), float64."""
        _, height, width = self.config.image_shape
        _, std = self.normalise.constants(self.head_weight.double())
        return (1 / std).expand(-1, height, width).flatten()


def _parameterization(config: ModelConfig) -> Parameterization:
    try:
        return _BUILDERS[config.kind](config)
    except SplittingError as error:
        raise ConfigError(str(error)) from None
    except RuntimeError as error:
        # Of all that torch may complain of here, the allocator is what is left.
        raise ConfigError(f"a model of this size does not fit in memory; reduce its width ({error})") from None


def _dense(config: ModelConfig) -> Parameterization:
    return Dense(torch.Size(config.image_shape).numel(), config.features, config.m, learn_m=config.learn_m)


def _lipschitz(config: ModelConfig) -> Parameterization:
    # γ is promised per unit of pixel, and a normalised pixel is 1/std of one.
    gamma, in_features = config.gamma * min(config.std), torch.Size(config.image_shape).numel()
    return LipschitzDense(in_features, config.features, config.classes, gamma, epsilon=config.epsilon)


def _conv(config: ModelConfig) -> Parameterization:
    return Conv2d(config.image_shape[0], config.channels[0], config.image_shape[1:], **_convolutional(config))


def _multiscale(config: ModelConfig) -> Parameterization:
    return MultiscaleConv2d(config.image_shape[0], config.channels, config.image_shape[1:], **_convolutional(config))


def _convolutional(config: ModelConfig) -> dict[str, Any]:
    names = ("kernel_size", "m", "learn_m", "weight_norm")
    return {name: getattr(config, name) for name in names}


_BUILDERS: dict[str, Callable[[ModelConfig], Parameterization]] = {
    "dense": _dense,
    "lipschitz": _lipschitz,
    "conv": _conv,
    "multiscale": _multiscale,
}


def _features(config: ModelConfig, linear: Parameterization) -> Features:
    if config.kind == "multiscale":
        assert isinstance(linear, MultiscaleConv2d)  # noqa: S101  what `_multiscale` makes
        return Entries(linear.state_shape, linear.state_shape.numel() - linear.layout.entries[-1])
    if config.kind == "conv":
        if config.pool > min(linear.state_shape[1:]):
            raise ConfigError(f"`pool` is {config.pool}, larger than a state of {tuple(linear.state_shape[1:])}")
        return AveragePool(linear.state_shape, config.pool)
    return Entries(linear.state_shape)


def _choose(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ConfigError(f"unknown {name} {value!r}; choose one of {', '.join(valid)}")


def exact_copy(model: Classifier) -> Classifier:
    """`model` with its weights in float64, solved tightly, in evaluation mode, not recording gradients.

    This is what is certified: the exact network is the one whose matrices are assembled from the weights in float64.
    The tolerance is tight enough for the solver's error to cost nothing of a radius that matters.
    """
    exact = copy.deepcopy(model).double().eval().requires_grad_(False)
    layer = exact.layer
    layer.monitor, layer.solver, layer.max_steps = None, splitting.Anderson(splitting.PeacemanRachford()), 5000
    # The states of convolutions are large, and their operators well conditioned: there 1e-7 costs a certificate less
    # than a millionth of its radius, and acceleration more than it saves.
    if not isinstance(layer.linear, DenseInput):
        layer.solver = splitting.PeacemanRachford()
    layer.tol = layer.backward_tol = 1e-10 if isinstance(layer.linear, DenseInput) else 1e-7
    return exact
