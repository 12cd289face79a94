"""Networks with two equilibria: a region goes through both, and what it says is true."""

import math

import pytest
import torch
from torch import Tensor, nn

import mondeq
import splitting
from mondeq.attacks import accuracy_under_attack
from mondeq.bounds import Chain
from mondeq.testing import check_certificate, check_lipschitz


def stack(seed: int = 0, activation: splitting.Activation | None = None) -> mondeq.Network:
    """A convolution and a dense layer on 6×6 pictures, in evaluation mode."""
    torch.manual_seed(seed)
    pieces = {
        "normalise": mondeq.Normalise((0.4,), (0.3,)),
        "first": mondeq.EquilibriumLayer(mondeq.Conv2d(1, 2, 6, m=0.7), activation, tol=1e-6),
        "crop": mondeq.Crop(1),
        "pool": nn.AvgPool2d(2),
        "flatten": nn.Flatten(),
        "second": mondeq.EquilibriumLayer(mondeq.Dense(18, 6, m=0.5), activation, tol=1e-6),
        "head": nn.Linear(6, 4),
    }
    return mondeq.Network(pieces, (1, 6, 6)).eval()


def dense_stack(seed: int = 0) -> mondeq.Network:
    """A Lipschitz-bounded layer, whose metric is not the identity, before another one."""
    torch.manual_seed(seed)
    first = mondeq.LipschitzDense(36, 7, 5, gamma=1.5)
    with torch.no_grad():
        first.log_metric.normal_()
    return mondeq.Network(
        [
            mondeq.Normalise((0.4,), (0.3,)),
            mondeq.EquilibriumLayer(first, splitting.Tanh(), tol=1e-6),
            mondeq.GroupSort(7),
            mondeq.ReadoutLayer(mondeq.LipschitzDense(7, 6, 4)),
        ],
        (1, 6, 6),
    ).eval()


STACKS = {"convolution, dense": stack, "lipschitz, lipschitz": dense_stack}
each_stack = pytest.mark.parametrize("name", STACKS)


def pictures(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


@each_stack
def test_certificates_hold_under_ten_thousand_attacks(name: str) -> None:
    """Every image is moved to 400 random points of its sphere, and ascended towards every rival: 20,000 in both."""
    model, images = STACKS[name](3), pictures(25)
    labels = model(images).argmax(1)
    report = mondeq.certify(model, images, labels)
    assert bool(report.correct.all())
    assert check_certificate(model, images, labels, report, samples=400) >= 20


@each_stack
def test_no_pair_of_inputs_violates_the_bound(name: str) -> None:
    for seed in range(3):
        assert 0.02 < check_lipschitz(STACKS[name](seed)) <= 1


@each_stack
def test_the_product_bound_is_that_of_the_matrices(name: str) -> None:
    """Against ‖last‖‖U₂‖/m₂ ‖moves‖ ‖U₁/std‖/m₁ from dense matrices."""
    model = STACKS[name]().double()
    chain = Chain.of(model)
    images = pictures(1).double().requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x)[0], images).reshape(4, -1)
    bounds = mondeq.lipschitz_bounds(model, chain=chain)
    assert float(torch.linalg.matrix_norm(jacobian, 2)) <= bounds["product"].value
    product = math.prod(stage.constant for stage in chain.stages)
    assert bounds["product"].value == pytest.approx(product, rel=1e-12)


def test_the_matrix_inequality_of_the_last_layer_counts_what_comes_before() -> None:
    bounds = mondeq.lipschitz_bounds(stack())
    best, product = bounds["matrix inequality"].pairs, bounds["product"].pairs
    assert best is not None
    assert product is not None
    assert bool((best <= product * (1 + 1e-8)).all())
    assert float((best / product.clamp_min(1e-300)).amax()) > 0.1


@pytest.mark.parametrize("tol", [1e-1, 1e-3])
def test_the_radius_accounts_for_a_first_layer_that_was_hardly_solved(tol: float) -> None:
    model, images = stack(3), pictures(20)
    labels = model(images).argmax(1)
    tight = mondeq.certify(model, images, labels)
    certifier = mondeq.Certifier(model)
    first = certifier.chain.exact.get_submodule("first")
    first.tol, first.on_failure = tol, "return"
    loose = certifier.certify(images, labels)
    assert bool((loose.radius < tight.radius).all())
    assert float(loose.error_bound.amax()) > 0.01 * tol
    # What the second layer is given, as the tight solve has it, lies in the ball around what it was given.
    exact, images = Chain.of(model), images.double()
    here, there = (chain.enclose(images) for chain in (certifier.chain, exact))
    apart = here.norm.of(here.centre - there.centre)
    assert bool((apart > 0).any())
    assert bool((apart <= here.radius + there.radius).all())
    # No prediction that is certified is another one.
    certain = loose.radius > 0
    assert torch.equal(loose.prediction[certain], tight.prediction[certain])
    assert check_certificate(model, images, labels, loose, samples=50) == int(certain.sum())


@each_stack
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    model = STACKS[name]().double()
    for layer in model.solved():
        layer.tol = layer.backward_tol = 1e-13
        layer.max_steps = 3000
        layer.activation = splitting.Tanh()
    weights = dict(model.named_parameters())
    names = [name for name in weights if not name.endswith(("log_metric",))]

    def logits(*values: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (images,))
        return result

    images = pictures(2).double()
    values = [weights[name].detach().requires_grad_() for name in names]
    # A layer that hands on its states has no use for the bias of its read-out.
    gradients = torch.autograd.grad(logits(*values).square().sum(), values, allow_unused=True, materialize_grads=True)
    for number, gradient in enumerate(gradients):
        direction = torch.randn_like(gradient)
        step = 1e-5 * direction
        moved = [[v + sign * step if k == number else v for k, v in enumerate(values)] for sign in (1, -1)]
        with torch.no_grad():
            up, down = (logits(*each).square().sum() for each in moved)
        assert float((gradient * direction).sum()) == pytest.approx(float(up - down) / 2e-5, rel=1e-5, abs=1e-8)


def test_a_piece_of_which_nothing_is_proved_is_named() -> None:
    cell = nn.Bilinear(6, 18, 6)
    general = mondeq.Network(
        {"flatten": nn.Flatten(), "cell": mondeq.Equilibrium(cell, (6,)), "head": nn.Linear(6, 3)}, (1, 3, 6)
    )
    with pytest.raises(splitting.InvalidArgument, match="the piece `cell` is a general fixed point"):
        mondeq.lipschitz_bounds(general)
    dropped = mondeq.Network([nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)], (1, 6, 6)).eval()
    assert dropped(pictures(2)).shape == (2, 3)
    with pytest.raises(splitting.InvalidArgument, match="the piece `1` is a Dropout, of which no constant is known"):
        mondeq.certify(dropped, pictures(2), torch.zeros(2, dtype=torch.long))


def test_a_feed_forward_network_is_certified_too() -> None:
    torch.manual_seed(0)
    model = mondeq.Network(
        [
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            mondeq.GroupSort(2),
            nn.PixelUnshuffle(3),
            nn.Flatten(),
            nn.Linear(36, 4),
        ],
        (1, 6, 6),
    ).eval()
    images = pictures(10)
    labels = model(images).argmax(1)
    report = mondeq.certify(model, images, labels)
    assert check_certificate(model, images, labels, report) == 10
    assert 0.1 < check_lipschitz(model) <= 1


def test_a_certifier_knows_its_weights() -> None:
    model, images = stack(), pictures(4)
    labels = model(images).argmax(1)
    certifier = mondeq.Certifier(model)
    expected = mondeq.certify(model, images, labels)
    assert torch.equal(mondeq.certify(model, images, labels, certifier=certifier).radius, expected.radius)
    with torch.no_grad():
        model.get_submodule("head").weight.data[0, 0] += 1
    with pytest.raises(splitting.InvalidArgument, match="prepared for other weights"):
        mondeq.certify(model, images, labels, certifier=certifier)
    assert torch.equal(certifier.certify(images, labels).radius, expected.radius)
    with pytest.raises(splitting.InvalidArgument, match="prepared for the norm 'l2'"):
        mondeq.certify(stack(), images, labels, norm="linf", certifier=certifier)


def test_radii_in_the_largest_norm_are_those_of_the_ball_around() -> None:
    model, images = stack(), pictures(6)
    labels = model(images).argmax(1)
    euclidean, largest = (mondeq.certify(model, images, labels, norm=norm).radius for norm in ("l2", "linf"))
    torch.testing.assert_close(largest, euclidean / 6, rtol=1e-9, atol=0)
    assert bool((largest <= euclidean / 6).all())


def test_networks_of_flat_samples_and_of_one_piece_are_held_to_their_bounds() -> None:
    torch.manual_seed(0)
    for pieces in ([nn.Linear(5, 3)], [mondeq.EquilibriumLayer(mondeq.Dense(5, 3))]):
        model = mondeq.Network(pieces, (5,)).eval()
        x = torch.rand(8, 5)
        labels = model(x).argmax(1)
        assert 0.2 < check_lipschitz(model, x) <= 1
        report = mondeq.certify(model, x, labels)
        assert check_certificate(model, x, labels, report) == int((report.radius > 0).sum()) > 0
        pytest.importorskip("foolbox")
        attacked = accuracy_under_attack(model, x, labels, [0.1], steps=5)
        assert report.certified_accuracy([0.1])[0.1] <= attacked[0.1]
