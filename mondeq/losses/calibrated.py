"""A margin loss whose scale is chosen by a probability instead of by hand (calibrated Lipschitz-margin loss)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mondeq.losses.base import LOSSES, Loss, Progress
from mondeq.settings import Real, Settings, setting


@dataclass(frozen=True)
class CalibratedSettings(Settings):
    """Of the loss `calibrated`.

    Args:
        calibration: p in (0, 1).
    """

    calibration: float = setting(
        Real("in (0, 1)", lambda value: 0 < value < 1),
        0.1,
        help="p: two radii apart, the odds of a gap change from p/2 to 1 − p/2 (default 0.1)",
    )


@LOSSES.enrol("calibrated")
class Calibrated(Loss):
    """Cross-entropy of (radius − r_j)/s over rivals j and 0 for the label, r_j = (y_label − y_j)/L_{label,j}.

    s = 2·radius/(Q(1 − p/2) − Q(p/2)), Q(u) = log(u/(1 − u)): over the width of two radii the logistic function goes
    from p/2 to 1 − p/2, so that the loss tells apart gaps that differ by as much as the adversary can move them. Gaps
    are measured in radii of the input, and no scale of logits is left to choose. Radius 0: plain cross-entropy.
    Source: the calibrated Lipschitz-margin loss of Losch, Stutz, Schiele & Fritz 2023.
    """

    Settings = CalibratedSettings

    def __call__(self, logits: Tensor, labels: Tensor, constants: Tensor, progress: Progress) -> Tensor:
        """Return the loss of a batch; see `Loss`."""
        if not progress.radius:
            return functional.cross_entropy(progress.logit_scale * logits, labels)
        half = self.settings.calibration / 2
        scale = progress.radius / math.log((1 - half) / half)
        gaps = logits.gather(1, labels[:, None]) - logits
        radii = gaps / constants[labels].clamp_min(1e-12)
        moved = ((progress.radius - radii) / scale).scatter(1, labels[:, None], 0.0)
        return torch.logsumexp(moved, dim=1).mean()
