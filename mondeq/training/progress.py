"""What a run reports of itself while it trains: per-epoch figures, as a row of history."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

import splitting
from mondeq import distributed
from mondeq.files import write_text


@dataclass(frozen=True)
class Epoch:
    """One row of history.csv. certified_estimate: share of test images whose margin exceeds radius × training constant;
    forward_steps, backward_steps: solver steps per sample, averaged; …_unconverged: share that missed tol."""

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
    """Running sums over an epoch, kept on the device; also the monitor of the layer's solves."""

    device: torch.device
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            addend = torch.as_tensor(value, device=self.device).detach().double()
            self.sums[name] = self.sums[name] + addend if name in self.sums else addend

    def monitor(self, role: str, solution: splitting.Solution) -> None:
        """Called by the layer after each solve."""
        counts: dict[str, Tensor | float] = {
            f"{role}_steps": solution.steps.sum(),
            f"{role}_count": len(solution.steps),
            f"{role}_missed": (~solution.converged).sum(),
        }
        self.add(**counts)

    def ratio(self, numerator: str, denominator: str) -> float:
        """A quotient of two sums over all processes; 0 where nothing was counted."""
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        pair = distributed.total(torch.stack([self.sums.get(numerator, zero), self.sums.get(denominator, zero)]))
        return float(pair[0] / pair[1]) if pair[1] else 0.0


def write_history(path: Path, history: list[Epoch]) -> None:
    """history.csv, one row per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Epoch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in history)
    write_text(path, text.getvalue())
