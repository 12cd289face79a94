"""Radii in ℓ∞ from boxes: the largest r for which every y_i − y_j is proved positive on [x − r, x + r]."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mondeq.bounds import Bound, Chain
from mondeq.certificates.base import CERTIFICATES, Certificate, Prepared
from mondeq.norms import NORMS, Box
from mondeq.pieces import Logits, Unproved

# Radii are found to 2^-12, far less than a step of an 8-bit pixel.
_HALVINGS = 12


@CERTIFICATES.enrol("boxes")
class Boxes(Certificate):
    """A box goes through the network piece by piece, and each contains every exact value; i is the prediction.

    The radius is found by bisection of [0, 1], beyond which a box holds all images. Every radius that is accepted has
    been proved itself, so that nothing is assumed of those in between. Sources: interval bound propagation of Gowal,
    Dvijotham, Stanforth, Bunel et al. 2018, arXiv 1810.12715; through an equilibrium, Wei & Kolter 2022.
    """

    def unsuited(self, chain: Chain) -> str | None:
        if not NORMS[chain.norm].makes_boxes:
            return "a ball of this norm is no box"
        point = torch.zeros(1, *chain.exact.in_shape, dtype=torch.float64, device=chain.exact.device)
        try:
            _Prepared(chain).least_gaps(point, point.new_zeros(1), point.new_zeros(1, dtype=torch.int64))
        except Unproved as error:
            return str(error)
        return None

    def prepare(self, chain: Chain, bounds: Mapping[str, Bound]) -> Prepared:
        return _Prepared(chain)


class _Prepared(Prepared):
    def __init__(self, chain: Chain) -> None:
        self.stages = chain.stages

    def radius(self, images: Tensor, logits: Logits) -> Tensor:
        prediction = logits.value.argmax(1)
        proved, refused = images.new_zeros(len(images)), images.new_ones(len(images))
        for _ in range(_HALVINGS):
            tried = (proved + refused) / 2
            gaps = self.least_gaps(images, tried, prediction).scatter(1, prediction[:, None], torch.inf)
            good = (gaps > 0).all(1)
            proved, refused = tried.where(good, proved), refused.where(good, tried)
        return proved

    def least_gaps(self, images: Tensor, radius: Tensor, chosen: Tensor) -> Tensor:
        """Lower bounds on y_chosen − y_j over the boxes around images."""
        box = Box.around(images, radius.reshape(-1, *(1 for _ in images.shape[1:])))
        *trunk, last = self.stages
        for stage in trunk:
            box = stage.enclose_box(box)
        return last.least_gaps(box, chosen)
