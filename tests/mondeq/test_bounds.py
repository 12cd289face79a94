"""Lipschitz bounds from both sides: never below what is seen, never far above what is known."""

import dataclasses
import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import mondeq
from mondeq.bounds import Chain, MatrixInequality, OptimisedMetric, Product, best_pairs, local_jacobian_norms
from mondeq.bounds.optimised_metric import gap_metrics, optimised_metric
from mondeq.bounds.states import last
from mondeq.data import Dataset
from mondeq.network import exact_copy
from mondeq.testing import check_lipschitz
from splitting import InvalidArgument, verified
from tests.mondeq.zoo import (
    DENSE_KINDS,
    KINDS_IN_TURN,
    array,
    classifier,
    head_of,
    log_uniform,
    matrices,
    norms,
    pictures,
    pixel_scale,
)

each_kind = pytest.mark.parametrize("kind", KINDS_IN_TURN)
each_dense_kind = pytest.mark.parametrize("kind", DENSE_KINDS)
CERTIFIED = ("product", "matrix inequality", "matrix inequality, optimised metric", "slopes")


def exact_constant(model: mondeq.Network) -> float:
    """‖W_o A⁻¹ U diag(1/std)‖ of a dense classifier, from its weights in a thousand digits.

    It is the constant under the identity activation. The certified bounds hold for every activation, so none is less.
    """
    linear = model.layer.linear

    def exact(tensor: Tensor) -> mpmath.matrix:
        return mpmath.matrix(array(tensor).tolist())

    with mpmath.workdps(1000):
        U, head, eye = exact(linear.get_parameter("U")), exact(head_of(model)[0]), mpmath.eye(len(linear.b))
        if isinstance(linear, mondeq.Dense):
            F, G = exact(linear.F), exact(linear.G)
            A = float(linear.m) * eye + F.T * F + G - G.T
        else:
            metric = mpmath.diag([mpmath.exp(x) for x in array(linear.log_metric).tolist()])
            V, S, B = exact(linear.V), exact(linear.S), metric * U
            gram = (head.T * head + B * B.T) / (2 * mpmath.mpf(linear.gamma))
            A = metric**-1 * (gram + V.T * V + mpmath.mpf(linear.epsilon) * eye + S.T - S)
        jacobian = head * (A**-1 * U) * mpmath.diag(pixel_scale(model).tolist())
        return float(mpmath.sqrt(max(mpmath.eigsy(jacobian * jacobian.T, eigvals_only=True))))


def perturbed(model: mondeq.Network, seed: int) -> mondeq.Classifier:
    """Weights (and, for LipschitzDense, metric) that no initialisation favours."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("log_m"):
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model


# -- the product bound ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@each_kind
def test_product_bound_from_both_sides(kind: str, seed: int) -> None:
    model = exact_copy(perturbed(classifier(kind, m=0.7), seed))
    head, gaps, gain = norms(model)
    m = 0.7
    if kind in ("lipschitz", "conv"):
        # Known better than by construction.
        _, matrix, _ = matrices(model)
        m = float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[0])
    bound = Product().bound(Chain.of(model))
    true = head * gain / m
    assert true * (1 - 1e-7) <= bound.value <= true * (1 + 1e-7)
    pairs = array(bound.pairs)
    assert (pairs >= gaps * gain / m * (1 - 1e-7)).all()
    assert (pairs <= gaps * gain / m * (1 + 1e-7) + 1e-12).all()
    assert (np.diag(pairs) == 0).all()


@pytest.mark.parametrize("kind", ["conv", "multiscale"])
def test_product_bound_of_kernels_that_reach_over_the_border(kind: str) -> None:
    """Zero-padded images are some of those on the torus, whose U is that of circular convolutions."""
    settings = {"image_shape": (2, 4, 6), "kernel_size": 3, "channels": (3,) if kind == "conv" else (3, 2)}
    model = exact_copy(perturbed(classifier(kind, m=0.7, **settings), 0))
    head, gaps, gain = norms(model)
    pixels = torch.eye(2 * 6 * 8, dtype=torch.float64).reshape(-1, 2, 6, 8) / torch.tensor([0.5, 0.25])[:, None, None]
    images = functional.conv2d(
        functional.pad(pixels, (1, 1, 1, 1), mode="circular"), model.layer.linear.get_parameter("U")
    )
    torus = float(np.linalg.norm(array(images.flatten(1)), 2))
    m = 0.7
    if kind == "conv":
        _, matrix, _ = matrices(model)
        m = float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[0])
    bound = Product().bound(Chain.of(model))
    assert 0.8 * torus < gain <= torus * (1 + 1e-12)
    assert bound.value == pytest.approx(head * torus / m, rel=1e-7)
    np.testing.assert_allclose(array(bound.pairs), gaps * torus / m, rtol=1e-7, atol=1e-12)


def test_each_channel_has_its_own_std() -> None:
    """With U seeing one channel only, the constant is that channel's."""
    for channel, std in ((0, 0.5), (1, 0.25)):
        model = exact_copy(classifier())
        U = model.layer.linear.get_parameter("U").reshape(5, 2, 6)
        U[:, 1 - channel] = 0
        alone = np.linalg.norm(array(U[:, channel]), 2) / std
        head, _, _ = norms(model)
        assert Product().bound(Chain.of(model)).value == pytest.approx(head * alone, rel=1e-8)


@each_kind
def test_constants_are_per_unit_of_pixel(kind: str) -> None:
    """Dividing by half the std doubles all constants of the same weights, at the same state the estimate too."""
    found = []
    for factor in (1.0, 0.5):
        # The γ of a lipschitz model is per unit of pixel: the same weights promise twice as much.
        settings = {"mean": (0.5, 0.5), "std": (0.5 * factor, 0.25 * factor), "gamma": 0.7 / factor}
        model = perturbed(classifier(kind, activation="tanh", **settings), 0)
        slope = local_jacobian_norms(model, torch.full((1, 2, 2, 3), 0.5))
        bounds = mondeq.lipschitz_bounds(model)
        found.append(bounds | {"local": mondeq.Bound(float(slope), "estimate", "", "")})
    assert found[0].keys() == found[1].keys() >= {"product", "local"}
    for name, bound in found[0].items():
        # Where a metric is searched for, the search is another one.
        precision = 1e-2 if "optimised" in name else 1e-6
        assert found[1][name].value == pytest.approx(2 * bound.value, rel=precision)
        assert bound.value > 0


@pytest.mark.parametrize("std", [(0.5, 0.25), (1.0, 1.0), (0.01, 3.0)])
def test_gamma_is_promised_per_unit_of_pixel(std: tuple[float, float]) -> None:
    """Whatever the std, by the numbers of the network and by what is proved of it."""
    model = classifier("lipschitz", std=std, gamma=0.7)
    proved = mondeq.lipschitz_bounds(model)["matrix inequality"].value
    assert exact_constant(model) <= proved <= 0.7 * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["conv", "lipschitz"])
def test_constants_of_gaps_between_nearly_equal_rows(kind: str) -> None:
    """A gap whose rows agree in fourteen digits: rounding the rows changes it by per cents, and that is counted."""
    settings = {"image_shape": (2, 3, 3), "pool": 3} if kind == "conv" else {}
    for seed in range(10):
        model = exact_copy(perturbed(classifier(kind, **settings), seed))
        head = head_of(model)[0]
        head[1] = head[0] * (1 + 2.0**-48 * torch.rand_like(head[0]))
        operator = model.layer.linear.operator()
        _, _, gain = norms(model)
        with mpmath.workdps(50):
            P = mpmath.mpf(1) / 3 if kind == "conv" else 1
            metric = [1.0] * head.shape[1] if operator.metric is None else operator.metric.tolist()
            rows = zip(head[0].tolist(), head[1].tolist(), metric, strict=True)
            gap = P * mpmath.sqrt(sum((mpmath.mpf(a) - b) ** 2 / weight for a, b, weight in rows))
            exact = float(gap) * gain * (1 - 1e-12) / operator.strong_monotonicity
        assert exact <= float(Product().bound(Chain.of(model)).pairs[0, 1]) <= 10 * exact


# -- the matrix inequality -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@each_dense_kind
def test_matrix_inequality_is_never_worse_than_the_product(kind: str, seed: int) -> None:
    model = exact_copy(perturbed(classifier(kind), seed))
    product, inequality = Product().bound(Chain.of(model)), MatrixInequality().bound(Chain.of(model))
    assert inequality.value <= product.value * (1 + 1e-8)
    assert (inequality.pairs <= product.pairs * (1 + 1e-8)).all()
    assert (inequality.pairs.diagonal() == 0).all()
    assert torch.equal(inequality.pairs, inequality.pairs.mT)
    assert (inequality.pairs <= math.sqrt(2) * inequality.value * (1 + 1e-8)).all()


@pytest.mark.parametrize("seed", range(3))
@each_dense_kind
def test_matrix_inequality_holds_by_its_eigenvalues(kind: str, seed: int) -> None:
    """At the claimed γ some multiple t of Λ makes tK − (t²BBᵀ + CᵀC)/γ positive; at 0.9 γ none does."""
    model = exact_copy(perturbed(classifier(kind), seed))
    operator = model.layer.linear.operator()
    metric = np.ones(5) if operator.metric is None else array(operator.metric)
    K = metric[:, None] * array(operator.matrix)
    B = metric[:, None] * array(model.layer.linear.get_parameter("U")) * pixel_scale(model)
    C = array(head_of(model)[0])
    size = np.linalg.norm(K)

    def smallest(gamma: float) -> float:
        return max(
            np.linalg.eigvalsh(t * (K + K.T) - (t * t * B @ B.T + C.T @ C) / gamma)[0] / t
            for t in np.logspace(-4, 4, 4001) * np.linalg.norm(C) / np.linalg.norm(B)
        )

    gamma = MatrixInequality().bound(Chain.of(model)).value
    assert smallest(gamma * (1 + 1e-4)) >= -1e-12 * size
    assert smallest(0.9 * gamma) < -1e-6 * size


@pytest.mark.parametrize("seed", range(6))
def test_matrix_inequality_in_exact_arithmetic(seed: int) -> None:
    """Beside a large skew part the metric's rounding moves K by 10⁻⁶. At the claimed γ tK − (t²BBᵀ + CᵀC)/γ is positive
    in fifty digits for some t; a thousandth below it for none."""
    model = exact_copy(perturbed(classifier("lipschitz", features=2), seed))
    model.layer.linear.get_parameter("S").mul_(1e10)
    gamma = MatrixInequality().bound(Chain.of(model)).value
    assert 0 < gamma < 1 + 1e-4
    with mpmath.workdps(50):
        weight = mpmath.diag(model.layer.linear.operator().metric.tolist())
        scaled = weight * mpmath.matrix(model.layer.linear.operator().matrix.tolist())
        B = weight * mpmath.matrix((array(model.layer.linear.get_parameter("U")) * pixel_scale(model)).tolist())
        C = mpmath.matrix(head_of(model)[0].tolist())
        K, inputs, outputs = scaled + scaled.T, B * B.T, C.T * C

        def smallest(gamma: float, t: mpmath.mpf) -> mpmath.mpf:
            return min(mpmath.eigsy(t * K - (t * t * inputs + outputs) / gamma, eigvals_only=True))

        def largest_over_t(gamma: float) -> mpmath.mpf:
            low, high = mpmath.mpf(0), 2 * gamma * K[0, 0] / inputs[0, 0]
            for _ in range(60):  # it is concave in t
                left, right = low + (high - low) / 3, high - (high - low) / 3
                low, high = (low, right) if smallest(gamma, left) > smallest(gamma, right) else (left, high)
            return smallest(gamma, (low + high) / 2)

        assert largest_over_t(gamma) >= 0
        assert largest_over_t((1 - 1e-3) * gamma) < 0


def test_a_routine_that_fails_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    model = exact_copy(classifier())
    monkeypatch.setattr(torch.linalg, "eigh", failing)
    chain = Chain.of(model)
    product = Product().bound(chain)
    for method in (MatrixInequality(), OptimisedMetric()):
        bound = method.bound(chain)
        assert bound.value == product.value
        assert torch.equal(bound.pairs, product.pairs)
        assert bound.method.endswith("product for 4 of 4 constants that it does not prove")
        assert torch.equal(best_pairs({"found": bound}), product.pairs)


@each_dense_kind
def test_one_unit_has_a_known_constant(kind: str) -> None:
    """n = 1, σ the identity: the gap w z with z = u·x/a is exactly |w|‖u/std‖/a-Lipschitz, and the bound says so."""
    model = exact_copy(classifier(kind, features=1, activation="identity"))
    if isinstance(model.layer.linear, mondeq.Dense):
        model.layer.linear.F.zero_()  # otherwise a > m, which the product bound does not know
    a = float(model.layer.linear.operator().matrix)
    u = array(model.layer.linear.get_parameter("U"))[0] * pixel_scale(model)
    w = array(head_of(model)[0])[:, 0]
    true = np.linalg.norm(w) * np.linalg.norm(u) / a
    bounds = mondeq.lipschitz_bounds(model, pictures(model))
    for name in ("product", "matrix inequality"):
        assert true * (1 - 1e-12) <= bounds[name].value <= true * (1 + 1e-6)
    assert bounds["local Jacobian"].value == pytest.approx(true, rel=1e-6)
    gaps = np.abs(w[:, None] - w[None]) * np.linalg.norm(u) / a
    np.testing.assert_allclose(array(best_pairs(bounds)), gaps, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_identity_activation_has_a_known_constant(seed: int) -> None:
    """Then logits are affine, W_o A⁻¹ U x/std, and every bound must cover the norm of that."""
    model = exact_copy(perturbed(classifier(activation="identity"), seed))
    jacobian = np.linalg.solve(
        array(model.layer.linear.operator().matrix), array(model.layer.linear.get_parameter("U"))
    )
    jacobian = array(head_of(model)[0]) @ jacobian * pixel_scale(model)
    bounds = mondeq.lipschitz_bounds(model, pictures(model))
    true = np.linalg.norm(jacobian, 2)
    assert bounds["local Jacobian"].value == pytest.approx(true, rel=1e-6)
    gaps = np.linalg.norm(jacobian[:, None] - jacobian[None], axis=2)
    for name in CERTIFIED:
        assert bounds[name].value >= true * (1 - 1e-12)
        assert (array(bounds[name].pairs) >= gaps * (1 - 1e-12)).all()


@pytest.mark.parametrize("seed", range(3))
def test_an_optimised_metric_is_an_improvement(seed: int) -> None:
    model = perturbed(classifier(m=0.3), seed)
    bounds = mondeq.lipschitz_bounds(model, pictures(model, 50))
    plain, optimised = bounds["matrix inequality"], bounds["matrix inequality, optimised metric"]
    assert optimised.value < 0.999 * plain.value
    assert optimised.value >= bounds["local Jacobian"].value
    assert bool((optimised.pairs <= plain.pairs * (1 + 1e-6)).all())
    states = last(Chain.of(model))
    assert states is not None
    for metric in (optimised_metric(states), *gap_metrics(states)):
        assert metric.shape == (5,)
        assert (metric > 0).all()


def test_searches_are_tried_where_they_are_not_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert set(mondeq.lipschitz_bounds(classifier("dense"))) == set(CERTIFIED)
    assert set(mondeq.lipschitz_bounds(classifier("lipschitz"))) == set(CERTIFIED)
    monkeypatch.setattr("mondeq.bounds.optimised_metric.LARGEST_SEARCH", 4)
    assert set(mondeq.lipschitz_bounds(classifier("dense"))) == {*CERTIFIED[:2], "slopes"}
    monkeypatch.setattr("mondeq.bounds.slopes.LARGEST_ENUMERATION", 4)
    assert set(mondeq.lipschitz_bounds(classifier("dense"))) == set(CERTIFIED[:2])


def test_the_matrix_inequality_needs_a_dense_equilibrium_before_linear_logits() -> None:
    """Where it is not, the method says so, and what is certified goes without."""
    why = "no dense equilibrium whose states go straight to the logits"
    flat = dict(classifier().named_children())
    head = flat.pop("head")
    bent = mondeq.Network({**flat, "bend": nn.ReLU(), "head": head}, (2, 2, 3))
    for model in (classifier("conv"), classifier("multiscale"), bent):
        chain = Chain.of(model)
        for method in (MatrixInequality(), OptimisedMetric()):
            assert method.unsuited(chain) == why
            with pytest.raises(InvalidArgument, match=f"`chain` has {why}"):
                method.bound(chain)
        assert not set(mondeq.lipschitz_bounds(model)) & set(CERTIFIED[1:])
    for kind in DENSE_KINDS:
        assert MatrixInequality().unsuited(Chain.of(classifier(kind))) is None


# -- the estimate --------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("activation", ["tanh", "softplus", "leaky-relu"])
def test_local_jacobian_is_that_of_autograd(kind: str, activation: str) -> None:
    """By finite differences of the logits in every pixel, at every image."""
    model = exact_copy(perturbed(classifier(kind, activation=activation, tol=1e-12, max_steps=2000), 1))
    images = pictures(model, 4, dtype=torch.float64)
    step = 1e-6
    basis = step * torch.eye(12, dtype=torch.float64).reshape(12, 2, 2, 3)
    for image, norm in zip(images, local_jacobian_norms(model, images), strict=True):
        with torch.no_grad():
            jacobian = (model(image + basis) - model(image - basis)) / (2 * step)
        assert float(norm) == pytest.approx(np.linalg.norm(array(jacobian), 2), rel=1e-5)


@each_kind
def test_local_jacobian_never_exceeds_a_certified_bound(
    kind: str, trained: dict[str, mondeq.Classifier], digits: Dataset
) -> None:
    images = digits.test.images[:60].float() / 255
    bounds = mondeq.lipschitz_bounds(trained[kind], images)
    estimate = bounds["local Jacobian"].value
    for name, bound in bounds.items():
        assert bound.value >= estimate, name
    smallest = min(b.value for b in bounds.values() if b.kind == "certified")
    # The product bound wastes what the matrix inequality, which convolutions lack, does not.
    assert estimate > (0.9 if kind in DENSE_KINDS else 0.2) * smallest


@each_dense_kind
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-4])
def test_a_sloppy_solver_does_not_lift_the_estimate_above_the_truth(kind: str, tol: float) -> None:
    """The estimate is of the exact network, not of where its solver stops."""
    model = perturbed(classifier(kind, features=1, activation="identity", tol=tol), 0)
    if isinstance(model.layer.linear, mondeq.Dense):
        model.layer.linear.F.data.zero_()
    images = pictures(model, 5)
    bounds = mondeq.lipschitz_bounds(model, images)
    smallest = min(b.value for b in bounds.values() if b.kind == "certified")
    assert bounds["local Jacobian"].value <= smallest
    assert bounds["local Jacobian"].value == pytest.approx(smallest, rel=1e-5)


def test_local_jacobian_norms_do_not_depend_on_the_batch() -> None:
    model = classifier(activation="tanh")
    images = pictures(model, 7)
    expected = local_jacobian_norms(model, images)
    assert expected.shape == (7,)
    torch.testing.assert_close(local_jacobian_norms(model, images, batch_size=3), expected)
    torch.testing.assert_close(local_jacobian_norms(model, images[2:3])[0], expected[2])


def test_the_estimate_is_the_largest_at_any_image() -> None:
    model = classifier(activation="tanh")
    images = pictures(model, 7)
    norms_there = local_jacobian_norms(model, images)
    found = mondeq.lipschitz_bounds(model, images)["local Jacobian"].value
    assert (1 - 1e-6) * float(norms_there.max()) <= found
    # Far away, where tanh is flat, there is nothing to climb.
    far = local_jacobian_norms(model, images + 1e6)
    assert float(far.max()) < found
    assert float(norms_there.max()) > 1.01 * float(norms_there.min())


def test_local_jacobian_leaves_no_gradients_behind() -> None:
    model = classifier()
    with torch.no_grad():
        local_jacobian_norms(model, pictures(model))
    assert all(p.grad is None for p in model.parameters())


def test_the_estimate_at_no_images_is_zero() -> None:
    model = classifier()
    assert local_jacobian_norms(model, pictures(model, 0)).shape == (0,)
    bound = mondeq.lipschitz_bounds(model, pictures(model, 0))["local Jacobian"]
    assert (bound.value, bound.kind) == (0.0, "estimate")


def test_images_must_fit() -> None:
    model = classifier()
    with pytest.raises(InvalidArgument, match=r"`images` must have shape \(batch, 2, 2, 3\), got \(4, 3, 2, 2\)"):
        mondeq.lipschitz_bounds(model, torch.zeros(4, 3, 2, 2))
    for bad in (math.nan, math.inf):
        with pytest.raises(InvalidArgument, match="NaN or inf"):
            mondeq.lipschitz_bounds(model, torch.full((2, 2, 2, 3), bad))


# -- what is proved and what is not --------------------------------------------------------------------------------


@each_kind
def test_kinds_and_assumptions_are_stated(kind: str) -> None:
    model = classifier(kind)
    bounds = mondeq.lipschitz_bounds(model, pictures(model))
    for name, bound in bounds.items():
        assert bound.kind == ("estimate" if name == "local Jacobian" else "certified")
        assert bound.method
        assert bound.assumptions
        assert (bound.pairs is None) == (bound.kind == "estimate")
        with pytest.raises(dataclasses.FrozenInstanceError):
            bound.value = 0.0  # type: ignore[misc]


def test_an_estimate_never_reaches_a_certificate() -> None:
    model = classifier()
    bounds = mondeq.lipschitz_bounds(model)
    tempting = mondeq.Bound(0.0, "estimate", "a guess", "none", pairs=torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(best_pairs(bounds | {"guess": tempting}), best_pairs(bounds))
    certified = torch.stack([b.pairs for b in bounds.values()])
    assert torch.equal(best_pairs(bounds), certified.amin(0))
    assert torch.equal(best_pairs(mondeq.lipschitz_bounds(model)), best_pairs(bounds))


@each_kind
def test_bounds_are_of_the_float64_network(kind: str) -> None:
    """The same numbers whether the model is held in float32 or float64, and the model itself is left alone."""
    model = classifier(kind).train()
    single = mondeq.lipschitz_bounds(model)
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    double = mondeq.lipschitz_bounds(exact_copy(model))
    assert {k: b.value for k, b in single.items()} == {k: b.value for k, b in double.items()}


# -- scales --------------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    kind=st.sampled_from(DENSE_KINDS),
    scale=log_uniform(1e-6, 1e6),
    head=log_uniform(1e-6, 1e6),
    seed=st.integers(0, 1000),
)
def test_bounds_hold_at_every_scale(kind: str, scale: float, head: float, seed: int) -> None:
    """Inside the map and before it: a multiple of U and W_o multiplies the product bound, and no pair violates it."""
    model = classifier(kind, seed=seed).double()
    before = Product().bound(Chain.of(exact_copy(model))).value
    with torch.no_grad():
        if kind == "dense":
            model.layer.linear.get_parameter("U").mul_(scale)
            head_of(model)[0].mul_(head)
            assert Product().bound(Chain.of(exact_copy(model))).value == pytest.approx(before * scale * head, rel=1e-8)
        else:
            model.layer.linear.get_parameter("V").mul_(min(scale, 1e3))
    check_lipschitz(model, ascent=3, seed=seed)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
@each_dense_kind
def test_extreme_weights(kind: str, scale: float) -> None:
    """Squares of these leave the range of float32, and the m of a large A the precision of float64."""
    model = classifier(kind, scale=scale)
    bounds = mondeq.lipschitz_bounds(model, pictures(model))
    true = exact_constant(model)
    for name in bounds.keys() - {"local Jacobian"}:
        assert true <= bounds[name].value <= (1.3 if "inequality" in name else 8) * true, name
    head, _, gain = norms(exact_copy(model))
    if scale < 1:
        # A is mI, or εI, up to rounding.
        m = 1 if kind == "dense" else 0.01
        assert bounds["product"].value == pytest.approx(head * gain / m, rel=1e-6)
        assert bounds["product"].value >= bounds["local Jacobian"].value > 0


def unprovable() -> mondeq.Classifier:
    """FᵀF of size 10¹⁸ beside m = 10⁻³: rounding swallows m even in float64."""
    model = classifier(m=1e-3)
    with torch.no_grad():
        model.layer.linear.get_parameter("F").fill_(1e9)
    return model


def test_without_a_provable_m_every_bound_is_infinite() -> None:
    model = unprovable()
    assert exact_constant(model) > 30
    bounds = mondeq.lipschitz_bounds(model)
    assert set(bounds) == set(CERTIFIED)
    for bound in bounds.values():
        assert bound.value == math.inf
        assert torch.equal(bound.pairs, torch.full((3, 3), math.inf, dtype=torch.float64).fill_diagonal_(0))
    report = mondeq.certify(model, pictures(model, 3), torch.zeros(3, dtype=torch.int64))
    assert (report.radius == 0).all()
    assert (report.error_bound == math.inf).all()


@pytest.mark.parametrize(
    ("value", "provable"), [(1.0, True), (-300.0, True), (50.0, False), (300.0, False), (800.0, False), (-800.0, False)]
)
def test_an_extreme_metric(value: float, provable: bool) -> None:
    """γ = 1 is kept by every metric. Where float64 can see that, the bound says so; where it cannot, it is infinite."""
    model = classifier("lipschitz")
    with torch.no_grad():
        model.layer.linear.get_parameter("log_metric")[0] = value
    true = exact_constant(model)
    assert 0.6 < true < 1
    bounds = mondeq.lipschitz_bounds(model)
    if provable:
        assert true <= bounds["matrix inequality"].value <= 1
    else:
        assert [bounds[name].value for name in CERTIFIED[:2]] == [math.inf, math.inf]


@pytest.mark.parametrize("name", ["U", "head"])
@each_kind
def test_a_constant_network_has_constant_zero(kind: str, name: str) -> None:
    model = classifier(kind)
    with torch.no_grad():
        (head_of(model)[0] if name == "head" else model.layer.linear.get_parameter("U")).zero_()
    bounds = mondeq.lipschitz_bounds(model, pictures(model))
    for bound in bounds.values():
        assert bound.value == pytest.approx(0, abs=1e-100)
        assert bound.pairs is None or float(bound.pairs.abs().max()) <= 1e-100


def test_bounds_of_nothing_but_one_class_difference() -> None:
    """Equal rows of W_o: their gap is constant, the others are not."""
    model = classifier()
    with torch.no_grad():
        head_of(model)[0][1] = head_of(model)[0][0]
    pairs: Tensor = best_pairs(mondeq.lipschitz_bounds(model))
    assert float(pairs[0, 1]) == pytest.approx(0, abs=1e-12)
    assert (pairs[2, :2] > 0).all()


@pytest.mark.parametrize("changes", [None, {"kind": "estimate"}, {"pairs": None}])
def test_certifying_with_nothing_certified_is_refused(changes: dict[str, Any] | None) -> None:
    model = classifier()
    own = mondeq.lipschitz_bounds(model)
    bounds = {} if changes is None else {k: dataclasses.replace(b, **changes) for k, b in own.items()}
    with pytest.raises(InvalidArgument, match="`bounds`"):
        mondeq.certify(model, pictures(model, 2), torch.zeros(2, dtype=torch.int64), bounds=bounds)


@each_kind
@pytest.mark.parametrize("exponent", [-900, -500, -150, 0, 100])
def test_bounds_of_weights_of_every_scale(kind: str, exponent: int) -> None:
    """U and the read-out times powers of two: every bound is the ordinary one times their product."""
    model = perturbed(classifier(kind), 0).double()
    ordinary = mondeq.lipschitz_bounds(model)
    with torch.no_grad():
        model.layer.linear.U.mul_(2.0 ** (exponent // 2))
        head_of(model)[0].mul_(2.0 ** (exponent - exponent // 2))
    if kind == "lipschitz":  # its operator is made of both
        with torch.no_grad():
            bounds = mondeq.lipschitz_bounds(model)
        assert all(b.value > 0 for b in bounds.values())
        return
    for name, bound in mondeq.lipschitz_bounds(model).items():
        precision = 1e-2 if "optimised" in name else 1e-8
        assert bound.value == pytest.approx(verified.times_power(ordinary[name].value, exponent), rel=precision)
        assert bound.pairs is not None
        assert (bound.pairs.fill_diagonal_(1) > 0).all()
