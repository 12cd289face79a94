"""Averages of weights: by hand, to the bit after an interruption, and in all that a run keeps."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mondeq
from mondeq.data import Dataset
from mondeq.errors import ConfigError, RunError
from mondeq.runs import WEIGHTS, read_tensors
from mondeq.training import TrainingConfig, checkpoint
from mondeq.training.trainer import Trainer
from tests.mondeq.test_training import interrupt, rows, trained, trainer_for
from tests.mondeq.zoo import same_weights, tiny_dataset, weights

each_average = pytest.mark.parametrize("average", ["ema", "swa"])


@pytest.fixture(scope="module")
def data() -> Dataset:
    return tiny_dataset()


def followed(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights after every step of the run, which is run."""
    seen: list[dict[str, Tensor]] = []
    original = trainer._step

    def step(*arguments: Any) -> None:
        original(*arguments)
        seen.append({name: value.double() for name, value in weights(trainer.model).items()})

    monkeypatch.setattr(trainer, "_step", step)
    trainer.run()
    return seen


def test_swa_is_the_mean_of_the_last_quarter(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(data, tmp_path, average="swa", epochs=4)
    seen = followed(trainer, monkeypatch)
    assert len(seen) == 12
    for name, value in weights(trainer.model).items():
        expected = torch.stack([each[name] for each in seen[9:]]).mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)


def test_ema_forgets_by_a_window_that_grows(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(data, tmp_path, average="ema", epochs=4)
    expected = {name: value.double() for name, value in weights(trainer.model).items()}
    for step, now in enumerate(followed(trainer, monkeypatch)):
        kept = min(0.999, (1 + step) / (10 + step))
        expected = {name: kept * value + (1 - kept) * now[name] for name, value in expected.items()}
    for name, value in weights(trainer.model).items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)


def test_the_share_of_ema_ends_at_a_thousandth() -> None:
    config = TrainingConfig(data="x", average="ema", epochs=100)
    assert config.average_share(0, 1000) == pytest.approx(0.9)
    assert config.average_share(90, 1000) == pytest.approx(0.09)
    assert config.average_share(50_000, 1000) == pytest.approx(1e-3)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 3), (2, 1), (5, 1)])
def test_swa_of_very_short_runs(epochs: int, steps: int) -> None:
    config = TrainingConfig(data="x", average="swa", epochs=epochs)
    shares = [config.average_share(step, steps) for step in range(epochs * steps)]
    first = math.ceil(0.75 * epochs * steps)
    assert shares == [1.0] * first + [1 / k for k in range(1, epochs * steps - first + 1)]


@each_average
def test_averages_change_no_step_and_are_what_is_tested_and_kept(
    average: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(data, tmp_path / "plain", epochs=4, radius=0.05)
    trainer = trainer_for(data, tmp_path, epochs=4, radius=0.05, average=average)
    last = followed(trainer, monkeypatch)[-1]
    assert all(torch.equal(last[name], value.double()) for name, value in weights(plain.model).items())
    assert [row.loss for row in trainer.history] == [row.loss for row in plain.history]
    assert not same_weights(weights(trainer.model), weights(plain.model))
    assert same_weights(read_tensors(tmp_path / WEIGHTS), weights(trainer.model))
    assert trainer.evaluate() == (trainer.history[-1].test_accuracy, trainer.history[-1].certified_estimate)
    # What is derived from weights follows them.
    images = data.test.images.float() / 255
    fresh = trainer_for(data, tmp_path / "fresh", seed=7).model
    fresh.load_state_dict(read_tensors(tmp_path / WEIGHTS))
    assert torch.equal(fresh.eval()(images), trainer.model.eval()(images))
    first, second = (mondeq.certify(model, images, data.test.labels) for model in (fresh, trainer.model))
    assert torch.equal(first.radius, second.radius)


@each_average
@pytest.mark.parametrize("after_steps", [0, 4, 10, 11])
def test_an_interrupted_run_resumes_to_the_same_bits(
    average: str, after_steps: int, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"epochs": 4, "shift": 1, "average": average}
    whole = trained(data, tmp_path / "whole", **settings)
    folder = tmp_path / "broken"
    folder.mkdir()
    interrupt(trainer_for(data, folder, **settings), monkeypatch, after_steps=after_steps)
    resumed = trainer_for(data, folder, **settings)
    resumed.resume()
    resumed.run()
    assert same_weights(weights(whole.model), weights(resumed.model))
    assert rows(whole) == rows(resumed)
    first, second = (read_tensors(f / checkpoint.NAME) for f in (tmp_path / "whole", folder))
    assert same_weights(first, second)
    # Finished, it resumes to itself.
    again = trainer_for(data, folder, **settings)
    again.resume()
    again.run()
    assert same_weights(weights(whole.model), weights(again.model))
    assert same_weights(read_tensors(folder / WEIGHTS), weights(whole.model))


def test_frozen_weights_stay(data: Dataset, tmp_path: Path) -> None:
    trainer = trainer_for(data, tmp_path, average="ema")
    head = trainer.model.get_parameter("head.weight").requires_grad_(False)
    before = head.clone()
    trainer.run()
    assert torch.equal(head, before)


@pytest.mark.parametrize(("first", "second"), [("none", "ema"), ("swa", "none")])
def test_a_checkpoint_with_and_one_without_averages_are_told_apart(
    first: str, second: str, data: Dataset, tmp_path: Path
) -> None:
    """One without is what older versions wrote, who knew no averages."""
    trained(data, tmp_path, epochs=1, average=first)
    assert any(name.startswith("average.") for name in read_tensors(tmp_path / checkpoint.NAME)) == (first != "none")
    other = trainer_for(data, tmp_path, epochs=1, average=second)
    before = weights(other.model)
    with pytest.raises(RunError, match=r"does not fit its config: missing .*head\.bias"):
        other.resume()
    assert same_weights(before, weights(other.model))


def test_unknown_averages() -> None:
    with pytest.raises(ConfigError, match="`average` must be one of none, ema, swa, got 'mean'"):
        TrainingConfig(data="x", average="mean")
