"""Numbers of every size: a solve is judged by its sample's own scale, and proofs hold at both ends of the range."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import splitting
from splitting import verified
from tests.registry import ACTIVATIONS, monotone

SKEWED = torch.tensor([[2.0, -3.0], [3.0, 1.0]], dtype=torch.float64)


def linear(c: Tensor, A: Tensor = SKEWED, **options: object) -> splitting.Solution:
    problem = splitting.Inclusion(splitting.DenseOperator(A.to(c.dtype)), c, splitting.Identity())
    return splitting.solve(problem, on_failure="return", **options)  # type: ignore[arg-type]


def relative_error(solution: splitting.Solution, exact: Tensor) -> Tensor:
    """In the units of the exact solution, so that nothing overflows or vanishes here either."""
    size = exact.abs().amax(1, keepdim=True)
    return ((solution.value.double() - exact) / size).norm(dim=1) / (exact / size).norm(dim=1)


@pytest.mark.parametrize("exponent", [-44, -40, -37, -30, -24, -20, -10, 0, 10, 20, 30, 37])
def test_float32_sources_of_every_size(exponent: int) -> None:
    """Converged means: as accurate as with ordinary numbers. Where numbers have no digits left, it says so."""
    c = torch.tensor([[1.0, 2.0]], dtype=torch.float64).mul(10.0**exponent).float()
    solution = linear(c)
    error = relative_error(solution, torch.linalg.solve(SKEWED, c.double().mT).mT)
    assert solution.converged.all() == (exponent > -39)
    if exponent > -39:
        assert float(error) < 3e-6
    else:
        assert "near the smallest numbers of torch.float32" in solution.status.text
    assert float(solution.residual) > float(error) / 10  # which never claims digits that are not there


@settings(max_examples=60)
@given(st.integers(-996, 996), st.integers(-900, 900))
def test_scaling_by_powers_of_two_changes_nothing(source: int, weight: int) -> None:
    """For the linear problem, z(A·2ᵏ, c·2ˡ) = z(A, c)·2ˡ⁻ᵏ, to the bit wherever that is a normal number."""
    if not -990 < source - weight < 990:
        return
    c = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    ordinary, scaled = linear(c), linear(_times_power(c, source), _times_power(SKEWED, weight))
    assert scaled.converged.all()
    torch.testing.assert_close(_times_power(scaled.value, weight - source), ordinary.value, rtol=1e-6, atol=0)
    bound = float(_times_power(scaled.error_bound, weight - source))
    exact = torch.linalg.solve(SKEWED, c.mT).mT
    assert float((_times_power(scaled.value, weight - source) - exact).norm()) <= bound


def _times_power(x: Tensor, exponent: int) -> Tensor:
    half = exponent // 2
    return x * 2.0**half * 2.0 ** (exponent - half)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_small_sources_are_solved_whatever_the_activation(activation: str) -> None:
    """Also where σ(0) ≠ 0, next to which the source is nothing."""
    c = torch.tensor([[1e-24, 2e-24, -1e-24], [1.0, -2.0, 3.0]])
    A = splitting.DenseOperator(monotone(3).float())
    sigma = ACTIVATIONS[activation]((3,), torch.float32)
    solution = splitting.solve(splitting.Inclusion(A, c, sigma), tol=1e-5)
    wide = splitting.Inclusion(A.double(), c.double(), sigma.rebind(*(t.double() for t in sigma.tensors)))
    # To be told apart from 0 the reference is computed in units of 1e-24 where σ allows that.
    exact = splitting.solve(wide, splitting.Anderson(), tol=1e-13, max_steps=5000).value
    error = (solution.value.double() - exact).norm(dim=1)
    assert (error <= 1e-4 * exact.norm(dim=1)).all()


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_homogeneous_activations_are(activation: str) -> None:
    sigma = ACTIVATIONS[activation]((5,), torch.float64)
    y = torch.tensor([[-3.0, -0.2, 0.0, 0.4, 2.0]], dtype=torch.float64)
    factor = torch.tensor([[8.0], [0.25]], dtype=torch.float64)
    scaled = sigma.scaled(factor)
    # Of the same shape: vectorised code and what is left over at its end may round otherwise.
    torch.testing.assert_close(scaled(factor * y), factor * sigma(y.repeat(2, 1)), rtol=0, atol=0)
    for alpha in (0.3, 1.0, 4.0):
        torch.testing.assert_close(scaled.proximal(y * factor, alpha), factor * sigma.proximal(y, alpha))
    assert (scaled is sigma) == sigma.homogeneous


def test_a_small_sample_neither_notices_its_batch_mates_nor_they_it() -> None:
    A = splitting.DenseOperator(monotone(6).float())
    c = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [1e-25], [0.0], [1e20]])
    together = splitting.solve(splitting.Inclusion(A, c, splitting.ReLU()), tol=1e-5)
    for i in range(4):
        alone = splitting.solve(splitting.Inclusion(A, c[i : i + 1], splitting.ReLU()), tol=1e-5)
        torch.testing.assert_close(together.value[i], alone.value[0], rtol=1e-5, atol=0)
        assert together.steps[i] == alone.steps[0]
    assert (together.value[2] == 0).all()


def test_small_gradients_are_those_of_large_ones_scaled() -> None:
    matrix = monotone(6).float().requires_grad_()
    c = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    z = splitting.equilibrium(splitting.Inclusion(splitting.DenseOperator(matrix), c, splitting.Tanh()), tol=1e-6)
    g = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    large = torch.autograd.grad(z, (c, matrix), g, retain_graph=True)
    small = torch.autograd.grad(z, (c, matrix), g * 2.0**-90)
    for one, other in zip(large, small, strict=True):
        torch.testing.assert_close(other * 2.0**90, one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize("step", [1e-12, 1e-6, 1e4, 1e6, 1e20])
@pytest.mark.parametrize("method", ["PeacemanRachford", "DouglasRachford", "ForwardBackward", "ForwardBackwardForward"])
def test_steps_that_rounding_swallows_do_not_look_like_convergence(method: str, step: float) -> None:
    c = torch.tensor([[1.0, 2.0]])
    solver = getattr(splitting, method)(step)
    try:
        solution = linear(c, solver=solver, max_steps=50)
    except splitting.InvalidArgument:
        return  # outside the theorem
    error = relative_error(solution, torch.linalg.solve(SKEWED, c.double().mT).mT)
    assert float(error) < 1e-3 or not solution.converged.any()


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("exponent", [-1000, -540, -300, 0, 300, 540, 1000, 1021])
def test_proofs_at_every_scale(exponent: int, flush: bool) -> None:
    """A power of two scales spectral norms and eigenvalues exactly, and the bounds to their last few digits."""
    matrix = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = matrix @ matrix.mT / 8
    true = float(torch.linalg.matrix_norm(matrix, 2)), float(torch.linalg.eigvalsh((gram + gram.mT) / 2)[0])
    torch.set_flush_denormal(flush)
    try:
        norm = verified.spectral_norm(_times_power(matrix, exponent))
        least = verified.smallest_eigenvalue(_times_power((gram + gram.mT) / 2, exponent))
    finally:
        torch.set_flush_denormal(False)
    norm, least = (verified.times_power(value, -exponent) for value in (norm, least))
    room = 4 * verified.times_power(verified.UNDERFLOW, -exponent)
    assert true[0] <= norm * (1 + 1e-14) <= true[0] * (1 + 1e-9) + room
    assert true[1] * (1 - 1e-9) - room <= least <= true[1] * (1 + 1e-13)


@pytest.mark.parametrize("flush", [False, True])
def test_proofs_about_zero_and_about_the_largest_numbers_end(flush: bool) -> None:
    zero, huge = torch.zeros(3, 3, dtype=torch.float64), torch.full((3, 3), 1.7e308, dtype=torch.float64)
    torch.set_flush_denormal(flush)
    try:
        assert verified.spectral_norm(zero) == 0
        assert verified.smallest_eigenvalue(zero) == 0
        assert verified.smallest_eigenvalue(zero, perturbation=0.5) == -0.5
        assert verified.spectral_norm(huge) == math.inf
        assert verified.smallest_eigenvalue(-huge) == -math.inf
    finally:
        torch.set_flush_denormal(False)


def test_what_vanishes_in_an_assembled_matrix_is_counted() -> None:
    """Products below the normal numbers may be 0 or not: a bound on their rounding is not relative to them."""
    A = splitting.DenseOperator(1e-160 * torch.eye(2, dtype=torch.float64))
    z = torch.full((1, 2), 1e-160, dtype=torch.float64)  # A z = 1e-320 has four digits
    assert float(A.rounding(z)) >= 1e-323


@pytest.mark.parametrize("exponent", [-140, -70, 0, 70])
def test_the_error_bound_holds_at_every_scale(exponent: int) -> None:
    """In float32 on a metric; the reference is the scaled problem in float64."""
    metric = torch.logspace(-1, 1, 6)
    A = splitting.DenseOperator(monotone(6).float() / metric[:, None] + torch.eye(6), metric=metric)
    c = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    scaled = c * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
    solution = splitting.solve(splitting.Inclusion(A, scaled, splitting.ReLU()), tol=1e-4, on_failure="return")
    wide = A.double()
    exact = splitting.solve(splitting.Inclusion(wide, scaled.double(), splitting.ReLU()), tol=1e-13, max_steps=2000)
    distance = wide.norm(solution.value.double() - exact.value)
    assert (distance <= solution.error_bound + exact.error_bound).all()
    assert (solution.error_bound <= 1e-2 * wide.norm(exact.value) + 1e-300).all() or exponent == -140


@pytest.mark.parametrize("solver", [splitting.PeacemanRachford(), splitting.Anderson()], ids=["plain", "Anderson"])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("size", [1e-80, 1e-44, 1e-37, 1.0, 1e37, 1e80])
def test_the_scale_of_a_metric_does_not_matter(size: float, adjoint: bool, solver: splitting.Solver) -> None:
    metric = torch.tensor([size, 1.7 * size], dtype=torch.float64)
    A = splitting.DenseOperator(SKEWED.float(), metric=metric)
    matrix = SKEWED.mT if adjoint else SKEWED
    for factor in (1.0, 1e6, 1e-20):
        c = torch.tensor([[1.0, 2.0]]) * factor
        problem = splitting.Inclusion(A.adjoint if adjoint else A, c, splitting.Identity())
        solution = splitting.solve(problem, solver)
        assert float(relative_error(solution, torch.linalg.solve(matrix, c.double().mT).mT)) < 1e-5


@pytest.mark.parametrize("solver", [splitting.PeacemanRachford(), splitting.Anderson()], ids=["plain", "Anderson"])
@pytest.mark.parametrize("exponent", [-36, -30, 30, 35, 37])
def test_operators_near_the_ends_of_float32(exponent: int, solver: splitting.Solver) -> None:
    matrix = (SKEWED * 10.0**exponent).float()
    for size in (1.0, 10.0**exponent):
        c = torch.tensor([[1.0, 2.0]]) * size
        exact = torch.linalg.solve(matrix.double(), c.double().mT).mT
        solution = linear(c, matrix, solver=solver)
        assert not solution.converged.all() or float(relative_error(solution, exact)) < 1e-5
        assert solution.converged.all() or float(exact.abs().max()) > 1e38 or abs(exponent) > 36
