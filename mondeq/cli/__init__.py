"""The command line: `mondeq train | certify | bound | quantise | report | info | import-checkpoint`.

Exit code 0: done; 1: a failure that one line explains; 2: wrong usage; 130: interrupted. Whoever reads a foreign file
turns its failures into a MondeqError, so what else arrives here is a fault of this package. It is told as such, in one
line that says where it happened; with MONDEQ_TRACEBACK=1 in the environment it is raised.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import runpy
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NoReturn

import torch

import mondeq
from mondeq import distributed
from mondeq.cli import bound, certify, import_checkpoint, info, quantise, report, train
from mondeq.cli.output import complain, flush, show, tolerant_streams
from mondeq.errors import ConfigError, MondeqError, showable
from splitting import SplittingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see `mondeq --help`.

    Args:
        arguments: Those of the command line; by default those of the process.

    Returns:
        The exit code.
    """
    name = "mondeq"
    with tolerant_streams():
        try:
            try:
                options = _parse(arguments)
            except SystemExit as stop:  # help, version, wrong usage: argparse has said what is to be said
                code = int(stop.code or 0)
            else:
                name = f"mondeq {options.command}"
                with warnings.catch_warnings():
                    warnings.showwarning = _show_warning
                    code = options.run(options)
            flush()
        except (Exception, KeyboardInterrupt) as error:
            code, reason = _explain(error)
            if reason:
                complain(f"{name}: {reason}")
        return code


class _Parser(argparse.ArgumentParser):
    """One whose complaints are one line, whatever was typed."""

    def error(self, message: str) -> NoReturn:
        super().error(showable(message))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. Where several processes were started alike, one prints help and complaints for all."""
    rest = _import_modules(sys.argv[1:] if arguments is None else list(arguments))
    parser = _Parser(
        prog="mondeq",
        description="Equilibrium networks with guarantees: train a classifier, certify its predictions, bound its "
        "Lipschitz constant. Radii and constants are ℓ2, in units of pixels in [0, 1].",
        epilog="example: mondeq train --data digits --model lipschitz --radius 0.5 --out runs/digits",
    )
    parser.add_argument("--version", action="version", version=f"mondeq {mondeq.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (train, certify, bound, quantise, report, info, import_checkpoint):
        module.add_parser(commands)
    parser.add_argument(
        "--import", metavar="MODULE", help="import a module or FILE.py first, so that what it enrols has a name"
    )
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            return parser.parse_args(rest)
    finally:
        # argparse itself does not mind where what it prints goes lost.
        if distributed.speaks():
            for line in err.getvalue().splitlines():
                complain(line)
            if out.getvalue():
                show(out.getvalue().removesuffix("\n"))


def _import_modules(arguments: list[str]) -> list[str]:
    """Import what `--import` names, wherever it stands, and return the other arguments.

    It comes before all else: names of classes that enrol are options.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--import", dest="modules", action="append", default=[])
    try:
        known, rest = early.parse_known_args(arguments)
    except SystemExit:  # without a value; the parser of all options says so
        return arguments
    for name in known.modules:
        try:
            runpy.run_path(name, run_name=Path(name).stem) if name.endswith(".py") else importlib.import_module(name)
        except Exception as error:  # whatever a stranger's module raises
            raise ConfigError(f"cannot import {name}: {type(error).__name__}: {_first_line(error)}") from error
    return rest


def _explain(error: BaseException) -> tuple[int, str | None]:
    """Exit code and what is to be said of `error`, None for nothing."""
    if isinstance(error, distributed.FailedElsewhere):
        return (130 if isinstance(error.__cause__, KeyboardInterrupt) else 1), None
    if isinstance(error, MondeqError | SplittingError | Warning):  # a warning is raised where the user says so
        return 1, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, error.args[0] if error.args else "interrupted"
    if isinstance(error, BrokenPipeError):  # the reader of our output (`head`, a pager) has gone
        return 1, None
    if isinstance(error, OSError):
        return 1, ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return 1, "out of memory; use a smaller model, batch or --limit"
    if isinstance(error, RecursionError):  # nothing here recurses but over what a JSON file nests
        return 1, "a JSON file is nested too deeply; restore it or train again"
    if os.environ.get("MONDEQ_TRACEBACK"):
        raise error
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if f.filename.startswith(os.path.dirname(mondeq.__file__))), frames[-1])
    return 1, (
        f"internal error at {place.filename}:{place.lineno}, {type(error).__name__}: {_first_line(error)}; "
        "please report it with what MONDEQ_TRACEBACK=1 shows"
    )


def _first_line(error: Warning | BaseException | str) -> str:
    return str(error).strip().partition("\n")[0]


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    if distributed.speaks():
        complain(f"warning: {_first_line(message)}")
