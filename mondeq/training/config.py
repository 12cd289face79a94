"""Everything that decides a training run besides the model: data, loss, optimiser, schedule, seed."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, TypeGuard

from mondeq.errors import ConfigError
from mondeq.losses import LOSSES, Loss, Progress
from mondeq.settings import (
    NONNEGATIVE,
    POSITIVE,
    SHARE,
    Choice,
    Mapping,
    Optional,
    Real,
    Settings,
    Text,
    Truth,
    Whole,
    setting,
)
from mondeq.training.augmentation import AUGMENTATIONS
from mondeq.training.optimizers import OPTIMIZERS

SCHEDULES = ("one-cycle", "step", "constant")
AVERAGES = ("none", "ema", "swa")

# Of moving averages: at most so much is kept of the average at a step, and a tenth of all steps counts at first.
_DECAY, _WINDOW = 0.999, 10
# Stochastic weight averaging begins after this share of all steps.
_SWA_BEGINS = 0.75


def is_file_name(value: object) -> TypeGuard[str]:
    """Whether a path can be made of a value: not of NUL, nor of half a surrogate pair.

    Args:
        value: What was given.

    Returns:
        True for text that names a file.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """One training run. Numbers of numpy and torch become Python's.

    Args:
        data: The name of a data set.
        epochs: Passes over the training images.
        batch_size: Samples of a step, over all processes together.
        optimizer: "adam"; "adamw"; "muon", which orthogonalises the steps of matrices and filters, and leaves
            biases, scales and a linear last layer to "adamw".
        lr: Learning rate, the peak of the schedule.
        weight_decay: Of the optimiser.
        schedule: "one-cycle" rises over the first 30 % and falls to 0 by half cosines; "step" divides by 10 every
            `decay_every` epochs; "constant".
        decay_every: Epochs of "step".
        clip: Largest gradient norm, 0 for none.
        loss: A name in LOSSES.
        radius: The radius (pixel units, in the norm of the loss) that margins are asked for, 0 for plain cross-entropy.
        radius_factor: What the loss asks for in the end is so many times `radius`, at which test images are judged.
        ramp: The share of the steps over which the radius grows from 0.
        logit_scale: What logits are multiplied with before a cross-entropy, so that Lipschitz-bounded logits can
            express confidence.
        shift: Images are moved by up to so many pixels (pad and crop).
        flip: Images are mirrored left to right at random.
        augment: "rand" distorts images by RandAugment, which needs torchvision; "none".
        average: What is tested and kept: "ema", a moving average of the weights; "swa", their mean over the last
            quarter of the steps; "none", the weights themselves.
        extra: The name of a folder of further training images, None for none.
        extra_share: The share of them in every batch.
        seed: Of all random numbers.
        loss_settings: Settings of the loss, by name.

    Raises:
        ConfigError: A value is of another kind or outside its range; nothing that is accepted here fails later.
    """

    data: str = setting(Text("the name of a data set", is_file_name))
    epochs: int = setting(Whole(1), 20)
    batch_size: int = setting(Whole(1), 256, help="samples per step, over all processes together")
    optimizer: str = setting(Choice(OPTIMIZERS), "adam", help="muon: orthogonalised steps")
    lr: float = setting(POSITIVE, 4e-3, help="peak learning rate")
    weight_decay: float = setting(NONNEGATIVE, 0.0)
    schedule: str = setting(Choice(SCHEDULES), "one-cycle", help="step: divide by 10 every --decay-every epochs")
    decay_every: int = setting(Whole(1), 10)
    clip: float = setting(NONNEGATIVE, 0.0, help="largest gradient norm; 0: no clipping")
    loss: str = setting(Choice(LOSSES), "margin")
    radius: float = setting(
        NONNEGATIVE,
        0.0,
        help="radius to train for (ℓ2; --loss interval: ℓ∞); 0: plain cross-entropy",
    )
    radius_factor: float = setting(POSITIVE, 1.0, help="the loss asks for so many times --radius in the end")
    ramp: float = setting(SHARE, 0.5, help="share of training over which the radius grows from 0")
    logit_scale: float = setting(POSITIVE, 1.0, help="factor on logits before the cross-entropy")
    shift: int = setting(Whole(0), 0, help="augment by moving images up to so many pixels")
    flip: bool = setting(Truth(), False, help="augment by mirroring images left to right")
    augment: str = setting(Choice(AUGMENTATIONS), "none", help="rand: RandAugment (needs mondeq[augment])")
    average: str = setting(
        Choice(AVERAGES), "none", help="test and keep average weights: ema, moving; swa, of the last quarter"
    )
    extra: str | None = setting(
        Optional(Text("the name of a folder of pictures", is_file_name)),
        None,
        help="folder:PATH of further training images, generated ones, say",
    )
    extra_share: float = setting(
        Real("in (0, 1)", lambda value: 0 < value < 1), 0.75, help="share of --extra in a batch (default 0.75)"
    )
    seed: int = setting(Whole(0), 0)
    loss_settings: dict[str, Any] = setting(Mapping(), {})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.radius_factor * self.radius):
            raise ConfigError(f"`radius_factor` must leave `radius` {self.radius:g} finite, got {self.radius_factor:g}")
        self.make_loss()

    def make_loss(self) -> Loss:
        """The loss.

        Returns:
            A new one.

        Raises:
            ConfigError: `loss_settings` are not its own.
        """
        kind = LOSSES[self.loss]
        try:
            return kind(kind.Settings.from_dict(self.loss_settings))
        except ConfigError as error:
            raise ConfigError(f"`loss_settings` must be those of the loss {self.loss}: {error}") from None

    def check_images(self, height: int, width: int) -> None:
        """Raise unless `shift` leaves something of images to be seen.

        Args:
            height: Of the images.
            width: Of the images.

        Raises:
            ConfigError: It does not.
        """
        if self.shift >= min(height, width):
            raise ConfigError(f"`shift` must be less than the side of images of {height}×{width}, got {self.shift}")

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step: a function of nothing else, so that runs resume exactly.

        Args:
            step: The number of the step in the run, from 0.
            steps_per_epoch: How many an epoch has.

        Returns:
            The rate.
        """
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            return float(self.lr * 0.1 ** (step // steps_per_epoch // self.decay_every))
        total = self.epochs * steps_per_epoch
        peak = 0.3 * total
        if step < peak:
            return self.lr * (0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2)
        return self.lr * (1 + math.cos(math.pi * (step - peak) / (total - peak))) / 2

    def progress(self, step: int, steps_per_epoch: int) -> Progress:
        """What the loss is told at a step.

        Args:
            step: The number of the step in the run, from 0.
            steps_per_epoch: How many an epoch has.

        Returns:
            Where training stands.
        """
        total = self.epochs * steps_per_epoch
        rise, last = self.ramp * total, self.radius_factor * self.radius
        radius = last if step >= rise else last * step / rise
        return Progress(radius, self.logit_scale, step / total)

    def average_share(self, step: int, steps_per_epoch: int) -> float:
        """What the weights after a step count for in their average: average + share·(weights − average).

        It is a function of nothing else, so that runs resume exactly. Of moving averages the window is a tenth of the
        steps so far, and no more than a thousand. Source of the other: Izmailov, Podoprikhin, Garipov, Vetrov & Wilson
        2018, arXiv 1803.05407, here with every step instead of every epoch.

        Args:
            step: The number of the step in the run, from 0.
            steps_per_epoch: How many an epoch has.

        Returns:
            A share in (0, 1]; at 1 the average is the weights.
        """
        if self.average == "ema":
            return 1 - min(_DECAY, (1 + step) / (_WINDOW + step))
        taken = step - math.ceil(_SWA_BEGINS * self.epochs * steps_per_epoch)
        return 1 / (1 + max(taken, 0)) if self.average == "swa" else 1.0
