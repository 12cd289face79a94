"""Classifiers: images in [0, 1] → normalisation → equilibrium layer → linear head → logits."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import splitting
from mondeq import arguments, scrutiny
from mondeq.errors import ConfigError
from mondeq.features import AveragePool, Entries, Features
from mondeq.layer import EquilibriumLayer
from mondeq.model_config import ACTIVATIONS, KINDS, SOLVERS, ModelConfig
from mondeq.parameterizations import Conv2d, Dense, DenseInput, LipschitzDense, MultiscaleConv2d, Parameterization
from splitting.errors import InvalidArgument, InvalidType, SplittingError

__all__ = [
    "ACTIVATIONS",
    "KINDS",
    "SOLVERS",
    "Classifier",
    "ModelConfig",
    "Normalise",
    "check_computes",
    "check_exact",
    "describe",
    "detached_copy",
    "exact_copy",
    "fingerprint",
]


class Normalise(nn.Module):
    """(x − mean)/std per channel, for images (batch, channels, height, width). mean, std: numbers, not weights.

    Raises InvalidArgument for images that are not floating point.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self._mean, self._std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        mean, std = self.constants(images)
        return (images - mean) / std

    def constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """mean and std as (channels, 1, 1), of the dtype and on the device of `like`."""
        arguments.check_floating(like)
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
            config.make_activation(),
            SOLVERS[config.solver],
            config.tol,
            config.max_steps,
            backward_tol=config.backward_tol,
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
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head_weight.device

    @property
    def _own_head(self) -> nn.Linear:
        assert self.head is not None  # noqa: S101  only LipschitzDense comes without
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        return self.readout(self.layer(self.prepare(images)))

    def prepare(self, images: Tensor) -> Tensor:
        """What the equilibrium layer sees of `images`.

        Raises InvalidArgument for images that are not floating point or of another shape, InvalidType for images of
        another dtype or device than the weights.
        """
        arguments.check_images(self.config, images)
        normalised: Tensor = self.normalise(images)
        weight = self.head_weight
        if images.dtype != weight.dtype:
            raise InvalidType(f"`images` are {images.dtype}, the weights {weight.dtype}; use images.to({weight.dtype})")
        if images.device != self.device:
            raise InvalidType(f"`images` are on {images.device}, the weights on {self.device}; move one of them")
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


# What may differ from a fresh classifier while model(x) is still the network that is certified: how it is solved, σ
# (which is checked by itself), and numbers that the operator, and so every bound, is computed from.
_SOLVING = ("solver", "tol", "max_steps", "backward_tol", "on_failure", "monitor")
_FREE = frozenset(
    {"model.config", "model.layer.activation"}
    | {f"model.layer.{name}" for name in _SOLVING}
    | {f"model.layer.linear.{name}" for name in ("gamma", "epsilon", "_fixed_m")}
)


def check_computes(model: Classifier) -> None:
    """Raise InvalidType or InvalidArgument, with the reason, unless model(x) is certainly
    `head_weight` `features`(z) + `head_bias` with z the equilibrium of `layer` at (x − mean)/std.

    A parameterization and an activation of the user's own are taken at their author's word for operator and source,
    and for σ beyond what a grid shows.
    """
    _require_classifier(model)
    scrutiny.check_untouched(model)
    linear, fresh = model.linear, _fresh(model.config)
    own = scrutiny.is_own(linear)
    scrutiny.check_same(model, fresh, _FREE if own else _FREE | {"model.layer.linear"})
    if (linear.state_shape, linear.in_features) != (fresh.linear.state_shape, fresh.linear.in_features):
        raise InvalidArgument(
            f"`model.linear` has {linear.in_features} inputs and states {tuple(linear.state_shape)}; the configuration "
            f"of the model needs {fresh.linear.in_features} and {tuple(fresh.linear.state_shape)}"
        )
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if weight.is_meta or weight.is_complex():
            raise InvalidType(f"`model` holds no real numbers in {name}: it is {weight.dtype} on {weight.device}")
    scrutiny.check_activation(model.layer.activation, linear.state_shape)


def describe(model: Classifier) -> ModelConfig:
    """The configuration of which `Classifier` makes this network, weights aside: of what it is, however it came to be.

    `on_failure` and `monitor` of its layer are a matter of the program, not of the network. Raises InvalidType or
    InvalidArgument, with the reason, where no configuration makes it.
    """
    _require_classifier(model)
    scrutiny.check_untouched(model)
    layer = model.layer
    name, parameters = _activation_of(layer.activation)
    solvers = [key for key, solver in SOLVERS.items() if solver == layer.solver]
    if not solvers:
        raise InvalidArgument(f"`model.layer.solver` is {layer.solver}; a configuration knows {', '.join(SOLVERS)}")
    config = dataclasses.replace(
        model.config,
        activation=name,
        activation_parameters=parameters,
        solver=solvers[0],
        tol=layer.tol,
        max_steps=layer.max_steps,
        backward_tol=None if layer.backward_tol == layer.tol else layer.backward_tol,
    )
    free = {"model.config", "model.layer.activation", *(f"model.layer.{name}" for name in _SOLVING)}
    scrutiny.check_same(model, _fresh(config), free)
    return config


def _require_classifier(model: Classifier) -> None:
    if type(model) is not Classifier:
        inner = next((n for n in ("module", "_orig_mod") if isinstance(getattr(model, n, None), Classifier)), None)
        remedy = f"pass its `.{inner}`" if inner else "it may compute something else"
        raise InvalidType(f"`model` must be a Classifier, got {type(model).__name__}: {remedy}")
    layer = model._modules.get("layer")
    if type(layer) is not EquilibriumLayer or not isinstance(layer._modules.get("linear"), Parameterization):
        raise InvalidType(f"`model.layer` must be an EquilibriumLayer, got {type(layer).__name__}")
    if type(model.config) is not ModelConfig:
        raise InvalidType(f"`model.config` must be a ModelConfig, got {type(model.config).__name__}")


def _fresh(config: ModelConfig) -> Classifier:
    """What `config` makes, without memory behind its weights."""
    with torch.device("meta"):
        return Classifier(config)


def _activation_of(activation: splitting.Activation) -> tuple[str, tuple[float, ...]]:
    """Its name and parameters in a configuration: none where they are its defaults."""
    for name, kind in ACTIVATIONS.items():
        if type(activation) is kind:
            given = tuple(getattr(activation, f.name) for f in dataclasses.fields(kind))  # type: ignore[arg-type]
            return name, () if activation == kind() else given
    raise InvalidArgument(f"`model.layer.activation` is {activation}; a configuration knows {', '.join(ACTIVATIONS)}")


def fingerprint(model: Classifier) -> str:
    """Of all that the constants of `model` depend on: its weights and normalisation, in float32 or float64 alike."""
    facts = model.config.image_shape, model.config.mean, model.config.std, model.features
    return scrutiny.fingerprint(model.linear, (model.head_weight, model.head_bias), *facts)


def check_exact(exact: Classifier) -> None:
    """Raise InvalidType unless `exact` computes in float64, as everything that is proved does."""
    if exact.head_weight.dtype != torch.float64:
        raise InvalidType(f"`exact` must be a float64 classifier, got {exact.head_weight.dtype}; use exact_copy(model)")


def detached_copy(model: Classifier) -> Classifier:
    """`model` in evaluation mode on copies of its weights, which record no gradients, without its monitor.

    Raises InvalidType or InvalidArgument where model(x) may not be what a Classifier computes (`check_computes`).
    """
    check_computes(model)
    # Inference tensors of the caller must not reach computations outside inference mode.
    with torch.inference_mode(False), torch.no_grad():
        twin, layer = _fresh(model.config), model.layer
        twin.layer.linear, twin.head = copy.deepcopy(layer.linear), copy.deepcopy(model.head)
        tensors = (t.detach().clone() for t in layer.activation.tensors)
        twin.layer.activation = layer.activation.rebind(*tensors)
        for name in _SOLVING:
            setattr(twin.layer, name, getattr(layer, name))
        twin.layer.monitor = None
    return twin.eval().requires_grad_(False)


def exact_copy(model: Classifier) -> Classifier:
    """`model` with its weights in float64, solved tightly, in evaluation mode, not recording gradients.

    This is what is certified: the exact network is the one whose matrices are assembled from the weights in float64.
    The tolerance is tight enough for the solver's error to cost nothing of a radius that matters. Raises what
    `check_computes` does: a network that may compute something else than its weights say is not certified.
    """
    exact = detached_copy(model)
    with torch.inference_mode(False), torch.no_grad():
        exact = exact.double()
        layer = exact.layer
        layer.activation = layer.activation.rebind(*(t.double() for t in layer.activation.tensors))
    layer.solver, layer.max_steps = splitting.Anderson(splitting.PeacemanRachford()), 5000
    # The states of convolutions are large, and their operators well conditioned: there 1e-7 costs a certificate less
    # than a millionth of its radius, and acceleration more than it saves.
    if not isinstance(layer.linear, DenseInput):
        layer.solver = splitting.PeacemanRachford()
    layer.tol = layer.backward_tol = 1e-10 if isinstance(layer.linear, DenseInput) else 1e-7
    return exact
