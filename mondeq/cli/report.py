"""`mondeq report`: a run as one page of HTML, with nothing outside the file."""

from __future__ import annotations

import argparse
import hashlib
import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mondeq
from mondeq import data, distributed, values
from mondeq.attacks import GEOMETRIES, nearest_adversarials, prepared, standing
from mondeq.bounds import lipschitz_bounds
from mondeq.certificates import Certifier, Report
from mondeq.cli.evaluation import add_data_dir, add_device, certify_split, count, first_images, pixels, run_data
from mondeq.cli.output import check_writable, show
from mondeq.errors import RunError
from mondeq.files import read_json, write_text
from mondeq.losses import LOSSES
from mondeq.network import Network
from mondeq.norms import NORMS
from mondeq.report import Contents, Picture, compose, is_of_run
from mondeq.runs import CONFIG, load
from mondeq.training.progress import read_history

# Images to attack, images whose slopes are measured, and pictures of each kind.
_ATTACKED, _MEASURED, _PICTURES = 500, 500, 8


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mondeq report` to the command line.

    Args:
        commands: The subcommands.
    """
    parser = commands.add_parser(
        "report",
        help="a run as one page of HTML",
        description="Write a report on a run as one HTML file that needs no other: certified accuracy, classes, "
        "bounds, the strongest and the weakest certified images, course of training, recipe, versions. The test set is "
        "certified for it. Runs under torchrun, images shared.",
        epilog="example: mondeq report runs/mnist --attack",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder of `mondeq train`")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: RUN/report.html)")
    parser.add_argument(
        "--attack", action="store_true", help=f"also attack the first {_ATTACKED} images (needs foolbox)"
    )
    parser.add_argument("--limit", type=count(1), metavar="N", help="use only the first N test images")
    add_data_dir(parser)
    add_device(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `mondeq report`.

    Args:
        options: What was typed.

    Returns:
        The exit code.

    Raises:
        MondeqError: Why it failed.
        SplittingError: Why it failed.
    """
    with distributed.session(options.device) as device:
        out = options.out or options.folder / "report.html"
        check_writable(out)
        _check_free(out, options.folder)
        model = load(options.folder, device=device)
        norm = _norm(read_json(options.folder / CONFIG))
        if options.attack:
            prepared(GEOMETRIES[norm])  # before anything is computed
        dataset = run_data(options.folder, options.data_dir, model)
        split = first_images(dataset.test, options.limit)
        bounds = lipschitz_bounds(model, pixels(split, 0, _MEASURED, device)[0], norm=norm)
        report = certify_split(Certifier(model, norm, bounds), split)
        if distributed.is_main():
            write_text(out, compose(_contents(options, model, dataset.classes, split, report)))
        show(f"report: {out}")
    return 0


def _check_free(out: Path, folder: Path) -> None:
    """Raise RunError where there is anything but a report of the same run."""
    if out.exists() and not is_of_run(out, _identity(folder)):
        raise RunError(f"{out} exists and is no report of this run; choose another --out")


def _identity(folder: Path) -> str:
    """What tells a run from others: its settings, of which nothing changes while it is trained."""
    return hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()[:32]


def _contents(
    options: argparse.Namespace, model: Network, classes: Sequence[str], split: data.Split, report: Report
) -> Contents:
    config = read_json(options.folder / CONFIG)
    radii = _radii(config)
    order = (report.correct & (report.radius > 0)).nonzero()[:, 0]
    order = order[report.radius[order].argsort(descending=True, stable=True)]
    shown = {"strongest": order[:_PICTURES], "weakest": order.flip(0)[:_PICTURES]}
    attacked, counted = None, min(_ATTACKED, len(split))
    nearest: dict[int, _Nearest] = {}
    if options.attack:
        rows = torch.cat([torch.arange(counted), *shown.values()]).unique()
        nearest = _attacked(model, split, rows, radii, report.norm)
        distances = torch.tensor([nearest[row].distance for row in range(counted)])
        attacked = {0.0: float(report.correct[:counted].double().mean())}
        attacked |= {radius: standing(distances, radius) for radius in radii}
    return Contents(
        title=options.folder.resolve().name or "report",
        run=_identity(options.folder),
        facts=_facts(options.folder, config, model, report),
        config=config,
        classes=classes,
        report=report,
        labels=split.labels,
        radii=radii,
        bounds=report.bounds,
        history=read_history(options.folder / "history.csv"),
        attacked=attacked,
        attacked_count=counted,
        **{
            name: [_picture(model, split, row, classes, report, nearest.get(row)) for row in chosen.tolist()]
            for name, chosen in shown.items()
        },
    )


def _training(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the training; none of a run that has none."""
    training = config.get("training")
    return training if isinstance(training, dict) else {}


def _norm(config: dict[str, Any]) -> str:
    """That of the radius that was trained for."""
    loss = _training(config).get("loss")
    return LOSSES[loss].norm if isinstance(loss, str) and loss in LOSSES else "l2"


def _radii(config: dict[str, Any]) -> list[float]:
    """Those of the tables: the usual ones of the norm, and the one that was trained for."""
    own = values.real(_training(config).get("radius"))
    return sorted({*NORMS[_norm(config)].radii, *([own] if own and 0 < own < float("inf") else [])})


def _facts(folder: Path, config: dict[str, Any], model: Network, report: Report) -> dict[str, str]:
    metrics = folder / "metrics.json"
    figures = read_json(metrics) if metrics.is_file() else {}
    machine = figures.get("machine")
    seconds = values.real(figures.get("train_seconds"))
    certificates = {name: int((report.method[report.radius > 0] == k).sum()) for k, name in enumerate(report.methods)}
    facts = {
        "date of this report": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seed": _training(config).get("seed"),
        "weights": f"{sum(p.numel() for p in model.parameters()):,}",
        "mondeq, of the run": config.get("version"),
        "mondeq, of this report": mondeq.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "trained on": ", ".join(f"{k} {v}" for k, v in machine.items()) if isinstance(machine, dict) else None,
        "trained for": None if seconds is None else f"{seconds:.0f} s",
        "radii by": ", ".join(f"{name}: {number}" for name, number in certificates.items()),
        "largest error of a solve": f"{float(report.error_bound.max()):.2e}",
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


class _Nearest(NamedTuple):
    """The nearest image that an attack found, and how far it is."""

    image: Tensor
    distance: float


def _attacked(
    model: Network, split: data.Split, rows: Tensor, radii: Sequence[float], norm: str
) -> dict[int, _Nearest]:
    """What attacks found for some images, all attacked together, by their numbers."""
    taken = data.Split(split.images[rows], split.labels[rows])
    images, labels = pixels(taken, 0, len(taken), model.device)
    found = nearest_adversarials(model, images, labels, radii=radii, norm=norm)
    each = zip(rows.tolist(), found.examples, found.distance.tolist(), strict=True)
    return {row: _Nearest(*rest) for row, *rest in each}


def _picture(
    model: Network, split: data.Split, row: int, classes: Sequence[str], report: Report, nearest: _Nearest | None
) -> Picture:
    (image,), _ = pixels(split, row, row + 1, model.device)
    shown = (image, classes[int(split.labels[row])], float(report.radius[row]))
    if nearest is None or math.isinf(nearest.distance):
        return Picture(*shown)
    given = int(model(nearest.image[None].to(image)).argmax())
    return Picture(*shown, nearest.image, classes[given], nearest.distance)
