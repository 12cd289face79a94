"""Whatever comes in from outside is taken, or refused in one line: settings, options, streams, other processes.

The fuzzers are seeded and change one thing at a time, so that what they find can be read off the failing case.
"""

import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mondeq
from mondeq import distributed
from mondeq.cli import main
from mondeq.cli.output import check_writable
from mondeq.data import Dataset
from mondeq.errors import ConfigError, RunError, showable
from mondeq.files import read_json
from mondeq.formats import describe
from mondeq.runs import CONFIG, WEIGHTS
from mondeq.training import Trainer, TrainingConfig, checkpoint
from tests.mondeq.test_distributed import free_ports
from tests.mondeq.test_runs import FORMAT_1

ROOT = Path(__file__).parents[2]
NAN, INF = float("nan"), float("inf")
# Kinds, signs and sizes of values that JSON can hold.
STRANGE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, -(10**30), 0.5, -0.0, 1e308, -1e308),
    *(1e-320, NAN, INF, "", "x", "digits", "a\0b", "\ud800", "\x1b[31m\n", "9" * 5000),
    *([], [0], ["x"], [1, 2, 3], [[1]], [1e308], [NAN], {}, {"a": 1}, [None]),
)  # fmt: skip


@dataclass(frozen=True)
class Called:
    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    """The command line in this process."""

    def run(*arguments: object) -> Called:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Called(code, *capsys.readouterr())

    return run


def explained(called: Called, *codes: int) -> None:
    """One of the exit codes; where it is a failure, one short line that blames nobody else than the input."""
    assert called.code in codes, called
    assert "internal error" not in called.err
    assert "Traceback" not in called.err
    lines = [line for line in called.err.splitlines() if not line.startswith(("warning: ", "usage: ", " "))]
    assert len(lines) == (called.code != 0), called.err
    assert all(len(line) <= 1000 and line.isprintable() for line in lines), called.err


@pytest.fixture(scope="module")
def trained_run(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few seconds. Not to be changed by a test."""
    run = tmp_path_factory.mktemp("doors") / "run"
    quick = ["--data", "digits", "--model", "dense", "--features", "4", "--epochs", "1", "--batch-size", "800"]
    assert main(["train", *quick, "--certify", "2", "--device", "cpu", "--out", str(run)]) == 0
    return run


def altered(run: Path, folder: Path, path: tuple[str, ...], value: Any) -> Path:
    """A copy of `run` with one entry of its config.json changed, or taken away where `value` is `...`."""
    if not folder.exists():
        folder.mkdir()
        for name in (WEIGHTS, checkpoint.NAME):
            shutil.copy(run / name, folder / name)
    config = json.loads((run / CONFIG).read_text())
    at = config
    for name in path[:-1]:
        at = at[name]
    if value is ...:
        at.pop(path[-1], None)
    else:
        at[path[-1]] = value
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [f.name for f in fields(TrainingConfig)])
def test_training_settings_are_plain_values_or_refused(name: str) -> None:
    """What passes is of the type that is declared, survives JSON, and makes a generator and an optimiser."""
    plain = {"str": str, "int": int, "float": float, "bool": bool, "dict[str, Any]": dict, "None": type(None)}
    declared = {f.name: [plain[kind] for kind in str(f.type).split(" | ")] for f in fields(TrainingConfig)}
    numpys = [np.int64(3), np.float32(0.5), np.bool_(True), np.array(2), torch.tensor(0.25), np.array([1, 2]), object()]
    passed, refusals = 0, []
    for value in [*STRANGE, *numpys, 10**5000]:
        try:
            config = TrainingConfig(**({"data": "digits"} | {name: value}))
        except ConfigError as error:
            refusals.append(showable(str(error)))
            continue
        passed += 1
        assert type(getattr(config, name)) in declared[name]
        assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config
        torch.Generator().manual_seed(config.seed)
        torch.optim.Adam([torch.zeros(1)], lr=config.lr, weight_decay=config.weight_decay)
        for step in (0, 1, 10**6):
            assert 0 <= config.learning_rate(step, 10) < INF
            assert 0 <= config.progress(step, 10).radius < INF
    assert (passed == 0) == (name in ("optimizer", "schedule", "loss", "augment", "average"))
    assert refusals
    assert all(f"`{name}` must be" in line and len(line) < 300 for line in refusals)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "decay_every", "shift", "seed"])
def test_whole_numbers_reach_as_far_as_those_of_torch(name: str) -> None:
    assert getattr(TrainingConfig(**{"data": "digits", name: 2**63 - 1}), name) == 2**63 - 1
    for value in (2**63, 2**64, 10**5000, -1, 1.0, True, "1"):
        with pytest.raises(ConfigError, match=rf"`{name}` must be an integer ≥ [01] and < 2\^63, got"):
            TrainingConfig(**{"data": "digits", name: value})


def test_a_shift_out_of_the_picture_is_refused(digits: Dataset, tmp_path: Path) -> None:
    config = mondeq.ModelConfig(
        "dense", image_shape=(1, 8, 8), classes=10, mean=digits.mean, std=digits.std, features=3
    )
    model = mondeq.Classifier(config)
    Trainer(model, digits, TrainingConfig("digits", shift=7), tmp_path, torch.device("cpu"))
    with pytest.raises(ConfigError, match="`shift` must be less than the side of images of 8×8, got 8"):
        Trainer(model, digits, TrainingConfig("digits", shift=8), tmp_path, torch.device("cpu"))


@pytest.fixture(scope="module")
def old_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as version 0.1 wrote it."""
    folder = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("old") / "run"))
    config = json.loads((folder / CONFIG).read_text())
    config |= {"format": 1, "model": FORMAT_1 | config.pop("preset")}
    for name in ("loss", "loss_settings"):
        del config["training"][name]
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def test_settings_of_a_model_in_config_json(call: Callable[..., Called], old_run: Path, tmp_path: Path) -> None:
    """Of format 1."""
    settings = json.loads((old_run / CONFIG).read_text())["model"]
    assert {"kind", "image_shape", "classes", "features", "activation", "class_names"} <= settings.keys()
    names = [("format",), ("model",), *(("model", name) for name in settings), ("model", "nonsense")]
    for name, value in (*((name, ...) for name in names), *turns(0, 2, names)):
        explained(call("info", altered(old_run, tmp_path / "run", name, value)), 0, 1)


def test_a_list_of_pieces_in_config_json(call: Callable[..., Called], trained_run: Path, tmp_path: Path) -> None:
    """Of format 2."""
    model = json.loads((trained_run / CONFIG).read_text())["model"]
    names: list[tuple[Any, ...]] = [("format",), ("model",), ("preset",), ("preset", "kind"), ("model", "nonsense")]
    names += [("model", *path) for path in paths(model)]
    assert ("model", "pieces", 1, "parameterization", "features") in names
    for name, value in turns(0, 3, names):
        explained(call("info", altered(trained_run, tmp_path / "run", name, value)), 0, 1)


def turns(first: int, every: int, names: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each name with one of `every` strange values, each value with one of `every` names."""
    return ((name, value) for i, name in enumerate(names, start=first) for value in STRANGE[i % every :: every])


def paths(value: Any) -> list[tuple[Any, ...]]:
    """The ways to all entries of what JSON holds."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, *rest) for key, entry in entries for rest in ((), *paths(entry))]


class Frugal(TorchDispatchMode):
    """Nothing is computed that holds more than `most` numbers."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            assert not isinstance(leaf, torch.Tensor) or leaf.is_meta or leaf.numel() <= self.most, func
        return out


def read_or_refused(folder: Path, config: Any) -> mondeq.Network | None:
    """What is loaded with `config` in place of that of `folder`; None where one short line refuses it."""
    (folder / CONFIG).write_text(json.dumps(config))
    try:
        with Frugal(most=10_000):
            return mondeq.load(folder)
    except RunError as error:
        line = str(error)
        assert str(folder) in line
        assert line.isprintable()
        assert len(line) <= 1000, len(line)
        return None


EXAMPLES = [*mondeq.PIECES, *(f"equilibrium of {name}" for name in mondeq.PARAMETERIZATIONS)]


def example(name: str) -> mondeq.Network:
    """A network of one piece."""
    if name in mondeq.PIECES:
        kind = mondeq.PIECES[name]
        settings, shape = kind.example()
        return mondeq.Network([kind.make(settings, shape)], shape)
    linear = mondeq.PARAMETERIZATIONS[name.removeprefix("equilibrium of ")]
    settings, shape = linear.example()
    return mondeq.Network([mondeq.EquilibriumLayer(linear.make(settings, shape))], shape)


@pytest.mark.parametrize("name", EXAMPLES)
def test_settings_of_every_piece(name: str, tmp_path: Path) -> None:
    """What is taken is a network that says the same of itself, and has the weights of the file.

    Every setting gets half of the values: most are of many pieces, which take turns.
    """
    mondeq.save(example(name), tmp_path)
    sound = json.loads((tmp_path / CONFIG).read_text())
    ways = [*paths(sound["model"]), ("nonsense",), ("pieces", 0, "nonsense")]
    taken = 0
    for way, value in (*((way, ...) for way in ways), *turns(EXAMPLES.index(name), 2, ways)):
        config = json.loads(json.dumps(sound))
        at = config["model"]
        for step in way[:-1]:
            at = at[step]
        if value is ... and (isinstance(at, list) or way[-1] in at):
            del at[way[-1]]
        elif value is not ...:
            at[way[-1]] = value
        if (model := read_or_refused(tmp_path, config)) is not None:
            taken += 1
            mondeq.save(model, tmp_path / "again")
            again = json.loads((tmp_path / "again" / CONFIG).read_text())["model"]
            assert again == json.loads(json.dumps(describe(mondeq.load(tmp_path / "again"))))
    assert taken


def hostile(sound: dict[str, Any]) -> dict[str, Any]:
    """Lists of pieces that nobody wrote in good faith, or that somebody wrote with a mistake."""
    rows = sound["pieces"]
    deep: Any = 1
    for _ in range(200):
        deep = {"a": [deep]}
    many = [{"piece": "identity"}] * 2000
    row = {"piece": "linear", "features": 3}
    return {
        "deep": {**sound, "pieces": deep},
        "deep in a row": {**sound, "pieces": [{**rows[0], "mean": deep}, *rows[1:]]},
        "deep parameterization": {**sound, "pieces": [rows[0], {**rows[1], "parameterization": deep}, *rows[2:]]},
        "deep name": {**sound, "pieces": [{**rows[0], "name": deep}, *rows[1:]]},
        "deep class name": {**sound, "class_names": [deep]},
        "many rows": {**sound, "pieces": [*many, *rows]},
        "many weights": {"in_shape": [3], "pieces": [row] * 500},
        "many settings": {**sound, "pieces": [{**rows[0], **{f"{i:0999}": i for i in range(100)}}, *rows[1:]]},
        "many names": {**sound, "class_names": [f"{i}" for i in range(100_000)]},
        "a long name": {**sound, "pieces": [{**rows[0], "name": "n" * 100_000}, *rows[1:]]},
        "an endless shape": {**sound, "in_shape": [1] * 100_000},
        "an image of 2^93 bytes": {**sound, "in_shape": [2**31, 2**31, 2**31]},
        "an image of more": {**sound, "in_shape": [2**62, 2**62, 2**62]},
        "an image of 2^64 and as many as it has": {**sound, "in_shape": [1, 2**32 + 1, 2**32]},
        "2^60 weights": {"in_shape": [2**30], "pieces": [{"piece": "linear", "features": 2**30}]},
        "2^80 weights": {"in_shape": [2**40], "pieces": [{"piece": "linear", "features": 2**40}]},
        "2^40 channels": {"in_shape": [1, 8, 8], "pieces": [{"piece": "conv2d", "channels": 2**40}]},
        "a kernel of 2^20": {
            "in_shape": [1, 2**21, 2**21], "pieces": [{"piece": "conv2d", "channels": 1, "kernel_size": 2**20}],
        },
        "padding of 2^40": {
            "in_shape": [1, 8, 8], "pieces": [{"piece": "conv2d", "channels": 1, "padding": 2**40}, row],
        },
        "stride of 2^62": {"in_shape": [1, 8, 8], "pieces": [{"piece": "conv2d", "channels": 1, "stride": 2**62}]},
        "blocks of 2^31": {
            "in_shape": [1, 2**31, 2**31], "pieces": [{"piece": "pixel-unshuffle", "factor": 2**31}, row],
        },
        "blocks of no image": {"in_shape": [3], "pieces": [{"piece": "pixel-unshuffle"}]},
        "no blocks": {"in_shape": [1, 2, 2], "pieces": [{"piece": "average-pool", "size": 3}]},
        "no border": {"in_shape": [1, 2, 2], "pieces": [{"piece": "crop", "border": 2**62}]},
        "no entries": {"in_shape": [3], "pieces": [{"piece": "entries", "start": 3}]},
        "no groups": {"in_shape": [3], "pieces": [{"piece": "group-sort", "size": 2**62}]},
        "a dense layer of 2^40": {
            "in_shape": [3],
            "pieces": [{"piece": "equilibrium", "parameterization": {"kind": "dense", "features": 2**40}}],
        },
        "tiers of 2^40": {
            "in_shape": [1, 2**50, 2**50],
            "pieces": [
                {"piece": "equilibrium", "parameterization": {"kind": "multiscale-conv2d", "channels": [2**40] * 40}}
            ],
        },
        "ten thousand tiers": {
            "in_shape": [1, 8, 8],
            "pieces": [
                {"piece": "equilibrium", "parameterization": {"kind": "multiscale-conv2d", "channels": [1] * 10_000}}
            ],
        },
        "a convolution on 2^40 pixels": {
            "in_shape": [1, 2**20, 2**20],
            "pieces": [
                {"piece": "equilibrium", "parameterization": {"kind": "conv2d", "channels": 1}},
                {"piece": "average-pool", "size": 2**20},
                {"piece": "flatten"},
                row,
            ],
        },
        "a readout of what has none": {
            "in_shape": [3], "pieces": [{"piece": "readout", "parameterization": {"kind": "dense", "features": 3}}],
        },
        "a layer in a layer": {**sound, "pieces": [rows[0], {**rows[1], "parameterization": rows[1]}, rows[2]]},
        "names of Python": {**sound, "pieces": [{**rows[0], "name": "__class__"}, *rows[1:]]},
        "names of torch": {**sound, "pieces": [{**rows[0], "name": "_parameters"}, *rows[1:]]},
        "names of ours": {**sound, "pieces": [{**rows[0], "name": "solved"}, *rows[1:]]},
        "names of ours, more": {**sound, "pieces": [{**rows[0], "name": "in_shape"}, *rows[1:]]},
        "half a letter": {**sound, "pieces": [{**rows[0], "name": "\ud800"}, *rows[1:]]},
        "no name": {**sound, "pieces": [{**rows[0], "name": ""}, *rows[1:]]},
        "a name of control": {**sound, "pieces": [{**rows[0], "name": "\x1b[31m\n"}, {**rows[0]}, *rows[1:]]},
        "a name for two": {**sound, "pieces": [rows[0], rows[0], *rows[1:]]},
        "a number for two": {"in_shape": [3], "pieces": [{**row, "name": "1"}, row]},
        "another order": {**sound, "pieces": rows[::-1]},
        "twice": {**sound, "pieces": rows + [{**each, "name": each["name"] + "2"} for each in rows]},
        "an unknown": {**sound, "pieces": [*rows, {"piece": "dropout"}]},
        "a class": {**sound, "pieces": [*rows, {"piece": "torch.nn.Linear", "features": 3}]},
    }  # fmt: skip


HOSTILE = hostile(
    json.loads(
        json.dumps(
            describe(
                mondeq.Network(
                    {
                        "normalise": mondeq.Normalise((0.5,), (0.5,)),
                        "layer": mondeq.EquilibriumLayer(mondeq.Dense(4, 3)),
                        "head": nn.Linear(3, 2),
                    },
                    (1, 2, 2),
                    class_names="ab",
                )
            )
        )
    )
)


@pytest.mark.parametrize("name", HOSTILE)
def test_pieces_that_are_refused(
    name: str, call: Callable[..., Called], tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, before any weight has memory; also where a training is to go on, or to begin."""
    monkeypatch.setattr("mondeq.data.catalogue.load_digits", lambda: digits)
    run, file = tmp_path / "run", tmp_path / "pieces.json"
    mondeq.save(mondeq.Network([nn.Flatten(), nn.Linear(4, 2)], (1, 2, 2)), run)
    config = {"format": 2, "model": HOSTILE[name], "training": {"data": "digits"}}
    assert read_or_refused(run, config) is None
    explained(call("info", run), 1)
    explained(call("train", "--resume", "--out", run), 1)
    file.write_text(json.dumps(HOSTILE[name]))
    explained(call("train", "--data", "digits", "--model", file, "--out", tmp_path / "new"), 1)
    assert not (tmp_path / "new").exists()


def test_pieces_nested_as_deep_as_python_reads_them(call: Callable[..., Called], tmp_path: Path) -> None:
    mondeq.save(mondeq.Network([nn.Flatten()], (1, 2, 2)), tmp_path)
    for depth, place in itertools.product(
        (100, 500, 900, 950, 970, 990), ("mean", "parameterization", "name", "piece")
    ):
        deep = '{"a":' * depth + "1" + "}" * depth
        row = f'{{"name": "0", "piece": "equilibrium", "{place}": {deep}}}'
        (tmp_path / CONFIG).write_text(f'{{"format": 2, "model": {{"in_shape": [3], "pieces": [{row}]}}}}')
        with pytest.raises(RunError, match=CONFIG) as caught:
            mondeq.load(tmp_path)
        assert len(str(caught.value)) < 1000
        explained(call("info", tmp_path), 1)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_shuffled_and_spliced(seed: int, tmp_path: Path) -> None:
    """Rows of all pieces in any order, with names, sizes and settings of each other: read, or refused in one line."""
    random = np.random.default_rng(seed)
    described = [json.loads(json.dumps(describe(example(name)))) for name in EXAMPLES]
    rows = [model["pieces"][0] for model in described]
    mondeq.save(mondeq.Network([nn.Flatten()], (1, 2, 2)), tmp_path)
    taken = 0
    for _ in range(300):
        chosen = [dict(rows[k]) for k in random.integers(len(rows), size=random.integers(1, 5))]
        for number, row in enumerate(chosen):
            row["name"] = str(number) if random.random() < 0.9 else str(random.choice(STRANGE[18:24]))
            if random.random() < 0.3:
                other = rows[random.integers(len(rows))]
                row |= {key: other[key] for key in other if random.random() < 0.3}
        shape = described[random.integers(len(described))]["in_shape"]
        config = {"format": 2, "model": {"in_shape": shape, "pieces": chosen}}
        taken += read_or_refused(tmp_path, config) is not None
    assert taken


def test_settings_of_training_in_config_json(
    call: Callable[..., Called], trained_run: Path, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that are not refused, a finished run has only its certificate to make again."""

    def finished(self: Trainer) -> None:
        raise RunError("finished")

    monkeypatch.setattr(Trainer, "run", finished)
    monkeypatch.setattr("mondeq.data.catalogue.load_digits", lambda: digits)
    names = [("training", f.name) for f in fields(TrainingConfig)] + [("training",), ("data_dir",), ("training", "x")]
    for name, value in itertools.product(names, (..., *STRANGE)):
        explained(call("train", "--resume", "--out", altered(trained_run, tmp_path / "run", name, value)), 1)


@pytest.mark.parametrize("command", ["certify", "bound"])
def test_the_data_that_a_run_names(
    command: str, call: Callable[..., Called], trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise RunError("loaded")

    monkeypatch.setattr("mondeq.cli.bound.lipschitz_bounds", loaded)
    monkeypatch.setattr("mondeq.cli.certify.certify_split", loaded)
    for name, value in itertools.product([("training",), ("training", "data"), ("data_dir",)], (..., *STRANGE)):
        explained(call(command, altered(trained_run, tmp_path / "run", name, value)), 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "{",
        "\ufeff{}",
        "9" * 5000,
        '{"a": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": nan}',
    ],
    ids=["empty", "list", "brace", "mark", "digits", "digits in it", "brackets", "braces", "nan"],
)
def test_json_that_is_none(text: str, call: Callable[..., Called], trained_run: Path, tmp_path: Path) -> None:
    run = altered(trained_run, tmp_path / "run", ("format",), 1)
    for name in (CONFIG, "metrics.json"):
        (run / name).write_text(text)
        explained(call("info", run), 1)
        with pytest.raises(RunError, match=name):
            read_json(run / name)
        (run / CONFIG).write_bytes((trained_run / CONFIG).read_bytes())


def test_json_nested_as_deep_as_python_reads_it(call: Callable[..., Called], trained_run: Path, tmp_path: Path) -> None:
    """What can be read may still be too deep to be shown."""
    run = altered(trained_run, tmp_path / "run", ("format",), 1)
    for depth in (100, 500, 800, 900, 950, 970, 990):
        (run / "metrics.json").write_text('{"a":' * depth + "1" + "}" * depth)
        explained(call("info", run, "--json", tmp_path / "f.json"), 0, 1)


# -- options -------------------------------------------------------------------------------------------------------

NUMBERS = (
    "0",
    "-1",
    "1",
    str(2**63),
    str(2**64),
    "9" * 5000,
    "-" + "9" * 30,
    "1.5",
    "1e400",
    "nan",
    "٣",
    "",
    "x",
    "\x1b[3m\n",
)


def test_every_option_of_training_takes_or_refuses_any_number(
    call: Callable[..., Called], tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written for what is refused."""
    monkeypatch.setattr("mondeq.data.catalogue.load_digits", lambda: digits)

    def made(self: Trainer, *_: Any, **__: Any) -> None:
        raise RunError("made")

    monkeypatch.setattr(Trainer, "__init__", made)
    kinds = {"--channels": "conv", "--kernel-size": "conv", "--pool": "conv", "--gamma": "lipschitz"}
    options = ("--features", "--m", "--tol", "--max-steps", "--radius", "--epochs", "--batch-size", "--lr")
    options += (
        "--decay-every",
        "--weight-decay",
        "--clip",
        "--ramp",
        "--logit-scale",
        "--shift",
        "--seed",
        "--certify",
    )
    for option, text in itertools.product([*kinds, *options, "--device", "--data", "--solver"], NUMBERS):
        given = ["train", "--data", "digits", "--model", kinds.get(option, "dense"), "--out", tmp_path / "run"]
        explained(call(*given, f"{option}={text}"), 1, 2)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "options"),
    [("certify", ("--radii", "--limit", "--attack-samples", "--device")), ("bound", ("--images", "--device"))],
)
def test_every_option_of_certificates_takes_or_refuses_any_number(
    command: str, options: tuple[str, ...], call: Callable[..., Called], trained_run: Path, monkeypatch: Any
) -> None:
    def computed(*_: Any, **__: Any) -> None:
        raise RunError("computed")

    monkeypatch.setattr("mondeq.cli.bound.lipschitz_bounds", computed)
    monkeypatch.setattr("mondeq.cli.certify.certify_split", computed)
    for option, text in itertools.product(options, NUMBERS):
        explained(call(command, trained_run, f"{option}={text}"), 1, 2)


@pytest.mark.parametrize("size", [0, 1, 7, 12, 2**70])
def test_as_many_images_as_there_are(size: int, call: Callable[..., Called], trained_run: Path) -> None:
    explained(call("certify", trained_run, "--limit", size), *((1, 2) if size in (0, 2**70) else (0,)))


@pytest.mark.parametrize(
    "name", ["cuda:300", "cuda:99999999999999999999", "cpu:1", "CPU", "cuda:-1", "cuda:\n", "cuda: 0"]
)
def test_devices_that_torch_reads_loosely(name: str) -> None:
    """torch takes cuda:300 for cuda:44, and says so in its own words for the rest."""
    with pytest.raises(ConfigError, match=r"use auto, cpu, cuda or cuda:N|finds no CUDA device|does not exist"):  # noqa: SIM117
        with distributed.session(name):
            pass


# -- streams -------------------------------------------------------------------------------------------------------


def python(arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m mondeq` through a shell, so that streams can be led elsewhere."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m mondeq {arguments}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16", "latin-1", "utf-8"])
def test_any_encoding(encoding: str, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it lacks is written in plain letters, in help, results, warnings and errors alike."""
    for expected, arguments, word in (
        (0, ["train", "--help"], "gamma, in logits per pixel"),
        (0, ["certify", str(trained_run), "--limit", "3"], "l2 radius"),
        (1, ["train", "--data", "digits", "--model", "dense", "--out", "/nowhere/σ", "--lr", "-1"], ">= 0|> 0"),
        (2, ["certify", str(trained_run), "--limit", "-1"], ">= 1"),
        (1, ["info", "/nowhere/ℓ\udcff\u4e2d"], r"\\udcff"),
    ):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        code = main(arguments)
        monkeypatch.undo()
        assert code == expected
        said = ""
        for stream in streams:
            assert stream.errors == "strict"
            stream.flush()
            said += stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        if encoding == "ascii":
            assert re.search(word, re.sub(r"\s+", " ", said)), said


def test_every_letter_of_ours_has_a_plain_form() -> None:
    """In what commands print: help, tables, messages. Formulas of docstrings are not printed."""
    from mondeq.cli.output import _PLAIN

    out = io.StringIO()
    for command in ("train", "certify", "bound", "quantise", "report", "info", "import-checkpoint"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            assert main([command, "--help"]) == 0
    assert {c for c in out.getvalue() if not c.isascii()} <= _PLAIN.keys()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
@pytest.mark.parametrize("buffering", [1, -1])
@pytest.mark.parametrize("arguments", [["info"], ["--help"], ["--version"], ["train", "--help"]], ids=" ".join)
def test_a_full_stdout_is_showable(
    arguments: list[str], buffering: int, trained_run: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*arguments, str(trained_run)] if arguments == ["info"] else arguments
    stream = open("/dev/full", "w", buffering=buffering)  # noqa: SIM115  closing it fails before the repair
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(given) == 1
    line = r"mondeq( info)?: cannot write to the standard output: No space left on device\n"
    assert re.fullmatch(line, capsys.readouterr().err)
    stream.close()  # nothing is left that the interpreter could stumble over when it exits


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_closed_and_full_streams(trained_run: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody listens to a closed stream. An error goes to nobody rather than to stdout."""
    for name, arguments, code in (
        ("stdout", ["info", str(trained_run)], 0),
        ("stderr", ["info", str(trained_run)], 0),
        ("stderr", ["info", "/nowhere"], 1),
        ("stderr", ["nonsense"], 2),
    ):
        for stream in (None, open("/dev/full", "w")) if name == "stderr" else (None,):  # noqa: SIM115
            with monkeypatch.context() as patch:
                patch.setattr(sys, name, stream)
                assert main(arguments) == code
                assert getattr(sys, name) is stream
            out, err = capsys.readouterr()
            assert err == ""
            assert ("parameters" in out) == (name == "stderr" and code == 0)
            if stream is not None:
                stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_streams_of_a_whole_process() -> None:
    """To the very end of the interpreter, whose own messages come last."""
    for arguments, code, said in (
        ("--help >/dev/full", 1, "mondeq: cannot write to the standard output: No space left on device\n"),
        ("info /nowhere >&- 2>&-", 1, ""),
    ):
        ran = python(arguments)
        assert (ran.returncode, ran.stdout, ran.stderr) == (code, "", said)


def test_a_warning_nobody_hears_ends_nothing(monkeypatch: pytest.MonkeyPatch, trained_run: Path) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    monkeypatch.setattr(
        "mondeq.cli.info.read_json", lambda path: warnings.warn("unheard\nof", stacklevel=1) or read_json(path)
    )
    assert main(["info", str(trained_run)]) == 0


def test_nothing_steers_the_terminal(call: Callable[..., Called], trained_run: Path, tmp_path: Path) -> None:
    """Control sequences in names of files, classes and settings, and in what was typed, are shown, not obeyed."""
    evil = "a\x1b[31m\x9b2Jb\u202e\nc\r\udcff"
    run = altered(trained_run, tmp_path / "run", ("training", "data"), evil)
    (run / "metrics.json").write_text(json.dumps({evil: evil, "classes": [evil]}))
    for arguments in (
        ["info", run],
        ["info", evil],
        ["certify", run],
        ["info", run, evil],
        [evil],
        ["info", f"--{evil}"],
    ):
        called = call(*arguments)
        for text in (called.out, called.err):
            assert all(c.isprintable() or c == "\n" for c in text), arguments
    out = call("info", run).out
    assert r"a\x1b[31m\x9b2Jb\u202e\nc\r\udcff" in out


def test_warnings_of_others_are_showable(
    call: Callable[..., Called], trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned(path: Path) -> Any:
        warnings.warn("one\ntwo\x1b[31m\nthree", UserWarning, stacklevel=1)
        return read_json(path)

    monkeypatch.setattr("mondeq.cli.info.read_json", warned)
    assert call("info", trained_run).err == "warning: one\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(13, "Permission denied", "/data/run"), 1, "mondeq info: /data/run: Permission denied"),
        (MemoryError(), 1, "mondeq info: out of memory; use a smaller model, batch or --limit"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nmore"),
            1,
            "mondeq info: out of memory; ",
        ),
        (KeyboardInterrupt(), 130, "mondeq info: interrupted"),
        (distributed.FailedElsewhere(), 1, ""),
        (BrokenPipeError(), 1, ""),
        (RunError("one\ntwo"), 1, r"mondeq info: one\ntwo"),
        (KeyError("gone"), 1, "mondeq info: internal error at "),
    ],
)
def test_what_may_still_happen(
    error: BaseException, code: int, line: str, call: Callable[..., Called], trained_run: Path, monkeypatch: Any
) -> None:
    """The last door. A fault of this package says so, where it is, and shows itself on demand."""

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr("mondeq.cli.info.read_json", fails)
    monkeypatch.delenv("MONDEQ_TRACEBACK", raising=False)
    called = call("info", trained_run)
    assert called.code == code
    assert called.err.startswith(line)
    assert called.err.count("\n") == bool(line)
    if "internal" in line:
        assert re.search(r"mondeq.cli.info\.py:\d+, KeyError: 'gone'", called.err)
        monkeypatch.setenv("MONDEQ_TRACEBACK", "1")
        with pytest.raises(KeyError):
            call("info", trained_run)


# -- files to be written -------------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_found_before_the_work(
    call: Callable[..., Called], trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*_: Any, **__: Any) -> None:
        pytest.fail("the work had begun")

    for name in ("certify", "bound", "info"):
        monkeypatch.setattr(f"mondeq.cli.{name}.load", worked)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent" / "x")
    places = ["absent/f", ".", "file/f", "n" * 300, "/dev/null", "/dev/full", "/proc/f", "a\0b"]
    for place, (command, *options) in itertools.product(
        places, [("certify", "--json"), ("certify", "--plot"), ("bound", "--json"), ("info", "--json")]
    ):
        called = call(command, trained_run, *options, place if place.startswith("/") else f"{tmp_path}/{place}")
        explained(called, 1)
        assert "cannot write" in called.err
    assert {p.name for p in tmp_path.iterdir()} == {"file", "dangling"}
    assert (tmp_path / "file").read_text() == "precious"
    assert Path("/dev/null").is_char_device()


def test_checking_a_file_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    check_writable(tmp_path / "there", tmp_path / "new", None)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("there", "old")]


# -- processes -----------------------------------------------------------------------------------------------------

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT"),
        *(({"RANK": bad}, "RANK") for bad in ("", "x", "-1", "1.0", "9" * 5000, "2", "٣")),
        *(({"WORLD_SIZE": bad}, "WORLD_SIZE") for bad in ("", "0", "-2", "two")),
        *(({"MASTER_PORT": bad}, "MASTER_PORT") for bad in ("", "x", "65536", "-1")),
        *(({"LOCAL_RANK": bad}, "LOCAL_RANK") for bad in ("", "x", "-1")),
    ],
)
def test_environments_that_torchrun_did_not_make(
    environment: dict[str, str], name: str, call: Callable[..., Called], trained_run: Path, monkeypatch: Any
) -> None:
    whole = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
    half = len(environment) > 1 or environment in ({"RANK": "0"}, {"WORLD_SIZE": "2"})
    for variable in TORCHRUN:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in (environment if half else whole | environment).items():
        monkeypatch.setenv(variable, value)
    called = call("info", trained_run)
    explained(called, 1)
    assert re.match(rf"mondeq info: the environment variable `{name}` is .*`torchrun`", called.err)


def test_where_processes_are_alike_the_first_speaks(
    call: Callable[..., Called], monkeypatch: pytest.MonkeyPatch, trained_run: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for rank, speaks in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        for arguments, code in ((["--help"], 0), (["nonsense"], 2), (["info", trained_run], 1)):
            called = call(*arguments)
            assert called.code == code
            assert bool(called.out + called.err) == speaks


def test_processes_that_do_not_come(trained_run: Path, monkeypatch: Any, capfd: Any) -> None:
    """One line, also where torch prints past Python."""
    monkeypatch.setattr(distributed, "_PATIENCE", distributed.timedelta(seconds=1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_ports(1)[0]))
    monkeypatch.setenv("RANK", "0")
    capfd.readouterr()
    assert main(["info", str(trained_run)]) == 1
    assert re.fullmatch(r"mondeq info: process 0 of 2 did not meet the others at 127.*\n", capfd.readouterr().err)


SCENARIOS = """
import os, sys, torch
from mondeq import cli, distributed

torch.set_num_threads(1)
rank, run, ports = int(os.environ["RANK"]), sys.argv[1], sys.argv[2:]

def fail(*_, **__):
    raise cli.MondeqError("bad luck")

def die(*_, **__):
    os._exit(9)

def scenario(name, *arguments):
    os.environ["MASTER_PORT"] = ports.pop()
    code = cli.main(["certify", run, *arguments])
    print(name, code, flush=True)
    print(name, "over", file=sys.stderr, flush=True)

scenario("alike", "--device", "banana")
load = cli.evaluation.data.load
if rank == 0: cli.evaluation.data.load = fail
scenario("first")
cli.evaluation.data.load = load
if rank == 1: cli.certify.certify_split = fail
scenario("second", "--limit", "4")
if rank == 1: cli.certify.certify_split = die
scenario("killed", "--limit", "4")
"""


def test_failures_of_processes_end_all_and_are_told_once(trained_run: Path) -> None:
    """On both alike; on the first before all meet; on the second alone; killed without a word."""
    ports, path = free_ports(4), os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCENARIOS, str(trained_run), *map(str, ports)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        (first, told), (second, also) = (process.communicate(timeout=200) for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert first == "alike 1\nfirst 1\nsecond 1\nkilled 1\n", told
    assert second == "alike 1\nfirst 1\nsecond 1\n", also
    complaints = [
        re.split(r"(?:alike|first|second|killed) over\n", text) + [""] * (text is also) for text in (told, also)
    ]
    for lines, expected in zip(
        zip(*complaints, strict=True),
        ("unknown device 'banana'; .*", "bad luck", "bad luck", r"process 0 of 2 lost the others \(.*\)"),
        strict=False,
    ):
        assert re.fullmatch(f"mondeq certify: {expected}\n", "".join(lines)), lines


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_file_in_a_run_is_not_waited_for(name: str, tmp_path: Path) -> None:
    mondeq.save(mondeq.Network([nn.Flatten(), nn.Linear(4, 2)], (1, 2, 2)), tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(RunError, match="is not a regular file"):
        mondeq.load(tmp_path)
