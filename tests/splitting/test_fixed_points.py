"""General fixed points: the answers of linear solves, the same answers as inclusions, derivatives of every order."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import splitting
from tests.registry import monotone

SOLVERS: dict[str, splitting.Solver] = {
    "Iterate": splitting.Iterate(),
    "Iterate, damped": splitting.Iterate(0.6),
    "Anderson(Iterate)": splitting.Anderson(splitting.Iterate()),
    "Broyden": splitting.Broyden(),
    "Broyden, little memory": splitting.Broyden(memory=3),
}
each_solver = pytest.mark.parametrize("solver", sorted(SOLVERS))


class Cell(nn.Module):
    """z ↦ tanh(Wz + Ux), a contraction."""

    def __init__(self, n: int = 5, inputs: int = 3, gain: float = 0.7, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        W = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.W = nn.Parameter((gain * W / torch.linalg.matrix_norm(W, 2)).to(dtype))
        self.U = nn.Linear(inputs, n, dtype=dtype)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.W.mT + self.U(x))


def inputs(count: int = 4, size: int = 3) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def problem_of(cell: Callable[..., Tensor], x: Tensor, n: int = 5, *parameters: Tensor) -> splitting.FixedPoint:
    return splitting.FixedPoint(cell, x, torch.zeros(len(x), n, dtype=x.dtype), parameters)


@each_solver
def test_linear_cells_are_linear_solves(solver: str) -> None:
    W = 0.4 * monotone(6) / torch.linalg.matrix_norm(monotone(6), 2)
    c = inputs(size=6)
    problem = splitting.FixedPoint(lambda z, x: z @ W.mT + x, c, torch.zeros_like(c))
    solution = splitting.solve(problem, SOLVERS[solver], tol=1e-12)
    expected = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - W, c.mT).mT
    torch.testing.assert_close(solution.value, expected, rtol=1e-10, atol=1e-11)
    # The residual is that of the value: ‖f(z) − z‖/‖z‖.
    residual = (solution.value @ W.mT + c - solution.value).norm(dim=1) / solution.value.norm(dim=1)
    torch.testing.assert_close(solution.residual, residual, rtol=1e-2, atol=1e-15)


@pytest.mark.parametrize("activation", [splitting.ReLU(), splitting.Tanh(), splitting.Softplus()], ids=str)
@each_solver
def test_monotone_cells_are_inclusions(solver: str, activation: splitting.Activation) -> None:
    A = splitting.DenseOperator(0.7 * monotone(6, gain=0.7, skew=0.3))
    inclusion = splitting.Inclusion(A, inputs(size=6), activation)
    expected = splitting.solve(inclusion, tol=1e-12)
    W = torch.eye(6, dtype=torch.float64) - A.matrix
    general = splitting.FixedPoint(lambda z, x: activation(z @ W.mT + x), inclusion.source, inclusion.source * 0)
    for problem in (inclusion, general):
        solution = splitting.solve(problem, SOLVERS[solver], tol=1e-11, max_steps=2000)
        torch.testing.assert_close(solution.value, expected.value, rtol=1e-9, atol=1e-9)


@each_solver
def test_residuals_of_inclusions_bound_their_distance(solver: str) -> None:
    """Those of iterations too: ‖z − z*‖ ≤ ‖r‖/m."""
    A = splitting.DenseOperator(monotone(6, gain=0.7, skew=0.3))
    problem = splitting.Inclusion(A, inputs(size=6), splitting.Tanh())
    exact = splitting.solve(problem, tol=1e-13).value
    rough = splitting.solve(problem, SOLVERS[solver], tol=1e-3)
    size = A.norm_bound * rough.value.norm(dim=1) + problem.source.norm(dim=1)
    distance = (rough.value - exact).norm(dim=1)
    assert (distance <= rough.residual * size / A.strong_monotonicity * (1 + 1e-9)).all()
    assert (distance <= rough.error_bound).all()


def test_where_iteration_diverges_the_others_do_not_need_a_contraction() -> None:
    W = torch.diag(torch.tensor([-3.0, 2.5, 0.5, -1.5], dtype=torch.float64))
    x = inputs(size=4)
    problem = splitting.FixedPoint(lambda z, x: z @ W + x, x, torch.zeros_like(x))
    expected = x / (1 - W.diagonal())
    for solver in (splitting.Broyden(), splitting.Anderson(splitting.Iterate(), memory=6)):
        solution = splitting.solve(problem, solver, tol=1e-10, max_steps=200)
        torch.testing.assert_close(solution.value, expected, rtol=1e-7, atol=1e-8)
    plain = splitting.solve(problem, splitting.Iterate(), on_failure="return")
    assert not plain.converged.any()
    long = splitting.solve(problem, splitting.Iterate(), max_steps=2000, on_failure="return")
    assert "f does not contract here" in long.status.text


def test_broyden_solves_a_linear_problem_in_twice_its_dimension() -> None:
    """Gay 1979."""
    W = monotone(5) / 2
    x = inputs(size=5)
    problem = splitting.FixedPoint(lambda z, x: z @ W.mT + x, x, torch.zeros_like(x))
    assert int(splitting.solve(problem, splitting.Broyden(), tol=1e-8).steps.max()) <= 2 * 5 + 1


@each_solver
def test_a_sample_does_not_notice_its_batch_mates(solver: str) -> None:
    cell, x = Cell(), inputs() * torch.tensor([[1.0], [1e-3], [10.0], [0.0]], dtype=torch.float64)
    together = splitting.solve(problem_of(cell, x), SOLVERS[solver], tol=1e-9)
    for i in range(4):
        alone = splitting.solve(problem_of(cell, x[i : i + 1]), SOLVERS[solver], tol=1e-9)
        assert together.steps[i] == alone.steps[0]
        torch.testing.assert_close(together.value[i], alone.value[0], rtol=1e-9, atol=1e-12)


@each_solver
def test_nothing_is_proved(solver: str) -> None:
    solution = splitting.solve(problem_of(Cell(), inputs()), SOLVERS[solver])
    assert solution.status.ok
    assert solution.error_bound.tolist() == [math.inf] * 4


def test_a_sample_that_leaves_the_finite_numbers_is_alone_in_it() -> None:
    x = torch.tensor([[0.5], [3.0]], dtype=torch.float64)
    problem = splitting.FixedPoint(lambda z, x: z * x + 1, x, torch.zeros_like(x))
    solution = splitting.solve(problem, splitting.Iterate(), max_steps=1500, on_failure="return")
    assert solution.converged.tolist() == [True, False]
    assert solution.value[0].item() == pytest.approx(2, rel=1e-5)


# -- derivatives ---------------------------------------------------------------------------------------------------


def functional(z: Tensor, x: Tensor, W: Tensor, U: Tensor) -> Tensor:
    return torch.tanh(z @ W.mT + x @ U.mT)


@each_solver
def test_derivatives_of_two_orders(solver: str) -> None:
    cell = Cell(n=3, inputs=2)
    tensors = [t.detach().clone().requires_grad_() for t in (inputs(2, 2), cell.W, cell.U.weight)]

    def state(x: Tensor, W: Tensor, U: Tensor) -> Tensor:
        problem = problem_of(functional, x, 3, W, U)
        return splitting.equilibrium(problem, SOLVERS[solver], tol=1e-13, max_steps=2000)

    assert torch.autograd.gradcheck(state, tensors)
    assert torch.autograd.gradgradcheck(state, tensors)


def test_derivatives_of_the_third_order() -> None:
    w, x = (torch.tensor([[v]], dtype=torch.float64, requires_grad=True) for v in (0.3, 0.7))

    def thrice(solve: Callable[[], Tensor]) -> list[Tensor]:
        y, found = solve(), []
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), w, create_graph=True)
            found.append(y.detach())
        return found

    def unrolled() -> Tensor:
        z = torch.zeros(1, 1, dtype=torch.float64)
        for _ in range(80):
            z = torch.tanh(z * w + x)
        return z

    def implicit() -> Tensor:
        problem = problem_of(lambda z, x, w: torch.tanh(z * w + x), x, 1, w)
        return splitting.equilibrium(problem, splitting.Broyden(), tol=1e-14)

    for one, other in zip(thrice(implicit), thrice(unrolled), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_weights_of_a_module_and_its_input_may_depend_on_each_other() -> None:
    """Each derivative is taken with the other tensors fixed: no path is counted twice."""
    cell = Cell(n=3, inputs=3)

    def gradient(solve: Callable[[Tensor], Tensor]) -> Tensor:
        x = torch.ones(1, 3, dtype=torch.float64) @ cell.W  # made of a weight of the cell itself
        (found,) = torch.autograd.grad(solve(x).square().sum(), cell.W)
        return found

    def unrolled(x: Tensor) -> Tensor:
        z = torch.zeros(1, 3, dtype=torch.float64)
        for _ in range(200):
            z = cell(z, x)
        return z

    implicit = gradient(lambda x: splitting.equilibrium(problem_of(cell, x, 3), splitting.Broyden(), tol=1e-13))
    torch.testing.assert_close(implicit, gradient(unrolled), rtol=1e-9, atol=1e-11)


def test_gradients_that_would_be_lost_are_refused() -> None:
    cell = Cell()
    hidden = splitting.FixedPoint(lambda z, x: cell(z, x), inputs(), torch.zeros(4, 5, dtype=torch.float64))
    with pytest.raises(splitting.InvalidArgument, match="whose gradient would be lost"):
        splitting.equilibrium(hidden, splitting.Broyden())
    x = inputs().requires_grad_()
    state = splitting.equilibrium(problem_of(lambda z, x: cell(z, x), x), splitting.Broyden())
    with pytest.raises(splitting.InvalidArgument, match="whose gradient would be lost"):
        state.sum().backward()
    with torch.no_grad():
        assert not splitting.equilibrium(hidden, splitting.Broyden()).requires_grad


@pytest.mark.parametrize("kind", ["fixed point", "inclusion"])
def test_approximate_gradients(kind: str) -> None:
    """One step is the first term of the Neumann series, unrolled steps are more terms, and all are the gradient."""
    matrix = monotone(5, gain=0.5, skew=0.2).requires_grad_()
    c, eye = inputs(size=5), torch.eye(5, dtype=torch.float64)

    def problem() -> splitting.Problem:
        if kind == "inclusion":
            return splitting.Inclusion(splitting.DenseOperator(matrix), c, splitting.Tanh())
        return problem_of(lambda z, x, A: torch.tanh(z - z @ A.mT + x), c, 5, matrix)

    def gradient(how: splitting.Gradient) -> Tensor:
        z = splitting.equilibrium(problem(), splitting.Broyden(), tol=1e-12, gradient=how)
        (found,) = torch.autograd.grad(z.sum(), matrix)
        return found

    z = splitting.equilibrium(problem(), splitting.Broyden(), tol=1e-12).detach()
    d = 1 - z.square()
    first = -torch.einsum("bi,bj->ij", d, z)  # σ′ g zᵀ for g = 1
    torch.testing.assert_close(gradient(splitting.OneStep()), first, rtol=1e-8, atol=1e-10)
    J = d[:, :, None] * (eye - matrix.detach())
    g = torch.ones_like(z)
    total, term = torch.zeros_like(z), 0.5 * g
    for _ in range(3):  # z⁺ = (z + T(z))/2 has the Jacobian (I + J)/2
        total, term = total + term, 0.5 * (term + torch.einsum("bij,bi->bj", J, term))
    expected = -torch.einsum("bi,bj->ij", d * total, z)
    torch.testing.assert_close(gradient(splitting.Unrolled(3, 0.5)), expected, rtol=1e-8, atol=1e-10)
    exact = gradient(splitting.Implicit())
    torch.testing.assert_close(gradient(splitting.Unrolled(400, 1.0)), exact, rtol=1e-7, atol=1e-9)


def test_the_size_of_a_jacobian_is_unbiased_and_differentiable() -> None:
    cell = Cell(n=4)
    problem, z = problem_of(cell, inputs(), 4), torch.zeros(4, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    estimate = splitting.jacobian_norm(problem, z, draws=4000, generator=generator)
    slopes = 1 - torch.tanh(cell.U(inputs())).square()
    exact = (slopes[:, :, None] * cell.W).square().sum((1, 2))
    torch.testing.assert_close(estimate, exact, rtol=0.1, atol=0)
    found, expected = (torch.autograd.grad(v.mean(), cell.W)[0] for v in (estimate, exact))
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0.05 * float(expected.abs().max()))
    before = torch.get_rng_state()
    splitting.jacobian_norm(problem, z, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    """No step leaves a graph: tensors that live after a solve are as many after ten steps as after three hundred."""
    import gc

    def living(steps: int) -> int:
        cell = Cell()
        z = splitting.equilibrium(
            problem_of(cell, inputs()), splitting.Iterate(), tol=1e-30, max_steps=steps, on_failure="return"
        )
        z.sum().backward()
        gc.collect()
        return sum(isinstance(o, Tensor) for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter))

    living(5)
    assert living(10) == living(300)


# -- arguments -----------------------------------------------------------------------------------------------------

X, Z = torch.zeros(2, 3), torch.zeros(2, 4)
MISUSE: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: splitting.FixedPoint(None, X, Z), splitting.InvalidType, "`f` must be a function"),  # type: ignore[arg-type]
    (lambda: splitting.FixedPoint(Cell(), [1.0], Z), splitting.InvalidType, "`source` must be a tensor"),  # type: ignore[arg-type]
    (lambda: splitting.FixedPoint(Cell(), X, Z[0]), splitting.InvalidArgument, "`like` must be states"),
    (lambda: splitting.FixedPoint(Cell(), X, Z.int()), splitting.InvalidArgument, "`like` must be states"),
    (lambda: splitting.FixedPoint(Cell(), X, Z[:1]), splitting.InvalidArgument, "the 1 samples of `like`"),
    (
        lambda: splitting.solve(splitting.FixedPoint(lambda z, x: z[:, :2], X, Z), splitting.Iterate()),
        splitting.InvalidArgument,
        r"`f\(z, x\)` must have shape \(batch, 4\)",
    ),
    (
        lambda: splitting.solve(splitting.FixedPoint(lambda z, x: z.double(), X, Z), splitting.Iterate()),
        splitting.InvalidType,
        "torch.float64 but the problem is torch.float32",
    ),
    (
        lambda: splitting.solve(splitting.FixedPoint(lambda z, x: z, X, Z)),
        splitting.InvalidType,
        "which PeacemanRachford cannot split",
    ),
    (
        lambda: splitting.solve(splitting.FixedPoint(lambda z, x: z, X, Z), splitting.Anderson()),
        splitting.InvalidType,
        "which PeacemanRachford cannot split",
    ),
    (lambda: splitting.Iterate(0.0), splitting.InvalidArgument, "`damping`"),
    (lambda: splitting.Iterate(True), splitting.InvalidType, "`damping`"),
    (lambda: splitting.Broyden(0), splitting.InvalidArgument, "`memory`"),
    (lambda: splitting.Unrolled(0), splitting.InvalidArgument, "`steps`"),
    (lambda: splitting.Unrolled(damping=2), splitting.InvalidArgument, "`damping`"),
    (
        lambda: splitting.jacobian_norm(splitting.FixedPoint(lambda z, x: z, X, Z), Z, draws=0),
        splitting.InvalidArgument,
        "`draws`",
    ),
    (
        lambda: splitting.equilibrium(splitting.FixedPoint(lambda z, x: z, X, Z), splitting.Iterate(), gradient="x"),  # type: ignore[arg-type]
        splitting.InvalidType,
        "`gradient`",
    ),
]


@pytest.mark.parametrize(("call", "exception", "text"), MISUSE, ids=[str(i) for i in range(len(MISUSE))])
def test_misuse(call: Callable[[], object], exception: type[Exception], text: str) -> None:
    with pytest.raises(exception, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
