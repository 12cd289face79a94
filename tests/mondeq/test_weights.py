"""How far weights move equilibria and logits: bounds from both sides, and what survives."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mondeq
import splitting
from mondeq.bounds import Chain
from mondeq.network import exact_copy
from mondeq.norms import Ball, Norm
from mondeq.testing import activations, convolutions, inputs, parameterizations
from splitting import InvalidArgument, InvalidType
from tests.mondeq.test_pieces import CASES, made, points
from tests.mondeq.test_stacks import STACKS, pictures
from tests.mondeq.zoo import KINDS, classifier, log_uniform
from tests.mondeq.zoo import pictures as small_pictures
from tests.registry import PARAMETERIZATIONS, SMALL_OPERATORS

SIZES = (1e-6, 0.03, 2.0)


def shifted(model: nn.Module, size: float, seed: int = 0) -> nn.Module:
    """A copy whose weights differ by about `size` times their own size."""
    twin, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in twin.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
            weight += size * noise * weight.abs().amax() if weight.numel() else 0.0
    return twin


def solved(linear: mondeq.Parameterization, x: Tensor) -> splitting.Solution:
    layer = mondeq.EquilibriumLayer(linear, tol=1e-9, max_steps=1000, on_failure="return")
    return layer.solve(x)


# -- states --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_no_state_moves_farther_than_is_said_in_advance(name: str, size: float) -> None:
    linear = PARAMETERIZATIONS[name](torch.float64)
    moved = shifted(linear, size)
    x = torch.randn(5, linear.in_features, dtype=torch.float64)
    before, after = (solved(each, x) for each in (linear, moved))
    distance = (after.value - before.value).flatten(1).norm(dim=1)
    assert bool((distance <= mondeq.state_movement(linear, moved, x) + before.error_bound + after.error_bound).all())


def scalar(m: float, U: float, b: float) -> mondeq.Dense:
    linear = mondeq.Dense(1, 1, m, learn_m=True).double()
    with torch.no_grad():
        for weight, value in ((linear.F, 0.0), (linear.G, 0.3), (linear.U, U), (linear.b, b)):
            weight.fill_(value)
    return linear.requires_grad_(False)


@settings(max_examples=40)
@given(*[log_uniform(0.1, 10)] * 3, *[st.floats(0, 3)] * 2)
def test_one_unit_moves_exactly_as_far_as_is_said(
    m: float, moved_m: float, U: float, more_U: float, more_b: float
) -> None:
    """z̄ − z = c̄/m̄ − c/m is ΔW c/(m m̄) + Δc/m̄, and as large as their sizes where both have one sign."""
    x = torch.ones(1, 1, dtype=torch.float64)
    sign = 1.0 if moved_m < m else -1.0
    linear, moved = scalar(m, U, 0.0), scalar(moved_m, U + sign * more_U, sign * more_b)
    with torch.no_grad():
        exact = abs((U + sign * more_U + sign * more_b) / float(moved.m) - U / float(linear.m))
    bound = float(mondeq.state_movement(linear, moved, x))
    assert exact * (1 - 1e-12) <= bound <= exact * (1 + 1e-9) + 1e-11


def test_a_state_of_moved_weights_that_are_not_monotone_may_be_anywhere() -> None:
    linear = mondeq.Dense(1, 2, learn_m=True)
    moved = copy.deepcopy(linear)
    with torch.no_grad():
        moved.F.zero_()
        moved.log_m.fill_(-50.0)
        moved.G[0, 1] = 1e9
    assert mondeq.state_movement(linear, moved, torch.ones(2, 1)).tolist() == [torch.inf] * 2


def test_what_is_no_parameterization_is_refused() -> None:
    linear = mondeq.Dense(3, 2)
    x = torch.ones(1, 3)
    with pytest.raises(InvalidType, match="`moved` must be a Parameterization"):
        mondeq.state_movement(linear, nn.Linear(3, 2), x)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="`moved` must be of the kind and shapes"):
        mondeq.state_movement(linear, mondeq.Dense(3, 4), x)
    with pytest.raises(InvalidType, match="`x` must be a tensor"):
        mondeq.state_movement(linear, linear, [1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SMALL_OPERATORS)
def test_the_norm_of_a_difference_is_bounded_from_both_sides(name: str, size: float) -> None:
    A = SMALL_OPERATORS[name](torch.float64)
    generator = torch.Generator().manual_seed(0)
    B = A.replace(*(t + size * torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in A.tensors))
    eye = torch.eye(A.state_shape.numel(), dtype=torch.float64).view(-1, *A.state_shape)
    root = torch.ones(A.state_shape, dtype=torch.float64) if A.metric is None else A.metric.double().sqrt()
    rows = ((A.apply(eye / root) - B.apply(eye / root)) * root).flatten(1)
    norm, bound = float(torch.linalg.matrix_norm(rows, 2)), A.difference_norm(B)
    tiers = isinstance(A, splitting.MultiscaleOperator) and not isinstance(A, splitting.ConvolutionOperator)
    assert norm <= bound + 1e-14 * A.lipschitz
    assert bound <= norm * (4 if tiers else 1 + 1e-6) + 1e-12 * A.lipschitz


def test_the_norm_of_a_difference_to_another_kind_is_at_most_the_sum() -> None:
    first, second = (SMALL_OPERATORS[name](torch.float64) for name in ("general", "metric"))
    other = splitting.ConvolutionOperator(torch.ones(1, 1, 1, 1, dtype=torch.float64), (2, 3))
    assert first.difference_norm(first.adjoint) >= first.lipschitz * 2
    assert second.difference_norm(first) < second.lipschitz * 1e3
    assert other.difference_norm(SMALL_OPERATORS["convolution, 3×5"](torch.float64)) >= 1


# -- stage after stage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-4, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_what_follows_a_piece_contains_what_the_moved_piece_gives(name: str, size: float) -> None:
    module = made(CASES[name])
    in_shape = torch.Size(CASES[name][2])
    first, second = (Chain.of(mondeq.Network([each], in_shape)) for each in (module, shifted(module, size, seed=3)))
    x = points(tuple(in_shape), 6)
    offset = 0.1 * points(tuple(in_shape), 6, seed=1)
    ball = Ball(x, x.new_zeros(6), Norm())
    near = Ball(x, Norm().of(offset), Norm())
    elsewhere = Ball(x + offset, x.new_zeros(6), Norm())
    for stage, moved in zip(first.stages, second.stages, strict=True):
        ball, near = stage.follow(moved, ball, near)
        elsewhere = moved.enclose(elsewhere)
        assert torch.equal(ball.centre, near.centre)
    distance = near.norm.of(elsewhere.centre - near.centre)
    assert bool((distance <= near.radius * (1 + 1e-9) + elsewhere.radius).all())


@settings(max_examples=30)
@given(st.data(), st.one_of(parameterizations(), convolutions()), activations(), log_uniform(1e-6, 1))
def test_states_stay_in_the_ball_around_those_of_the_original(
    data: st.DataObject, linear: mondeq.Parameterization, activation: splitting.Activation, size: float
) -> None:
    x = data.draw(inputs(linear))
    layers = [mondeq.EquilibriumLayer(each, activation) for each in (linear, shifted(linear, size))]
    shape = torch.Size((linear.in_features,))
    (first,), (second,) = (Chain.of(mondeq.Network([layer], shape)).stages for layer in layers)
    start = Ball(x.flatten(1), x.new_zeros(len(x)), Norm())
    _, near = first.follow(second, start, start)
    after = second.enclose(start)
    distance = near.norm.of(after.centre - near.centre)
    assert bool((distance <= near.radius + after.radius).all())


def test_units_that_are_off_all_the_way_do_not_count() -> None:
    """Ten units have pre-activations of −5: what their weights do is not seen, as long as it is less."""
    linear = mondeq.Dense(2, 10).double()
    with torch.no_grad():
        for weight in linear.parameters():
            weight.zero_()
        linear.b.fill_(-5.0)
    twin = copy.deepcopy(linear)
    x = torch.ones(1, 2, dtype=torch.float64)

    def radius(db: float) -> float:
        with torch.no_grad():
            twin.b.fill_(-5.0 + db)
        (first,), (second,) = (
            Chain.of(mondeq.Network([mondeq.EquilibriumLayer(each)], (2,))).stages for each in (linear, twin)
        )
        start = Ball(x, x.new_zeros(1), Norm())
        return float(first.follow(second, start, start)[1].radius)

    assert radius(4.9) < 1e-9
    assert radius(-100.0) < 1e-9
    assert radius(6.0) == pytest.approx(6 * 10**0.5)


# -- networks ------------------------------------------------------------------------------------------------------


def check_movement(model: mondeq.Network, moved: mondeq.Network, images: Tensor) -> mondeq.Movement:
    found = mondeq.movement(model, moved, images)
    with torch.no_grad():
        before, after = (exact_copy(each)(images.double()) for each in (model, moved))
    # What the solves of the two leave open.
    open_ = sum(
        Chain.of(each).stages[-1].enclose(Chain.of(each).enclose(images.double())).radius for each in (model, moved)
    )
    assert bool(((after - before).norm(dim=1) <= found.logits + open_).all())
    assert torch.equal(found.prediction, before.argmax(1))
    assert bool((after.argmax(1) == found.prediction)[found.same].all())
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STACKS)
def test_no_logit_of_a_stack_moves_farther_than_is_proved(name: str, size: float) -> None:
    model = STACKS[name](1)
    check_movement(model, shifted(model, size), pictures(20))


@pytest.mark.parametrize("kind", KINDS)
def test_small_moves_keep_predictions_and_large_ones_promise_nothing(kind: str) -> None:
    model = classifier(kind, scale=2.0)
    images = small_pictures(model, 20)
    assert bool(check_movement(model, shifted(model, 1e-6), images).same.all())
    assert not bool(check_movement(model, shifted(model, 3.0), images).same.all())
    nothing = check_movement(model, model, images)
    assert float(nothing.logits.amax()) < 1e-4


def test_the_bound_on_logits_is_met_by_a_shift_of_one_logit() -> None:
    model = classifier("dense")
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved.head.bias[1] += 0.25
    assert mondeq.movement(model, moved, small_pictures(model)).logits.tolist() == pytest.approx([0.25] * 7, rel=1e-6)


def test_batches_change_nothing() -> None:
    model = STACKS["convolution, dense"](1)
    moved, images = shifted(model, 1e-3), pictures(7)
    whole, parts = mondeq.movement(model, moved, images), mondeq.movement(model, moved, images, batch_size=2)
    torch.testing.assert_close(whole.logits, parts.logits, rtol=1e-6, atol=0)
    assert torch.equal(whole.same, parts.same)


def test_other_networks_are_refused() -> None:
    model = classifier("dense")
    images = small_pictures(model)
    for other in (classifier("dense", features=4), classifier("dense", std=(0.5, 0.5)), classifier("lipschitz")):
        with pytest.raises(InvalidArgument, match="`moved` must have the pieces and settings of `model`"):
            mondeq.movement(model, other, images)
    with pytest.raises(InvalidArgument, match="`images` must have shape"):
        mondeq.movement(model, model, images[:, :1])
    with pytest.raises(InvalidArgument, match="NaN or inf"):
        mondeq.movement(model, model, images * torch.nan)
    with pytest.raises(InvalidType, match=r"must be a mondeq\.Network"):
        mondeq.movement(model, nn.Linear(2, 2), images)  # type: ignore[arg-type]


def test_what_survives_is_counted() -> None:
    model = classifier("dense", scale=2.0)
    moved = shifted(model, 0.05)
    images = small_pictures(model, 40)
    labels = model(images).argmax(1)
    before, after = (mondeq.certify(each, images, labels) for each in (model, moved))
    survival = mondeq.Survival(before, after, mondeq.movement(model, moved, images))
    expected = (
        (before.radius > 0) & (after.radius > 0) & (before.prediction == after.prediction)
    ) | survival.movement.same
    assert torch.equal(survival.same, expected)
    r = float(before.radius.median())
    counted = survival.kept([0.0, r])
    assert counted[0.0][0] == int((before.radius > 0).sum())
    first = before.radius >= r
    assert counted[r] == (int(first.sum()), int((first & after.correct & (after.radius >= r)).sum()))
    assert 0 < counted[r][1] <= counted[r][0] < 40
