"""Correlations in the frequency domain: what torch computes in space, with derivatives of every order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from splitting import InvalidArgument, InvalidType, correlate, correlation_rounding


def drawn(out: int = 2, inner: int = 3, size: tuple[int, int] = (5, 4), side: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, inner, *size, dtype=torch.float64, generator=generator)
    return images, torch.randn(out, inner, side, side, dtype=torch.float64, generator=generator)


def in_space(images: Tensor, kernel: Tensor) -> Tensor:
    """The sum over taps, of images that are moved around the torus."""
    reach = kernel.shape[2] // 2
    total = images.new_zeros(len(images), len(kernel), *images.shape[2:])
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            moved = images.roll((reach - i, reach - j), (2, 3))
            total += torch.einsum("oi,bihw->bohw", kernel[:, :, i, j], moved)
    return total


@pytest.mark.parametrize("size", [(5, 4), (1, 7), (66, 3), (2, 2)])
@pytest.mark.parametrize("side", [1, 3, 5])
def test_it_is_the_sum_over_taps(size: tuple[int, int], side: int) -> None:
    images, kernel = drawn(size=size, side=side)
    torch.testing.assert_close(correlate(images, kernel), in_space(images, kernel), rtol=0, atol=1e-11)


def test_with_zeros_around_it_is_a_convolution_layer() -> None:
    images, kernel = drawn()
    padded = functional.pad(images, (1, 1, 1, 1))
    inside = correlate(padded, kernel)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside, functional.conv2d(images, kernel, padding=1), rtol=0, atol=1e-12)


def test_its_adjoint_has_the_flipped_transposed_kernel() -> None:
    images, kernel = drawn()
    other = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    adjoint = correlate(other, kernel.transpose(0, 1).flip(2, 3))
    torch.testing.assert_close((correlate(images, kernel) * other).sum(), (images * adjoint).sum())


def test_derivatives_of_both_modes_and_of_second_order() -> None:
    arguments = [t.requires_grad_() for t in drawn()]
    assert torch.autograd.gradcheck(correlate, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(correlate, arguments)


def test_it_maps_over_images_and_kernels() -> None:
    images, kernel = drawn()
    stack, kernels = torch.stack([images, 2 * images]), torch.stack([kernel, -kernel])
    expected = torch.stack([correlate(images, kernel), correlate(2 * images, -kernel)])
    torch.testing.assert_close(torch.func.vmap(correlate)(stack, kernels), expected)
    of_images = torch.func.vmap(correlate, (0, None))(stack, kernel)
    torch.testing.assert_close(of_images[1], correlate(2 * images, kernel))


@settings(max_examples=100)
@given(
    out=st.integers(1, 5),
    inner=st.integers(1, 5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    side=st.sampled_from([1, 3]),
    seed=st.integers(0, 999),
    power=st.integers(-30, 30),
)
def test_its_rounding_is_bounded(out: int, inner: int, size: tuple[int, int], side: int, seed: int, power: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, inner, *size, generator=generator) * 2.0**power
    kernel = torch.randn(out, inner, side, side, generator=generator)
    relative, absolute = correlation_rounding(kernel, size)
    error = (correlate(images, kernel).double() - in_space(images.double(), kernel.double())).flatten(1).norm(dim=1)
    assert bool((error <= relative * images.double().flatten(1).norm(dim=1) + absolute).all())
    assert 0 < relative <= 1e-2 * float(kernel.norm())


def test_wrong_kernels_are_refused() -> None:
    images, kernel = drawn()
    with pytest.raises(InvalidArgument, match="`kernel` must have odd sides"):
        correlate(images, kernel[:, :, :2])
    with pytest.raises(InvalidType, match=r"`kernel` is torch\.float32"):
        correlate(images, kernel.float())
    with pytest.raises(InvalidArgument, match=r"`images` must be \(batch, 3, height, width\)"):
        correlate(images[:, :2], kernel)
