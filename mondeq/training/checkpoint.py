"""What `--resume` needs, in one safetensors file: weights, their averages, optimiser moments, generator, history.

It is the truth about a run, replaced in one step after every epoch; the other files of a run follow from it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.optim import Optimizer

from mondeq.errors import RunError
from mondeq.network import Network
from mondeq.runs import check_tensors, read_tensors, write_tensors
from mondeq.training.optimizers import MOMENTS
from mondeq.training.progress import Epoch

NAME = "checkpoint.safetensors"


def write(
    path: Path,
    model: Network,
    optimizers: list[Optimizer],
    generator: torch.Generator,
    averages: dict[str, Tensor],
    history: list[Epoch],
) -> None:
    """Write the state after an epoch, in one atomic step: an interrupted write leaves the one before.

    Args:
        path: The file.
        model: The network.
        optimizers: Its optimisers.
        generator: The random numbers of the run.
        averages: Those of the weights by name, none where none are kept.
        history: A row for every epoch that is finished.

    Raises:
        OSError: It cannot be written.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in averages.items()}
    for number, (optimizer, _, weight) in enumerate(_weights(optimizers)):
        tensors |= {f"optimizer.{number}.{name}": value for name, value in optimizer.state.get(weight, {}).items()}
    tensors["generator"] = generator.get_state()
    write_tensors(path, tensors, {"history": json.dumps([asdict(row) for row in history])})


def read(
    path: Path,
    model: Network,
    optimizers: list[Optimizer],
    generator: torch.Generator,
    averages: dict[str, Tensor],
    *,
    epochs: int,
    steps: int,
) -> list[Epoch]:
    """Restore the state after an epoch.

    What is trained now must have been trained before, for moments cannot be made up.

    Args:
        path: The file.
        model: The network, whose weights are replaced.
        optimizers: Its optimisers, whose moments are replaced.
        generator: The random numbers of the run, which are set.
        averages: Those of the weights by name, which are replaced; none where the run keeps none.
        epochs: How many the run has.
        steps: How many an epoch has.

    Returns:
        The history.

    Raises:
        RunError: The file does not fit; nothing is changed then.
    """
    tensors = read_tensors(path)
    weights, means, rest = (_taken(tensors, prefix) for prefix in ("model.", "average.", ""))
    check_tensors(weights, dict(model.state_dict()), path)
    check_tensors(means, averages, path)
    # Whatever may be wrong with a foreign file: it is told in one line.
    try:
        with safe_open(path, "pt") as file:
            history = _history(json.loads(file.metadata()["history"]), epochs)
        moments = _moments(rest, optimizers, len(history), steps)
        state = rest["generator"]
        torch.Generator().set_state(state)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError | TypeError) else str(error)
        raise RunError(
            f"{path} is not a checkpoint of this run ({reason.strip().partition(chr(10))[0]}); "
            "train again with another --out"
        ) from None
    model.load_state_dict(weights)
    for name, mean in means.items():
        averages[name].copy_(mean)
    for optimizer, state_of_weights in zip(optimizers, moments, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state_of_weights})
    generator.set_state(state)
    return history


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it; they are taken out."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def _history(rows: Any, epochs: int) -> list[Epoch]:
    """The rows, if they are those of the first epochs of a run of so many."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("its history is not a list of rows")
    if len(rows) > epochs:
        raise ValueError(f"its history has {len(rows)} epochs, and the run only {epochs}")
    return [_row(number, row) for number, row in enumerate(rows, start=1)]


def _row(number: int, row: dict[str, Any]) -> Epoch:
    names = [each.name for each in fields(Epoch)]
    if sorted(row) != sorted(names):
        raise ValueError(f"row {number} of its history has the entries {', '.join(row) or 'none'}")
    if type(row["epoch"]) is not int or row["epoch"] != number:
        raise ValueError(f"row {number} of its history is of epoch {row['epoch']!r}")
    for name in names[1:]:
        share = "accuracy" in name or "unconverged" in name or name == "certified_estimate"
        if type(row[name]) is not float or not 0 <= row[name] <= (1 if share else math.inf) or math.isinf(row[name]):
            raise ValueError(f"`{name}` of epoch {number} is {row[name]!r} in its history")
    return Epoch(**row)


def _weights(optimizers: list[Optimizer]) -> list[tuple[Optimizer, int, Tensor]]:
    """All weights in the order of their numbers in the file, with the optimiser of each and its number there."""
    return [
        (each, number, weight)
        for each in optimizers
        for number, weight in enumerate(weight for group in each.param_groups for weight in group["params"])
    ]


def _moments(
    tensors: dict[str, Tensor], optimizers: list[Optimizer], epochs: int, steps: int
) -> list[dict[int, dict[str, Tensor]]]:
    """Every optimiser's state by its own numbers of weights, after so many epochs of so many steps."""
    found: dict[Optimizer, dict[int, dict[str, Tensor]]] = {each: {} for each in optimizers}
    known, counts = {"generator"}, set()
    for number, (optimizer, own_number, weight) in enumerate(_weights(optimizers)):
        prefix = f"optimizer.{number}."
        entry = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if entry:
            _check_entry(number, entry, weight, MOMENTS[type(optimizer)])
            found[optimizer][own_number] = entry
            known |= {prefix + name for name in entry}
            counts.add(int(entry["step"]))
        elif weight.requires_grad and epochs:
            raise ValueError(f"it has no moments of weight {number}, which is to be trained; was that frozen before?")
    if unknown := sorted(set(tensors) - known):
        raise ValueError(f"unknown {', '.join(unknown)}")
    _check_counts(counts, epochs, steps)
    return list(found.values())


def _check_counts(counts: set[int], epochs: int, steps: int) -> None:
    """The steps that weights took: all of them, or where a weight was frozen for a while those of whole epochs.

    Shares of a batch are rounded down, so that more processes than now may have taken up to twice as many.
    """
    taken = max(counts, default=epochs)
    whole = taken % epochs == 0 and all(count % (taken // epochs) == 0 for count in counts) if epochs else False
    if (len(counts) > 1 and not whole) or not epochs <= taken <= epochs * (2 * steps + 1):
        raise ValueError(f"{epochs} epochs of {steps} steps are none of the optimiser's {sorted(counts)} steps")


def _check_entry(number: int, entry: dict[str, Tensor], parameter: Tensor, moments: tuple[str, ...]) -> None:
    if set(entry) != {"step", *moments}:
        raise ValueError(f"weight {number} has {', '.join(sorted(entry))} where it needs step, {', '.join(moments)}")
    for name in moments:
        moment = entry[name]
        if moment.shape != parameter.shape or moment.dtype != parameter.dtype:
            raise ValueError(
                f"the moment {name} of weight {number} is {moment.dtype} {tuple(moment.shape)}, "
                f"the weight {parameter.dtype} {tuple(parameter.shape)}"
            )
        if not bool(torch.isfinite(moment).all()):
            raise ValueError(f"the moment {name} of weight {number} holds NaN or inf")
    if "exp_avg_sq" in moments and bool((entry["exp_avg_sq"] < 0).any()):
        raise ValueError(f"the moment exp_avg_sq of weight {number} is negative")
    step = entry["step"]
    if step.shape != () or step.dtype != torch.float32 or not 1 <= float(step) < math.inf or float(step) % 1:
        raise ValueError(f"the step of weight {number} is no count: {step.dtype} {step.flatten()[:3].tolist()}")
