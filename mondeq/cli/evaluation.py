"""What `train`, `certify` and `bound` share: finding a run's data, certifying a split, tables of the result."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mondeq import data, distributed
from mondeq.certify import Report, certify
from mondeq.cli import places
from mondeq.cli.output import percent, table
from mondeq.errors import ConfigError
from mondeq.files import read_json
from mondeq.lipschitz import Bound, lipschitz_bounds
from mondeq.models import Classifier, ModelConfig
from mondeq.runs import CONFIG

DEFAULT_RADII = (0.1, 0.2, 0.5, 1.0, 1.58)

# Images held as floats at a time; a multiple of what `certify` solves at once.
_CHUNK = 2000


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (the default), cpu, cuda or cuda:N")


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where data files are or go (default: $MONDEQ_DATA, else a cache)"
    )


def count(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number ≥ `least`, of at most eighteen digits."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number ≥ {least}, or too large a one")
        return int(text)

    return parse


def load_data(name: str, data_dir: Path | None) -> data.Dataset:
    """The data set; where there are several processes, the first downloads and decodes while the others wait."""
    if not distributed.is_main():
        distributed.wait()
        return data.load(name, data_dir)
    dataset = data.load(name, data_dir)
    distributed.wait()
    return dataset


def run_data(run: Path, data_dir: Path | None) -> data.Dataset:
    """The data set a run was trained on, from where it was then unless `data_dir` says otherwise."""
    dataset = load_data(*places.find(run, data_dir))
    check_fits(ModelConfig.from_dict(read_json(run / CONFIG).get("model", {})), dataset)
    return dataset


def check_fits(config: ModelConfig, dataset: data.Dataset) -> None:
    """Raise ConfigError unless images and classes of `dataset` are those that `config` was trained on, in their order.

    Warns where it does not know the names of its classes, as runs of older versions do not.
    """
    shape = tuple(dataset.test.images.shape[1:])
    if shape != config.image_shape:
        raise ConfigError(f"`images` must have shape {config.image_shape} for this run, those of the data have {shape}")
    trained, found = config.class_names, dataset.classes
    if config.classes != len(found):
        raise ConfigError(f"the run has {config.classes} classes and the data {len(found)}; give the data as it was")
    if not trained:
        text = "the run does not say the names of its classes: that the data still has the same cannot be checked"
        warnings.warn(text, UserWarning, stacklevel=2)
    for number, (then, now) in enumerate(zip(trained, found, strict=False)):
        if then != now:
            raise ConfigError(
                f"class {number} was {then!r} when the run was trained and is {now!r} in the data; give the data as it "
                "was, or train again"
            )


def certify_split(model: Classifier, split: data.Split, device: torch.device, limit: int | None = None) -> Report:
    """The report on a split (or its first `limit` images), each process taking a share."""
    model = model.to(device)
    bounds = lipschitz_bounds(model)
    if limit is not None:
        split = data.Split(split.images[:limit], split.labels[:limit])
    share = data.batches(split, _CHUNK, device=device, rank=distributed.rank(), world_size=distributed.world_size())
    parts = [certify(model, images, labels, bounds=bounds) for images, labels in share]
    empty = torch.zeros(0, dtype=torch.float64, device="cpu")
    columns = [
        distributed.gather(torch.cat([getattr(p, name).cpu() for p in parts]) if parts else empty)
        for name in ("radius", "correct", "prediction", "error_bound")
    ]
    return Report(columns[0], columns[1].bool(), columns[2].long(), columns[3], bounds)


def report_table(report: Report, radii: Sequence[float], attacked: dict[float, float] | None = None) -> str:
    """Certified accuracy by radius, and accuracy under attack (with its own clean accuracy at radius 0) beside it."""
    certified = report.certified_accuracy(radii)
    header = ["ℓ2 radius", "certified"] + (["under attack"] if attacked else [])
    rows = [["0 (clean)", percent(report.accuracy)] + ([percent(attacked[0.0])] if attacked else [])]
    rows += [
        [f"{r:g}", percent(certified[r])] + ([percent(attacked[r])] if attacked else []) for r in map(float, radii)
    ]
    return table(rows, header=header)


def bounds_table(bounds: dict[str, Bound]) -> str:
    """Each bound with what kind of statement it is."""
    rows = [
        [name, f"{b.value:.4f}", "" if b.pairs is None else f"{float(b.pairs.max()):.4f}", b.kind]
        for name, b in bounds.items()
    ]
    return table(rows, header=["Lipschitz constant (logits per pixel unit)", "all logits", "largest gap", "kind"])


def report_json(report: Report, radii: Sequence[float]) -> dict[str, Any]:
    """The figures of a report, for metrics.json and --json."""
    return {
        "test_accuracy": report.accuracy,
        "certified_accuracy": {f"{r:g}": share for r, share in report.certified_accuracy(radii).items()},
        "lipschitz": {name: {"value": b.value, "kind": b.kind} for name, b in report.bounds.items()},
        "largest_solver_error_bound": float(report.error_bound.max()) if len(report.error_bound) else 0.0,
        "samples": len(report.radius),
    }
