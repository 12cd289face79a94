"""Losses: what each is by its formula, what it asks for, and that every one of them trains."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import mondeq
from mondeq.losses import Calibrated, Crm, Emma, Margin, Progress, gap_estimates, margins
from mondeq.training import Trainer, TrainingConfig
from tests.mondeq.zoo import model_for, tiny_dataset

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.3, 0.2]], dtype=torch.float64)
LABELS = torch.tensor([0, 0])
CONSTANTS = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 1.5], [2.0, 1.5, 0.0]], dtype=torch.float64)
every_loss = pytest.mark.parametrize("name", list(mondeq.LOSSES))


def now(radius: float, scale: float = 3.0) -> Progress:
    return Progress(radius, scale, 0.5)


@every_loss
def test_without_a_radius_it_is_the_cross_entropy(name: str) -> None:
    loss = mondeq.LOSSES[name]()(LOGITS, LABELS, 0 * CONSTANTS, now(0.0))
    torch.testing.assert_close(loss, functional.cross_entropy(3 * LOGITS, LABELS))


@every_loss
def test_its_gradient_is_that_of_finite_differences_and_larger_gaps_cost_less(name: str) -> None:
    loss = mondeq.LOSSES[name]()

    def of(logits: Tensor) -> Tensor:
        return loss(logits, LABELS, CONSTANTS, now(0.4))

    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(of(logits), logits)
    assert bool((gradient[:, 0] < 0).all())
    assert float(gradient.sum(1).abs().max()) < 1e-12  # a constant added to all logits changes nothing
    if name == "emma":  # whose gradient is not that of its value: e is held
        return
    for index in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[index] = 1e-6
        moved = [float(of(LOGITS + sign * step.view(2, 3))) for sign in (1, -1)]
        assert float(gradient.flatten()[index]) == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-5, abs=1e-8)


@every_loss
def test_a_larger_radius_asks_for_more_where_a_smaller_one_is_reached(name: str) -> None:
    """So that the radius of training may grow beyond the one of the test.

    The sample is certified at 1.5, and its label is pulled up beside one that is wrong by as much.
    """
    pulls = {}
    for radius in (1.0, 3.0):
        logits = torch.cat([LOGITS[:1], -LOGITS[:1]]).requires_grad_()
        (gradient,) = torch.autograd.grad(mondeq.LOSSES[name]()(logits, LABELS, CONSTANTS, now(radius)), logits)
        pulls[radius] = float(gradient[0, 0] / gradient[1, 0])
    assert 0 < 1.2 * pulls[1.0] < pulls[3.0]


def test_emma_moves_rivals_up_to_the_label_and_no_further() -> None:
    """Where all gaps exceed the reach it is the margin loss; where not, moved rivals are level with the label."""
    far = LOGITS[:1]
    torch.testing.assert_close(
        Emma()(far, LABELS[:1], CONSTANTS, now(0.1)), Margin()(far, LABELS[:1], CONSTANTS, now(0.1))
    )
    near = torch.tensor([[1.0, 0.9, 0.8]], dtype=torch.float64)
    assert float(Emma()(near, LABELS[:1], CONSTANTS, now(9.0))) == pytest.approx(math.log(3))


def test_crm_asks_for_the_smallest_radius_up_to_what_is_trained_for() -> None:
    settings = Crm.Settings(crm_weight=2.0, crm_sharpness=1e4)
    found = Crm(settings)(LOGITS[:1], LABELS[:1], CONSTANTS, now(5.0))
    smallest = min((2.0 - 0.5) / 1, (2.0 + 1.0) / 2)
    plain = functional.cross_entropy(3 * LOGITS[:1], LABELS[:1])
    assert float(found - plain) == pytest.approx(-2 * smallest, rel=1e-3)
    capped = Crm(settings)(LOGITS[:1], LABELS[:1], CONSTANTS, now(0.3))
    assert float(capped - plain) == pytest.approx(-2 * 0.3, rel=1e-3)


def test_the_calibrated_loss_is_the_margin_loss_with_a_principled_scale() -> None:
    """For one constant L of all gaps: logits times 1/(s L)."""
    equal = 1.3 * (1 - torch.eye(3, dtype=torch.float64))
    radius, p = 0.4, 0.2
    scale = 2 * radius / (2 * math.log((1 - p / 2) / (p / 2)))
    found = Calibrated(Calibrated.Settings(calibration=p))(LOGITS, LABELS, equal, now(radius))
    torch.testing.assert_close(found, Margin()(LOGITS, LABELS, equal, now(radius, 1 / (scale * 1.3))))


def suited_to(name: str, dataset: mondeq.Dataset) -> mondeq.Classifier:
    """A small classifier that a loss can train for a radius."""
    models = (model_for(dataset, kind) for kind in ("dense", "interval"))
    return next(model for model in models if mondeq.LOSSES[name]().unsuited(model, 0.05) is None)


@every_loss
def test_it_trains(name: str, tmp_path: Path) -> None:
    dataset = tiny_dataset(train=96)
    model = suited_to(name, dataset)
    config = TrainingConfig(data="tiny", epochs=15, batch_size=16, lr=0.05, radius=0.05, loss=name)
    history = Trainer(model, dataset, config, tmp_path, torch.device("cpu")).run()
    assert history[-1].loss < history[0].loss
    assert history[-1].train_accuracy > 0.55


def test_estimates_of_gaps_are_those_that_are_proved() -> None:
    model = model_for(tiny_dataset()).eval()
    proved = mondeq.lipschitz_bounds(model)["product"].pairs
    assert proved is not None
    torch.testing.assert_close(gap_estimates(model).double(), proved, rtol=1e-4, atol=1e-6)
    assert margins(LOGITS, LABELS, CONSTANTS, 0.0).tolist() == pytest.approx([1.5, -0.2])
    assert margins(LOGITS, LABELS, CONSTANTS, 1.0).tolist() == pytest.approx([0.5, -2.1])


def test_settings_of_a_loss_are_its_own() -> None:
    with pytest.raises(mondeq.ConfigError, match="unknown or missing settings of CalibratedSettings: crm_weight"):
        TrainingConfig(data="tiny", loss="calibrated", loss_settings={"crm_weight": 1.0})
    with pytest.raises(mondeq.ConfigError, match=r"`calibration` must be in \(0, 1\), got 1.5"):
        TrainingConfig(data="tiny", loss="calibrated", loss_settings={"calibration": 1.5})


@every_loss
def test_a_network_without_constants_is_refused_before_a_step(name: str, tmp_path: Path) -> None:
    """With a radius; without one it trains."""
    dataset = tiny_dataset()
    model = mondeq.Network([nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 3)], (1, 4, 4))
    config = TrainingConfig(data="tiny", epochs=1, batch_size=16, loss=name, radius=0.1)
    with pytest.raises(mondeq.ConfigError, match=r"cannot train this network: .* the piece `1` is a Dropout"):
        Trainer(model, dataset, config, tmp_path, torch.device("cpu"))
    plain = TrainingConfig(data="tiny", epochs=1, batch_size=16, loss=name)
    assert len(Trainer(model, dataset, plain, tmp_path, torch.device("cpu")).run()) == 1
