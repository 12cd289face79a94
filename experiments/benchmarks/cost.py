"""Where the time of a step goes, and what it would take if every operation ran at the machine's measured rates."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from splitting.operators.torus import Torus

PARTS = ("transforms", "channel products", "everything else")
_INVERSES = frozenset({torch.ops.aten.linalg_inv_ex, torch.ops.aten.linalg_inv})


def machine_rates(size: int = 2048, megabytes: int = 256, repeats: int = 7) -> dict[str, float]:
    """flops: of a float32 matrix product, per second. bytes: read and written by a copy, per second; the best runs."""
    a, b, c = (torch.rand(size, size) for _ in range(3))
    source, target = (torch.ones(megabytes * 2**18) for _ in range(2))
    product = _fastest(lambda: torch.mm(a, b, out=c), repeats)
    copy = _fastest(lambda: target.copy_(source), repeats)
    return {"flops": 2 * size**3 / product, "bytes": 2 * 4 * source.numel() / copy}


def _fastest(task: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return min(times)


def breakdown(step: Callable[[], object], rates: dict[str, float], repeats: int) -> dict[str, dict[str, float]]:
    """Seconds, share of the whole, and floor in seconds of each of PARTS, for a step of ours on the CPU.

    seconds: medians over `repeats` steps. floor: Σ over all operations of the larger of arithmetic/`flops` and
    traffic/`bytes`, each operation reading its operands and writing its result once; arithmetic alone also by itself.
    """
    step()
    runs = []
    for _ in range(repeats):
        watch = _Stopwatch()
        start = time.perf_counter()
        with _watched(watch):
            step()
        watch.seconds["everything else"] = time.perf_counter() - start - sum(watch.seconds.values())
        runs.append(dict(watch.seconds))
    seconds = {part: float(torch.tensor([run.get(part, 0.0) for run in runs]).median()) for part in PARTS}
    counts = count_work(step, rates)
    total = sum(seconds.values())
    return {part: {"seconds": seconds[part], "share": seconds[part] / total, **counts[part]} for part in PARTS}


def count_work(step: Callable[[], object], rates: dict[str, float]) -> dict[str, dict[str, float]]:
    """Arithmetic (flops), traffic (bytes) and floors (seconds) of each of PARTS in one step."""
    watch = _Stopwatch()
    counter = _Counter(watch, rates)
    with _watched(watch), counter:
        step()
    return {part: dict(counter.counts[part]) for part in PARTS}


class _Stopwatch:
    """Which part is being worked on, and the seconds spent in each; the outermost part counts."""

    def __init__(self) -> None:
        self.part: str | None = None
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def within(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time counted as `part`."""

        def timed(*arguments: Any, **options: Any) -> Any:
            if self.part is not None:
                return function(*arguments, **options)
            self.part, start = part, time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[part] += time.perf_counter() - start
                self.part = None

        return timed


@contextmanager
def _watched(watch: _Stopwatch) -> Iterator[None]:
    """The transforms are those of `Torus`; the channel products are the stacked ones outside of them."""
    transforms = {name: watch.within("transforms", getattr(Torus, name)) for name in ("analyse", "synthesise")}
    with (
        mock.patch.multiple(Torus, **transforms),
        mock.patch.object(torch, "bmm", watch.within("channel products", torch.bmm)),
    ):
        yield


class _Counter(TorchDispatchMode):
    """Adds up what every operation has to compute and to move."""

    def __init__(self, watch: _Stopwatch, rates: dict[str, float]) -> None:
        super().__init__()
        self.watch, self.rates = watch, rates
        self.counts: dict[str, dict[str, float]] = {
            part: {"flops": 0.0, "bytes": 0.0, "arithmetic_floor": 0.0, "floor": 0.0} for part in PARTS
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        read = _tensors((args, {name: value for name, value in kwargs.items() if name != "out"}))
        written = _tensors(result)
        reserved = "empty" in func.__name__
        if func._schema.is_mutable or not (reserved or _views(read, written)):
            self._add(_flops(func, args, kwargs, result), sum(map(_bytes, (*read, *written))))
        return result

    def _add(self, flops: float, traffic: float) -> None:
        count = self.counts[self.watch.part or "everything else"]
        count["flops"] += flops
        count["bytes"] += traffic
        count["arithmetic_floor"] += flops / self.rates["flops"]
        count["floor"] += max(flops / self.rates["flops"], traffic / self.rates["bytes"])


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> float:
    """Of matrix products and inverses; whatever else there is moves more than it computes."""
    packet = func.overloadpacket
    first = next(iter(_tensors((args, kwargs))), None)
    if first is None:
        return 0.0
    factor = 4 if first.is_complex() else 1
    if packet in _INVERSES:
        return float(2 * factor * first.numel() * first.shape[-1])
    if packet in flop_registry:
        return float(factor * flop_registry[packet](*args, **kwargs, out_val=result))
    return 0.0


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _views(read: list[Tensor], written: list[Tensor]) -> bool:
    """Whether nothing was computed: a result lies in the memory of an operand."""
    memory = {t.untyped_storage().data_ptr() for t in read}
    return any(t.untyped_storage().data_ptr() in memory for t in written)


def _bytes(tensor: Tensor) -> int:
    """Of the tensor, each of its numbers counted once even if it is expanded."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
