"""What a run reports of itself while it trains: per-epoch figures, as a row of history."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import splitting
from mondeq import distributed
from mondeq.errors import RunError
from mondeq.files import check_regular, write_text


@dataclass(frozen=True)
class Epoch:
    """One row of history.csv.

    Args:
        epoch: Its number, from 1.
        lr: The learning rate of its last step.
        loss: The mean over its samples.
        train_accuracy: The share of its samples that were classified right while the weights changed.
        test_accuracy: The share of test images that are classified right after it.
        certified_estimate: The share of test images whose margin exceeds radius × training constant.
        forward_steps: Solver steps per sample, averaged.
        backward_steps: Those of backward solves.
        forward_unconverged: The share of samples that missed the tolerance.
        backward_unconverged: The share in backward solves.
        seconds: How long it took.
    """

    epoch: int
    lr: float
    loss: float
    train_accuracy: float
    test_accuracy: float
    certified_estimate: float
    forward_steps: float
    backward_steps: float
    forward_unconverged: float
    backward_unconverged: float
    seconds: float


@dataclass
class Tally:
    """Running sums over an epoch, kept on the device; also the monitor of the layer's solves.

    Args:
        device: Where the sums are.
        sums: By name.
    """

    device: torch.device
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, **values: Tensor | float) -> None:
        """Add to the sums.

        Args:
            **values: What to add, by the names of the sums; a name that is new begins at 0.
        """
        for name, value in values.items():
            addend = torch.as_tensor(value, device=self.device).detach().double()
            self.sums[name] = self.sums[name] + addend if name in self.sums else addend

    def monitor(self, role: str, solution: splitting.Solution) -> None:
        """Count the steps of a solve and the samples that missed; a layer calls it after each.

        Args:
            role: "forward" or "backward".
            solution: What the solve gave.
        """
        counts: dict[str, Tensor | float] = {
            f"{role}_steps": solution.steps.sum(),
            f"{role}_count": len(solution.steps),
            f"{role}_missed": (~solution.converged).sum(),
        }
        self.add(**counts)

    def ratio(self, numerator: str, denominator: str) -> float:
        """A quotient of two sums over all processes.

        Args:
            numerator: The name of one.
            denominator: The name of the other.

        Returns:
            The quotient; 0 where nothing was counted.
        """
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        pair = distributed.total(torch.stack([self.sums.get(numerator, zero), self.sums.get(denominator, zero)]))
        return float(pair[0] / pair[1]) if pair[1] else 0.0


def write_history(path: Path, history: list[Epoch]) -> None:
    """Write history.csv, one row per epoch.

    Args:
        path: The file.
        history: The rows.

    Raises:
        OSError: It cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Epoch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in history)
    write_text(path, text.getvalue())


def read_history(path: Path) -> list[Epoch]:
    """The rows of history.csv.

    Args:
        path: The file, which need not exist.

    Returns:
        The rows; none where there is no file.

    Raises:
        RunError: It is another file.
    """
    if not path.exists():
        return []
    check_regular(path)
    kinds: dict[str, Callable[[str], Any]] = {f.name: int if f.name == "epoch" else float for f in fields(Epoch)}
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        history = [Epoch(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in rows]
        if not all(math.isfinite(value) for row in history for value in asdict(row).values()):
            raise ValueError("numbers that are not finite")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunError(f"{path} is no history of training ({error}); remove it, or train again") from None
    return history
