"""Per-image tables: what a long command has found so far in FILE.partial, and in the end FILE.csv or FILE.parquet.

The partial file knows of which network, norm and images it is. It is replaced in one step after every round, so that
whatever ends a command, the same command goes on behind the last round.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from mondeq import distributed
from mondeq.errors import ConfigError, RunError
from mondeq.files import Writer, replace_file, text_writer
from mondeq.runs import read_tensors, write_tensors

Columns = dict[str, Tensor]
"""By name, one row per image."""


class Partial:
    """The columns that a command has found so far, by phase of the command; kept beside its table, if it makes one.

    Process 0 reads and writes the file; the others are told what it holds.

    Args:
        table: The table that is made in the end; None where none is, and nothing is kept then.
        key: What the columns depend on, by what it is called.

    Raises:
        RunError: A partial table is damaged or was made with another key.
    """

    def __init__(self, table: Path | None, key: Mapping[str, str]) -> None:
        self.path = None if table is None else table.with_name(f"{table.name}.partial")
        self.key = dict(key)
        self._found: Columns = {}
        if distributed.is_main() and self.path is not None and self.path.exists():
            self._found = self._read(self.path)

    def columns(self, phase: str, kinds: Mapping[str, torch.dtype]) -> Columns:
        """What was found in a phase, the same in every process.

        Args:
            phase: The name of the phase.
            kinds: The columns that the phase has.

        Returns:
            The columns, with as many rows as there are images done.

        Raises:
            RunError: The partial table holds others.
        """
        own = {name: self._found.get(f"{phase}/{name}", torch.zeros(0, dtype=kind)) for name, kind in kinds.items()}
        if any(own[name].dtype != kind or own[name].ndim != 1 for name, kind in kinds.items()) or (
            len({len(column) for column in own.values()}) > 1
        ):
            raise RunError(f"{self.path} is damaged; delete it to begin again")
        # Process 0 has read them; the others come with nothing.
        shared = {name: distributed.gather(c if distributed.is_main() else c[:0]) for name, c in own.items()}
        self._found |= {f"{phase}/{name}": column for name, column in shared.items()}
        return shared

    def keep(self, phase: str, columns: Columns) -> None:
        """Write down what a phase has found so far.

        Args:
            phase: The name of the phase.
            columns: All its columns.

        Raises:
            RunError: The file cannot be written.
        """
        self._found |= {f"{phase}/{name}": column for name, column in columns.items()}
        if self.path is not None and distributed.is_main():
            write_tensors(self.path, self._found, {"key": json.dumps(self.key)})

    def rows(self, phase: str) -> int:
        """How many images are done.

        Args:
            phase: The name of the phase.

        Returns:
            The number.
        """
        return max((len(c) for name, c in self._found.items() if name.startswith(f"{phase}/")), default=0)

    def finish(self) -> None:
        """Remove the file: the table is there."""
        if self.path is not None and distributed.is_main():
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path) -> Columns:
        columns = read_tensors(path)
        try:
            with safe_open(path, "pt") as file:
                key = json.loads(file.metadata()["key"])
        except (safetensors.SafetensorError, OSError, TypeError, KeyError, ValueError):
            raise RunError(f"{path} is no partial table; choose another --table, or delete it") from None
        for name, value in self.key.items():
            if not isinstance(key, dict) or key.get(name) != value:
                raise RunError(f"{path} was begun with another {name}; choose another --table, or delete it")
        return columns


def in_rounds(
    work: Callable[[int, int], Columns],
    total: int,
    block: int,
    *,
    phase: str,
    kinds: Mapping[str, torch.dtype],
    partial: Partial,
) -> Columns:
    """The columns of all images: in every round each process does a block, and all of it is kept.

    Args:
        work: The columns of the images from one number up to another.
        total: How many images there are.
        block: How many of them a process does in a round.
        phase: What is done, for the bar and the partial table.
        kinds: The columns that `work` gives, with their dtypes.
        partial: What was found before, and where to keep it.

    Returns:
        The columns, the same in every process.

    Raises:
        RunError: The partial table is of something else or cannot be written.
    """
    columns = partial.columns(phase, kinds)
    done = len(next(iter(columns.values())))
    rank, processes = distributed.rank(), distributed.world_size()
    hidden = None if distributed.is_main() else True
    with tqdm(total=total, initial=done, desc=phase, unit="image", leave=False, disable=hidden) as bar:
        while done < total:
            stop = min(done + block * processes, total)
            first, last = (done + (stop - done) * place // processes for place in (rank, rank + 1))
            found = work(first, last) if last > first else {}
            for name, kind in kinds.items():
                own = found[name].to("cpu", kind) if found else torch.zeros(0, dtype=kind)
                columns[name] = torch.cat([columns[name], distributed.gather(own)])
            partial.keep(phase, columns)
            bar.update(stop - done)
            done = stop
    return columns


def check_table(path: Path | None) -> None:
    """Raise where a table cannot be made under a name.

    Args:
        path: The file; None passes.

    Raises:
        ConfigError: Its ending is of no kind that is known, or lacks its library.
        RunError: It exists.
    """
    if path is None:
        return
    _writer(path)
    if distributed.is_main() and path.exists():
        raise RunError(f"{path} exists, and a table is never overwritten; choose another --table")


def write_table(path: Path | None, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write a table, from the main process.

    Args:
        path: The file, which must not exist; None where no table was asked for.
        columns: By name, all of the same length. None is an empty cell.

    Raises:
        ConfigError: Its ending is of no kind that is known, or lacks its library.
        RunError: It exists, or cannot be written.
    """
    if path is not None and distributed.is_main():
        check_table(path)
        replace_file(path, _writer(path)(columns))


def _writer(path: Path) -> Callable[[Mapping[str, Sequence[Any]]], Writer]:
    """What makes a table of the kind that a name's ending says."""
    if path.suffix == ".csv":
        return _csv
    if path.suffix != ".parquet":
        raise ConfigError(f"`--table` is {str(path)!r}; its name must end in .csv or .parquet")
    try:
        return _parquet(importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet"))
    except ImportError:
        raise ConfigError(
            'a .parquet table needs the pyarrow package: pip install "mondeq[parquet]"; or name it .csv'
        ) from None


def _csv(columns: Mapping[str, Sequence[Any]]) -> Writer:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text_writer(text.getvalue())


def _parquet(arrow: Any, parquet: Any) -> Callable[[Mapping[str, Sequence[Any]]], Writer]:
    return lambda columns: lambda temporary: parquet.write_table(arrow.table(dict(columns)), temporary)
