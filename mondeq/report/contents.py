"""What a report tells, before it is written as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mondeq.bounds import Bound
from mondeq.certificates import Report
from mondeq.training import Epoch


@dataclass(frozen=True, eq=False)
class Picture:
    """A certified image, and the nearest one that an attack found with another prediction.

    Args:
        image: (channels, height, width) in [0, 1].
        name: Of its class.
        radius: The certified one.
        attacked: The image that the attack found, None where none was sought or found.
        attacked_name: Of the class that it is given.
        distance: From `image` to `attacked`.
    """

    image: Tensor
    name: str
    radius: float
    attacked: Tensor | None = None
    attacked_name: str = ""
    distance: float = 0.0


@dataclass(frozen=True, eq=False)
class Contents:
    """All that a report tells.

    Args:
        title: Of the page.
        run: What tells this run from others, see `is_of_run`.
        facts: What it was made with, text by name.
        config: The entries of config.json.
        classes: Their names.
        report: What was certified.
        labels: The classes of the images that were certified, (N,).
        radii: Those of the tables.
        bounds: Of the Lipschitz constant, estimates too.
        history: Of training, a row for every epoch; none where it is not known.
        attacked: Accuracy under attack by radius, with the clean accuracy of the attacked images at 0; None where
            nothing was attacked.
        attacked_count: How many images were attacked.
        strongest: The images with the largest radii, the largest first.
        weakest: Those with the smallest radii > 0, the smallest first.
    """

    title: str
    run: str
    facts: Mapping[str, str]
    config: Mapping[str, Any]
    classes: Sequence[str]
    report: Report
    labels: Tensor
    radii: Sequence[float]
    bounds: Mapping[str, Bound]
    history: Sequence[Epoch]
    attacked: Mapping[float, float] | None
    attacked_count: int
    strongest: Sequence[Picture]
    weakest: Sequence[Picture]
