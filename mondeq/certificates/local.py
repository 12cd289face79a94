"""Radii from what a network is like near an image: units whose slope cannot change there are linear.

In a ball of radius ρ around x every pre-activation y moves by Kρ at most, and so the chord slopes of σ from y lie in
known intervals [l, l + w]: w = 0 where a unit stays on one side of its kink. With Δz = lΔy + p, only units with w > 0
keep a free p, and pᵢ(Δyᵢ − pᵢ/wᵢ) ≥ 0. The matrix inequality for what is left gives constants L(ρ) of the gaps, none
larger than those for l = 0, w = 1, which hold everywhere. Then min(ρ, min over j of gap_j/L_j(ρ)) is certified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # public, but not listed in its stub

from mondeq.bounds import Bound, Chain
from mondeq.bounds.optimised_metric import LARGEST_SEARCH, optimised_metric
from mondeq.bounds.states import MISSING, States, last, required
from mondeq.certificates.base import CERTIFICATES, Certificate, Prepared
from mondeq.certificates.gaps import Gaps
from mondeq.certificates.sector import System
from mondeq.norms import Ball
from mondeq.pieces import Logits, Proof
from splitting import verified

# How often a radius is tried for every image. The interval in which the largest lies is more than halved each time.
_TRIALS = 4


@CERTIFICATES.enrol("local")
class Local(Certificate):
    """Constants that hold near an image instead of everywhere, for the last equilibrium of a network.

    It takes tens of milliseconds per image, and so is tried only where it is asked for.
    """

    routine: ClassVar[bool] = False

    def unsuited(self, chain: Chain) -> str | None:
        states = last(chain)
        if states is None:
            return MISSING
        size = len(states.blocks.matrix)
        return None if size <= LARGEST_SEARCH else f"{size} units, and an image takes seconds beyond {LARGEST_SEARCH}"

    def prepare(self, chain: Chain, bounds: Mapping[str, Bound]) -> Prepared:
        return _Prepared(chain, required(chain), Gaps().prepare(chain, bounds))


class _Prepared(Prepared):
    def __init__(self, chain: Chain, states: States, everywhere: Prepared) -> None:
        self.chain, self.states, self.everywhere = chain, states, everywhere
        self.stage = chain.stages[states.first]
        metric = states.blocks.metric
        weight = optimised_metric(states) if metric is None else metric.detach()
        state = verified.round_up(self.stage.constant * self.stage.norm.euclidean())
        self.system = System.of(states.blocks, weight, state)
        self.head = states.head.detach().cpu()
        self.reach = self._reach()

    def _reach(self) -> Tensor:
        """K of every pre-activation, wherever the image is."""
        ones = torch.ones(len(self.system.matrix), dtype=torch.float64, device="cpu")
        inequality = self.system.near(0 * ones, ones, self.head[:0])
        try:
            levels, _ = inequality.proposed()
        except LinAlgError:
            return torch.inf * ones
        return torch.stack([inequality.proved(float(level)) for level in levels]).amin(0)

    def radius(self, images: Tensor, logits: Logits) -> Tensor:
        near = _Near.of(self.stage, self.chain.enclose(images, self.states.first), logits)
        found = self.everywhere.radius(images, logits).cpu()
        # Where nothing is certified there is nothing to enlarge, and where all is there is no need.
        (places,) = ((found > 0) & torch.isfinite(found)).nonzero(as_tuple=True)
        near, low, trial = near.at(places), found[places], found[places]
        high = torch.full_like(low, torch.inf)
        for _ in range(_TRIALS):
            reached = self._reached(near, trial)
            low = torch.maximum(low, torch.minimum(trial, reached))
            high = torch.minimum(high, torch.where(reached >= trial, reached, trial))
            trial = torch.where(torch.isfinite(high), (low + high) / 2, 2 * low)
        return found.scatter(0, places, low).to(images.device)

    def _reached(self, near: _Near, radius: Tensor) -> Tensor:
        """How far gaps stay positive at least, by constants that hold within a radius; both (batch,)."""
        moved = radius * self.states.trunk * (1 + 1e-12)
        reach = self.reach * moved[:, None]
        for number, slopes in enumerate(near.slopes(self.stage, reach)):
            # What is known of the slopes bounds anew how far pre-activations move, and that the slopes.
            inequality = self.system.near(*slopes, self.head[:0])
            free = inequality.free
            found = inequality.best(torch.ones_like(free, dtype=torch.float64)) * moved[number]
            reach[number, free] = torch.minimum(reach[number, free], found)
        nearest = [
            self._nearest(*each) for each in zip(near.gaps, near.chosen, near.slopes(self.stage, reach), strict=True)
        ]
        return torch.stack(nearest) / self.states.trunk * (1 - 1e-12) if nearest else radius

    def _nearest(self, gaps: Tensor, chosen: Tensor, slopes: tuple[Tensor, Tensor]) -> Tensor:
        """The least gap over its constant."""
        rivals = torch.arange(len(gaps), device="cpu") != chosen
        inequality = self.system.near(*slopes, self.head[chosen] - self.head[rivals])
        weight = torch.cat([0.0 * inequality.root, gaps[rivals] ** -2])
        constants = inequality.best(weight)[len(inequality.free) :]
        return (gaps[rivals] / constants).amin().nan_to_num(nan=0.0, posinf=torch.inf)


@dataclass(frozen=True, eq=False)
class _Near:
    """What is known at images: pre-activations to an error, predictions, proved gaps of their logits."""

    centre: Tensor
    error: Tensor
    chosen: Tensor
    gaps: Tensor

    @staticmethod
    def of(stage: Proof, ball: Ball, logits: Logits) -> _Near:
        chosen = logits.value.argmax(1)
        gaps = logits.value.gather(1, chosen[:, None]) - logits.value - logits.slack(chosen)
        return _Near(*(t.cpu() for t in (*stage.preactivations(ball), chosen, gaps)))

    def at(self, places: Tensor) -> _Near:
        return _Near(*(column[places] for column in (self.centre, self.error, self.chosen, self.gaps)))

    def slopes(self, stage: Proof, reach: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The chord slopes of each image, where pre-activations move by `reach` at most."""
        lower, upper = stage.chords(self.centre - self.error, self.centre + self.error, reach)
        return list(zip(lower, upper, strict=True))
