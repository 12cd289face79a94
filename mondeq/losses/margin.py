"""The certificate-aware cross-entropy: after an adversary moved the logits as far as the bound lets it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from mondeq.losses.base import LOSSES, Loss, Progress


@LOSSES.enrol("margin")
class Margin(Loss):
    """Cross-entropy of scale·(y_j + radius·L_{label,j}), with L = `constants`, zero diagonal.

    It is small only where every gap y_label − y_j exceeds radius·L_{label,j}, that is where the prediction is
    certified at `radius` (Tsuzuku, Sato & Sugiyama 2018, with constants per pair). Radius 0: plain cross-entropy.
    """

    def __call__(self, logits: Tensor, labels: Tensor, constants: Tensor, progress: Progress) -> Tensor:
        return functional.cross_entropy(progress.logit_scale * (logits + progress.radius * constants[labels]), labels)
