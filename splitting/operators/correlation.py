"""Circular correlations between fields of different channels, computed in the frequency domain.

Where both sides have many channels this takes a fraction of the operations of a convolution in space: one product per
kept frequency instead of one per tap and position.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from splitting import norms, verified
from splitting.context import full_precision, uncompiled
from splitting.errors import InvalidArgument
from splitting.operators.kernels import check_kernel, check_size
from splitting.operators.symbols import stacked, symbol_rounding
from splitting.operators.torus import Torus
from splitting.scratch import product


@uncompiled
def correlate(images: Tensor, kernel: Tensor) -> Tensor:
    """The circular correlation of images with a kernel: y[o, p] = Σ_{i, t} K[o, i, t] x[i, p + t − centre].

    It is differentiable in both, any number of times. The adjoint of the correlation with K is that with
    K.transpose(0, 1).flip(2, 3). A kernel larger than the images wraps around.

    Args:
        images: x, (batch, in, height, width). It is fastest where the batch is the last axis in memory.
        kernel: K, (out, in, k, k) of odd sides, in the dtype and on the device of the images.

    Returns:
        y, (batch, out, height, width), the batch the last axis in memory.

    Raises:
        InvalidArgument: The kernel has even sides, or its channels are not those of the images.
        InvalidType: It is no kernel, or of another dtype.
    """
    check_kernel("kernel", kernel, images)
    if images.ndim != 4 or images.shape[1] != kernel.shape[1]:
        raise InvalidArgument(
            f"`images` must be (batch, {kernel.shape[1]}, height, width) for a kernel of {tuple(kernel.shape)}, got "
            f"{tuple(images.shape)}"
        )
    field: Tensor = _Correlation.apply(kernel, images.permute(2, 3, 1, 0))  # type: ignore[no-untyped-call]
    return field.permute(3, 2, 0, 1)


def correlation_rounding(kernel: Tensor, size: tuple[int, int]) -> tuple[float, float]:
    """What `correlate` may be wrong by: (a, b) with ‖fl(y) − y‖₂ ≤ a‖x‖₂ + b for every image.

    a has the errors of both transforms, of the products and of the symbol, each times what follows, in the kernel's
    dtype. b is what products below the normal numbers may add.

    Args:
        kernel: K, (out, in, k, k).
        size: (height, width) of the images.

    Returns:
        Both numbers, rounded upwards.
    """
    torus, dtype = Torus(*check_size(size)), kernel.dtype
    out, inner, *sides = kernel.shape
    # ‖·‖₂ of the entrywise modulus of a symbol is at most that of the sums of moduli over taps.
    moduli = norms.frobenius(kernel.detach().double().abs().sum((2, 3))) * (1 + 1e-12)
    products = verified.rounding_factor(2 * inner + 16, dtype) * math.sqrt(2 * max(inner, out))
    symbol = 2 * symbol_rounding(math.prod(sides) + 8, dtype)
    relative = moduli * (4 * torus.rounding(dtype) + 4 * products + 4 * symbol)
    entries = math.prod(size) * (out + inner)
    absolute = 64 * entries**1.5 * torch.finfo(dtype).tiny * (1 + moduli)
    return verified.round_up(relative), verified.round_up(absolute)


class _Correlation(torch.autograd.Function):
    """It records the images and the kernel, and its derivatives are correlations again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(kernel: Tensor, field: Tensor) -> Tensor:
        torus = Torus(*field.shape[:2])
        with full_precision(field.device):
            return torus.synthesise(product(stacked(torus.symbol(kernel)), torus.analyse(field)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        kernel, field = ctx.saved_tensors
        of_kernel, of_field = ctx.needs_input_grad
        torus, kernel_gradient, field_gradient = Torus(*field.shape[:2]), None, None
        with full_precision(field.device):
            spectrum = torus.analyse(g)  # once for both
            if of_kernel:
                symbol_gradient = torus.correlate(spectrum, torus.analyse(field))
                kernel_gradient = torus.kernel_gradient(symbol_gradient, kernel.shape)
            if of_field:
                adjoint = stacked(torus.symbol(kernel)).mT
                field_gradient = torus.synthesise(product(adjoint, spectrum))
        return kernel_gradient, field_gradient

    @staticmethod
    def jvp(ctx: Any, kernel_dot: Tensor | None, field_dot: Tensor | None) -> Tensor:
        kernel, field = ctx.saved_tensors
        dots = [
            _Correlation.apply(k, f)  # type: ignore[no-untyped-call]
            for k, f in ((kernel_dot, field), (kernel, field_dot))
            if k is not None and f is not None
        ]
        return sum(dots[1:], dots[0])
