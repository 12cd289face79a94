"""Everything that decides a training run besides the model: data, loss, optimiser, schedule, seed."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

from mondeq import values
from mondeq.errors import ConfigError

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("one-cycle", "step", "constant")


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. Numbers of numpy and torch become Python's. Raises ConfigError for any other kind of value and
    for one outside its range, so that nothing that is accepted here fails later.

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
        self._keep("data", self.data if is_file_name(self.data) else None, "the name of a data set")
        for name, names in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            value = getattr(self, name)
            self._keep(name, value if isinstance(value, str) and value in names else None, f"one of {', '.join(names)}")
        for name in ("epochs", "batch_size", "decay_every"):
            self._keep_whole(name, 1)
        for name in ("shift", "seed"):
            self._keep_whole(name, 0)
        for name in ("lr", "logit_scale"):
            self._keep_real(name, lambda value: 0 < value < math.inf, "a finite number > 0")
        for name in ("weight_decay", "clip", "radius"):
            self._keep_real(name, lambda value: 0 <= value < math.inf, "a finite number ≥ 0")
        self._keep_real("ramp", lambda value: 0 <= value <= 1, "in [0, 1]")
        self._keep("flip", values.truth(self.flip), "true or false")

    def _keep_whole(self, name: str, least: int) -> None:
        value = values.whole(getattr(self, name))
        # torch takes no larger ones, as a seed or anywhere.
        largest = 2**63 - 1
        needed = f"an integer ≥ {least}" if value is None or value <= largest else "an integer < 2^63"
        self._keep(name, value if value is not None and least <= value <= largest else None, needed)

    def _keep_real(self, name: str, inside: Callable[[float], bool], needed: str) -> None:
        value = values.real(getattr(self, name))
        self._keep(name, value if value is not None and inside(value) else None, needed)

    def _keep(self, name: str, value: object, needed: str) -> None:
        """Store what the setting is as a plain value; None is what is not as needed."""
        if value is None:
            raise ConfigError(f"`{name}` must be {needed}, got {values.shown(getattr(self, name))}")
        object.__setattr__(self, name, value)

    def check_images(self, height: int, width: int) -> None:
        """Raises ConfigError unless `shift` leaves something of images of this size to be seen."""
        if self.shift >= min(height, width):
            raise ConfigError(f"`shift` must be less than the side of images of {height}×{width}, got {self.shift}")

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
    def from_dict(cls, settings: dict[str, Any]) -> TrainingConfig:
        """A configuration read back from JSON. Unknown, missing and mistyped entries are errors."""
        known = {f.name for f in dataclasses.fields(cls)}
        wrong = sorted(set(settings) - known) or sorted({"data"} - set(settings))
        if wrong:
            raise ConfigError(
                f"unknown or missing training settings: {', '.join(wrong)}; known are {', '.join(sorted(known))}"
            )
        return cls(**settings)

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
