"""What surrounds a call changes neither its numbers nor what is proved of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import splitting
from splitting import verified
from tests.registry import ACTIVATIONS, SMALL_OPERATORS, monotone

each_operator = pytest.mark.parametrize("operator", sorted(SMALL_OPERATORS))


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


def problem_of(A: splitting.Operator) -> splitting.Inclusion:
    c = torch.randn(3, *A.state_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return splitting.Inclusion(A, c.to(A.dtype), splitting.Tanh())


@each_operator
def test_nothing_is_computed_in_half_precision_under_autocast(operator: str) -> None:
    def numbers() -> list[float]:
        A = SMALL_OPERATORS[operator](torch.float32)
        solution = splitting.solve(problem_of(A), tol=1e-5, on_failure="return")
        z = solution.value
        return [
            *(A.strong_monotonicity, A.lipschitz, A.frobenius, splitting.best_step(A)),
            *(float(A.apply(z).sum()), float(A.adjoint.apply(z).sum()), float(A.resolvent(0.5)(z).sum())),
            *solution.error_bound.tolist(),
            float(splitting.check_resolvent(A, 0.3)),
        ]

    outside = numbers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert numbers() == outside


@each_operator
def test_any_default_device_will_do(operator: str) -> None:
    """ "meta" has no values: whatever is made there by mistake fails."""

    def numbers() -> list[float]:
        A = SMALL_OPERATORS[operator](torch.float64)
        problem = problem_of(A)
        solution = splitting.solve(problem, splitting.Anderson(), tol=1e-8, on_failure="return")
        checks = splitting.check_adjoint(A), splitting.check_resolvent(A, 0.3), splitting.check_monotone(A)
        derived = A.strong_monotonicity, A.lipschitz, splitting.best_step(A), splitting.contraction_factor(A, 0.2)
        return [*checks, *derived, *solution.error_bound.tolist()]

    expected = numbers()
    A = SMALL_OPERATORS[operator](torch.float64)
    c = problem_of(A).source
    with default_device("meta"):
        solution = splitting.solve(
            splitting.Inclusion(A, c, splitting.Tanh()), splitting.Anderson(), tol=1e-8, on_failure="return"
        )
        checks = splitting.check_adjoint(A), splitting.check_resolvent(A, 0.3), splitting.check_monotone(A)
        derived = A.strong_monotonicity, A.lipschitz, splitting.best_step(A), splitting.contraction_factor(A, 0.2)
        splitting.check_activation(splitting.Tanh())
        assert [*checks, *derived, *solution.error_bound.tolist()] == expected


def test_the_metric_of_an_adjoint_is_exact_enough_to_measure_in() -> None:
    """‖z − z*‖ in `adjoint.metric` itself, computed in float64, never exceeds the bound. In float32 the reciprocal of a
    metric is off by 3e-8, and a bound that is nearly attained would fall short.
    """
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        metric = torch.rand(1, generator=generator) * 3 + 0.1
        A = splitting.DenseOperator(torch.eye(1), metric=metric).adjoint
        problem = splitting.Inclusion(A, torch.rand(1, 1, generator=generator), splitting.Identity())
        bound = splitting.error_bound(problem, torch.zeros(1, 1))
        distance = (problem.source.double().square() * A.metric).sum(1).sqrt()  # z* = c, and the bound is attained
        assert float(distance) <= float(bound) <= float(distance) * (1 + 1e-9) * 2


@pytest.mark.parametrize(
    ("backend", "setting", "expected"),
    [("cuda", "tf32", 2.0**-11), ("mkldnn", "bf16", 2.0**-8), ("mkldnn", "tf32", 2.0**-11), ("cuda", "ieee", 2.0**-24)],
)
def test_precision_set_for_one_backend_counts(backend: str, setting: str, expected: float) -> None:
    """The older query refuses to answer once a newer setting was made."""
    matmul = getattr(torch.backends, backend).matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = setting
    try:
        assert verified.unit_roundoff(torch.float32) == expected
        problem = problem_of(splitting.DenseOperator(monotone(6).float()))
        assert torch.isfinite(splitting.solve(problem, tol=1e-3, on_failure="return").error_bound).all()
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(reentrant: bool) -> None:
    A = splitting.DenseOperator(monotone(6))

    def state(c: torch.Tensor) -> torch.Tensor:
        return splitting.equilibrium(splitting.Inclusion(A, c, splitting.Tanh()), tol=1e-10)

    c = problem_of(A).source.requires_grad_()
    (expected,) = torch.autograd.grad(state(c).square().sum(), c)
    checkpoint(state, c, use_reentrant=reentrant).square().sum().backward()
    assert c.grad is not None
    torch.testing.assert_close(c.grad, expected, rtol=0, atol=0)


def test_a_guess_of_the_wrong_shape_is_refused_before_any_work() -> None:
    problem = problem_of(splitting.DenseOperator(monotone(6)))
    with pytest.raises(splitting.InvalidArgument, match="`initial` has 2 samples but the source has 3"):
        splitting.equilibrium(problem, initial=torch.zeros(2, 6, dtype=torch.float64))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_default_dtype_does_not_round_slopes(activation: str) -> None:
    sigma = ACTIVATIONS[activation]((9,), torch.float64)
    y = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]
    expected = [sigma(y), sigma.derivative(y), sigma.proximal(y, 0.3), sigma.derivative_at(sigma(y))]
    torch.set_default_dtype(torch.bfloat16)
    found = [sigma(y), sigma.derivative(y), sigma.proximal(y, 0.3), sigma.derivative_at(sigma(y))]
    for one, other in zip(found, expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
