"""What the experiments share: published recipes as presets, each trained in a run folder of its own, one results table.

A preset that has finished is not run again, one that was interrupted is continued. `results.csv` is made anew from the
run folders after every preset: accuracy beside the published figure, certified accuracy, steps, seconds, machine, seed.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mondeq.cli import main as mondeq

COLUMNS = (
    "preset", "accuracy", "published", "certified at 0.1", "of images", "forward steps", "backward steps", "epochs",
    "seconds", "machine", "threads", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """A recipe.

    Args:
        name: What it is called; its run folder has this name.
        settings: What `mondeq train` is called with: options without their dashes, and their values as typed.
        published: The accuracy, in %, that was published for it, if any.
    """

    name: str
    settings: dict[str, str]
    published: float | None = None

    def arguments(self, epochs: int | None, smoke: bool) -> list[str]:
        """The words that `mondeq train` is called with.

        Args:
            epochs: How many epochs to train for; None for as many as the recipe says.
            smoke: Whether to train a tiny network for one epoch instead.

        Returns:
            The options and their values.
        """
        settings = dict(self.settings)
        if epochs is not None:
            settings["epochs"] = str(epochs)
        if smoke:
            settings |= {"epochs": "1", "batch-size": "512"}
            if "channels" in settings:
                settings["channels"] = " ".join("2" for _ in settings["channels"].split())
            else:
                settings["features"] = "8"
        return [word for name, value in settings.items() for word in (f"--{name}", *value.split())]


def run(program: str, data: str, presets: Sequence[Preset], arguments: list[str] | None = None) -> int:
    """Train the presets one after the other, as the command line says, and print the table of results.

    Args:
        program: The dotted name of the module that was called, for its help and its folder.
        data: The data set of the presets.
        presets: The recipes.
        arguments: The command line; that of the process by default.

    Returns:
        0, or the exit code of the first training that failed.
    """
    options = _parser(program, data, presets).parse_args(arguments)
    chosen = [p for p in presets if not options.only or p.name in options.only]
    # A smoke run takes pictures that are at hand.
    name = "digits" if options.smoke else options.data
    for preset in chosen:
        folder: Path = options.out / preset.name
        if not (folder / "metrics.json").exists():
            print(f"{preset.name}: {folder}", flush=True)
            code = mondeq(_command(preset, folder, name, options))
            if code:
                return code
        _write_results(options.out, presets)
    print((options.out / "results.csv").read_text(), end="")
    return 0


def _command(preset: Preset, folder: Path, data: str, options: argparse.Namespace) -> list[str]:
    common = ["--out", str(folder), "--device", options.device]
    common += ["--certify", str(options.certify)] if options.certify else []
    if (folder / "checkpoint.safetensors").exists():
        return ["train", "--resume", *common]
    common += ["--data-dir", str(options.data_dir)] if options.data_dir and not options.smoke else []
    return [
        "train",
        "--data",
        data,
        "--seed",
        str(options.seed),
        *preset.arguments(options.epochs, options.smoke),
        *common,
    ]


def _parser(program: str, data: str, presets: Sequence[Preset]) -> argparse.ArgumentParser:
    names = [p.name for p in presets]
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=f"Published recipes on {data}.")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PRESET", help=f"of {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=Path("runs") / program, help="(default %(default)s)")
    parser.add_argument("--data", default=data, help="another source of the same pictures, such as folder:PATH")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where data files are or go")
    parser.add_argument("--epochs", type=int, help="instead of the published number")
    parser.add_argument("--certify", type=int, metavar="N", help="certify the first N test images (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="tiny networks on small pictures: does it run?")
    return parser


def _write_results(out: Path, presets: Sequence[Preset]) -> None:
    rows = [_row(out / p.name, p) for p in presets if (out / p.name / "metrics.json").exists()]
    with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _row(folder: Path, preset: Preset) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    training = json.loads((folder / "config.json").read_text(encoding="utf-8"))["training"]
    solver, machine = metrics["solver"], metrics["machine"]
    return {
        "preset": preset.name,
        "accuracy": f"{100 * metrics['test_accuracy']:.2f}",
        "published": "" if preset.published is None else preset.published,
        "certified at 0.1": f"{100 * metrics['certified_accuracy']['0.1']:.2f}",
        "of images": metrics["samples"],
        "forward steps": f"{solver['forward_steps']:.1f}",
        "backward steps": f"{solver['backward_steps']:.1f}",
        "epochs": training["epochs"],
        "seconds": f"{metrics['train_seconds']:.0f}",
        "machine": machine["device"],
        "threads": machine["threads"],
        "seed": training["seed"],
    }
