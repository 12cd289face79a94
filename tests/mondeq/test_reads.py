"""How often the host asks a device for values: at most three times per solve, whatever its steps and its weights.

A test stands in for the accelerator: asking is said not to be free there, and all that asks is counted.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import mondeq
import splitting
from splitting.operators import inverse
from tests.mondeq.test_devices import NETWORKS
from tests.mondeq.zoo import model_for, tiny_dataset


class Cell(nn.Module):
    """(z, x) ↦ tanh(Wz + x), a contraction."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.5 * self.inner(z) + x)


def reflected(width: int = 6) -> mondeq.Network:
    torch.manual_seed(0)
    pieces = {
        "pictures": mondeq.ResidualLayer(mondeq.ReflectedConv2d(1, width, 4, m=0.5)),
        "flatten": nn.Flatten(),
        "vectors": mondeq.ResidualLayer(mondeq.ReflectedDense(16, width, m=0.5)),
        "head": nn.Linear(16, 3),
    }
    return mondeq.Network(pieces, (1, 4, 4))


def general(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), mondeq.Equilibrium(Cell(width), (width,)))


KINDS: dict[str, Callable[[], nn.Module]] = {**NETWORKS, "reflected": reflected, "general": general}
# The same kinds with more weights, and more of them.
WIDER: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: model_for(tiny_dataset(), "dense", features=40, learn_m=True),
    "lipschitz": lambda: model_for(tiny_dataset(), "lipschitz", features=40),
    "conv": lambda: model_for(tiny_dataset(), "conv", channels=(12,), weight_norm=True),
    "multiscale": lambda: model_for(tiny_dataset(), "multiscale", channels=(4, 6, 8), weight_norm=True),
    "reflected": lambda: reflected(14),
    "general": lambda: general(40),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


class Reads(TorchDispatchMode):
    """Counts the operations whose result the host waits for: scalars, comparisons, and sizes that values decide."""

    WAIT = frozenset({"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique", "_unique2"})

    # They hand values to Python without an operation that a dispatch mode sees.
    METHODS = ("tolist", "numpy", "cpu", "to", "__array__")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> "Reads":
        for name in self.METHODS:
            self.patch.setattr(torch.Tensor, name, self._counting(getattr(torch.Tensor, name)))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patch.undo()

    def _counting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            if method.__name__ != "to" or any(str(a) == "cpu" for a in (*arguments, *options.values())):
                self.seen.append(method.__name__)
            return method(tensor, *arguments, **options)

        return counted

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        masks = name.startswith("index") and any(
            isinstance(a, Tensor) and a.dtype == torch.bool
            for index in arguments
            if isinstance(index, (list, tuple))
            for a in index
        )
        if name in self.WAIT or masks:
            self.seen.append(name)
        return function(*arguments, **(options or {}))

    @property
    def count(self) -> int:
        return len(self.seen)


@pytest.fixture(autouse=True)
def _asking_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitting.context._FREE_TO_ASK", frozenset())


@contextmanager
def free_to_ask() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("splitting.context._FREE_TO_ASK", frozenset({"cpu"}))
        yield


def solved_layers(network: nn.Module) -> list[Any]:
    return [m for m in network.modules() if isinstance(m, (mondeq.EquilibriumLayer, mondeq.Equilibrium))]


def reads(network: nn.Module, tol: float) -> dict[str, float]:
    """Reads per solve, of a training step and of evaluations whose weights are kept."""
    layers, steps = solved_layers(network), []
    for layer in layers:
        layer.tol = layer.backward_tol = tol
        layer.max_steps, layer.on_failure = 300, "raise"
        layer.monitor = lambda _, solution: steps.append(len(solution.history))
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    # What depends on shapes alone, such as masks and orders of frequencies, is made on the CPU once per process.
    network.train()(x).sum().backward()
    steps.clear()
    with Reads() as forward:
        y = network.train()(x)
    with Reads() as backward:
        y.square().sum().backward()
    network.eval()(x)
    with Reads() as evaluation:
        network(x)
    with torch.no_grad(), Reads() as without_graph:
        network(x)
    counts = {"forward": forward, "backward": backward, "evaluation": evaluation, "without a graph": without_graph}
    found = {name: each.count / len(layers) for name, each in counts.items()}
    assert len(steps) == 5 * len(layers)
    return found | {"steps": sum(steps)}


def test_reads_are_counted() -> None:
    x = torch.arange(4.0)
    asks: list[Callable[[], object]] = [
        lambda: x.sum().item(),
        lambda: float(x[0]),
        lambda: bool((x > 0).all()),
        lambda: x.tolist(),
        lambda: x.numpy(),
        lambda: x.to("cpu"),
        lambda: x.cpu(),
        lambda: torch.equal(x, x),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: splitting.context.on_host(x, x.sum()),
    ]
    for ask in asks:
        with Reads() as counted:
            ask()
        assert counted.count == 1
    with Reads() as counted:
        torch.where(x > 1, x, 0.0).cumsum(0)[1:].exp()
    assert counted.count == 0


@every_kind
@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-5])
def test_at_most_three_reads_per_solve(kind: str, tol: float) -> None:
    """One for the numbers of a new operator, or to see that the weights are those of the kept one; two in the loop."""
    found = reads(KINDS[kind](), tol)
    assert found["forward"] <= 3
    assert found["backward"] <= 2
    assert found["evaluation"] <= 3
    assert found["without a graph"] <= 3


@every_kind
def test_no_step_costs_a_read(kind: str) -> None:
    """More steps cost one more question in the loop at most."""
    few, many = reads(KINDS[kind](), 1e-1), reads(KINDS[kind](), 1e-5)
    assert many.pop("steps") >= 1.5 * few.pop("steps")
    assert all(many[name] - few[name] <= 1 for name in few)


@pytest.mark.parametrize("kind", WIDER)
def test_no_weight_costs_a_read(kind: str) -> None:
    narrow, wide = KINDS[kind](), WIDER[kind]()
    assert sum(p.numel() for p in wide.parameters()) > 2 * sum(p.numel() for p in narrow.parameters())
    few, many = reads(narrow, 1e-1), reads(wide, 1e-1)
    for name in ("forward", "backward", "evaluation", "without a graph"):
        assert many[name] <= max(few[name], 3), name


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("m", [0.1, 1.0])
def test_few_steps_are_wasted(m: float, tol: float) -> None:
    """Asking seldom costs steps: at most a quarter of those that are needed, or those before the first question."""
    torch.manual_seed(0)
    layer = mondeq.EquilibriumLayer(mondeq.Dense(16, 30, m), tol=tol).eval()
    x = torch.rand(20, 16)
    rarely = layer.solve(x)
    with free_to_ask():
        often = layer.solve(x)
    assert torch.equal(rarely.value, often.value)
    assert torch.equal(rarely.steps, often.steps)
    needed = len(often.history)
    assert needed <= len(rarely.history) <= max(5, math.ceil(1.25 * needed) + 1)


@pytest.mark.parametrize("kind", ["dense", "conv", "multiscale"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_wrong_inverse_is_found_whenever_it_is_used(
    kind: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its probe is judged with the first answer of the loop, and again if a caller goes on."""
    right = inverse.torch.linalg.inv_ex

    def wrong(matrix: Tensor) -> Any:
        return right(1.5 * matrix)

    monkeypatch.setattr(inverse.torch.linalg, "inv_ex", wrong)
    network = KINDS[kind]().train(training)
    x = torch.rand(6, 1, 4, 4)
    for _ in range(2):
        with pytest.raises(splitting.ResolventError, match="is wrong by"):
            network(x)
    layer = solved_layers(network)[0]
    operator = layer.linear.operator().frozen()
    for _ in range(2):
        with pytest.raises(splitting.ResolventError, match="is wrong by"):
            operator.resolvent(operator.typical_step)


@pytest.mark.parametrize("size", [1e-30, 1e-8, 1.0, 1e25, math.nan], ids=str)
def test_samples_out_of_range_are_solved_as_elsewhere(size: float) -> None:
    """What a solve learns late that it should have known is made good for."""
    torch.manual_seed(0)
    A, source = splitting.DenseOperator(2 * torch.eye(5) + 0.3 * torch.rand(5, 5)), torch.randn(4, 5)
    source[1] *= size
    for activation in (splitting.ReLU(), splitting.Tanh()):
        problem = splitting.Inclusion(A, source, activation)
        rarely = splitting.solve(problem, on_failure="return")
        with free_to_ask():
            often = splitting.solve(problem, on_failure="return")
        assert rarely.status.outcome == often.status.outcome
        for name in ("value", "residual", "converged"):
            assert torch.equal(getattr(rarely, name).nan_to_num(), getattr(often, name).nan_to_num())


@every_kind
def test_what_is_read_together_is_what_is_read_one_by_one(kind: str) -> None:
    """Steps and bounds of an operator do not depend on how they were read, to the last bit."""
    network = KINDS[kind]()
    for layer in solved_layers(network):
        if not isinstance(layer, mondeq.EquilibriumLayer):
            continue
        together = layer.linear.operator().frozen()
        found = [together.typical_step, together.norm_bound, together.distance_bound(0.3), together.frobenius]
        found += [together.distance_bound(1 / together.typical_step), together.strong_monotonicity]
        with free_to_ask():
            single = layer.linear.operator().frozen()
            expected = [single.typical_step, single.norm_bound, single.distance_bound(0.3), single.frobenius]
            expected += [single.distance_bound(1 / single.typical_step), single.strong_monotonicity]
        assert found == expected


class Coupled(mondeq.Dense):
    """An operator of U too, by a method that it inherits."""

    @property
    def m(self) -> Tensor:
        return 1 + self.U.square().mean()


@pytest.mark.parametrize("name", ["U", "b", "F", "G"])
@pytest.mark.parametrize("linear", [mondeq.Dense, Coupled])
def test_evaluation_compares_what_decides_the_operator(linear: type[mondeq.Dense], name: str) -> None:
    """For Dense these are F, G and m. A class that inherits from it may mean other ones."""
    torch.manual_seed(0)
    layer, x = mondeq.EquilibriumLayer(linear(4, 5), tol=1e-6).eval(), torch.rand(3, 4)
    layer(x)
    kept = layer._kept
    getattr(layer.linear, name).data.mul_(1.5)
    anew = mondeq.EquilibriumLayer(layer.linear, tol=1e-6).eval()
    assert torch.equal(layer(x), anew(x))
    assert (layer._kept is kept) == (linear is mondeq.Dense and name in "Ub")
