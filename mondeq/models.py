"""Classifiers: images in [0, 1] → normalisation → equilibrium layer → linear head → logits."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import splitting
from mondeq.errors import ConfigError
from mondeq.layer import EquilibriumLayer
from mondeq.parameterizations import Dense, LipschitzDense, Parameterization
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
KINDS = ("dense", "lipschitz")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a classifier's architecture; with the weights it is the whole model.

    kind: one of KINDS. image_shape: (channels, height, width). classes: number of logits. features: n. m, learn_m: of
    Dense. gamma, epsilon: of LipschitzDense, γ in logits per pixel unit (the normalisation is accounted for). mean,
    std: per channel, of pixels in [0, 1]. activation, solver: names of ACTIVATIONS and SOLVERS. Raises ConfigError.
    """

    kind: str
    image_shape: tuple[int, int, int]
    classes: int
    features: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
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

    The logits are linear in the equilibrium state: `head_weight` z + `head_bias`. `config` rebuilds the architecture.
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
        # LipschitzDense bounds its own read-out, so it owns it.
        self.head = None if config.kind == "lipschitz" else nn.Linear(config.features, config.classes)

    @property
    def linear(self) -> Parameterization:
        return self.layer.linear

    @property
    def head_weight(self) -> Tensor:
        """W_o (classes, n)"""
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
        return functional.linear(z.flatten(1), self.head_weight, self.head_bias)

    def pixel_scale(self) -> Tensor:
        """d(prepare)/d(images): 1/std of every input entry, (in_features,), float64."""
        _, height, width = self.config.image_shape
        _, std = self.normalise.constants(self.head_weight.double())
        return (1 / std).expand(-1, height, width).flatten()


def _parameterization(config: ModelConfig) -> Parameterization:
    in_features = torch.Size(config.image_shape).numel()
    try:
        if config.kind == "dense":
            return Dense(in_features, config.features, config.m, learn_m=config.learn_m)
        # γ is promised per unit of pixel, and a normalised pixel is 1/std of one.
        gamma = config.gamma * min(config.std)
        return LipschitzDense(in_features, config.features, config.classes, gamma, epsilon=config.epsilon)
    except SplittingError as error:
        raise ConfigError(str(error)) from None
    except RuntimeError as error:
        # Of all that torch may complain of here, the allocator is what is left.
        raise ConfigError(f"a model of this size does not fit in memory; reduce `features` ({error})") from None


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
    layer.monitor, layer.solver = None, splitting.Anderson(splitting.PeacemanRachford())
    layer.tol, layer.backward_tol, layer.max_steps = 1e-10, 1e-10, 5000
    return exact
