"""The record that every bound is, so that what is proved and what is estimated never blur."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Bound:
    """A number about a Lipschitz constant, and what kind of statement it is.

    value: in logits per pixel unit (ℓ2 in, ℓ2 out). kind: "certified", an upper bound proved and computed with rounding
    accounted for; or "estimate", which proves nothing above it. method, assumptions: for the reader. pairs: where the
    method has them, constants of single logit gaps, (classes, classes) float64: y_i − y_j is pairs[i, j]-Lipschitz.
    """

    value: float
    kind: Literal["certified", "estimate"]
    method: str
    assumptions: str
    pairs: Tensor | None = None
