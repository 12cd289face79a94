"""What commands print: aligned tables for people, JSON for machines, progress on a terminal only."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mondeq import distributed
from mondeq.files import write_json


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str] | None = None) -> str:
    """Rows as aligned columns; the first column to the left, the others to the right, under an optional header."""
    lines = [list(header), *map(list, rows)] if header else [list(r) for r in rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = [_line(line, widths) for line in lines]
    if header:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def show(text: str) -> None:
    """Print, on the main process."""
    if distributed.is_main():
        print(text, flush=True)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE as JSON")


def save_json(path: Path | None, value: dict[str, Any]) -> None:
    """Write `value` where --json asked for it, from the main process."""
    if path is not None and distributed.is_main():
        write_json(path, value)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]).rstrip()
