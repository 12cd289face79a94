"""Laws of the operators: one test per law over everything enrolled, adjoints included."""

import math
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

import splitting
from splitting.operators.base import Adjoint
from splitting.operators.inverse import block_inverse, complex_inverse
from tests.registry import DTYPES, OPERATORS, SMALL_OPERATORS, monotone
from tests.splitting.problems import dense

everywhere = pytest.mark.parametrize("operator", OPERATORS)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def states(operator: splitting.Operator) -> Tensor:
    return torch.randn(4, *operator.state_shape, dtype=operator.dtype)


def root_metric(operator: splitting.Operator) -> Tensor:
    """The diagonal of Λ^½, of every entry of a flattened state, float64."""
    metric = operator.double().metric
    return (
        torch.ones((), dtype=torch.float64) if metric is None else metric.expand(operator.state_shape).flatten().sqrt()
    )


def in_metric(operator: splitting.Operator) -> Tensor:
    """Λ^½ A Λ^-½ as a float64 matrix."""
    root = root_metric(operator)
    return root.reshape(-1, 1) * dense(operator) / root


def is_dense(operator: splitting.Operator) -> bool:
    return isinstance(operator.base if isinstance(operator, Adjoint) else operator, splitting.DenseOperator)


def norm_slack(operator: splitting.Operator) -> float:
    """How many times its norm an operator's L may be: with several tiers it is bounded block by block."""
    base = operator.base if isinstance(operator, Adjoint) else operator
    return 1.0 if isinstance(base, (splitting.DenseOperator, splitting.ConvolutionOperator)) else 3.0


@everywhere
@all_dtypes
def test_apply_is_linear(operator: str, dtype: torch.dtype) -> None:
    A = OPERATORS[operator](dtype)
    x, y = states(A), states(A)
    scale = A.frobenius * float(x.norm() + y.norm())
    torch.testing.assert_close(
        A.apply(2 * x - y), 2 * A.apply(x) - A.apply(y), rtol=0, atol=20 * torch.finfo(dtype).eps * scale
    )


@everywhere
@all_dtypes
def test_adjoint(operator: str, dtype: torch.dtype) -> None:
    """⟨x, A y⟩ = ⟨Aᵀx, y⟩; (Aᵀ)ᵀ = A; m and L are the same; the metrics are reciprocal."""
    A = OPERATORS[operator](dtype)
    assert splitting.check_adjoint(A) < 100 * torch.finfo(dtype).eps * A.state_shape.numel() ** 0.5
    z = states(A)
    torch.testing.assert_close(A.adjoint.adjoint.apply(z), A.apply(z), rtol=0, atol=0)
    assert (A.adjoint.strong_monotonicity, A.adjoint.lipschitz) == (A.strong_monotonicity, A.lipschitz)
    if A.metric is None:
        assert A.adjoint.metric is None
    else:
        one = torch.ones_like(A.metric, dtype=torch.float64)
        torch.testing.assert_close(A.adjoint.metric * A.metric.double(), one, rtol=1e-15, atol=0)


@everywhere
@all_dtypes
def test_resolvent_inverts(operator: str, dtype: torch.dtype) -> None:
    """(I + αA) V = I for A and its adjoint, to rounding times the condition of I + αA."""
    A = OPERATORS[operator](dtype)
    for alpha in (0.1 * A.typical_step, A.typical_step, 10 * A.typical_step):
        condition = (1 + alpha * A.lipschitz) ** 2
        assert splitting.check_resolvent(A, alpha) < 20 * torch.finfo(dtype).eps * condition


@everywhere
@all_dtypes
def test_resolvent_adjoint_and_reflection(operator: str, dtype: torch.dtype) -> None:
    """The adjoint resolvent is Vᵀ and that of Aᵀ; reflect(v) = 2Vv − v."""
    A = OPERATORS[operator](dtype)
    alpha = A.typical_step
    V, x, y = A.resolvent(alpha), states(A), states(A)
    rounding = 20 * torch.finfo(dtype).eps * float(1 + V(x).norm() + V.adjoint(x).norm()) * float(y.norm())
    assert abs(float((x * V(y)).sum() - (V.adjoint(x) * y).sum())) < rounding
    torch.testing.assert_close(V.adjoint(x), A.adjoint.resolvent(alpha)(x), rtol=0, atol=rounding)
    torch.testing.assert_close(V.reflect(x), 2 * V(x) - x, rtol=0, atol=rounding)
    torch.testing.assert_close(V.adjoint.reflect(x), 2 * V.adjoint(x) - x, rtol=0, atol=rounding)


@everywhere
@all_dtypes
def test_resolvents_leave_their_arguments_alone(operator: str, dtype: torch.dtype) -> None:
    """And give new tensors: what is done to a result in place reaches nothing else."""
    A = OPERATORS[operator](dtype)
    v = states(A)
    copy = v.clone()
    for V in (A.resolvent(A.typical_step), A.resolvent(A.typical_step).adjoint):
        for function in (V, V.reflect):
            expected = function(v).clone()
            function(v).fill_(math.nan)
            assert torch.equal(function(v), expected)
    assert torch.equal(v, copy)


@everywhere
@all_dtypes
def test_arranged_states(operator: str, dtype: torch.dtype) -> None:
    """`arranged` changes no value, and where it has nothing to do it copies nothing."""
    A = OPERATORS[operator](dtype)
    v = states(A)
    once = A.arranged(v)
    assert torch.equal(once, v)
    assert A.arranged(once).data_ptr() == once.data_ptr()
    assert A.adjoint.arranged(once).data_ptr() == once.data_ptr()
    assert A.resolvent(A.typical_step).reflect(once).stride() == once.stride()


@everywhere
@all_dtypes
def test_norm(operator: str, dtype: torch.dtype) -> None:
    """‖z‖_Λ = ‖Λ^½ z‖ of the flattened state, however the state lies in memory, with a graph and without."""
    A = OPERATORS[operator](dtype)
    root = root_metric(A)
    z = states(A)
    expected = (root * z.double().flatten(1)).norm(dim=1).to(dtype)
    for state in (z, A.apply(z) * 0 + z, z.clone().requires_grad_()):
        torch.testing.assert_close(A.norm(state).detach(), expected, rtol=20 * torch.finfo(dtype).eps, atol=0)
    assert A.norm(z.clone().requires_grad_()).requires_grad


@everywhere
@all_dtypes
def test_strong_monotonicity_is_a_tight_lower_bound(operator: str, dtype: torch.dtype) -> None:
    """m ≤ λ_min of the symmetric part of Λ^½AΛ^-½ ≤ m + slack, and no state has a smaller Rayleigh quotient."""
    A = OPERATORS[operator](dtype)
    M = in_metric(A)
    size, n = float(torch.linalg.matrix_norm(M)), len(M)
    smallest = float(torch.linalg.eigvalsh((M + M.mT) / 2)[0])
    assert A.strong_monotonicity <= smallest + 1e-15 * n * size
    # What is known by construction may be less than what can be proved from the matrix; that is tight.
    proved = splitting.DenseOperator(dense(A), metric=None if A.metric is None else root_metric(A) ** 2)
    assert -1e-15 * n * size <= smallest - proved.strong_monotonicity <= 1e-14 * n**2 * size
    assert splitting.check_monotone(A.double()) >= A.strong_monotonicity


def test_m_beside_a_huge_skew_part_in_a_metric() -> None:
    """What scaling by Λ^½ rounds of entries that should cancel is counted: m and L against fifty digits."""
    for skew, *metric in torch.rand(40, 3, dtype=torch.float64) + 0.1:
        matrix = torch.eye(2, dtype=torch.float64)
        matrix[0, 1], matrix[1, 0] = 1e10 * skew / metric[0], -1e10 * skew / metric[1]
        A = splitting.DenseOperator(matrix, metric=torch.stack(metric))
        with mpmath.workdps(50):
            root = mpmath.diag([mpmath.sqrt(float(x)) for x in metric])
            scaled = root * mpmath.matrix(matrix.tolist()) * root**-1
            smallest = min(mpmath.eigsy((scaled + scaled.T) / 2, eigvals_only=True))
            norm = mpmath.sqrt(max(mpmath.eigsy(scaled.T * scaled, eigvals_only=True)))
            assert A.strong_monotonicity <= smallest <= A.strong_monotonicity + 1e-14 * norm
            assert norm <= A.lipschitz <= norm * (1 + 1e-13)


@everywhere
@all_dtypes
def test_lipschitz_is_a_tight_upper_bound(operator: str, dtype: torch.dtype) -> None:
    """‖Λ^½AΛ^-½‖₂ ≤ L ≤ (1 + slack)‖Λ^½AΛ^-½‖₂, and what is cheaper than L is no less than the norm either."""
    A = OPERATORS[operator](dtype)
    norms = torch.linalg.svdvals(in_metric(A))
    norm, size = float(norms[0]), float(norms.norm())
    slack, rounding = norm_slack(A), 10 * torch.finfo(dtype).eps
    assert norm * (1 - 1e-14) <= A.lipschitz <= slack * norm * (1 + 1e-9)
    assert size * (1 - rounding) <= A.frobenius <= slack * size * (1 + rounding)
    assert norm * (1 - rounding) <= A.norm_bound
    # The reciprocal of the root-mean-square singular value, or less.
    assert A.typical_step == pytest.approx(len(norms) ** 0.5 / A.frobenius, rel=rounding)


@everywhere
@all_dtypes
def test_cheap_bounds_are_near_what_they_bound(operator: str, dtype: torch.dtype) -> None:
    """‖A − shift·I‖_Λ from above: for a matrix with the Frobenius norm for its norm, for a kernel to half as
    much again, for several tiers to three times; so is ‖A‖_Λ by `norm_bound`. Residuals are in these units."""
    A = OPERATORS[operator](dtype)
    M = in_metric(A)
    norm, size = float(torch.linalg.matrix_norm(M, 2)), float(torch.linalg.matrix_norm(M))
    slack = max(1.5, norm_slack(A))
    assert A.norm_bound <= (size if is_dense(A) else slack * norm) * (1 + 1e-5)
    for shift in (0.3 / A.typical_step, 1 / A.typical_step, 3 / A.typical_step):
        exact = float(torch.linalg.matrix_norm(M - shift * torch.eye(len(M), dtype=M.dtype), 2))
        rounding = 100 * torch.finfo(dtype).eps * (norm + shift)
        largest = size + shift if is_dense(A) else slack * exact
        assert exact - rounding <= A.distance_bound(shift) <= largest + rounding


@pytest.fixture
def product_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision(before)


@everywhere
@all_dtypes
@pytest.mark.usefixtures("product_precision")
@pytest.mark.parametrize("product_precision", ["highest", "medium"], indirect=True)
def test_rounding_bounds_the_error_of_apply(operator: str, dtype: torch.dtype) -> None:
    """‖fl(A z) − A z‖_Λ against a product in extended precision, at both settings of float32 products."""
    A = OPERATORS[operator](dtype)
    z = torch.cat([1e-8 * states(A), states(A), 1e8 * states(A)])
    matrix, wide = (x.numpy().astype(np.longdouble) for x in (dense(A), z.flatten(1).double()))
    difference = A.apply(z).flatten(1).double().numpy() - wide @ matrix.T
    root = root_metric(A).numpy()
    error = np.linalg.norm((root * difference).astype(float), axis=1)
    bound = A.rounding(z)
    assert (error <= bound.numpy()).all()
    if torch.get_float32_matmul_precision() == "highest":
        # No looser than sums of n products are, for a matrix, and for transforms than their many bounds in a row.
        terms = 1.01 * (len(matrix) + 2) if is_dense(A) else 1e6 * norm_slack(A)
        exact = A.double()
        assert (bound <= terms * torch.finfo(dtype).eps / 2 * exact.frobenius * exact.norm(z.double())).all()


def test_rounding_knows_the_precision_of_products() -> None:
    """Products of float32 with fewer bits have larger errors; float64 is not touched by that setting."""
    single, double = (OPERATORS["general"](dtype) for dtype in DTYPES)
    z = states(double)
    fine = single.rounding(z.float()), double.rounding(z)
    torch.set_float32_matmul_precision("medium")
    try:
        coarse = single.rounding(z.float()), double.rounding(z)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (coarse[0] > 1000 * fine[0]).all()
    assert torch.equal(coarse[1], fine[1])
    # Not absurdly loose: at most n + 2 roundings of ‖A‖_F ‖z‖, with a little room.
    n, size = 6, double.frobenius * double.norm(z)
    assert (fine[1] <= 1.01 * (n + 2) * 2.0**-53 * size).all()


@everywhere
@all_dtypes
def test_pairing_gradient_is_that_of_autograd(operator: str, dtype: torch.dtype) -> None:
    """∂⟨q, A z⟩/∂t for every tensor t of A."""
    A = OPERATORS[operator](dtype)
    leaves = [t.clone().requires_grad_() for t in A.tensors]
    q, z = states(A), states(A)
    expected = torch.autograd.grad((q * A.rebind(*leaves).apply(z)).sum(), leaves)
    rounding = 100 * torch.finfo(dtype).eps * float(q.norm() * z.norm())
    for gradient, reference in zip(A.pairing_gradient(q, z), expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=0, atol=rounding)


@everywhere
@all_dtypes
def test_double_has_the_same_numbers(operator: str, dtype: torch.dtype) -> None:
    """Exactly the same entries and metric in float64, hence the same m and L.

    An operator without a matrix has exactly the same kernels: what it computes from them differs by its rounding.
    """
    A = OPERATORS[operator](dtype)
    exact = A.double()
    assert exact.dtype == torch.float64
    basis = torch.eye(A.state_shape.numel(), dtype=dtype).reshape(-1, *A.state_shape)
    difference = A.apply(basis).double() - exact.apply(basis.double())
    if is_dense(A):
        assert (difference == 0).all()
    else:
        assert (exact.norm(difference) <= A.rounding(basis) + exact.rounding(basis.double())).all()
        assert all(torch.equal(t.double(), twin) for t, twin in zip(A.tensors, exact.tensors, strict=True))
    assert exact.strong_monotonicity == pytest.approx(A.strong_monotonicity, rel=1e-9)
    assert exact.lipschitz == pytest.approx(A.lipschitz, rel=1e-9)
    z = states(A)
    torch.testing.assert_close(exact.norm(z.double()), A.norm(z).double(), rtol=10 * torch.finfo(dtype).eps, atol=0)


@everywhere
def test_rebind_shares_and_replace_does_not(operator: str) -> None:
    """rebind: other handles of the same values, gradients flow to them. replace: other values, nothing shared."""
    A = OPERATORS[operator](torch.float64)
    alpha, z = A.typical_step, states(A)
    V, m = A.resolvent(alpha)(z), A.strong_monotonicity
    handles = [t.clone().requires_grad_() for t in A.tensors]
    rebound = A.rebind(*handles)
    assert all(mine is handle for mine, handle in zip(rebound.tensors, handles, strict=True))
    assert rebound.apply(z).requires_grad
    assert torch.equal(rebound.resolvent(alpha)(z), V)
    other = A.replace(*(1.5 * t for t in A.tensors))
    assert splitting.check_resolvent(other, alpha) < 1e-9
    assert not torch.allclose(other.apply(z), A.apply(z))
    assert other.strong_monotonicity != m
    assert torch.equal(A.resolvent(alpha)(z), V)


def test_resolvent_is_computed_once() -> None:
    """For every handle of the same values and for the adjoint, too."""
    A = OPERATORS["general"](torch.float64)
    V = A.resolvent(0.1)
    assert A.resolvent(0.1) is V
    assert A.rebind(*A.tensors).resolvent(0.1) is V
    assert A.adjoint.adjoint.resolvent(0.1) is V


def test_the_metric_of_the_zoo_is_needed() -> None:
    """Without its metric that operator is not monotone, so that its laws would fail in the Euclidean norm."""
    A = SMALL_OPERATORS["metric"](torch.float64)
    assert A.strong_monotonicity > 0.49
    assert splitting.DenseOperator(A.tensors[0]).strong_monotonicity < -1


def test_known_monotonicity_is_taken_over() -> None:
    """A bound known by construction replaces the eigenvalue problem, in the adjoint and in float64 as well."""
    A = splitting.DenseOperator(monotone(4).float(), strong_monotonicity=0.25)
    assert A.strong_monotonicity == A.adjoint.strong_monotonicity == A.double().strong_monotonicity == 0.25


@pytest.mark.parametrize("n", [1, 128, 129, 257, 301])
def test_block_inverse(n: int) -> None:
    """The recursive inverse equals LAPACK's, below and above the order where it recurses, odd orders included."""
    matrix = torch.eye(n, dtype=torch.float64) + monotone(n, m=0.0, skew=3.0)
    torch.testing.assert_close(block_inverse(matrix), torch.linalg.inv(matrix), rtol=0, atol=1e-12)


@all_dtypes
@pytest.mark.parametrize("n", [1, 7, 33, 150, 177, 210])
def test_inverses_of_a_stack(n: int, dtype: torch.dtype) -> None:
    """With two threads, at orders where some batched factorisations are silently wrong, every matrix is inverted."""
    torch.set_num_threads(2)
    F, G = (torch.randn(3, n, n, dtype=torch.complex128) / n**0.5 for _ in range(2))
    exact = torch.eye(n) + F.mH @ F + G - G.mH
    symbol = torch.cat([exact.real, exact.imag], 1).to(dtype)
    real, imaginary = complex_inverse(symbol).double().chunk(2, 1)
    for matrices, inverses in ((exact, torch.complex(real, imaginary)), (exact.real, block_inverse(symbol[:, :n]))):
        defect = matrices @ inverses.to(matrices.dtype) - torch.eye(n)
        # The norm of M is its condition, at most: that of its inverse is below 1.
        assert (defect.norm(dim=(1, 2)) <= 20 * torch.finfo(dtype).eps * matrices.norm(dim=(1, 2))).all()


@pytest.mark.parametrize(("count", "n"), [(1, 3), (700, 40), (2000, 33)])
def test_a_long_stack_is_inverted_chunk_by_chunk(count: int, n: int) -> None:
    """Every matrix of a stack, whatever its place in it, has the inverse it has alone."""
    skew = torch.randn(count, 2 * n, n, dtype=torch.float64) / (4 * n**0.5)
    symbol = skew + torch.eye(2 * n, n, dtype=torch.float64) * 2
    inverse = complex_inverse(symbol)
    for i in (0, count // 2, count - 1):
        torch.testing.assert_close(inverse[i], complex_inverse(symbol[i : i + 1])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("entry", [math.nan, math.inf, -1.0], ids=["NaN", "inf", "singular"])
def test_an_inverse_that_does_not_invert_is_refused(entry: float) -> None:
    """I + αA without an inverse raises, with the likely causes; it never returns numbers."""
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 0] = entry
    with pytest.raises(splitting.ResolventError, match="not finite, not monotone, or too ill conditioned"):
        splitting.DenseOperator(matrix).resolvent(1.0)


class _WrongAdjoint(splitting.DenseOperator):
    @property
    def adjoint(self) -> splitting.DenseOperator:
        return splitting.DenseOperator(self.matrix)


class _WrongResolvent(splitting.DenseOperator):
    def resolvent(self, alpha: float) -> splitting.Resolvent:
        return super().resolvent(1.1 * alpha)


class _WrongOnce(splitting.DenseOperator):
    """Its adjoint acts wrongly on the first sample of a batch only."""

    @property
    def adjoint(self) -> splitting.DenseOperator:
        twin = splitting.DenseOperator(self.matrix.mT)
        twin.apply = lambda z: torch.cat([2 * z[:1], z[1:]]) @ self.matrix  # type: ignore[method-assign]
        return twin


class _WrongAdjointResolvent(splitting.DenseOperator):
    @property
    def adjoint(self) -> splitting.DenseOperator:
        return _WrongResolvent(self.matrix.mT)


def test_public_checks_notice_a_broken_operator() -> None:
    """The defects are of order one, not of the order of rounding, where the law does not hold: for every sample, and
    for the adjoint too. What is found is no more than what is wrong."""
    matrix = monotone(6)
    assert 1e-2 < splitting.check_adjoint(_WrongAdjoint(matrix)) < 2
    assert 1e-2 < splitting.check_adjoint(_WrongOnce(matrix)) < 1
    assert 1e-2 < splitting.check_resolvent(_WrongResolvent(matrix), 0.3) < 0.1
    assert 1e-2 < splitting.check_resolvent(_WrongAdjointResolvent(matrix), 0.3) < 0.1
    assert splitting.check_monotone(splitting.DenseOperator(-matrix)) < 0


def test_check_monotone_is_the_smallest_quotient_in_the_metric() -> None:
    """Of a multiple of I it is that number; one sample that is worse than the others decides."""
    identity, metric = torch.eye(3, dtype=torch.float64), torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64)
    assert splitting.check_monotone(splitting.DenseOperator(0.7 * identity)) == pytest.approx(0.7)
    assert splitting.check_monotone(splitting.DenseOperator(0.7 * identity, metric=metric)) == pytest.approx(0.7)
    uneven = torch.diag(torch.tensor([1.0, 2.0, 100.0], dtype=torch.float64))
    assert 1 <= splitting.check_monotone(splitting.DenseOperator(uneven), batch=1000) < 3
