"""Boxes: their arithmetic against fractions, boxes of equilibria from both sides, certificates and training in ℓ∞."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mondeq
import splitting
from mondeq import Box, IntervalDense
from mondeq.certificates import Boxes
from mondeq.cli import main
from mondeq.losses import Interval, Progress
from mondeq.norms import Norm
from mondeq.pieces import EquilibriumLayer, EquilibriumProof
from mondeq.pieces.linear import linear_box, linear_gaps
from mondeq.testing import activations
from mondeq.training import Trainer, TrainingConfig
from splitting import InvalidArgument
from tests.mondeq.zoo import log_uniform, model_for, tiny_dataset

SEEDS = st.integers(0, 2**16)
DTYPES = st.sampled_from([torch.float32, torch.float64])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(x: Tensor) -> list[Fraction]:
    return [Fraction(float(entry)) for entry in x.flatten()]


def interval_dense(
    *, seed: int, scale: float = 1.0, in_features: int = 4, features: int = 5, m: float = 0.4
) -> IntervalDense:
    """Random weights, those of T times `scale`."""
    linear = IntervalDense(in_features, features, m).double().requires_grad_(False)
    for number, weight in enumerate(linear.parameters()):
        weight.copy_(normal(*weight.shape, seed=seed + number) * (scale if weight is linear.T else 1.0))
    return linear


def proof_of(linear: mondeq.Parameterization, activation: splitting.Activation | None = None) -> EquilibriumProof:
    layer = EquilibriumLayer(linear, activation).eval()
    layer.sharpen()
    return EquilibriumProof(layer, Norm(), linear.in_shape)


# -- arithmetic ----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(dtype=DTYPES, scale=log_uniform(1e-30, 1e6), width=log_uniform(1e-12, 1e2), seed=SEEDS)
def test_an_affine_image_contains_the_exact_one_and_little_more(
    dtype: torch.dtype, scale: float, width: float, seed: int
) -> None:
    weight, bias, x = ((scale * normal(*s, seed=seed + s[0])).to(dtype) for s in ((3, 4), (3,), (1, 4)))
    box = Box.around(x, scale * width)
    image = linear_box(weight, bias, box)
    unit = torch.finfo(dtype).eps
    for row, found in enumerate(zip(exactly(image.lower), exactly(image.upper), strict=True)):
        w, b = exactly(weight[row]), exactly(bias[row])[0]
        ends = list(zip(exactly(box.lower), exactly(box.upper), strict=True))
        products = [sorted((a * low, a * high)) for a, (low, high) in zip(w, ends, strict=True)]
        exact = [b + sum(each[side] for each in products) for side in (0, 1)]
        assert found[0] <= exact[0]
        assert exact[1] <= found[1]
        size = (
            float(abs(b) + sum(abs(p) for pair in products for p in pair)) * 100 * unit + torch.finfo(dtype).tiny ** 0.7
        )
        assert float(exact[0] - found[0]) <= size
        assert float(found[1] - exact[1]) <= size


@settings(max_examples=20)
@given(dtype=DTYPES, seed=SEEDS, by=log_uniform(1e-40, 1e3))
def test_widening_and_adding_round_outward(dtype: torch.dtype, seed: int, by: float) -> None:
    first, second = (normal(1, 6, seed=seed + k).to(dtype) for k in range(2))
    step = torch.tensor(by, dtype=dtype)
    wide, summed = Box(first, first).widened(step), Box(first, first).plus(Box(second, second))
    for low, high, a, b, below, above in zip(
        *map(exactly, (wide.lower, wide.upper, first, second, summed.lower, summed.upper)), strict=True
    ):
        assert low <= a - Fraction(float(step)) <= a + Fraction(float(step)) <= high
        assert below <= a + b <= above


def test_a_box_with_an_unknown_end_lies_in_none() -> None:
    zero, nan = torch.zeros(2, 3), torch.zeros(2, 3)
    nan[1, 2] = math.nan
    assert Box(zero - 1, zero + 1).contains(Box(zero, nan)).tolist() == [True, False]
    assert Box(zero - math.inf, zero + math.inf).contains(Box(zero, zero + math.inf)).tolist() == [True, True]
    assert Box(zero, zero).contains(Box(zero, zero + 1e-9)).tolist() == [False, False]


@settings(max_examples=20)
@given(seed=SEEDS, width=log_uniform(1e-3, 1))
def test_differences_of_logits_are_bounded_as_rows_of_their_own(seed: int, width: float) -> None:
    """They are attained at a corner: with rows that share a part, logits alone would say less."""
    weight, bias = normal(3, 4, seed=seed) + 5, normal(3, seed=seed + 1)
    x, chosen = normal(6, 4, seed=seed + 2), torch.tensor([2, 0, 1, 1, 0, 2])
    found = linear_gaps(weight, bias, Box.around(x, width), chosen)
    rows = weight[chosen][:, None] - weight
    corner = x[:, None] - width * rows.sign()
    exact = (rows * corner).sum(2) + bias[chosen][:, None] - bias
    assert bool((found <= exact + 1e-13).all())
    torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-11)
    apart = mondeq.pieces.base.least_gaps(linear_box(weight, bias, Box.around(x, width)), chosen)
    assert bool((apart.gather(1, (chosen[:, None] + 1) % 3) < found.gather(1, (chosen[:, None] + 1) % 3)).all())


# -- the parameterization ------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(scale=st.just(0.0) | log_uniform(1e-6, 1e12), m=st.floats(0.01, 0.99), seed=SEEDS)
def test_for_every_weight_rows_sum_to_less_than_one_and_the_operator_is_monotone(
    scale: float, m: float, seed: int
) -> None:
    linear = interval_dense(seed=seed, scale=scale, m=m)
    assert float(linear.W.abs().sum(1).max()) <= (1 - m) * (1 + 1e-14)
    operator = linear.operator()
    assert operator.strong_monotonicity >= 0.499 * m
    assert bool((operator.metric > 0).all())
    small = interval_dense(seed=seed, scale=1e-6, m=m)
    torch.testing.assert_close(small.W, (1 - m) * small.T)


def test_arguments_out_of_range_are_named() -> None:
    for m in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(mondeq.ConfigError, match="`m` must be a number in"):
            IntervalDense(3, 4, m)
    with pytest.raises(InvalidArgument, match="`features`"):
        IntervalDense(3, 0)
    with pytest.raises(mondeq.ConfigError, match="`low` must be less than `high`"):
        mondeq.PIECES["hardtanh"].Settings(1.0, 0.0)  # type: ignore[call-arg]


# -- boxes of equilibria -------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(activation=activations(), scale=log_uniform(1e-2, 1e3), width=log_uniform(1e-4, 3), seed=SEEDS)
def test_a_box_contains_the_equilibria_of_all_perturbations(
    activation: splitting.Activation, scale: float, width: float, seed: int
) -> None:
    linear = interval_dense(seed=seed, scale=scale)
    proof, x = proof_of(linear, activation), normal(3, 4, seed=seed + 9)
    box, point = (proof.enclose_box(Box.around(x, radius)) for radius in (width, 0.0))
    assert bool(box.contains(point).all())
    # The box of a point is a point, up to the steps that are taken: whatever is lost is lost to the intervals.
    assert float((point.upper - point.lower).max()) <= 1e-4 * (1 + float(point.upper.abs().max()))
    for corner in normal(4, 3, 4, seed=seed + 10).sign():
        solution = proof.solve(x + width * corner)
        slack = torch.as_tensor(float((solution.error_bound / proof.norm.root.min()).max()) + 1e-12)
        assert bool(box.widened(slack.double()).contains(Box(solution.value, solution.value)).all())


@settings(max_examples=20)
@given(scale=log_uniform(1e-2, 1e2), width=log_uniform(1e-3, 1), seed=SEEDS)
def test_where_nothing_is_negative_the_ends_are_attained(scale: float, width: float, seed: int) -> None:
    """W, U ≥ 0: the equilibria of x − r and x + r are the ends themselves."""
    linear = interval_dense(seed=seed, scale=scale)
    for weight in (linear.U, linear.T):
        weight.abs_()
    proof, x = proof_of(linear), normal(3, 4, seed=seed + 9)
    box = proof.enclose_box(Box.around(x, width))
    low, high = (proof.solve(x + sign * width).value for sign in (-1, 1))
    torch.testing.assert_close(box.lower, low, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(box.upper, high, rtol=1e-4, atol=1e-5)


@settings(max_examples=15)
@given(seed=SEEDS, width=log_uniform(1e-3, 1))
def test_training_sees_the_box_that_is_proved(seed: int, width: float) -> None:
    linear, x = interval_dense(seed=seed), normal(3, 4, seed=seed + 9)
    layer = EquilibriumLayer(linear, tol=1e-9).eval()
    seen = layer.box_estimate(Box.around(x, width))
    proved = proof_of(linear).enclose_box(Box.around(x, width))
    torch.testing.assert_close(seen.lower, proved.lower, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.upper, proved.upper, rtol=1e-4, atol=1e-5)


def test_other_parameterizations_say_why_they_know_no_boxes() -> None:
    box = Box.around(normal(2, 4, seed=0), 0.1)
    dense = mondeq.Dense(4, 5).double()
    with torch.no_grad():
        dense.F.mul_(10)
    with pytest.raises(mondeq.pieces.Unproved, match="boxes need < 1; use IntervalDense"):
        proof_of(dense).enclose_box(box)
    with pytest.raises(mondeq.pieces.Unproved, match=r"has a Dense, which knows no boxes; use mondeq\.IntervalDense"):
        EquilibriumLayer(dense).box_estimate(box)
    # Where rows of |W| happen to sum to less than 1, any matrix will do.
    with torch.no_grad():
        dense.F.mul_(0)
        dense.G.mul_(0)
    assert bool(proof_of(dense).enclose_box(box).lower.isfinite().all())


# -- certificates --------------------------------------------------------------------------------------------------


def network(seed: int = 0, **settings: object) -> mondeq.Classifier:
    torch.manual_seed(seed)
    model = model_for(tiny_dataset(), "interval", seed=seed, **settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in ("layer.linear.U", "layer.linear.T", "head.weight"):
                weight.copy_(normal(*weight.shape, seed=seed + len(name)) / weight.shape[1] ** 0.5)
    return model


def images(count: int = 12) -> Tensor:
    return tiny_dataset().test.images[:count].float() / 255


@pytest.mark.parametrize("options", [{}, {"channels": (2,)}, {"activation": "tanh"}, {"cut": 0.2}], ids=str)
def test_a_certified_box_holds_one_prediction(options: dict[str, object]) -> None:
    model, x = network(**options), images().double()
    certifier = mondeq.Certifier(model, "linf")
    assert set(certifier.methods) == {"gaps", "boxes"}
    exact, prediction = certifier.chain.exact, certifier.certify(x, torch.zeros(len(x), dtype=torch.int64)).prediction
    found = radii(certifier, x)
    certified = found["boxes"] > 0
    assert int(certified.sum()) > len(x) // 2
    radius = 0.999 * found["boxes"].reshape(-1, 1, 1, 1)
    for corner in normal(20, *x.shape, seed=3).sign():
        assert bool((exact(x + radius * corner).argmax(1) == prediction)[certified].all())
    assert not bool(attacked(exact, x, prediction, radius)[certified].any())


def test_where_nothing_is_negative_the_radius_is_exact() -> None:
    """The least gap of two logits is at x − r: positive for the radius that is found, negative a little beyond it."""
    model, x = increasing(), images().double()
    certifier = mondeq.Certifier(model, "linf")
    exact, found = certifier.chain.exact, radii(certifier, x)
    assert bool((certifier.certify(x, torch.ones(len(x), dtype=torch.int64)).correct).all())
    assert bool((found["boxes"] > found["gaps"]).all())
    for beyond, holds in ((0.0, True), (1e-3, False)):
        logits = exact(x - found["boxes"].reshape(-1, 1, 1, 1) - beyond)
        assert bool(((logits[:, 1] > logits[:, 0]) == holds).all())


def radii(certifier: mondeq.Certifier, x: Tensor) -> dict[str, Tensor]:
    """What each certificate says alone."""
    logits = certifier.chain.stages[-1].logits(certifier.chain.enclose(x))
    return {name: prepared.radius(x, logits) for name, prepared in certifier._prepared.items()}


def increasing() -> mondeq.Network:
    """A network whose gap y_1 − y_0 rises with every pixel, positive at every image and negative at 0."""
    linear = interval_dense(seed=1, in_features=16, scale=10.0)
    for weight in (linear.U, linear.T, linear.b):
        weight.abs_()
    head = nn.Linear(5, 2).double().requires_grad_(False)
    head.weight.copy_(torch.tensor([[0.0] * 5, [1.0] * 5]))
    model = mondeq.Network({"flatten": nn.Flatten(), "layer": EquilibriumLayer(linear), "head": head}, (1, 4, 4)).eval()
    head.bias.zero_()
    gaps = model(images().double())[:, 1]
    head.bias.copy_(torch.tensor([0.75 * float(gaps.min()), 0.0]))
    return model


def attacked(model: mondeq.Network, x: Tensor, prediction: Tensor, radius: Tensor) -> Tensor:
    """Whether steps along the sign of the gradient of some rival change the prediction."""
    changed = torch.zeros(len(x), dtype=torch.bool)
    for rival in range(model.classes):
        moved = x.clone()
        for _ in range(5):
            moved.requires_grad_()
            with torch.enable_grad():
                logits = model(moved)
                objective = (logits[:, rival] - logits.gather(1, prediction[:, None])[:, 0]).sum()
                (gradient,) = torch.autograd.grad(objective, moved)
            moved = x + ((moved.detach() + radius / 2 * gradient.sign()) - x).clamp(-radius, radius)
        changed |= model(moved).argmax(1) != prediction
    return changed


def test_a_box_that_does_not_contain_its_image_is_refused() -> None:
    """The steps that find B prove nothing: with too few of them and too little room, every radius is refused."""
    certifier, x = mondeq.Certifier(increasing(), "linf"), images().double()
    assert bool((radii(certifier, x)["boxes"] > 0.01).all())
    (broken,) = (stage for stage in certifier.chain.stages if isinstance(stage, EquilibriumProof))
    W, U, b, _ = broken._contraction
    broken.__dict__["_contraction"] = W, U, b, -99.0
    assert radii(certifier, x)["boxes"].tolist() == [0.0] * len(x)


def test_it_speaks_of_boxes_alone_and_of_networks_that_know_them() -> None:
    kind = Boxes()
    assert kind.unsuited(mondeq.bounds.Chain.of(network(), "l2")) == "a ball of this norm is no box"
    assert kind.unsuited(mondeq.bounds.Chain.of(network(), "linf")) is None
    other = mondeq.Network(
        [nn.Flatten(), mondeq.ResidualLayer(mondeq.ReflectedDense(16, 4)), nn.Linear(16, 3)], (1, 4, 4)
    )
    assert kind.unsuited(mondeq.bounds.Chain.of(other, "linf")) == "knows no boxes"
    assert mondeq.certify(other, images(), torch.zeros(12, dtype=torch.int64), norm="linf").methods == ("gaps",)
    # Without an equilibrium too: interval bound propagation.
    plain = mondeq.Network([nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)], (1, 4, 4))
    report = mondeq.certify(plain, images(), torch.zeros(12, dtype=torch.int64), norm="linf")
    assert set(report.methods) == {"gaps", "boxes"}


def test_pixels_near_black_and_white_do_not_move_anything() -> None:
    model = network(cut=0.25)
    x = (images() > 0.5).float()
    report = mondeq.certify(model, x, torch.zeros(len(x), dtype=torch.int64), norm="linf")
    assert bool((report.radius >= 0.249).all())


# -- training ------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_the_worst_logits() -> None:
    """Of a linear network the worst logits are those of corners of the box."""
    linear = nn.Linear(16, 3).double()
    model = mondeq.Network([nn.Flatten(), linear], (1, 4, 4))
    x, labels, radius = images(5).double(), torch.tensor([0, 1, 2, 0, 1]), 0.2
    loss, entropy = Interval(Interval.Settings(clean_share=0.25)), nn.functional.cross_entropy
    constants = torch.zeros(3, 3, dtype=torch.float64)
    logits = linear(x.flatten(1))
    rows = linear.weight[labels][:, None] - linear.weight
    found, excess = loss.of_batch(model, x, labels, logits, constants, Progress(radius, 2.0, 1.0))
    gaps = logits.gather(1, labels[:, None]) - logits - radius * rows.abs().sum(2)
    torch.testing.assert_close(found, 0.25 * entropy(2 * logits, labels) + 0.75 * entropy(-2 * gaps, labels))
    torch.testing.assert_close(excess, gaps.scatter(1, labels[:, None], math.inf).amin(1))
    plain, _ = loss.of_batch(model, x, labels, logits, constants, Progress(0.0, 2.0, 1.0))
    torch.testing.assert_close(plain, entropy(2 * logits, labels))


def test_its_gradient_goes_through_both_equilibria() -> None:
    model = network().double()
    model.layer.tol, model.layer.backward_tol = 1e-12, 1e-12
    x, labels, loss = images(3).double(), torch.tensor([0, 1, 2]), Interval()

    def value() -> Tensor:
        constants = loss.constants(model)
        return loss.of_batch(model, x, labels, model(x), constants, Progress(0.05, 1.0, 1.0))[0]

    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(value(), [weight for _, weight in model.named_parameters()])
    for name, gradient in zip(names, gradients, strict=True):
        weight, direction = model.get_parameter(name), normal(*gradient.shape, seed=len(name))
        with torch.no_grad():
            steps = []
            for sign in (1, -1):
                weight.add_(sign * 1e-6 * direction)
                steps.append(float(value()))
                weight.sub_(sign * 1e-6 * direction)
        assert float((gradient * direction).sum()) == pytest.approx((steps[0] - steps[1]) / 2e-6, rel=1e-4, abs=1e-7), (
            name
        )


def test_interval_training_certifies_more_than_plain_training(tmp_path: Path) -> None:
    dataset = tiny_dataset(train=96)
    shares = []
    for radius in (0.0, 0.08):
        config = TrainingConfig(data="tiny", epochs=25, batch_size=16, lr=0.02, radius=radius, loss="interval")
        model = model_for(dataset, "interval", features=16)
        history = Trainer(model, dataset, config, tmp_path / str(radius), torch.device("cpu")).run()
        images, labels = dataset.test.images.float() / 255, dataset.test.labels
        report = mondeq.certify(model.eval(), images, labels, norm="linf")
        shares.append(report.certified_accuracy([0.08])[0.08])
    assert shares[1] >= shares[0]
    # What training said of the same box.
    assert shares[1] == pytest.approx(history[-1].certified_estimate, abs=0.051)


@pytest.mark.parametrize("radius", ["1.5", "2", "-0.1"])
def test_a_radius_outside_of_the_pixels_is_refused_in_one_line(
    radius: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--data", "digits", "--model", "interval", f"--radius={radius}", "--out", str(tmp_path / "run")]
    assert main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "`radius`" in line
    assert not list((tmp_path / "run").glob("*.safetensors"))
