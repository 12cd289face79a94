"""Derivatives of the solution, of first and second order, by every route that torch offers."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import splitting
from splitting.solvers import Solver
from tests.registry import ACTIVATIONS, SMALL_OPERATORS, SMOOTH_ACTIVATIONS, SOLVERS, monotone
from tests.splitting.problems import known

Function = Callable[..., Tensor]

# Near rounding, so that finite differences of solutions mean something.
TIGHT = {"tol": 1e-13, "max_steps": 1000, "on_failure": "return"}


def solution_map(
    operator: splitting.Operator, activation: splitting.Activation, solver: Solver | None = None, **options: object
) -> tuple[Function, tuple[Tensor, ...]]:
    """z* as a function of source, operator tensors and activation tensors; and a point to differentiate it at."""
    count = len(operator.tensors)

    def solve(source: Tensor, *tensors: Tensor) -> Tensor:
        A, sigma = operator.replace(*tensors[:count]), activation.rebind(*tensors[count:])
        return splitting.equilibrium(splitting.Inclusion(A, source, sigma), solver, **(TIGHT | options))

    source = torch.randn(2, *operator.state_shape, dtype=torch.float64)
    inputs = (source, *operator.tensors, *activation.tensors)
    return solve, tuple(t.detach().clone().requires_grad_() for t in inputs)


def small_operator() -> splitting.Operator:
    return splitting.DenseOperator(monotone(3, m=1.0, gain=0.7))


def close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


# -- against finite differences ----------------------------------------------------------------------------------


def test_gradcheck_every_entry() -> None:
    """The whole Jacobian with respect to c and A, by reverse and forward mode."""
    solve, inputs = solution_map(small_operator(), splitting.Tanh())
    assert torch.autograd.gradcheck(solve, inputs, check_forward_ad=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_every_activation(activation: str) -> None:
    """Along random directions of c, A and the activation's tensors, by reverse and forward mode; away from kinks."""
    solve, inputs = solution_map(small_operator(), ACTIVATIONS[activation]((3,), torch.float64))
    assert torch.autograd.gradcheck(solve, inputs, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradcheck_every_solver(solver: str) -> None:
    solve, inputs = solution_map(small_operator(), splitting.LeakyReLU(0.3), SOLVERS[solver])
    assert torch.autograd.gradcheck(solve, inputs, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize(
    "operator",
    [pytest.param(name, marks=[pytest.mark.slow] if "multiscale" in name.lower() else []) for name in SMALL_OPERATORS],
)
def test_gradcheck_every_operator(operator: str) -> None:
    """With its adjoint, which the backward pass of the backward pass meets."""
    for A in (SMALL_OPERATORS[operator](torch.float64), SMALL_OPERATORS[operator](torch.float64).adjoint):
        step = 1 / (A.strong_monotonicity * A.lipschitz) ** 0.5
        solver = splitting.Anderson(splitting.DouglasRachford(step), memory=8)
        solve, inputs = solution_map(A, splitting.LeakyReLU(0.3), solver)
        assert torch.autograd.gradcheck(solve, inputs, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("activation", SMOOTH_ACTIVATIONS)
def test_gradgradcheck_every_smooth_activation(activation: str) -> None:
    solve, inputs = solution_map(small_operator(), SMOOTH_ACTIVATIONS[activation]((3,), torch.float64))
    assert torch.autograd.gradgradcheck(solve, inputs, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradgradcheck_every_solver(solver: str) -> None:
    solve, inputs = solution_map(small_operator(), splitting.Identity(), SOLVERS[solver])
    assert torch.autograd.gradgradcheck(solve, inputs, fast_mode=True)


def test_gradgradcheck_with_a_metric() -> None:
    solve, inputs = solution_map(SMALL_OPERATORS["metric"](torch.float64), splitting.Sigmoid())
    assert torch.autograd.gradgradcheck(solve, inputs, fast_mode=True)


@pytest.mark.parametrize("operator", ["convolution, 3×5", "multiscale"])
@pytest.mark.parametrize("activation", ["Tanh", "Masked(Softplus)"])
def test_gradcheck_convolutions(operator: str, activation: str) -> None:
    """Of both orders, in the source and in every kernel, also with the mask that makes circular kernels zero-padded."""
    A = SMALL_OPERATORS[operator](torch.float64)
    tiers = 2 if operator == "multiscale" else 1
    # F and D times 0.6, and the kernels so that m is larger.
    kernels = [0.36 * kernel for kernel in A.tensors[:tiers]]
    for kernel in kernels:
        kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] += torch.eye(len(kernel))
    A = A.replace(*kernels, *(0.6 * kernel for kernel in A.tensors[tiers:]))
    sigma: splitting.Activation = splitting.Tanh()
    if activation == "Masked(Softplus)":
        sigma = splitting.Masked(splitting.Softplus(), torch.rand(A.state_shape) < 0.7)
    solve, inputs = solution_map(A, sigma, splitting.PeacemanRachford().tuned(A))
    assert torch.autograd.gradcheck(solve, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(solve, inputs, fast_mode=True)


# -- against what differentiation through the iteration gives ----------------------------------------------------


def unrolled(source: Tensor, matrix: Tensor) -> Tensor:
    """Peaceman–Rachford written out with ordinary differentiable operations."""
    alpha, n = 0.4, len(matrix)
    V = torch.linalg.inv(torch.eye(n, dtype=matrix.dtype) + alpha * matrix)
    t = torch.zeros_like(source)
    sigma = splitting.Tanh()
    for _ in range(80):
        u = t @ (2 * V - torch.eye(n, dtype=matrix.dtype)).mT + 2 * alpha * source @ V.mT
        y = u.detach()
        # The point of prox_{αf}, differentiable by one Newton step from the converged value.
        y = sigma.point(y, alpha)
        h = alpha * y + (1 - alpha) * y.tanh() - u
        y = y - h / (alpha + (1 - alpha) * (1 - y.tanh() ** 2))
        t = 2 * y.tanh() - u
    return y.tanh()


def test_gradients_are_those_of_unrolling() -> None:
    solve, (source, matrix) = solution_map(small_operator(), splitting.Tanh())
    weights = torch.randn_like(source)
    implicit = torch.autograd.grad((weights * solve(source, matrix)).sum(), (source, matrix))
    explicit = torch.autograd.grad((weights * unrolled(source, matrix)).sum(), (source, matrix))
    close(implicit, explicit)


def test_linear_case_by_hand() -> None:
    """z = A⁻¹c: ∂ℓ/∂c = A⁻ᵀg and ∂ℓ/∂A = −A⁻ᵀg zᵀ summed over the batch."""
    solve, (source, matrix) = solution_map(small_operator(), splitting.Identity())
    g = torch.randn_like(source)
    by_source, by_matrix = torch.autograd.grad(solve(source, matrix), (source, matrix), g)
    q = torch.linalg.solve(matrix.mT, g.mT).mT
    close(by_source, q)
    close(by_matrix, -q.mT @ torch.linalg.solve(matrix, source.mT).mT)


# -- torch.func --------------------------------------------------------------------------------------------------


@pytest.fixture
def smooth() -> tuple[Function, Tensor, Tensor]:
    solve, inputs = solution_map(small_operator(), splitting.Tanh())
    source, matrix = (t.detach() for t in inputs)
    return solve, source, matrix


def test_vjp_and_jvp_are_adjoint(smooth: tuple[Function, Tensor, Tensor]) -> None:
    """⟨g, J ẋ⟩ = ⟨Jᵀg, ẋ⟩ for tangents of c and A together; both agree with torch.autograd."""
    solve, source, matrix = smooth
    tangents = torch.randn_like(source), torch.randn_like(matrix)
    g = torch.randn_like(source)
    value, forward = torch.func.jvp(solve, (source, matrix), tangents)
    value_too, pullback = torch.func.vjp(solve, source, matrix)
    close(value, value_too)
    backward = pullback(g)
    close((g * forward).sum(), sum((b * t).sum() for b, t in zip(backward, tangents, strict=True)))
    leaves = source.clone().requires_grad_(), matrix.clone().requires_grad_()
    close(backward, torch.autograd.grad(solve(*leaves), leaves, g))


def test_vmap_over_the_source_is_one_solve(smooth: tuple[Function, Tensor, Tensor]) -> None:
    """Mapped sources join the batch."""
    _, source, matrix = smooth
    sources = torch.randn(4, *source.shape, dtype=torch.float64)
    calls: list[tuple[str, int]] = []

    def solve(c: Tensor) -> Tensor:
        problem = splitting.Inclusion(splitting.DenseOperator(matrix), c, splitting.Tanh())
        return splitting.equilibrium(problem, monitor=lambda role, s: calls.append((role, len(s.value))), **TIGHT)

    mapped = torch.func.vmap(solve)(sources)
    assert calls == [("forward", 8)]
    close(mapped, torch.stack([solve(c) for c in sources]))
    close(torch.func.vmap(solve, in_dims=2, out_dims=1)(sources.movedim(0, 2)), mapped.movedim(0, 1))


def test_vmap_over_weights(smooth: tuple[Function, Tensor, Tensor]) -> None:
    """One solve per operator, with the source shared or mapped along."""
    solve, source, matrix = smooth
    matrices = torch.stack([matrix, matrix.mT, 2 * matrix])
    sources = torch.stack([source, source + 1, -source])
    close(torch.func.vmap(solve, (None, 0))(source, matrices), torch.stack([solve(source, A) for A in matrices]))
    pairs = torch.stack([solve(c, A) for c, A in zip(sources, matrices, strict=True)])
    close(torch.func.vmap(solve)(sources, matrices), pairs)


def test_vmap_over_an_activation() -> None:
    """The tensors of the activation map like the source, in one batch."""
    solve, inputs = solution_map(small_operator(), splitting.Scale(torch.full((3,), 0.5, dtype=torch.float64)))
    source, matrix, _ = (t.detach() for t in inputs)
    scales = torch.rand(4, 3, dtype=torch.float64)
    mapped = torch.func.vmap(solve, (None, None, 0))(source, matrix, scales)
    close(mapped, torch.stack([solve(source, matrix, d) for d in scales]))


def test_per_sample_gradients(smooth: tuple[Function, Tensor, Tensor]) -> None:
    """vmap(grad) with respect to A, against one backward pass per sample."""
    solve, source, matrix = smooth

    def loss(A: Tensor, c: Tensor) -> Tensor:
        return solve(c[None], A).pow(3).sum()

    mapped = torch.func.vmap(torch.func.grad(loss), (None, 0))(matrix, source)
    A = matrix.clone().requires_grad_()
    close(mapped, torch.stack([torch.autograd.grad(loss(A, c), A)[0] for c in source]))


SECOND: dict[str, Callable[[Function], Function]] = {
    "reverse over reverse": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "forward over reverse": lambda f: torch.func.jacfwd(torch.func.jacrev(f)),
    "reverse over forward": lambda f: torch.func.jacrev(torch.func.jacfwd(f)),
}


@pytest.mark.parametrize("route", SECOND)
@pytest.mark.parametrize("argument", ["source", "operator"])
def test_hessian(route: str, argument: str, smooth: tuple[Function, Tensor, Tensor]) -> None:
    """Symmetric, and the same by every route as by double backward."""
    solve, source, matrix = smooth

    def loss(x: Tensor) -> Tensor:
        return (solve(x, matrix) if argument == "source" else solve(source, x)).pow(3).sum()

    x = source if argument == "source" else matrix
    hessian = SECOND[route](loss)(x).reshape(x.numel(), x.numel())
    close(hessian, hessian.mT)
    close(hessian, torch.autograd.functional.hessian(loss, x).reshape(hessian.shape))


# -- how it behaves ----------------------------------------------------------------------------------------------


def test_gradient_at_saturation() -> None:
    """Where σ′ = 0 everywhere nothing flows, and nothing is NaN, in the second derivative either."""
    A = splitting.DenseOperator(monotone(3).requires_grad_())
    source = torch.full((2, 3), -50.0, dtype=torch.float64, requires_grad=True)
    z = splitting.equilibrium(splitting.Inclusion(A, source, splitting.ReLU()))
    gradients = torch.autograd.grad(z.sum(), (source, *A.tensors), create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in gradients), (source, *A.tensors))
    assert all((g == 0).all() for g in (*gradients, *second))


def test_kinks_use_the_stated_selection() -> None:
    """Where σ has a kink, the derivative is that of `prox.derivative`: 0 for ReLU at 0."""
    A = splitting.DenseOperator(torch.eye(2, dtype=torch.float64))
    source = torch.tensor([[0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    z = splitting.equilibrium(splitting.Inclusion(A, source, splitting.ReLU()), **TIGHT)
    assert torch.autograd.grad(z.sum(), source)[0].tolist() == [[0.0, 1.0]]


def test_float32_gradients() -> None:
    """In the dtype of the problem, right to its rounding and the tolerance."""
    solve, (source, matrix) = solution_map(small_operator(), splitting.Tanh())
    exact = torch.autograd.grad(solve(source, matrix).sum(), (source, matrix))
    single = source.detach().float().requires_grad_(), matrix.detach().float().requires_grad_()
    problem = splitting.Inclusion(splitting.DenseOperator(single[1]), single[0], splitting.Tanh())
    found = torch.autograd.grad(splitting.equilibrium(problem, tol=1e-6).sum(), single)
    for gradient, reference in zip(found, exact, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-4, atol=1e-5)


def test_autocast_does_not_reach_the_gradient() -> None:
    """Forward and backward pass inside a region of half precision give the bits they give outside."""

    def gradients() -> tuple[Tensor, ...]:
        source, matrix = (t.detach().float().requires_grad_() for t in inputs)
        problem = splitting.Inclusion(splitting.DenseOperator(matrix), source, splitting.Tanh())
        return torch.autograd.grad(splitting.equilibrium(problem).sum(), (source, matrix))

    _, inputs = solution_map(small_operator(), splitting.Tanh())
    plain = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        surrounded = gradients()
    assert all(torch.equal(x, y) for x, y in zip(plain, surrounded, strict=True))


@pytest.mark.parametrize("operator", ["general", "multiscale"])
def test_memory_does_not_grow_with_the_steps(operator: str) -> None:
    """What the graph keeps for the backward pass, forward and double backward: the same for 2 steps and for 300."""

    def kept(max_steps: int) -> tuple[int, int]:
        solve, inputs = solution_map(SMALL_OPERATORS[operator](torch.float64), splitting.Tanh(), max_steps=max_steps)
        sizes: list[int] = []
        pack = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t)
        with pack:
            first = torch.autograd.grad(solve(*inputs).sum(), inputs, create_graph=True)
            torch.autograd.grad(sum(g.sum() for g in first), inputs)
        return len(sizes), sum(sizes)

    few, many = kept(2), kept(300)
    assert few == many
    assert few[0] > 0


def test_monitor_sees_every_solve() -> None:
    """("forward", Solution), then ("backward", Solution) for the adjoint solve with its own tolerance."""
    seen: list[tuple[str, splitting.Solution]] = []
    solve, inputs = solution_map(
        small_operator(),
        splitting.Tanh(),
        tol=1e-4,
        backward_tol=1e-9,
        monitor=lambda role, solution: seen.append((role, solution)),
    )
    z = solve(*inputs)
    assert [role for role, _ in seen] == ["forward"]
    assert torch.equal(seen[0][1].value, z)
    g = torch.ones_like(z)
    (q,) = torch.autograd.grad(z, inputs[0], g)
    assert [role for role, _ in seen] == ["forward", "backward"]
    adjoint = seen[1][1]
    assert torch.equal(adjoint.value, q)
    assert torch.equal(adjoint.problem.source, g)
    assert (seen[0][1].residual > 1e-9).any()
    assert (adjoint.residual <= 1e-9).all()


@pytest.mark.parametrize("forward_fails", [True, False])
def test_a_failing_solve_is_heard(forward_fails: bool) -> None:
    """Too few steps, for both passes or for the backward pass only: a warning by default, an exception or silence."""
    example = known("general", "Tanh")
    outcomes: list[tuple[str, bool]] = []

    def run(**options: object) -> None:
        source = example.problem.source.clone().requires_grad_()
        problem = splitting.Inclusion(example.problem.operator, source, example.problem.prox)
        options |= {"max_steps": 2, "monitor": lambda role, solution: outcomes.append((role, solution.status.ok))}
        z = splitting.equilibrium(problem, initial=None if forward_fails else example.answer, **options)
        torch.autograd.grad(z.sum(), source)

    with pytest.warns(splitting.ConvergenceWarning, match=r"relative residual 1\.0e-06 in 2 steps") as caught:
        run()
    assert outcomes == [("forward", not forward_fails), ("backward", False)]
    passes = [str(warning.message).split(" pass: ")[0] for warning in caught]
    assert passes == [role for role, converged in outcomes if not converged]
    with pytest.raises(splitting.NotConverged, match=f"^{passes[0]} pass: .* did not reach"):
        run(on_failure="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(on_failure="return")


def test_warm_start_and_inputs() -> None:
    """A guess saves steps, gets no gradient, changes no derivative; no input is touched."""
    example = known("general", "Tanh")
    A = example.problem.operator.rebind(*(t.clone().requires_grad_() for t in example.problem.operator.tensors))
    source = example.problem.source.clone().requires_grad_()
    guess = example.answer.clone().requires_grad_()
    copies = [t.detach().clone() for t in (source, guess, *A.tensors)]
    steps: list[int] = []

    def gradient(initial: Tensor | None) -> Tensor:
        problem = splitting.Inclusion(A, source, example.problem.prox)
        z = splitting.equilibrium(
            problem, initial=initial, monitor=lambda _, s: steps.append(int(s.steps.max())), **TIGHT
        )
        return torch.autograd.grad(z.square().sum(), source)[0]

    warm, cold = gradient(guess), gradient(None)
    close(warm, cold)
    assert guess.grad is None
    assert steps[0] < steps[2] / 3
    assert all(torch.equal(t, copy) for t, copy in zip((source, guess, *A.tensors), copies, strict=True))


def test_second_problem_on_the_same_operator() -> None:
    """Solvers and resolvents are values: another solver on the same operator has the same gradient."""
    A = splitting.DenseOperator(monotone(3).requires_grad_())
    source = torch.randn(2, 3, dtype=torch.float64)
    problem = splitting.Inclusion(A, source, splitting.Tanh())
    gradients = []
    for solver in SOLVERS.values():
        z = splitting.equilibrium(problem, solver, **TIGHT)
        gradients.append(torch.autograd.grad(z.square().sum(), A.tensors)[0])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-6, atol=1e-8)


def test_legacy_batched_gradients_are_refused(smooth: tuple[Function, Tensor, Tensor]) -> None:
    """`is_grads_batched` cannot batch the adjoint solve; it raises instead of returning something."""
    solve, source, matrix = smooth
    leaf = source.clone().requires_grad_()
    z = solve(leaf, matrix)
    with pytest.raises(RuntimeError, match=r"[Bb]atching rule"):
        torch.autograd.grad(z, leaf, torch.stack([z.detach(), z.detach()]), is_grads_batched=True)
