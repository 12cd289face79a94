"""The one loop: per-sample stopping and diagnostics, what it says when it fails, and what it leaves alone."""

import importlib
import math
import warnings

import pytest
import torch
from torch import Tensor

import splitting
from splitting import Outcome
from tests.registry import ACTIVATIONS, DTYPES, SOLVERS, monotone
from tests.splitting.problems import known

each_solver = pytest.mark.parametrize("solver", SOLVERS)


def problem_of(source: Tensor, activation: str = "Box") -> splitting.Inclusion:
    A = splitting.DenseOperator(monotone(6).to(source.dtype))
    return splitting.Inclusion(A, source, ACTIVATIONS[activation]((6,), source.dtype))


def mixed_batch() -> Tensor:
    """Samples that take very different numbers of steps: from tiny over middling to saturated, and zero."""
    sizes = torch.tensor([1e-3, 1.0, 30.0, 0.0, 3.0], dtype=torch.float64)
    return sizes[:, None] * torch.randn(5, 6, dtype=torch.float64)


def attempt(source: Tensor, solver: str, activation: str = "Box", **options: object) -> splitting.Solution:
    arguments = {"tol": 1e-9, "max_steps": 1000, "on_failure": "return"} | options
    return splitting.solve(problem_of(source, activation), SOLVERS[solver], **arguments)


# -- per sample --------------------------------------------------------------------------------------------------


@each_solver
def test_batch_of_one_is_the_row_of_a_batch_of_many(solver: str) -> None:
    """The same value, to the tolerance, in the same number of steps, alone or in company."""
    source = mixed_batch()
    together = attempt(source, solver)
    assert len(set(together.steps.tolist())) >= 3
    for i in range(len(source)):
        alone = attempt(source[i : i + 1], solver)
        assert int(alone.steps) == int(together.steps[i])
        torch.testing.assert_close(alone.value[0], together.value[i], rtol=1e-9, atol=1e-9)


@each_solver
@pytest.mark.parametrize("company", [1e6, math.inf, math.nan])
def test_hard_company_changes_nothing(solver: str, company: float) -> None:
    """A sample that overflows, or never converges, costs the others neither digits nor steps."""
    easy = mixed_batch()[:1]
    alone = attempt(easy, solver)
    beside = attempt(torch.cat([easy, torch.full_like(easy, company)]), solver)
    assert alone.converged.tolist() == beside.converged[:1].tolist() == [True]
    assert torch.equal(alone.steps, beside.steps[:1])
    torch.testing.assert_close(alone.value, beside.value[:1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alone.error_bound, beside.error_bound[:1], rtol=1e-2, atol=1e-12)


@each_solver
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_diagnostics_fit_together(solver: str, dtype: torch.dtype) -> None:
    """history is (steps, batch); a sample's residual is its entry of the row where it stopped, the first ≤ tol."""
    tol = 1e-5
    solution = attempt(mixed_batch().to(dtype), solver, tol=tol)
    assert solution.status.ok
    assert solution.value.dtype == solution.residual.dtype == dtype
    assert solution.history.shape == (int(solution.steps.max()), 5)
    rows = solution.history <= tol
    assert torch.equal(rows.int().argmax(0) + 1, solution.steps)
    assert torch.equal(solution.history.gather(0, solution.steps[None] - 1)[0], solution.residual)


@each_solver
def test_empty_batch(solver: str) -> None:
    solution = attempt(torch.empty(0, 6, dtype=torch.float64), solver)
    assert solution.status.ok
    assert solution.value.shape == (0, 6)
    assert solution.history.shape == (0, 0)
    assert len(solution.steps) == len(solution.residual) == len(solution.error_bound) == 0


@each_solver
def test_strides_do_not_matter(solver: str) -> None:
    """Transposed, strided and expanded sources give what their contiguous copies give."""
    wide = torch.randn(6, 8, dtype=torch.float64)
    for source in (wide.mT, wide.mT[::2], wide.mT[:1].expand(3, 6)):
        loose, tight = attempt(source, solver), attempt(source.contiguous(), solver)
        torch.testing.assert_close(loose.value, tight.value, rtol=1e-9, atol=1e-9)
        assert torch.equal(loose.steps, tight.steps)


@each_solver
@pytest.mark.parametrize("operator", ["metric", "convolution, 3×5", "multiscale"])
@pytest.mark.parametrize("batch", [1, 3])
def test_inputs_are_not_touched(solver: str, operator: str, batch: int) -> None:
    """Operator, metric, activation, source and guess keep their bits, and need no gradient for a solve."""
    example = known(operator, "Scale", batch=batch)
    A, source = example.problem.operator, example.problem.source
    guess = torch.randn_like(source)
    inputs = [*A.tensors, *example.problem.prox.tensors, source, guess, *([] if A.metric is None else [A.metric])]
    before = [t.clone() for t in inputs]
    solution = splitting.solve(example.problem, SOLVERS[solver], initial=guess, max_steps=20, on_failure="return")
    solution.value.add_(1)
    assert all(torch.equal(t, copy) for t, copy in zip(inputs, before, strict=True))


def test_no_state_between_solves() -> None:
    """What was solved before with the same operator, at another step or tolerance, changes no bit of an answer."""
    source = mixed_batch()
    shared = problem_of(source)
    for solver in SOLVERS.values():
        splitting.solve(shared, solver, tol=1e-3, max_steps=1000)
    splitting.solve(shared, splitting.PeacemanRachford(0.123))
    for solver in SOLVERS.values():
        used, fresh = (splitting.solve(p, solver, max_steps=1000) for p in (shared, problem_of(source)))
        assert torch.equal(used.value, fresh.value)
        assert torch.equal(used.steps, fresh.steps)


def test_no_graph() -> None:
    """A solve records nothing, even if everything requires a gradient; `equilibrium` is for that."""
    A = splitting.DenseOperator(monotone(6).requires_grad_())
    source = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    solution = splitting.solve(
        splitting.Inclusion(A, source, splitting.Scale(torch.full((6,), 0.5).double().requires_grad_()))
    )
    tensors = (solution.value, solution.residual, solution.history, solution.error_bound)
    assert not any(t.requires_grad for t in tensors)


@each_solver
def test_autocast_does_not_reach_the_solver(solver: str) -> None:
    """Half precision around it changes no bit: no tolerance worth asking for survives bfloat16."""
    source = mixed_batch().float()
    plain = attempt(source, solver, tol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        surrounded = attempt(source, solver, tol=1e-5)
        assert torch.equal(surrounded.error_bound, plain.error_bound)
    assert torch.equal(surrounded.value, plain.value)


# -- how it ends -------------------------------------------------------------------------------------------------


def test_converged_says_so() -> None:
    solution = attempt(mixed_batch(), "PeacemanRachford")
    assert solution.status.outcome is Outcome.CONVERGED
    steps = int(solution.steps.max())
    assert str(solution.status) == f"PeacemanRachford: all 5 samples reached relative residual 1.0e-09 in {steps} steps"


def test_too_few_steps() -> None:
    """The text has the counts, the tolerance, the worst residual and a remedy; steps are those taken."""
    solution = attempt(mixed_batch(), "PeacemanRachford", max_steps=3)
    missing = int((~solution.converged).sum())
    assert 0 < missing < 5
    assert solution.status.outcome is Outcome.MAX_STEPS
    assert not solution.status.ok
    assert solution.status.text.startswith(f"PeacemanRachford: {missing} of 5 samples did not reach")
    assert f"1.0e-09 in 3 steps (worst {float(solution.residual.max()):.1e})" in solution.status.text
    assert "raise max_steps" in solution.status.text
    assert (solution.steps[~solution.converged] == 3).all()


def test_rounding_is_named_as_the_cause() -> None:
    """float32 cannot reach 1e-12: more steps would not help, and the text does not ask for them."""
    solution = attempt(mixed_batch().float(), "PeacemanRachford", tol=1e-12)
    assert solution.status.outcome is Outcome.MAX_STEPS
    assert "near the rounding of torch.float32: use float64 or a larger tol" in solution.status.text
    assert "raise max_steps" not in solution.status.text


@each_solver
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_source_that_is_not_finite(solver: str, bad: float) -> None:
    """The status blames the source, the loop does not go on to max_steps, and the bound of that sample is ∞."""
    source = mixed_batch()
    source[2, 4] = bad
    solution = attempt(source, solver, "LeakyReLU")
    assert solution.status.outcome is Outcome.NON_FINITE
    assert "1 of 5 samples became NaN or inf" in solution.status.text
    assert "the source c holds NaN or inf" in solution.status.text
    assert len(solution.history) < 1000
    assert solution.converged.tolist() == [True, True, False, True, True]
    assert torch.isinf(solution.error_bound).tolist() == [False, False, True, False, False]


def test_overflow_is_not_blamed_on_the_source() -> None:
    """A solution that float32 cannot hold: no convergence is claimed, and the source is not accused."""
    A = splitting.DenseOperator(1e-20 * torch.eye(2))
    problem = splitting.Inclusion(A, torch.full((1, 2), 1e20), splitting.ReLU())
    solution = splitting.solve(problem, on_failure="return")
    assert solution.status.outcome is Outcome.NON_FINITE
    assert "overflows this dtype" in solution.status.text


def test_on_failure() -> None:
    """raise: an exception with the text; warn: a warning with the text, at the caller; return: silence."""
    source = mixed_batch()
    with pytest.raises(splitting.NotConverged, match=r"did not reach relative residual 1\.0e-09 in 2 steps"):
        attempt(source, "PeacemanRachford", max_steps=2, on_failure="raise")
    with pytest.warns(splitting.ConvergenceWarning, match="did not reach") as caught:
        splitting.solve(problem_of(source), max_steps=2)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attempt(source, "PeacemanRachford", max_steps=2, on_failure="return")
        attempt(source, "PeacemanRachford", on_failure="raise")


# -- devices that should not be asked too often --------------------------------------------------------------------


@each_solver
@pytest.mark.parametrize("max_steps", [7, 1000], ids=["cut short", "to the end"])
@pytest.mark.parametrize("bad", [False, True], ids=["finite", "with NaN"])
def test_asking_rarely_gives_the_same_solution(
    solver: str, max_steps: int, bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch for accelerators, on the CPU: a sample returns what it had when it converged, not when we looked."""
    source = mixed_batch()
    if bad:
        source[1, 1] = math.nan
    often = attempt(source, solver, max_steps=max_steps)
    monkeypatch.setattr(importlib.import_module("splitting.context"), "_FREE_TO_ASK", frozenset())
    rarely = attempt(source, solver, max_steps=max_steps)
    # A method that gains speed, as acceleration does in few dimensions, is asked later than it could be.
    assert len(often.history) <= len(rarely.history) <= min(max(3 * len(often.history), 6), max_steps)
    for name in ("value", "residual", "converged"):
        torch.testing.assert_close(getattr(rarely, name), getattr(often, name), rtol=0, atol=0, equal_nan=True)
    # A sample that gives up has taken all the steps that were run.
    assert torch.equal(rarely.steps[often.converged], often.steps[often.converged])
    torch.testing.assert_close(rarely.history[: len(often.history)], often.history, rtol=0, atol=0, equal_nan=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_solver
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_agrees_with_the_cpu(solver: str, dtype: torch.dtype) -> None:
    """The same problem on both devices: within the sum of the bounds."""
    source = mixed_batch().to(dtype)
    here = attempt(source, solver, tol=1e-5)
    A = splitting.DenseOperator(monotone(6).to("cuda", dtype))
    problem = splitting.Inclusion(A, source.cuda(), ACTIVATIONS["Box"]((6,), dtype))
    there = splitting.solve(problem, SOLVERS[solver], tol=1e-5, max_steps=1000)
    assert there.status.ok
    apart = torch.linalg.vector_norm(here.value.double() - there.value.cpu().double(), dim=1)
    assert (apart <= here.error_bound + there.error_bound.cpu()).all()
