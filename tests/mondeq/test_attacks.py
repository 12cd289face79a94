"""The attack: it sees through confidence, keeps to the ball and the box, and draws from a generator of its own."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mondeq
from mondeq.attacks import accuracy_under_attack
from mondeq.data import Dataset
from mondeq.testing import activations, convolutions, inputs, parameterizations, solvers
from splitting import InvalidArgument, InvalidType
from tests.mondeq.zoo import KINDS, classifier, head_of, labels_of, pictures

pytest.importorskip("foolbox")


@pytest.mark.parametrize("factor", [10.0, 1e4, 1e-20])
def test_confidence_does_not_blind_the_attack(
    factor: float, trained: dict[str, mondeq.Classifier], digits: Dataset
) -> None:
    """A multiple of the head changes no prediction, and so no accuracy under attack; cross-entropy saw nothing here."""
    images, labels = digits.test.images[:40].float() / 255, digits.test.labels[:40]
    model = copy.deepcopy(trained["dense"])
    before = accuracy_under_attack(model, images, labels, [0.3, 0.6, 1.0], steps=10)
    with torch.no_grad():
        head_of(model)[0].mul_(factor)
        head_of(model)[1].mul_(factor)
    after = accuracy_under_attack(model, images, labels, [0.3, 0.6, 1.0], steps=10)
    assert after == pytest.approx(before, abs=0.026)
    assert before.zero_gradients == after.zero_gradients == 0
    assert after[1.0] < 0.5 < after[0.3]


def test_a_constant_network_is_reported_as_blind() -> None:
    model = classifier()
    with torch.no_grad():
        model.layer.linear.get_parameter("U").zero_()
    images = pictures(model, 4)
    labels = model(images).argmax(1)
    found = accuracy_under_attack(model, images, labels, [0.5, math.inf], steps=3)
    assert found == {0.5: 1.0, math.inf: 1.0}
    assert found.zero_gradients == 1.0


def test_the_attack_finds_all_that_lies_outside_a_tight_radius_and_nothing_inside() -> None:
    """The class of the largest of three pixels: it changes at distance (x_i − x_j)/√2, which certify knows."""
    model = classifier(image_shape=(1, 1, 3), features=3, mean=(0.0,), std=(1.0,), activation="identity").double()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.eye(3) if name in ("layer.linear.U", "head.weight") else torch.zeros(()))
    images = 0.4 + 0.2 * pictures(model, 40, dtype=torch.float64)
    report = mondeq.certify(model, images, labels_of(model, 40))
    torch.testing.assert_close(report.radius, -images.flatten(1).topk(2).values.diff()[:, 0] / math.sqrt(2))
    radii = [0.01, 0.03, 0.05, 0.1]
    found = accuracy_under_attack(model, images, report.prediction, radii, steps=30)
    for r in radii:
        least, most = ((report.radius > bound).double().mean() for bound in (r, r / 1.05))
        assert least <= found[r] <= most < 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_generator_is_left_alone(kind: str) -> None:
    model = classifier(kind)
    images, labels = pictures(model, 3), labels_of(model, 3)
    state = torch.get_rng_state()
    first = accuracy_under_attack(model, images, labels, [0.1, 0.5], steps=2, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert accuracy_under_attack(model, images, labels, [0.1, 0.5], steps=2, seed=np.int64(7)) == first


@settings(max_examples=20)
@given(st.data(), st.sampled_from([parameterizations, convolutions, activations, solvers]))
def test_drawing_leaves_the_global_generator_alone(data: st.DataObject, strategy: Callable[[], Any]) -> None:
    state = torch.get_rng_state()
    drawn = data.draw(strategy())
    if isinstance(drawn, mondeq.Parameterization):
        data.draw(inputs(drawn))
    assert torch.equal(torch.get_rng_state(), state)


def test_training_mode_gradients_and_monitors_stay_as_they_were() -> None:
    model = classifier().train()
    seen: list[str] = []
    model.layer.monitor = lambda role, _: seen.append(role)
    accuracy_under_attack(model, pictures(model, 2), labels_of(model, 2), [0.1], steps=2)
    assert model.training
    assert not seen
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(0, 2, 2, 3), "labels": torch.zeros(0, dtype=torch.int64)}, "`images` are none"),
        ({"radii": []}, "`radii` are none; give at least one"),
        ({"radii": [-0.1]}, "`radii` must be numbers ≥ 0, got -0.1"),
        ({"radii": [math.nan]}, "`radii` must be numbers ≥ 0"),
        ({"radii": 0.1}, "`radii` must be numbers ≥ 0 in a list"),
        ({"images": torch.full((2, 2, 2, 3), 1.5)}, r"must lie in \[0, 1\], got 1.5 … 1.5"),
        ({"images": torch.full((2, 2, 2, 3), -0.1)}, r"must lie in \[0, 1\]"),
        ({"images": torch.full((2, 2, 2, 3), math.nan)}, "NaN or inf"),
        ({"images": torch.zeros(2, 2, 2, 3, dtype=torch.uint8)}, "divide bytes by 255"),
        ({"images": torch.zeros(2, 2, 3, 2)}, "must have shape"),
        ({"images": np.zeros((2, 2, 2, 3))}, "must be a tensor, got a ndarray"),
        ({"labels": torch.tensor([0, 3])}, "`labels` must lie in 0 … 2"),
        ({"labels": torch.tensor([0])}, "`labels` must be 2 integers"),
        ({"labels": [0, 1]}, "`labels` must be a tensor"),
        ({"steps": 0}, "`steps` must be an integer ≥ 1"),
        ({"steps": 2.0}, "`steps` must be an integer ≥ 1"),
        ({"seed": -1}, "`seed` must be an integer ≥ 0"),
        ({"seed": 2**64}, "`seed` must be an integer ≥ 0"),
    ],
)
def test_nonsense_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    model = classifier()
    arguments: dict[str, Any] = {"images": pictures(model, 2), "labels": labels_of(model, 2), "radii": [0.1]}
    with pytest.raises((InvalidArgument, InvalidType), match=message):
        accuracy_under_attack(model, **(arguments | changes))


def test_integer_labels_and_doubles_are_taken() -> None:
    model = classifier()
    images, labels = pictures(model, 4), labels_of(model, 4)
    expected = accuracy_under_attack(model, images, labels, [0.2], steps=2)
    assert accuracy_under_attack(model, images.double(), labels.int(), (r for r in [0.2]), steps=2) == expected
    assert accuracy_under_attack(model, images, labels.to(torch.uint8), np.array([0.2]), steps=2) == expected
