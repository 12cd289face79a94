"""`mondeq bound`: Lipschitz bounds of a run's model, with a lower estimate beside them."""

from __future__ import annotations

import argparse
from pathlib import Path

from mondeq import distributed
from mondeq.bounds import BOUNDS, Chain, lipschitz_bounds
from mondeq.cli.evaluation import add_data_dir, add_device, add_norm, bounds_table, count, run_data
from mondeq.cli.output import add_json, check_writable, save_json, show
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
        "certified upper bounds for all logits together and for the least regular gap of two, and the largest local "
        "Jacobian norm over test images, below which no Lipschitz constant lies.",
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
                "pairs": None if b.pairs is None else b.pairs.tolist(),
            }
            for name, b in bounds.items()
        }
        save_json(options.json, figures)
        notes = "".join(f"\n{name}: not tried, {reason}" for name, reason in unsuited.items())
        show(f"{bounds_table(bounds)}{notes}")
    return 0
