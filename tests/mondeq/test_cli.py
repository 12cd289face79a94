"""The command line: what it prints and writes, its exit codes, and one clear line for every mistake."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import torch
from PIL import Image

import mondeq
from mondeq import ACTIVATIONS, SOLVERS
from mondeq.cli import main
from mondeq.cli.output import table
from mondeq.data import Dataset, names
from mondeq.formats import describe, read
from mondeq.runs import CONFIG, WEIGHTS
from mondeq.training import Trainer, checkpoint
from tests.mondeq.test_runs import FORMAT_1
from tests.mondeq.zoo import KINDS, classifier, same_weights

ROOT = Path(__file__).parents[2]
SHORT = ("--data", "digits", "--epochs", "2", "--batch-size", "512", "--device", "cpu")
QUICK = (*SHORT, "--features", "8")
# What makes each kind small, and a setting or two of its own.
SIZES: dict[str, tuple[str, ...]] = {
    "dense": ("--features", "8"),
    "lipschitz": ("--features", "8", "--radius", "0.1", "--gamma", "0.5"),
    "conv": ("--channels", "2", "--pool", "4", "--no-weight-norm", "--flip"),
    "multiscale": ("--channels", "2", "3", "--kernel-size", "3", "--shift", "1"),
}
RUN_FILES = {
    CONFIG,
    WEIGHTS,
    checkpoint.NAME,
    "metrics.json",
    "history.csv",
    "certified_accuracy.png",
    "training.png",
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@dataclass(frozen=True)
class Called:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str


class Call:
    """The command line in this process, captured."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Called:
        self.capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse: help, version, wrong usage
            code = int(stop.code or 0)
        out, err = self.capsys.readouterr()
        return Called(code, out, err)

    def fails(self, code: int, message: str, *arguments: object) -> str:
        """Exit `code`, no traceback, nothing on stdout, and one line on stderr that matches (after a usage, for 2)."""
        called = self(*arguments)
        assert called.code == code, called
        assert "Traceback" not in called.err
        assert called.out == ""
        lines = [line for line in called.err.splitlines() if line]
        if code == 2:
            assert lines[0].startswith("usage: mondeq")
            lines = lines[-1:]
        assert len(lines) == 1, called.err
        assert lines[0].startswith("mondeq")
        assert re.search(message, lines[0]), lines[0]
        return lines[0]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


@pytest.fixture(autouse=True)
def _no_data_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")
    monkeypatch.delenv("MONDEQ_DATA", raising=False)


@dataclass(frozen=True)
class Trained:
    """Finished runs, and what the command line did on the way. Not to be changed by a test."""

    folders: dict[str, Path]
    json: dict[str, Path]
    called: dict[str, Called]

    def copy(self, kind: str, folder: Path) -> Path:
        return Path(shutil.copytree(self.folders[kind], folder))


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One run of each kind, in folders that were there already and were empty."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    files = {kind: tmp_path_factory.mktemp("json") / f"{kind}.json" for kind in KINDS}
    called = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for kind in KINDS:
        command = ["train", *SHORT, "--model", kind, *SIZES[kind], "--out", folders[kind], "--json", files[kind]]
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            code = main([str(c) for c in command])
        called[kind] = Called(code, out.getvalue(), err.getvalue())
    torch.set_num_threads(threads)
    return Trained(folders, files, called)


@pytest.fixture
def runs(trained_runs: Trained) -> dict[str, Path]:
    return trained_runs.folders


def check_picture(path: Path) -> None:
    """A PNG that is one, of a useful size, neither blank nor black."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 200
        pixels = np.asarray(image.convert("L"))
    assert len(np.unique(pixels)) > 20
    assert 0.001 < (pixels < 128).mean() < 0.5


# -- train ---------------------------------------------------------------------------------------------------------


@each_kind
def test_train_leaves_a_whole_run(kind: str, runs: dict[str, Path]) -> None:
    folder = runs[kind]
    assert {p.name for p in folder.iterdir()} == RUN_FILES
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0.1 < metrics["test_accuracy"] <= 1
    assert {"0.1", "0.2"} <= metrics["certified_accuracy"].keys()
    assert all(0 <= share <= metrics["test_accuracy"] for share in metrics["certified_accuracy"].values())
    assert metrics["lipschitz"]["product"]["kind"] == "certified"
    assert metrics["train_seconds"] > 0
    assert metrics["solver"]["name"] == "PeacemanRachford"
    assert metrics["solver"]["forward_steps"] >= 1
    config = json.loads((folder / CONFIG).read_text())
    assert config["format"] == 2
    assert config["model"] == json.loads(json.dumps(describe(mondeq.load(folder))))
    assert config["preset"]["kind"] == kind
    assert describe(mondeq.Classifier(mondeq.ModelConfig.from_dict(config["preset"]))) == describe(mondeq.load(folder))
    assert config["training"]["data"] == "digits"
    assert config["version"] == mondeq.__version__
    assert (folder / "history.csv").read_text().count("\n") == 3
    for name in ("certified_accuracy.png", "training.png"):
        check_picture(folder / name)


@each_kind
def test_a_run_loads_and_classifies_as_its_metrics_say(kind: str, runs: dict[str, Path], digits: Dataset) -> None:
    model = mondeq.load(runs[kind])
    images, labels = digits.test.images.float() / 255, digits.test.labels
    with torch.no_grad():
        right = float((model(images).argmax(1) == labels).double().mean())
    metrics = json.loads((runs[kind] / "metrics.json").read_text())
    assert right == pytest.approx(metrics["test_accuracy"], abs=0.01)
    report = mondeq.certify(model, images, labels)
    assert report.accuracy == pytest.approx(metrics["test_accuracy"])
    for radius, share in metrics["certified_accuracy"].items():
        assert report.certified_accuracy([float(radius)])[float(radius)] == pytest.approx(share)


@each_kind
def test_train_prints_tables_and_writes_json(kind: str, trained_runs: Trained) -> None:
    called, folder = trained_runs.called[kind], trained_runs.folders[kind]
    assert called.code == 0
    assert "certified" in called.out
    assert "Lipschitz constant" in called.out
    assert f"run folder: {folder}" in called.out
    metrics = json.loads((folder / "metrics.json").read_text())
    assert json.loads(trained_runs.json[kind].read_text()) == metrics
    assert f"{100 * metrics['test_accuracy']:.2f} %" in called.out


@each_kind
def test_train_is_silent_of_progress_in_a_pipe(kind: str, trained_runs: Trained) -> None:
    """Nothing on stderr; on stdout the result, nothing that moves or counts epochs."""
    called = trained_runs.called[kind]
    assert called.err == ""
    assert "\r" not in called.out
    assert "epoch" not in called.out


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_train_shows_progress_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar on stderr with loss, accuracy, certified accuracy and solver steps."""
    terminal, step = Terminal(), Trainer._step

    def slow(self: Trainer, *args: Any) -> None:
        time.sleep(0.15)  # longer than the bar waits between two looks
        step(self, *args)

    monkeypatch.setattr(Trainer, "_step", slow)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["train", *QUICK, "--model", "lipschitz", "--radius", "0.1", "--out", str(tmp_path / "run")]) == 0
    shown = terminal.getvalue()
    assert "\r" in shown
    for word in ("epoch 1/2", "epoch 2/2", "loss", "accuracy", "certified", "steps"):
        assert word in shown


def test_settings_reach_the_run(call: Call, tmp_path: Path) -> None:
    """Every option that decides the model or its training is stored as given."""
    given = {
        "features": 5, "m": 0.5, "learn_m": True, "activation": "tanh", "solver": "anderson", "tol": 1e-3,
        "max_steps": 77, "radius": 0.05, "epochs": 1, "batch_size": 700, "lr": 0.003, "schedule": "step",
        "decay_every": 3, "optimizer": "adamw", "weight_decay": 0.01, "clip": 1.0, "ramp": 0.25, "logit_scale": 2.0,
        "shift": 1, "seed": 5,
    }  # fmt: skip
    options = []
    for name, value in given.items():
        options += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    run = tmp_path / "run"
    assert call("train", "--data", "digits", "--model", "dense", "--out", run, *options).code == 0
    config = json.loads((run / CONFIG).read_text())
    stored = config["preset"] | config["training"]
    assert {name: stored[name] for name in given} == given
    model = mondeq.load(run)
    assert type(model.layer.solver).__name__ == "Anderson"
    assert model.layer.max_steps == 77


def test_gamma_reaches_the_run(runs: dict[str, Path]) -> None:
    bounds = mondeq.lipschitz_bounds(mondeq.load(runs["lipschitz"]))
    assert 0.1 < bounds["matrix inequality"].value <= 0.5 * (1 + 1e-6)


def test_folders_of_pictures(call: Call, tmp_path: Path) -> None:
    """Anyone's own pictures, from training to certificates, wherever the command is run."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for level, name in enumerate(("dark", "light")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = (random.integers(0, 100, (5, 6)) + 150 * level).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    run = tmp_path / "run"
    train = ("--features", 4, "--epochs", 15, "--batch-size", 8, "--lr", 0.02, "--out", run)
    assert call("train", "--data", f"folder:{tmp_path / 'pictures'}", "--model", "dense", *train).code == 0
    assert call("certify", run, "--json", tmp_path / "figures.json").code == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["samples"] == 8
    assert figures["test_accuracy"] == 1


def test_tensorboard(call: Call, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    assert call("train", *QUICK, "--model", "lipschitz", "--out", run, "--tensorboard").code == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    assert {"loss", "lr", "train_accuracy", "test_accuracy"} <= set(log.Tags()["scalars"])
    with (run / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    for name in log.Tags()["scalars"]:
        events = log.Scalars(name)
        assert [event.step for event in events] == [1, 2]
        assert [event.value for event in events] == pytest.approx([float(row[name]) for row in history])


def test_tensorboard_where_it_is_missing(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = tmp_path / "run"
    call.fails(
        1, r'pip install "mondeq\[tensorboard\]"', "train", *QUICK, "--model", "dense", "--out", run, "--tensorboard"
    )
    assert not run.exists()


# -- interruption --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_steps", [0, 4])
def test_ctrl_c_leaves_a_loadable_run_that_resumes(
    after_steps: int, call: Call, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, taken, step = tmp_path / "run", 0, Trainer._step

    def interrupted(self: Trainer, *args: Any) -> None:
        nonlocal taken
        if taken == after_steps:
            raise KeyboardInterrupt
        taken += 1
        step(self, *args)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    same = ("--model", "lipschitz", "--radius", 0.1, "--gamma", 0.5)
    line = call_interrupted(call, "train", *QUICK, *same, "--out", run)
    assert f"mondeq train --resume --out {run}" in line
    assert f"after {after_steps // 3} of 2 epochs" in line
    monkeypatch.undo()
    mondeq.load(run)
    called = call("info", run)
    assert called.code == 0
    assert "--resume" in called.out
    assert call("train", "--resume", "--out", run).code == 0
    assert {p.name for p in run.iterdir()} == RUN_FILES
    assert same_weights(mondeq.load(run).state_dict(), mondeq.load(runs["lipschitz"]).state_dict())


def call_interrupted(call: Call, *arguments: object) -> str:
    called = call(*arguments)
    assert called.code == 130
    lines = [line for line in called.err.splitlines() if line]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("command", ["certify", "bound"])
def test_ctrl_c_elsewhere(command: str, call: Call, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    place = {"certify": "certify.Certifier", "bound": "bound.lipschitz_bounds"}[command]
    monkeypatch.setattr(f"mondeq.cli.{place}", interrupted)
    assert call_interrupted(call, command, runs["dense"]) == f"mondeq {command}: interrupted"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to send")
def test_a_real_signal(tmp_path: Path) -> None:
    """SIGINT to the process itself, somewhere in the middle of a long training."""
    run = tmp_path / "run"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "mondeq", "train", *QUICK, "--epochs", "100000", "--model", "dense", "--out", run],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        # A shell starts its background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while process.poll() is None and not (run / "history.csv").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "--resume --out" in err
    assert "Traceback" not in err
    mondeq.load(run)
    assert not [p.name for p in run.iterdir() if p.name.startswith(".")]


def test_certifying_some_images_leaves_the_accuracy_on_all(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick = ("--data", "digits", "--model", "dense", "--features", 8, "--epochs", 1)
    result = call("train", *quick, "--certify", 7, "--out", run)
    metrics = json.loads((run / "metrics.json").read_text())
    with (run / "history.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert metrics["samples"] == 7
    assert metrics["test_accuracy"] == float(last["test_accuracy"])
    assert f"test accuracy {100 * metrics['test_accuracy']:.2f} %; the first 7 test images:" in result.out


def test_resuming_a_finished_run_changes_nothing(call: Call, trained_runs: Trained, tmp_path: Path) -> None:
    run = trained_runs.copy("lipschitz", tmp_path / "run")
    before = mondeq.load(run).state_dict()
    metrics = json.loads((run / "metrics.json").read_text())
    same = ("--epochs", 2, "--data", "digits", "--model", "lipschitz", "--gamma", 0.5)
    assert call("train", "--resume", "--out", run, *same).code == 0
    assert same_weights(before, mondeq.load(run).state_dict())
    again = json.loads((run / "metrics.json").read_text())
    for name in ("test_accuracy", "certified_accuracy", "train_seconds"):
        assert again[name] == metrics[name]


# -- certify, bound, info ------------------------------------------------------------------------------------------


@each_kind
def test_certify(kind: str, call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    figures_file, plot = tmp_path / "figures.json", tmp_path / "curve.png"
    called = call("certify", runs[kind], "--radii", "0", "0.05", "36/255", "--json", figures_file, "--plot", plot)
    assert called.code == 0
    assert called.err == ""
    figures = json.loads(figures_file.read_text())
    metrics = json.loads((runs[kind] / "metrics.json").read_text())
    assert figures["test_accuracy"] == metrics["test_accuracy"]
    shares = figures["certified_accuracy"]
    assert list(shares) == ["0", "0.05", "0.141176"]
    assert shares["0"] == figures["test_accuracy"] >= shares["0.05"] >= shares["0.141176"]
    for share in shares.values():
        assert f"{100 * share:.2f} %" in called.out
    assert figures["samples"] == metrics["samples"] > 300
    assert 0 <= figures["largest_solver_error_bound"] < 1e-5
    check_picture(plot)


def test_certify_default_radii_and_limit(call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    called = call("certify", runs["dense"], "--limit", 25, "--json", tmp_path / "f.json")
    assert called.code == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["samples"] == 25
    assert list(figures["certified_accuracy"]) == ["0.1", "0.2", "0.5", "1", "1.58"]
    lines = called.out.splitlines()
    assert lines[0].split() == ["ℓ2", "radius", "certified"]
    assert lines[2].split()[0] == "0"


def test_certify_locally(call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    called = call("certify", runs["dense"], "--limit", 20, "--radii", "0.05", "0.2", "--local", "--json", file)
    assert called.code == 0
    assert "without --local  with it" in called.out
    assert "multiply the radius of an image by" in called.out
    figures = json.loads(file.read_text())
    assert figures["certificates"].keys() == {"gaps", "local"}
    for radius, share in figures["without_local"].items():
        assert share <= figures["certified_accuracy"][radius]
    call.fails(1, "'local' does not suit this network", "certify", runs["conv"], "--limit", 5, "--local")


def test_certify_under_attack(call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    """Never less than is certified for the same images, and clean accuracy at radius 0."""
    pytest.importorskip("foolbox")
    options = ("--attack", "--attack-samples", 20, "--limit", 20, "--radii", 0, 0.1, 1, "--json", tmp_path / "f.json")
    called = call("certify", runs["dense"], *options)
    assert called.code == 0
    assert "under attack" in called.out
    assert "20 images attacked; 0.00 % of the attack's gradients were 0" in called.out
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["attack_zero_gradients"] == 0
    attacked = figures["accuracy_under_attack"]
    assert attacked["0"] == pytest.approx(figures["test_accuracy"])
    assert attacked["0"] >= attacked["0.1"] >= attacked["1"]
    for radius, share in figures["certified_accuracy"].items():
        assert attacked[radius] >= share - 1e-9


def test_attack_without_foolbox(call: Call, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "foolbox.models.pytorch", None)
    monkeypatch.setitem(sys.modules, "foolbox.attacks.projected_gradient_descent", None)
    call.fails(1, r'pip install "mondeq\[attack\]"', "certify", runs["lipschitz"], "--limit", 5, "--attack")


@each_kind
def test_bound(kind: str, call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    called = call("bound", runs[kind], "--images", 10, "--json", tmp_path / "f.json")
    assert called.code == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    own = mondeq.lipschitz_bounds(mondeq.load(runs[kind]))
    for name, bound in own.items():
        assert figures[name]["value"] == bound.value
        assert figures[name]["kind"] == "certified"
        np.testing.assert_array_equal(np.array(figures[name]["pairs"]), bound.pairs.numpy())
        assert f"{bound.value:.4f}" in called.out
        assert figures["local Jacobian"]["value"] <= bound.value
    assert figures["local Jacobian"]["kind"] == "estimate"


def test_bound_without_images(call: Call, runs: dict[str, Path]) -> None:
    called = call("bound", runs["lipschitz"], "--images", 0)
    assert called.code == 0
    assert "matrix inequality" in called.out
    assert "local Jacobian" not in called.out


@each_kind
def test_info(kind: str, call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    called = call("info", runs[kind], "--json", tmp_path / "f.json")
    assert called.code == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["parameters"] == sum(p.numel() for p in mondeq.load(runs[kind]).parameters())
    assert list(figures["constants"]) == ["layer"]
    assert 0 < figures["constants"]["layer"]["strong_monotonicity"] <= figures["constants"]["layer"]["operator_norm"]
    assert figures["metrics"] == json.loads((runs[kind] / "metrics.json").read_text())
    assert re.search(rf"preset\.kind +{kind}\n", called.out)
    assert re.search(r"training\.epochs +2\n", called.out)


def test_a_model_about_which_nothing_is_provable(call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    """Infinite bounds are said to be infinite, also to machines, for whom JSON has no number for it."""
    model = mondeq.load(runs["dense"])
    with torch.no_grad():
        model.layer.linear.get_parameter("F").fill_(1e9)
    config = json.loads((runs["dense"] / CONFIG).read_text())
    mondeq.save(model, tmp_path / "run", training=config["training"])
    for command in (["bound", "--images", "0"], ["certify", "--limit", "5"], ["info"]):
        called = call(command[0], tmp_path / "run", *command[1:], "--json", tmp_path / "f.json")
        assert called.code == 0
        json.loads((tmp_path / "f.json").read_text(), parse_constant=pytest.fail)
    assert call("bound", tmp_path / "run", "--images", 0).out.count("inf") >= 1


# -- help and usage ------------------------------------------------------------------------------------------------


def test_version_and_help(call: Call) -> None:
    assert call("--version") == Called(0, f"mondeq {mondeq.__version__}\n", "")
    everything = call("--help")
    assert everything.code == 0
    for command in ("train", "certify", "bound", "info"):
        assert command in everything.out
        one = call(command, "--help")
        assert one.code == 0
        assert f"example: mondeq {command} " in re.sub(r"\s+", " ", one.out)
        assert "--json" in one.out


@pytest.mark.parametrize("arguments", [[], ["trian"], ["certify"], ["bound"], ["info"], ["train", "--data", "digits"]])
def test_wrong_usage(arguments: list[str], call: Call) -> None:
    call.fails(2, "error: ", *arguments)


def test_the_module_runs_too() -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        [sys.executable, "-m", "mondeq", "info", "/nowhere"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith("mondeq info: /nowhere is not a folder")
    assert ran.stderr.count("\n") == 1


def test_tables_are_aligned() -> None:
    text = table([["a", "1.00 %"], ["long name", "10.00 %"]], header=["name", "share"])
    assert text.splitlines() == ["name         share", "---------  -------", "a           1.00 %", "long name  10.00 %"]
    assert table([["x", "y"]]) == "x  y"


# -- mistakes in train ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--activation", "gelu"], "argument --activation: invalid choice: 'gelu' .*" + ".*".join(ACTIVATIONS)),
        (["--solver", "newton"], "argument --solver: invalid choice: 'newton' .*" + ".*".join(SOLVERS)),
        (["--schedule", "cosine"], "argument --schedule: invalid choice: 'cosine' .*one-cycle"),
        (["--optimizer", "sgd"], "argument --optimizer: invalid choice: 'sgd' .*adamw"),
        (["--epochs", "two"], "argument --epochs: invalid int value: 'two'"),
        (["--m", "much"], "argument --m: 'much' is not a number such as 0.5 or 36/255"),
        (["--m", "1/0"], "argument --m: '1/0' is not a number"),
        (["--loss", "hinge"], "argument --loss: invalid choice: 'hinge' .*margin"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_unknown_options_and_choices(options: list[str], message: str, call: Call, tmp_path: Path) -> None:
    call.fails(2, message, "train", *QUICK, "--model", "dense", "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--m", "0"], r"`m` must be a finite number > 0, got 0\.0"),
        (["--m", "-1"], r"`m` must be a finite number > 0"),
        (["--m", "nan"], r"`m` must be a finite number > 0"),
        (["--model", "lipschitz", "--gamma", "0"], r"`gamma` must be a finite number > 0"),
        (["--tol", "0"], r"`tol` must be a finite number > 0"),
        (["--tol=-1e-3"], r"`tol` must be a finite number > 0"),
        (["--max-steps", "0"], r"`max_steps` must be an integer ≥ 1"),
        (["--features", "0"], r"`features` must be an integer ≥ 1"),
        (["--features", "1000000000000000"], r"features|memory"),
        (["--radius", "-0.1"], r"`radius` must be a finite number ≥ 0, got -0\.1"),
        (["--radius", "nan"], r"`radius` must be"),
        (["--epochs", "0"], r"`epochs` must be an integer ≥ 1"),
        (["--batch-size", "0"], r"`batch_size` must be an integer ≥ 1"),
        (["--lr", "0"], r"`lr` must be a finite number > 0"),
        (["--clip", "-1"], r"`clip` must be"),
        (["--seed", "-1"], r"`seed` must be"),
        (["--ramp", "2"], r"`ramp` must be in \[0, 1\]"),
        (["--model", "convolutional"], r"`model` is 'convolutional'; it must be one of .*dense.*lipschitz.*FILE\.json"),
        (["--device", "banana"], r"unknown device 'banana'; use auto, cpu, cuda or cuda:N"),
        (["--device", "mps"], r"use auto, cpu, cuda or cuda:N"),
        (
            ["--model", "conv", "--features", "8"],
            r"`features` is a setting of the dense, interval and lipschitz model, not of conv",
        ),
        (["--channels", "8"], r"`channels` is a setting of the conv, multiscale and interval model, not of dense"),
        (
            ["--model", "lipschitz", "--m", "2"],
            r"`m` is a setting of the .* model, not of lipschitz",
        ),
        (["--model", "dense", "--gamma", "2"], r"`gamma` is a setting of the lipschitz model"),
    ],
)
def test_settings_out_of_range(options: list[str], message: str, call: Call, tmp_path: Path) -> None:
    """One line, and nothing is left behind."""
    call.fails(1, message, "train", *QUICK, "--model", "dense", "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_unknown_data_lists_the_valid_names(call: Call, tmp_path: Path) -> None:
    line = call.fails(1, "'digitz'", "train", "--data", "digitz", "--model", "dense", "--out", tmp_path / "run")
    for name in names():
        assert name in line
    line = call.fails(1, "--data and --model are needed", "train", "--out", tmp_path / "run")
    assert "digits" in line


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_a_missing_data_directory(name: str, call: Call, tmp_path: Path) -> None:
    options = ("--model", "dense", "--out", tmp_path / "run", "--data-dir", tmp_path / "absent")
    call.fails(1, "absent", "train", "--data", name, *options)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("what", ["absent", "empty", "file"])
def test_a_folder_without_pictures(what: str, call: Call, tmp_path: Path) -> None:
    if what == "empty":
        (tmp_path / what).mkdir()
    if what == "file":
        (tmp_path / what).write_text("hello")
    options = ("--model", "dense", "--out", tmp_path / "run")
    call.fails(1, what, "train", "--data", f"folder:{tmp_path / what}", *options)


def test_an_output_folder_in_use_is_left_alone(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    train = ("train", *QUICK, "--model", "dense", "--out")
    call.fails(1, r"exists and is not an empty folder; choose another --out, or --resume", *train, tmp_path / "run")
    assert [(p.name, p.read_text()) for p in (tmp_path / "run").iterdir()] == [("thesis.txt", "precious")]
    file = tmp_path / "run" / "thesis.txt"
    call.fails(1, "exists and is not an empty folder", *train, file)
    call.fails(1, "cannot make the folder", *train, file / "below")
    assert file.read_text() == "precious"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    message = "finds no CUDA device here; use --device cpu"
    call.fails(1, message, "train", *QUICK, "--model", "dense", "--out", tmp_path / "run", "--device", "cuda")
    call.fails(1, message, "certify", runs["dense"], "--device", "cuda:1")


@pytest.mark.filterwarnings("ignore::splitting.ConvergenceWarning")
@pytest.mark.parametrize("kind", ["dense", "lipschitz", "conv"])
@pytest.mark.parametrize("radius", [0, 0.1])
def test_divergence_is_one_line_with_a_remedy_and_leaves_a_loadable_run(
    kind: str, radius: float, call: Call, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    called = call("train", *SHORT, "--model", kind, *SIZES[kind], "--radius", radius, "--lr", 1e30, "--out", run)
    assert called.code == 1
    lines = [line for line in called.err.splitlines() if line and not line.startswith("warning: ")]
    assert len(lines) == 1
    assert "lower --lr" in lines[0]
    mondeq.load(run)


# -- mistakes in resuming ------------------------------------------------------------------------------------------


def test_resuming_what_is_no_run(call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    call.fails(1, "does not exist", "train", "--resume", "--out", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    call.fails(1, r"config\.json does not exist", "train", "--resume", "--out", tmp_path / "empty")
    mondeq.save(classifier(), tmp_path / "saved")
    call.fails(
        1,
        "was not written by `mondeq train`; there is nothing to resume",
        "train",
        "--resume",
        "--out",
        tmp_path / "saved",
    )
    (tmp_path / "empty" / CONFIG).write_text('{"model": {}, "training": {}}')
    call.fails(1, "config.json", "train", "--resume", "--out", tmp_path / "empty")
    # Settings alone are a run that died early; with weights it is one whose checkpoint was lost.
    shutil.copy(runs["dense"] / CONFIG, tmp_path / "empty")
    shutil.copy(runs["dense"] / WEIGHTS, tmp_path / "empty")
    call.fails(1, r"checkpoint\.safetensors", "train", "--resume", "--out", tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--m", "2"], r"`m` is 1\.0 in this run, got 2\.0; --resume keeps a run's settings"),
        (["--epochs", "9"], "`epochs` is 2 in this run, got 9"),
        (["--model", "lipschitz"], "`model` is 'dense' in this run, got 'lipschitz'"),
        (["--data", "mnist"], "`data` is 'digits' in this run, got 'mnist'"),
        (["--seed", "1"], "`seed` is 0 in this run, got 1"),
    ],
)
def test_resuming_with_other_settings(options: list[str], message: str, call: Call, runs: dict[str, Path]) -> None:
    before = {p.name: p.read_bytes() for p in runs["dense"].iterdir()}
    call.fails(1, message, "train", "--resume", "--out", runs["dense"], *options)
    assert {p.name: p.read_bytes() for p in runs["dense"].iterdir()} == before


def to_format_1(run: Path, **changes: Any) -> Path:
    """Make the config.json of a finished run of a preset what version 0.1 wrote, with other settings of the model."""
    config = json.loads((run / CONFIG).read_text())
    config |= {"format": 1, "model": FORMAT_1 | config.pop("preset") | changes}
    for name in ("loss", "loss_settings"):
        del config["training"][name]
    (run / CONFIG).write_text(json.dumps(config))
    return run


# Changes of a run, in format 1 and of the pieces in format 2, and how the network has them.
@pytest.mark.parametrize("form", [1, 2])
@pytest.mark.parametrize(
    ("piece", "change"),
    [
        ("layer", {"epsilon": 0.123}),
        ("normalise", {"mean": [0.25]}),
        ("normalise", {"std": [0.75]}),
        ("layer", {"tol": 1e-6}),
    ],
)
def test_resuming_takes_the_model_as_it_is_stored(
    form: int,
    piece: str,
    change: dict[str, Any],
    call: Call,
    trained_runs: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not as the defaults, the recipe and the data of today would make it."""
    run = trained_runs.copy("lipschitz", tmp_path / "run")
    if form == 1:
        to_format_1(run, **change)
    config = json.loads((run / CONFIG).read_text())
    if form == 2:
        (row,) = [row for row in config["model"]["pieces"] if row["name"] == piece]
        (row["parameterization"] if "epsilon" in change else row).update(change)
        (run / CONFIG).write_text(json.dumps(config))
    seen: list[Any] = []

    def stopped(self: Trainer) -> None:
        seen.append(describe(self.model))
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", stopped)
    assert call("train", "--resume", "--out", run).code == 130
    assert seen == [describe(read(config))]
    ((name, value),) = change.items()
    row = json.loads(json.dumps(next(row for row in seen[0]["pieces"] if row["name"] == piece)))
    assert (row | row.get("parameterization", {}))[name] == value


@each_kind
def test_a_run_of_format_1_is_resumed_to_the_same_bits(
    kind: str, call: Call, trained_runs: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, step = tmp_path / "run", Trainer._step
    taken: list[int] = []

    def interrupted(self: Trainer, *args: Any) -> None:
        if len(taken) == 4:
            raise KeyboardInterrupt
        taken.append(1)
        step(self, *args)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    assert call("train", *SHORT, "--model", kind, *SIZES[kind], "--out", run).code == 130
    monkeypatch.undo()
    before = to_format_1(run) / CONFIG
    text = before.read_text()
    assert call("info", run).code == 0
    call.fails(1, r"`epochs` is 2 in this run, got 9", "train", "--resume", "--out", run, "--epochs", 9)
    call.fails(1, r"`tol` is .* in this run, got 0\.5", "train", "--resume", "--out", run, "--tol", 0.5)
    other = "dense" if kind == "conv" else "conv"
    call.fails(
        1, f"`model` is '{kind}' in this run, got '{other}'", "train", "--resume", "--out", run, "--model", other
    )
    assert call("train", "--resume", "--out", run, "--model", kind, *SIZES[kind]).code == 0
    assert before.read_text() == text
    assert {p.name for p in run.iterdir()} == RUN_FILES
    assert same_weights(mondeq.load(run).state_dict(), mondeq.load(trained_runs.folders[kind]).state_dict())
    assert call("certify", run, "--limit", 5).code == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["training"].pop("data"),
        lambda config: config["training"].update(data=7),
        lambda config: config["training"].update(epochs=2.5),
        lambda config: config["training"].update(epochs="two"),
        lambda config: config["model"].pop("pieces"),
        lambda config: config["model"]["pieces"].pop(),
        lambda config: config["model"]["pieces"][1].pop("piece"),
        lambda config: config["model"]["pieces"][1].update(piece="readout"),
        lambda config: config["model"]["pieces"][1]["parameterization"].update(features="five"),
        lambda config: config["model"]["pieces"][1]["parameterization"].update(features=10**12),
        lambda config: config.update(format=3),
        lambda config: config.update(format=1),
        lambda config: config.update(format=1, model={**FORMAT_1, **config["preset"], "kind": None}),
        lambda config: config.update(format=1, model={**FORMAT_1, **config["preset"], "kind": "conv"}),
        lambda config: config.update(format=1, model={**FORMAT_1, **config["preset"], "features": "five"}),
        lambda config: config.update(format=1, model={**FORMAT_1, **config["preset"], "features": 9}),
        lambda config: config.update(training=[1]),
        lambda config: config.update(data_dir=5),
    ],
    ids=[
        "no data",
        "data 7",
        "epochs 2.5",
        "epochs two",
        "no pieces",
        "a piece less",
        "no piece",
        "readout",
        "features five",
        "features 10^12",
        "format 3",
        "format 1",
        "no kind",
        "kind conv",
        "features five of 1",
        "features 9 of 1",
        "list",
        "data_dir",
    ],
)
def test_resuming_a_run_whose_config_was_tampered_with(
    change: Callable[[dict[str, Any]], Any], call: Call, trained_runs: Trained, tmp_path: Path
) -> None:
    run = trained_runs.copy("dense", tmp_path / "run")
    config = json.loads((run / CONFIG).read_text())
    change(config)
    (run / CONFIG).write_text(json.dumps(config))
    call.fails(1, ".", "train", "--resume", "--out", run)


# -- mistakes in the other commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["certify", "bound", "info"])
def test_a_run_that_is_none(command: str, call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    call.fails(1, "is not a folder; give the run folder that `mondeq train --out` wrote", command, tmp_path / "absent")
    call.fails(1, r"config\.json does not exist", command, tmp_path)
    (tmp_path / CONFIG).write_text((runs["dense"] / CONFIG).read_text())
    torch.save(mondeq.load(runs["dense"]).state_dict(), tmp_path / WEIGHTS)
    call.fails(1, "is a pickle, which can run code when loaded", command, tmp_path)
    (tmp_path / WEIGHTS).write_bytes((runs["dense"] / WEIGHTS).read_bytes()[:-10])
    call.fails(1, "is damaged", command, tmp_path)


@pytest.mark.parametrize("command", ["certify", "bound"])
def test_a_model_without_data(command: str, call: Call, tmp_path: Path) -> None:
    mondeq.save(classifier(), tmp_path / "run")
    call.fails(1, "names no data set: the model was not saved by `mondeq train`", command, tmp_path / "run")


@pytest.mark.parametrize("command", ["certify", "bound"])
def test_data_that_do_not_fit_the_model(command: str, call: Call, tmp_path: Path) -> None:
    mondeq.save(classifier(), tmp_path / "run", training={"data": "digits"})
    call.fails(1, "`images` must have shape", command, tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["certify", "--radii", "-0.1"], "argument --radii: .*(not a radius|expected at least one argument)"),
        (["certify", "--radii", "0.1", "many"], "'many' is not a number such as 0.5 or 36/255"),
        (["certify", "--radii", "1/0"], "'1/0' is not a number such as"),
        (["certify", "--radii", "nan"], "'nan' is not a radius"),
        (["certify", "--radii", "inf"], "'inf' is not a radius"),
        (["certify", "--radii=-36/255"], "'-36/255' is not a radius"),
        (["certify", "--limit", "0"], "'0' is not a whole number ≥ 1"),
        (["certify", "--limit", "-5"], "--limit"),
        (["certify", "--attack-samples", "1.5"], "'1.5' is not a whole number"),
        (["bound", "--images", "-5"], "--images"),
        (["bound", "--images", "all"], "--images"),
    ],
)
def test_numbers_that_make_no_sense(options: list[str], message: str, call: Call, runs: dict[str, Path]) -> None:
    call.fails(2, message, options[0], runs["dense"], *options[1:])


@pytest.mark.parametrize("command", [["certify", "--limit", "5"], ["bound", "--images", "0"], ["info"]])
def test_json_that_cannot_be_written(command: list[str], call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    arguments = (command[0], runs["lipschitz"], *command[1:], "--json")
    call.fails(1, r"cannot write .*absent/f\.json", *arguments, tmp_path / "absent" / "f.json")
    (tmp_path / "folder").mkdir()
    call.fails(1, "cannot write .*folder", *arguments, tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_plot_that_cannot_be_written(call: Call, runs: dict[str, Path], tmp_path: Path) -> None:
    options = ("--limit", 5, "--plot", tmp_path / "absent" / "curve.png")
    call.fails(1, r"cannot write .*curve\.png", "certify", runs["lipschitz"], *options)


def test_warnings_are_one_line_each(call: Call, tmp_path: Path) -> None:
    called = call("train", *QUICK, "--model", "lipschitz", "--max-steps", 1, "--out", tmp_path / "run")
    assert called.code == 0
    lines = [line for line in called.err.splitlines() if line]
    assert lines
    assert all(line.startswith("warning: ") for line in lines)
    assert any("--max-steps" in line or "max_steps" in line for line in lines)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert any(value > 0.5 for name, value in metrics["solver"].items() if "unconverged" in name)


# -- names of classes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["certify", "bound"])
def test_data_with_other_classes_than_a_run_was_trained_on_are_refused(
    command: str, call: Call, runs: dict[str, Path], tmp_path: Path
) -> None:
    """Renamed, in another order, one lost; a run that does not say their names warns."""
    run = tmp_path / "run"
    shutil.copytree(runs["dense"], run)
    config = json.loads((run / CONFIG).read_text())
    names = config["model"]["class_names"]
    assert names == list("0123456789")
    limit = ("--limit", 5) if command == "certify" else ("--images", 5)

    def store(changed: list[str] | None) -> None:
        config["model"].pop("class_names", None)
        if changed is not None:
            config["model"]["class_names"] = changed
        (run / CONFIG).write_text(json.dumps(config))

    for changed in (["zero", *names[1:]], [names[1], names[0], *names[2:]]):
        store(changed)
        message = f"class 0 was '{changed[0]}' when the run was trained and is '0' in the data"
        call.fails(1, message, command, run, *limit)
        call.fails(1, message, "train", "--resume", "--out", run)
    store(None)
    called = call(command, run, *limit)
    assert called.code == 0
    assert "warning: the run does not say the names of its classes" in called.err
    store(names)
    assert "warning" not in call(command, run, *limit).err


def test_data_that_lost_a_class_are_refused(call: Call, tmp_path: Path) -> None:
    model = classifier(image_shape=(1, 8, 8), classes=11, mean=(0.5,), std=(0.5,))
    mondeq.save(model, tmp_path, training={"data": "digits"})
    call.fails(1, "the run has 11 classes and the data 10; give the data as it was", "certify", tmp_path)


def test_with_a_radius_colour_images_are_trained_by_the_certified_preset(
    call: Callable[..., Called], tmp_path: Path
) -> None:
    """And grey ones by the lipschitz preset."""
    generator = torch.Generator().manual_seed(0)
    for name, bands in (("colour", 3), ("grey", 1)):
        for split, count in (("train", 8), ("test", 4)):
            for label in ("dark", "light"):
                folder = tmp_path / name / split / label
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = torch.randint(100, (8, 8, bands), generator=generator) + 120 * (label == "light")
                    picture = pixels.squeeze(2).to(torch.uint8).numpy()
                    Image.fromarray(picture).save(folder / f"{number}.png")
    small = ("--radius", "0.1", "--epochs", "1", "--batch-size", "8")
    for name, options, kind in (("colour", ("--hidden", "4", "--width", "12"), "certified"), ("grey", (), "lipschitz")):
        out = tmp_path / f"run of {name}"
        assert call("train", "--data", f"folder:{tmp_path / name}", "--out", out, *small, *options).code == 0
        assert json.loads((out / "config.json").read_text())["preset"]["kind"] == kind
        assert call("train", "--resume", "--out", out).code == 0
