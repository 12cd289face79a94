"""The bound on the error on new images: what noise does to weights and logits, and what follows."""

import copy
import math

import pytest
import torch

import mondeq
from mondeq.bounds import Chain
from mondeq.data import Dataset
from mondeq.network import exact_copy
from mondeq.weights.generalisation import _Disturbed
from splitting import InvalidArgument
from tests.mondeq.zoo import classifier, labels_of, pictures


def noisy(model: mondeq.Network, scale: float, seed: int) -> mondeq.Network:
    twin, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in twin.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return twin


@pytest.mark.parametrize("learn_m", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 0.3])
def test_noise_of_weights_seldom_does_more_than_is_said(scale: float, learn_m: bool) -> None:
    linear = mondeq.Dense(7, 30, 0.5, learn_m=learn_m).double().requires_grad_(False)
    said = linear.noise(scale, 2.0)
    rare, largest = 0, torch.zeros(3, dtype=torch.float64)
    for seed in range(40):
        twin = noisy(linear, scale, seed)  # type: ignore[arg-type]  # any module
        found = [
            torch.linalg.matrix_norm(twin.weight() - linear.weight(), 2),
            torch.linalg.matrix_norm(twin.U - linear.U, 2),
            (twin.b - linear.b).norm(),
        ]
        shares = torch.stack(found) / torch.tensor([said.operator, said.inputs, said.bias], dtype=torch.float64)
        rare += int((shares > 1).any() or float(twin.m) < said.strong_monotonicity)
        largest = largest.maximum(shares)
    assert rare <= 40 * said.bounds * math.exp(-2.0)
    assert bool((largest > 0.2).all())


def test_noise_moves_logits_less_than_is_said() -> None:
    model = classifier("dense").double()
    disturbed = _Disturbed.of(Chain.of(model))
    # The corners of the box, where images are largest, too.
    images = torch.cat([pictures(model, 20).double(), pictures(model, 20).double().round()])
    for scale in (1e-4, 1e-2):
        moves = []
        for seed in range(20):
            with torch.no_grad():
                apart = exact_copy(noisy(model, scale, seed))(images) - exact_copy(model)(images)
            moves.append(float(apart.abs().amax()))
        assert sorted(moves)[len(moves) // 2] <= disturbed.movement(scale) <= 100 * max(moves)


def test_the_bound_is_what_its_parts_say() -> None:
    model = classifier("dense").double()
    images, labels = pictures(model, 50).double(), labels_of(model, 50)
    found = mondeq.generalisation_bound(model, images, labels, margin=0.1, delta=0.1)
    disturbed = _Disturbed.of(Chain.of(model))
    assert disturbed.movement(found.noise) < 0.1 / 4 <= disturbed.movement(found.noise * 2**0.5)
    assert found.distance == pytest.approx(float(torch.cat([p.flatten() for p in model.parameters()]).detach().norm()))
    lead = model(images)
    mine = lead.gather(1, labels[:, None])
    others = lead.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True)
    assert found.training_error == float((mine - others <= 0.1).double().mean())
    k = abs(2 * math.log2(found.noise))
    inside = found.distance**2 / (2 * found.noise**2) + math.log(6 * 50 * 2 * (k + 1) * (k + 2) / 0.1)
    assert found.complexity == pytest.approx(4 * math.sqrt(inside / 49))
    assert found.value == pytest.approx(found.training_error + found.complexity)
    near = mondeq.generalisation_bound(model, images, labels, margin=0.1, delta=0.1, initial=model)
    assert near.distance < 1e-300
    assert near.complexity < found.complexity


def test_more_images_and_a_larger_margin_make_it_smaller(
    trained: dict[str, mondeq.Classifier], digits: Dataset
) -> None:
    model, images = trained["dense"], digits.train.images.float() / 255
    few, all_ = (
        mondeq.generalisation_bound(model, images[:count], digits.train.labels[:count], margin=1.0)
        for count in (100, len(images))
    )
    wide = mondeq.generalisation_bound(model, images, digits.train.labels, margin=10.0)
    assert all_.complexity < few.complexity
    assert wide.complexity < all_.complexity
    assert wide.training_error >= all_.training_error
    # It says nothing of this network, and does not hide it.
    assert all_.value > 1


def test_networks_of_which_it_is_not_known_are_refused() -> None:
    for kind in ("lipschitz", "conv"):
        model = classifier(kind)
        with pytest.raises(InvalidArgument, match="`model` must be pieces without weights, a dense equilibrium"):
            mondeq.generalisation_bound(model, pictures(model), labels_of(model), margin=1.0)
    model = classifier("dense")
    for options, said in (
        ({"margin": 0.0}, "`margin` must be a number > 0"),
        ({"margin": 1.0, "delta": 1.0}, "`delta` must be a number > 0 and < 1"),
        ({"margin": 1.0, "initial": classifier("dense", features=3)}, "`initial` must have weights of the same"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            mondeq.generalisation_bound(model, pictures(model), labels_of(model), **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="at least two"):
        mondeq.generalisation_bound(model, pictures(model, 1), labels_of(model, 1), margin=1.0)
