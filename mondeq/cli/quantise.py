"""`mondeq quantise`: a run with weights of few bits, and what is proved to survive of its predictions and radii."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mondeq
from mondeq import distributed
from mondeq.certificates import Certifier
from mondeq.cli import places
from mondeq.cli.evaluation import (
    add_data_dir,
    add_device,
    add_norm,
    add_radii,
    certify_split,
    count,
    first_images,
    report_json,
    run_data,
    shared_columns,
)
from mondeq.cli.output import add_json, check_writable, percent, save_json, show, table
from mondeq.errors import RunError
from mondeq.files import read_json, sole_writer, write_json
from mondeq.norms import NORMS
from mondeq.quantisation import LEAST_BITS, MOST_BITS, checked, quantised
from mondeq.runs import CONFIG, load, save_quantised
from mondeq.weights import Comparison, Movement, Survival

_COLUMNS = {"logits": torch.float64, "prediction": torch.int64, "same": torch.bool}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mondeq quantise` to the command line.

    Args:
        commands: The subcommands.
    """
    parser = commands.add_parser(
        "quantise",
        help="a run with weights of few bits, certified",
        description="Round the matrices and kernels of a trained model to few bits, write the result as a run folder "
        "that every command takes, and prove for how many test images prediction and radius survive.",
        epilog="example: mondeq quantise runs/mnist --bits 8",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder of `mondeq train`")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="the new run folder (default: RUN-Bbit)")
    parser.add_argument(
        "--bits", type=count(0), required=True, metavar="B", help=f"of a weight: {LEAST_BITS} to {MOST_BITS}"
    )
    add_radii(parser, *NORMS)
    parser.add_argument("--limit", type=count(1), metavar="N", help="use only the first N test images")
    add_norm(parser)
    add_data_dir(parser)
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `mondeq quantise`.

    Args:
        options: What was typed.

    Returns:
        The exit code.

    Raises:
        MondeqError: Why it failed.
        SplittingError: Why it failed.
    """
    with distributed.session(options.device) as device:
        bits = checked(options.bits)
        run_, folder = options.folder, _place(options)
        check_writable(options.json)
        model = load(run_, device=device)
        split = first_images(run_data(run_, options.data_dir, model).test, options.limit)
        moved = quantised(model, bits)
        before, after = (Certifier(each, options.norm) for each in (model, moved))
        reports = [certify_split(each, split) for each in (before, after)]
        compared = Comparison(before.chain, after.chain)
        columns = shared_columns(
            lambda images, _: compared.movement(images), _COLUMNS, split, device, before.chain.at_once
        )
        radii = options.radii or NORMS[options.norm].radii
        survival = Survival(reports[0], reports[1], Movement(**columns))
        figures = _figures(survival, bits, radii)
        # Nothing is written before everything is proved: an interruption leaves nothing.
        if distributed.is_main():
            _save(model, folder, bits, options, {**report_json(survival.after, radii), "quantisation": figures})
        save_json(options.json, figures)
        show(f"{_table(survival, bits, radii)}\n\nrun folder: {folder}")
    return 0


def _place(options: argparse.Namespace) -> Path:
    """The new folder. Raises RunError where there is anything in it."""
    run_: Path = options.folder if options.folder.name not in ("", "..") else options.folder.absolute()
    folder: Path = Path(f"{run_}-{options.bits}bit") if options.out is None else options.out
    if distributed.is_main() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not an empty folder; choose another OUT")
    return folder


def _save(model: mondeq.Network, folder: Path, bits: int, options: argparse.Namespace, metrics: dict[str, Any]) -> None:
    # The data that `certify` asks for, and none of what would continue the training.
    config = read_json(options.folder / CONFIG)
    training = {"training": {"data": config["training"]["data"]}}
    local = options.folder / places.LOCAL
    with sole_writer(folder):
        if local.exists():
            write_json(folder / places.LOCAL, read_json(local))
        save_quantised(model, folder, bits, **training, version=mondeq.__version__)
        write_json(folder / "metrics.json", metrics)


def _figures(survival: Survival, bits: int, radii: Sequence[float]) -> dict[str, Any]:
    same, alone = survival.same, survival.movement.same
    return {
        "bits": bits,
        "samples": len(same),
        "same_prediction": int(same.sum()),
        "same_prediction_by_movement": int(alone.sum()),
        "largest_movement": float(survival.movement.logits.max()) if len(same) else 0.0,
        "accuracy": {"before": survival.before.accuracy, "after": survival.after.accuracy},
        "certified": {f"{r:g}": {"before": before, "kept": kept} for r, (before, kept) in survival.kept(radii).items()},
    }


def _table(survival: Survival, bits: int, radii: Sequence[float]) -> str:
    """Accuracies before and after, how many images keep their radius, and how many their prediction."""
    before, after, kept = survival.before, survival.after, survival.kept(radii)
    shares = [report.certified_accuracy(radii) for report in (before, after)]
    rows = [["0 (clean)", percent(before.accuracy), percent(after.accuracy), ""]]
    rows += [
        [f"{r:g}", percent(shares[0][r]), percent(shares[1][r]), f"{kept[r][1]} of {kept[r][0]}"]
        for r in map(float, radii)
    ]
    text = table(
        rows, header=[f"{NORMS[before.norm].symbol} radius", "certified", f"{bits} bits", "images that keep it"]
    )
    same, alone, total = survival.same, survival.movement.same, len(survival.same)
    return (
        f"{text}\n\nthe same prediction is proved for {int(same.sum())} of {total} images, for {int(alone.sum())} of "
        "them without solving with the new weights"
    )
