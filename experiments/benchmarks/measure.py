"""What every benchmark needs: the machine it ran on, timings that can be compared, a table, a JSON file."""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """The processor and software that timings depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Timings:
    """Seconds per call of several tasks, `rounds[name][i]` in round i; the tasks of a round ran next to each other."""

    rounds: dict[str, list[float]]

    def milliseconds(self, name: str) -> Quartiles:
        return Quartiles.of([1e3 * seconds for seconds in self.rounds[name]])

    def fastest(self, name: str) -> float:
        """Seconds of the fastest round: the least disturbed one."""
        return min(self.rounds[name])

    def ratio(self, slow: str, fast: str) -> Quartiles:
        """Time of `slow` over time of `fast`, taken round by round: what else the machine does cancels largely."""
        return Quartiles.of([s / f for s, f in zip(self.rounds[slow], self.rounds[fast], strict=True)])


def interleave(tasks: Mapping[str, Callable[[], object]], *, rounds: int, seconds: float) -> Timings:
    """Time the tasks in turn, A B C, C B A, A B C, …, each turn lasting about `seconds`; the mean of a turn counts."""
    repeats = {name: _repeats(task, seconds) for name, task in tasks.items()}
    timings: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    collecting = gc.isenabled()
    try:
        for _ in range(rounds):
            gc.collect()
            gc.disable()
            for name in names:
                timings[name].append(_mean_seconds(tasks[name], repeats[name]))
            gc.enable()
            names.reverse()
    finally:
        if collecting:
            gc.enable()
    return Timings(timings)


def _repeats(task: Callable[[], object], seconds: float) -> int:
    """Calls that take about `seconds`, judged after a call to warm up."""
    task()
    return max(1, math.ceil(seconds / _mean_seconds(task, 2)))


def _mean_seconds(task: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        task()
    return (time.perf_counter() - start) / repeats


def parser(module: str, documentation: str | None) -> argparse.ArgumentParser:
    """The options every benchmark has, described by the first line of its documentation."""
    description, _, _ = (documentation or "").partition("\n")
    result = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    result.add_argument("--json", type=Path, metavar="FILE", help="write machine, date, seed and all results to FILE")
    result.add_argument("--smoke", action="store_true", help="tiny sizes, seconds in all: does it run?")
    result.add_argument("--seed", type=int, default=0, help="of weights, images, labels (default %(default)d)")
    return result


def heading(seed: int) -> dict[str, Any]:
    """How every report begins: machine, date, seed."""
    return {"machine": machine(), "date": datetime.now().astimezone().isoformat(timespec="seconds"), "seed": seed}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`content` with dataclasses as objects and NaN or inf as text, which JSON has no numbers for."""
    path.write_text(json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Quartiles):
        return asdict(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A text table with a title; the first column is left-aligned, the others right-aligned."""
    cells = [list(head), *([_cell(entry) for entry in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]
    rule = "─" * max(map(len, lines))
    return "\n".join([title, rule, lines[0], rule, *lines[1:], rule])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Quartiles):
        return f"{value.median:.3g} [{value.low:.3g}, {value.high:.3g}]"
    return f"{value:.2g}" if isinstance(value, float) else str(value)
