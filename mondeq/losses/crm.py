"""Certified radius maximisation: cross-entropy, less a soft minimum of the radii that are certified (by estimate)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mondeq.losses.base import LOSSES, Loss, Progress
from mondeq.settings import NONNEGATIVE, POSITIVE, Settings, setting


@dataclass(frozen=True)
class CrmSettings(Settings):
    """Of the loss `crm`.

    Args:
        crm_weight: λ, the weight of the radius.
        crm_sharpness: t, how sharp the minimum over rivals is.
    """

    crm_weight: float = setting(NONNEGATIVE, 1.0, help="λ, the weight of the radius (default 1)")
    crm_sharpness: float = setting(POSITIVE, 10.0, help="t, how sharp the minimum over rivals is (default 10)")


@LOSSES.enrol("crm")
class Crm(Loss):
    """Cross-entropy of scale·y + (λ/t)·log Σ_j exp(−t·min(r_j, radius)), r_j = (y_label − y_j)/L_{label,j}, rivals j.

    (1/t) log Σ exp(−t r_j) is a soft maximum of −r_j: it is at least minus the certified radius, so that the loss asks
    for a large one, up to `radius`, beyond which nothing is gained. Settings: crm_weight λ, crm_sharpness t.
    Source: Fazlyab, Entesari, Roy & Chellappa 2023, arXiv 2310.00116.
    """

    Settings = CrmSettings

    def __call__(self, logits: Tensor, labels: Tensor, constants: Tensor, progress: Progress) -> Tensor:
        """Return the loss of a batch; see `Loss`."""
        plain = functional.cross_entropy(progress.logit_scale * logits, labels)
        weight, t = self.settings.crm_weight, self.settings.crm_sharpness
        if not progress.radius:
            return plain
        gaps = logits.gather(1, labels[:, None]) - logits
        radii = (gaps / constants[labels].clamp_min(1e-12)).clamp_max(progress.radius)
        rivals = radii.scatter(1, labels[:, None], torch.inf)
        return plain + weight / t * torch.logsumexp(-t * rivals, dim=1).mean()
