"""Certificates: sound by brute force and by every attack, exact where the distance is known, loud on bad input."""

import dataclasses
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mondeq
import splitting
from mondeq.attacks import accuracy_under_attack
from mondeq.bounds import Chain, base, best_pairs
from mondeq.data import Dataset
from mondeq.errors import ConfigError
from mondeq.network import exact_copy
from mondeq.testing import check_certificate
from splitting import InvalidArgument
from tests.mondeq.zoo import (
    DENSE_KINDS,
    KINDS,
    KINDS_IN_TURN,
    Array,
    array,
    classifier,
    head_of,
    labels_of,
    log_uniform,
    normalised,
    norms,
    pictures,
    pixel_scale,
)

each_kind = pytest.mark.parametrize("kind", KINDS_IN_TURN)
each_dense_kind = pytest.mark.parametrize("kind", DENSE_KINDS)


def solve_to(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Let `certify` solve with other options than its own."""

    def sloppy(model: mondeq.Network) -> mondeq.Classifier:
        exact = exact_copy(model)
        for name, value in options.items():
            assert hasattr(exact.layer, name)
            setattr(exact.layer, name, value)
        return exact

    monkeypatch.setattr(base, "exact_copy", sloppy)


def two_pixels(kind: str = "dense", **settings: Any) -> mondeq.Classifier:
    """Two pixels, one hidden unit, two classes, each seen on one side of a line through the pixels' square."""
    defaults: dict[str, Any] = {
        "image_shape": (1, 1, 2),
        "features": 1,
        "classes": 2,
        "mean": (0.5,),
        "std": (0.5,),
        "activation": "leaky-relu",
    }
    model = classifier(kind, **(defaults | settings))
    with torch.no_grad():
        model.layer.linear.get_parameter("U").copy_(torch.tensor([[1.5, -0.8]]))
        model.layer.linear.get_parameter("b").fill_(1.0)
        head_of(model)[0].copy_(torch.tensor([[0.9], [-0.7]]))
        head_of(model)[1].copy_(torch.tensor([-0.5, 0.5]))
    return model


def grid(count: int) -> Tensor:
    """All of [0, 1]² in count² steps, as images."""
    axis = torch.linspace(0, 1, count, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)


def predictions(model: mondeq.Network, images: Tensor) -> Tensor:
    """By bisection on the monotone scalar equation a z + s = c, s ∈ ∂f(z), without any solver of ours."""
    exact = exact_copy(model)
    c = array(exact.layer.linear.source(normalised(exact, images)))
    a = float(exact.layer.linear.operator().matrix)
    slope = 0.01  # of the leaky ReLU
    z = np.where(c > 0, c / a, c / (a + 1 / slope - 1))
    logits = z @ array(head_of(exact)[0]).T + array(head_of(exact)[1])
    return torch.from_numpy(logits.argmax(1))


@each_dense_kind
def test_the_two_pixel_network_is_what_the_brute_force_takes_it_for(kind: str) -> None:
    model = two_pixels(kind, tol=1e-6)
    images = grid(30)
    with torch.no_grad():
        assert torch.equal(exact_copy(model)(images).argmax(1), predictions(model, images))
    assert set(predictions(model, images).tolist()) == {0, 1}


@each_dense_kind
@pytest.mark.parametrize("sloppy", [False, True])
def test_radii_are_sound_by_brute_force(kind: str, sloppy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No point of a fine grid over a large square is closer to an image than its radius and of another class."""
    if sloppy:
        solve_to(monkeypatch, tol=0.02)
    model = two_pixels(kind)
    images = grid(12)
    everywhere = (6 * grid(300) - 2.5).reshape(-1, 1, 1, 2)
    classes = predictions(model, everywhere)
    report = mondeq.certify(model, images, torch.zeros(len(images), dtype=torch.int64))
    own = predictions(model, images)
    points = everywhere.reshape(-1, 2)
    certified = report.radius > 0
    assert certified.sum() > 100
    assert torch.equal(report.prediction[certified], own[certified])
    for image, radius, prediction in zip(images.reshape(-1, 2), report.radius, own, strict=True):
        other = points[classes != prediction]
        assert float((other - image).norm(dim=1).min()) >= float(radius)


def test_radii_are_the_exact_distance_where_that_is_known() -> None:
    """One unit on its increasing side: the class changes at a line, and the radius is the distance to it."""
    model = two_pixels()
    with torch.no_grad():
        model.layer.linear.get_parameter("F").zero_()
    exact = exact_copy(model)
    w = array(head_of(exact)[0])[:, 0]
    offset = array(head_of(exact)[1])
    z_of_line = -(offset[0] - offset[1]) / (w[0] - w[1])
    assert z_of_line > 0
    u = array(exact.layer.linear.get_parameter("U"))[0] * pixel_scale(exact)
    images = grid(15)
    c = array(exact.layer.linear.source(normalised(exact, images)))[:, 0]
    distance = np.abs(c - z_of_line) / np.linalg.norm(u)
    report = mondeq.certify(model, images, torch.zeros(len(images), dtype=torch.int64))
    radius = report.radius.numpy()
    assert (radius <= distance).all()
    rising = c > 0
    assert rising.sum() > 50
    np.testing.assert_allclose(radius[rising], distance[rising], rtol=1e-6, atol=1e-8)
    # On the flat side it is not: there the path to the line is longer than the steepest slope would make it.
    assert (radius[c < -0.2] < 0.95 * distance[c < -0.2]).all()


@each_kind
def test_the_solvers_error_is_subtracted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that stops early costs radius, in proportion to what it left open; it never adds any."""
    model = classifier(kind)
    images, labels = pictures(model, 20), labels_of(model, 20)
    tight = mondeq.certify(model, images, labels)
    # Convolutions are certified with a looser solve.
    rounding = 1e-8 if kind in DENSE_KINDS else 1e-5
    assert (tight.error_bound < rounding).all()
    before = tight.radius
    for tol in (1e-4, 1e-2):
        solve_to(monkeypatch, tol=tol)
        sloppy = mondeq.certify(model, images, labels)
        assert (sloppy.error_bound > 10 * tight.error_bound).any()
        assert (sloppy.radius <= tight.radius + rounding).all()
        assert sloppy.radius.sum() < before.sum()
        before = sloppy.radius
        assert check_certificate(model, images, labels, sloppy, samples=2, ascent=5) == int((sloppy.radius > 0).sum())


@each_kind
@pytest.mark.parametrize("tol", [1e-7, 1e-2])
def test_radius_is_the_formula(kind: str, tol: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """min over j of (y_i − y_j − δ_ij)/L_ij, by loops, with δ_ij = ‖(w_i − w_j) Λ^-½‖ · `error_bound`.

    That is of what the head is given: of means over blocks of 2×2 for conv, of which P makes half the error of a state.
    """
    solve_to(monkeypatch, tol=tol)
    model = classifier(kind)
    if kind == "lipschitz":
        with torch.no_grad():
            model.layer.linear.get_parameter("log_metric").normal_()
    images, labels = pictures(model), labels_of(model)
    report = mondeq.certify(model, images, labels)
    exact = base.exact_copy(model)
    with torch.no_grad():
        logits = array(exact(images.double()))
    _, gains, _ = norms(exact)
    gains = gains * (2 if kind == "conv" else 1)
    L = array(best_pairs(report.bounds))
    assert len(logits) == 7
    for n, (y, error) in enumerate(zip(logits, report.error_bound.tolist(), strict=True)):
        i = int(y.argmax())
        radii = [max((y[i] - y[j] - gains[i, j] * error) / L[i, j], 0) for j in range(len(y)) if j != i]
        assert int(report.prediction[n]) == i
        assert bool(report.correct[n]) == (i == int(labels[n]))
        assert float(report.radius[n]) == pytest.approx(min(radii), rel=1e-6, abs=1e-9)
    assert (report.radius > 0).any()


@each_kind
def test_the_rounding_of_the_source_is_counted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over m, for inputs of the size that the normalised pixels have; of conv the head is given half of it.

    What may be rounded where pixels cancel with the mean is a matter of Normalise, in test_pieces.py.
    """
    model = classifier(kind)
    images, labels = pictures(model), labels_of(model)
    before = mondeq.certify(model, images, labels)
    sizes: list[Tensor] = []

    def rounding(linear: mondeq.Parameterization, size: Tensor) -> Tensor:
        sizes.append(size)
        return torch.full((len(size),), 0.01, dtype=torch.float64)

    monkeypatch.setattr(type(model.layer.linear), "source_rounding", rounding)
    report = mondeq.certify(model, images, labels)
    m = exact_copy(model).layer.linear.operator().strong_monotonicity
    given_on = 0.005 if kind == "conv" else 0.01
    torch.testing.assert_close(report.error_bound, before.error_bound + given_on / m, rtol=1e-4, atol=0)
    shift, scale = (torch.tensor(values).double()[:, None, None] for values in ((0.4, 0.6), (0.5, 0.25)))
    torch.testing.assert_close(torch.cat(sizes), ((images.double() - shift) / scale).abs().flatten(1))
    assert (report.radius < before.radius).sum() == (before.radius > 0).sum() > 0


def test_the_rounding_of_logits_is_counted() -> None:
    """A bias of 2⁵⁰ leaves two bits of the gap behind the point; what they hide is no radius."""
    model = two_pixels()
    with torch.no_grad():
        model.layer.linear.get_parameter("F").zero_()
        head_of(model)[0].mul_(8)
        head_of(model)[1].fill_(2.0**50)
    exact, images = exact_copy(model), grid(30)
    u = array(exact.layer.linear.get_parameter("U"))[0] * pixel_scale(exact)
    distance = np.abs(array(exact.layer.linear.source(normalised(exact, images)))[:, 0]) / np.linalg.norm(u)
    radius = mondeq.certify(model, images, torch.zeros(len(images), dtype=torch.int64)).radius.numpy()
    assert (radius <= distance).all()
    assert (radius > 0.5 * distance).sum() > 100


def test_a_solver_that_cannot_finish_certifies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    solve_to(monkeypatch, max_steps=1)
    model = classifier(m=1e-3, scale=3.0)
    images, labels = pictures(model), labels_of(model)
    with pytest.warns(splitting.ConvergenceWarning, match="did not reach"):
        report = mondeq.certify(model, images, labels)
    assert (report.radius == 0).all()


@settings(max_examples=6)
@given(
    kind=st.sampled_from(KINDS),
    scale=log_uniform(1e-2, 30),
    m=log_uniform(1e-2, 1e2),
    activation=st.sampled_from(sorted(mondeq.ACTIVATIONS)),
    seed=st.integers(0, 1000),
)
def test_certificates_hold_for_weights_of_any_scale(
    kind: str, scale: float, m: float, activation: str, seed: int
) -> None:
    model = classifier(kind, seed=seed, scale=scale, m=m, activation=activation)
    images, labels = pictures(model, 6, seed=seed), labels_of(model, 6)
    report = mondeq.certify(model, images, labels)
    check_certificate(model, images, labels, report, samples=4, ascent=6, seed=seed)


# -- attacks on trained networks -----------------------------------------------------------------------------------


@each_kind
def test_gradient_ascent_finds_nothing_in_a_trained_networks_balls(
    kind: str, trained: dict[str, mondeq.Classifier], digits: Dataset
) -> None:
    images, labels = digits.test.images[:20].float() / 255, digits.test.labels[:20]
    report = mondeq.certify(trained[kind], images, labels)
    assert check_certificate(trained[kind], images, labels, report, samples=3, ascent=8) >= 18


@each_kind
def test_projected_gradient_descent_finds_nothing_inside_a_radius(
    kind: str, trained: dict[str, mondeq.Classifier], digits: Dataset
) -> None:
    """Foolbox's ℓ2 PGD, with each correct image's own radius as its budget; with three times as much it succeeds."""
    foolbox = pytest.importorskip("foolbox")
    model = trained[kind]
    images, labels = digits.test.images[:60].float() / 255, digits.test.labels[:60]
    report = mondeq.certify(model, images, labels)
    chosen = report.correct & (report.radius > 0)
    assert chosen.sum() > 40
    images, labels, radius = images[chosen], labels[chosen], report.radius[chosen]
    target = foolbox.models.PyTorchModel(model, bounds=(0, 1), device="cpu")
    broken = {}
    for factor in (1, 3):
        # One budget per attack in Foolbox: images of similar radius share that of the largest.
        attack = foolbox.attacks.L2ProjectedGradientDescentAttack(steps=10, rel_stepsize=0.25)
        broken[factor] = 0
        for part in torch.argsort(radius).split(10):
            budget = factor * float(radius[part].max())
            _, clipped, fooled = attack(target, images[part], labels[part], epsilons=budget)
            distance = (clipped - images[part]).double().flatten(1).norm(dim=1)
            assert float(distance.max()) <= budget * (1 + 1e-5)
            inside = distance < radius[part] * (1 - 1e-6)
            assert not (fooled & inside).any()
            broken[factor] += int(fooled.sum())
    assert broken[3] > 5


@each_kind
@pytest.mark.parametrize("name", ["L2FMNAttack", "DDNAttack"])
def test_minimum_norm_attacks_stop_outside_the_radius(
    kind: str, name: str, trained: dict[str, mondeq.Classifier], digits: Dataset
) -> None:
    """The nearest adversarial example that Foolbox finds is never nearer than the certificate says."""
    foolbox = pytest.importorskip("foolbox")
    model = trained[kind]
    images, labels = digits.test.images[:50].float() / 255, digits.test.labels[:50]
    report = mondeq.certify(model, images, labels)
    chosen = report.correct
    images, labels, radius = images[chosen], labels[chosen], report.radius[chosen]
    target = foolbox.models.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = getattr(foolbox.attacks, name)(steps=20)
    found, _, fooled = attack(target, images, labels, epsilons=None)
    assert fooled.float().mean() > 0.9
    distance = (found - images).double().flatten(1).norm(dim=1)[fooled]
    assert (distance >= radius[fooled] * (1 - 1e-6)).all()
    # The attack is worth something: for most images it comes within a small factor of the certificate.
    assert ((distance / radius[fooled]) < (3 if kind in DENSE_KINDS else 20)).double().mean() > 0.5


@each_kind
def test_accuracy_under_attack_is_between_certified_and_clean(
    kind: str, trained: dict[str, mondeq.Classifier], digits: Dataset
) -> None:
    pytest.importorskip("foolbox")
    model = trained[kind]
    images, labels = digits.test.images[:30].float() / 255, digits.test.labels[:30]
    report = mondeq.certify(model, images, labels)
    radii = (0.0, 0.1, 0.3, 1.5)
    attacked = accuracy_under_attack(model, images, labels, radii, steps=10)
    certified = report.certified_accuracy(radii)
    assert attacked[0.0] == report.accuracy
    for radius in radii:
        assert certified[radius] <= attacked[radius] <= report.accuracy
    assert attacked[1.5] < 0.5


def test_an_attack_finds_the_same_again(trained: dict[str, mondeq.Classifier], digits: Dataset) -> None:
    pytest.importorskip("foolbox")
    images, labels = digits.test.images[:30].float() / 255, digits.test.labels[:30]
    first, second = (accuracy_under_attack(trained["dense"], images, labels, [0.3, 1.5], steps=10) for _ in range(2))
    assert first == second


def test_an_attack_leaves_the_model_as_it_was() -> None:
    pytest.importorskip("foolbox")
    model = classifier().train()
    accuracy_under_attack(model, pictures(model, 2), labels_of(model, 2), [0.1], steps=2)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_attacks_without_foolbox_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox.models.pytorch", None)
    monkeypatch.setitem(sys.modules, "foolbox.attacks.projected_gradient_descent", None)
    model = classifier()
    with pytest.raises(ConfigError, match=r'pip install "mondeq\[attack\]"'):
        accuracy_under_attack(model, pictures(model, 1), labels_of(model, 1), [0.1])


# -- the report ----------------------------------------------------------------------------------------------------


@each_kind
def test_the_report_has_one_entry_per_image(kind: str) -> None:
    model = classifier(kind)
    images, labels = pictures(model, 11), labels_of(model, 11)
    report = mondeq.certify(model, images, labels, batch_size=4)
    for column in (report.radius, report.correct, report.prediction, report.error_bound):
        assert column.shape == (11,)
    assert report.radius.dtype == report.error_bound.dtype == torch.float64
    assert report.correct.dtype == torch.bool
    assert report.accuracy == pytest.approx(float(report.correct.double().mean()))
    for batch_size in (1, 500):
        other = mondeq.certify(model, images, labels, batch_size=batch_size)
        torch.testing.assert_close(other.radius, report.radius, rtol=1e-6, atol=1e-9)
        assert torch.equal(other.prediction, report.prediction)


def test_certified_accuracy_counts_correct_images_with_enough_radius() -> None:
    radius = torch.tensor([0.0, 0.1, 0.2, 0.3, math.inf], dtype=torch.float64)
    correct = torch.tensor([True, True, False, True, True])
    number = torch.zeros(5, dtype=torch.int64)
    report = mondeq.Report(radius, correct, number, 0 * radius, {}, "l2", ("gaps",), number)
    assert report.accuracy == 0.8
    found = report.certified_accuracy([0, 0.1, 0.2, 0.3, 0.4])
    assert found == {0.0: 0.6, 0.1: 0.6, 0.2: 0.4, 0.3: 0.4, 0.4: 0.2}


def test_radii_shrink_with_the_slope() -> None:
    """Twice the constants, half the radii: given bounds are used."""
    model = classifier()
    images, labels = pictures(model), labels_of(model)
    bounds = mondeq.lipschitz_bounds(model)
    chain = Chain.of(model)
    given_bounds = {k: dataclasses.replace(b, pairs=2 * b.pairs).sealed(chain) for k, b in bounds.items()}
    doubled = mondeq.certify(model, images, labels, bounds=given_bounds)
    plain = mondeq.certify(model, images, labels, bounds=bounds)
    torch.testing.assert_close(2 * doubled.radius, plain.radius)
    assert torch.equal(plain.radius, mondeq.certify(model, images, labels).radius)
    assert plain.bounds.keys() == bounds.keys()


@each_kind
def test_certificates_are_of_the_float64_network(kind: str) -> None:
    """The model is not changed; a float64 copy and images in any float dtype get the same radii."""
    model = classifier(kind).train()
    images, labels = pictures(model), labels_of(model)
    report = mondeq.certify(model, images, labels)
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for other_model, other_images in ((exact_copy(model), images), (model, images.double())):
        assert torch.equal(mondeq.certify(other_model, other_images, labels).radius, report.radius)


def test_non_contiguous_images_and_any_integer_labels() -> None:
    model = classifier()
    images, labels = pictures(model), labels_of(model)
    expected = mondeq.certify(model, images, labels).radius
    strided = torch.stack([images, images], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert torch.equal(mondeq.certify(model, strided, labels.to(dtype)).radius, expected)


def test_no_images() -> None:
    model = classifier()
    report = mondeq.certify(model, pictures(model, 0), labels_of(model, 0))
    assert report.radius.shape == report.correct.shape == report.prediction.shape == (0,)
    assert report.accuracy == 0
    assert report.certified_accuracy([0.1]) == {0.1: 0.0}


# -- bad input -----------------------------------------------------------------------------------------------------


def bad(value: float) -> Array:
    images = np.full((2, 2, 2, 3), 0.5, dtype=np.float32)
    images[1, 0, 1, 2] = value
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.from_numpy(bad(math.nan)), "`images` hold NaN or inf; nothing can be certified for them"),
        (torch.from_numpy(bad(math.inf)), "`images` hold NaN or inf"),
        (torch.from_numpy(bad(-math.inf)), "`images` hold NaN or inf"),
        (torch.zeros(2, 3, 2, 2), r"`images` must have shape \(N, 2, 2, 3\), got \(2, 3, 2, 2\)"),
        (torch.zeros(2, 12), r"`images` must have shape \(N, 2, 2, 3\), got \(2, 12\)"),
        (torch.zeros(2, 2, 3), r"`images` must have shape \(N, 2, 2, 3\), got \(2, 2, 3\)"),
        (torch.zeros(2, 2, 2, 3, dtype=torch.uint8), "floating point in .*, got torch.uint8; divide bytes by 255"),
        (torch.zeros(2, 2, 2, 3, dtype=torch.int64), "floating point"),
        (torch.zeros(2, 2, 2, 3, dtype=torch.complex64), "floating point"),
    ],
)
def test_bad_images_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        mondeq.certify(classifier(), images, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), r"`labels` must lie in 0 … 2, got 0 … 3"),
        (torch.tensor([-1, 2]), r"`labels` must lie in 0 … 2, got -1 … 2"),
        (torch.tensor([0.0, 1.0]), r"`labels` must be 2 integers, got torch.float32 \(2,\)"),
        (torch.tensor([0]), r"`labels` must be 2 integers, got torch.int64 \(1,\)"),
        (torch.tensor([[0], [1]]), r"`labels` must be 2 integers, got torch.int64 \(2, 1\)"),
    ],
)
def test_bad_labels_are_refused(labels: Tensor, message: str) -> None:
    model = classifier()
    with pytest.raises(InvalidArgument, match=message):
        mondeq.certify(model, pictures(model, 2), labels)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_size_below_one_is_refused(batch_size: int) -> None:
    model = classifier()
    with pytest.raises(InvalidArgument, match="`batch_size` must be an integer ≥ 1, got"):
        mondeq.certify(model, pictures(model, 2), labels_of(model, 2), batch_size=batch_size)
