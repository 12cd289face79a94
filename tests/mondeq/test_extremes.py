"""Weights of extreme size: where numbers vanish or m is not positive, nothing is proved that is not so."""

import math

import pytest
import torch
from torch import nn

import mondeq
import splitting
from mondeq.bounds import Chain
from mondeq.bounds.base import product


def line(*weights: float, bias: tuple[float, ...] = (0.0,)) -> nn.Linear:
    layer = nn.Linear(1, len(weights)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights, dtype=torch.float64)[:, None])
        layer.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return layer


def test_products_do_not_vanish_on_the_way() -> None:
    assert product([1e-170, 1e-170, 1e170, 1e170]) == pytest.approx(1.0)
    assert product([1e170, 1e170, 1e-170, 1e-170]) == pytest.approx(1.0)
    assert product([1e200, 1e200]) == math.inf
    assert product([0.3, 0.7, 1.9]) == math.prod([0.3, 0.7, 1.9])
    assert product([math.inf, 1e-300]) == math.inf
    assert product([0.5] * 3000 + [2.0] * 3000) == 1.0


def test_a_constant_of_tiny_and_huge_layers_is_no_smaller_than_theirs() -> None:
    layers = [*[line(1e-170) for _ in range(2)], line(1e170), line(1e170, -1e170, bias=(1e10, 0.0))]
    model = mondeq.Network(layers, in_shape=(1,)).double()
    bounds = mondeq.lipschitz_bounds(model)
    assert bounds["product"].value >= 2**0.5
    assert float(bounds["product"].pairs[0, 1]) >= 2
    report = mondeq.certify(model, torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([0]))
    assert float(report.radius) <= (1e10 + 1) / 2


@pytest.mark.parametrize("change", [5e-7, 0.5, -1.5])
def test_no_movement_is_bounded_where_the_moved_network_may_have_many_solutions(change: float) -> None:
    def network(scale: float, moved: float) -> mondeq.Network:
        torch.manual_seed(0)
        linear = mondeq.MultiscaleConv2d(1, (1,), 2, kernel_size=1, m=0.5)
        head = nn.Linear(4, 2)
        with torch.no_grad():
            for name, value in {"F.0": 1.0, "G.0": scale, "U": 1.0, "b": 0.1 + moved}.items():
                linear.get_parameter(name).fill_(value)
            head.weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
            head.bias.copy_(torch.tensor([0.0, 4.0]))
        return mondeq.Network([mondeq.EquilibriumLayer(linear, splitting.Softplus(), tol=1e-12), head]).double()

    model, moved = network(0.0, 0.0), network(1e24, change)
    images = torch.full((1, 1, 2, 2), 0.3, dtype=torch.float64)
    found = mondeq.movement(model, moved, images)
    with torch.no_grad():
        assert float(found.logits) >= float((model(images) - moved(images)).norm())
    assert not found.same.any()


def test_bounds_of_a_chain_are_of_its_weights_and_norm() -> None:
    model = mondeq.Network([line(1.0, -1.0, bias=(0.0, 0.0))], in_shape=(1,)).double()
    chain = Chain.of(model)
    assert mondeq.lipschitz_bounds(model, chain=chain)["product"].value >= 2**0.5
    with pytest.raises(splitting.InvalidArgument, match="`chain` was proved for other weights"):
        mondeq.lipschitz_bounds(model, norm="linf", chain=chain)
    with torch.no_grad():
        next(model.parameters()).mul_(100)
    with pytest.raises(splitting.InvalidArgument, match="`chain` was proved for other weights"):
        mondeq.lipschitz_bounds(model, chain=chain)


def test_nan_among_tiers_is_no_monotonicity() -> None:
    linear = mondeq.MultiscaleConv2d(1, (2, 2), 4, m=0.5)
    assert linear.operator().strong_monotonicity > 0
    with torch.no_grad():
        linear.get_parameter("F.1").fill_(math.nan)
    assert not linear.operator().strong_monotonicity > 0


@pytest.mark.parametrize("size", [5e-159, 5e-161, 1e-165])
def test_local_certificates_of_tiny_inputs_are_none(size: float) -> None:
    linear = mondeq.Dense(1, 1, m=1.0).double()
    head = nn.Linear(1, 2).double()
    with torch.no_grad():
        for name, value in {"F": 0.0, "G": 0.0, "U": size, "b": size}.items():
            linear.get_parameter(name).fill_(value)
        head.weight.copy_(torch.tensor([[1 / size], [-1 / size]], dtype=torch.float64))
        head.bias.zero_()
    model = mondeq.Network([mondeq.EquilibriumLayer(linear), head], in_shape=(1,)).double()
    images = torch.tensor([[0.5]], dtype=torch.float64)
    report = mondeq.certify(model, images, torch.tensor([0]), extra=["local"])
    assert float(report.radius) <= 1.5
