"""Documented starting points: what `mondeq train` uses where the user says nothing. Every value can be overridden."""

from __future__ import annotations

from typing import Any

_DEFAULT: dict[str, dict[str, Any]] = {
    "dense": {"features": 87, "epochs": 15, "lr": 2e-3, "batch_size": 256},
    # The trade between margin and constant is easier to find with m free to move.
    "dense, certified": {"features": 128, "epochs": 14, "lr": 4e-3, "batch_size": 256, "learn_m": True},
    "lipschitz": {"features": 256, "epochs": 14, "lr": 4e-3, "batch_size": 256},
    "conv": {"channels": (54,), "epochs": 10, "lr": 4e-3, "batch_size": 128, "weight_norm": True, "tol": 1e-2},
    "multiscale": {
        "channels": (16, 32, 32),
        "epochs": 10,
        "lr": 4e-3,
        "batch_size": 128,
        "weight_norm": True,
        "tol": 1e-2,
    },
}
_DIGITS: dict[str, dict[str, Any]] = {
    "dense": {"features": 64, "epochs": 60, "batch_size": 128},
    "lipschitz": {"features": 64, "epochs": 60, "batch_size": 128},
    "conv": {"channels": (24,), "epochs": 20, "pool": 2},
    # 8×8 pixels can be halved three times, and are still images after the first.
    "multiscale": {"channels": (16, 32), "epochs": 20},
}


def recipe(data: str, model: str, radius: float) -> dict[str, Any]:
    """Settings for `model` on `data`, certificate-aware if radius > 0: entries of ModelConfig and TrainingConfig.

    The scale of the logits is what the certificate-aware loss is most sensitive to: 6 for radii of a few tenths,
    4 for radii above 1, where fewer images can be certified and confidence must not be bought with them.
    """
    settings = dict(_DEFAULT["dense, certified" if model == "dense" and radius > 0 else model])
    if model == "lipschitz" or radius > 0:
        settings["logit_scale"] = 6.0 if radius <= 1 else 4.0
    return settings | _DIGITS[model] if data == "digits" else settings
