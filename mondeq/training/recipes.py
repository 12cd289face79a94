"""Documented starting points: what `mondeq train` uses where the user says nothing. Every value can be overridden."""

from __future__ import annotations

from typing import Any

_DEFAULT: dict[str, dict[str, Any]] = {
    "dense": {"features": 128, "epochs": 20, "lr": 4e-3, "batch_size": 256},
    "lipschitz": {"features": 128, "epochs": 20, "lr": 4e-3, "batch_size": 256, "logit_scale": 6.0},
}
_BY_DATA: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "dense"): {"features": 64, "epochs": 60, "batch_size": 128},
    ("digits", "lipschitz"): {"features": 64, "epochs": 60, "batch_size": 128},
}


def recipe(data: str, model: str, radius: float) -> dict[str, Any]:
    """Settings for `model` on `data`, certificate-aware if radius > 0: entries of ModelConfig and TrainingConfig."""
    settings = {**_DEFAULT[model], **_BY_DATA.get((data, model), {})}
    if model == "dense" and radius > 0:
        # The trade between margin and constant is easier to find with m free to move.
        settings |= {"learn_m": True}
    return settings
