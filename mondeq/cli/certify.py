"""`mondeq certify`: certified accuracy of a run on its test set."""

from __future__ import annotations

import argparse
from pathlib import Path

from mondeq import distributed, plots
from mondeq.attacks import accuracy_under_attack
from mondeq.certificates import Certifier
from mondeq.cli.evaluation import (
    DEFAULT_RADII,
    add_data_dir,
    add_device,
    add_norm,
    bounds_table,
    certify_split,
    count,
    local_gain,
    report_json,
    report_table,
    run_data,
)
from mondeq.cli.output import add_json, check_writable, percent, save_json, show
from mondeq.errors import ConfigError
from mondeq.runs import load
from mondeq.settings import number


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
    parser.add_argument(
        "--radii", type=_radius, nargs="+", default=list(DEFAULT_RADII), metavar="R",
        help=f"radii in pixels of [0, 1], fractions allowed (default: {' '.join(map(str, DEFAULT_RADII))})",
    )  # fmt: skip
    parser.add_argument(
        "--attack", action="store_true", help="also measure accuracy under an ℓ2 PGD attack (needs foolbox)"
    )
    parser.add_argument("--attack-samples", type=count(1), default=500, metavar="N", help="images to attack (500)")
    parser.add_argument("--limit", type=count(1), metavar="N", help="use only the first N test images")
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
        MondeqError: Why it failed.
        SplittingError: Why it failed.
    """
    with distributed.session(options.device) as device:
        check_writable(options.json, options.plot)
        model = load(options.folder, device=device)
        if options.attack and options.norm != "l2":
            raise ConfigError("`--attack` knows ℓ2 attacks only; leave out --norm or --attack")
        split = run_data(options.folder, options.data_dir, model).test
        report = everywhere = certify_split(Certifier(model, options.norm), split, options.limit)
        if options.local:
            local = Certifier(model, options.norm, report.bounds, extra=["local"])
            report = certify_split(local, split, options.limit)
        figures = report_json(report, options.radii)
        attacked = None
        if options.attack and distributed.is_main():
            taken = min(options.attack_samples, len(report.radius))
            images, labels = split.images[:taken].to(device).float() / 255, split.labels[:taken].to(device)
            attacked = {0.0: float(report.correct[:taken].double().mean())}
            found = accuracy_under_attack(model, images, labels, options.radii)
            attacked |= found
            figures["attack_zero_gradients"] = found.zero_gradients
            figures["accuracy_under_attack"] = {f"{r:g}": share for r, share in attacked.items()}
            figures["attacked_samples"] = taken
        if options.plot and distributed.is_main():
            plots.certified_accuracy(report, str(options.folder), options.plot)
        save_json(options.json, figures)
        note = ""
        if options.local:
            gained = local_gain(everywhere, report, options.radii)
            figures["without_local"] = report_json(everywhere, options.radii)["certified_accuracy"]
            note = f"\n\n{gained}"
        if attacked:
            blind = percent(figures["attack_zero_gradients"])
            note += f"\n({figures['attacked_samples']} images attacked; {blind} of the attack's gradients were 0)"
        show(f"{report_table(report, options.radii, attacked)}{note}\n\n{bounds_table(report.bounds)}")
    return 0


def _radius(text: str) -> float:
    value = number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a radius; give numbers ≥ 0 such as 0.5 or 36/255")
    return value
