"""Bounds that see the matrices of a network, against constants that are known from its weights."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import mondeq
from mondeq.bounds import BOUNDS, Chain, OptimisedMetric, PerFrequency, Product, Slopes, Stack, frequencies
from mondeq.network import exact_copy
from mondeq.pieces import AveragePool
from splitting import InvalidArgument
from tests.mondeq.zoo import Array, array, classifier, matrices


def random_network(seed: int, *, entries: int = 6) -> mondeq.Network:
    """3 to 6 units and 3 or 4 classes; with as many inputs as units every pattern of ReLU occurs."""
    torch.manual_seed(seed)
    n, classes = 3 + seed % 4, 3 + seed % 2
    linear = mondeq.Dense(entries, n, m=(0.1, 0.5, 1.0)[seed // 2 % 3])
    with torch.no_grad():
        for weight in linear.parameters():
            weight.copy_(torch.randn_like(weight) * (n**-0.5 if weight.shape == (n, n) else 1))
    return mondeq.Network([mondeq.EquilibriumLayer(linear), nn.Linear(n, classes)], in_shape=(entries,)).eval()


def by_enumeration(A: Array, U: Array, C: Array) -> tuple[float, Array]:
    """max ‖C(I − DW)⁻¹DU‖ over all D of zeros and ones, for all rows of C and for the differences of two."""
    n, largest, pairs = len(A), 0.0, np.zeros((len(C), len(C)))
    for pattern in itertools.product([0.0, 1.0], repeat=n):
        D = np.diag(pattern)
        J = C @ np.linalg.solve(np.eye(n) - D @ (np.eye(n) - A), D @ U)
        largest = max(largest, np.linalg.norm(J, 2))
        pairs = np.maximum(pairs, np.linalg.norm(J[:, None] - J[None], axis=2))
    return largest, pairs


def of_two_layers(model: mondeq.Network) -> tuple[Array, Array, Array]:
    """A and U of its equilibria as one, with the matrix of the linear piece between them, and C."""
    first, link, second, head = exact_copy(model).children()
    A, B = (array(layer.linear.operator().matrix) for layer in (first, second))
    through = array(second.linear.U) @ array(link.weight)
    joined = np.block([[A, np.zeros((len(A), len(B)))], [-through, B]])
    U = np.vstack([array(first.linear.U), np.zeros((len(B), first.linear.U.shape[1]))])
    return joined, U, np.hstack([np.zeros((len(head.weight), len(A))), array(head.weight)])


def two_layers(seed: int) -> mondeq.Network:
    torch.manual_seed(seed)
    first, second = mondeq.Dense(5, 3, m=0.5), mondeq.Dense(4, 3, m=0.7)
    pieces = [mondeq.EquilibriumLayer(first), nn.Linear(3, 4), mondeq.EquilibriumLayer(second), nn.Linear(3, 3)]
    return mondeq.Network(pieces, in_shape=(5,)).eval()


@pytest.mark.parametrize("seed", range(8))
def test_the_best_bound_of_every_pair_is_the_exact_constant(seed: int) -> None:
    """exact ≤ bound for every method; the best one, and the optimised metric alone, within their slacks."""
    model = random_network(seed)
    layer, head = exact_copy(model).children()
    value, pairs = by_enumeration(array(layer.linear.operator().matrix), array(layer.linear.U), array(head.weight))
    bounds = mondeq.lipschitz_bounds(model)
    for name, bound in bounds.items():
        assert bound.value >= value * (1 - 1e-12), name
        assert (array(bound.pairs) >= pairs * (1 - 1e-12)).all(), name
    assert bounds["slopes"].value <= value * (1 + 1e-9)
    np.testing.assert_allclose(array(bounds["slopes"].pairs), pairs, rtol=1e-9)
    optimised = bounds["matrix inequality, optimised metric"]
    assert optimised.value <= 2 * value
    assert (array(optimised.pairs) <= 2 * pairs + 1e-12).all()
    assert np.median(array(optimised.pairs)[pairs > 0] / pairs[pairs > 0]) <= 1.2


@pytest.mark.parametrize("exponent", [-300, 300])
def test_slopes_at_every_scale(exponent: int) -> None:
    model = random_network(1).double()
    ordinary = Slopes().bound(Chain.of(model))
    with torch.no_grad():
        layer, head = model.children()
        layer.linear.U.mul_(2.0**exponent)
        head.weight.mul_(2.0**exponent)
    assert Slopes().bound(Chain.of(model)).value == pytest.approx(ordinary.value * 4.0**exponent, rel=1e-9)


def test_wide_inputs_are_compressed_soundly() -> None:
    model = random_network(3, entries=40)
    layer, head = exact_copy(model).children()
    value, pairs = by_enumeration(array(layer.linear.operator().matrix), array(layer.linear.U), array(head.weight))
    bound = Slopes().bound(Chain.of(model))
    assert value * (1 - 1e-12) <= bound.value <= value * (1 + 1e-6)
    assert (array(bound.pairs) >= pairs * (1 - 1e-12)).all()


# -- convolutions, frequency by frequency ---------------------------------------------------------------------------


def convolutional(seed: int, **settings: object) -> mondeq.Network:
    options = {"image_shape": (2, 4, 6), "kernel_size": 3, "channels": (3,), "pool": 2, "m": 0.5} | settings
    model = classifier("conv", seed=seed, **options)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize("seed", range(3))
def test_the_inequality_per_frequency_is_that_of_the_whole_matrix(seed: int) -> None:
    """γ² = λ_max(C M⁻¹ Cᵀ) with M = ΛA + AᵀΛ − ΛUUᵀΛ of the torus as one matrix, C zero where states are."""
    model = exact_copy(convolutional(seed))
    chain = Chain.of(model)
    images = frequencies._images(chain)
    assert images is not None
    problem = frequencies._Problem.of(images)
    metric = problem.search()
    value, gaps = problem.prove(metric)
    _, height, width = model.get_submodule("layer").linear.state_shape
    kernels = images.correlations
    weight = np.repeat(array(metric), height * width)
    A, U = (as_matrix(kernel, height, width) for kernel in (kernels.operator, kernels.inputs))
    # The units that the problem is in.
    scale, inputs = (2.0 ** -math.frexp(float(k.abs().max()))[1] for k in (kernels.operator, kernels.inputs))
    A, U, C = A * scale, U * inputs, array(images.head.flatten(1))
    M = weight[:, None] * A + (weight[:, None] * A).T - weight[:, None] * U @ U.T * weight
    assert np.linalg.eigvalsh(M)[0] > 0
    gram = C @ np.linalg.solve(M, C.T) * (scale / inputs) ** 2
    true = math.sqrt(np.linalg.eigvalsh(gram)[-1])
    assert true * (1 - 1e-9) <= value <= true * (1 + 1e-6)
    first, second = np.tril_indices(3, -1)
    squares = gram[first, first] + gram[second, second] - 2 * gram[first, second]
    assert (np.array(gaps) >= np.sqrt(squares) * (1 - 1e-9)).all()
    np.testing.assert_allclose(gaps, np.sqrt(squares), rtol=1e-6)


def as_matrix(kernel: torch.Tensor, height: int, width: int) -> Array:
    """The circular correlation with a kernel, column by column."""
    inner, k = kernel.shape[1], kernel.shape[2] // 2
    basis = torch.eye(inner * height * width, dtype=torch.float64).view(-1, inner, height, width)
    padded = nn.functional.pad(basis, (k, k, k, k), mode="circular")
    return array(nn.functional.conv2d(padded, kernel).flatten(1)).T


@pytest.mark.parametrize("seed", range(3))
def test_the_inequality_per_frequency_lies_between_what_is_seen_and_the_product(seed: int) -> None:
    model = convolutional(seed)
    chain = Chain.of(model)
    bound, product = PerFrequency().bound(chain), Product().bound(chain)
    head, matrix, inputs = matrices(exact_copy(model))
    linear = exact_copy(model).get_submodule("layer").linear
    inside = array(linear.inside.expand(linear.state_shape)).ravel().astype(bool)
    jacobian = head[:, inside] @ np.linalg.solve(matrix[np.ix_(inside, inside)], inputs[inside])
    assert np.linalg.norm(jacobian, 2) * (1 - 1e-12) <= bound.value <= 0.95 * product.value
    gaps = np.linalg.norm(jacobian[:, None] - jacobian[None], axis=2)
    assert (array(bound.pairs) >= gaps * (1 - 1e-12)).all()
    assert bool((bound.pairs <= product.pairs * (1 + 1e-9)).all())


@pytest.mark.parametrize("kind", [AveragePool, nn.AvgPool2d])
def test_averages_are_lifted_exactly(kind: type[nn.Module]) -> None:
    (proof,) = mondeq.pieces.arithmetic(kind(2)).proofs(mondeq.norms.Norm(), torch.Size((2, 4, 7)))
    rows = torch.randn(3, 12, dtype=torch.float64)
    images = torch.randn(5, 2, 4, 7, dtype=torch.float64)
    lifted = proof.lift(rows)
    assert lifted is not None
    torch.testing.assert_close(images.flatten(1) @ lifted.mT, kind(2)(images).flatten(1) @ rows.mT)


def test_too_many_channels_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.of(convolutional(0))
    assert PerFrequency().unsuited(chain) is None
    monkeypatch.setattr("mondeq.bounds.frequencies.MOST_WORK", 1.0)
    assert "3 channels at" in str(PerFrequency().unsuited(chain))


def test_what_is_not_proved_per_frequency_is_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.of(convolutional(0))
    product = Product().bound(chain)
    monkeypatch.setattr("splitting.verified.smallest_eigenvalue", lambda *_, **__: -1.0)
    bound = PerFrequency().bound(chain)
    assert bound.value == product.value
    assert torch.equal(bound.pairs, product.pairs)
    assert "product for 4 of 4 constants" in bound.method


# -- stacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_stack_is_bounded_as_one(seed: int) -> None:
    model = two_layers(seed)
    chain = Chain.of(model)
    value, pairs = by_enumeration(*of_two_layers(model))
    stack, slopes, product = Stack().bound(chain), Slopes().bound(chain), Product().bound(chain)
    for bound in (stack, slopes, OptimisedMetric().bound(chain), product):
        assert bound.value >= value * (1 - 1e-12)
        assert (array(bound.pairs) >= pairs * (1 - 1e-12)).all()
    assert slopes.value <= value * (1 + 1e-9)
    assert stack.value <= min(OptimisedMetric().bound(chain).value, 2 * value)


def test_methods_say_why_they_have_nothing_to_say() -> None:
    alone, images = Chain.of(random_network(0)), Chain.of(classifier("multiscale"))
    assert "no two dense equilibria" in str(Stack().unsuited(alone))
    assert "no convolutional equilibrium" in str(PerFrequency().unsuited(alone))
    for method in (Stack(), Slopes(), PerFrequency()):
        with pytest.raises(InvalidArgument, match="`chain` has no"):
            method.bound(images)
    assert {name for name, kind in BOUNDS.items() if kind().unsuited(images) is None} == {"product"}


# -- the estimate ---------------------------------------------------------------------------------------------------


def test_ascent_finds_steeper_places_and_stays_below_the_bounds() -> None:
    model = random_network(2)
    images = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    bounds = mondeq.lipschitz_bounds(model, images)
    estimate = bounds["local Jacobian"]
    assert not estimate.is_certified
    assert float(mondeq.local_jacobian_norms(model, images).max()) <= estimate.value
    assert estimate.value <= min(b.value for b in bounds.values() if b.is_certified)
    assert estimate.value >= 0.9 * bounds["slopes"].value
    assert all(b.seconds >= 0 for b in bounds.values())
