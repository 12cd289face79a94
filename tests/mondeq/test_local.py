"""Local certificates: never below the global ones, never more than is true, and off unless they are asked for."""

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
from mondeq.certificates.sector import System
from mondeq.pieces import Blocks
from mondeq.testing import check_certificate
from tests.mondeq.zoo import classifier, labels_of, log_uniform, pictures


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def system(seed: int, *, n: int = 5, inputs: int = 3, m: float = 0.2) -> tuple[System, Tensor, Tensor, Tensor]:
    """z = σ(Wz + Ux + b) with a metric, and some outputs: the system, A, U and C."""
    F, G, U = drawn(n, n, seed=seed), drawn(n, n, seed=seed + 1), drawn(n, inputs, seed=seed + 2)
    weight = drawn(n, seed=seed + 3).exp()
    A = (m * torch.eye(n, dtype=torch.float64) + F.mT @ F / n + G - G.mT) / weight[:, None]
    state = float(torch.linalg.matrix_norm(U, 2) * weight.amax() / (m * weight.amin()))
    return System.of(Blocks(A, None, U), weight, state), A, U, drawn(2, n, seed=seed + 4)


def truth(A: Tensor, U: Tensor, C: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of what Δx adds to Δy and to CΔz, for chord slopes D: (I − WD)Δy = UΔx, Δz = DΔy."""
    eye = torch.eye(len(A), dtype=torch.float64)
    moved = torch.linalg.solve(eye - (eye - A) * slopes, U)
    return moved.norm(dim=1), (C @ (slopes[:, None] * moved)).norm(dim=1)


def intervals(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Slopes of units that are off, on, or anywhere in some interval."""
    ends = torch.rand(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort(0).values
    kind = torch.randint(4, (n,), generator=torch.Generator().manual_seed(seed))
    fixed = torch.where(kind == 0, 0.0, 1.0)
    lower = torch.where(kind < 2, fixed, torch.where(kind == 2, 0.0, ends[0]))
    return lower, torch.where(kind < 2, fixed, torch.where(kind == 2, 1.0, ends[1]))


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), m=log_uniform(1e-3, 1))
def test_constants_hold_for_all_slopes_in_their_intervals_and_for_fewer_they_are_smaller(seed: int, m: float) -> None:
    known, A, U, C = system(seed, m=m)
    lower, upper = intervals(seed, len(A))
    near = known.near(lower, upper, C)
    found = near.best(torch.ones(len(near.free) + 2, dtype=torch.float64))
    assert bool(torch.isfinite(found).all())
    for number in range(40):
        # Corners and points between them.
        share = torch.rand(len(A), generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        slopes = lower + (upper - lower) * (share.round() if number % 2 else share)
        own, outputs = truth(A, U, C, slopes)
        assert bool((torch.cat([own[near.free], outputs]) <= found * (1 + 1e-9)).all())
    # For the same μ nothing is lost against what holds everywhere.
    everywhere = known.near(torch.zeros_like(lower), torch.ones_like(lower), C)
    levels, _ = everywhere.proposed()
    for level in levels[::3]:
        assert bool((near.proved(float(level))[-2:] <= everywhere.proved(float(level))[-2:] * (1 + 1e-7)).all())


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_where_all_slopes_are_known_constants_are_exact(seed: int) -> None:
    known, A, U, C = system(seed)
    slopes, _ = intervals(seed, len(A))
    near = known.near(slopes, slopes, C)
    assert len(near.free) == 0
    _, outputs = truth(A, U, C, slopes)
    torch.testing.assert_close(near.best(torch.ones(2, dtype=torch.float64)), outputs, rtol=1e-5, atol=1e-6)


def report_of(model: mondeq.Network, images: Tensor, *, norm: str = "l2", extra: tuple[str, ...] = ()) -> mondeq.Report:
    return mondeq.certify(model, images, labels_of(model, len(images)), norm=norm, extra=extra)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", ["dense", "lipschitz"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_they_are_never_below_the_global_ones_and_attacks_find_nothing(kind: str, scale: float, norm: str) -> None:
    model = classifier(kind, scale=scale, features=12, seed=3).double()
    images = pictures(model, 6, dtype=torch.float64)
    plain, local = report_of(model, images, norm=norm), report_of(model, images, norm=norm, extra=("local",))
    assert (plain.methods, local.methods) == (("gaps",), ("gaps", "local"))
    assert bool((local.radius >= plain.radius).all())
    assert bool((local.radius > 1.05 * plain.radius).any())
    if norm == "l2":
        labels = labels_of(model, 6)
        assert check_certificate(model, images, labels, local, samples=50, ascent=3) == int((local.radius > 0).sum())


@pytest.mark.parametrize("activation", [splitting.ReLU(), splitting.Tanh(), splitting.LeakyReLU(0.1)], ids=str)
def test_in_the_plane_no_nearer_point_has_another_prediction(activation: splitting.Activation) -> None:
    """The plane is searched on a grid of rays: the radius is never more than the distance, and mostly near it."""
    linear = mondeq.Dense(2, 8, m=0.5)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_(std=0.7)
    layer = mondeq.EquilibriumLayer(linear, activation, tol=1e-10, max_steps=2000)
    model = mondeq.Network([layer, torch.nn.Linear(8, 3)], (2,)).double().eval()
    images = drawn(16, 2, seed=0)
    plain, local = report_of(model, images), report_of(model, images, extra=("local",))
    angles = torch.linspace(0, 2 * math.pi, 65, dtype=torch.float64)[:-1]
    rays = torch.stack([angles.cos(), angles.sin()], dim=1)
    # Every radius is approached from inside and from a little outside.
    shares = torch.cat([torch.linspace(0.02, 1, 40, dtype=torch.float64), torch.tensor([1.5, 2.0, 4.0])])
    finite = torch.isfinite(local.radius) & (local.radius > 0)
    for image, radius, global_radius in zip(images[finite], local.radius[finite], plain.radius[finite], strict=True):
        assert radius >= global_radius
        points = image + radius * (1 - 1e-9) * shares[:, None, None] * rays
        with torch.no_grad():
            changed = model(points.flatten(0, 1)).argmax(1) != model(image[None]).argmax()
        assert not bool(changed.view(len(shares), -1)[:40].any())


def test_what_is_gained() -> None:
    """Close to an image with a wide margin few units can change: the radius grows by a good part."""
    model = classifier("dense", features=16, seed=5, scale=2.0).double()
    images = pictures(model, 8, dtype=torch.float64)
    gain = report_of(model, images, extra=("local",)).radius / report_of(model, images).radius
    assert float(gain.median()) > 1.15


def test_a_trunk_before_the_equilibrium_counts() -> None:
    torch.manual_seed(2)
    pieces = [
        mondeq.ResidualLayer(mondeq.ReflectedDense(6, 4, m=0.1)),
        torch.nn.Linear(6, 5),
        mondeq.EquilibriumLayer(mondeq.Dense(5, 9, m=0.5)),
        torch.nn.Linear(9, 3),
    ]
    model = mondeq.Network(pieces, (6,)).double().eval()
    images = drawn(10, 6, seed=0)
    plain, local = report_of(model, images), report_of(model, images, extra=("local",))
    assert bool((local.radius >= plain.radius).all())
    assert float((local.radius / plain.radius).max()) > 1.05
    assert check_certificate(model, images, labels_of(model, 10), local, samples=50, ascent=3) > 0


@pytest.mark.parametrize("scale", [1e-120, 1e-8, 1e5, 1e60])
@pytest.mark.filterwarnings("ignore::splitting.ConvergenceWarning")
def test_weights_of_any_scale_are_survived(scale: float) -> None:
    model = classifier("dense").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    images = pictures(model, 4, dtype=torch.float64)
    plain, local = report_of(model, images), report_of(model, images, extra=("local",))
    assert bool((local.radius >= plain.radius).all())


def test_preactivations_are_known_to_their_error() -> None:
    model = classifier("dense", seed=1).double()
    chain = Chain.of(model)
    (number,) = (n for n, stage in enumerate(chain.stages) if stage.blocks() is not None)
    stage: Any = chain.stages[number]
    images = pictures(model, 5, dtype=torch.float64)
    ball = chain.enclose(images, number)
    value, error = stage.preactivations(ball)
    stage.layer.tol = 1e-3
    loose, bound = stage.preactivations(ball)
    assert bool(((value - loose).abs() <= error + bound).all())
    assert float(error.amax()) < 1e-8 < float(bound.amax())
    with torch.no_grad():
        torch.testing.assert_close(stage.layer.activation(value), stage.solve(ball.centre).value, rtol=0, atol=1e-2)


def test_what_they_do_not_suit_is_refused_in_one_line() -> None:
    model = classifier("conv").double()
    with pytest.raises(
        splitting.InvalidArgument, match=r"certificate 'local' does not suit .*: no dense equil"
    ) as caught:
        mondeq.Certifier(model, extra=["local"])
    assert "\n" not in str(caught.value)
    with pytest.raises(mondeq.ConfigError, match="unknown certificate 'lokal'"):
        mondeq.Certifier(classifier(), extra=["lokal"])
