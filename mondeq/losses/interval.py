"""Interval training: the cross-entropy of the worst logits that a box around each image admits, and the plain one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mondeq.losses.base import LOSSES, Loss, Progress
from mondeq.network import Network
from mondeq.norms import Box
from mondeq.pieces import Unproved
from mondeq.settings import SHARE, Settings, setting
from splitting import InvalidArgument


@dataclass(frozen=True)
class IntervalSettings(Settings):
    """Of the loss `interval`.

    Args:
        clean_share: κ in [0, 1], the share of the plain cross-entropy.
    """

    clean_share: float = setting(SHARE, 0.3, help="interval: share of the plain cross-entropy (default 0.3)")


@LOSSES.enrol("interval")
class Interval(Loss):
    """κ·CE(scale·y) + (1 − κ)·CE(scale·(−d)), with d_j the least y_label − y_j over the box around an image.

    The radius is one of ℓ∞. The box goes through the network piece by piece, and through an equilibrium by that of the
    embedded network; both equilibria are differentiated implicitly. Where the second term is small, the sample is
    certified by `mondeq certify --norm linf`. Radius 0: plain cross-entropy.

    Called on constants of gaps instead of boxes it takes radius·L_{label,j} for what boxes cost: d_j = y_label − y_j −
    radius·L_{label,j}. Source: Gowal, Dvijotham, Stanforth, Bunel et al. 2018, arXiv 1810.12715; with equilibria, Wei &
    Kolter 2022. There κ falls while the radius grows; here it is the same throughout, as both terms begin as one.
    """

    Settings = IntervalSettings
    norm = "linf"

    def unsuited(self, network: Network, radius: float) -> str | None:
        if not radius:
            return None
        if radius > 1:
            return f"its `radius` is one of ℓ∞, which in [0, 1] is no more than 1, got {radius:g}"
        images = torch.zeros(1, *network.in_shape, dtype=network.dtype, device=network.device)
        try:
            with torch.no_grad():
                _least_gaps(network, images, torch.zeros(1, dtype=torch.int64, device=network.device), radius)
        except InvalidArgument as error:
            return str(error)
        return None

    def constants(self, network: Network) -> Tensor:
        # Boxes say more of each image than constants of the network would.
        return torch.zeros(network.classes, network.classes, dtype=network.dtype, device=network.device)

    def of_batch(
        self, network: Network, images: Tensor, labels: Tensor, logits: Tensor, constants: Tensor, progress: Progress
    ) -> tuple[Tensor, Tensor]:
        if not progress.radius:
            return super().of_batch(network, images, labels, logits, constants, progress)
        gaps = _least_gaps(network, images, labels, progress.radius)
        excess = gaps.detach().scatter(1, labels[:, None], torch.inf).amin(1)
        return self._mixed(logits, -gaps, labels, progress), excess

    def __call__(self, logits: Tensor, labels: Tensor, constants: Tensor, progress: Progress) -> Tensor:
        """Return the loss of a batch; see `Loss`."""
        return self._mixed(logits, logits + progress.radius * constants[labels], labels, progress)

    def _mixed(self, logits: Tensor, worst: Tensor, labels: Tensor, progress: Progress) -> Tensor:
        share, scale = self.settings.clean_share, progress.logit_scale
        clean, moved = (functional.cross_entropy(scale * each, labels) for each in (logits, worst))
        return share * clean + (1 - share) * moved


def _least_gaps(network: Network, images: Tensor, labels: Tensor, radius: float) -> Tensor:
    """The least y_label − y_j over boxes around images, 0 for the label, (batch, classes). Raises InvalidArgument."""
    box = Box.around(images, radius)
    *trunk, last = network.places
    place = last
    try:
        for place in trunk:
            box = place.piece.box_estimate(box)
        place = last
        gaps = last.piece.least_gap_estimates(box, labels)
    except Unproved as error:
        raise InvalidArgument(f"there is no box to train for: the piece `{place.name}` {error}") from None
    return gaps.scatter(1, labels[:, None], 0.0)
