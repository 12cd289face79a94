"""`mondeq bound`: Lipschitz bounds of a run's model, with a lower estimate beside them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from mondeq import distributed
from mondeq.bounds import BOUNDS, Bound, Chain, lipschitz_bounds
from mondeq.cli.evaluation import add_data_dir, add_device, add_norm, bounds_table, count, run_data
from mondeq.cli.output import add_json, check_writable, percent, save_json, show, table
from mondeq.runs import load


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mondeq bound` to the command line.

    Args:
        commands: The subcommands.
    """
    parser = commands.add_parser(
        "bound",
        help="Lipschitz bounds of a trained model",
        description="Bound the Lipschitz constant of a trained model from pixels in [0, 1] to logits (in ℓ2): "
        "certified upper bounds for all logits together and for the least regular gap of two, and an estimate: the "
        "largest local Jacobian norm found over test images and by gradient ascent from them, below which no Lipschitz "
        "constant lies. The tightness of a bound is the estimate divided by it.",
        epilog="example: mondeq bound runs/mnist --images 2000",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder of `mondeq train`")
    parser.add_argument(
        "--images", type=count(0), default=500, metavar="N", help="test images for the lower estimate (0: none)"
    )
    add_norm(parser)
    add_data_dir(parser)
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `mondeq bound`.

    Args:
        options: What was typed.

    Returns:
        The exit code.

    Raises:
        MondeqError: Why it failed.
        SplittingError: Why it failed.
    """
    with distributed.session(options.device) as device:
        check_writable(options.json)
        model = load(options.folder, device=device)
        images = None
        if options.images > 0:
            split = run_data(options.folder, options.data_dir, model).test
            images = split.images[: options.images].to(device).float() / 255
        chain = Chain.of(model, options.norm)
        bounds = lipschitz_bounds(model, images, norm=options.norm, chain=chain)
        unsuited = {name: reason for name, kind in BOUNDS.items() if (reason := kind().unsuited(chain)) is not None}
        figures = {
            name: {
                "value": b.value,
                "kind": b.kind,
                "method": b.method,
                "assumptions": b.assumptions,
                "tightness": tightness(b, bounds),
                "seconds": b.seconds,
                "pairs": None if b.pairs is None else b.pairs.tolist(),
            }
            for name, b in bounds.items()
        }
        save_json(options.json, figures)
        notes = "".join(f"\n{name}: not tried, {reason}" for name, reason in unsuited.items())
        show(f"{bounds_table(bounds)}\n\n{_details(bounds)}{notes}")
    return 0


def tightness(bound: Bound, bounds: Mapping[str, Bound]) -> float | None:
    """The largest estimate divided by a bound: 1 where the bound is the Lipschitz constant, and never above.

    Args:
        bound: The bound.
        bounds: It and others of the same network.

    Returns:
        The share; None for an estimate, and where there is none or the bound is 0.
    """
    estimates = [b.value for b in bounds.values() if not b.is_certified]
    return max(estimates) / bound.value if bound.is_certified and estimates and bound.value > 0 else None


def _details(bounds: Mapping[str, Bound]) -> str:
    """Tightness and seconds of each bound as a table, and below it how each was found and what it assumes."""
    shares = {name: tightness(b, bounds) for name, b in bounds.items()}
    rows = [
        [name, "" if (share := shares[name]) is None else percent(share), f"{b.seconds:.1f}"]
        for name, b in bounds.items()
    ]
    notes = "".join(f"\n{name}: {b.method}; {b.assumptions}" for name, b in bounds.items())
    return f"{table(rows, header=['method', 'tightness', 'seconds'])}\n{notes}"
