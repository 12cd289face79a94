"""`python -m experiments.attacked RUN … --data-dir DIR --out FILE`: certificates under attack, in both norms.

Test images and then training images are certified and attacked at their certified radii and by their nearest other
class. Certified, attacked and clean accuracy go to FILE as JSON after every run and norm; an attack that succeeds
within a certified radius ends it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import mondeq
from mondeq.attacks import ATTACKS, nearest_adversarials, standing, violations
from mondeq.cli.evaluation import first_images, pixels, run_data
from mondeq.data import Split
from mondeq.files import write_json

_RADII = {"l2": (0.1, 0.25, 0.5, 1.0, 1.58), "linf": (0.01, 0.03, 0.1, 0.3)}


def attack_run(run: Path, norm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Certify and attack the first images of a run's data.

    Args:
        run: The run folder.
        norm: That of the radii.
        options: The command line: `data_dir`, `images`, `steps` and `attacks` are read.

    Returns:
        The figures, ready for JSON.

    Raises:
        MondeqError: The run or its data cannot be used, or a library is missing.
    """
    model = mondeq.load(run)
    dataset = run_data(run, options.data_dir, model)
    parts = [first_images(dataset.test, options.images)]
    if options.images > len(parts[0]):
        parts.append(first_images(dataset.train, options.images - len(parts[0])))
    split = Split(*(torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels")))
    certifier = mondeq.Certifier(model, norm)
    started, gradients, zeros, broken = time.perf_counter(), 0, 0, 0
    columns: dict[str, list[Tensor]] = {"correct": [], "radius": [], **{name: [] for name in options.attacks}}
    for first in tqdm(range(0, len(split), 500), f"{run.name}, {norm}", disable=None):
        chunk, own = pixels(split, first, min(first + 500, len(split)), model.device)
        report = certifier.certify(chunk, own)
        found = nearest_adversarials(
            model, chunk, report.prediction, norm=norm, attacks=options.attacks, certifier=certifier,
            within=report.radius, steps=options.steps, seed=first,
        )  # fmt: skip
        broken += len(violations(report, found))
        gradients, zeros = gradients + found.gradients, zeros + found.zeros
        for name, column in {"correct": report.correct, "radius": report.radius, **found.distances}.items():
            columns[name].append(column)
    joined = {name: torch.cat(chunks) for name, chunks in columns.items()}
    correct, radius = joined["correct"], joined["radius"]
    nearest = torch.stack([joined[name] for name in options.attacks]).amin(0)
    known = correct & (radius > 0) & torch.isfinite(nearest)
    return {
        "run": run.name,
        "norm": norm,
        "images": len(split),
        "violations": broken,
        "clean": float(correct.double().mean()),
        "certified": {f"{r:g}": float((correct & (radius >= r)).double().mean()) for r in _RADII[norm]},
        "attacked": {f"{r:g}": standing(torch.where(correct, nearest, 0.0), r) for r in _RADII[norm]},
        "smallest distance/radius": float((nearest / radius)[known].min()) if known.any() else None,
        "median distance/radius": float((nearest / radius)[known].median()) if known.any() else None,
        "zero gradients": zeros / max(gradients, 1),
        "seconds": time.perf_counter() - started,
    }


def main(arguments: list[str] | None = None) -> int:
    """Attack all runs in both norms.

    Args:
        arguments: The command line; that of the process by default.

    Returns:
        The exit code: 1 where a certificate was broken.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.attacked", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where the data of the runs are")
    parser.add_argument("--images", type=int, default=10_000, help="of each run")
    parser.add_argument("--steps", type=int, default=20, help="of each search")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures there, as JSON")
    options = parser.parse_args(arguments)
    figures: list[dict[str, Any]] = []
    for run in options.runs:
        for norm in _RADII:
            figures.append(attack_run(run, norm, options))
            print(json.dumps(figures[-1]), flush=True)
            total = {name: sum(row[name] for row in figures) for name in ("images", "violations")}
            if options.out is not None:
                write_json(options.out, {**total, "steps": options.steps, "attacks": options.attacks, "runs": figures})
            if total["violations"]:
                return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
