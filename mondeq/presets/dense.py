"""The dense preset: normalisation, one dense equilibrium, a linear head; ‖W_o‖‖U‖/m-Lipschitz."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from mondeq.parameterizations import Dense
from mondeq.parameterizations.dense import DenseSettings
from mondeq.pieces import EquilibriumLayer, Normalise
from mondeq.presets.base import PRESETS, Images, Preset


@PRESETS.enrol("dense")
@dataclass(frozen=True)
class DensePreset(Preset, DenseSettings):
    """Dense(features, m, learn_m) and a linear head."""

    recipe: ClassVar[dict[str, Any]] = {"features": 87, "epochs": 15, "lr": 2e-3, "batch_size": 256}
    # The trade between margin and constant is easier to find with m free to move.
    certified_recipe: ClassVar[dict[str, Any]] = {
        "features": 128,
        "epochs": 14,
        "lr": 4e-3,
        "batch_size": 256,
        "learn_m": True,
    }
    digits_recipe: ClassVar[dict[str, Any]] = {"features": 64, "epochs": 60, "batch_size": 128}

    def pieces(self, images: Images) -> dict[str, nn.Module]:
        linear = Dense(images.pixels, self.features, self.m, learn_m=self.learn_m)
        return {
            "normalise": Normalise(images.mean, images.std),
            "layer": EquilibriumLayer(linear, **self.options()),
            "head": nn.Linear(self.features, images.classes),
        }

    def largest(self, images: Images) -> int:
        return self.features * max(self.features, images.pixels, images.classes)
