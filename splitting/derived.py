"""Results that are computed from tensors, and the values that these had then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from splitting.context import asking_is_free, full_precision, is_transformed

T = TypeVar("T")

_WHOLE_NUMBERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class Derived:
    """What is computed from tensors, kept beside copies of their values that nobody else can change.

    The results belong to these values. `fits` says whether tensors still have them. Values are compared, to the bit,
    instead of version counters: what is written through `Tensor.data`, or by another library into shared memory, has
    changed too.

    Args:
        tensors: What results are going to be computed from. A tensor without values of its own, on the device "meta"
            or under a transform of torch.func, fits nothing.
    """

    values: tuple[Tensor, ...]
    """Copies of the tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._results: dict[object, Any] = {}
        with torch.inference_mode(False), torch.no_grad():
            # A tensor under a transform is only a place for values, and lives no longer than the transform.
            self.values = tuple(t if _is_placeholder(t) else t.detach().clone() for t in tensors)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether tensors have the values that the results belong to. It asks a device at most once.

        Args:
            tensors: As many as there are values.

        Returns:
            True where shapes, dtypes, devices and all bits are the same. NaN equals itself.
        """
        pairs = [(a, b) for a, b in zip(self.values, tensors, strict=True) if a is not b]
        if any(a.shape != b.shape or a.dtype != b.dtype or a.device != b.device for a, b in pairs):
            return False
        if any(_is_placeholder(a) or _is_placeholder(b) for a, b in pairs):
            return False
        bits = [(_bits(a), _bits(b)) for a, b in pairs]
        if all(asking_is_free(a.device) for a, _ in bits):
            return all(torch.equal(a, b) for a, b in bits)
        return not bool(torch.stack([(a != b).any() for a, b in bits]).any())

    def result(self, key: object, compute: Callable[[], T]) -> T:
        """A result, computed when it is asked for first: without a graph, and in full precision.

        Args:
            key: What tells this result from others, hashable.
            compute: Makes it of the values.

        Returns:
            What `compute()` returned the first time.
        """
        if key not in self._results:
            device = self.values[0].device if self.values else torch.device("cpu")
            with torch.inference_mode(False), torch.no_grad(), full_precision(device):
                self._results[key] = compute()
        value: T = self._results[key]
        return value


def _is_placeholder(tensor: Tensor) -> bool:
    return tensor.is_meta or is_transformed(tensor)


def _bits(tensor: Tensor) -> Tensor:
    """The entries as whole numbers: NaN is equal to itself there."""
    tensor = tensor.detach()
    return tensor.view(_WHOLE_NUMBERS[tensor.dtype]) if tensor.dtype in _WHOLE_NUMBERS else tensor
