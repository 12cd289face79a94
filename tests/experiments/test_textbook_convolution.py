"""The textbook convolutions are what they claim to be: against W as a matrix and autograd through the iteration."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from experiments.benchmarks import textbook_convolution
from experiments.benchmarks.textbook_convolution import TextbookConvolution

# One tier and several, of even and of odd sides.
NETWORKS = pytest.mark.parametrize(("channels", "image_size"), [((3,), 4), ((2,), 5), ((2, 3), 6), ((2, 3, 1), 8)])
M = 0.5


def _layer(channels: tuple[int, ...], image_size: int) -> TextbookConvolution:
    torch.manual_seed(0)
    layer = TextbookConvolution(2, channels, image_size, M, tol=1e-13, max_steps=5000).double()
    with torch.no_grad():
        for scale, value in ((layer.g, 1.5), (layer.h, 0.7), (layer.gn, 0.8)):
            scale.fill_(value)
    return layer


def _matrix(kernel: Tensor, side: int, *, stride: int = 1, rows: int | None = None) -> Tensor:
    """The matrix of a correlation on a side×side torus, (out · rows², in · side²); rows beyond side/stride are zero."""
    rows = side if rows is None else rows
    taps = torch.zeros(rows, side, 3, dtype=kernel.dtype)
    for p in range(side // stride):
        for d in range(3):
            taps[p, (stride * p + d - 1) % side, d] = 1
    matrix = torch.einsum("oide,pqd,rse->opriqs", kernel, taps, taps)
    return matrix.reshape(kernel.shape[0] * rows**2, -1)


def _dense_weight(layer: TextbookConvolution) -> Tensor:
    """W, assembled from the bidiagonal F and the G that cancels the upper half of I − W; differentiable."""
    sides, tiers = layer.sides, len(layer.sides)
    sizes = [c * s * s for c, s in zip(layer.channels, sides, strict=True)]
    F: list[list[Tensor]] = [[torch.zeros(a, b, dtype=torch.float64) for b in sizes] for a in sizes]
    G: list[list[Tensor]] = [[torch.zeros(a, b, dtype=torch.float64) for b in sizes] for a in sizes]
    for i in range(tiers):
        F[i][i] = _matrix(layer.g[i].sqrt() * layer.F[i] / layer.F[i].norm(), sides[i])
        G[i][i] = _matrix(layer.h[i] * layer.G[i] / layer.G[i].norm(), sides[i])
    for i, (above, below) in enumerate(pairwise(sides)):
        F[i + 1][i] = _matrix(layer.gn[i].sqrt() * layer.D[i] / layer.D[i].norm(), above, stride=2, rows=below)
        G[i + 1][i] = F[i + 1][i + 1].mT @ F[i + 1][i]
    f, g = (torch.cat([torch.cat(row, 1) for row in blocks]) for blocks in (F, G))
    return (1 - M) * torch.eye(len(f), dtype=f.dtype) - f.mT @ f + g.mT - g


def _source(layer: TextbookConvolution, x: Tensor) -> Tensor:
    """Ux + b with the wrapped correlation written as a zero-padded one: they differ on the border only."""
    first = functional.conv2d(x, layer.U.weight, layer.U.bias, padding=2).flatten(1)
    others = sum(c * s * s for c, s in zip(layer.channels[1:], layer.sides[1:], strict=True))
    return functional.pad(first, (0, others))


def _inside(layer: TextbookConvolution) -> Tensor:
    masks = [
        functional.pad(torch.ones(c, s - 2, s - 2, dtype=torch.float64), (1, 1, 1, 1))
        for c, s in zip(layer.channels, layer.sides, strict=True)
    ]
    return torch.cat([mask.flatten() for mask in masks])


def _flat(tiers: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tier.flatten(1) for tier in tiers], dim=1)


@NETWORKS
def test_products_and_inverses_are_those_of_the_matrix(channels: tuple[int, ...], image_size: int) -> None:
    layer = _layer(channels, image_size)
    with torch.no_grad():
        W, kernels, inverse = _dense_weight(layer), layer._kernels(), layer._inverse()
        v = tuple(torch.randn(2, c, s, s, dtype=torch.float64) for c, s in zip(channels, layer.sides, strict=True))
        V = torch.linalg.inv((1 + layer.alpha) * torch.eye(len(W), dtype=W.dtype) - layer.alpha * W)
        for values, matrix in (
            (kernels.multiply(v), W),
            (kernels.multiply_transposed(v), W.mT),
            (inverse(v), V),
            (inverse.transposed(v), V.mT),
        ):
            torch.testing.assert_close(_flat(values), _flat(v) @ matrix.mT, rtol=0, atol=1e-12)


@NETWORKS
def test_fixed_point_satisfies_the_equation(channels: tuple[int, ...], image_size: int) -> None:
    layer = _layer(channels, image_size)
    x = torch.randn(3, 2, image_size, image_size, dtype=torch.float64)
    with torch.no_grad():
        tiers = layer(x)
        z, W, c = _flat(tiers), _dense_weight(layer), _source(layer, x)
    torch.testing.assert_close(z, (z @ W.mT + c).relu() * _inside(layer), rtol=0, atol=1e-11)
    assert 0.1 < float((z > 0).double().sum() / (len(z) * _inside(layer).sum())) < 0.9
    assert layer.forward_steps < layer.max_steps
    assert layer.residual(x, tiers) < 1e-11
    assert layer.residual(x, tuple(2 * tier for tier in tiers)) > 0.1


@NETWORKS
def test_gradients_are_those_of_the_unrolled_iteration(channels: tuple[int, ...], image_size: int) -> None:
    layer = _layer(channels, image_size)
    x = torch.randn(3, 2, image_size, image_size, dtype=torch.float64, requires_grad=True)
    weights = [x, *(weight for weight in layer.parameters() if weight.numel())]
    z = _flat(layer(x))
    direction = torch.randn_like(z)
    gradients = torch.autograd.grad((z * direction).sum(), weights)
    W, c, inside = _dense_weight(layer), _source(layer, x), _inside(layer)
    V = torch.linalg.inv(2 * torch.eye(len(W), dtype=W.dtype) - W)
    unrolled = u = torch.zeros_like(z)
    for _ in range(400):
        reflected = 2 * unrolled - u
        u = 2 * (reflected + c) @ V.mT - reflected
        unrolled = u.relu() * inside
    torch.testing.assert_close(unrolled, z, rtol=0, atol=1e-11)
    for one, other in zip(gradients, torch.autograd.grad((unrolled * direction).sum(), weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_steps_end_with_the_relative_change_of_the_batch() -> None:
    layer = _layer((2, 3), 6)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    layer.tol = 1e-2
    loose = _flat(layer(x))
    few = layer.forward_steps
    layer.tol = 1e-10
    tight = _flat(layer(x))
    assert 1 < few < layer.forward_steps < layer.max_steps
    assert (loose - tight).norm() < 0.05 * tight.norm()
    layer.max_steps = 3
    layer(x)
    assert layer.forward_steps == 3


def test_large_matrices_are_inverted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = torch.eye(6) + 0.1 * torch.rand(3, 6, 6)
    stacked = textbook_convolution._inv(matrices)
    monkeypatch.setattr(textbook_convolution, "_SINGLY", 6)
    shapes: list[torch.Size] = []
    inv = torch.linalg.inv
    monkeypatch.setattr(torch.linalg, "inv", lambda m: shapes.append(m.shape) or inv(m))
    torch.testing.assert_close(textbook_convolution._inv(matrices), stacked)
    assert shapes == [torch.Size((6, 6))] * 3
