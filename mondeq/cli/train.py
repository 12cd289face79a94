"""`mondeq train`: train a classifier, certify it on the test set, leave a run folder."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import torch

import mondeq
from mondeq import data, distributed, plots
from mondeq.certificates import Certifier
from mondeq.cli import places
from mondeq.cli.evaluation import (
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
from mondeq.formats import build, describe
from mondeq.formats import read as read_network
from mondeq.losses import LOSSES
from mondeq.network import Network
from mondeq.norms import NORMS
from mondeq.presets import PRESETS, Classifier, ModelConfig
from mondeq.runs import CONFIG, WEIGHTS, config_text, load
from mondeq.settings import NoSettings, Settings
from mondeq.training import checkpoint
from mondeq.training.config import TrainingConfig
from mondeq.training.progress import Epoch, write_history
from mondeq.training.recipes import recipe
from mondeq.training.trainer import Trainer

_HISTORY, _METRICS = "history.csv", "metrics.json"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `mondeq train` to the command line.

    Args:
        commands: The subcommands.
    """
    parser = commands.add_parser(
        "train",
        help="train a classifier and certify it",
        description="Train a classifier, certify it on the test set, and leave a run folder: config.json, "
        "model.safetensors, metrics.json, history.csv, certified_accuracy.png, training.png. Settings that are not "
        "given come from a recipe for the data and model. However a run ends, --resume continues it to the "
        "same weights. Under torchrun the batch is shared by the processes.",
        epilog="example: mondeq train --data mnist --model lipschitz --radius 0.4 --out runs/mnist",
    )
    parser.add_argument("--data", help=f"one of {', '.join(data.names())}")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help=f"{', '.join(PRESETS)}, or a FILE.json with a list of pieces; lipschitz and certified "
        "are Lipschitz for any weights, and the default with --radius (certified: for colour images); "
        "interval is certified in ℓ∞",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run folder; must be new or empty")
    parser.add_argument("--resume", action="store_true", help="continue the run in RUN with its own settings")
    add_data_dir(parser)
    add_device(parser)
    add_json(parser)
    parser.add_argument("--certify", type=count(1), metavar="N", help="certify the first N test images (default: all)")
    parser.add_argument("--tensorboard", action="store_true", help="log to RUN/tensorboard (needs mondeq[tensorboard])")
    _add_settings(parser.add_argument_group("model"), _of_presets())
    _add_settings(parser.add_argument_group("training"), {**_of_training(), **_of_losses()})
    parser.set_defaults(run=run)


def _of_presets() -> dict[str, Field[Any]]:
    """The settings of all presets by name; of two with the same name the first is shown."""
    return {f.name: f for _, preset in reversed(list(PRESETS.items())) for f in fields(preset)}


def _of_losses() -> dict[str, Field[Any]]:
    """The settings of all losses by name."""
    return {f.name: f for _, loss in LOSSES.items() for f in fields(loss.Settings)}


def _of_training() -> dict[str, Field[Any]]:
    """The settings of training that are options: not the data, which is one of its own, nor those of its loss."""
    return {f.name: f for f in fields(TrainingConfig) if f.name not in ("data", "loss_settings")}


def _add_settings(group: argparse._ArgumentGroup, settings: dict[str, Field[Any]]) -> None:
    for name, each in settings.items():
        option = {"help": each.metadata["help"] or None, **each.metadata["rule"].option()}
        group.add_argument(f"--{name.replace('_', '-')}", **option)


def run(options: argparse.Namespace) -> int:
    """Run `mondeq train`.

    Args:
        options: What was typed.

    Returns:
        The exit code.

    Raises:
        MondeqError: Why it failed.
        SplittingError: Why it failed.
        KeyboardInterrupt: It was interrupted, and has said what the folder holds.
    """
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
        (config, make), preset = _stored_config(options), None
        extra = options.extra or places.find_extra(folder, config.extra)
        dataset = load_data(*_stored_place(options), extra)
    else:
        settings, dataset = _new_run(options)
        config, make, preset = _new_config(settings, dataset)
    torch.manual_seed(config.seed)
    model = make()
    check_fits(model, dataset)
    trainer = Trainer(model, dataset, config, folder, device)
    try:
        if not options.resume:
            _create(trainer, options, preset)
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
    norm = trainer.loss.norm
    report, radii = certify_split(Certifier(model, norm), trainer.dataset.test, options.certify), NORMS[norm].radii
    everything = len(report.radius) == len(trainer.dataset.test)
    # Where only some images are certified, the accuracy on all is that of the last epoch.
    accuracy = report.accuracy if everything else trainer.history[-1].test_accuracy
    if distributed.is_main():
        metrics = {
            **report_json(report, radii),
            "test_accuracy": accuracy,
            "train_seconds": sum(row.seconds for row in trainer.history),
            "solver": _solver_figures(trainer),
            "machine": _machine(trainer.device),
        }
        title = f"{trainer.config.data}, {_kind(read_json(folder / CONFIG))}"
        plots.certified_accuracy(report, title, folder / "certified_accuracy.png")
        plots.training(trainer.history, title, folder / "training.png")
        # Last, as the sign that a run is complete.
        write_json(folder / _METRICS, metrics)
        save_json(options.json, metrics)
    if not everything:
        show(f"\ntest accuracy {percent(accuracy)}; the first {len(report.radius)} test images:")
    show(f"\n{report_table(report, radii)}\n\n{bounds_table(report.bounds)}\n\nrun folder: {folder}")


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
    """How the solves of the last epoch went; of several layers the loosest settings."""
    layers, last = list(trainer.model.solved()), trainer.history[-1]
    return {
        "name": ", ".join(dict.fromkeys(type(layer.solver).__name__ for layer in layers)),
        "tol": max((layer.tol for layer in layers), default=0.0),
        "max_steps": max((layer.max_steps for layer in layers), default=0),
        "forward_steps": last.forward_steps,
        "backward_steps": last.backward_steps,
        "forward_unconverged": last.forward_unconverged,
        "backward_unconverged": last.backward_unconverged,
    }


def _kind(config: dict[str, Any]) -> str:
    """What a run is called by: its preset, if it has one."""
    return str(_preset(config).get("kind", "network of pieces"))


def _preset(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the preset that a run was made of; none for a list of pieces. Format 1 had nothing else."""
    preset = config.get("preset", config.get("model") if config.get("format") == 1 else None)
    return preset if isinstance(preset, dict) else {}


def _new_run(options: argparse.Namespace) -> tuple[dict[str, Any], data.Dataset]:
    """Settings and data. Raises ConfigError for what is missing, RunError for a folder in use, before data are read."""
    if options.data is None or (options.model is None and not options.radius):
        raise ConfigError(f"--data and --model are needed for a new run; data is one of {', '.join(data.names())}")
    if distributed.is_main():
        _check_free(options.out)
    if options.model is not None:
        return _new_settings(options), load_data(options.data, options.data_dir, options.extra)
    dataset = load_data(options.data, options.data_dir, options.extra)
    # What certifies best at a radius: a stack for colours, one dense layer for what is small and grey.
    options.model = "certified" if dataset.train.images.shape[1] > 1 else "lipschitz"
    return _new_settings(options), dataset


def _new_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the user gave, over the recipe. Raises ConfigError for a setting of another model."""
    given, radius = _given(options), options.radius or 0.0
    if options.model in PRESETS:
        _refuse_foreign(given, _of_presets(), PRESETS[options.model], "model", options.model)
        recipe_ = recipe(options.data, options.model, radius)
    elif options.model.endswith(".json"):
        _refuse_foreign(given, _of_presets(), NoSettings, "model", options.model)
        recipe_ = {"logit_scale": 6.0 if radius <= 1 else 4.0} if radius else {}
    else:
        raise ConfigError(f"`model` is {options.model!r}; it must be one of {', '.join(PRESETS)}, or a FILE.json")
    return {**recipe_, **given, "data": places.portable(options.data), "model": options.model}


def _refuse_foreign(
    given: dict[str, Any], settings: dict[str, Field[Any]], kind: type[Settings], what: str, name: str
) -> None:
    """Raise ConfigError where one of `settings` was given that `kind`, the chosen one, does not have."""
    own = {f.name for f in fields(kind)}
    for foreign in (each for each in given if each in settings and each not in own):
        registry: Any = {"model": PRESETS.items(), "loss": ((n, c.Settings) for n, c in LOSSES.items())}[what]
        owners = [other for other, cls in registry if foreign in {f.name for f in fields(cls)}]
        raise ConfigError(f"`{foreign}` is a setting of the {_listed(owners)} {what}, not of {name}; drop it")


def _check_free(folder: Path) -> None:
    """Raise RunError where there is anything but what a run that died before its first checkpoint leaves behind."""
    found = {each.name for each in folder.iterdir()} - own(folder) - {CONFIG, places.LOCAL}
    if found - ({TENSORBOARD} if (folder / CONFIG).exists() else set()):
        raise RunError(f"{folder} exists and is not an empty folder; choose another --out, or --resume the run in it")


def _stored_config(options: argparse.Namespace) -> tuple[TrainingConfig, Callable[[], Network]]:
    """Those of the run in --out. Raises ConfigError where the user asks for others, RunError where there are none."""
    path = options.out / CONFIG
    stored = read_json(path)
    training = stored.get("training")
    if not isinstance(stored.get("model"), dict) or not isinstance(training, dict):
        raise RunError(f"{path} was not written by `mondeq train`; there is nothing to resume")
    try:
        config = TrainingConfig.from_dict(training)
        with torch.device("meta"):
            read_network(stored)
    except (ConfigError, TypeError, ValueError) as error:
        raise RunError(f"{path} cannot be resumed: {error}") from None
    settings = {**_preset(stored), **config.to_dict(), **config.loss_settings}
    settings = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    settings |= {"data": places.portable(config.data), "model": _preset(stored).get("kind", options.model)}
    data_name = options.data and places.portable(options.data)
    for name, value in {**_given(options), "data": data_name, "model": options.model}.items():
        if value is not None and settings.get(name) != value:
            raise ConfigError(
                f"`{name}` is {settings.get(name)!r} in this run, got {value!r}; --resume keeps a run's settings"
            )
    return config, lambda: read_network(stored)


def _stored_place(options: argparse.Namespace) -> tuple[str, Path | None]:
    """The data of the run in --out: where they were, unless the user names another place."""
    name, data_dir = places.find(options.out, options.data_dir)
    return options.data or name, data_dir


def _has_begun(folder: Path) -> bool:
    """Whether there is a checkpoint, or what a run only writes after its first one."""
    return any((folder / name).exists() for name in (checkpoint.NAME, WEIGHTS, _HISTORY, _METRICS))


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the user gave, by name."""
    names = {**_of_presets(), **_of_training(), **_of_losses()}
    values = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.extra is not None:
        values["extra"] = places.portable(options.extra)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _new_config(
    settings: dict[str, Any], dataset: data.Dataset
) -> tuple[TrainingConfig, Callable[[], Network], ModelConfig | None]:
    """The settings of training, what makes the network, and its preset, if it is of one."""
    loss = LOSSES[settings.get("loss", "margin")]
    _refuse_foreign(settings, _of_losses(), loss.Settings, "loss", settings.get("loss", "margin"))
    own = {f.name: settings[f.name] for f in fields(loss.Settings) if f.name in settings}
    training = {name: settings[name] for name in _of_training() if name in settings}
    config = TrainingConfig(data=settings["data"], loss_settings=own, **training)
    if settings["model"] in PRESETS:
        preset = _preset_config(settings, dataset)
        return config, lambda: Classifier(preset), preset
    described = _pieces(Path(settings["model"]), dataset)
    return config, lambda: build(described), None


def _pieces(path: Path, dataset: data.Dataset) -> dict[str, Any]:
    """The list of pieces in a file, with shape and classes of the data. Raises RunError or ConfigError."""
    if not path.is_file():
        raise RunError(f"{path} is no file; `--model` takes one of {', '.join(PRESETS)}, or a FILE.json of pieces")
    described = {"in_shape": list(dataset.train.images.shape[1:]), **read_json(path)}
    with torch.device("meta"):
        logits = build({**described, "class_names": []}).classes
    if logits != len(dataset.classes):
        raise ConfigError(
            f"the pieces of {path} give {logits} logits, and the data have {len(dataset.classes)} classes"
        )
    return {"class_names": list(dataset.classes), **described}


def _preset_config(settings: dict[str, Any], dataset: data.Dataset) -> ModelConfig:
    kind = PRESETS[settings["model"]]
    return ModelConfig(
        kind=settings["model"],
        image_shape=tuple(dataset.train.images.shape[1:]),
        classes=len(dataset.classes),
        mean=dataset.mean,
        std=dataset.std if kind.normalises else tuple(1.0 for _ in dataset.std),
        class_names=dataset.classes,
        **{f.name: settings[f.name] for f in fields(kind) if f.name in settings},
    )


def _create(trainer: Trainer, options: argparse.Namespace, preset: ModelConfig | None) -> None:
    """Write the settings. Raises RunError where there are others, of a run that died before its first checkpoint."""
    if distributed.is_main():
        local = places.local(options.data, options.data_dir, options.extra)
        extra = {} if preset is None else {"preset": preset.to_dict()}
        config = config_text(
            describe(trainer.model), **extra, training=trainer.config.to_dict(), version=mondeq.__version__
        )
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


def _listed(names: Sequence[str]) -> str:
    """Names as a reader lists them: a, b and c."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
