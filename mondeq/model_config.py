"""The configuration of a classifier: plain values that JSON can hold, each checked before anything is made of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import splitting
from mondeq import values
from mondeq.errors import ConfigError
from splitting.errors import SplittingError

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
T = TypeVar("T")
KINDS = ("dense", "lipschitz", "conv", "multiscale")

# Sizes are those of tensors, and torch counts entries in int64.
_LARGEST = 2**63 - 1
# A weight of more entries than this would take exabytes.
_MOST_ENTRIES = 2**57
# float32 holds these and their reciprocals.
_LEAST_STD, _MOST_STD, _MOST_MEAN = 2.0**-126, 2.0**126, 2.0**127


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a classifier's architecture; with the weights it is the whole model.

    kind: one of KINDS. image_shape: (channels, height, width). classes: number of logits. mean, std: per channel, of
    pixels in [0, 1]. features: n of Dense and LipschitzDense. channels: of Conv2d, one number, and MultiscaleConv2d,
    one per tier. kernel_size, weight_norm: of both. pool: side of the blocks that Conv2d's states are averaged over
    before the head. m, learn_m: of all but LipschitzDense. gamma, epsilon: of LipschitzDense, γ in logits per pixel
    unit (the normalisation is accounted for). activation, solver: names of ACTIVATIONS and SOLVERS.
    activation_parameters: of the activation, in its own order; none for its defaults. tol, max_steps, backward_tol: of
    the solves, backward_tol None for tol. class_names: one per class, or none where they are not known.
    Numbers of numpy and torch become Python's, arrays and lists tuples. Raises ConfigError.
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
    activation_parameters: tuple[float, ...] = ()
    backward_tol: float | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, valid in (("kind", KINDS), ("activation", tuple(ACTIVATIONS)), ("solver", tuple(SOLVERS))):
            self._choose(name, valid)
        dense = self.kind in ("dense", "lipschitz")
        for name, least in (("features", int(dense)), ("kernel_size", 1), ("pool", 1), ("max_steps", 1)):
            self._keep(name, self._count(name, getattr(self, name), least))
        for name in ("m", "gamma", "epsilon", "tol"):
            self._keep(name, self._positive(name, getattr(self, name)))
        if self.backward_tol is not None:
            self._keep("backward_tol", self._positive("backward_tol", self.backward_tol))
        for name in ("weight_norm", "learn_m"):
            self._keep(name, _require(name, getattr(self, name), values.truth(getattr(self, name)), "true or false"))
        self._check_classes()
        self._check_images()
        self._check_channels()
        self._check_size()
        self._keep("activation_parameters", self._reals("activation_parameters"))
        self.make_activation()

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> ModelConfig:
        """A configuration read back from JSON. Unknown, missing and mistyped entries are errors."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ConfigError(f"unknown model setting(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        try:
            return cls(**settings)
        except TypeError as error:
            raise ConfigError(f"incomplete or mistyped model settings: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def make_activation(self) -> splitting.Activation:
        """The activation. Raises ConfigError for parameters that are not its own."""
        kind = ACTIVATIONS[self.activation]
        try:
            return kind(*self.activation_parameters)
        except (SplittingError, TypeError) as error:
            raise ConfigError(
                f"`activation_parameters` {self.activation_parameters} do not fit {kind.__name__}: {error}"
            ) from None

    def _check_classes(self) -> None:
        classes = values.whole(self.classes)
        if classes is None or not 2 <= classes <= _LARGEST:
            raise ConfigError(f"`classes` must be ≥ 2, a whole number, got {values.shown(self.classes)}")
        names = values.entries(self.class_names)
        if names is None or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
            raise ConfigError(f"`class_names` must be different names, got {values.shown(self.class_names)}")
        if names and len(names) != classes:
            raise ConfigError(f"`class_names` must name all {classes} classes or none, got {len(names)}")
        self._keep("classes", classes)
        self._keep("class_names", tuple(str(name) for name in names))

    def _check_images(self) -> None:
        shape, mean, std = values.entries(self.image_shape), values.entries(self.mean), values.entries(self.std)
        fits = shape is not None and len(shape) == 3 and all((values.whole(side) or 0) >= 1 for side in shape)
        if not fits or mean is None or std is None or not len(mean) == len(std) == values.whole((shape or (0,))[0]):
            raise ConfigError(
                f"`image_shape` must be (channels, height, width) with one `mean` and `std` per channel, got "
                f"{values.shown(self.image_shape)}, {_counted(mean, 'mean')}, {_counted(std, 'std')}"
            )
        self._keep("image_shape", tuple(self._count("image_shape", side, 1) for side in shape or ()))
        self._keep("mean", self._reals("mean"))
        self._keep("std", self._reals("std"))
        if not all(abs(value) <= _MOST_MEAN for value in self.mean):
            raise ConfigError(f"`mean` must be of a size that float32 holds, got {values.shown(self.mean)}")
        if not all(_LEAST_STD <= value <= _MOST_STD for value in self.std):
            raise ConfigError(
                f"`std` must be > 0 in every channel, and like its reciprocal of a size that float32 holds, got "
                f"{values.shown(self.std)}; is a channel constant?"
            )

    def _check_channels(self) -> None:
        channels = values.entries(self.channels)
        wrong = channels is None or (self.kind == "conv" and len(channels) != 1)
        if wrong or (self.kind == "multiscale" and not channels):
            needed = "one number per tier" if self.kind == "multiscale" else "one number"
            got = values.shown(self.channels) if channels is None or channels else "none"
            raise ConfigError(f"`channels` must be {needed} for a {self.kind} model, got {got}")
        self._keep("channels", tuple(self._count("channels", value, 1) for value in channels or ()))

    def _check_size(self) -> None:
        """Refuse tensors that no machine can hold, before one is asked for."""
        pixels = math.prod(self.image_shape)
        if self.kind in ("dense", "lipschitz"):
            largest = self.features * max(self.features, pixels, self.classes)
        else:
            widest = max(self.channels)
            _, height, width = self.image_shape
            state = widest * (height + self.kernel_size) * (width + self.kernel_size)
            largest = max(state * self.classes, widest * max(widest, self.image_shape[0]) * self.kernel_size**2)
        if largest > _MOST_ENTRIES:
            raise ConfigError(f"a {self.kind} model of this size fits no memory (2^{largest.bit_length()} weights)")

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _choose(self, name: str, valid: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in valid:
            raise ConfigError(f"unknown {name} {values.shown(value)}; choose one of {', '.join(valid)}")
        self._keep(name, str(value))

    @staticmethod
    def _count(name: str, value: object, least: int) -> int:
        number = values.whole(value)
        inside = number is not None and least <= number <= _LARGEST
        return _require(name, value, number if inside else None, f"an integer ≥ {least}")

    @staticmethod
    def _positive(name: str, value: object) -> float:
        number = values.real(value)
        inside = number is not None and 0 < number < math.inf
        return _require(name, value, number if inside else None, "a finite number > 0")

    def _reals(self, name: str) -> tuple[float, ...]:
        """The field `name` as a tuple of finite floats."""
        given = values.entries(getattr(self, name))
        numbers = [values.real(value) for value in given or ()]
        finite = tuple(number for number in numbers if number is not None and math.isfinite(number))
        complete = given is not None and len(finite) == len(given)
        return _require(name, getattr(self, name), finite if complete else None, "finite numbers")


def _require(name: str, given: object, value: T | None, needed: str) -> T:
    """`value`; where it is None, the error that `given` is not what is `needed`."""
    if value is None:
        raise ConfigError(f"`{name}` must be {needed}, got {values.shown(given)}")
    return value


def _counted(entries: tuple[Any, ...] | None, name: str) -> str:
    return f"no sequence of {name}s" if entries is None else f"{len(entries)} {name}s"
