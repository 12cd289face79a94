"""The experiments run, continue what was interrupted, do not repeat what is done, and say what came of it."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import mondeq
from experiments import cifar10, deep_equilibrium, mnist, recipes, svhn
from experiments.recipes import Preset, run
from mondeq.formats import describe
from mondeq.training.config import TrainingConfig

ALL = {"mnist": mnist.PRESETS, "cifar10": cifar10.PRESETS, "svhn": svhn.PRESETS}


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "data", ["mnist", *(pytest.param(name, marks=pytest.mark.slow) for name in ALL if name != "mnist")]
)
def test_smoke(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every preset, tiny: a row each, beside the published figure."""
    presets = ALL[data]
    assert run(f"experiments.{data}", data, presets, ["--smoke", "--certify", "5", "--out", str(tmp_path)]) == 0
    found = rows(tmp_path)
    assert [row["preset"] for row in found] == [p.name for p in presets]
    for row, preset in zip(found, presets, strict=True):
        assert 0 <= float(row["accuracy"]) <= 100
        assert row["published"] == ("" if preset.published is None else str(preset.published))
        config = mondeq.ModelConfig.from_dict(
            json.loads((tmp_path / preset.name / "config.json").read_text())["preset"]
        )
        assert config.kind == preset.settings["model"]
        assert describe(mondeq.load(tmp_path / preset.name)) == describe(mondeq.Classifier(config))
    assert capsys.readouterr().out.count("accuracy") >= 1


def test_what_is_done_is_not_done_again_and_what_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = (Preset("a", {"model": "dense"}, 1.5), Preset("b", {"model": "dense"}))
    command = ["--smoke", "--certify", "5", "--out", str(tmp_path)]
    called: list[list[str]] = []
    real = recipes.mondeq

    def interrupted(arguments: list[str]) -> int:
        called.append(arguments)
        code = real(arguments)
        if arguments[-1] and "b" in Path(arguments[arguments.index("--out") + 1]).name:
            (tmp_path / "b" / "metrics.json").unlink()
            return 130
        return code

    monkeypatch.setattr(recipes, "mondeq", interrupted)
    assert run("experiments.x", "digits", presets, command) == 130
    assert [row["preset"] for row in rows(tmp_path)] == ["a"]
    monkeypatch.setattr(recipes, "mondeq", lambda arguments: called.append(arguments) or real(arguments))
    assert run("experiments.x", "digits", presets, command) == 0
    assert [row["preset"] for row in rows(tmp_path)] == ["a", "b"]
    assert ["--resume" in arguments for arguments in called] == [False, False, True]


# Of Winston & Kolter 2020: accuracy in %, thousands of parameters.
PUBLISHED = {
    ("mnist", "dense"): (98.1, 84),
    ("mnist", "conv"): (99.1, 84),
    ("mnist", "multiscale"): (99.0, 81),
    ("svhn", "conv"): (88.7, 172),
    ("svhn", "multiscale"): (92.4, 170),
    ("cifar10", "conv"): (74.0, 172),
    ("cifar10", "multiscale"): (72.0, 170),
    ("cifar10", "conv-augmented"): (82.0, 854),
    ("cifar10", "multiscale-augmented"): (89.0, 1014),
}


def parameters(preset: Preset, shape: tuple[int, int, int]) -> int:
    settings = preset.settings
    sizes: dict[str, Any] = {"weight_norm": True} if "weight-norm" in settings else {}
    if "features" in settings:
        sizes["features"] = int(settings["features"])
    if "channels" in settings:
        sizes["channels"] = tuple(map(int, settings["channels"].split()))
    flat = (0.5,) * shape[0]
    config = mondeq.ModelConfig(settings["model"], image_shape=shape, classes=10, mean=flat, std=flat, **sizes)
    return sum(p.numel() for p in mondeq.Classifier(config).parameters())


@pytest.mark.parametrize("data", ALL)
def test_presets_are_what_was_published(data: str) -> None:
    """Accuracy, batch size and, to six per cent, the number of parameters; ours have no published figure, short ones
    that of the same network."""
    assert {p.name for p in ALL[data]} >= {name for of, name in PUBLISHED if of == data}
    for preset in ALL[data]:
        TrainingConfig(data, epochs=int(preset.settings.get("epochs", 1)), lr=float(preset.settings.get("lr", 1e-3)))
        if (data, preset.name) in PUBLISHED:
            accuracy, thousands = PUBLISHED[data, preset.name]
            assert preset.published == accuracy
            assert preset.settings["batch-size"] == "128"
            shape = (1, 28, 28) if data == "mnist" else (3, 32, 32)
            assert parameters(preset, shape) == pytest.approx(1000 * thousands, rel=0.06), preset.name
        elif preset.name.endswith("-short"):
            assert preset.published in (None, PUBLISHED[data, preset.name.removesuffix("-short")][0])
        else:
            assert (preset.published, preset.settings["model"]) == (None, "lipschitz")


def test_an_unknown_preset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("experiments.mnist", "mnist", mnist.PRESETS, ["--only", "densse", "--out", str(tmp_path)])
    assert "'densse'" in capsys.readouterr().err


def test_a_deep_equilibrium_network_in_small(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    assert deep_equilibrium.main(["--smoke", "--out", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures["test_accuracy"] > 0.12  # one epoch of eight channels: better than guessing
    assert 1 < figures["solver"]["forward"]["steps"] <= 15
    assert 1 < figures["solver"]["backward"]["steps"] <= 15
