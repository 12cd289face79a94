"""Attacks: they see through confidence, keep to the box, find the nearest where it is known, judge by proofs."""

import copy
import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mondeq
from mondeq.attacks import ATTACKS, GEOMETRIES, accuracy_under_attack, nearest_adversarials, violations
from mondeq.data import Dataset
from mondeq.errors import ConfigError
from mondeq.testing import activations, convolutions, inputs, parameterizations, solvers
from splitting import InvalidArgument, InvalidType
from tests.mondeq.zoo import KINDS, classifier, head_of, labels_of, pictures

pytest.importorskip("foolbox")


def test_confidence_does_not_blind_the_attack(trained: dict[str, mondeq.Classifier], digits: Dataset) -> None:
    """A multiple of the head changes no prediction, and so no accuracy under attack; cross-entropy saw nothing here."""
    images, labels = digits.test.images[:40].float() / 255, digits.test.labels[:40]
    before = accuracy_under_attack(trained["dense"], images, labels, [0.3, 0.6, 1.0], steps=10)
    for factor in (10.0, 1e4, 1e-20):
        model = copy.deepcopy(trained["dense"])
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


def largest_pixel() -> mondeq.Classifier:
    """The class of the largest of three pixels: it changes at distance (x_i − x_j)/√2 in ℓ2 and (x_i − x_j)/2 in ℓ∞."""
    model = classifier(image_shape=(1, 1, 3), features=3, mean=(0.0,), std=(1.0,), activation="identity").double()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.eye(3) if name in ("layer.linear.U", "head.weight") else torch.zeros(()))
    return model


def gray(model: mondeq.Network, count: int = 40) -> Tensor:
    return 0.4 + 0.2 * pictures(model, count, dtype=torch.float64)


every_norm = pytest.mark.parametrize("norm", list(GEOMETRIES))


@every_norm
@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_attack_finds_the_nearest_and_nothing_nearer(name: str, norm: str) -> None:
    model, share = largest_pixel(), {"l2": math.sqrt(2), "linf": 2}[norm]
    images = gray(model, 20)
    known = -images.flatten(1).topk(2).values.diff()[:, 0] / share
    labels = model(images).argmax(1)
    certifier = mondeq.Certifier(model, norm)
    found = nearest_adversarials(
        model, images, labels, norm=norm, attacks=[name], radii=[0.02, 0.05, 0.1, 0.2], certifier=certifier, steps=40
    )
    assert found.proved.all()
    assert (found.distance >= known * (1 - 1e-12)).all()
    # Between two radii the cross-entropy leads past the nearest; the decision-based attack knows its normal roughly.
    slack = {"decision-based": 1.5, "pgd cross-entropy": 1.25}.get(name, 1.1)
    assert (found.distance <= known * slack + 1e-6).all()
    assert 0 <= float(found.examples.min()) <= float(found.examples.max()) <= 1
    assert (model(found.examples).argmax(1) != labels).all()
    order = GEOMETRIES[norm].order
    torch.testing.assert_close((found.examples - images).flatten(1).norm(p=order, dim=1), found.distance)
    assert len(violations(mondeq.certify(model, images, labels, norm=norm), found)) == 0


@every_norm
def test_radii_that_are_too_large_are_violations(norm: str) -> None:
    """Those of images that are wrong count too; without a proof of the other class nothing does."""
    model = largest_pixel()
    images, labels = gray(model, 12), labels_of(model, 12)
    report = mondeq.certify(model, images, labels, norm=norm)
    certifier = mondeq.Certifier(model, norm)
    search: dict[str, Any] = {"norm": norm, "steps": 10, "attacks": ["pgd margin"], "within": 2 * report.radius}
    found = nearest_adversarials(model, images, report.prediction, certifier=certifier, **search)
    assert len(violations(report, found)) == 0
    inflated = dataclasses.replace(report, radius=report.radius * 1.5)
    assert violations(inflated, found).tolist() == list(range(12))
    unproved = nearest_adversarials(model, images, report.prediction, **search)
    assert not unproved.proved.any()
    assert len(violations(inflated, unproved)) == 0
    with pytest.raises(InvalidArgument, match="attack the images that were certified"):
        violations(mondeq.certify(model, images[:3], labels[:3], norm=norm), found)


def test_images_that_are_wrong_are_their_own_examples() -> None:
    model = largest_pixel()
    images = gray(model, 10)
    labels = model(images).argmax(1)
    labels[:4] = (labels[:4] + 1) % 3
    found = nearest_adversarials(model, images, labels, radii=[0.3], steps=10)
    assert (found.distance[:4] == 0).all()
    assert torch.equal(found.examples[:4], images[:4])
    assert (found.distance[4:] > 0).all()


def test_what_is_found_does_not_depend_on_how_many_images_are_attacked_at_once(monkeypatch: Any) -> None:
    """But for the random points and the images that the decision-based attack starts at."""
    model = largest_pixel()
    images, labels = gray(model, 9), labels_of(model, 9)
    search: dict[str, Any] = {"radii": [0.1], "steps": 5, "attacks": ["minimum norm"]}
    together = nearest_adversarials(model, images, labels, **search)
    monkeypatch.setattr("mondeq.attacks.nearest._AT_ONCE", 2)
    apart = nearest_adversarials(model, images, labels, **search)
    # As equal as sums in another order, and what follows of them in five steps, are.
    torch.testing.assert_close(apart.distance, together.distance, rtol=1e-4, atol=0)


@every_norm
def test_geometry(norm: str) -> None:
    """Sizes from both sides in longer arithmetic, balls, the steepest direction by Hölder's inequality."""
    geometry, generator = GEOMETRIES[norm], torch.Generator().manual_seed(0)
    dual = {2.0: 2.0, math.inf: 1.0}[geometry.order]
    for scale in (1.0, 1e-200, 1e150):
        x = scale * torch.randn(50, 2, 3, dtype=torch.float64, generator=generator)
        exact = np.linalg.norm(x.flatten(1).numpy().astype(np.longdouble), ord=geometry.order, axis=1)
        sizes = geometry.size(x).numpy()
        assert (sizes >= exact).all()
        assert (sizes <= exact * (1 + 1e-13)).all()
        direction = geometry.direction(x)
        assert (geometry.size(direction) <= 1 + 1e-12).all()
        along = (direction * x).flatten(1).sum(1)
        torch.testing.assert_close(along / scale, (x / scale).flatten(1).norm(p=dual, dim=1))
        radius = scale * torch.rand(50, dtype=torch.float64, generator=generator)
        inside = geometry.project(x, radius)
        assert (geometry.size(inside) <= radius * (1 + 1e-12)).all()
        assert torch.equal(geometry.project(inside, 2 * radius), inside)
    assert (geometry.direction(torch.zeros(1, 4)) == 0).all()
    drawn = geometry.size(geometry.draw(torch.zeros(2000, 3, dtype=torch.float64), generator))
    # Of a ball in three dimensions an eighth lies within half the radius.
    assert drawn.max() <= 1 + 1e-12
    assert (drawn < 0.5).double().mean() == pytest.approx(1 / 8, abs=0.03)
    assert geometry.reach((1, 2, 2)) == pytest.approx({2.0: 2.0, math.inf: 1.0}[geometry.order])


def test_the_attack_finds_all_that_lies_outside_a_tight_radius_and_nothing_inside() -> None:
    model = largest_pixel()
    images = gray(model)
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
        ({"norm": "l1"}, "unknown norm of attacks 'l1'; choose one of l2, linf"),
        ({"attacks": ["guessing"]}, "unknown attack 'guessing'; choose one of"),
        ({"attacks": []}, "`attacks` are none; choose some of"),
    ],
)
def test_nonsense_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    model = classifier()
    arguments: dict[str, Any] = {"images": pictures(model, 2), "labels": labels_of(model, 2), "radii": [0.1]}
    with pytest.raises((InvalidArgument, InvalidType, ConfigError), match=message):
        accuracy_under_attack(model, **(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"certifier": 3}, "`certifier` must be a mondeq.Certifier, got int"),
        ({"certifier": mondeq.Certifier(classifier(seed=1))}, "`certifier` was prepared for other weights"),
        ({"certifier": mondeq.Certifier(classifier()), "norm": "linf"}, "prepared for the norm 'l2', not for 'linf'"),
        ({"within": torch.ones(3)}, "`within` must be a tensor of 2 radii ≥ 0"),
        ({"within": -torch.ones(2)}, "`within` must be a tensor of 2 radii ≥ 0"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes: dict[str, Any], message: str) -> None:
    model = classifier()
    with pytest.raises((InvalidArgument, InvalidType), match=message):
        nearest_adversarials(model, pictures(model, 2), labels_of(model, 2), **changes)


def test_descents_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox.models.pytorch", None)
    model = classifier()
    images, labels = pictures(model, 2), labels_of(model, 2)
    accuracy_under_attack(model, images, labels, [0.1], steps=1, attacks=["pgd margin", "pgd cross-entropy"])
    with pytest.raises(ConfigError, match=r'pip install "mondeq\[attack\]"'):
        accuracy_under_attack(model, images, labels, [0.1], steps=1, attacks=["minimum norm"])


def test_integer_labels_and_doubles_are_taken() -> None:
    model = classifier()
    images, labels = pictures(model, 4), labels_of(model, 4)
    expected = accuracy_under_attack(model, images, labels, [0.2], steps=2)
    assert accuracy_under_attack(model, images.double(), labels.int(), (r for r in [0.2]), steps=2) == expected
    assert accuracy_under_attack(model, images, labels.to(torch.uint8), np.array([0.2]), steps=2) == expected
