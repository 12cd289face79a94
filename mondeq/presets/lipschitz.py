"""The lipschitz preset: normalisation and one dense equilibrium with its read-out, γ-Lipschitz for every weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from mondeq.parameterizations import LipschitzDense
from mondeq.pieces import Normalise, ReadoutLayer
from mondeq.presets.base import PRESETS, Images, Preset
from mondeq.settings import POSITIVE, Whole, setting


@PRESETS.enrol("lipschitz")
@dataclass(frozen=True)
class LipschitzPreset(Preset):
    """LipschitzDense(features, gamma, epsilon), γ in logits per pixel unit: the normalisation is accounted for.

    Args:
        features: n, the width of the equilibrium state.
        gamma: γ > 0, in logits per pixel unit.
        epsilon: ε > 0, which keeps the matrix inequality strict.
    """

    features: int = setting(Whole(1), None, help="n, the width of the equilibrium state")
    gamma: float = setting(POSITIVE, 1.0, help="γ, in logits per pixel unit (default 1)")
    epsilon: float = setting(POSITIVE, 0.01, help="keeps the matrix inequality strict")

    recipe: ClassVar[dict[str, Any]] = {"features": 256, "epochs": 14, "lr": 4e-3, "batch_size": 256}
    certified_recipe: ClassVar[dict[str, Any]] = recipe
    digits_recipe: ClassVar[dict[str, Any]] = {"features": 64, "epochs": 60, "batch_size": 128}
    normalises: ClassVar[bool] = False

    def pieces(self, images: Images) -> dict[str, nn.Module]:
        # γ is promised per unit of pixel, and a normalised pixel is 1/std of one.
        gamma = self.gamma * min(images.std)
        linear = LipschitzDense(images.pixels, self.features, images.classes, gamma, epsilon=self.epsilon)
        return {
            "normalise": Normalise(images.mean, images.std),
            "layer": ReadoutLayer(linear, **self.options()),
        }

    def largest(self, images: Images) -> int:
        return self.features * max(self.features, images.pixels, images.classes)
