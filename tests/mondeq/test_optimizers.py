"""Muon: what a step is, which weights it moves, and that it learns what Adam learns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mondeq
from mondeq.training.optimizers import OPTIMIZERS, Muon, orthogonalised
from tests.mondeq.zoo import SMALL, own


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    exponents=st.lists(st.floats(-2.3, 0), min_size=12, max_size=12),
    scale=st.floats(-6, 6),
    seed=st.integers(0, 99),
)
def test_singular_values_become_equal(rows: int, columns: int, exponents: list[float], scale: float, seed: int) -> None:
    """Whatever their size; the singular vectors stay."""
    torch.manual_seed(seed)
    U, _, vh = torch.linalg.svd(torch.randn(rows, columns, dtype=torch.float64), full_matrices=False)
    values = 10.0 ** torch.tensor(exponents, dtype=torch.float64)[: len(vh)]
    values *= max(1.0, 1 / 400 / float((values / values.norm()).min()))
    matrix = U @ torch.diag(values) @ vh * 10**scale
    core = U.mT @ orthogonalised(matrix) @ vh.mT
    found = core.diagonal()
    torch.testing.assert_close(core, torch.diag(found), atol=1e-9, rtol=0)
    share = values / values.norm()
    assert ((found >= 0.68) & (found <= 1.21))[share >= 1 / 500].all()
    assert (found > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_stay_zeros(dtype: torch.dtype) -> None:
    assert torch.equal(orthogonalised(torch.zeros(3, 5, dtype=dtype)), torch.zeros(3, 5, dtype=dtype))


def test_a_step_is_that_of_torch() -> None:
    """torch.optim.Muon is the reference for matrices; it computes in bfloat16."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 6 * 40).reshape(6, 40)) for _ in range(2))
    mine = Muon([ours], lr=0.01, weight_decay=0.3)
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(6, 40)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        before = ours.detach().clone()
        mine.step()
        reference.step()
        # Several steps of a hundredth, and bfloat16 has two digits and a half.
        torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)
        assert float((ours.detach() - before).abs().max()) > 5e-3


def test_a_filter_moves_as_the_matrix_of_its_rows() -> None:
    torch.manual_seed(1)
    filters = torch.nn.Parameter(torch.randn(4, 3, 5, 5))
    matrix = torch.nn.Parameter(filters.detach().flatten(1).clone())
    filters.grad = torch.randn(4, 3, 5, 5)
    matrix.grad = filters.grad.flatten(1).clone()
    Muon([filters], lr=0.1).step()
    Muon([matrix], lr=0.1).step()
    assert torch.equal(filters.flatten(1), matrix)


def test_what_has_no_gradient_stays() -> None:
    still, moved = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = Muon([still, moved], lr=0.1)
    moved.grad = torch.eye(2)
    optimizer.step()
    assert torch.equal(still, torch.ones(2, 2))
    assert not torch.equal(moved, torch.ones(2, 2))
    assert not optimizer.state.get(still)


def test_a_closure_is_called_with_gradients_and_its_loss_returned() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight], lr=0.1)

    def closure() -> float:
        loss = (weight**2).sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert not torch.equal(weight, torch.ones(2, 2))


def weights_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


@pytest.mark.parametrize("kind", sorted(mondeq.PRESETS))
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_weight_has_one_optimiser(name: str, kind: str) -> None:
    shape = {"image_shape": (1, 8, 8), "classes": 4, "mean": (0.0,), "std": (1.0,)}
    model = mondeq.Classifier(mondeq.ModelConfig(kind, **shape, **own(kind, SMALL.get(kind, {}))))
    optimizers = OPTIMIZERS[name](model, 0.01, 0.0)
    ids = [id(weight) for optimizer in optimizers for weight in weights_of(optimizer)]
    assert sorted(ids) == sorted(map(id, model.parameters()))
    for optimizer in optimizers:
        assert not isinstance(optimizer, Muon) or all(weight.ndim > 1 for weight in weights_of(optimizer))
    if name == "muon":
        moved = {id(weight) for each in optimizers if isinstance(each, Muon) for weight in weights_of(each)}
        matrices = {id(weight) for weight in model.parameters() if weight.ndim > 1}
        # All but those of a last layer that solves nothing.
        heads = [piece for label, piece in model.named_children() if label == "head"]
        assert matrices - moved == {id(weight) for head in heads for weight in head.parameters() if weight.ndim > 1}
