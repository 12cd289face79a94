"""Memory that is used again. On a CPU the page faults of a fresh large tensor cost more than the arithmetic on it."""

from __future__ import annotations

import math
import threading
import weakref

import torch
from torch import Tensor

from splitting.operators.base import is_transformed

# Smaller tensors are cheap to make; larger ones are worth their page faults and would hold too much memory.
_SMALLEST_KEPT, _LARGEST_KEPT = 2**20, 2**28
# At most so many tensors of one size wait for the next borrower.
_MOST_WAITING = 4

_local = threading.local()


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
            buffer = kept[slot, like.dtype] = torch.empty(entries, dtype=like.dtype)
    return buffer[:entries].view(shape)


def lend(owner: object, like: Tensor) -> Tensor:
    """An uninitialised tensor like `like`, whose memory goes to the next borrower once `owner` is gone.

    For what an iteration needs as long as it lives and nobody afterwards.
    """
    if like.device.type != "cpu" or not _SMALLEST_KEPT <= like.numel() * like.element_size() <= _LARGEST_KEPT:
        return torch.empty_like(like)
    pools: dict[tuple[int, torch.dtype], list[Tensor]] = _local.__dict__.setdefault("waiting", {})
    key = like.numel(), like.dtype
    if key not in pools:
        # Tensors of one size wait at a time: those of the last batch size would only hold memory.
        pools.clear()
    waiting = pools.setdefault(key, [])
    if waiting:
        buffer = waiting.pop()
    else:
        with torch.inference_mode(False):
            buffer = torch.empty(like.numel(), dtype=like.dtype)
    weakref.finalize(owner, _give_back, waiting, buffer)
    # The strides that torch gives a new tensor like this one: dense, in the same order.
    return buffer.as_strided(like.shape, torch.empty_like(like, device="meta").stride())


def _give_back(waiting: list[Tensor], buffer: Tensor) -> None:
    if len(waiting) < _MOST_WAITING:
        waiting.append(buffer)


def may_overwrite(*tensors: Tensor) -> bool:
    """Whether operations on `tensors` may write into existing memory: nobody records or transforms them."""
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    # A tangent of torch.autograd.forward_ad may be on any tensor while a level is open.
    recorded = recorded or torch.autograd.forward_ad._current_level >= 0
    return not recorded and not any(map(is_transformed, tensors))
