"""Equilibrium: any cell as a layer, which solves, learns and promises nothing."""

import copy

import pytest
import torch
from torch import Tensor, nn

import mondeq
import splitting
from splitting import InvalidArgument, InvalidType


class Cell(nn.Module):
    """A contraction of states (2, 4, 4) with an input of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(0.05 * torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(nn.functional.conv2d(z, self.kernel, padding=1) + x)


def batch(count: int = 3) -> Tensor:
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def test_the_output_is_the_fixed_point_with_its_gradients() -> None:
    layer = mondeq.Equilibrium(Cell(), (2, 4, 4), tol=1e-10, max_steps=100).double()
    x = batch().double().requires_grad_()
    z = layer(x)
    torch.testing.assert_close(layer.cell(z, x), z, rtol=0, atol=1e-9)
    unrolled = torch.zeros_like(x)
    for _ in range(100):
        unrolled = layer.cell(unrolled, x)
    tensors = (x, layer.cell.kernel)
    for one, other in zip(*(torch.autograd.grad(v.square().sum(), tensors) for v in (z, unrolled)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("solver", [splitting.Iterate(), splitting.Anderson(splitting.Iterate()), splitting.Broyden()])
def test_it_learns(solver: splitting.Solver) -> None:
    torch.manual_seed(0)
    layer = mondeq.Equilibrium(Cell(), (2, 4, 4), solver, tol=1e-4)
    target, x = 0.5 * torch.randn(3, 2, 4, 4), batch()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        z = layer(x)
        loss = (z - target).square().mean() + 1e-3 * splitting.jacobian_norm(layer.problem(x), z).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_a_warm_start_saves_steps() -> None:
    steps: list[int] = []
    layer = mondeq.Equilibrium(Cell(), (2, 4, 4), monitor=lambda role, s: steps.append(int(s.steps.max())))
    x = batch()
    with torch.no_grad():
        z = layer(x)
        layer(x, initial=z)
    assert steps[1] < steps[0]
    solution = layer.solve(x, initial=z)
    assert solution.status.ok
    assert solution.error_bound.isinf().all()


def test_it_is_a_module_like_any_other() -> None:
    layer = mondeq.Equilibrium(Cell(), (2, 4, 4))
    other = mondeq.Equilibrium(Cell(), (2, 4, 4))
    with torch.no_grad():
        layer.cell.kernel.mul_(1.5)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(batch()), layer(batch()))
    assert torch.equal(copy.deepcopy(layer)(batch()), layer(batch()))


def test_nothing_with_such_a_layer_is_certified() -> None:
    layer = mondeq.Equilibrium(Cell(), (2, 4, 4))
    model = mondeq.Network([layer, nn.Flatten(), nn.Linear(32, 3)], (2, 4, 4))
    assert model(batch()).shape == (3, 3)
    message = "nothing can be certified: the piece `0` is a general fixed point, of which nothing is proved"
    with pytest.raises(InvalidArgument, match=message):
        mondeq.certify(model, batch().abs(), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InvalidArgument, match=message):
        mondeq.lipschitz_bounds(model)


def test_misuse() -> None:
    with pytest.raises(InvalidType, match=r"`cell` must be a torch\.nn\.Module"):
        mondeq.Equilibrium(lambda z, x: z, (2,))  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match="`x` must be a tensor, got list"):
        mondeq.Equilibrium(Cell(), (2, 4, 4))([1.0])  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="`max_steps`"):
        mondeq.Equilibrium(Cell(), (2, 4, 4), max_steps=0)

    class Short(nn.Module):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return z[:, :1]

    with pytest.raises(InvalidArgument, match=r"`f\(z, x\)` must have shape"):
        mondeq.Equilibrium(Short(), (2, 4, 4))(batch())
