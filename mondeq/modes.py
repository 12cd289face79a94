"""The modes that proofs are computed in, whatever their caller has set for himself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def proving(device: torch.device) -> Iterator[None]:
    """A context without graphs and inference tensors, in which new tensors are where the weights are.

    Args:
        device: Where the weights are.
    """
    default = torch.get_default_device()
    elsewhere = default.type not in ("cpu", device.type)
    with torch.inference_mode(False), torch.no_grad(), torch.device(device) if elsewhere else nullcontext():
        yield
