"""`mondeq certify`: certified accuracy of a run on its test set."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import mondeq
from mondeq import distributed, plots
from mondeq.attacks import GEOMETRIES, prepared
from mondeq.certificates import Certifier, Report
from mondeq.cli.attacked import Attacked, attack_split
from mondeq.cli.evaluation import (
    add_data_dir,
    add_device,
    add_norm,
    add_radii,
    bounds_table,
    certify_split,
    count,
    first_images,
    local_gain,
    report_json,
    report_table,
    run_data,
)
from mondeq.cli.output import add_json, check_writable, percent, save_json, show
from mondeq.cli.tables import Partial, check_table, write_table
from mondeq.data import Split
from mondeq.network import Network
from mondeq.norms import NORMS
from mondeq.runs import load


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mondeq certify` to the command line.

    Args:
        commands: The subcommands.
    """
    parser = commands.add_parser(
        "certify",
        help="certified accuracy of a trained model",
        description="Certify a trained model on its test set: the share of images that are classified right and "
        "proved to stay so for every perturbation of at most the given norm. Runs under torchrun, images shared.",
        epilog="example: mondeq certify runs/mnist --radii 0.1 0.2 36/255 --attack",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder of `mondeq train`")
    add_radii(parser, *NORMS)
    parser.add_argument(
        "--attack", action="store_true", help="also attack the first images, in all ways that are known (needs foolbox)"
    )
    parser.add_argument("--attack-samples", type=count(1), default=500, metavar="N", help="images to attack (500)")
    parser.add_argument("--limit", type=count(1), metavar="N", help="use only the first N test images")
    parser.add_argument(
        "--table", type=Path, metavar="FILE",
        help="write a row per image to FILE.csv or FILE.parquet (needs pyarrow); after an interruption the same "
        "command goes on where it was",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the certified-accuracy curve")
    parser.add_argument(
        "--local", action="store_true", help="also certify by what the network is like near each image (slow)"
    )
    add_norm(parser)
    add_data_dir(parser)
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `mondeq certify`.

    Args:
        options: What was typed.

    Returns:
        The exit code.

    Raises:
        MondeqError: Why it failed; BrokenCertificate where an attack succeeds within a certified radius.
        SplittingError: Why it failed.
        KeyboardInterrupt: It was interrupted, and says what the partial table holds.
    """
    with distributed.session(options.device) as device:
        options.radii = NORMS[options.norm].radii if options.radii is None else options.radii
        check_writable(options.json, options.plot, options.table)
        check_table(options.table)
        attacks = list(prepared(GEOMETRIES[options.norm])) if options.attack else []
        model = load(options.folder, device=device)
        split = first_images(run_data(options.folder, options.data_dir, model).test, options.limit)
        certifier = Certifier(model, options.norm, extra=["local"] if options.local else [])
        partial = Partial(options.table, _key(options, certifier, split, attacks))
        try:
            report, attacked = _evaluate(options, model, certifier, split, partial)
        except KeyboardInterrupt:
            if partial.path is None or not partial.rows("certifying"):
                raise
            done = f"{partial.rows('certifying')} of {len(split)} images certified"
            done += f", {partial.rows('attacking')} attacked" if options.attack else ""
            text = f"interrupted; {partial.path} has {done}: give the same command to go on"
            raise KeyboardInterrupt(text) from None
        everywhere = None
        if options.local:
            everywhere = certify_split(Certifier(model, options.norm, report.bounds), split, None)
        _leave(options, split, report, attacked, everywhere)
        partial.finish()
    return 0


def _evaluate(
    options: argparse.Namespace, model: Network, certifier: Certifier, split: Split, partial: Partial
) -> tuple[Report, Attacked | None]:
    report = certify_split(certifier, split, None, partial)
    if not options.attack:
        return report, None
    taken = first_images(split, options.attack_samples)
    return report, attack_split(model, certifier, report, taken, options.radii, folder=options.folder, partial=partial)


def _key(options: argparse.Namespace, certifier: Certifier, split: Split, attacks: list[str]) -> dict[str, str]:
    """What the rows of a table depend on."""
    digest = hashlib.sha256(f"{tuple(split.images.shape)}".encode())
    for tensor in (split.images, split.labels):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return {
        "network": certifier.chain.owner,
        "norm": options.norm,
        "data set or --limit": digest.hexdigest(),
        "choice of attacks": f"{attacks} {options.attack_samples} {options.radii}" if attacks else "",
        "version of mondeq": mondeq.__version__,
        "set of certificates": ", ".join(certifier.methods),
    }


def _leave(
    options: argparse.Namespace, split: Split, report: Report, attacked: Attacked | None, everywhere: Report | None
) -> None:
    """Write and print what was found; `everywhere` is the report without local certificates, where there are some."""
    figures = report_json(report, options.radii)
    cells = _cells(split, report)
    text = report_table(report, options.radii)
    if attacked is not None:
        figures |= attacked.figures(options.radii)
        cells |= attacked.cells(len(split))
        count, blind = len(attacked.report.radius), percent(attacked.zero_gradients)
        under = report_table(attacked.report, options.radii, attacked.accuracies(options.radii))
        text = under if count == len(split) else f"{text}\n\nthe first {count} images:\n\n{under}"
        text += f"\n({count} images attacked; {blind} of the attack's gradients were 0)"
    if everywhere is not None:
        figures["without_local"] = report_json(everywhere, options.radii)["certified_accuracy"]
        text += f"\n\n{local_gain(everywhere, report, options.radii)}"
    write_table(options.table, cells)
    if options.plot and distributed.is_main():
        plots.certified_accuracy(report, str(options.folder), options.plot)
    save_json(options.json, figures)
    show(f"{text}\n\n{bounds_table(report.bounds)}")


def _cells(split: Split, report: Report) -> dict[str, Any]:
    """A row for every image."""
    return {
        "index": range(len(split)),
        "label": split.labels.tolist(),
        "prediction": report.prediction.tolist(),
        "correct": report.correct.tolist(),
        "radius": report.radius.tolist(),
        "method": [report.methods[k] if r > 0 else None for k, r in zip(report.method, report.radius, strict=True)],
        "error_bound": report.error_bound.tolist(),
    }
