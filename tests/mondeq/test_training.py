"""Training: loss and schedules by hand, the same weights to the bit after an interruption, failures that say why."""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import mondeq
import splitting
from mondeq import ACTIVATIONS, SOLVERS
from mondeq.bounds import Chain, Product, best_pairs
from mondeq.data import Dataset
from mondeq.errors import ConfigError, RunError, TrainingError
from mondeq.losses import Margin, Progress, gap_estimates, margins
from mondeq.network import exact_copy
from mondeq.runs import WEIGHTS, read_tensors
from mondeq.training import Epoch, Trainer, TrainingConfig, checkpoint
from mondeq.training.optimizers import Muon
from mondeq.training.progress import Tally, write_history
from mondeq.training.recipes import recipe
from tests.mondeq.zoo import (
    KINDS,
    KINDS_IN_TURN,
    array,
    classifier,
    head_of,
    model_for,
    same_weights,
    tiny_dataset,
    weights,
)

CPU = torch.device("cpu")
each_kind = pytest.mark.parametrize("kind", KINDS_IN_TURN)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return tiny_dataset()


def trainer_for(data: Dataset, folder: Path, kind: str = "dense", *, seed: int = 0, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {"data": "tiny", "epochs": 3, "batch_size": 16, "lr": 1e-2, "seed": seed}
    model = model_for(data, kind, seed=seed, learn_m=kind == "dense")
    on_epoch = settings.pop("on_epoch", lambda row: None)
    return Trainer(model, data, TrainingConfig(**(defaults | settings)), folder, CPU, on_epoch=on_epoch)


def trained(data: Dataset, folder: Path, kind: str = "dense", **settings: Any) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    trainer = trainer_for(data, folder, kind, **settings)
    trainer.run()
    return trainer


def rows(trainer: Trainer) -> list[tuple[float, ...]]:
    """The history without the clock."""
    return [(r.epoch, r.lr, r.loss, r.train_accuracy, r.test_accuracy, r.certified_estimate) for r in trainer.history]


# -- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("radius", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.3, 6.0)])
def test_margin_loss_by_hand(radius: float, scale: float) -> None:
    logits = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    L = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, 0.0]], dtype=torch.float64)
    expected = 0.0
    for y, label in zip(logits.tolist(), labels.tolist(), strict=True):
        moved = [scale * (y[j] + radius * float(L[label, j])) for j in range(3)]
        expected += math.log(sum(math.exp(v) for v in moved)) - moved[label]
    assert float(Margin()(logits, labels, L, Progress(radius, scale, 0.5))) == pytest.approx(expected / 2, rel=1e-12)
    plain = functional.cross_entropy(scale * logits, labels)
    assert float(Margin()(logits, labels, L, Progress(0.0, scale, 0.5))) == pytest.approx(float(plain), rel=1e-12)


def test_margin_loss_is_small_only_where_the_margin_is_certified() -> None:
    L = 2 * (1 - torch.eye(3))
    labels = torch.tensor([0])
    for gap, certified in ((0.9, False), (1.1, True)):
        logits = torch.tensor([[gap, 0.0, 0.0]])
        loss = float(Margin()(logits, labels, L, Progress(0.5, 1e3, 0.5)))
        assert (loss < 1e-6) == certified


def test_gap_estimates_of_dense_by_hand() -> None:
    """‖w_i − w_j‖ ‖U diag(1/std)‖₂/m, and their gradient by finite differences."""
    model = classifier(m=0.4, learn_m=True).double()
    head = array(head_of(model)[0])
    scale = np.repeat([1 / 0.5, 1 / 0.25], 6)
    gain = np.linalg.norm(array(model.layer.linear.get_parameter("U")) * scale, 2) / 0.4
    expected = np.linalg.norm(head[:, None] - head[None], axis=2) * gain
    constants = gap_estimates(model)
    np.testing.assert_allclose(array(constants), expected, rtol=1e-6, atol=1e-12)
    parameters = [head_of(model)[0], model.layer.linear.get_parameter("U"), model.layer.linear.get_parameter("log_m")]
    gradients = torch.autograd.grad(constants[0, 2], parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-6 * direction)
                values.append(float(gap_estimates(model)[0, 2]))
                parameter.sub_(sign * 1e-6 * direction)
        slope = (values[0] - values[1]) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)


def test_gap_estimates_of_lipschitz_dense_are_root_two_gamma() -> None:
    model = classifier("lipschitz", gamma=0.7, std=(0.5, 0.25))
    expected = math.sqrt(2) * 0.7 * (1 - np.eye(3))
    np.testing.assert_allclose(array(gap_estimates(model)), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["dense", "conv", "multiscale"])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_gap_estimates_are_the_pairs_of_the_product_bound(kind: str, kernel_size: int) -> None:
    """They steer towards what is certified afterwards, but that σ_min(F)² is proved to add to a convolution's m."""
    channels = {"conv": (3,), "multiscale": (3, 2)}.get(kind, ())
    model = classifier(kind, m=0.3, image_shape=(2, 4, 6), channels=channels, kernel_size=kernel_size)
    with torch.no_grad():
        constants = gap_estimates(model).double()
        exact = exact_copy(model)
        certified = Product().bound(Chain.of(exact)).pairs * exact.layer.linear.operator().strong_monotonicity / 0.3
    torch.testing.assert_close(constants, certified, rtol=1e-5, atol=1e-12)


def test_gap_estimates_of_lipschitz_dense_are_a_bound() -> None:
    """√2 γ is no less than what is certified, and not twice what the inequality with the own metric certifies."""
    model = classifier("lipschitz")
    with torch.no_grad():
        constants, bounds = gap_estimates(model).double(), mondeq.lipschitz_bounds(model)
    assert (best_pairs(bounds) <= constants * (1 + 1e-6)).all()
    own = {name: bounds[name] for name in ("product", "matrix inequality")}
    assert (constants <= 2 * best_pairs(own)).all()


# -- schedules -----------------------------------------------------------------------------------------------------


def test_one_cycle_rises_for_three_tenths_and_falls_to_zero() -> None:
    config = TrainingConfig(data="x", epochs=10, lr=0.1)
    rates = [config.learning_rate(step, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 * 0.04)
    assert max(rates) == rates[30] == pytest.approx(0.1)
    assert rates[15] == pytest.approx(0.1 * (0.04 + 0.96 / 2))
    assert rates[65] == pytest.approx(0.05)
    assert (np.diff(rates[:31]) > 0).all()
    assert (np.diff(rates[30:]) < 0).all()
    assert 0 < rates[-1] < 1e-3 * 0.1


def test_step_divides_by_ten() -> None:
    config = TrainingConfig(data="x", epochs=9, lr=0.1, schedule="step", decay_every=3)
    rates = [config.learning_rate(step, 4) for step in range(36)]
    assert rates == pytest.approx([0.1] * 12 + [0.01] * 12 + [0.001] * 12)


def test_constant_is_constant() -> None:
    config = TrainingConfig(data="x", lr=0.3, schedule="constant")
    assert {config.learning_rate(step, 7) for step in range(50)} == {0.3}


@pytest.mark.parametrize(("ramp", "half"), [(0.5, 25), (1.0, 50), (0.1, 5)])
def test_the_radius_ramps_up_linearly(ramp: float, half: int) -> None:
    config = TrainingConfig(data="x", epochs=10, radius=0.4, ramp=ramp)
    radii = [config.progress(step, 10).radius for step in range(100)]
    assert radii[0] == 0
    assert radii[half] == pytest.approx(0.2)
    assert radii[2 * half :] == [0.4] * (100 - 2 * half)
    assert np.allclose(np.diff(radii[: 2 * half]), 0.4 / (2 * half))


def test_the_radius_may_grow_beyond_that_of_the_test() -> None:
    config = TrainingConfig(data="x", epochs=10, radius=0.4, radius_factor=3.0)
    radii = [config.progress(step, 10).radius for step in range(100)]
    assert radii[0] == 0
    assert radii[25] == pytest.approx(0.6)
    assert radii[50:] == [pytest.approx(1.2)] * 50


def test_test_images_are_judged_at_the_radius_of_the_test(data: Dataset, tmp_path: Path) -> None:
    """Whatever the loss asks for."""
    trainer = trained(data, tmp_path, radius=0.02, radius_factor=4.0, ramp=0.0, lr=3e-2, epochs=6)
    with torch.no_grad():
        logits, constants = trainer.model(data.test.images.float() / 255), gap_estimates(trainer.model)
    shares = [float((margins(logits, data.test.labels, constants, r) > 0).double().mean()) for r in (0.02, 0.08)]
    assert trainer.history[-1].certified_estimate == shares[0] > shares[1]


def test_no_ramp() -> None:
    config = TrainingConfig(data="x", epochs=2, radius=0.4, ramp=0.0)
    assert [config.progress(step, 3).radius for step in range(6)] == [0.4] * 6


@pytest.mark.parametrize("schedule", ["one-cycle", "step", "constant"])
@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 3), (2, 1)])
def test_schedules_of_very_short_runs(schedule: str, epochs: int, steps: int) -> None:
    config = TrainingConfig(data="x", epochs=epochs, lr=0.1, schedule=schedule, radius=0.1)
    for step in range(epochs * steps):
        assert 0 < config.learning_rate(step, steps) <= 0.1
        assert 0 <= config.progress(step, steps).radius <= 0.1


def test_the_optimizer_gets_the_scheduled_rates(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(data, tmp_path, epochs=2)
    seen = []
    (optimizer,) = trainer.optimizers
    step = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: (seen.append(optimizer.param_groups[0]["lr"]), step()))
    trainer.run()
    assert seen == [trainer.config.learning_rate(k, 3) for k in range(6)]
    assert [row.lr for row in trainer.history] == [seen[2], seen[5]]


# -- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, r"`epochs` must be an integer ≥ 1 and < 2\^63, got 0"),
        ({"batch_size": 0}, "`batch_size` must be an integer ≥ 1"),
        ({"decay_every": 0}, "`decay_every` must be"),
        ({"epochs": 2.5}, "`epochs` must be an integer"),
        ({"lr": 0}, "`lr` must be a finite number > 0, got 0"),
        ({"lr": math.nan}, "`lr` must be"),
        ({"lr": math.inf}, "`lr` must be"),
        ({"logit_scale": -1}, "`logit_scale` must be"),
        ({"weight_decay": -1e-3}, "`weight_decay` must be a finite number ≥ 0"),
        ({"clip": -1}, "`clip` must be"),
        ({"radius": -0.1}, "`radius` must be a finite number ≥ 0, got -0.1"),
        ({"radius": math.nan}, "`radius` must be"),
        ({"shift": -1}, "`shift` must be"),
        ({"shift": 1.5}, "`shift` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"radius_factor": 0}, "`radius_factor` must be a finite number > 0, got 0"),
        ({"radius_factor": 1e200, "radius": 1e200}, r"`radius_factor` must leave `radius` 1e\+200 finite, got 1e\+200"),
        ({"augment": "auto"}, "`augment` must be one of none, rand, got 'auto'"),
        ({"extra": ""}, "`extra` must be the name of a folder of pictures, got ''"),
        ({"extra_share": 1}, r"`extra_share` must be in \(0, 1\), got 1"),
        ({"ramp": 1.1}, r"`ramp` must be in \[0, 1\], got 1.1"),
        ({"optimizer": "sgd"}, "`optimizer` must be one of adam, adamw, muon, got 'sgd'"),
        ({"schedule": "cosine"}, "`schedule` must be one of one-cycle, step, constant, got 'cosine'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**({"data": "digits"} | settings))


def test_configuration_goes_through_json_and_back() -> None:
    config = TrainingConfig(data="digits", epochs=3, radius=0.2, shift=1)
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="unknown or missing settings of TrainingConfig: epoch"):
        TrainingConfig.from_dict({"data": "digits", "epoch": 3})
    with pytest.raises(ConfigError, match="unknown or missing settings of TrainingConfig: data"):
        TrainingConfig.from_dict({"epochs": 3})


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "folder:x"])
@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("radius", [0.0, 0.2, 2.0])
def test_recipes_are_settings(name: str, model: str, radius: float) -> None:
    """Every entry is one that a configuration takes, and none is out of range."""
    settings = recipe(name, model, radius)
    training = {k: v for k, v in settings.items() if k in TrainingConfig.__dataclass_fields__}
    TrainingConfig(data=name, radius=radius, **training)
    rest = {k: v for k, v in settings.items() if k not in training}
    classifier(model, **{"kernel_size": 3, "image_shape": (2, 8, 8)} | rest)


def test_digits_are_not_mirrored() -> None:
    assert not any(recipe(name, "certified", 0.2).get("flip", False) for name in ("digits", "mnist", "svhn"))
    assert recipe("cifar10", "certified", 0.2)["flip"]


# -- one run -------------------------------------------------------------------------------------------------------


@each_kind
def test_training_learns(kind: str, data: Dataset, tmp_path: Path) -> None:
    trainer = trained(data, tmp_path, kind, epochs=20, lr=3e-2, logit_scale=5.0)
    losses = [row.loss for row in trainer.history]
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.history[-1].train_accuracy > 0.85


def test_training_for_a_radius_certifies_more(data: Dataset, tmp_path: Path) -> None:
    """Measured by certificates, at a radius where plain training leaves something to be won."""
    shares = []
    for radius in (0.0, 0.2):
        model = trained(data, tmp_path / str(radius), epochs=20, lr=3e-2, radius=radius).model
        report = mondeq.certify(model, data.train.images.float() / 255, data.train.labels)
        shares.append(report.certified_accuracy([0.2])[0.2])
    assert shares[1] > shares[0] + 0.1, shares


def test_steps_are_tuned_to_what_reaches_a_layer(data: Dataset, tmp_path: Path) -> None:
    """Few directions are like the weakest, and the step that suits it is far too long for all others."""
    layer = mondeq.ResidualLayer(mondeq.ReflectedDense(16, 12, m=0.1), tol=5e-2)
    model = mondeq.Network([torch.nn.Flatten(), layer, mondeq.NormalisedLinear(16, 3)], in_shape=(1, 4, 4))
    trainer = Trainer(model, data, TrainingConfig(data="tiny"), tmp_path, CPU)
    with torch.no_grad():
        layer.linear.get_parameter("U").normal_().mul_(3)
    images = data.train.images[:32].float() / 255
    layer.max_steps, layer.on_failure, before = 20, "raise", layer.solver
    trainer._tune([(layer, before)])
    assert (layer.on_failure, layer.monitor) == ("raise", None)
    layer.max_steps = 300
    reached: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0]))
    with torch.no_grad():
        trainer.model(images)
        found, plain = layer.solver, layer.tuned(before)
        steps = {}
        for solver in (found, plain):
            layer.solver = solver
            steps[solver] = int(layer.solve(reached[0]).steps.sum())
    assert found.step < plain.step
    assert steps[found] < 0.9 * steps[plain]
    given = splitting.PeacemanRachford(0.3)
    trainer._tune([(layer, given)])
    assert layer.solver == given


def test_history_is_what_happened(data: Dataset, tmp_path: Path) -> None:
    told: list[Epoch] = []
    trainer = trained(data, tmp_path, epochs=4, radius=0.02, on_epoch=told.append)
    assert told == trainer.history
    assert [row.epoch for row in told] == [1, 2, 3, 4]
    model = trainer.model.eval()
    images, labels = data.test.images.float() / 255, data.test.labels
    with torch.no_grad():
        logits = model(images)
        margins = logits.gather(1, labels[:, None]) - logits - 0.02 * gap_estimates(model)[labels]
    margins[torch.arange(len(labels)), labels] = math.inf
    assert told[-1].test_accuracy == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert told[-1].certified_estimate == pytest.approx(float((margins.amin(1) > 0).double().mean()))
    for row in told:
        assert 1 <= row.forward_steps <= model.layer.max_steps
        assert 1 <= row.backward_steps <= model.layer.max_steps
        assert row.forward_unconverged == row.backward_unconverged == 0
        assert row.seconds > 0


def test_the_loss_of_an_epoch_is_the_mean_over_its_images(data: Dataset, tmp_path: Path) -> None:
    """With a vanishing learning rate all batches see one model, the last and smaller one too."""
    trainer = trained(data, tmp_path, epochs=1, lr=1e-12, batch_size=20)
    with torch.no_grad():
        logits = model_for(data, learn_m=True)(data.train.images.float() / 255)
    expected = functional.cross_entropy(logits, data.train.labels)
    assert trainer.history[0].loss == pytest.approx(float(expected), rel=1e-4)


def test_unconverged_solves_are_counted_and_warned_of(data: Dataset, tmp_path: Path) -> None:
    trainer = trainer_for(data, tmp_path, epochs=1)
    trainer.model.layer.max_steps = 2
    with pytest.warns(splitting.ConvergenceWarning):
        (row,) = trainer.run()
    assert row.forward_unconverged == row.backward_unconverged == 1
    assert row.forward_steps == row.backward_steps == 2


def test_history_csv(data: Dataset, tmp_path: Path) -> None:
    trainer = trained(data, tmp_path, epochs=2)
    write_history(tmp_path / "history.csv", trainer.history)
    with (tmp_path / "history.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in found] == [1, 2]
    for row, expected in zip(found, trainer.history, strict=True):
        assert {name: float(value) for name, value in row.items()} == {
            name: float(getattr(expected, name)) for name in row
        }
    assert set(found[0]) == set(Epoch.__dataclass_fields__)


def test_the_monitor_is_gone_afterwards(data: Dataset, tmp_path: Path) -> None:
    assert trained(data, tmp_path, epochs=1).model.layer.monitor is None


def test_a_tally_of_nothing_is_zero() -> None:
    assert Tally(CPU).ratio("loss", "count") == 0


def gradient_norms(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """‖gradient‖ of each step of a run, as the optimiser sees it."""
    (optimizer,) = trainer.optimizers
    norms, step = [], optimizer.step

    def record() -> None:
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        step()

    monkeypatch.setattr(optimizer, "step", record)
    trainer.run()
    return norms


def test_gradients_are_clipped(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = gradient_norms(trainer_for(data, tmp_path, epochs=1), monkeypatch)
    clipped = gradient_norms(trainer_for(data, tmp_path, epochs=1, clip=1e-2), monkeypatch)
    assert min(free) > 0.1
    assert clipped == pytest.approx([1e-2] * 3, rel=1e-3)


def test_every_solver_trains_alike(data: Dataset, tmp_path: Path) -> None:
    """All solve the same problems, forward and backward, so all take the same steps."""
    found = {}
    for name in SOLVERS:
        trainer = trainer_for(data, tmp_path, epochs=1)
        trainer.model.layer.solver = SOLVERS[name]()
        trainer.model.layer.tol = trainer.model.layer.backward_tol = 1e-6
        trainer.model.layer.max_steps = 3000
        trainer.run()
        found[name] = weights(trainer.model)
    expected = found.pop("peaceman-rachford")
    assert len(found) == 5
    for name, tensors in found.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-2, atol=1e-4, msg=f"{name}: {key}")


@each_kind
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_trains(kind: str, activation: str, data: Dataset, tmp_path: Path) -> None:
    model = model_for(data, kind, activation=activation)
    before = weights(model)
    config = TrainingConfig("tiny", epochs=1, batch_size=32, lr=1e-2, radius=0.02)
    Trainer(model, data, config, tmp_path, CPU).run()
    after = weights(model)
    assert all(bool(torch.isfinite(t).all()) for t in after.values())
    same = [name for name in after if torch.equal(before[name], after[name])]
    # A threshold of 1 keeps the tiers at 0, where their weights do nothing.
    assert not same or (kind == "multiscale" and activation == "soft-threshold")
    assert len(same) < len(after)


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_optimizers(name: str, data: Dataset, tmp_path: Path) -> None:
    trainer = trained(data, tmp_path, optimizer=name, weight_decay=0.5, epochs=1)
    found = {"adam": [torch.optim.Adam], "adamw": [torch.optim.AdamW], "muon": [Muon, torch.optim.AdamW]}[name]
    assert [type(optimizer) for optimizer in trainer.optimizers] == found
    plain = trained(data, tmp_path / "plain", epochs=1)
    assert not same_weights(weights(trainer.model), weights(plain.model))


# -- seeds and augmentation ----------------------------------------------------------------------------------------


@each_kind
def test_one_seed_gives_one_run(kind: str, data: Dataset, tmp_path: Path) -> None:
    """Whatever else draws random numbers meanwhile."""
    first = trained(data, tmp_path / "a", kind, shift=1, radius=0.05)
    second = trainer_for(data, tmp_path, kind, shift=1, radius=0.05, on_epoch=lambda row: torch.rand(7))
    torch.rand(3)
    second.run()
    assert same_weights(weights(first.model), weights(second.model))
    assert rows(first) == rows(second)


def test_another_seed_gives_another_order(data: Dataset, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        trainer = Trainer(model_for(data), data, TrainingConfig("tiny", epochs=1, seed=seed), tmp_path, CPU)
        found.append(torch.cat([labels for _, labels in trainer.train]))
    assert not torch.equal(*found)
    assert torch.equal(*(labels.sort().values for labels in found))


def test_augmentation_moves_each_image_within_reach_and_uniformly(data: Dataset, tmp_path: Path) -> None:
    trainer = trainer_for(data, tmp_path, shift=2)
    images = torch.rand(2000, 2, 4, 4) + 0.1
    moved = trainer._augment(images)
    assert moved.shape == images.shape
    padded = functional.pad(images, (2, 2, 2, 2))
    candidates = {(i, j): padded[:, :, i : i + 4, j : j + 4] for i in range(5) for j in range(5)}
    offsets = Counter()
    for n in range(len(images)):
        matching = [offset for offset, candidate in candidates.items() if torch.equal(candidate[n], moved[n])]
        assert len(matching) == 1, "an image is no shift of itself"
        offsets[matching[0]] += 1
    # 25 places, 80 expected in each: 5 standard deviations are 45.
    assert len(offsets) == 25
    assert min(offsets.values()) > 35
    assert max(offsets.values()) < 125


def test_no_augmentation_is_the_identity(data: Dataset, tmp_path: Path) -> None:
    trainer = trainer_for(data, tmp_path)
    images = torch.rand(3, 1, 4, 4)
    state = trainer.generator.get_state()
    assert trainer._augment(images) is images
    assert torch.equal(state, trainer.generator.get_state())


def test_augmentation_reaches_every_training_batch_and_no_test_image(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_for(data, tmp_path, epochs=2, shift=1)
    original, seen = trainer._augment, []

    def augment(images: Tensor) -> Tensor:
        assert trainer.model.training
        seen.append(len(images))
        return original(images)

    monkeypatch.setattr(trainer, "_augment", augment)
    trainer.run()
    assert seen == [16, 16, 16] * 2


# -- interruption and resumption -----------------------------------------------------------------------------------


class Stop(BaseException):
    """What Ctrl-C is like."""


def interrupt(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, *, after_steps: int) -> None:
    original, taken = trainer._step, 0

    def step(*args: Any) -> None:
        nonlocal taken
        if taken == after_steps:
            raise Stop
        taken += 1
        original(*args)

    monkeypatch.setattr(trainer, "_step", step)
    with pytest.raises(Stop):
        trainer.run()


@each_kind
def test_an_interrupted_run_resumes_to_the_same_bits(
    kind: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before the first step, within an epoch, between two; optimiser, order and augmentation go on."""
    optimizer = "muon" if kind in ("lipschitz", "conv") else "adamw"
    settings: dict[str, Any] = {"shift": 1, "radius": 0.05, "clip": 0.5, "optimizer": optimizer, "weight_decay": 0.1}
    whole = trained(data, tmp_path / "whole", kind, **settings)
    for after_steps in (0, 2, 3, 8):
        folder = tmp_path / f"broken{after_steps}"
        folder.mkdir()
        interrupt(trainer_for(data, folder, kind, **settings), monkeypatch, after_steps=after_steps)
        # What is there loads as it is ...
        model_for(data, kind, learn_m=kind == "dense").load_state_dict(read_tensors(folder / WEIGHTS))
        # ... and goes on in a process that has drawn other random numbers.
        torch.manual_seed(99)
        resumed = trainer_for(data, folder, kind, **settings)
        resumed.resume()
        assert len(resumed.history) == after_steps // 3
        resumed.run()
        assert same_weights(weights(whole.model), weights(resumed.model))
        assert same_weights(read_tensors(folder / WEIGHTS), weights(whole.model))
        assert rows(whole) == rows(resumed)
        first, second = (read_tensors(f / checkpoint.NAME) for f in (tmp_path / "whole", folder))
        assert same_weights(first, second)


def test_an_interruption_from_on_epoch_resumes_too(data: Dataset, tmp_path: Path) -> None:
    def stop(row: Epoch) -> None:
        if row.epoch == 2:
            raise KeyboardInterrupt

    whole = trained(data, tmp_path / "whole", epochs=4)
    folder = tmp_path / "broken"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        trainer_for(data, folder, epochs=4, on_epoch=stop).run()
    resumed = trainer_for(data, folder, epochs=4)
    resumed.resume()
    assert len(resumed.history) == 2
    resumed.run()
    assert same_weights(weights(whole.model), weights(resumed.model))


def test_a_finished_run_resumes_to_itself(data: Dataset, tmp_path: Path) -> None:
    whole = trained(data, tmp_path)
    again = trainer_for(data, tmp_path, seed=0)
    again.resume()
    assert rows(again) == rows(whole)
    again.run()
    assert same_weights(weights(whole.model), weights(again.model))


@pytest.mark.parametrize("name", [checkpoint.NAME, WEIGHTS])
def test_an_interrupted_checkpoint_leaves_the_one_before(
    name: str, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the files of epoch 2 are moved into place: the run still resumes to the same bits."""
    whole = trained(data, tmp_path / "whole")
    folder = tmp_path / "broken"
    folder.mkdir()
    replace, seen = Path.replace, 0

    def failing(self: Path, target: Path) -> Path:
        nonlocal seen
        seen += Path(target).name == name
        if seen == 3:  # the state before epoch 1, after it, after epoch 2
            raise Stop
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(Stop):
        trainer_for(data, folder).run()
    monkeypatch.undo()
    assert {p.name for p in folder.iterdir()} == {checkpoint.NAME, WEIGHTS}
    resumed = trainer_for(data, folder)
    resumed.resume()
    assert len(resumed.history) == (1 if name == checkpoint.NAME else 2)
    resumed.run()
    assert same_weights(weights(whole.model), weights(resumed.model))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("generator"),
        lambda t: t.pop("model.layer.linear.F"),
        lambda t: t.update(generator=torch.zeros(3, dtype=torch.uint8)),
        lambda t: t.update({"model.layer.linear.F": torch.full_like(t["model.layer.linear.F"], math.nan)}),
        lambda t: t.update({"optimizer.nonsense": torch.zeros(1)}),
        lambda t: t.update({"optimizer.0.exp_avg": torch.zeros(2, 2)}),
        lambda t: t.pop("optimizer.0.exp_avg"),
    ],
    ids=["no generator", "no weight", "short generator", "nan", "unknown", "wrong moment", "missing moment"],
)
def test_a_tampered_checkpoint_is_refused(
    change: Callable[[dict[str, Tensor]], Any], data: Dataset, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    trained(data, tmp_path, epochs=1)
    path = tmp_path / checkpoint.NAME
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = read_tensors(path)
    change(tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(RunError):
        trainer_for(data, tmp_path).resume()


@pytest.mark.parametrize("metadata", [None, {}, {"history": "[{]"}, {"history": '[{"epoch": 1}]'}, {"history": "[3]"}])
def test_a_checkpoint_without_its_history_is_refused(
    metadata: dict[str, str] | None, data: Dataset, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    trained(data, tmp_path, epochs=1)
    save_file(read_tensors(tmp_path / checkpoint.NAME), tmp_path / checkpoint.NAME, metadata)
    with pytest.raises(RunError, match="is not a checkpoint of this run"):
        trainer_for(data, tmp_path).resume()


def test_a_checkpoint_of_another_model_is_refused(data: Dataset, tmp_path: Path) -> None:
    trained(data, tmp_path, epochs=1)
    with pytest.raises(RunError, match="does not fit its config"):
        trainer_for(data, tmp_path, "lipschitz").resume()


def test_nothing_to_resume(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot read .*checkpoint\.safetensors"):
        trainer_for(data, tmp_path).resume()


# -- failure -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::splitting.ConvergenceWarning")
@each_kind
@pytest.mark.parametrize("radius", [0.0, 0.1])
@pytest.mark.parametrize("batch_size", [16, 48])
@pytest.mark.parametrize("lr", [1e30, 1e39])
def test_divergence_stops_with_the_cause_and_keeps_loadable_weights(
    kind: str, radius: float, batch_size: int, lr: float, data: Dataset, tmp_path: Path
) -> None:
    """In the middle of an epoch, or at the first step of the next: one line with a remedy, and a run that loads."""
    trainer = trainer_for(data, tmp_path, kind, lr=lr, schedule="constant", radius=radius, batch_size=batch_size)
    mondeq.save(trainer.model, tmp_path)
    with pytest.raises(TrainingError, match=r"lower --lr|raise --m") as caught:
        trainer.run()
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    kept = mondeq.load(tmp_path)
    assert all(bool(torch.isfinite(p).all()) for p in kept.parameters())


@pytest.mark.parametrize("step", [2, 3, 5])
def test_weights_that_stop_being_finite_are_named_and_not_kept(
    step: int, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last step of an epoch, whose own loss is still finite, as at any other."""
    kept: list[dict[str, Tensor]] = []
    trainer = trainer_for(data, tmp_path, on_epoch=lambda row: kept.append(weights(trainer.model)))
    original = trainer._step

    def poisoned(number: int, *args: Any) -> None:
        original(number, *args)
        if number == step:
            with torch.no_grad():
                head_of(trainer.model)[0].fill_(math.nan)

    monkeypatch.setattr(trainer, "_step", poisoned)
    with pytest.raises(TrainingError, match=r"head\.weight.* are no longer finite; lower --lr"):
        trainer.run()
    assert len(kept) == step // 3
    found = read_tensors(tmp_path / WEIGHTS)
    assert all(bool(torch.isfinite(t).all()) for t in found.values())
    assert not kept or same_weights(found, kept[-1])
    resumed = trainer_for(data, tmp_path)
    resumed.resume()
    assert len(resumed.history) == len(kept)


def test_an_unwritable_folder_is_one_line(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        trainer_for(data, tmp_path / "taken").run()
