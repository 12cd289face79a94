"""The record that every bound is, so that what is proved and what is estimated never blur, nor whose it is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from splitting.errors import InvalidArgument, InvalidType


@dataclass(frozen=True, eq=False)
class Bound:
    """A number about a Lipschitz constant, and what kind of statement it is.

    value: in logits per pixel unit (ℓ2 in, ℓ2 out). kind: "certified", an upper bound proved and computed with rounding
    accounted for; or "estimate", which proves nothing above it. method, assumptions: for the reader. pairs: where the
    method has them, constants of single logit gaps, (classes, classes) float64: y_i − y_j is pairs[i, j]-Lipschitz.
    owner: fingerprint of the network that it was proved for. seal: of `owner` and `pairs`, by which a certificate knows
    that they are as they were proved. Both are empty for estimates and for what is made by hand.
    """

    value: float
    kind: Literal["certified", "estimate"]
    method: str
    assumptions: str
    pairs: Tensor | None = None
    owner: str = ""
    seal: str = ""

    def sealed(self, owner: str) -> Bound:
        """This bound as one that has been proved for the network with the fingerprint `owner`."""
        return replace(self, owner=owner, seal=_seal(owner, self.pairs))


def best_pairs(bounds: Mapping[str, Bound], owner: str | None = None) -> Tensor:
    """The entrywise minimum of the certified `pairs`, (classes, classes) float64.

    Raises InvalidArgument where there are none, or where one was not proved as it is now for the network `owner`, or,
    without that, for the same network as the others.
    """
    if not isinstance(bounds, Mapping) or not all(isinstance(bound, Bound) for bound in bounds.values()):
        raise InvalidType("`bounds` must be what lipschitz_bounds(model) returns: a dictionary of Bounds")
    certified = {name: b for name, b in bounds.items() if b.kind == "certified" and b.pairs is not None}
    for name, bound in certified.items():
        if not bound.owner or bound.seal != _seal(bound.owner, bound.pairs):
            raise InvalidArgument(f"`bounds` hold {name!r}, which is not as it was proved; use lipschitz_bounds(model)")
        owner = bound.owner if owner is None else owner
        if bound.owner != owner:
            raise InvalidArgument(
                f"`bounds` hold {name!r}, proved for other weights or another model; use lipschitz_bounds(model)"
            )
    if not certified:
        raise InvalidArgument("`bounds` hold no certified constants of gaps; pass those of lipschitz_bounds(model)")
    return torch.stack([b.pairs.cpu() for b in certified.values() if b.pairs is not None]).amin(0)


def _seal(owner: str, pairs: Tensor | None) -> str:
    content = b"" if pairs is None else pairs.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()
    return hashlib.sha256(owner.encode() + content).hexdigest()
