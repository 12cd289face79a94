"""Certified images under attack: how near another class was found, and what to do where that is nearer than allowed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mondeq.attacks import (
    GEOMETRIES,
    Adversarials,
    nearest_adversarials,
    prepared,
    standing,
    violations,
)
from mondeq.attacks.nearest import at_once
from mondeq.certificates import Certifier, Report
from mondeq.cli.evaluation import COLUMNS, pixels
from mondeq.cli.tables import Columns, Partial, in_rounds
from mondeq.data import Split
from mondeq.errors import BrokenCertificate, RunError
from mondeq.network import Network
from mondeq.runs import write_tensors


@dataclass(frozen=True, eq=False)
class Attacked:
    """Certified images under attack.

    Args:
        report: That of the images that were attacked.
        distances: By attack, of the nearest image of another class than the prediction, (N,) float64; inf where none
            was found.
        zero_gradients: The share of gradients that were exactly 0.
    """

    report: Report
    distances: dict[str, Tensor]
    zero_gradients: float

    def accuracies(self, radii: Sequence[float]) -> dict[str, dict[float, float]]:
        """Accuracy by radius under each attack, and "under attack" of all together.

        Args:
            radii: The radii. 0, the clean accuracy, is added.

        Returns:
            The shares by attack and radius.
        """
        together = torch.stack(list(self.distances.values())).amin(0)
        found = {}
        for name, distance in {**self.distances, "under attack": together}.items():
            left = torch.where(self.report.correct.cpu(), distance, 0.0)
            found[name] = {r: standing(left, r) for r in (0.0, *map(float, radii))}
        return found

    def figures(self, radii: Sequence[float]) -> dict[str, Any]:
        """What --json says of the attacks.

        Args:
            radii: The radii.

        Returns:
            The figures by name.
        """
        *each, together = ({f"{r:g}": s for r, s in a.items()} for a in self.accuracies(radii).values())
        certified = self.report.certified_accuracy(map(float, radii))
        return {
            "accuracy_under_attack": together,
            "accuracy_under_each_attack": dict(zip(self.distances, each, strict=True)),
            "certified_accuracy_of_attacked": {f"{r:g}": share for r, share in certified.items()},
            "attack_zero_gradients": self.zero_gradients,
            "attacked_samples": len(self.report.radius),
            "violations": 0,
        }

    def cells(self, total: int) -> dict[str, list[Any]]:
        """The columns of a table of all images: the distance, and which attack found it.

        Args:
            total: How many images the table has; those that were not attacked come last, with empty cells.

        Returns:
            The columns by name.
        """
        distance, number = torch.stack(list(self.distances.values())).min(0)
        names, empty = list(self.distances), [None] * (total - len(distance))
        by = [names[k] if d < float("inf") else None for k, d in zip(number.tolist(), distance.tolist(), strict=True)]
        return {"attacked_distance": [*distance.tolist(), *empty], "attack": [*by, *empty]}


def attack_split(
    model: Network,
    certifier: Certifier,
    report: Report,
    split: Split,
    radii: Sequence[float],
    *,
    folder: Path,
    partial: Partial,
) -> Attacked:
    """Attack the first images of a split, each process taking a share, and hold what is found against the report.

    Predictions are attacked, right or wrong: a radius is theirs.

    Args:
        model: The network.
        certifier: What certified it.
        report: What it found, for at least the images of the split.
        split: The images to attack.
        radii: The radii that are asked about. Every image is attacked at its certified radius too.
        folder: Where the sample is saved that proves a certificate wrong.
        partial: What was found before, and where to keep it.

    Returns:
        The distances of all of them, in every process.

    Raises:
        BrokenCertificate: An image of another class lies within a certified radius.
        ConfigError: Foolbox is missing.
        RunError: The partial table cannot be used.
    """
    taken = _first(report, len(split))
    names = list(prepared(GEOMETRIES[report.norm]))

    def work(first: int, last: int) -> Columns:
        images, _ = pixels(split, first, last, certifier.chain.exact.device)
        own = _first(report, last, first)
        found = nearest_adversarials(
            model, images, own.prediction, radii=radii, norm=report.norm, certifier=certifier, within=own.radius,
            seed=first,
        )  # fmt: skip
        for image in violations(own, found).tolist()[:1]:
            _tell(own, found, images, image, first, folder)
        counts = {"gradients": found.gradients, "zeros": found.zeros}
        # Of these only the sum is used: those of all images stand with the first.
        sums = {name: torch.tensor([count, *[0] * (last - first - 1)]) for name, count in counts.items()}
        return {**found.distances, **sums}

    kinds = {**dict.fromkeys(names, torch.float64), "gradients": torch.int64, "zeros": torch.int64}
    block = at_once(certifier.chain.exact)
    columns = in_rounds(work, len(split), block, phase="attacking", kinds=kinds, partial=partial)
    zeros, gradients = (int(columns[name].sum()) for name in ("zeros", "gradients"))
    return Attacked(taken, {name: columns[name] for name in names}, zeros / max(gradients, 1))


def _first(report: Report, stop: int, start: int = 0) -> Report:
    """The report on the images from one number up to another."""
    return replace(report, **{name: getattr(report, name)[start:stop] for name in COLUMNS})


def _tell(report: Report, found: Adversarials, images: Tensor, image: int, first: int, folder: Path) -> None:
    """Save the sample and raise."""
    distance, number = torch.stack([d[image].cpu() for d in found.distances.values()]).min(0)
    sample = {
        "image": images[image],
        "example": found.examples[image],
        "prediction": report.prediction[image],
        "radius": report.radius[image],
        "distance": distance,
        "number": torch.tensor(first + image),
    }
    raise BrokenCertificate(
        f"the certificate of image {first + image} is wrong: nothing within {float(report.radius[image]):.9g} was to "
        f"change its class, and {list(found.distances)[int(number)]!r} does at {float(distance):.9g} ({found.norm}); "
        f"please report it with {_save(sample, folder)}"
    )


def _save(sample: Mapping[str, Tensor], folder: Path) -> str:
    """Write a sample under a name that nothing has yet; the name, or why there is none."""
    for number in itertools.count(1):
        path = folder / f"violation-{number}.safetensors"
        try:
            path.open("xb").close()
        except FileExistsError:
            continue
        except OSError as error:
            return f"the sample, which could not be saved: {path}: {error.strerror}"
        try:
            write_tensors(path, dict(sample))
        except RunError as error:
            path.unlink(missing_ok=True)
            return f"the sample, which could not be saved: {error}"
        return str(path)
    raise RunError(f"{folder} has no free name for a sample")  # never: numbers do not end
