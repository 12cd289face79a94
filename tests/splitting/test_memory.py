"""Memory that is used again shows in no result: not in later ones, not in earlier ones, not in another thread."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import splitting
from splitting.operators import torus
from splitting.scratch import _waiting as waiting
from splitting.scratch import recycled
from tests.registry import DTYPES, SMALL_OPERATORS, SOLVERS
from tests.splitting.problems import known

CONVOLUTIONS = ("convolution, 3×5", "convolution, 1×1 kernel", "multiscale")

each_solver = pytest.mark.parametrize("solver", SOLVERS)
convolutions = pytest.mark.parametrize("operator", CONVOLUTIONS)


def work(operator: str, dtype: torch.dtype, batch: int = 3) -> tuple[Tensor, ...]:
    """Everything that intermediate results are made for: a solution, its bound, gradients of both orders."""
    A = SMALL_OPERATORS[operator](dtype)
    random = torch.Generator().manual_seed(batch)
    source = torch.randn(batch, *A.state_shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    leaves = [t.clone().requires_grad_() for t in A.tensors]
    problem = splitting.Inclusion(A.replace(*leaves), source, splitting.Tanh())
    solution = splitting.solve(problem, splitting.Anderson(), tol=1e-5)
    z = splitting.equilibrium(problem, tol=1e-5)
    first = torch.autograd.grad(z.pow(3).sum(), (source, *leaves), create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), (source, *leaves))
    return (solution.value, solution.history, solution.error_bound, z.detach(), *(g.detach() for g in first), *second)


def in_a_new_thread(compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """`compute()` where no memory has been used before."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(compute).result()


def same(results: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(results, others, strict=True))


def spoil() -> None:
    """Overwrite all memory that waits to be used again."""
    for memories in waiting.values():
        for memory in memories:
            memory.fill(255)


CASES = [(operator, dtype, batch) for operator in CONVOLUTIONS for dtype in DTYPES for batch in (1, 4)]


def test_problems_of_several_sizes_in_turn() -> None:
    """Alternating sizes and dtypes gives the bits that each problem gives alone."""
    fresh = [in_a_new_thread(lambda case=case: work(*case)) for case in CASES]
    for _ in range(2):
        assert all(same(work(*case), alone) for case, alone in zip(CASES, fresh, strict=True))


@convolutions
def test_results_do_not_live_in_shared_memory(operator: str) -> None:
    """Overwriting all of it changes neither what has been computed nor what is computed next."""
    before = work(operator, torch.float64)
    copies = tuple(t.clone() for t in before)
    spoil()
    assert same(before, copies)
    assert same(work(operator, torch.float64), copies)


@each_solver
@convolutions
def test_a_solution_outlives_later_solves(operator: str, solver: str) -> None:
    """Value, residual and history of a first solve are not touched by a second one with the same operator."""
    first, second = (known(operator, "Tanh").problem for _ in range(2))
    second = splitting.Inclusion(first.operator, second.source, second.prox)
    solution = splitting.solve(first, SOLVERS[solver], max_steps=12, on_failure="return")
    kept = (solution.value, solution.residual, solution.history)
    copies = tuple(t.clone() for t in kept)
    splitting.solve(second, SOLVERS[solver], max_steps=15, on_failure="return")
    assert same(kept, copies)


def test_two_threads_at_once() -> None:
    """Each has its own memory: the same bits as one after the other."""
    cases = [(operator, dtype, 3) for operator in CONVOLUTIONS for dtype in DTYPES]
    alone = [work(*case) for case in cases]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda case: work(*case), 3 * cases))
    assert all(same(results, expected) for results, expected in zip(together, 3 * alone, strict=True))


LARGE = torch.ones(512, 1024)  # 2 MiB

# Ways to go on sharing the memory of a tensor that itself is gone.
HOLDERS: dict[str, Callable[[Tensor], object]] = {
    "itself": lambda t: t,
    "a view": lambda t: t[3, 5:7],
    "a tensor without a graph": lambda t: t.detach(),
    "another dtype": lambda t: t.view(torch.int32),
    "its storage": lambda t: t.untyped_storage(),
    "an array": lambda t: t.numpy(),
    "a tensor that a graph needs": lambda t: torch.ones((), requires_grad=True) * t,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_recycled_memory_is_free_only_when_nobody_shares_it(holder: str) -> None:
    """A new tensor gets the memory of an old one when the last that shares it is gone, not before."""
    tensor = recycled(LARGE).fill_(1)
    address = tensor.data_ptr()
    held = HOLDERS[holder](tensor)
    del tensor
    other = recycled(LARGE).fill_(2)
    assert other.data_ptr() != address
    if isinstance(held, Tensor) and held.requires_grad:
        held.sum().backward()
    del held
    assert recycled(LARGE).data_ptr() == address
    assert (other == 2).all()


@convolutions
def test_graphs_outlive_later_computations(operator: str) -> None:
    """What a graph of the operator's tensors needs is not overwritten by what is computed before its backward pass."""
    A = SMALL_OPERATORS[operator](torch.float64)
    leaves = [t.clone().requires_grad_() for t in A.tensors]
    B = A.replace(*leaves)
    x, y = torch.randn(2, 3, *A.state_shape, dtype=torch.float64)

    def gradients(disturb: bool) -> tuple[Tensor, ...]:
        outputs = [B.apply(x), B.adjoint.apply(x), *B.pairing_gradient(x, y.clone().requires_grad_())]
        if disturb:
            B.apply(y)
            B.pairing_gradient(y, x)
            with torch.no_grad():
                splitting.solve(splitting.Inclusion(A, y, splitting.ReLU()))
        return torch.autograd.grad(sum(o.square().sum() for o in outputs if o is not None), leaves)

    assert same(gradients(disturb=False), gradients(disturb=True))


@pytest.mark.parametrize("operator", SMALL_OPERATORS)
def test_tangents_of_operator_tensors_are_not_those_of_a_cache(operator: str) -> None:
    """Forward-mode derivatives of A x along a direction, after A has been used without any: linear in the direction."""
    A = SMALL_OPERATORS[operator](torch.float64)
    x = torch.randn(3, *A.state_shape, dtype=torch.float64)
    directions = [torch.randn_like(t) for t in A.tensors]
    A.apply(x)
    tangents = []
    with forward_ad.dual_level():
        for factor in (1, 2):
            duals = [forward_ad.make_dual(t, factor * d) for t, d in zip(A.tensors, directions, strict=True)]
            tangents.append(forward_ad.unpack_dual(A.rebind(*duals).apply(x)).tangent)
    _, expected = torch.func.jvp(lambda *ts: A.replace(*ts).apply(x), A.tensors, tuple(directions))
    torch.testing.assert_close(tangents[0], expected)
    torch.testing.assert_close(tangents[1], 2 * expected)


def test_large_results_are_no_views() -> None:
    """They can be changed in place by what is recorded, as small ones can."""
    A = splitting.ConvolutionOperator(torch.ones(1, 1, 1, 1), (64, 64))
    problem = splitting.Inclusion(A, torch.ones(128, 1, 64, 64), splitting.ReLU())
    value = splitting.solve(problem).value
    assert value.nbytes >= 2**20
    weight = torch.ones((), requires_grad=True)
    value.mul_(weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.usefixtures("_nothing_remembered")
def test_another_default_device() -> None:
    """Memory and constants are on the device of the operands, whatever the default device is."""

    A = SMALL_OPERATORS["multiscale"](torch.float64)
    z = torch.ones(3, *A.state_shape, dtype=torch.float64)
    large = torch.ones(2**18)
    with torch.device("meta"):
        assert {t.device.type for t in (A.apply(z), *A.pairing_gradient(z, z), recycled(large))} == {"cpu"}


def test_many_threads_recycle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads never get the same memory, and none fails."""
    monkeypatch.setattr("splitting.scratch._MOST_WAITING", 3 * LARGE.nbytes)

    def use(number: int) -> bool:
        for _ in range(200):
            tensor = recycled(LARGE).fill_(number)
            if not bool((tensor == number).all()):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(8)))


def test_recycled_memory_of_operators() -> None:
    """Nothing keeps what an operator and its resolvent are made of once they are gone: no references in a circle."""
    kernel, z = torch.eye(48)[:, :, None, None] + 1e-3 * torch.randn(48, 48, 1, 1), torch.randn(2, 48, 12, 12)

    def matrices() -> set[int]:
        A = splitting.ConvolutionOperator(kernel, (12, 12))
        A.apply(z)
        return {A.resolvent(0.5).reflectors[0].data_ptr(), A._symbols().stacked_A[0].data_ptr()}

    assert matrices() == matrices()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_recycled_tensors_are_like_new_ones(dtype: torch.dtype) -> None:
    """Shape, dtype and strides are those of torch.empty_like, also where memory is used again."""
    for like in (LARGE.to(dtype), LARGE.to(dtype).mT, LARGE.to(dtype)[:, ::2], LARGE.to(dtype)[:0], torch.ones(3)):
        for _ in range(2):
            made, expected = recycled(like), torch.empty_like(like)
            assert (made.shape, made.dtype, made.stride()) == (expected.shape, expected.dtype, expected.stride())
        assert recycled(like, (2, 512, 512)).shape == (2, 512, 512)
    assert torch.func.vmap(lambda t: recycled(t).copy_(t))(LARGE).equal(LARGE)


def test_little_memory_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits goes back to the system when too much does."""
    monkeypatch.setattr("splitting.scratch._MOST_WAITING", 3 * LARGE.nbytes)
    held = [recycled(LARGE) for _ in range(5)]
    del held
    assert sum(len(memory) for memories in waiting.values() for memory in memories) <= 3 * LARGE.nbytes


@pytest.fixture
def _nothing_remembered() -> Iterator[None]:
    """The matrices of the transforms, which all operators share, are made anew: before the test and after it."""
    caches = [c for c in vars(torus).values() if hasattr(c, "cache_clear")]
    assert caches
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@convolutions
@pytest.mark.usefixtures("_nothing_remembered")
def test_inference_mode_leaves_nothing_behind(operator: str) -> None:
    """What is first computed under `torch.inference_mode` can be differentiated outside of it."""

    def inside_then_outside() -> tuple[Tensor, ...]:
        A = SMALL_OPERATORS[operator](torch.float64)
        z = torch.ones(2, *A.state_shape, dtype=torch.float64)
        with torch.inference_mode():
            A.adjoint.apply(A.apply(z))
            A.pairing_gradient(z, z)
            problem = splitting.Inclusion(A, z, splitting.ReLU())
            assert (splitting.solve(problem).error_bound < 1e-3).all()
        z.requires_grad_()
        assert torch.autograd.grad(A.apply(z).sum(), z)[0].isfinite().all()
        return work(operator, torch.float64)

    results = in_a_new_thread(inside_then_outside)
    assert same(results, in_a_new_thread(lambda: work(operator, torch.float64)))


# One training step with a state of 1 MiB: what the process ever held, in states, after 10 and after 300 solver steps.
TRAINING_STEP = """
import resource
import sys
import torch
import splitting

torch.set_num_threads(1)
torch.manual_seed(0)
kernel = 0.02 * torch.randn(8, 8, 3, 3)
kernel[:, :, 1, 1] += torch.eye(8)
source = torch.randn(32, 8, 32, 32)
steps = []

def train(max_steps):
    leaves = [t.clone().requires_grad_() for t in (kernel, source)]
    A = splitting.ConvolutionOperator(leaves[0], (32, 32))
    z = splitting.equilibrium(
        splitting.Inclusion(A, leaves[1], splitting.ReLU()), splitting.PeacemanRachford(1e-3),
        tol=1e-30, max_steps=max_steps, on_failure="return", monitor=lambda _, s: steps.append(len(s.history)),
    )
    z.square().sum().backward()

def peak():
    # In bytes on macOS, in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

for _ in range(3):
    train(10)
few = peak()
train(300)
print(steps[-2], steps[-1], peak() - few)
"""


def test_memory_of_a_training_step_does_not_grow_with_the_steps() -> None:
    """Forward and backward pass of 300 steps hold what those of 10 do, up to a few states of 1 MiB: not hundreds."""
    run = subprocess.run([sys.executable, "-c", TRAINING_STEP], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    forward, backward, growth = map(float, run.stdout.split())
    assert (forward, backward) == (300, 300)
    assert growth < 30
