"""Several processes as `torchrun` starts them: each takes a share, process 0 writes. Alone, everything is a no-op."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mondeq.errors import ConfigError


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


@contextmanager
def session(device: str) -> Iterator[torch.device]:
    """Join the process group if `torchrun` started us, yield this process's device, leave the group again.

    device: "auto", "cpu", "cuda" or "cuda:N". Raises ConfigError where CUDA is asked for and there is none.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")) if launched else None)
    if not launched:
        yield chosen
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def parallel(model: nn.Module) -> nn.Module:
    """`model` with its gradients averaged over processes; itself where there is one process."""
    return nn.parallel.DistributedDataParallel(model) if world_size() > 1 else model


def total(values: Tensor) -> Tensor:
    """The sum of `values` over processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather(values: Tensor) -> Tensor:
    """The rows of every process, rank after rank, on every process; processes may hold different numbers of rows."""
    if world_size() == 1:
        return values
    parts: list[Tensor | None] = [None] * world_size()
    dist.all_gather_object(parts, values.cpu())
    return torch.cat([p for p in parts if p is not None])


def wait() -> None:
    """Return once every process has come here."""
    if world_size() > 1:
        dist.barrier()


def _device(name: str, local_rank: int | None) -> torch.device:
    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not available:
        raise ConfigError(f"device {name!r} was asked for but torch finds no CUDA device here; use --device cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r} does not exist; there are {torch.cuda.device_count()} CUDA device(s)")
    if device.type == "cuda" and device.index is None and local_rank is not None:
        return torch.device("cuda", local_rank)
    return device
