"""Weights as whole numbers of few bits, one scale for every output channel: w ≈ scale · q with |q| ≤ 2^(bits − 1) − 1.

Scales have so few digits that every product scale · q is exact: a quantised network is that of its whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mondeq import values
from mondeq.errors import RunError
from mondeq.network import Network, detached_copy
from splitting import InvalidArgument

LEAST_BITS, MOST_BITS = 2, 16
_SCALE = ".scale"
_WHOLE = (torch.int8, torch.int16)


def quantised(model: Network, bits: int) -> Network:
    """A network with weights of so many bits, in evaluation mode.

    Matrices and kernels are rounded to the nearest of 2^bits − 1 evenly spaced values, symmetric around 0 and as far
    apart as the largest weight of their output channel asks for. Vectors and single numbers (biases, metrics, learned
    m) stay as they are. A parameterization promises its constants for all weights, and so for these.

    Args:
        model: Any network.
        bits: 2 … 16.

    Returns:
        A copy, whose weights are floating-point numbers that are exactly scale · q.

    Raises:
        InvalidType: model(x) may not be what its pieces say.
        InvalidArgument: The same, `bits` is out of range, or a weight is not finite.
    """
    twin = detached_copy(model)
    unpacked_ = unpacked(packed(twin, bits), "`model`")
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            weight.copy_(unpacked_[name])
    return twin


def packed(model: Network, bits: int) -> dict[str, Tensor]:
    """The weights of a network, those of so many bits as whole numbers with their scales.

    Args:
        model: Any network.
        bits: 2 … 16.

    Returns:
        Tensors by name: int8 or, beyond 8 bits, int16 with `NAME.scale` beside them, and the others as they are.

    Raises:
        InvalidArgument: `bits` is out of range, or a weight is not finite.
    """
    bits = checked(bits)
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().cpu()
        if not bool(torch.isfinite(weight).all()):
            raise InvalidArgument(f"`model` holds NaN or inf in {name}; restore it or train again")
        if weight.ndim < 2:
            tensors[name] = weight
        else:
            tensors[name], tensors[name + _SCALE] = _rounded(weight, bits)
    return tensors


def unpacked(tensors: Mapping[str, Tensor], path: object) -> dict[str, Tensor]:
    """The weights of a file: `packed` inverted.

    Args:
        tensors: By name. Where no name has a scale beside it, they are weights already.
        path: The file, for the message.

    Returns:
        Floating-point weights by name.

    Raises:
        RunError: A scale does not fit its whole numbers.
    """
    weights = dict(tensors)
    for name, whole in tensors.items():
        scale = weights.pop(name + _SCALE, None) if whole.dtype in _WHOLE else None
        if scale is None:
            continue
        if not scale.is_floating_point() or scale.shape != (len(whole), *[1] * (whole.ndim - 1)):
            shape = tuple(scale.shape)
            raise RunError(f"{path} is damaged: {name}{_SCALE} is {scale.dtype} {shape}; restore it or quantise again")
        weights[name] = whole.to(scale.dtype) * scale
    return weights


def checked(bits: object) -> int:
    """A number of bits.

    Args:
        bits: What was given.

    Returns:
        The number.

    Raises:
        InvalidArgument: It is none from 2 to 16.
    """
    number = values.whole(bits)
    if number is None or not LEAST_BITS <= number <= MOST_BITS:
        raise InvalidArgument(
            f"`bits` must be a whole number from {LEAST_BITS} to {MOST_BITS}, got {values.shown(bits)}"
        )
    return number


def _rounded(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Whole numbers like `weight`, and a scale for each output channel, shaped to multiply them."""
    most = 2 ** (bits - 1) - 1
    exact = weight.double()
    largest = exact.abs().flatten(1).amax(1) if weight.numel() else exact.new_zeros(len(exact))
    scale = _short(largest / most, weight.dtype, bits - 1).view(-1, *[1] * (weight.ndim - 1))
    whole = (exact / scale).round().clamp(-most, most)
    return whole.to(torch.int8 if bits <= 8 else torch.int16), scale.to(weight.dtype)


def _short(scale: Tensor, dtype: torch.dtype, digits: int) -> Tensor:
    """Scales rounded up to leave so many binary digits of the dtype to what they are multiplied with; 1 for 0."""
    info = torch.finfo(dtype)
    kept = round(-math.log2(info.eps)) + 1 - digits
    mantissa, exponent = torch.frexp(scale.clamp_min(info.tiny))
    rounded = torch.ldexp((mantissa * 2.0**kept).ceil() / 2.0**kept, exponent)
    return torch.where(scale > 0, rounded, 1.0)
