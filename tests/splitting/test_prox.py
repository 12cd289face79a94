"""Laws of the activations: each σ is the proximal operator it claims to be, for every α."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import splitting
from tests.registry import ACTIVATIONS, DTYPES, Arctan, Staircase

ALPHAS = (1e-3, 0.03, 0.5, 1.0, 3.0, 30.0, 1e3)

everywhere = pytest.mark.parametrize("activation", ACTIVATIONS)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def points(count: int = 1000, width: int = 6) -> Tensor:
    """Points of both signs and of every size from 1e-4 to 100, with zero among them."""
    sizes = 10 ** torch.empty(count, width, dtype=torch.float64).uniform_(-4, 2)
    v = sizes * torch.randint(0, 2, sizes.shape).mul_(2).sub_(1)
    v[0] = 0
    return v


def pair(name: str, dtype: torch.dtype) -> tuple[splitting.Activation, splitting.Activation]:
    """The activation in `dtype`, and the same one with its tensors in float64."""
    activation = ACTIVATIONS[name]((6,), dtype)
    return activation, activation.rebind(*(t.double() for t in activation.tensors))


@everywhere
def test_satisfies_the_public_check(activation: str) -> None:
    splitting.check_activation(ACTIVATIONS[activation]((), torch.float64))


@everywhere
@all_dtypes
def test_point_solves_the_prox_equation_to_rounding(activation: str, dtype: torch.dtype) -> None:
    """α y + (1 − α) σ(y) = v, evaluated in float64, as well as rounding y allows: the slope in y is ≤ max(α, 1)."""
    sigma, exact = pair(activation, dtype)
    v = points().to(dtype)
    for alpha in ALPHAS:
        y = sigma.point(v, alpha).double()
        z = exact(y)
        allowed = 4 * torch.finfo(dtype).eps * (max(alpha, 1) * (1 + y.abs() + z.abs()) + v.abs())
        assert ((alpha * y + (1 - alpha) * z - v).abs() <= allowed).all(), alpha


@pytest.mark.parametrize("activation", ["Tanh", "Sigmoid", "Softplus"])
@all_dtypes
def test_point_is_as_good_where_the_host_does_not_watch(
    activation: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of smooth activations: at a kink Newton's method may cycle, and α near 1 leaves no time there for bisection."""
    monkeypatch.setattr("splitting.context._FREE_TO_ASK", frozenset())
    test_point_solves_the_prox_equation_to_rounding(activation, dtype)


@everywhere
@all_dtypes
def test_prox_is_the_activation_at_the_point(activation: str, dtype: torch.dtype) -> None:
    """prox_{αf}(v) = σ(y), hence (v − z)/α = y − z is one and the same subgradient; and prox_f = σ."""
    sigma, _ = pair(activation, dtype)
    v = points().to(dtype)
    for alpha in ALPHAS:
        y, z = sigma.point(v, alpha), sigma.proximal(v, alpha)
        rounding = 4 * torch.finfo(dtype).eps * (1 + y.abs() + z.abs())
        assert ((z - sigma(y)).abs() <= rounding).all(), alpha
        assert ((v - z - alpha * (y - z)).abs() <= max(alpha, 1) * rounding).all(), alpha
    torch.testing.assert_close(sigma.proximal(v, 1.0), sigma(v), rtol=0, atol=0)


@everywhere
def test_prox_is_firmly_nonexpansive(activation: str) -> None:
    """(p − q)(v − w) ≥ (p − q)² entry by entry, for pairs far apart and close together."""
    sigma, _ = pair(activation, torch.float64)
    v, direction = points(), points()
    for w in (direction, v + 1e-3 * direction):
        for alpha in ALPHAS:
            p, q = sigma.proximal(v, alpha), sigma.proximal(w, alpha)
            rounding = 1e-15 * max(alpha, 1 / alpha) * (1 + v.abs() + w.abs()) * (v - w).abs()
            assert ((p - q) * (v - w) >= (p - q).square() - rounding).all(), alpha


@everywhere
def test_derivative_is_the_slope_away_from_kinks(activation: str) -> None:
    """σ′ equals the central difference wherever the second difference says that there is no kink within h."""
    sigma, _ = pair(activation, torch.float64)
    y, h = points().clamp(-30, 30), 1e-5
    ahead, here, behind = sigma(y + h), sigma(y), sigma(y - h)
    smooth = (ahead - 2 * here + behind).abs() <= 2 * h**2
    assert smooth.double().mean() > 0.99
    slope = (ahead - behind) / (2 * h)
    torch.testing.assert_close(sigma.derivative(y)[smooth], slope[smooth], rtol=0, atol=2e-5)


@everywhere
@all_dtypes
def test_derivative_in_terms_of_the_value(activation: str, dtype: torch.dtype) -> None:
    """σ′(y) from z = σ(y) alone, to rounding, where an activation offers it: all of the package's do."""
    sigma, _ = pair(activation, dtype)
    y = points().to(dtype)
    found = sigma.derivative_at(sigma(y))
    if isinstance(sigma, (Arctan, Staircase)):
        assert found is None
    else:
        torch.testing.assert_close(found, sigma.derivative(y), rtol=0, atol=4 * torch.finfo(dtype).eps)


@all_dtypes
def test_small_slopes_of_softplus_keep_their_digits(dtype: torch.dtype) -> None:
    """Far below zero σ′ = 1 − e^(−σ) is about σ, and as good relative to its own size."""
    sigma, y = splitting.Softplus(), torch.linspace(-60, -1, 200, dtype=dtype)
    torch.testing.assert_close(
        sigma.derivative_at(sigma(y)), sigma.derivative(y), rtol=4 * torch.finfo(dtype).eps, atol=0
    )


# -- slopes ------------------------------------------------------------------------------------------------------

# What only says [0, 1] is not tight.
closed = pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name not in ("Arctan", "Staircase")])


def intervals_of(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[float]]]:
    """Six intervals, one for each entry of an activation with tensors."""
    ends = st.tuples(numbers | st.just(-math.inf), numbers | st.just(math.inf)).map(sorted)
    return st.lists(ends, min_size=6, max_size=6)


# No end is nearer to a kink of the registry than a grid can tell, unless it is one.
coarse = st.integers(-640, 640).map(lambda n: n / 16) | st.sampled_from([0.3, -0.3])
fine = coarse | st.floats(-40, 40) | st.sampled_from([1e-9, -1e-9, 1e-300])


def inside(low: Tensor, high: Tensor) -> Tensor:
    """Points of [low, high], increasing: evenly spread, and closer and closer to both ends. (points, width)"""
    low, high = low.clamp(-200, 200), high.clamp(-200, 200)
    near = 2.0 ** torch.arange(-40.0, -2, dtype=torch.float64)
    share = torch.cat([torch.zeros(1), near, torch.linspace(0.25, 0.75, 2001), 1 - near.flip(0), torch.ones(1)])
    # Rounding must not lead out of it, across a kink.
    return (low + (high - low) * share.double()[:, None]).clamp(low, high)


def secants(sigma: splitting.Activation, y: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes between neighbours, and how much rounding σ may have changed them; nothing between equal ones."""
    z, step = sigma(y), y.diff(dim=0)
    slope, unsure = z.diff(dim=0) / step, 8e-16 * (z[1:].abs() + z[:-1].abs() + 1e-300) / step
    return torch.where(step > 0, slope, math.nan), torch.where(step > 0, unsure, 0.0)


@everywhere
@settings(max_examples=25, deadline=None)
@given(intervals=intervals_of(fine))
def test_slopes_hold_every_secant(activation: str, intervals: list[list[float]]) -> None:
    """Of neighbours as of points far apart, since the slope between these is a mean of slopes between those."""
    sigma, _ = pair(activation, torch.float64)
    low, high = torch.tensor(intervals, dtype=torch.float64).unbind(1)
    lower, upper = sigma.slopes(low, high)
    assert ((lower >= 0) & (lower <= upper) & (upper <= 1)).all()
    slope, unsure = secants(sigma, inside(low, high))
    assert not ((slope < lower - unsure) | (slope > upper + unsure)).any()


@closed
@settings(max_examples=25, deadline=None)
@given(intervals=intervals_of(coarse))
def test_slopes_are_attained(activation: str, intervals: list[list[float]]) -> None:
    """The ends are those of σ′, up to how much that changes between two points of the grid, of which |σ″| < 1."""
    sigma, _ = pair(activation, torch.float64)
    low, high = torch.tensor(intervals, dtype=torch.float64).unbind(1)
    lower, upper = sigma.slopes(low, high)
    y = inside(low, high)
    slope, unsure = secants(sigma, y)
    spacing = y.diff(dim=0).amax(0)
    # Digits of a difference count only where it has some.
    usable = (unsure < 1e-6) & ~slope.isnan()
    least = torch.where(usable, slope, math.inf).amin(0)
    greatest = torch.where(usable, slope, -math.inf).amax(0)
    checked = usable.any(0)
    assert (lower >= least - spacing - 1e-6)[checked].all()
    assert (upper <= greatest + spacing + 1e-6)[checked].all()


# σ to as many digits as the context has, with the parameters that floats are.
TENTH, THREE_TENTHS = map(Decimal, (0.1, 0.3))
EXACT: dict[str, tuple[splitting.Activation, Callable[[Decimal], Decimal]]] = {
    "Identity": (splitting.Identity(), lambda y: y),
    "ReLU": (splitting.ReLU(), lambda y: max(y, Decimal(0))),
    "LeakyReLU": (splitting.LeakyReLU(0.1), lambda y: y if y > 0 else TENTH * y),
    "SoftThreshold": (splitting.SoftThreshold(0.3), lambda y: y - min(max(y, -THREE_TENTHS), THREE_TENTHS)),
    "Box": (splitting.Box(-0.3, 0.1), lambda y: min(max(y, -THREE_TENTHS), TENTH)),
    "Tanh": (splitting.Tanh(), lambda y: 1 - 2 / ((2 * y).exp() + 1)),
    "Sigmoid": (splitting.Sigmoid(), lambda y: 1 / ((-y).exp() + 1)),
    "Softplus": (splitting.Softplus(), lambda y: (y.exp() + 1).ln()),
    "Scale": (splitting.Scale(torch.tensor([0.7])), lambda y: Decimal(float(torch.tensor(0.7))) * y),
    "Scaled": (
        splitting.prox.Scaled(splitting.SoftThreshold(0.3), torch.tensor([3.0])),
        lambda y: y - min(max(y, -3 * THREE_TENTHS), 3 * THREE_TENTHS),
    ),
}


@pytest.mark.parametrize("activation", EXACT)
@all_dtypes
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_slopes_are_proved(activation: str, dtype: torch.dtype, data: st.DataObject) -> None:
    """Not up to rounding: secants of the exact σ with more digits than cancel, between neighbours of the format too."""
    sigma, exact = EXACT[activation]
    width = 32 if dtype == torch.float32 else 64
    number = st.floats(-60, 60, width=width)
    start = data.draw(number | st.sampled_from([0.0, 0.1, 0.3, -0.3, 0.9, -0.9]))
    a = torch.tensor([start], dtype=dtype)
    b = torch.tensor([data.draw(number)], dtype=dtype) if data.draw(st.booleans()) else torch.nextafter(a, a + 1)
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    if low == high:
        return
    lower, upper = sigma.slopes(low, high)
    assert lower.dtype == upper.dtype == dtype
    with localcontext() as context:
        context.prec = 800
        ends = Decimal(float(low)), Decimal(float(high))
        slope = (exact(ends[1]) - exact(ends[0])) / (ends[1] - ends[0])
        # Linear pieces have slopes that are met, and the last of the digits is rounded.
        slack = Decimal(10) ** -60 * slope
        assert Decimal(float(lower)) - slack <= slope <= Decimal(float(upper)) + slack


@pytest.mark.parametrize(
    ("activation", "low", "high", "expected"),
    [
        (splitting.ReLU(), -1, 0, (0, 0)),
        (splitting.ReLU(), 0, 1, (1, 1)),
        (splitting.ReLU(), 0, 0, (0, 1)),
        (splitting.ReLU(), -1e-300, 1e-300, (0, 1)),
        (splitting.ReLU(), -math.inf, -math.inf, (0, 0)),
        (splitting.ReLU(), math.inf, math.inf, (1, 1)),
        (splitting.LeakyReLU(0.25), -2, 3, (0.25, 1)),
        (splitting.SoftThreshold(0.5), -0.5, 0.5, (0, 0)),
        (splitting.SoftThreshold(0.5), -1, -0.5, (1, 1)),
        (splitting.SoftThreshold(0.5), -1, 1, (0, 1)),
        (splitting.SoftThreshold(0.0), -1, 1, (1, 1)),
        (splitting.Box(-1, 2), -1, 2, (1, 1)),
        (splitting.Box(-1, 2), 2, 3, (0, 0)),
        (splitting.Box(-1, 2), -1, -1, (0, 1)),
        (splitting.Box(1, 1), 0, 2, (0, 0)),
        (splitting.Box(-math.inf, math.inf), -5, 5, (1, 1)),
        (splitting.prox.Scaled(splitting.Box(-1, 2), torch.tensor(4.0)), -4, 8, (1, 1)),
        (splitting.Tanh(), -math.inf, math.inf, (0, 1)),
        (splitting.Sigmoid(), -math.inf, math.inf, (0, 0.25)),
        (splitting.Softplus(), -math.inf, math.inf, (0, 1)),
        (splitting.Scale(torch.tensor(0.5)), -1, 1, (0.5, 0.5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, splitting.Activation) else str(value),
)
def test_known_slopes(activation: splitting.Activation, low: float, high: float, expected: tuple[float, float]) -> None:
    """At kinks, at infinity and at single points; the smooth ones come as near to 0 as rounding outward allows."""
    found = activation.slopes(*torch.tensor([low, high], dtype=torch.float64))
    assert tuple(map(float, found)) == pytest.approx(expected, rel=0, abs=1e-12)


def test_slopes_in_other_units_are_rounded_outward() -> None:
    """3·0.3 is no number of float64: below it the slope is 0 and above it 1, also where low/3 is rounded to 0.3."""
    sigma = splitting.prox.Scaled(splitting.SoftThreshold(0.3), torch.tensor(3.0, dtype=torch.float64))
    below, above = torch.tensor([math.nextafter(0.9, 0), 0.9], dtype=torch.float64)
    assert Decimal(float(below)) < 3 * THREE_TENTHS < Decimal(float(above))
    assert float(below / 3) == 0.3
    lower, upper = sigma.slopes(below, above)
    assert (float(lower), float(upper)) == (0, 1)


@everywhere
@all_dtypes
def test_nothing_is_excluded_where_an_end_is_no_number(activation: str, dtype: torch.dtype) -> None:
    """[low, high] may be all numbers then."""
    sigma, _ = pair(activation, dtype)
    nan, some = torch.full((6,), math.nan, dtype=dtype), torch.ones(6, dtype=dtype)
    for low, high in ((nan, some), (some, nan), (nan, nan)):
        lower, upper = sigma.slopes(low, high)
        least, greatest = sigma.slopes(-math.inf * some, math.inf * some)
        assert not ((lower > least) | (upper < greatest)).any()


def test_slopes_broadcast() -> None:
    low, high = torch.zeros(3, 1), torch.ones(6)
    for make in ACTIVATIONS.values():
        for end in make((6,), torch.float64).slopes(low, high):
            assert end.shape == (3, 6)
            assert end.dtype == low.dtype


@everywhere
def test_linearised_multiplies_by_the_slope(activation: str) -> None:
    """From y, and from z where that is enough."""
    sigma, _ = pair(activation, torch.float64)
    y, v = points(50), points(50)
    linear, short = sigma.linearised(y), sigma.linearised_at(sigma(y))
    assert torch.equal(linear(v), sigma.derivative(y) * v)
    assert (short is None) == (sigma.derivative_at(sigma(y)) is None)
    if short is not None:
        torch.testing.assert_close(short(v), linear(v), rtol=0, atol=1e-13)


@everywhere
@all_dtypes
def test_prox_into_given_memory(activation: str, dtype: torch.dtype) -> None:
    """The same bits, written where they were asked for, and v is left alone."""
    sigma, _ = pair(activation, dtype)
    v = points().to(dtype)
    before = v.clone()
    for alpha in ALPHAS:
        expected, out = sigma.proximal(v, alpha), torch.full_like(v, math.nan)
        assert sigma.proximal(v, alpha, out) is out
        assert torch.equal(out, expected), alpha
    assert torch.equal(v, before)


@everywhere
def test_tensor_gradient_is_that_of_autograd(activation: str) -> None:
    """∂⟨p, σ(y)⟩/∂t for the tensors the activation is made of."""
    sigma, _ = pair(activation, torch.float64)
    leaves = [t.clone().requires_grad_() for t in sigma.tensors]
    y, p = points(20), points(20)
    gradients = sigma.tensor_gradient(y, p)
    assert len(gradients) == len(leaves)
    pairing = (p * sigma.rebind(*leaves)(y)).sum()
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(pairing, leaf, retain_graph=True)[0])


def test_tensor_gradient_of_what_is_masked() -> None:
    """Nothing flows where the mask is false: there σ is 0, whatever its tensors are."""
    mask, d = torch.tensor([True, False, True]), torch.rand(3, dtype=torch.float64, requires_grad=True)
    sigma, (y, p) = splitting.Masked(splitting.Scale(d), mask), torch.randn(2, 20, 3, dtype=torch.float64)
    (gradient,) = sigma.tensor_gradient(y, p)
    torch.testing.assert_close(gradient, torch.autograd.grad((p * sigma(y)).sum(), d)[0])
    assert torch.equal(gradient != 0, mask)


@all_dtypes
def test_scale_is_finite_at_both_ends(dtype: torch.dtype) -> None:
    """prox_{αf}(v) = d v/(d + α(1 − d)): exactly 0 for d = 0, v for d = 1, the formula between; never inf or NaN."""
    d = torch.tensor([0.0, 1e-6, 0.25, 1.0], dtype=dtype)
    scale, v = splitting.Scale(d), points(width=4).to(dtype)
    for alpha in ALPHAS:
        z = scale.proximal(v, alpha)
        assert (z[:, 0] == 0).all()
        assert torch.isfinite(scale.point(v, alpha)).all()
        expected = d * v / (d + alpha * (1 - d))
        torch.testing.assert_close(z, expected, rtol=8 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [
        (splitting.ReLU(), 0.0, math.inf),
        (splitting.Box(-0.5, 2.0), -0.5, 2.0),
        (splitting.Masked(splitting.ReLU(), torch.tensor(False)), 0.0, 0.0),
    ],
    ids=["half-line", "interval", "point"],
)
def test_projections_do_not_depend_on_alpha(activation: splitting.Activation, low: float, high: float) -> None:
    """prox of an indicator is the projection onto its set, whatever α."""
    v = points()
    for alpha in ALPHAS:
        torch.testing.assert_close(activation.proximal(v, alpha), v.clamp(low, high), rtol=1e-12, atol=1e-12)


class _Steep(Arctan):
    def __call__(self, y: Tensor) -> Tensor:
        return 2 * y.atan()

    def derivative(self, y: Tensor) -> Tensor:
        return 2 / (1 + y.square())


class _Decreasing(Arctan):
    def __call__(self, y: Tensor) -> Tensor:
        return -y.atan()


class _WrongDerivative(Arctan):
    def derivative(self, y: Tensor) -> Tensor:
        return 1 / (1 + y.abs())


class _NegativeDerivative(Arctan):
    def derivative(self, y: Tensor) -> Tensor:
        return -1 / (1 + y.square())


class _SlightlySteep(splitting.Identity):
    def __call__(self, y: Tensor) -> Tensor:
        return (1 + 1e-9) * y


class _SlightlyDecreasing(splitting.Identity):
    def __call__(self, y: Tensor) -> Tensor:
        return -1e-9 * y


class _DerivativeAFewPerCentOff(Arctan):
    def derivative(self, y: Tensor) -> Tensor:
        return 0.97 / (1 + y.square())


class _DerivativeSlightlyAboveOne(Arctan):
    def derivative(self, y: Tensor) -> Tensor:
        return (1 + 1e-9) / (1 + y.square())


class _NarrowSlopes(Arctan):
    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Those at the ends, between which there are others."""
        ends = self.derivative(low), self.derivative(high)
        return torch.minimum(*ends) - 1e-2, torch.maximum(*ends) + 1e-2


class _WrongPoint(Arctan):
    def point(self, v: Tensor, alpha: float) -> Tensor:
        """As if f were an indicator: the mistake that only projections forgive."""
        return v


@pytest.mark.parametrize(
    ("broken", "failure"),
    [
        (_Steep(), "steeper than 1"),
        (_Decreasing(), "decreases"),
        (_SlightlySteep(), "steeper than 1"),
        (_SlightlyDecreasing(), "decreases"),
        (_WrongDerivative(), "not its slope"),
        (_DerivativeAFewPerCentOff(), "not its slope"),
        (_DerivativeSlightlyAboveOne(), r"outside \[0, 1\]"),
        (_NegativeDerivative(), r"outside \[0, 1\]"),
        (_NarrowSlopes(), "leave out a secant"),
        (_WrongPoint(), "prox equation"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, splitting.Activation) else "",
)
def test_the_public_check_refuses(broken: splitting.Activation, failure: str) -> None:
    with pytest.raises(splitting.InvalidArgument, match=f"{type(broken).__name__} .*{failure}"):
        splitting.check_activation(broken)


# -- chords ------------------------------------------------------------------------------------------------------


@everywhere
def test_chords_are_held_and_narrower_than_slopes(activation: str) -> None:
    """All chords from a point in [low, high] of at most a length; near a kink a chord is a mean of both slopes."""
    sigma = ACTIVATIONS[activation]((), torch.float64)
    generator = torch.Generator().manual_seed(0)
    centre = 2 * torch.randn(50, 6, generator=generator, dtype=torch.float64)
    width, reach = (torch.rand(50, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    width, reach = 1e-3 * width, 4 * reach
    lower, upper = sigma.chords(centre - width, centre + width, reach)
    for share in torch.linspace(-1, 1, 40, dtype=torch.float64):  # 0 is none of them
        start, step = centre + width * float(share.sin()), share * reach
        slope = (sigma(start + step) - sigma(start)) / step
        # The rounding of σ over the length of the chord.
        room = 1e-14 / step.abs()
        assert bool(((slope >= lower - room) & (slope <= upper + room)).all())
    low, high = sigma.slopes(centre - width - reach, centre + width + reach)
    assert bool((lower >= low - 1e-12).all())
    assert bool((upper <= high + 1e-12).all())


def test_chords_of_the_rectifier() -> None:
    centre = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    reach = torch.tensor([0.9, 0.9, 2.0, 2.0, math.inf], dtype=torch.float64)
    lower, upper = splitting.ReLU().chords(centre, centre, reach)
    assert lower.tolist() == pytest.approx([1, 0, 0.5, 0, 0], abs=1 / 16)
    assert upper.tolist() == pytest.approx([1, 0, 1, 0.5, 1], abs=1 / 16)
    # Where nothing changes nothing is rounded.
    assert (lower[0], upper[1]) == (1, 0)
    assert splitting.LeakyReLU(0.1).chords(-centre[:1], -centre[:1], reach[:1])[1].item() == 0.1
