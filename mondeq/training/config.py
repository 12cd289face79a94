"""Everything that decides a training run besides the model: data, loss, optimiser, schedule, seed."""

from __future__ import annotations

import dataclasses
import math
import os
import reprlib
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np

from mondeq.errors import ConfigError

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("one-cycle", "step", "constant")


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. Raises ConfigError for a value outside its range.

    data: a data set's name. epochs, batch_size: batch_size is over all processes together. optimizer, lr,
    weight_decay: lr is the peak of the schedule. schedule: "one-cycle" rises over the first 30 % and falls to 0 by
    half cosines; "step" divides by 10 every `decay_every` epochs. clip: largest gradient norm, 0 for none.
    radius: the ℓ2 radius (pixel units) the loss asks margins for, 0 for plain cross-entropy; ramp: share of the steps
    over which it grows from 0. logit_scale: multiplies logits before the cross-entropy, so that Lipschitz-bounded
    logits can express confidence. shift, flip: augmentation, images moved by up to so many pixels (pad and crop) and
    mirrored left to right at random.
    """

    data: str
    epochs: int = 20
    batch_size: int = 256
    optimizer: str = "adam"
    lr: float = 4e-3
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    decay_every: int = 10
    clip: float = 0.0
    radius: float = 0.0
    ramp: float = 0.5
    logit_scale: float = 1.0
    shift: int = 0
    flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _require("data", self.data, is_file_name(self.data), "the name of a data set")
        _require("flip", self.flip, isinstance(self.flip, bool | np.bool_), "true or false")
        for name, names in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            value = getattr(self, name)
            _require(name, value, isinstance(value, str) and value in names, f"one of {', '.join(names)}")
        for name in ("epochs", "batch_size", "decay_every"):
            self._normalise(name, _whole(name, getattr(self, name), 1))
        for name in ("shift", "seed"):
            self._normalise(name, _whole(name, getattr(self, name), 0))
        for name in ("lr", "weight_decay", "clip", "radius", "ramp", "logit_scale"):
            self._normalise(name, _real(name, getattr(self, name)))
        self._normalise("flip", bool(self.flip))
        for name in ("lr", "logit_scale"):
            _require(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "a finite number > 0")
        for name in ("weight_decay", "clip", "radius"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "a finite number ≥ 0")
        _require("ramp", self.ramp, 0 <= self.ramp <= 1, "in [0, 1]")

    def _normalise(self, name: str, value: object) -> None:
        """Python's own numbers, whichever kind was given: JSON knows no others."""
        object.__setattr__(self, name, value)

    def check_images(self, height: int, width: int) -> None:
        """Raises ConfigError unless `shift` leaves something of images of this size to be seen."""
        _require("shift", self.shift, self.shift < min(height, width), f"less than the side of images {height}×{width}")

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of the step'th step (from 0): a function of nothing else, so that runs resume exactly."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            return float(self.lr * 0.1 ** (step // steps_per_epoch // self.decay_every))
        total = self.epochs * steps_per_epoch
        peak = 0.3 * total
        if step < peak:
            return self.lr * (0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2)
        return self.lr * (1 + math.cos(math.pi * (step - peak) / (total - peak))) / 2

    def ramped_radius(self, step: int, steps_per_epoch: int) -> float:
        """The radius the loss asks for at the step'th step."""
        rise = self.ramp * self.epochs * steps_per_epoch
        return self.radius if step >= rise else self.radius * step / rise

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """A configuration read back from JSON. Unknown, missing and mistyped entries are errors."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown training setting(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        if "data" not in values:
            raise ConfigError("the training setting `data` is missing")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def is_file_name(value: object) -> TypeGuard[str]:
    """Whether a path can be made of `value`: not of NUL, nor of half a surrogate pair."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _whole(name: str, value: object, least: int) -> int:
    """`value`, Python's or numpy's whole number, as an int that torch takes too."""
    needed = f"an integer ≥ {least} and < 2^63"
    _require(name, value, isinstance(value, Integral) and not isinstance(value, bool), needed)
    _require(name, value, least <= value < 2**63, needed)  # type: ignore[operator]
    return int(value)  # type: ignore[call-overload]


def _real(name: str, value: object) -> float:
    """`value`, Python's or numpy's real number, as a float; inf for one too large to be one."""
    _require(name, value, isinstance(value, Real) and not isinstance(value, bool), "a number")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf


def _require(name: str, value: object, holds: bool, needed: str) -> None:
    if not holds:
        raise ConfigError(f"`{name}` must be {needed}, got {reprlib.repr(value)}")
