"""Whatever is derived from tensors belongs to the values that they have: changed ones are noticed, or out of reach."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import splitting
from tests.registry import OPERATORS, SMALL_OPERATORS

# Every way in which the values of a tensor can change.
CHANGES: dict[str, Callable[[Tensor, Tensor], None]] = {
    "copy_": lambda t, new: t.detach().copy_(new),
    "data": lambda t, new: t.data.copy_(new),
    "numpy": lambda t, new: t.detach().numpy().__setitem__(..., new.numpy()),
    "one entry": lambda t, new: t.detach()[(-1,) * t.ndim].copy_(new[(-1,) * t.ndim]),
}


def fresh(name: str) -> splitting.Operator:
    """An operator of float64 tensors that nobody else holds."""
    A = OPERATORS[name](torch.float64)
    return A.replace(*(t.detach().clone() for t in A.tensors))


def problem_of(A: splitting.Operator) -> splitting.Inclusion:
    c = torch.randn(3, *A.state_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return splitting.Inclusion(A, c, splitting.Tanh())


def everything(A: splitting.Operator) -> list[Tensor]:
    """What an operator says, each of which it keeps."""
    z = torch.linspace(-1, 1, A.state_shape.numel(), dtype=A.dtype).reshape(1, *A.state_shape)
    numbers = [A.strong_monotonicity, A.lipschitz, A.frobenius, A.norm_bound, A.typical_step, A.distance_bound(0.3)]
    adjoint = A.adjoint
    return [
        A.apply(z),
        A.resolvent(0.7)(z),
        adjoint.apply(z),
        adjoint.resolvent(0.7)(z),
        A.norm(z),
        A.rounding(z),
        A.double().apply(z.double()),
        torch.tensor([*numbers, splitting.best_step(A)], dtype=torch.float64),
    ]


@pytest.mark.parametrize("operator", sorted(SMALL_OPERATORS))
def test_an_operator_is_that_of_the_values_its_tensors_have_now(operator: str) -> None:
    A = fresh(operator)
    change = sorted(CHANGES)[sorted(SMALL_OPERATORS).index(operator) % len(CHANGES)]
    everything(A)  # so that it has something to keep
    for tensor in A.tensors:
        CHANGES[change](tensor, 1.5 * tensor.detach() + 0.1)
    expected = A.replace(*(t.detach().clone() for t in A.tensors))
    for kept, computed in zip(everything(A), everything(expected), strict=True):
        torch.testing.assert_close(kept, computed, rtol=0, atol=0)


def test_the_metric_may_change_too() -> None:
    metric = torch.tensor([1.0, 4.0], dtype=torch.float64)
    A = splitting.DenseOperator(torch.tensor([[2.0, -1.0], [1.0, 3.0]], dtype=torch.float64), metric=metric)
    everything(A)
    metric.mul_(torch.tensor([9.0, 0.5], dtype=torch.float64))
    expected = splitting.DenseOperator(A.matrix.clone(), metric=metric.clone())
    for kept, computed in zip(everything(A), everything(expected), strict=True):
        torch.testing.assert_close(kept, computed, rtol=0, atol=0)


def test_a_claim_by_construction_ends_with_the_values_it_was_made_for() -> None:
    matrix = 2 * torch.eye(2, dtype=torch.float64)
    A = splitting.DenseOperator(matrix, strong_monotonicity=1.9)
    assert A.strong_monotonicity == 1.9
    matrix.mul_(0.25)
    assert A.strong_monotonicity == pytest.approx(0.5, rel=1e-12)


def test_values_are_compared_to_the_bit_and_nan_equals_itself() -> None:
    matrix = torch.eye(2)
    A = splitting.DenseOperator(matrix)
    V = A.resolvent(1.0)
    assert A.resolvent(1.0) is V
    matrix[0, 0] = torch.nextafter(matrix[0, 0], torch.tensor(2.0))
    assert A.resolvent(1.0) is not V
    matrix.fill_(torch.nan)
    assert A.frobenius != A.frobenius


@pytest.mark.parametrize("operator", sorted(SMALL_OPERATORS))
def test_an_error_bound_is_on_the_problem_that_was_solved(operator: str) -> None:
    """Read late or early, whatever the caller has done to the tensors since."""
    A = fresh(operator)
    problem = problem_of(A)
    early, late = (splitting.solve(problem, tol=1e-3, on_failure="return") for _ in range(2))
    exact = splitting.solve(problem, splitting.Anderson(), tol=1e-13, max_steps=3000).value
    bound = early.error_bound
    for tensor in A.tensors:
        tensor.detach().add_(1000)
    problem.source.zero_()
    torch.testing.assert_close(late.error_bound, bound, rtol=0, atol=0)
    assert (A.norm(late.value - exact) <= bound).all()


def test_an_error_bound_is_on_the_value_as_it_is() -> None:
    solution = splitting.solve(problem_of(fresh("general")), tol=1e-8)
    before = solution.error_bound
    assert solution.error_bound is before
    solution.value.add_(0.5)
    assert (solution.error_bound > 0.5).all()


def test_a_solution_that_a_monitor_kept_says_that_its_problem_has_changed() -> None:
    weight = torch.nn.Parameter(2 * torch.eye(3))
    seen: list[splitting.Solution] = []
    problem = splitting.Inclusion(splitting.DenseOperator(weight), torch.ones(1, 3), splitting.ReLU())
    splitting.equilibrium(problem, monitor=lambda role, solution: seen.append(solution)).sum().backward()
    assert all(torch.isfinite(solution.error_bound).all() for solution in seen)
    torch.optim.SGD([weight], lr=0.1).step()
    for solution in seen:
        with pytest.raises(splitting.InvalidArgument, match="`problem` has changed"):
            solution.error_bound  # noqa: B018


def test_an_operator_made_once_follows_an_optimizer() -> None:
    """Forward and backward pass of every step are those of the weights at that step."""
    weight = torch.nn.Parameter(torch.tensor([[2.0, -1.0], [1.0, 2.0]], dtype=torch.float64))
    A, c = splitting.DenseOperator(weight), torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(4):
        z = splitting.equilibrium(splitting.Inclusion(A, c, splitting.Identity()), tol=1e-12)
        expected = torch.linalg.solve(weight, c[0])
        torch.testing.assert_close(z[0], expected, rtol=1e-9, atol=0)
        (gradient,) = torch.autograd.grad(z.sum(), weight)
        (right,) = torch.autograd.grad(expected.sum(), weight)
        torch.testing.assert_close(gradient, right, rtol=1e-8, atol=1e-10)
        weight.grad = gradient
        optimizer.step()


def test_slopes_of_a_scale_may_change() -> None:
    d = torch.tensor([[0.5, 0.25]])
    scale = splitting.Scale(d)
    v = torch.ones(1, 2)
    torch.testing.assert_close(scale.proximal(v, 2.0), torch.tensor([[1 / 3, 1 / 7]]))
    d.fill_(1.0)
    assert torch.equal(scale.proximal(v, 2.0), v)


@pytest.mark.parametrize("bad", [[1.9], [-0.1], [float("nan")]])
def test_slopes_outside_the_unit_interval_are_refused(bad: list[float]) -> None:
    with pytest.raises(splitting.InvalidArgument, match=r"`d` must have entries in \[0, 1\]"):
        splitting.Scale(torch.tensor([[0.5, *bad]]))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.floats(0.3, 3.0)), max_size=4), st.data())
def test_solving_after_any_changes_is_solving_anew(changes: list[tuple[str, float]], data: st.DataObject) -> None:
    A = fresh(data.draw(st.sampled_from(["general", "metric", "convolution, 3×5", "multiscale", "mondeq.Dense"])))
    problem = problem_of(A)

    def solve(problem: splitting.Inclusion) -> splitting.Solution:
        return splitting.solve(problem, tol=1e-6, max_steps=20, on_failure="return")

    for change, factor in changes:
        solve(problem).error_bound  # noqa: B018
        tensor = A.tensors[data.draw(st.integers(0, len(A.tensors) - 1))]
        CHANGES[change](tensor, factor * tensor.detach())
    first, second = solve(problem), solve(problem_of(A.replace(*(t.detach().clone() for t in A.tensors))))
    assert torch.equal(first.value, second.value)
    assert torch.equal(first.error_bound, second.error_bound)


def test_an_adjoint_that_was_kept_is_that_of_the_present_metric() -> None:
    """And leaves nothing wrong behind for those that are asked for later."""
    metric = torch.ones(2, dtype=torch.float64)
    A = splitting.DenseOperator(torch.tensor([[1.0, 1.9], [0.0, 1.0]], dtype=torch.float64), metric=metric)
    kept, z = A.adjoint, torch.ones(1, 2, dtype=torch.float64)
    kept.norm(z)
    metric.copy_(torch.tensor([1e-6, 1e-2], dtype=torch.float64))
    expected = splitting.DenseOperator(A.matrix.clone(), metric=metric.clone()).adjoint
    for adjoint in (kept, A.adjoint):
        assert torch.equal(adjoint.norm(z), expected.norm(z))
    problems = [splitting.Inclusion(a, z, splitting.Identity()) for a in (A.adjoint, expected)]
    assert torch.equal(*(splitting.error_bound(p, 0 * z) for p in problems))


def test_a_mask_that_changes_does_not_change_what_was_solved() -> None:
    mask = torch.tensor([True, True, False])
    A = splitting.DenseOperator(2 * torch.eye(3, dtype=torch.float64))
    problem = splitting.Inclusion(A, torch.ones(2, 3, dtype=torch.float64), splitting.Masked(splitting.ReLU(), mask))
    solution = splitting.solve(problem, tol=1e-10)
    mask.fill_(True)
    assert (solution.error_bound < 1e-9).all()  # of (½, ½, 0), not of (½, ½, ½)


def test_parameters_of_activations_are_numbers_of_their_own() -> None:
    slope = torch.tensor(0.5)
    activation = splitting.LeakyReLU(slope)  # type: ignore[arg-type]
    slope.fill_(20.0)
    assert activation == splitting.LeakyReLU(0.5)
    with pytest.raises(splitting.InvalidType, match="`low` must be a number"):
        splitting.Box(low="a")  # type: ignore[arg-type]


def test_a_monitor_may_not_change_the_answer() -> None:
    def meddle(role: str, solution: splitting.Solution) -> None:
        solution.value.mul_(-100)

    problem = problem_of(fresh("general"))
    with pytest.raises(splitting.InvalidArgument, match="`monitor` has changed the value"):
        splitting.equilibrium(problem, monitor=meddle)
