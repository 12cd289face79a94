"""The command line: `mondeq train | certify | bound | info | import-checkpoint`.

Exit code 0: done; 1: a failure that one line explains; 2: wrong usage; 130: interrupted.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

import mondeq
from mondeq.cli import bound, certify, import_checkpoint, info, train
from mondeq.errors import MondeqError
from splitting.errors import SplittingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see `mondeq --help`. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="mondeq",
        description="Equilibrium networks with guarantees: train a classifier, certify its predictions, bound its "
        "Lipschitz constant. Radii and constants are ℓ2, in units of pixels in [0, 1].",
        epilog="example: mondeq train --data digits --model lipschitz --radius 0.5 --out runs/digits",
    )
    parser.add_argument("--version", action="version", version=f"mondeq {mondeq.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (train, certify, bound, info, import_checkpoint):
        module.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code: int = options.run(options)
        return code
    except (MondeqError, SplittingError) as error:
        print(f"mondeq {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"mondeq {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (`head`, a pager) has gone; there is nobody to tell.
        sys.stderr.close()
        return 1


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
