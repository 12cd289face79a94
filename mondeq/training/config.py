"""Everything that decides a training run besides the model: data, loss, optimiser, schedule, seed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

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
        _require("data", self.data, isinstance(self.data, str), "the name of a data set")
        for name in ("epochs", "batch_size", "decay_every"):
            value = getattr(self, name)
            _require(name, value, isinstance(value, int) and value >= 1, "an integer ≥ 1")
        for name in ("shift", "seed"):
            value = getattr(self, name)
            _require(name, value, isinstance(value, int) and value >= 0, "an integer ≥ 0")
        for name in ("lr", "logit_scale"):
            _require(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "a finite number > 0")
        for name in ("weight_decay", "clip", "radius"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "a finite number ≥ 0")
        _require("ramp", self.ramp, 0 <= self.ramp <= 1, "in [0, 1]")
        _require("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        _require("schedule", self.schedule, self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")

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
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"unknown or missing training settings: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _require(name: str, value: object, holds: bool, needed: str) -> None:
    if not holds:
        raise ConfigError(f"`{name}` must be {needed}, got {value!r}")
