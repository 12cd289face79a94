"""The benchmark of bounds: constants by enumeration, and bounds that are never below them."""

import re

import pytest
import torch

import mondeq
from experiments.benchmarks.bounds import exact_gaps, main, network


def test_gaps_are_the_largest_of_local_jacobians() -> None:
    model = network(5).double()
    x = 10 * torch.randn(2000, model.in_shape.numel(), dtype=torch.float64)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda v: _logits(model, v)))(x)
    gaps = (jacobians[:, :, None] - jacobians[:, None]).norm(dim=3)
    found, exact = gaps.amax(0), exact_gaps(model)
    assert (found <= exact * (1 + 1e-9)).all()
    assert (found >= 0.9 * exact).all()


def _logits(model: mondeq.Network, x: torch.Tensor) -> torch.Tensor:
    return model(x[None])[0]


def test_no_bound_is_below_a_constant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--networks", "2"]) == 0
    least = [float(value) for value in re.findall(r"least ([\d.]+)", capsys.readouterr().out)]
    assert len(least) >= 3
    assert min(least) >= 1
