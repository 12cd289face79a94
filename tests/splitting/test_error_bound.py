"""The proved distance to the solution: never exceeded, and no looser than its derivation makes it."""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import splitting
from tests.registry import ACTIVATIONS, DTYPES, SMALL_OPERATORS, monotone
from tests.splitting.problems import known, scaled_problems

DIGITS = 50


def points(problem: splitting.Inclusion, answer: Tensor) -> list[Tensor]:
    """Points near, far, half-way through a solve, and converged."""
    noise = torch.randn_like(problem.source)
    found = [answer.to(noise.dtype) + size * noise for size in (0.0, 1e-6, 1.0, 1e6)]
    for steps in (1, 5, 30):
        found.append(splitting.solve(problem, splitting.Anderson(), max_steps=steps, on_failure="return").value)
    return found


@settings(max_examples=80)
@given(problem=scaled_problems)
def test_never_exceeded(problem: splitting.Inclusion) -> None:
    """‖z − z*‖_Λ ≤ bound(z), compared with a float64 solve to 1e-12 that has its own bound added."""
    exact = problem.double()
    reference = splitting.solve(exact, splitting.Anderson(), tol=1e-12, max_steps=150, on_failure="return")
    # In float64 these problems can be bounded, however scaled: the law below is not about infinities.
    assert problem.source.dtype == torch.float32 or torch.isfinite(reference.error_bound).all()
    for z in points(problem, reference.value):
        bound = splitting.error_bound(problem, z)
        distance = exact.operator.norm(z.double() - reference.value)
        assert (distance <= bound + reference.error_bound).all()


# σ and σ′ in as many digits as wanted.
PRECISE: dict[str, tuple[Callable[[mpmath.mpf], mpmath.mpf], Callable[[mpmath.mpf], mpmath.mpf]]] = {
    "Identity": (lambda y: y, lambda y: mpmath.mpf(1)),
    "ReLU": (lambda y: max(y, mpmath.mpf(0)), lambda y: mpmath.mpf(int(y > 0))),
    "Tanh": (mpmath.tanh, lambda y: 1 - mpmath.tanh(y) ** 2),
    "Sigmoid": (lambda y: 1 / (1 + mpmath.exp(-y)), lambda y: mpmath.exp(-y) / (1 + mpmath.exp(-y)) ** 2),
    "Softplus": (lambda y: mpmath.log1p(mpmath.exp(y)), lambda y: 1 / (1 + mpmath.exp(-y))),
    "Arctan": (mpmath.atan, lambda y: 1 / (1 + y**2)),
}


def precise_solution(matrix: Tensor, source: Tensor, start: Tensor, activation: str) -> mpmath.matrix:
    """z = σ((I − A)z + c) for exactly these float64 numbers, by Newton's method in 50 digits from a point close by."""
    sigma, slope = PRECISE[activation]
    n = len(source)
    A, c, z = (mpmath.matrix(x.tolist()) for x in (matrix, source, start))
    W = mpmath.eye(n) - A
    for _ in range(8):
        y = W * z + c
        D = mpmath.diag([slope(entry) for entry in y])
        z -= mpmath.lu_solve(mpmath.eye(n) - D * W, z - y.apply(sigma))
    assert mpmath.norm(z - (W * z + c).apply(sigma)) < mpmath.mpf(10) ** -40
    return z


def newton_step(problem: splitting.Inclusion, z: Tensor) -> Tensor:
    """What a direct method leaves: a point whose residual is all rounding, and whose error is that over m."""
    W = torch.eye(z.shape[1], dtype=z.dtype) - problem.operator.tensors[0]
    y = z @ W.mT + problem.source
    jacobian = torch.eye(z.shape[1], dtype=z.dtype) - problem.prox.derivative(y)[:, :, None] * W
    return z - torch.linalg.solve(jacobian, z - problem.prox(y))


MATRICES: dict[str, Tensor] = {
    "mild": monotone(4, m=1.0),
    "small m": monotone(4, m=1e-3),
    "large skew": monotone(4, m=0.1, skew=1e3),
    "nearly singular": monotone(4, m=1e-9, skew=0.0, rank=2),
}


@pytest.mark.parametrize("activation", PRECISE)
@pytest.mark.parametrize("matrix", MATRICES)
def test_never_exceeded_by_rounding(matrix: str, activation: str) -> None:
    """Where float64 can do no better, the bound still covers the error, measured in 50 digits; and at the float64
    numbers nearest to the answer it is a few dozen roundings of a backward error of 1."""
    A, prox = splitting.DenseOperator(MATRICES[matrix]), ACTIVATIONS[activation]((4,), torch.float64)
    y = 2 * torch.randn(10, 4, dtype=torch.float64)
    start = prox(y)
    problem = splitting.Inclusion(A, y - start + A.apply(start), prox)
    with mpmath.workdps(DIGITS):
        exact = [precise_solution(A.tensors[0], c, z, activation) for c, z in zip(problem.source, start, strict=True)]
        nearest = torch.tensor([[float(entry) for entry in z] for z in exact], dtype=torch.float64)
        for z in (start, newton_step(problem, start), nearest):
            for row, answer, bound in zip(z.tolist(), exact, splitting.error_bound(problem, z).tolist(), strict=True):
                assert mpmath.norm(mpmath.matrix(row) - answer) <= bound
    scale = A.frobenius * A.norm(nearest) + A.norm(problem.source) + 1
    assert (A.strong_monotonicity * splitting.error_bound(problem, nearest) <= 1e-14 * scale).all()


def test_never_exceeded_by_cancellation() -> None:
    """With c = fl(A z) for a z that A nearly annihilates, all that is seen of the residual is 0 and all of the error is
    the rounding of large products that cancel, times 1/m."""
    matrix = monotone(4, m=1e-3, gain=1e4, skew=0.0, rank=2)
    A = splitting.DenseOperator(matrix)
    z = torch.randn(10, 2, dtype=torch.float64) @ torch.linalg.eigh(matrix).eigenvectors[:, :2].mT
    problem = splitting.Inclusion(A, A.apply(z), splitting.Identity())
    bounds = splitting.error_bound(problem, z).tolist()
    with mpmath.workdps(DIGITS):
        exact = mpmath.matrix(matrix.tolist())
        for c, row, bound in zip(problem.source.tolist(), z.tolist(), bounds, strict=True):
            error = mpmath.norm(mpmath.matrix(row) - mpmath.lu_solve(exact, mpmath.matrix(c)))
            assert error <= bound <= 1e4 * error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operator", SMALL_OPERATORS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_looser_than_its_derivation(operator: str, activation: str, dtype: torch.dtype) -> None:
    """A forward–backward step z′ from z has ‖z′ − z*‖ ≤ (1 + βL)e for the error e of z, hence ‖z − z′‖ ≤ (2 + βL)e,
    and its r is (A − I/β)(z′ − z): the bound is at most (2 + βL)(1 + (L + 1/β)/m) e, and at least e."""
    example = known(operator, activation, dtype)
    A = example.problem.operator
    beta, m, lipschitz = A.typical_step, A.strong_monotonicity, A.lipschitz
    factor = (2 + beta * lipschitz) * (1 + (lipschitz + 1 / beta) / m)
    for size in (1e-3, 1.0, 1e3):
        z = (example.answer + size * torch.randn_like(example.answer)).to(dtype)
        error, bound = example.distance(z), splitting.error_bound(example.problem, z)
        # Twice the uncertainty: about the answer, and about what rounding adds to the bound.
        rounding = (1 + factor) * example.uncertainty + 1e-12 * factor * error
        assert (error - example.uncertainty <= bound).all()
        assert (bound <= factor * error + 2 * rounding).all()


def test_exact_for_a_scalar_equation() -> None:
    """With one unknown and no activation β = 1/a, the step lands on the answer, and the bound is the distance."""
    A = splitting.DenseOperator(torch.tensor([[0.7]], dtype=torch.float64))
    source = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    z = torch.tensor([[5.0], [0.1]], dtype=torch.float64)
    bound = splitting.error_bound(splitting.Inclusion(A, source, splitting.Identity()), z)
    torch.testing.assert_close(bound, (z - source / 0.7).abs().flatten(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("size", [1e-170, 1e-150, 1e-30, 1e30, 1e150])
def test_homogeneous_in_the_size_of_the_problem(size: float) -> None:
    """Also where squares of entries leave the range of float64: the answer is c/2, the distance from 0 is ‖c‖/2."""
    A = splitting.DenseOperator(2 * torch.eye(3, dtype=torch.float64))
    source = torch.full((1, 3), size, dtype=torch.float64)
    bound = splitting.error_bound(splitting.Inclusion(A, source, splitting.ReLU()), torch.zeros_like(source))
    distance = math.sqrt(3) / 2 * size
    assert distance * (1 - 1e-15) <= float(bound) <= 2 * distance + 1e-150


@pytest.mark.parametrize("size", [1.0, 1e30])
def test_float32_problems_are_bounded_as_their_float64_twins(size: float) -> None:
    """The exact numbers count, also where norms overflow in float32."""
    matrix, source = (size * monotone(4)).float(), torch.randn(2, 4)
    problem = splitting.Inclusion(splitting.DenseOperator(matrix), source, splitting.Tanh())
    assert problem.operator.frobenius > 0  # whatever float32 makes of it
    twin = splitting.Inclusion(splitting.DenseOperator(matrix.double()), source.double(), splitting.Tanh())
    z = torch.randn(2, 4)
    bound = splitting.error_bound(problem, z)
    torch.testing.assert_close(bound, splitting.error_bound(twin, z.double()), rtol=1e-5, atol=0)
    assert torch.isfinite(bound).all()


def test_infinite_where_nothing_is_proved() -> None:
    """m ≤ 0, NaN or inf in the point or in the source: ∞, per sample, and never NaN."""
    source = torch.ones(3, 2, dtype=torch.float64)
    source[1, 0] = math.nan
    z = torch.zeros(3, 2, dtype=torch.float64)
    z[2, 1] = math.inf
    A = splitting.DenseOperator(torch.eye(2, dtype=torch.float64))
    bound = splitting.error_bound(splitting.Inclusion(A, source, splitting.Tanh()), z)
    assert math.isfinite(bound[0])
    assert bound[1:].tolist() == [math.inf, math.inf]
    skew = splitting.DenseOperator(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64))
    unproved = splitting.error_bound(
        splitting.Inclusion(skew, torch.ones(1, 2, dtype=torch.float64), splitting.Tanh()), z[:1]
    )
    assert unproved.tolist() == [math.inf]


def test_solution_carries_the_bound_of_its_value() -> None:
    problem = known("general", "Tanh").problem
    solution = splitting.solve(problem)
    assert torch.equal(solution.error_bound, splitting.error_bound(problem, solution.value))
    assert solution.error_bound.dtype == torch.float64


# -- every source of error is counted, each where it is the only one -------------------------------------------------


class _Inexact(splitting.DenseOperator):
    """mI applied with an error of 10⁻³ times the norm of z, which is what its rounding is said to be."""

    def apply(self, z: Tensor) -> Tensor:
        return super().apply(z) + self.rounding(z)[:, None] * torch.tensor([0.6, 0.8], dtype=z.dtype)

    def rounding(self, z: Tensor) -> Tensor:
        return 1e-3 * z.norm(dim=1)

    def double(self) -> splitting.DenseOperator:
        return self


def test_the_rounding_of_the_operator_is_counted() -> None:
    """What looks like the solution of A z = c is wrong by that over m."""
    m, z = 0.25, torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    A = _Inexact(m * torch.eye(2, dtype=torch.float64))
    source = A.apply(z)
    bound = float(splitting.error_bound(splitting.Inclusion(A, source, splitting.Identity()), z))
    error = float((z - source / m).norm())
    assert error == pytest.approx(5e-3 / m)
    assert error <= bound <= 1.01 * error


class _Coarse(splitting.Identity):
    """The identity, evaluated too large by 2⁻²⁰."""

    def __call__(self, y: Tensor) -> Tensor:
        return y * (1 + 2.0**-20)


def test_the_error_of_the_activation_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves z and s, and with z also A z: what looks like z = σ((1 − m)z + c) is off by the error of σ over m."""
    monkeypatch.setattr("splitting.problems.inclusion._ACTIVATION_ULPS", 2**33)
    m, size = 2.0**-10, 2.0**-20
    A = splitting.DenseOperator(torch.diag(torch.tensor([m, 1.0], dtype=torch.float64)))
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    source = z / (1 + size) - (z - A.apply(z))
    bound = float(splitting.error_bound(splitting.Inclusion(A, source, _Coarse()), z))
    error = abs(1 - float(source[0, 0]) / m)
    assert error == pytest.approx(size / m, rel=1e-3)
    assert error <= bound <= 4 * error


def test_the_rounding_of_large_terms_that_cancel_is_counted() -> None:
    """A threshold of a million leaves the residual the last ten digits of c and s; what they hide is over m as well."""
    threshold, diagonal = 1e6, torch.tensor([1.0, 0.25], dtype=torch.float64)
    problem = splitting.Inclusion(
        splitting.DenseOperator(diagonal.diag()),
        threshold + torch.rand(200, 2, dtype=torch.float64) + 0.1,
        splitting.SoftThreshold(threshold),
    )
    exact = (problem.source - threshold) / diagonal  # to the last bit
    beta, z = problem.operator.typical_step, torch.zeros_like(exact)
    for _ in range(200):
        y = problem.prox.point(z - beta * (problem.operator.apply(z) - problem.source), beta)
        z = problem.prox(y)
    error, bound = (z - exact).norm(dim=1), splitting.error_bound(problem, z)
    assert float(error.max()) > 1e-10
    assert (error <= bound).all()
    assert (bound <= 100 * 2.0**-53 * threshold / 0.25).all()
