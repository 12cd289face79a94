"""mondeq.testing: the laws hold for what mondeq has, and what breaks a law is caught."""

import dataclasses
import importlib
import math
import sys
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mondeq
import mondeq.testing
import splitting
from mondeq.data import Dataset
from mondeq.testing import (
    activations,
    check_certificate,
    check_lipschitz,
    check_unique_equilibrium,
    convolutions,
    inputs,
    parameterizations,
    solvers,
)
from splitting import InvalidArgument, InvalidType
from tests.mondeq.zoo import DENSE_KINDS, KINDS, classifier, labels_of, pictures


class Factor(mondeq.Parameterization):
    """What a user writes: A = mI + QᵀQ on states of shape (2, n), fed by x through one matrix.

    `promised_m` and `promised_norm` multiply what is true, so that 1 is honest and anything else is not.
    """

    def __init__(self, in_features: int, n: int, *, promised_m: float = 1.0, promised_norm: float = 1.0) -> None:
        super().__init__()
        self.in_features, self.state_shape = in_features, torch.Size((2 * n,))
        self.Q = nn.Parameter(torch.randn(n, 2 * n))
        self.P = nn.Parameter(torch.randn(2 * n, in_features))
        self.promised_m, self.promised_norm = promised_m, promised_norm

    def operator(self) -> splitting.DenseOperator:
        eye = torch.eye(self.Q.shape[1], dtype=self.Q.dtype)
        matrix = 0.5 * eye + self.Q.mT @ self.Q
        if self.promised_m == 1:
            return splitting.DenseOperator(matrix)
        return splitting.DenseOperator(matrix, strong_monotonicity=0.5 * self.promised_m)

    def source(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.P.mT

    def input_norm(self, scale: Tensor) -> float:
        matrix = self.P.detach().double() * scale
        return self.promised_norm * float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-9)

    def source_rounding(self, size: Tensor) -> Tensor:
        return 1e-12 * (size @ self.P.detach().double().abs().mT).norm(dim=1)


# -- strategies ----------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_strategies_fit_together(data: st.DataObject, dtype: torch.dtype) -> None:
    linear = data.draw(parameterizations(dtype=dtype))
    x = data.draw(inputs(linear))
    solver = data.draw(solvers(linear))
    layer = mondeq.EquilibriumLayer(linear, data.draw(activations()), solver, max_steps=3, on_failure="return")
    with torch.no_grad():
        assert layer(x).shape == (len(x), *linear.state_shape)
    assert x.dtype == dtype
    assert 1 <= len(x) <= 4


@settings(max_examples=15)
@given(st.data(), convolutions(), st.sampled_from([splitting.ReLU(), splitting.Tanh(), splitting.LeakyReLU(0.1)]))
def test_convolutions_have_one_equilibrium_and_keep_their_bounds(
    data: st.DataObject, linear: mondeq.Conv2d | mondeq.MultiscaleConv2d, activation: splitting.Activation
) -> None:
    x = data.draw(inputs(linear, largest_batch=2))
    check_unique_equilibrium(linear, activation, x, max_steps=60)
    assert check_lipschitz(linear, x, activation=activation, ascent=3) <= 1


@settings(max_examples=50)
@given(parameterizations())
def test_drawn_parameterizations_are_provably_monotone(
    linear: mondeq.Dense | mondeq.LipschitzDense,
) -> None:
    assert linear.operator().strong_monotonicity > 0


def drawn(strategy: st.SearchStrategy[Any], count: int = 150) -> list[Any]:
    found = []

    @settings(max_examples=count, phases=[hypothesis.Phase.generate], database=None)
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    return found


def test_strategies_reach_the_ends_of_their_ranges() -> None:
    """Every kind, F and G below 10⁻² and above 10², m over four decades, every activation, every solver."""
    linears = drawn(parameterizations())
    assert {type(p) for p in linears} == {mondeq.Dense, mondeq.LipschitzDense}
    dense = [p for p in linears if isinstance(p, mondeq.Dense)]
    assert {p.log_m is None for p in dense} == {True, False}
    for values in (
        [float(p.F.detach().abs().max()) for p in dense],
        [float(p.G.detach().abs().max()) for p in dense],
        [float(p.V.detach().abs().max()) for p in linears if isinstance(p, mondeq.LipschitzDense)],
    ):
        assert min(values) < 1e-2
        assert max(values) > 1e2
    constants = [float(p.m.detach()) for p in dense]
    assert min(constants) < 1e-2
    assert max(constants) > 10
    elementwise = {a for a in splitting.Activation.__subclasses__() if a.__module__ == "splitting.prox.elementwise"}
    assert {type(a) for a in drawn(activations())} == elementwise
    every = {
        splitting.ForwardBackward,
        splitting.ForwardBackwardForward,
        splitting.PeacemanRachford,
        splitting.DouglasRachford,
        splitting.Anderson,
    }
    assert {type(s) for s in drawn(solvers())} == every
    fitted = drawn(solvers(mondeq.Dense(2, 2)))
    assert {type(s) for s in fitted} == every
    assert {s.step == "auto" for s in fitted if not isinstance(s, splitting.Anderson)} == {True, False}


def test_without_hypothesis_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    for name in [n for n in sys.modules if n.startswith("mondeq.testing")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"^mondeq\.testing needs .*pip install \"mondeq\[testing\]\"$"):
        importlib.import_module("mondeq.testing")


# -- uniqueness ----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.data(), parameterizations(), activations(), st.integers(0, 1000))
def test_unique_equilibrium(
    data: st.DataObject,
    linear: mondeq.Dense | mondeq.LipschitzDense,
    activation: splitting.Activation,
    seed: int,
) -> None:
    two = data.draw(st.tuples(solvers(linear), solvers(linear)))
    x = data.draw(inputs(linear))
    check_unique_equilibrium(linear, activation, x, solvers=two, max_steps=30, seed=seed)


def test_unique_equilibrium_of_a_users_parameterization() -> None:
    check_unique_equilibrium(Factor(3, 2), splitting.Tanh(), torch.randn(4, 3))


def test_unique_equilibrium_catches_too_large_an_m() -> None:
    """Error bounds that divide by a false m are too small, and two unfinished solves show it."""
    liar = Factor(3, 2, promised_m=1e6)
    with pytest.raises(AssertionError, match=r"sum of the error bounds.* > .*at sample"):
        check_unique_equilibrium(liar, splitting.Identity(), torch.randn(4, 3), max_steps=3)


def test_unique_equilibrium_needs_a_provable_m() -> None:
    linear = mondeq.Dense(2, 3, m=1e-3)
    with torch.no_grad():
        linear.F.fill_(1e9)
    with pytest.raises(AssertionError, match=r"strong monotonicity is only known to be ≥ -"):
        check_unique_equilibrium(linear, splitting.ReLU(), torch.randn(1, 2))


# -- Lipschitz bounds ----------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(st.data(), parameterizations(), activations(), st.integers(0, 1000))
def test_lipschitz_bounds_hold(
    data: st.DataObject,
    linear: mondeq.Dense | mondeq.LipschitzDense,
    activation: splitting.Activation,
    seed: int,
) -> None:
    x = data.draw(inputs(linear))
    assert check_lipschitz(linear, x, activation=activation, ascent=4, seed=seed) <= 1.01


def test_lipschitz_bound_is_nearly_reached_where_it_is_tight() -> None:
    """A = mI and σ the identity make ‖U‖/m exact; the ascent finds the direction, which random pairs do not."""
    torch.manual_seed(0)
    linear = mondeq.Dense(6, 6, m=0.7)
    with torch.no_grad():
        linear.F.zero_()
        linear.G.zero_()
        linear.U.copy_(torch.diag(torch.tensor([10.0, 1, 1, 1, 1, 1])))
    assert check_lipschitz(linear, activation=splitting.Identity(), ascent=0) < 0.95
    assert 0.99 < check_lipschitz(linear, activation=splitting.Identity(), ascent=40) <= 1 + 1e-6


def test_a_users_parameterization_is_held_to_its_own_bounds() -> None:
    torch.manual_seed(0)
    linear = Factor(3, 2)
    assert 0.1 < check_lipschitz(linear, activation=splitting.Identity()) <= 1
    state = linear.double()
    slope = torch.linalg.solve(state.operator().matrix, state.P).detach()
    readout = torch.eye(4)[:1]
    true = float(slope[0].norm())
    assert check_lipschitz(linear, activation=splitting.Identity(), readout=readout, constant=1.001 * true) > 0.5
    with pytest.raises(AssertionError, match="the given read-out moves by more than"):
        check_lipschitz(linear, activation=splitting.Identity(), readout=readout, constant=0.98 * true)
    with pytest.raises(InvalidArgument, match="belong together"):
        check_lipschitz(linear, readout=readout)


@pytest.mark.parametrize("wrong", [{"promised_norm": 0.2}, {"promised_m": 5.0}])
def test_lipschitz_catches_wrong_promises(wrong: dict[str, float]) -> None:
    torch.manual_seed(0)
    liar = Factor(3, 2, **wrong)
    with torch.no_grad():
        liar.Q.mul_(1e-2)
    with pytest.raises(AssertionError, match="moves by more than"):
        check_lipschitz(liar, activation=splitting.Identity())


@pytest.mark.parametrize("kind", KINDS)
def test_trained_networks_keep_their_lipschitz_bounds(
    kind: str, trained: dict[str, mondeq.Classifier], digits: Dataset
) -> None:
    images = digits.test.images[:8] / 255
    share = check_lipschitz(trained[kind], images, ascent=15)
    assert (0.9 if kind in DENSE_KINDS else 0.3) < share <= 1.0


def test_lipschitz_catches_a_certified_bound_that_is_too_small(
    trained: dict[str, mondeq.Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = mondeq.lipschitz_bounds

    def small(model: mondeq.Network, **options: Any) -> dict[str, mondeq.Bound]:
        bounds = true(model, **options)
        return {k: dataclasses.replace(b, value=0.9 * b.value) for k, b in bounds.items()}

    monkeypatch.setattr("mondeq.testing.properties.lipschitz_bounds", small)
    with pytest.raises(AssertionError, match=r"vector of logits moves by more than .* > "):
        check_lipschitz(trained["lipschitz"])


# -- certificates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_hold(kind: str) -> None:
    model = classifier(kind)
    images, labels = pictures(model, 12), labels_of(model, 12)
    assert check_certificate(model, images, labels, mondeq.certify(model, images, labels)) == 12


def exact_linear_classifier() -> mondeq.Classifier:
    """Logits that are a known linear function of the pixels: U = I, A = I, σ the identity, so radii are exact."""
    model = classifier(image_shape=(1, 1, 3), features=3, mean=(0.0,), std=(1.0,), activation="identity").double()
    linear = model.layer.linear
    with torch.no_grad():
        for name, value in {"F": 0, "G": 0, "b": 0}.items():
            linear.get_parameter(name).fill_(value)
        linear.get_parameter("U").copy_(torch.eye(3))
    return model


def test_certificate_attack_finds_what_is_just_outside() -> None:
    model = exact_linear_classifier()
    images, labels = pictures(model), labels_of(model)
    report = mondeq.certify(model, images, labels)
    assert check_certificate(model, images, labels, report) == len(images)
    with pytest.raises(AssertionError, match=r"turns certified image \d of class \d into class \d: distance .*radius"):
        check_certificate(model, images, labels, dataclasses.replace(report, radius=1.001 * report.radius))


@pytest.mark.parametrize("kind", DENSE_KINDS)
def test_certificate_catches_radii_that_are_too_large(
    kind: str, trained: dict[str, mondeq.Classifier], digits: Dataset
) -> None:
    model = trained[kind]
    images, labels = digits.test.images[:25] / 255, digits.test.labels[:25]
    report = mondeq.certify(model, images, labels)
    with pytest.raises(AssertionError, match="turns certified image"):
        check_certificate(model, images, labels, dataclasses.replace(report, radius=1.4 * report.radius), ascent=10)


def test_certificate_catches_wrong_columns() -> None:
    model = classifier()
    images, labels = pictures(model), labels_of(model)
    report = mondeq.certify(model, images, labels)
    assert check_certificate(model, images, labels, dataclasses.replace(report, radius=0 * report.radius)) == 0
    turned = (report.prediction + 1) % 3
    for change, message in (
        ({"radius": -report.radius}, "negative or NaN"),
        ({"correct": ~report.correct}, "is not `prediction == label`"),
        ({"prediction": turned, "correct": turned == labels}, "nothing at all turns"),
    ):
        wrong = dataclasses.replace(report, **change)
        with pytest.raises(AssertionError, match=message):
            check_certificate(model, images, labels, wrong)
    with pytest.raises(AssertionError, match="a report on 7 images for 6 images"):
        check_certificate(model, images[:6], labels[:6], report)


def test_an_infinite_radius_is_attacked_too() -> None:
    """With U = 0 every prediction is constant, and that is certified."""
    model = classifier()
    with torch.no_grad():
        model.layer.linear.get_parameter("U").zero_()
    images, labels = pictures(model), labels_of(model)
    report = mondeq.certify(model, images, labels)
    assert (report.radius == math.inf).all()
    assert check_certificate(model, images, labels, report) == len(images)


def test_properties_refuse_what_is_no_model() -> None:
    with pytest.raises(InvalidType, match="`model` must be a Network or a Parameterization, got Linear"):
        check_lipschitz(nn.Linear(2, 2))
    model = classifier()
    images, labels = pictures(model), labels_of(model)
    report = mondeq.certify(model, images, labels)
    with pytest.raises(InvalidType, match="`model` must be a Network, got Dense"):
        check_certificate(mondeq.Dense(2, 2), images, labels, report)


def test_properties_leave_the_model_as_it_was() -> None:
    model = classifier().train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    images, labels = pictures(model, 3), labels_of(model, 3)
    check_lipschitz(model, images, ascent=2)
    check_certificate(model, images, labels, mondeq.certify(model, images, labels), samples=1, ascent=2)
    assert model.training
    assert all(
        torch.equal(before[name], p) and p.requires_grad and p.grad is None for name, p in model.named_parameters()
    )
