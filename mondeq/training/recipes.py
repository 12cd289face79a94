"""Documented starting points: what `mondeq train` uses where the user says nothing. Every value can be overridden."""

from __future__ import annotations

from typing import Any

from mondeq.presets import PRESETS

# Mirrored digits are no digits.
_DIGITS = ("digits", "mnist", "svhn")


def recipe(data: str, model: str, radius: float) -> dict[str, Any]:
    """Settings for a preset on a data set, certificate-aware if radius > 0.

    The scale of the logits is what the certificate-aware loss is most sensitive to: 6 for radii of a few tenths,
    4 for radii above 1, where fewer images can be certified and confidence must not be bought with them.

    Args:
        data: The name of the data set.
        model: The name of the preset, which has recipes of its own.
        radius: The radius to train for, in pixel units and the norm of the loss.

    Returns:
        Entries of the preset and of TrainingConfig, by name.

    Raises:
        ConfigError: There is no such preset.
    """
    preset = PRESETS[model]
    settings = dict(preset.certified_recipe if radius > 0 else preset.recipe)
    # Logits that are Lipschitz for every weight need the scale to express confidence at any radius.
    if radius > 0 or not preset.normalises:
        settings.setdefault("logit_scale", 6.0 if radius <= 1 else 4.0)
    if data in _DIGITS:
        settings.pop("flip", None)
    return settings | preset.digits_recipe if data == "digits" else settings
