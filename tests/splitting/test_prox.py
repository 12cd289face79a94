"""Laws of the activations: each σ is the proximal operator it claims to be, for every α."""

import math

import pytest
import torch
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


@everywhere
@all_dtypes
def test_prox_is_the_activation_at_the_point(activation: str, dtype: torch.dtype) -> None:
    """prox_{αf}(v) = σ(y), hence (v − z)/α = y − z is one and the same subgradient; and prox_f = σ."""
    sigma, _ = pair(activation, dtype)
    v = points().to(dtype)
    for alpha in ALPHAS:
        y, z = sigma.point(v, alpha), sigma.prox(v, alpha)
        rounding = 4 * torch.finfo(dtype).eps * (1 + y.abs() + z.abs())
        assert ((z - sigma(y)).abs() <= rounding).all(), alpha
        assert ((v - z - alpha * (y - z)).abs() <= max(alpha, 1) * rounding).all(), alpha
    torch.testing.assert_close(sigma.prox(v, 1.0), sigma(v), rtol=0, atol=0)


@everywhere
def test_prox_is_firmly_nonexpansive(activation: str) -> None:
    """(p − q)(v − w) ≥ (p − q)² entry by entry, for pairs far apart and close together."""
    sigma, _ = pair(activation, torch.float64)
    v, direction = points(), points()
    for w in (direction, v + 1e-3 * direction):
        for alpha in ALPHAS:
            p, q = sigma.prox(v, alpha), sigma.prox(w, alpha)
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


@everywhere
@all_dtypes
def test_prox_into_given_memory(activation: str, dtype: torch.dtype) -> None:
    """The same bits, written where they were asked for, and v is left alone."""
    sigma, _ = pair(activation, dtype)
    v = points().to(dtype)
    before = v.clone()
    for alpha in ALPHAS:
        expected, out = sigma.prox(v, alpha), torch.full_like(v, math.nan)
        assert sigma.prox(v, alpha, out) is out
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
        z = scale.prox(v, alpha)
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
        torch.testing.assert_close(activation.prox(v, alpha), v.clamp(low, high), rtol=1e-12, atol=1e-12)


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
        (_WrongPoint(), "prox equation"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, splitting.Activation) else "",
)
def test_the_public_check_refuses(broken: splitting.Activation, failure: str) -> None:
    with pytest.raises(splitting.InvalidArgument, match=f"{type(broken).__name__} .*{failure}"):
        splitting.check_activation(broken)
