"""Reflected layers: y = x − Uᵀz is 1-Lipschitz for all weights, a reflection in the limit, an isometry at the start."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mondeq
import splitting
from mondeq.bounds import Chain
from mondeq.pieces import scaled_radius
from mondeq.testing import check_certificate, check_lipschitz
from tests.mondeq.zoo import jacobian, log_uniform


def dense(features: int = 5, hidden: int = 4, m: float = 0.1) -> mondeq.ReflectedDense:
    return mondeq.ReflectedDense(features, hidden, m).double()


def convolution(m: float = 0.1) -> mondeq.ReflectedConv2d:
    return mondeq.ReflectedConv2d(2, 3, (4, 5), m=m).double()


KINDS = {"dense": dense, "convolution": convolution}
each_kind = pytest.mark.parametrize("kind", KINDS)


def drawn(kind: str, seed: int, scale: float, m: float) -> mondeq.Parameterization:
    torch.manual_seed(seed)
    linear = KINDS[kind](m=m)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_(std=scale)
    return linear


@settings(max_examples=25)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 99),
    scale=log_uniform(1e-2, 10),
    m=log_uniform(1e-3, 10),
    activation=st.sampled_from([splitting.ReLU(), splitting.Tanh(), splitting.LeakyReLU(0.2), splitting.Sigmoid()]),
)
def test_it_is_one_lipschitz_for_every_weight(
    kind: str, seed: int, scale: float, m: float, activation: splitting.Activation
) -> None:
    """‖Δy‖² ≤ ‖Δx‖² − 2m‖Δz‖², with equality left to inputs and weights."""
    linear = drawn(kind, seed, scale, m)
    layer = mondeq.ResidualLayer(linear, activation, splitting.Anderson(), tol=1e-12, max_steps=3000)
    layer.on_failure = "return"
    x = torch.randn(2, 6, *linear.in_shape, dtype=torch.float64)
    with torch.no_grad():
        y, states = (torch.stack([f(each) for each in x]) for f in (layer, lambda v: layer.solve(v).value))
        error = torch.stack([layer.solve(each).error_bound for each in x]).sum(0)
    moved = (y[0] - y[1]).flatten(1).square().sum(1)
    allowed = (x[0] - x[1]).flatten(1).square().sum(1) - 2 * m * (states[0] - states[1]).flatten(1).square().sum(1)
    size = 1 + sum(float(parameter.detach().norm()) for parameter in linear.parameters())
    assert bool((moved <= allowed + size**2 * error + 1e-9 * size**2).all())


def test_for_small_m_it_is_the_reflection_of_a_projection() -> None:
    """y = 2P(x) − x with P the projection onto {w : Uw + b ≤ 0}, found here by an independent iteration (Dykstra)."""
    torch.manual_seed(0)
    linear = dense(4, 3, m=1e-7)
    with torch.no_grad():
        linear.U.normal_()
        linear.b.normal_(std=0.3)
    layer = mondeq.ResidualLayer(linear, None, splitting.Anderson(), tol=1e-13, max_steps=20000)
    x = torch.randn(8, 4, dtype=torch.float64)
    point, corrections = x.clone(), [torch.zeros_like(x) for _ in range(3)]
    for _ in range(4000):
        for k, (row, offset) in enumerate(zip(linear.U.detach(), linear.b.detach(), strict=True)):
            moved = point + corrections[k]
            excess = (moved @ row + offset).clamp_min(0) / row.square().sum()
            point = moved - excess[:, None] * row
            corrections[k] = moved - point
    with torch.no_grad():
        torch.testing.assert_close(layer(x), 2 * point - x, rtol=0, atol=1e-4)


@each_kind
def test_where_a_unit_is_on_lengths_keep_but_for_m(kind: str) -> None:
    """Orthogonal rows of length s: on active units the factor is −(s²/2 − m)/(s²/2 + m), elsewhere 1."""
    torch.manual_seed(0)
    # With no more units than channels all rows of U are orthogonal.
    linear = KINDS[kind]() if kind == "dense" else mondeq.ReflectedConv2d(3, 3, (4, 5), m=0.1).double()
    layer = mondeq.ResidualLayer(linear, tol=1e-13, max_steps=2000)
    values = torch.linalg.svdvals(jacobian(layer, torch.randn(*linear.in_shape, dtype=torch.float64)))
    assert float(values[0]) <= 1 + 1e-9
    assert float(values[-1]) >= 1 - 2 / 201 - 1e-9


@pytest.mark.parametrize("hidden", [8, 3])
def test_ten_layers_are_an_isometry_within_a_tenth(hidden: int) -> None:
    torch.manual_seed(0)
    layers = [mondeq.ResidualLayer(mondeq.ReflectedConv2d(8, hidden, 4), tol=1e-11, max_steps=999) for _ in range(10)]
    stack = mondeq.Network(layers, (8, 4, 4)).double()
    x = torch.randn(8, 4, 4, dtype=torch.float64)
    values = torch.linalg.svdvals(jacobian(stack, x))
    assert 0.9 <= float(values[-1]) <= float(values[0]) <= 1 + 1e-9
    assert max(int(layer.solve(x[None], tol=1e-2).steps.max()) for layer in layers) <= 6


def certified(seed: int = 0) -> mondeq.Network:
    torch.manual_seed(seed)
    images = {"image_shape": (3, 8, 8), "classes": 4, "mean": (0.5,) * 3, "std": (1.0,) * 3}
    config = mondeq.ModelConfig("certified", **images, hidden=(6,), width=16, dense=(9,))
    model = mondeq.Classifier(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if "head" not in name else 0)
    return model


def test_the_preset_is_bounded_by_its_head_alone() -> None:
    """Trunk 1, rows of length 1: a gap is ‖w_i − w_j‖-Lipschitz."""
    model = certified()
    chain = Chain.of(model)
    assert chain.constant(chain.stages[:-1]) <= 1 + 1e-12
    head = chain.exact.get_submodule("head")
    distances = torch.cdist(head.rows, head.rows)
    pairs = mondeq.lipschitz_bounds(model)["product"].pairs
    torch.testing.assert_close(pairs, distances, rtol=1e-7, atol=1e-7)
    assert 0.3 < check_lipschitz(model) <= 1


def test_kernels_are_no_larger_than_the_halved_image() -> None:
    images = {"classes": 4, "mean": (0.5,) * 3, "std": (1.0,) * 3}
    sides = {(8, 8): [3, 1], (12, 16): [5, 3], (28, 28): [5, 5]}
    for size, expected in sides.items():
        config = mondeq.ModelConfig("certified", image_shape=(3, *size), **images, hidden=(2, 3), kernel_size=5)
        layers = mondeq.Classifier(config).solved()
        assert [layer.linear.kernel_size for layer in layers] == expected


def test_its_certificates_hold_and_its_error_is_small() -> None:
    model = certified(1)
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = model(images).argmax(1)
    report = mondeq.certify(model, images, labels)
    assert check_certificate(model, images, labels, report, samples=100) == 16
    assert float(report.error_bound.max()) < 1e-5


def test_wrong_arguments_are_told_in_one_line() -> None:
    with pytest.raises(splitting.InvalidArgument, match="`hidden` must be an integer ≥ 1, got 0"):
        mondeq.ReflectedConv2d(3, 0, 8)
    with pytest.raises(splitting.InvalidArgument, match="`m` must be a finite number > 0"):
        mondeq.ReflectedDense(3, 4, -1)
    with pytest.raises(splitting.InvalidType, match=r"must be one such as .*, got Dense"):
        mondeq.ResidualLayer(mondeq.Dense(3, 4))  # type: ignore[arg-type]
    with pytest.raises(mondeq.ConfigError, match="`hidden` halves images 3 times"):
        mondeq.Classifier(
            mondeq.ModelConfig(
                "certified", image_shape=(1, 28, 28), classes=10, mean=(0.0,), std=(1.0,), hidden=(4, 4, 4)
            )
        )


@each_kind
def test_where_rounding_eats_m_nothing_is_proved(kind: str) -> None:
    """½UUᵀ makes the operator monotone all the same, which is not what the constant 1 rests on."""
    torch.manual_seed(0)
    linear = KINDS[kind](m=1e-13)
    with torch.no_grad():
        linear.U.normal_(std=100)
        linear.b.normal_()
    assert linear.reserve() <= 0
    model = mondeq.Network(
        [mondeq.ResidualLayer(linear), torch.nn.Flatten(), mondeq.NormalisedLinear(linear.in_features, 3)],
        linear.in_shape,
    )
    images = torch.randn(4, *linear.in_shape, dtype=torch.float64)
    model = model.double().eval()
    report = mondeq.certify(model, images, torch.zeros(4, dtype=torch.long))
    assert float(report.radius.max()) == 0
    assert not torch.isfinite(report.bounds["product"].pairs).all()


def test_an_unknown_error_stays_unknown_through_all_that_follows() -> None:
    unknown = torch.tensor([float("nan"), float("inf"), 0.0, 1.0], dtype=torch.float64)
    found = scaled_radius(2.0, unknown)
    assert math.isnan(found[0])
    assert found[1:].tolist() == pytest.approx([float("inf"), 0.0, 2.0])


class Stretched(mondeq.ReflectedDense):
    """Pulls ten times as far as its proof knows."""

    def pull(self, z: Tensor) -> Tensor:
        return 10 * super().pull(z)


class Looser(mondeq.ReflectedDense):
    """Leaves ½UUᵀ out."""

    def operator(self) -> Any:
        return mondeq.Dense(self.in_features, self.features).double().operator()


@pytest.mark.parametrize("kind", [Stretched, Looser])
def test_a_class_that_changes_what_the_proof_rests_on_is_refused(kind: type[mondeq.ReflectedDense]) -> None:
    model = mondeq.Network([mondeq.ResidualLayer(kind(4, 3)), torch.nn.Linear(4, 2)], (4,)).double().eval()
    with pytest.raises(splitting.InvalidType, match="derives from ReflectedDense, whose constants need not be its own"):
        mondeq.lipschitz_bounds(model)


@each_kind
@pytest.mark.parametrize("m", [1e-3, 0.1])
def test_the_error_of_a_loose_solve_is_bounded(kind: str, m: float) -> None:
    """z may be far from the state whose residual is known: that distance counts ‖U‖ times in Uᵀz."""
    linear = drawn(kind, 0, 1.0, m)
    network = mondeq.Network([mondeq.ResidualLayer(linear)])
    stage = Chain.of(network).stages[0]
    x = torch.randn(16, *linear.in_shape, dtype=torch.float64)
    exact = stage.enclose(mondeq.Ball(x, torch.zeros(16, dtype=torch.float64), mondeq.Norm())).centre
    for tol in (0.5, 0.1, 1e-3):
        stage.state.layer.tol = tol  # type: ignore[attr-defined]
        out = stage.enclose(mondeq.Ball(x, torch.zeros(16, dtype=torch.float64), mondeq.Norm()))
        error = (out.centre - exact).flatten(1).norm(dim=1)
        assert bool((error <= out.radius + 1e-5).all())
        assert float(out.radius.max()) <= 1e3 * float(error.max())
