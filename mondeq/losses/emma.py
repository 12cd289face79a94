"""EMMA: the adversary moves each logit only as far as it has to, to reach that of the label (Hu et al. 2023)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from mondeq.losses.base import LOSSES, Loss, Progress


@LOSSES.enrol("emma")
class Emma(Loss):
    """Cross-entropy of scale·(y_j + e_j·radius·L_{label,j}), e_j = clip((y_label − y_j)/(radius·L_{label,j}), 0.01, 1).

    Gradients do not flow through e. Where a gap is already larger than the adversary's reach, e_j is 1 and the loss is
    that of `margin`; where it is smaller, rivals are moved up to the label and no further, so that no sample is asked
    for what is out of its reach. Source: Hu, Zou, Wang, Leino & Fredrikson 2023, arXiv 2301.12549.
    """

    def __call__(self, logits: Tensor, labels: Tensor, constants: Tensor, progress: Progress) -> Tensor:
        """Return the loss of a batch; see `Loss`."""
        reach = progress.radius * constants[labels]
        gaps = (logits.gather(1, labels[:, None]) - logits).detach()
        # A reach of 0 moves nothing, whatever its share.
        share = (gaps / reach.detach().clamp_min(1e-12)).clamp(0.01, 1)
        return functional.cross_entropy(progress.logit_scale * (logits + share * reach), labels)
