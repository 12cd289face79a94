"""What `--resume` needs, in one safetensors file: weights, optimiser moments, generators, history."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mondeq.errors import RunError
from mondeq.models import Classifier
from mondeq.runs import check_tensors, read_tensors, write_tensors
from mondeq.training.progress import Epoch

NAME = "checkpoint.safetensors"


def write(
    path: Path, model: Classifier, optimizer: torch.optim.Optimizer, generator: torch.Generator, history: list[Epoch]
) -> None:
    """The state after the last epoch of `history`, in one atomic step: an interrupted write leaves the one before."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= _flatten(optimizer)
    tensors["generator"] = generator.get_state()
    write_tensors(path, tensors, {"history": json.dumps([asdict(row) for row in history])})


def read(path: Path, model: Classifier, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> list[Epoch]:
    """Restore all of it and return the history. Raises RunError for a file that does not fit."""
    tensors = read_tensors(path)
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    check_tensors(weights, dict(model.state_dict()), path)
    model.load_state_dict(weights)
    try:
        _unflatten(optimizer, tensors)
        generator.set_state(tensors["generator"])
        with safe_open(path, "pt") as file:
            return [Epoch(**row) for row in json.loads(file.metadata()["history"])]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path} is not a checkpoint of this run ({error}); train again with another --out") from None


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state = optimizer.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            entries.setdefault(int(index), {})[name] = value
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for moment in ("exp_avg", "exp_avg_sq") if entries else ():
            found = entries.get(number, {}).get(moment)
            if found is None or found.shape != parameter.shape or "step" not in entries[number]:
                raise ValueError(f"the moment {moment} of weight {number} is missing or of the wrong shape")
    optimizer.load_state_dict({**state, "state": entries})
