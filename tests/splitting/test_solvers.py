"""Every solver finds the same, right answer, at the rate its theorem states."""

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import osqp
import pytest
import scipy.optimize
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import splitting
from splitting.solvers import Iteration, Solver, State
from tests.registry import ACTIVATIONS, DTYPES, OPERATORS, SMALL_OPERATORS, SOLVERS, monotone
from tests.splitting.problems import Known, dense, known, log_uniform, scaled_problems

each_operator = pytest.mark.parametrize("operator", SMALL_OPERATORS)
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_solver = pytest.mark.parametrize("solver", SOLVERS)
# All pairs in double precision; in single precision a third of them, with every operator and every activation.
CASES = [
    (operator, activation, dtype)
    for i, operator in enumerate(SMALL_OPERATORS)
    for j, activation in enumerate(ACTIVATIONS)
    for dtype in DTYPES
    if dtype == torch.float64 or (i + j) % 3 == 0
]


def attempt(problem: splitting.Inclusion, solver: Solver, **options: object) -> splitting.Solution:
    return splitting.solve(problem, solver, **({"tol": 1e-10, "max_steps": 60, "on_failure": "return"} | options))


@functools.cache
def tried(operator: str, activation: str, dtype: torch.dtype) -> tuple[Known, list[splitting.Solution]]:
    """A problem, and what every solver has after a few steps, converged or not."""
    torch.manual_seed(0)
    example = known(operator, activation, dtype)
    return example, [attempt(example.problem, solver, max_steps=7) for solver in SOLVERS.values()]


# -- all agree ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operator", "activation", "dtype"), CASES)
def test_all_solvers_find_the_known_answer(operator: str, activation: str, dtype: torch.dtype) -> None:
    """Converged or not, every solver is within its error bound of one and the same point, the equilibrium."""
    example, solutions = tried(operator, activation, dtype)
    for solution in solutions:
        allowed = solution.error_bound + example.uncertainty
        assert torch.isfinite(allowed).all()
        assert (example.distance(solution.value) <= allowed).all()


@each_operator
@each_activation
def test_residual_bounds_the_backward_error(operator: str, activation: str) -> None:
    """ρ·(‖A‖_F‖z‖ + ‖c‖) is at least ‖r‖ for an r ∈ Az − c + ∂f(z); hence at least m‖z − z*‖, and at least 1/β times
    the length of a forward–backward step from z, for every β. All up to rounding."""
    example, solutions = tried(operator, activation, torch.float64)
    A, c, prox = example.problem.operator, example.problem.source, example.problem.prox
    for solution in solutions:
        z = solution.value
        scale = A.frobenius * A.norm(z) + A.norm(c)
        r = (solution.residual + 1e-9) * scale
        assert (A.strong_monotonicity * (example.distance(z) - example.uncertainty) <= r).all()
        for beta in (1e-2 * A.typical_step, A.typical_step):
            assert (A.norm(z - prox.proximal(z - beta * (A.apply(z) - c), beta)) <= beta * r).all()


@each_solver
@each_activation
def test_every_solver_converges(solver: str, activation: str) -> None:
    """To the tolerance, and that is to the answer: ‖z − z*‖ ≤ tol·(‖A‖_F‖z‖ + ‖c‖)/m."""
    example = known("general", activation)
    problem = example.problem
    A = problem.operator
    solution = attempt(problem, SOLVERS[solver], tol=1e-8, max_steps=1000)
    assert solution.status.ok
    scale = A.frobenius * A.norm(solution.value) + A.norm(problem.source)
    assert (A.strong_monotonicity * example.distance(solution.value) <= 1.001e-8 * scale).all()


@st.composite
def valid_solvers(draw: st.DrawFn, operator: splitting.Operator) -> Solver:
    """Any method with any step inside its theorem, accelerated or not."""
    kinds = [splitting.PeacemanRachford, splitting.DouglasRachford]
    if operator.strong_monotonicity > 0:
        kinds += [splitting.ForwardBackward, splitting.ForwardBackwardForward]
    kind = draw(st.sampled_from(kinds))
    low, high = kind().admissible(operator)
    free = log_uniform(0.1 / operator.lipschitz, 10 / operator.lipschitz)
    share = st.floats(0.05, 0.95)
    method = kind(draw(free if high == math.inf else share.map(lambda t: low + t * (high - low))))
    return draw(st.one_of(st.just(method), st.builds(splitting.Anderson, st.just(method), st.integers(1, 6))))


@settings(max_examples=60)
@given(data=st.data(), problem=scaled_problems)
def test_uniqueness(data: st.DataObject, problem: splitting.Inclusion) -> None:
    """Two starts anywhere, two solvers, two valid steps: one answer, within the sum of the bounds."""
    guesses = 10 * torch.randn(2, *problem.source.shape).to(problem.source.dtype)
    solvers = (data.draw(valid_solvers(problem.operator)) for _ in guesses)
    first, second = (attempt(problem, s, initial=z, max_steps=25) for s, z in zip(solvers, guesses, strict=True))
    apart = problem.operator.double().norm(first.value.double() - second.value.double())
    assert (apart <= first.error_bound + second.error_bound).all()


# -- known answers -----------------------------------------------------------------------------------------------


@each_operator
def test_identity_activation_is_a_linear_system(operator: str) -> None:
    problem = known(operator, "Identity").problem
    A = problem.operator
    exact = torch.linalg.solve(dense(A), problem.source.flatten(1).mT).mT.reshape(problem.source.shape)
    step = 1 / math.sqrt(A.strong_monotonicity * A.lipschitz)
    tol = 1e-10
    solver = splitting.Anderson(splitting.DouglasRachford(step), memory=8)
    solution = attempt(problem, solver, tol=tol, max_steps=500)
    assert solution.status.ok
    assert (A.norm(solution.value - exact) <= solution.error_bound).all()
    # The residual is at most tol (‖A‖‖z‖ + ‖c‖) and the error 1/m of it.
    assert (solution.error_bound <= 4 * tol * A.norm_bound / A.strong_monotonicity * A.norm(exact)).all()


A_SCALAR = 0.7
SCALAR: dict[str, tuple[splitting.Activation, Callable[[float], float]]] = {
    "Identity": (splitting.Identity(), lambda c: c / A_SCALAR),
    "ReLU": (splitting.ReLU(), lambda c: max(c, 0) / A_SCALAR),
    # Below zero s = (1/slope − 1) z.
    "LeakyReLU": (splitting.LeakyReLU(0.1), lambda c: c / A_SCALAR if c > 0 else c / (A_SCALAR + 9)),
    "SoftThreshold": (splitting.SoftThreshold(0.3), lambda c: math.copysign(max(abs(c) - 0.3, 0), c) / A_SCALAR),
    "Box": (splitting.Box(-0.5, 0.25), lambda c: min(max(c / A_SCALAR, -0.5), 0.25)),
    "Scale": (splitting.Scale(torch.tensor([0.25], dtype=torch.float64)), lambda c: c / (A_SCALAR + 3)),
}


@each_solver
@pytest.mark.parametrize("activation", SCALAR)
def test_scalar_closed_forms(solver: str, activation: str) -> None:
    """a z − c + ∂f(z) ∋ 0 solved by hand."""
    sigma, formula = SCALAR[activation]
    source = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    A = splitting.DenseOperator(torch.tensor([[A_SCALAR]], dtype=torch.float64))
    solution = attempt(splitting.Inclusion(A, source, sigma), SOLVERS[solver], tol=1e-13, max_steps=500)
    expected = torch.tensor([[formula(c)] for c in source.flatten().tolist()], dtype=torch.float64)
    torch.testing.assert_close(solution.value, expected, rtol=1e-11, atol=1e-11)


@each_activation
def test_scalar_root_finding(activation: str) -> None:
    """z = σ((1 − a) z + c) by bisection: the definition of the equilibrium, with no operator splitting in it."""
    sigma = ACTIVATIONS[activation]((1,), torch.float64)

    def excess(z: float, c: float) -> float:
        return z - float(sigma(torch.tensor([(1 - A_SCALAR) * z + c], dtype=torch.float64)))

    source = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    A = splitting.DenseOperator(torch.tensor([[A_SCALAR]], dtype=torch.float64))
    solution = attempt(splitting.Inclusion(A, source, sigma), splitting.PeacemanRachford(0.5), tol=1e-13, max_steps=500)
    for c, z in zip(source.flatten().tolist(), solution.value.flatten().tolist(), strict=True):
        assert z == pytest.approx(scipy.optimize.brentq(excess, -50, 50, args=(c,), xtol=1e-14), abs=1e-11)


@each_solver
@pytest.mark.parametrize("bounds", [(0.0, math.inf), (-0.5, 0.25)], ids=["ReLU", "Box"])
def test_symmetric_projection_is_a_quadratic_programme(solver: str, bounds: tuple[float, float]) -> None:
    """min ½zᵀAz − cᵀz over low ≤ z ≤ high, by an independent convex solver."""
    low, high = bounds
    matrix, source = monotone(8, skew=0.0), 3 * torch.randn(4, 8, dtype=torch.float64)
    prox = splitting.ReLU() if high == math.inf else splitting.Box(low, high)
    problem = splitting.Inclusion(splitting.DenseOperator(matrix), source, prox)
    solution = attempt(problem, SOLVERS[solver], max_steps=2000)
    assert solution.status.ok
    quadratic, identity = scipy.sparse.csc_matrix(matrix.numpy()), scipy.sparse.eye(8, format="csc")
    for c, z in zip(source.numpy(), solution.value.numpy(), strict=True):
        programme = osqp.OSQP()
        limits = np.full(8, low), np.full(8, high)
        programme.setup(quadratic, -c, identity, *limits, verbose=False, eps_abs=1e-10, eps_rel=1e-10, max_iter=10**5)
        np.testing.assert_allclose(z, programme.solve(raise_error=True).x, rtol=0, atol=1e-7)


@pytest.mark.parametrize("solver", ["ForwardBackwardForward", "PeacemanRachford", "DouglasRachford"])
def test_converges_where_plain_iteration_diverges(solver: str) -> None:
    """With a large skew part z ← σ(Wz + c) blows up, although the equilibrium is unique; splitting finds it."""
    problem = known("skew-dominant", "LeakyReLU").problem
    z = torch.zeros_like(problem.source)
    for _ in range(200):
        z = problem.prox(z - problem.operator.apply(z) + problem.source)
    assert (z.norm(dim=1) > 1e20).all()
    solution = attempt(problem, SOLVERS[solver], max_steps=1000)
    assert solution.status.ok
    z = solution.value
    fixed_point = problem.prox(z - problem.operator.apply(z) + problem.source)
    torch.testing.assert_close(z, fixed_point, rtol=0, atol=1e-8 * float(z.norm()))


# -- rates and identities ----------------------------------------------------------------------------------------

# The factor by which one step multiplies the component along an eigenvector of A with eigenvalue λ.
MULTIPLIERS: dict[type[Solver], Callable[[Tensor, float], Tensor]] = {
    splitting.ForwardBackward: lambda x, alpha: 1 - alpha * x,
    splitting.ForwardBackwardForward: lambda x, alpha: 1 - alpha * x + (alpha * x) ** 2,
    splitting.PeacemanRachford: lambda x, alpha: (1 - alpha * x) / (1 + alpha * x),
    splitting.DouglasRachford: lambda x, alpha: 1 / (1 + alpha * x),
}


@pytest.mark.parametrize("method", MULTIPLIERS)
@pytest.mark.parametrize("skew", [0.0, 1.0], ids=["symmetric", "normal"])
@pytest.mark.parametrize("weighted", [False, True], ids=["Euclidean", "metric"])
def test_observed_rate_is_the_spectral_radius(method: type[Solver], skew: float, weighted: bool) -> None:
    """On a normal A with the identity activation, steps shrink by max |multiplier(λ)|, in the metric as well."""
    alpha = 0.2
    slow = torch.tensor([[0.9, skew], [-skew, 0.9]], dtype=torch.float64)
    core = torch.block_diag(slow, torch.diag(torch.tensor([2.2, 2.5], dtype=torch.float64)))
    Q = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    matrix, metric = Q @ core @ Q.mT, None
    if weighted:
        metric = torch.tensor([0.1, 1.0, 5.0, 20.0], dtype=torch.float64)
        matrix = matrix * metric.sqrt() / metric.sqrt()[:, None]
    A = splitting.DenseOperator(matrix, metric=metric)
    source = torch.randn(2, 4, dtype=torch.float64)
    problem = splitting.Inclusion(A, source, splitting.Identity())
    history = attempt(problem, method(alpha), tol=1e-300, max_steps=70).history
    expected = float(MULTIPLIERS[method](torch.linalg.eigvals(core), alpha).abs().max())
    observed = (history[69] / history[59]) ** 0.1
    torch.testing.assert_close(observed, torch.full_like(observed, expected), rtol=1e-3, atol=0)


@each_operator
def test_admissible_steps_are_those_of_the_theorems(operator: str) -> None:
    """Below 2m/L² for forward–backward, below 1/L for forward–backward–forward, any for those with a resolvent."""
    A = SMALL_OPERATORS[operator](torch.float64)
    limits = {
        splitting.ForwardBackward(): 2 * A.strong_monotonicity / A.lipschitz**2,
        splitting.ForwardBackwardForward(): 1 / A.lipschitz,
        splitting.PeacemanRachford(): math.inf,
        splitting.DouglasRachford(): math.inf,
    }
    for solver, limit in limits.items():
        low, high = solver.admissible(A)
        assert (low, high) == (0, pytest.approx(limit, rel=1e-14))
        assert low < solver.chosen_step(A) < high
        assert splitting.Anderson(solver).admissible(A) == (low, high)


@pytest.mark.parametrize("size", [1e-170, 1e170])
def test_admissible_steps_at_every_scale(size: float) -> None:
    """Where L² overflows or vanishes, too."""
    A = splitting.DenseOperator(size * torch.eye(2, dtype=torch.float64))
    _, limit = splitting.ForwardBackward().admissible(A)
    assert limit == pytest.approx(2 / size, rel=1e-6)


@pytest.mark.parametrize("solver", [splitting.Iterate(), splitting.Broyden(), splitting.Anderson(splitting.Iterate())])
def test_methods_without_a_step_say_so(solver: Solver) -> None:
    with pytest.raises(splitting.InvalidType, match="has no step α"):
        solver.admissible(splitting.DenseOperator(monotone(3)))


@pytest.mark.parametrize("method", [splitting.ForwardBackward, splitting.ForwardBackwardForward])
@each_operator
def test_steps_are_limited_by_the_theorem(method: type[Solver], operator: str) -> None:
    """Inside of what is admissible, not at its end or beyond; "auto" is inside."""
    problem = known(operator, "ReLU").problem
    _, limit = method().admissible(problem.operator)
    for solver in (method(0.999 * limit), method()):
        attempt(problem, solver, max_steps=1)
    for step in (limit, 1.001 * limit):
        with pytest.raises(splitting.InvalidArgument, match=re.escape(f"(0, {limit:.6g})")):
            attempt(problem, method(step), max_steps=1)


@pytest.mark.parametrize("method", [splitting.ForwardBackward, splitting.ForwardBackwardForward])
@pytest.mark.parametrize("m", [0.0, -0.1])
def test_forward_methods_need_strong_monotonicity(method: type[Solver], m: float) -> None:
    """Merely monotone is not enough."""
    A = splitting.DenseOperator(torch.eye(2, dtype=torch.float64), strong_monotonicity=m)
    problem = splitting.Inclusion(A, torch.ones(1, 2, dtype=torch.float64), splitting.ReLU())
    with pytest.raises(splitting.InvalidArgument, match=f"needs a strongly monotone `operator`.*≥ {m:.3g};"):
        attempt(problem, method(0.1))
    with pytest.raises(splitting.InvalidArgument, match="needs a strongly monotone `operator`"):
        method().admissible(A)


@each_operator
def test_the_automatic_steps_are_those_that_are_stated(operator: str) -> None:
    """m/L² for forward–backward, 0.9/L for forward–backward–forward, 1/rms(A) for the methods with a resolvent."""
    problem = known(operator, "ReLU").problem
    A = problem.operator
    stated = {
        splitting.ForwardBackward: A.strong_monotonicity / A.lipschitz / A.lipschitz,
        splitting.ForwardBackwardForward: 0.9 * (1 / A.lipschitz),
        splitting.PeacemanRachford: A.typical_step,
        splitting.DouglasRachford: A.typical_step,
    }
    for method, step in stated.items():
        automatic, given_step = (attempt(problem, solver, max_steps=3) for solver in (method(), method(step)))
        assert torch.equal(automatic.value, given_step.value)


def dense_factor(operator: splitting.Operator, alpha: float) -> float:
    """‖(I − αA)(I + αA)⁻¹‖_Λ from the matrix."""
    identity = torch.eye(operator.state_shape.numel(), dtype=torch.float64)
    root = torch.ones(1) if operator.metric is None else operator.metric.expand(operator.state_shape).flatten().sqrt()
    M = root[:, None] * dense(operator) / root
    return float(torch.linalg.matrix_norm((identity - alpha * M) @ torch.linalg.inv(identity + alpha * M), 2))


@pytest.mark.parametrize("operator", OPERATORS)
def test_contraction_factor(operator: str) -> None:
    """The dense norm: to rounding for small states, else from below to two digits; the theorem's bound lies above."""
    A = OPERATORS[operator](torch.float64)
    m, lipschitz = A.strong_monotonicity, A.lipschitz
    slack = 1e-9 if A.state_shape.numel() <= 256 and A.cayley_norm(1.0) is None else 1e-2
    for alpha in (0.3 * A.typical_step, 1.1 * A.typical_step, 4 * A.typical_step):
        exact = dense_factor(A, alpha)
        assert exact * (1 - slack) - 1e-7 <= splitting.contraction_factor(A, alpha) <= exact * (1 + 1e-9) + 1e-7
        theorem = math.sqrt(1 - 4 * alpha * m / (1 + 2 * alpha * m + (alpha * lipschitz) ** 2))
        assert exact <= theorem * (1 + 1e-9)


@each_operator
def test_best_step_has_nearly_the_best_rate(operator: str) -> None:
    """−log ρ within a tenth (and the search's few per cent) of the best on a fine, wide grid, at no smaller a step; and
    none that is larger by a quarter is as good, unless this one is e times the best or the best is perfect."""
    A = SMALL_OPERATORS[operator](torch.float64)
    grid = [A.typical_step * math.exp(x) for x in np.linspace(-8, 8, 400)]
    # More than two digits a step is as good as it gets: with one unknown the best rate is infinite.
    rates = [min(-math.log(dense_factor(A, alpha)), 2.0) for alpha in grid]
    step = splitting.best_step(A)
    assert -math.log(dense_factor(A, step)) >= 0.85 * max(rates)
    best = grid[int(np.argmax(rates))]
    assert step >= 0.9 * best
    if step < 2.7 * best and max(rates) < 2:
        assert -math.log(dense_factor(A, 1.25 * step)) < 0.92 * max(rates)


def test_rescaled_solvers() -> None:
    assert splitting.PeacemanRachford(0.4).rescaled(0.5) == splitting.PeacemanRachford(0.2)
    assert splitting.ForwardBackward(0.25).rescaled(3) == splitting.ForwardBackward(0.75)
    inner = splitting.DouglasRachford(0.2)
    assert splitting.Anderson(inner, 3).rescaled(2) == splitting.Anderson(splitting.DouglasRachford(0.4), 3)
    for solver in (splitting.PeacemanRachford(), splitting.Broyden()):
        assert solver.rescaled(0.5) == solver
    with pytest.raises(splitting.InvalidArgument, match="`step` must be finite and > 0"):
        splitting.PeacemanRachford(1.0).rescaled(0.0)


def test_tuned_solvers() -> None:
    """ "auto" becomes the best step, in the inner method of Anderson too; a given step and the others stay."""
    A = SMALL_OPERATORS["symmetric"](torch.float64)
    best = splitting.best_step(A)
    assert splitting.PeacemanRachford().tuned(A) == splitting.PeacemanRachford(best)
    assert splitting.Anderson(splitting.DouglasRachford(), 3).tuned(A) == splitting.Anderson(
        splitting.DouglasRachford(best), 3
    )
    assert splitting.PeacemanRachford(0.1).tuned(A) == splitting.PeacemanRachford(0.1)
    assert splitting.ForwardBackward().tuned(A) == splitting.ForwardBackward()


@each_operator
def test_peaceman_rachford_applies_one_resolvent_per_step(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None to start with, and no product with A."""
    problem = known(operator, "ReLU").problem
    kind, calls = type(problem.operator.resolvent(0.3)), []
    genuine = kind.reflect
    monkeypatch.setattr(kind, "reflect", lambda *a, **k: calls.append("resolvent") or genuine(*a, **k))
    monkeypatch.setattr(type(problem.operator), "apply", lambda *a: calls.append("product"))
    attempt(problem, splitting.PeacemanRachford(0.3), max_steps=7)
    assert calls == ["resolvent"] * 7


@each_activation
def test_peaceman_rachford_starts_at_the_solution_of_a_multiple_of_the_identity(activation: str) -> None:
    """Where A = I/α one step confirms it."""
    source, prox = torch.randn(3, 4, dtype=torch.float64), ACTIVATIONS[activation]((4,), torch.float64)
    problem = splitting.Inclusion(splitting.DenseOperator(2 * torch.eye(4).double()), source, prox)
    solution = attempt(problem, splitting.PeacemanRachford(0.5))
    assert (solution.steps == 1).all()
    assert (solution.error_bound <= 1e-9).all()


@each_activation
def test_douglas_rachford_is_the_average(activation: str) -> None:
    """One step is (t + T(t))/2 with T the step of Peaceman–Rachford; value and gap are those of T."""
    problem = known("general", activation).problem
    peaceman, douglas = (s(0.3).bind(problem) for s in (splitting.PeacemanRachford, splitting.DouglasRachford))
    t = torch.randn_like(problem.source)
    full, half = peaceman.step(t.clone()), douglas.step(t.clone())
    torch.testing.assert_close(half.carry, (t + full.carry) / 2)
    assert torch.equal(half.value, full.value)
    assert torch.equal(half.gap, full.gap)


def test_douglas_rachford_needs_no_strong_monotonicity() -> None:
    """For a rotation m = 0: Peaceman–Rachford only turns around the answer, the average with the identity closes in."""
    A = splitting.DenseOperator(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64))
    source = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    problem = splitting.Inclusion(A, source, splitting.Identity())
    history = attempt(problem, splitting.PeacemanRachford(0.7)).history
    assert float(history[-1]) > 0.3 * float(history[0])
    solution = attempt(problem, splitting.DouglasRachford(0.7), max_steps=300)
    assert solution.status.ok
    torch.testing.assert_close(solution.value, torch.tensor([[-2.0, 1.0]], dtype=torch.float64))


@each_solver
@each_operator
def test_stepping_by_hand(solver: str, operator: str) -> None:
    """The contract of an iteration: `solve` is nothing but its steps, its residual the gap relative to ‖A‖‖z‖ + ‖c‖, a
    gap bounds ‖r‖, and a step overwrites neither the problem nor the guess; two iterations bound to one problem share
    nothing."""
    problem = known(operator, "LeakyReLU").problem
    A, c, prox = problem.operator, problem.source, problem.prox
    iteration, other = SOLVERS[solver].bind(problem), SOLVERS[solver].bind(problem)
    guess = torch.randn_like(c)
    inputs = (c, guess, *A.tensors)
    copies = [t.clone() for t in inputs]
    carry, alongside = iteration.init(guess), other.init(None)
    for steps in range(1, 8):
        state = iteration.step(carry)
        carry, value, gap = state.carry, state.value.clone(), state.gap.clone()
        alongside = other.step(alongside).carry
        assert torch.equal(state.value, value)
        solution = attempt(problem, SOLVERS[solver], initial=guess, tol=1e-300, max_steps=steps)
        assert torch.equal(solution.value, value)
        residual = solution.residual - iteration.rounding
        torch.testing.assert_close(residual * (A.norm_bound * A.norm(value) + A.norm(c)), gap, rtol=1e-6, atol=1e-9)
        beta = 0.1 * A.typical_step
        moved = A.norm(value - prox.proximal(value - beta * (A.apply(value) - c), beta))
        assert (moved <= beta * (gap * (1 + 1e-9) + 1e-9)).all()
    assert all(torch.equal(t, copy) for t, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("method", [*MULTIPLIERS, splitting.Anderson], ids=lambda m: m.__name__)
@pytest.mark.parametrize("operator", ["matrix", "kernel"])
def test_the_gap_is_near_the_residual_it_bounds(method: type[Solver], operator: str) -> None:
    """Of a z = c with one unknown r is a z − c: a gap is no less, and no more than its bound on |a − 1/α| is too large,
    which for a matrix is a + 1/α and for a kernel what it is itself. Forward–backward–forward computes r."""
    a, alpha = 0.7, 0.4
    A: splitting.Operator = splitting.DenseOperator(torch.tensor([[a]], dtype=torch.float64))
    if operator == "kernel":
        A = splitting.ConvolutionOperator(torch.full((1, 1, 1, 1), a, dtype=torch.float64), (1, 1))
    source = torch.tensor([-4.0, 0.1, 3.0], dtype=torch.float64).reshape(-1, *A.state_shape)
    solver = splitting.Anderson(splitting.PeacemanRachford(alpha)) if method is splitting.Anderson else method(alpha)
    iteration = solver.bind(splitting.Inclusion(A, source, splitting.Identity()))
    state = iteration.step(iteration.init(torch.ones_like(source)))
    residual = (a * state.value - source).flatten().abs()
    exact = operator == "kernel" or method is splitting.ForwardBackwardForward
    largest = 1.0 if exact else (a + 1 / alpha) / abs(a - 1 / alpha)
    assert (residual > 1e-3).all()
    assert (residual * (1 - 1e-9) <= state.gap).all()
    assert (state.gap <= largest * residual * (1 + 1e-9)).all()


@each_solver
@each_operator
def test_warm_start_at_the_solution(solver: str, operator: str) -> None:
    """Started at the answer, one step confirms it; a second one is allowed for rounding."""
    example = known(operator, "Tanh")
    answer = example.answer
    solution = attempt(example.problem, SOLVERS[solver], initial=answer, tol=1e-8)
    assert solution.status.ok
    assert (solution.steps <= 2).all()
    torch.testing.assert_close(solution.value, answer, rtol=1e-8, atol=1e-8)


# -- Anderson ----------------------------------------------------------------------------------------------------


@each_activation
@pytest.mark.parametrize("operator", ["general", "skew-dominant"])
@pytest.mark.parametrize("inner", ["ForwardBackwardForward", "PeacemanRachford", "DouglasRachford"])
def test_anderson_costs_at_most_twice_the_steps(operator: str, activation: str, inner: str) -> None:
    """A rejected extrapolation costs one step, and the next one is plain."""
    problem = known(operator, activation).problem
    plain = attempt(problem, SOLVERS[inner], tol=1e-7, max_steps=500)
    accelerated = attempt(problem, splitting.Anderson(SOLVERS[inner]), tol=1e-7, max_steps=1000)
    assert plain.status.ok
    assert (accelerated.steps <= 2 * plain.steps + 2).all()


@pytest.mark.parametrize("inner", ["ForwardBackwardForward", "PeacemanRachford", "DouglasRachford"])
def test_anderson_is_much_faster_on_an_ill_conditioned_linear_problem(inner: str) -> None:
    """Eigenvalues over two decades; a linear problem is where a Krylov-like method excels."""
    Q = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64)).Q
    A = splitting.DenseOperator(Q @ torch.diag(torch.logspace(-1, 1, 10, dtype=torch.float64)) @ Q.mT)
    problem = splitting.Inclusion(A, torch.randn(3, 10, dtype=torch.float64), splitting.Identity())
    plain = attempt(problem, SOLVERS[inner], max_steps=5000)
    accelerated = attempt(problem, splitting.Anderson(SOLVERS[inner], memory=8), max_steps=5000)
    assert plain.status.ok
    assert (5 * accelerated.steps <= plain.steps).all()


@dataclass(frozen=True)
class Recorded(Solver):
    """Passes everything through, and keeps where the map was evaluated and what came out."""

    inner: Solver
    points: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)

    def bind(self, problem: splitting.Inclusion) -> Iteration:
        iteration, recorder = self.inner.bind(problem), self

        class Recording(Iteration):
            def init(self, guess: Tensor | None) -> Tensor:
                return iteration.init(guess)

            def step(self, carry: Tensor) -> State:
                recorder.points.append(carry.clone())  # before the step, which may overwrite it
                state = iteration.step(carry)
                recorder.images.append(state.carry.clone())
                return state

        return Recording()


def test_safeguard() -> None:
    """An extrapolation that does not shrink ‖Tx − x‖_Λ by 1 % is dropped for the plain step from the last kept point;
    the method converges with such rejections among its steps."""
    problem = known("metric", "Tanh", batch=1).problem
    recorded = Recorded(splitting.DouglasRachford())
    assert attempt(problem, splitting.Anderson(recorded), max_steps=500).status.ok
    kept, kept_size, must_be_plain = recorded.points[0], math.inf, True
    rejections = extrapolations = 0
    for point, image in zip(recorded.points, recorded.images, strict=True):
        plain = torch.allclose(point, kept, rtol=1e-12, atol=1e-14)
        assert plain or not must_be_plain
        size = float(problem.operator.norm(image - point))
        rejected = not plain and size > 0.99 * kept_size
        rejections, extrapolations = rejections + rejected, extrapolations + (not plain)
        must_be_plain = rejected
        if not rejected:
            kept, kept_size = image, size
    assert rejections >= 3
    assert extrapolations >= 10


def test_an_extrapolation_that_overflows_is_forgotten() -> None:
    """Even NaN at an extrapolated point only costs that step: convergence is that of the plain map."""

    def contraction(x: Tensor) -> Tensor:
        # Finite where the plain iteration goes, 0 < x ≤ 1, and not left of it, where the secant step lands.
        return torch.where(x > 0, 0.9 * x - 0.4 * x.abs().pow(1.5), math.nan)

    steps = iterate(splitting.Anderson(_Map(contraction)), 200)
    assert any(not torch.isfinite(state.value).all() for state in steps)
    assert float(steps[-1].value.abs().max()) < 1e-6


@dataclass(frozen=True)
class _Map(Solver):
    """A made-up fixed-point map in place of a splitting method, started at 1."""

    function: Callable[[Tensor], Tensor]

    def bind(self, problem: splitting.Inclusion) -> Iteration:
        function = self.function

        class Mapping(Iteration):
            def init(self, guess: Tensor | None) -> Tensor:
                return torch.ones_like(problem.source)

            def step(self, carry: Tensor) -> State:
                image = function(carry)
                return State(image, image, problem.operator.norm(image - carry))

        return Mapping()


def iterate(solver: Solver, steps: int) -> list[State]:
    A = splitting.DenseOperator(torch.ones(1, 1, dtype=torch.float64))
    iteration = solver.bind(splitting.Inclusion(A, torch.ones(1, 1, dtype=torch.float64), splitting.Identity()))
    carry, states = iteration.init(None), []
    for _ in range(steps):
        states.append(iteration.step(carry))
        carry = states[-1].carry
    return states
