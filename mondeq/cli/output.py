"""What commands print and write: aligned tables for people, JSON for machines, one line for each failure.

Every text leaves through `show` and `complain`. They escape what could steer a terminal; `tolerant_streams` lets no
encoding, no closed and no full stream raise while a command works.
"""

from __future__ import annotations

import argparse
import codecs
import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from mondeq import distributed
from mondeq.errors import RunError, showable
from mondeq.files import write_json

# What this package prints beyond ASCII, for streams whose encoding lacks it.
_PLAIN = {
    "ℓ": "l", "₁": "1", "₂": "2", "²": "^2", "³": "^3", "σ": "sigma", "γ": "gamma", "ε": "epsilon", "α": "alpha",
    "λ": "lambda", "Λ": "Lambda", "‖": "||", "≤": "<=", "≥": ">=", "−": "-", "–": "-", "×": "x", "→": "->", "√": "sqrt",
    "…": "...", "∞": "inf", "ᵀ": "^T", "′": "'", "·": ".",
}  # fmt: skip


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str] | None = None) -> str:
    """Rows as aligned columns: the first column to the left, the others to the right.

    Args:
        rows: The cells, row by row; all rows are of the same length.
        header: The names of the columns, if they have names. A line of dashes stands below them.

    Returns:
        The lines, without spaces at their ends.
    """
    lines = [list(header), *map(list, rows)] if header else [list(r) for r in rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = [_line(line, widths) for line in lines]
    if header:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def percent(share: float) -> str:
    """A share as a percentage with two decimals.

    Args:
        share: A share of 1.

    Returns:
        A text such as "12.30 %".
    """
    return f"{100 * share:.2f} %"


def show(text: str) -> None:
    """Print a text, on the main process.

    Args:
        text: The lines to print. What could steer a terminal is escaped.

    Raises:
        RunError: stdout takes nothing more.
    """
    if distributed.is_main():
        with _unless_full():
            print("\n".join(map(showable, text.split("\n"))), flush=True)


def flush() -> None:
    """Have everything printed.

    Raises:
        RunError: stdout takes nothing more.
    """
    with _unless_full():
        sys.stdout.flush()


def complain(text: str) -> None:
    """Print one line on stderr.

    Where nobody can be told, nothing happens: no warning ends the work it warns of.

    Args:
        text: The line. What could steer a terminal is escaped, and the middle of an endless line is left out.
    """
    line = showable(text)
    with suppress(OSError):
        print(line if len(line) <= 1000 else f"{line[:600]} … {line[-300:]}", file=sys.stderr, flush=True)


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """A block in which stdout and stderr take every character, and are there even where the caller closed them.

    What the encoding lacks is transliterated (σ to sigma) or escaped. What a full or broken stream still holds in the
    end is dropped, so that the interpreter does not stumble over it when it exits.

    Yields:
        Nothing.
    """
    codecs.register_error("mondeq.plain", _plain)
    with ExitStack() as undo:
        for name in ("stdout", "stderr"):
            stream: TextIO | None = getattr(sys, name)
            if stream is None:
                nowhere = undo.enter_context(open(os.devnull, "w"))
                undo.callback(setattr, sys, name, None)
                setattr(sys, name, nowhere)
            elif isinstance(stream, io.TextIOWrapper):
                undo.callback(stream.reconfigure, errors=stream.errors)
                undo.callback(_drain, stream)
                stream.reconfigure(errors="mondeq.plain")
        yield


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give a command the option --json.

    Args:
        parser: The parser of the command.
    """
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE as JSON")


def check_writable(*paths: Path | None) -> None:
    """Check that each file could be written now, on the main process. Nothing is made or changed.

    Args:
        *paths: The files. None is passed over.

    Raises:
        RunError: A file could not be written.
    """
    for path in paths if distributed.is_main() else ():
        if path is not None:
            _check_writable(path)


def save_json(path: Path | None, value: dict[str, Any]) -> None:
    """Write figures where --json asked for them, from the main process.

    Args:
        path: The file to make or to replace; None where nothing was asked for.
        value: The figures.

    Raises:
        RunError: The file cannot be written.
    """
    if path is not None and distributed.is_main():
        write_json(path, value)


def _check_writable(path: Path) -> None:
    try:
        # Files are replaced, so a device or a pipe would be lost.
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(path.stat().st_mode):
                raise RunError(f"cannot write {path}: it exists and is not a regular file")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"cannot write {path}: {reason}; choose a writable folder") from error


@contextmanager
def _unless_full() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"cannot write to the standard output: {error.strerror or error}") from error


def _plain(error: UnicodeError) -> tuple[str, int]:
    """The error handler of `tolerant_streams`, see `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, ascii(c)[1:-1]) for c in unknown), error.end


def _drain(stream: io.TextIOWrapper) -> None:
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]).rstrip()
