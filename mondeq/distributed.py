"""Several processes as `torchrun` starts them: each takes a share, process 0 writes. Alone, everything is a no-op.

Where one process fails, the others end too, and the failure is told once: each counts itself in the store through
which the processes met, and only the first of them raises what happened.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mondeq.errors import ConfigError, MondeqError, RunError
from splitting import SplittingError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# How long the processes wait for each other to start, and the one that holds the store for the others to have failed.
_PATIENCE, _FAREWELL = timedelta(minutes=5), timedelta(seconds=3)
_FAILURES = "mondeq/failures"
_WHOLE = re.compile(r"[0-9]{1,9}")


class FailedElsewhere(MondeqError):
    """This process ends because another one failed, which says why."""


def rank() -> int:
    """The number of this process.

    Returns:
        A number from 0 to `world_size()` − 1; 0 for a process alone.
    """
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes that work together.

    Returns:
        At least 1, which is that of a process alone.
    """
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes.

    Returns:
        True for process 0, and for a process alone.
    """
    return rank() == 0


def speaks() -> bool:
    """Whether this process tells what all of them would say alike; it need not have met the others yet.

    Returns:
        True for process 0, and where the environment does not say which process this is.
    """
    texts = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    numbers = [int(text) for text in texts if _WHOLE.fullmatch(text)]
    return len(numbers) < 2 or not 0 < numbers[0] < numbers[1]


@contextmanager
def session(device: str) -> Iterator[torch.device]:
    """A block in which this process works together with the others.

    It joins the process group if `torchrun` started it, and leaves the group after the block. Where one process fails,
    the others end too, and only the first of them raises what happened.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".

    Yields:
        The device of this process.

    Raises:
        ConfigError: The device is unknown, CUDA is asked for and there is none, or the environment says half of what
            `torchrun` says.
        RunError: The other processes cannot be reached or vanish.
        FailedElsewhere: Another process has failed before.
    """
    place = _place()
    if place is None:
        yield _device(device, None)
        return
    store = _meet(place)
    with _failing_together(store, place):
        chosen = _device(device, place.local_rank)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        # An optimiser imports this the first time. Imported while there is a group, it keeps hold of it, whose
        # connections would then stay open where this process fails: the others would wait for it.
        importlib.import_module("torch._dynamo")
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size)
        yield chosen


def parallel(model: nn.Module) -> nn.Module:
    """A model with its gradients averaged over processes.

    Args:
        model: The model, on the device of this process.

    Returns:
        The model in a wrapper that averages; itself where there is one process.
    """
    return nn.parallel.DistributedDataParallel(model) if world_size() > 1 else model


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over processes.

    Args:
        values: A tensor of the same shape on every process. It is overwritten with the sum.

    Returns:
        The same tensor.
    """
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather(values: Tensor) -> Tensor:
    """The rows of every process, rank after rank, on every process.

    Args:
        values: The rows of this process. Processes may hold different numbers of them.

    Returns:
        All rows, on the CPU; `values` itself where there is one process.
    """
    if world_size() == 1:
        return values
    parts: list[Tensor | None] = [None] * world_size()
    dist.all_gather_object(parts, values.cpu())
    return torch.cat([p for p in parts if p is not None])


def wait() -> None:
    """Return once every process has come here."""
    if world_size() > 1:
        dist.barrier()


@dataclass(frozen=True)
class _Place:
    """What `torchrun` says of this process."""

    rank: int
    world_size: int
    local_rank: int


def _place() -> _Place | None:
    """This process among those started together; None for one alone."""
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return None
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise _of_the_environment(f"`{name}` is not set")
    numbers = [_number("RANK", 0), _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0, "0")]
    port = _number("MASTER_PORT", 0)
    if numbers[0] >= numbers[1]:
        raise _of_the_environment(f"`RANK` is {numbers[0]}, and must be less than `WORLD_SIZE`, {numbers[1]}")
    if port > 65535:
        raise _of_the_environment(f"`MASTER_PORT` is {port}, and must be at most 65535")
    return _Place(*numbers)


def _number(name: str, least: int, default: str | None = None) -> int:
    text = os.environ.get(name, default) or ""
    if not _WHOLE.fullmatch(text) or int(text) < least:
        raise _of_the_environment(f"`{name}` is {text[:40]!r}, and must be a whole number ≥ {least}")
    return int(text)


def _of_the_environment(fault: str) -> MondeqError:
    """All processes find the same fault, so one tells it."""
    message = f"the environment variable {fault}; start several processes with `torchrun`, or unset RANK and WORLD_SIZE"
    return ConfigError(message) if speaks() else FailedElsewhere(message)


def _meet(place: _Place) -> Store:
    """The store that all processes share, once this process and the one that holds it are there."""
    from torch.distributed.rendezvous import rendezvous

    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        with _silence():
            store: Store = next(iter(rendezvous("env://", timeout=_PATIENCE)))[0]
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(
            f"process {place.rank} of {place.world_size} did not meet the others at {where}, the MASTER_ADDR and "
            f"MASTER_PORT that all of them need ({reason})"
        ) from error
    return store


@contextmanager
def _failing_together(store: Store, place: _Place) -> Iterator[None]:
    """Leave the group when the block is left. Where it fails, the first process to do so raises what happened, or that
    others vanished without a word; the rest raise FailedElsewhere."""
    failed = False
    try:
        yield
    except BaseException as error:
        failed = True
        if not _first_to_fail(store):
            raise FailedElsewhere("another process failed") from error
        if isinstance(error, RuntimeError) and not isinstance(error, MondeqError | SplittingError) and _lost(error):
            reason = str(error).strip().partition("\n")[0]
            raise RunError(f"process {place.rank} of {place.world_size} lost the others ({reason})") from error
        raise
    finally:
        if dist.is_initialized():
            # This closes the connections, which wakes the processes that wait for this one.
            dist.destroy_process_group()
        if failed:
            _bid_farewell(store, place)


def _first_to_fail(store: Store) -> bool:
    try:
        with _silence():
            return int(store.add(_FAILURES, 1)) == 1
    except RuntimeError:  # the process that holds the store was killed: nobody can be asked
        return True


def _lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _bid_farewell(store: Store, place: _Place) -> None:
    """The store lives in process 0, which therefore goes last, or when the others take too long to notice."""
    deadline = time.monotonic() + _FAREWELL.total_seconds()
    with suppress(RuntimeError), _silence():
        while place.rank == 0 and store.add(_FAILURES, 0) < place.world_size and time.monotonic() < deadline:
            time.sleep(0.05)


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing on file descriptor 2: torch tells of a lost connection in dozens of lines that no setting hides."""
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _device(name: str, local_rank: int | None) -> torch.device:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,9})?", name):
        raise ConfigError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not available:
        raise ConfigError(f"device {name!r} was asked for but torch finds no CUDA device here; use --device cpu")
    kind, _, index = name.partition(":")
    number = int(index) if index else local_rank
    if number is not None and number >= torch.cuda.device_count():
        which = f"device {name!r}" if index else f"device {kind}:{number} of local process {number}"
        raise ConfigError(f"{which} does not exist; there are {torch.cuda.device_count()} CUDA device(s)")
    return torch.device(kind) if number is None else torch.device(kind, number)
