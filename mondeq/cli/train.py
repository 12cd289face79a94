"""`mondeq train`: train a classifier, certify it on the test set, leave a run folder."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import mondeq
from mondeq import data, distributed, plots
from mondeq.cli import places
from mondeq.cli.evaluation import (
    DEFAULT_RADII,
    add_data_dir,
    add_device,
    bounds_table,
    certify_split,
    check_fits,
    count,
    load_data,
    report_json,
    report_table,
)
from mondeq.cli.events import FOLDER as TENSORBOARD
from mondeq.cli.events import EventFile, need_tensorboard
from mondeq.cli.output import add_json, check_writable, complain, percent, save_json, show
from mondeq.errors import ConfigError, RunError
from mondeq.files import clear_temporary, json_text, own, read_json, sole_writer, write_json, write_text
from mondeq.models import ACTIVATIONS, KINDS, SOLVERS, Classifier, ModelConfig
from mondeq.runs import CONFIG, WEIGHTS, config_text, load
from mondeq.training import checkpoint
from mondeq.training.config import OPTIMIZERS, SCHEDULES, TrainingConfig
from mondeq.training.progress import Epoch, write_history
from mondeq.training.recipes import recipe
from mondeq.training.trainer import Trainer

_HISTORY, _METRICS = "history.csv", "metrics.json"
_MODEL_SETTINGS = (
    "features", "channels", "kernel_size", "pool", "weight_norm", "m", "learn_m", "gamma", "activation", "solver",
    "tol", "max_steps",
)  # fmt: skip
_CONVOLUTIONAL, _MONOTONE = ("conv", "multiscale"), ("dense", "conv", "multiscale")
_ONLY_FOR = {
    "features": ("dense", "lipschitz"), "channels": _CONVOLUTIONAL, "kernel_size": _CONVOLUTIONAL, "pool": ("conv",),
    "weight_norm": _CONVOLUTIONAL, "m": _MONOTONE, "learn_m": _MONOTONE, "gamma": ("lipschitz",),
}  # fmt: skip
_TRAINING_SETTINGS = (
    "epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule", "decay_every", "clip", "radius", "ramp",
    "logit_scale", "shift", "flip", "seed",
)  # fmt: skip


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "train",
        help="train a classifier and certify it",
        description="Train a classifier, certify it on the test set, and leave a run folder: config.json, "
        "model.safetensors, metrics.json, history.csv, certified_accuracy.png, training.png. Settings that are not "
        "given come from a recipe for the data and model. However a run ends, --resume continues it to the "
        "same weights. Under torchrun the batch is shared by the processes.",
        epilog="example: mondeq train --data mnist --model lipschitz --radius 0.4 --out runs/mnist",
    )
    parser.add_argument("--data", help=f"one of {', '.join(data.NAMES)}")
    parser.add_argument(
        "--model",
        choices=KINDS,
        help="dense, conv, multiscale: ‖U‖/m-Lipschitz; lipschitz: γ-Lipschitz for any weights",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run folder; must be new or empty")
    parser.add_argument("--resume", action="store_true", help="continue the run in RUN with its own settings")
    add_data_dir(parser)
    add_device(parser)
    add_json(parser)
    parser.add_argument("--certify", type=count(1), metavar="N", help="certify the first N test images (default: all)")
    parser.add_argument("--tensorboard", action="store_true", help="log to RUN/tensorboard (needs mondeq[tensorboard])")
    _add_model_settings(parser.add_argument_group("model"))
    _add_training_settings(parser.add_argument_group("training"))
    parser.set_defaults(run=run)


def _add_model_settings(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--features", type=int, help="n, the width of the equilibrium state of dense and lipschitz")
    group.add_argument("--channels", type=int, nargs="+", metavar="C", help="of conv (one number) or of every tier")
    group.add_argument("--kernel-size", type=int, metavar="K", help="side of the convolutions, odd (default 3)")
    group.add_argument(
        "--pool", type=int, metavar="K", help="conv: average over K×K blocks before the head (default 4)"
    )
    group.add_argument(
        "--weight-norm", action=argparse.BooleanOptionalAction, help="learn length and direction of kernels"
    )
    group.add_argument("--m", type=float, help="strong monotonicity of dense, conv and multiscale (default 1)")
    group.add_argument("--learn-m", action=argparse.BooleanOptionalAction, help="learn m, starting from --m")
    group.add_argument("--gamma", type=float, help="γ of the lipschitz model, in logits per pixel unit (default 1)")
    group.add_argument("--activation", choices=list(ACTIVATIONS))
    group.add_argument("--solver", choices=list(SOLVERS))
    group.add_argument("--tol", type=float, help="relative residual at which a solve stops")
    group.add_argument("--max-steps", type=int, help="solver steps after which a solve gives up, with a warning")


def _add_training_settings(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--radius", type=float, help="ℓ2 radius (pixels in [0, 1]) to train for; 0: plain cross-entropy")
    group.add_argument("--epochs", type=int)
    group.add_argument("--batch-size", type=int, help="samples per step, over all processes together")
    group.add_argument("--lr", type=float, help="peak learning rate")
    group.add_argument("--schedule", choices=SCHEDULES, help="step: divide by 10 every --decay-every epochs")
    group.add_argument("--decay-every", type=int, metavar="EPOCHS")
    group.add_argument("--optimizer", choices=OPTIMIZERS)
    group.add_argument("--weight-decay", type=float)
    group.add_argument("--clip", type=float, help="largest gradient norm; 0: no clipping")
    group.add_argument("--ramp", type=float, help="share of training over which the radius grows from 0")
    group.add_argument("--logit-scale", type=float, help="factor on logits before the cross-entropy")
    group.add_argument("--shift", type=int, help="augment by moving images up to so many pixels")
    group.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, help="augment by mirroring images left to right"
    )
    group.add_argument("--seed", type=int)


def run(options: argparse.Namespace) -> int:
    with distributed.session(options.device) as device:
        check_writable(options.json)
        if options.tensorboard:
            need_tensorboard()
        if options.out.exists() and not options.out.is_dir():
            raise RunError(f"{options.out} exists and is not an empty folder; choose another --out")
        with sole_writer(options.out) if distributed.is_main() else nullcontext():
            _run(options, device)
    return 0


def _run(options: argparse.Namespace, device: torch.device) -> None:
    folder: Path = options.out
    if options.json is not None and distributed.is_main():
        clear_temporary(options.json.parent, options.json.name)
    if options.resume:
        model_config, training_config = _stored_configs(options)
        dataset = load_data(*_stored_place(options))
        check_fits(model_config, dataset)
    else:
        settings = _new_settings(options)
        dataset = load_data(options.data, options.data_dir)
        model_config, training_config = _new_configs(settings, dataset)
    torch.manual_seed(training_config.seed)
    trainer = Trainer(Classifier(model_config), dataset, training_config, folder, device)
    try:
        if not options.resume:
            _create(trainer, options)
        elif _has_begun(folder):
            trainer.resume()
        if distributed.is_main():
            trainer.on_epoch = _Record(trainer, options.tensorboard)
        trainer.run()
        _certify(trainer, options)
    except KeyboardInterrupt:
        # All processes are interrupted together, and the one that writes knows what there is to say.
        if distributed.is_main():
            complain(f"mondeq train: {_interrupted(trainer)}")
        raise KeyboardInterrupt(None) from None


def _interrupted(trainer: Trainer) -> str:
    """Bring the folder in order and say what it holds."""
    folder = trainer.folder
    if not _has_begun(folder):
        return "interrupted before there was anything to keep; give the same command to start again"
    # What was written last decides; memory may be behind or ahead of it.
    trainer.resume()
    trainer.publish()
    _write_history(trainer)
    return (
        f"interrupted; {folder} holds the model after {len(trainer.history)} of {trainer.config.epochs} epochs, "
        f"continue with: mondeq train --resume --out {shlex.quote(str(folder))}"
    )


def _certify(trainer: Trainer, options: argparse.Namespace) -> None:
    folder = trainer.folder
    model = load(folder, device=trainer.device)
    report = certify_split(model, trainer.dataset.test, trainer.device, options.certify)
    everything = len(report.radius) == len(trainer.dataset.test)
    # Where only some images are certified, the accuracy on all is that of the last epoch.
    accuracy = report.accuracy if everything else trainer.history[-1].test_accuracy
    if distributed.is_main():
        metrics = {
            **report_json(report, DEFAULT_RADII),
            "test_accuracy": accuracy,
            "train_seconds": sum(row.seconds for row in trainer.history),
            "solver": _solver_figures(trainer),
            "machine": _machine(trainer.device),
        }
        title = f"{trainer.config.data}, {trainer.model.config.kind}"
        plots.certified_accuracy(report, title, folder / "certified_accuracy.png")
        plots.training(trainer.history, title, folder / "training.png")
        # Last, as the sign that a run is complete.
        write_json(folder / _METRICS, metrics)
        save_json(options.json, metrics)
    if not everything:
        show(f"\ntest accuracy {percent(accuracy)}; the first {len(report.radius)} test images:")
    show(f"\n{report_table(report, DEFAULT_RADII)}\n\n{bounds_table(report.bounds)}\n\nrun folder: {folder}")


class _Record:
    """Shows and writes what each epoch gave. What a run that died before could not write is written at once."""

    def __init__(self, trainer: Trainer, tensorboard: bool) -> None:
        self.trainer = trainer
        _write_history(trainer)
        self.events = EventFile(trainer.folder / TENSORBOARD, trainer.history) if tensorboard else None

    def __call__(self, row: Epoch) -> None:
        _write_history(self.trainer)
        if sys.stdout.isatty():
            show(self._line(row))
        if self.events is not None:
            self.events.add(row)

    def _line(self, row: Epoch) -> str:
        config = self.trainer.config
        certified = f", certified at {config.radius:g} {row.certified_estimate:.4f}" if config.radius else ""
        return (
            f"epoch {row.epoch:3d}/{config.epochs}  loss {row.loss:.4f}  accuracy {row.train_accuracy:.4f} train, "
            f"{row.test_accuracy:.4f} test{certified}  steps {row.forward_steps:.1f}+{row.backward_steps:.1f}  "
            f"{row.seconds:.1f} s"
        )


def _write_history(trainer: Trainer) -> None:
    if trainer.history:
        write_history(trainer.folder / _HISTORY, trainer.history)


def _solver_figures(trainer: Trainer) -> dict[str, Any]:
    """How the solves of the last epoch went."""
    layer, last = trainer.model.layer, trainer.history[-1]
    return {
        "name": type(layer.solver).__name__,
        "tol": layer.tol,
        "max_steps": layer.max_steps,
        "forward_steps": last.forward_steps,
        "backward_steps": last.backward_steps,
        "forward_unconverged": last.forward_unconverged,
        "backward_unconverged": last.backward_unconverged,
    }


def _new_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the user gave, over the recipe. Raises ConfigError for what is missing, RunError for a folder in use."""
    if options.data is None or options.model is None:
        raise ConfigError(f"--data and --model are needed for a new run; data is one of {', '.join(data.NAMES)}")
    if distributed.is_main():
        _check_free(options.out)
    foreign = [name for name in _given(options) if options.model not in _ONLY_FOR.get(name, KINDS)]
    if foreign:
        owners = " and ".join(_ONLY_FOR[foreign[0]])
        raise ConfigError(f"`{foreign[0]}` is a setting of the {owners} model, not of {options.model}; drop it")
    settings = recipe(options.data, options.model, options.radius or 0.0)
    return {**settings, **_given(options), "data": places.portable(options.data), "kind": options.model}


def _check_free(folder: Path) -> None:
    """Raise RunError where there is anything but what a run that died before its first checkpoint leaves behind."""
    found = {each.name for each in folder.iterdir()} - own(folder) - {CONFIG, places.LOCAL}
    if found - ({TENSORBOARD} if (folder / CONFIG).exists() else set()):
        raise RunError(f"{folder} exists and is not an empty folder; choose another --out, or --resume the run in it")


def _stored_configs(options: argparse.Namespace) -> tuple[ModelConfig, TrainingConfig]:
    """Those of the run in --out. Raises ConfigError where the user asks for others, RunError where there are none."""
    path = options.out / CONFIG
    stored = read_json(path)
    model, training = stored.get("model"), stored.get("training")
    if not isinstance(model, dict) or not isinstance(training, dict):
        raise RunError(f"{path} was not written by `mondeq train`; there is nothing to resume")
    try:
        configs = ModelConfig.from_dict(model), TrainingConfig.from_dict(training)
    except (ConfigError, TypeError, ValueError) as error:
        raise RunError(f"{path} cannot be resumed: {error}") from None
    data_name = options.data and places.portable(options.data)
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in {**model, **training}.items()}
    settings["data"] = places.portable(configs[1].data)
    for name, value in {**_given(options), "data": data_name, "kind": options.model}.items():
        if value is not None and settings.get(name) != value:
            raise ConfigError(
                f"`{name}` is {settings.get(name)!r} in this run, got {value!r}; --resume keeps a run's settings"
            )
    return configs


def _stored_place(options: argparse.Namespace) -> tuple[str, Path | None]:
    """The data of the run in --out: where they were, unless the user names another place."""
    name, data_dir = places.find(options.out, options.data_dir)
    return options.data or name, data_dir


def _has_begun(folder: Path) -> bool:
    """Whether there is a checkpoint, or what a run only writes after its first one."""
    return any((folder / name).exists() for name in (checkpoint.NAME, WEIGHTS, _HISTORY, _METRICS))


def _given(options: argparse.Namespace) -> dict[str, Any]:
    names = (*_MODEL_SETTINGS, *_TRAINING_SETTINGS)
    values = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _new_configs(settings: dict[str, Any], dataset: data.Dataset) -> tuple[ModelConfig, TrainingConfig]:
    channels, height, width = dataset.train.images.shape[1:]
    model = {name: settings[name] for name in _MODEL_SETTINGS if name in settings}
    training = {name: settings[name] for name in _TRAINING_SETTINGS if name in settings}
    # γ is promised in pixel units; dividing by std first would only have to be undone.
    std = tuple(1.0 for _ in dataset.std) if settings["kind"] == "lipschitz" else dataset.std
    return (
        ModelConfig(
            kind=settings["kind"],
            image_shape=(channels, height, width),
            classes=len(dataset.classes),
            mean=dataset.mean,
            std=std,
            class_names=dataset.classes,
            **model,
        ),
        TrainingConfig(data=settings["data"], **training),
    )


def _create(trainer: Trainer, options: argparse.Namespace) -> None:
    """Write the settings. Raises RunError where there are others, of a run that died before its first checkpoint."""
    if distributed.is_main():
        local = places.local(options.data, options.data_dir)
        config = config_text(trainer.model.config, training=trainer.config.to_dict(), version=mondeq.__version__)
        for name, text in ((places.LOCAL, json_text(local)), (CONFIG, config)):
            path = trainer.folder / name
            if path.exists() and read_json(path) != json.loads(text):
                raise RunError(f"{path} has other settings, not trained yet; choose another --out, or --resume them")
            if name == CONFIG or local:
                write_text(path, text)
    distributed.wait()


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
