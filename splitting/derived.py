"""Results that are derived from tensors, and the values of the tensors that they were derived from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from splitting.context import is_transformed

_WHOLE_NUMBERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class Derived:
    """`results` of computations on `values`, which are copies that nobody else can change.

    Values are compared, to the bit, instead of version counters: what is written through `Tensor.data`, or by another
    library into shared memory, has changed too.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.results: dict[Any, Any] = {}
        with torch.inference_mode(False), torch.no_grad():
            # A tensor under a transform is only a place for values, and lives no longer than the transform.
            self.values = tuple(t if _is_placeholder(t) else t.detach().clone() for t in tensors)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether `tensors` have the values that the results belong to. Asks a device at most once."""
        pairs = [(a, b) for a, b in zip(self.values, tensors, strict=True) if a is not b]
        if any(a.shape != b.shape or a.dtype != b.dtype or a.device != b.device for a, b in pairs):
            return False
        if any(_is_placeholder(a) or _is_placeholder(b) for a, b in pairs):
            return False
        bits = [(_bits(a), _bits(b)) for a, b in pairs]
        if all(a.device.type == "cpu" for a, _ in bits):
            return all(torch.equal(a, b) for a, b in bits)
        return not bool(torch.stack([(a != b).any() for a, b in bits]).any())


def _is_placeholder(tensor: Tensor) -> bool:
    return tensor.is_meta or is_transformed(tensor)


def _bits(tensor: Tensor) -> Tensor:
    """The entries as whole numbers: NaN is equal to itself there."""
    tensor = tensor.detach()
    return tensor.view(_WHOLE_NUMBERS[tensor.dtype]) if tensor.dtype in _WHOLE_NUMBERS else tensor
