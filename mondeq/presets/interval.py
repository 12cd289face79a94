"""The interval preset: two convolutions and one equilibrium through which boxes pass, for certificates in ℓ∞."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from mondeq.parameterizations import IntervalDense
from mondeq.parameterizations.interval import IntervalDenseSettings
from mondeq.pieces import EquilibriumLayer, Normalise
from mondeq.presets.base import PRESETS, Images, Preset
from mondeq.settings import Real, Several, Whole, setting


@PRESETS.enrol("interval")
@dataclass(frozen=True)
class IntervalPreset(Preset, IntervalDenseSettings):
    """Pixels cut at black and white, convolutions of stride 2 with ReLU, IntervalDense(features, m), a linear head.

    A pixel p goes in as (p − cut)/(1 − 2·cut), held inside [0, 1]: what is nearer than `cut` to black or white counts
    as such, and a perturbation that is no larger moves nothing there. The same holds of all that leaves [0, 1].

    Args:
        channels: Of every convolution; none for no convolution.
        cut: In [0, 0.5).
    """

    channels: tuple[int, ...] = setting(
        Several(Whole(1)), (16, 32), help="channels of every tier; conv has one, interval one per convolution"
    )
    cut: float = setting(
        Real("a number in [0, 0.5)", lambda value: 0 <= value < 0.5), 0.3,
        help="interval: how near to black or white a pixel counts as such (default 0.3)",
    )  # fmt: skip

    recipe: ClassVar[dict[str, Any]] = {"features": 128, "epochs": 10, "lr": 2e-3, "batch_size": 128, "tol": 1e-3}
    certified_recipe: ClassVar[dict[str, Any]] = {
        "features": 128, "epochs": 20, "lr": 5e-3, "batch_size": 256, "tol": 1e-3, "loss": "interval", "ramp": 0.4,
        "logit_scale": 1.0, "radius_factor": 1.1,
    }  # fmt: skip
    digits_recipe: ClassVar[dict[str, Any]] = {"features": 64, "channels": (16,), "epochs": 60, "batch_size": 128}
    normalises: ClassVar[bool] = False

    def pieces(self, images: Images) -> dict[str, nn.Module]:
        channels, height, width = images.image_shape
        pieces: dict[str, nn.Module] = {
            "scale": Normalise([self.cut] * channels, [1 - 2 * self.cut] * channels),
            "cut": nn.Hardtanh(0.0, 1.0),
        }
        for number, more in enumerate(self.channels):
            convolution = nn.Conv2d(channels, more, _SIDE, stride=2, padding=1)
            pieces |= {f"conv{number}": _narrow(convolution), f"relu{number}": nn.ReLU()}
            channels, height, width = more, height // 2, width // 2
        pieces["flatten"] = nn.Flatten()
        linear = IntervalDense(channels * height * width, self.features, self.m)
        pieces["layer"] = EquilibriumLayer(linear, **self.options())
        pieces["head"] = nn.Linear(self.features, images.classes)
        return pieces

    def largest(self, images: Images) -> int:
        widest = max((images.image_shape[0], *self.channels))
        return max(self.features * max(self.features, widest * images.pixels, images.classes), widest**2 * _SIDE**2)


# That of the kernels: with stride 2 and one row of zeros on either side, it halves an image.
_SIDE = 4


def _narrow(convolution: nn.Conv2d) -> nn.Conv2d:
    """A convolution with initial weights so small that boxes do not grow (Shi, Wang, Zhang, Yi & Hsieh 2021)."""
    with torch.no_grad():
        convolution.weight.normal_(std=math.sqrt(2 * math.pi) / convolution.weight[0].numel())
    return convolution
