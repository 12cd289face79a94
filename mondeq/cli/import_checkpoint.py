"""`mondeq import-checkpoint`: a network of 2020 as a run folder of ours."""

from __future__ import annotations

import argparse
from pathlib import Path

import mondeq
from mondeq import data, distributed
from mondeq.cli import places
from mondeq.cli.evaluation import add_data_dir, count
from mondeq.cli.output import show
from mondeq.errors import ConfigError, RunError
from mondeq.files import write_json
from mondeq.original import load_original_checkpoint
from mondeq.runs import save


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mondeq import-checkpoint` to the command line.

    Args:
        commands: The subcommands.
    """
    parser = commands.add_parser(
        "import-checkpoint",
        help="a network of 2020 as a run folder",
        description="Read a state_dict of the implementation of 2020 (dense, convolution, multi-tier) and "
        "write it as a run folder, which `certify`, `bound` and `info` take. Only tensors are read, no code is run.",
        epilog="example: mondeq import-checkpoint net.pt --m 20 --mean 0.1307 --std 0.3081 --data mnist --out runs/net",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what torch.save wrote of its state_dict")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run folder; must be new or empty")
    parser.add_argument("--m", type=float, required=True, help="strong monotonicity it was trained with")
    parser.add_argument(
        "--mean", type=float, nargs="+", required=True, help="of its normalisation: one, or per channel"
    )
    parser.add_argument("--std", type=float, nargs="+", required=True, help="of its normalisation: one, or per channel")
    parser.add_argument("--image-size", type=count(1), metavar="N", help="side of its images, if neither 28 nor 32")
    parser.add_argument("--data", help="the data set it belongs to, for `certify` and `bound`")
    add_data_dir(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run `mondeq import-checkpoint`.

    Args:
        options: What was typed.

    Returns:
        The exit code.

    Raises:
        MondeqError: Why it failed.
    """
    with distributed.session("cpu"):
        if distributed.is_main():
            _import(options)
    return 0


def _import(options: argparse.Namespace) -> None:
    folder: Path = options.out
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not an empty folder; choose another --out")
    if options.data not in (None, *data.names()) and not options.data.startswith("folder:"):
        raise ConfigError(f"`data` is {options.data!r}; it must be one of {', '.join(data.names())}")
    mean, std = (values[0] if len(values) == 1 else values for values in (options.mean, options.std))
    model = load_original_checkpoint(options.file, m=options.m, mean=mean, std=std, image_size=options.image_size)
    extra = {} if options.data is None else {"training": {"data": places.portable(options.data)}}
    save(model, folder, **extra, version=mondeq.__version__)
    if here := places.local(options.data or "", options.data_dir):
        write_json(folder / places.LOCAL, here)
    shape = tuple(model.in_shape)
    show(f"network for images {shape}, {model.classes} classes, m = {options.m:g}: {folder}")
