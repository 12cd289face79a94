"""Memory that is used again. On a CPU the page faults of a fresh large tensor cost more than the arithmetic on it."""

from __future__ import annotations

import math
import threading
import weakref

import numpy
import torch
from torch import Tensor

from splitting.context import is_recorded, is_transformed

# Smaller tensors are cheap to make; larger ones are worth their page faults and would hold too much memory.
_SMALLEST_KEPT, _LARGEST_KEPT = 2**20, 2**28
# At most so many bytes wait to be used again.
_MOST_WAITING = 2**29

_local = threading.local()
_lock = threading.Lock()
_waiting: list[numpy.ndarray] = []  # of bytes, the longest waiting first


def scratch(slot: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor of `shape` with the dtype and device of `like`, for intermediate results.

    The next call with the same `slot` in this thread may give the same memory, so it must not outlive the computation
    it is taken for. Elsewhere than on a CPU the allocator of torch already does this.
    """
    entries = math.prod(shape)
    if like.device.type != "cpu" or entries * like.element_size() > _LARGEST_KEPT:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    kept: dict[tuple[str, torch.dtype], Tensor] = _local.__dict__.setdefault("kept", {})
    buffer = kept.get((slot, like.dtype))
    if buffer is None or buffer.numel() < entries:
        with torch.inference_mode(False):
            buffer = kept[slot, like.dtype] = torch.empty(entries, dtype=like.dtype, device="cpu")
    return buffer[:entries].view(shape)


def recycled(like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """An uninitialised tensor like `like`, or contiguous and of `shape`, made of memory that was given back.

    It is given back once no tensor shares it any more, be it a view, one without a graph or one saved for a backward
    pass. But for its storage, which cannot be resized, this is an ordinary tensor.
    """
    entries = like.numel() if shape is None else math.prod(shape)
    size = entries * like.element_size()
    if like.device.type != "cpu" or not _SMALLEST_KEPT <= size <= _LARGEST_KEPT or is_transformed(like):
        return torch.empty_like(like) if shape is None else like.new_empty(shape)
    with torch.inference_mode(False):
        memory = _taken(size)
        # The storage of the tensor keeps this array alive, and nothing else does.
        handle = memory[:]
        weakref.finalize(handle, _give_back, memory).atexit = False
        flat = torch.from_numpy(handle).view(like.dtype)
        if shape is not None:
            return flat.view(shape).detach()
        # The strides that torch gives a new tensor like this one: dense, in the same order.
        return flat.as_strided(like.shape, torch.empty_like(like, device="meta").stride()).detach()


# A finalizer may run anywhere, even between two lines of another thread that has the lock, and must not wait for it.
def _taken(size: int) -> numpy.ndarray:
    if _lock.acquire(blocking=False):
        try:
            for i in reversed(range(len(_waiting))):
                if len(_waiting[i]) == size:
                    return _waiting.pop(i)
        finally:
            _lock.release()
    return torch.empty(size, dtype=torch.uint8, device="cpu").numpy()


def _give_back(memory: numpy.ndarray) -> None:
    if _lock.acquire(blocking=False):
        try:
            _waiting.append(memory)
            while sum(map(len, _waiting)) > _MOST_WAITING:
                del _waiting[0]
        finally:
            _lock.release()


def may_overwrite(*tensors: Tensor) -> bool:
    """Whether operations on `tensors` may write into existing memory: nobody records anything.

    Where gradients are enabled a graph may come to need what is computed from other tensors than these.
    """
    return not torch.is_grad_enabled() and not is_recorded(*tensors)
