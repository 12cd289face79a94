"""Radii from Lipschitz constants of gaps: min over j of (y_i − y_j − δ_ij)/L_ij, i the prediction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mondeq.bounds import Bound, Chain, best_pairs
from mondeq.certificates.base import CERTIFICATES, Certificate, Prepared
from mondeq.pieces import Logits


@CERTIFICATES.enrol("gaps")
class Gaps(Certificate):
    """L_ij is the smallest certified constant of the gap, δ_ij bounds the error of the computed one.

    Tsuzuku, Sato & Sugiyama 2018, with constants per pair.
    """

    def prepare(self, chain: Chain, bounds: Mapping[str, Bound]) -> Prepared:
        return _Prepared(best_pairs(bounds, chain.owner, chain.norm).to(chain.exact.device))


class _Prepared(Prepared):
    def __init__(self, pairs: Tensor) -> None:
        self.pairs = pairs

    def radius(self, images: Tensor, logits: Logits) -> Tensor:
        prediction = logits.value.argmax(1)
        gap = logits.value.gather(1, prediction[:, None]) - logits.value
        radius = (gap - logits.slack(prediction)) / self.pairs[prediction] * (1 - 1e-12)
        return radius.scatter_(1, prediction[:, None], torch.inf).amin(1)
