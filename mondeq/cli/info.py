"""`mondeq info`: what a run folder holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mondeq import distributed
from mondeq.cli.output import add_json, check_writable, save_json, show
from mondeq.errors import showable
from mondeq.files import read_json
from mondeq.network import exact_copy
from mondeq.runs import CONFIG, load


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mondeq info` to the command line.

    Args:
        commands: The subcommands.
    """
    parser = commands.add_parser(
        "info",
        help="what a run folder holds",
        description="Describe a run: architecture, constants of its operator, settings and figures of its training.",
        epilog="example: mondeq info runs/mnist",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder of `mondeq train`")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `mondeq info`.

    Args:
        options: What was typed.

    Returns:
        The exit code.

    Raises:
        MondeqError: Why it failed.
        SplittingError: Why it failed.
    """
    with distributed.session("cpu"):
        check_writable(options.json)
        model = load(options.folder)
        exact = exact_copy(model)
        metrics_file = options.folder / "metrics.json"
        figures: dict[str, Any] = {
            **read_json(options.folder / CONFIG),
            "parameters": sum(p.numel() for p in model.parameters()),
            "constants": {place.name: facts for place in exact.places if (facts := place.piece.facts())},
            "metrics": read_json(metrics_file) if metrics_file.is_file() else None,
        }
        save_json(options.json, figures)
        rows = [[showable(name), showable(_text(value))] for name, value in _flat(figures).items()]
        width = max(len(name) for name, _ in rows)
        show("\n".join(f"{name.ljust(width)}  {value}" for name, value in rows))
        if figures["metrics"] is None:
            show("\nno metrics.json yet: training did not finish; continue it with `mondeq train --resume`")
    return 0


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            result[f"{prefix}{name}"] = value
    return result


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
