"""The experiments run, continue what was interrupted, do not repeat what is done, and say what came of it."""

import csv
from pathlib import Path

import pytest

import mondeq
from experiments import cifar10, mnist, recipes, svhn
from experiments.recipes import Preset, run
from mondeq.training.config import TrainingConfig

ALL = {"mnist": mnist.PRESETS, "cifar10": cifar10.PRESETS, "svhn": svhn.PRESETS}


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("data", ALL)
def test_smoke(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every preset, tiny: a row each, beside the published figure."""
    presets = ALL[data]
    assert run(f"experiments.{data}", data, presets, ["--smoke", "--certify", "5", "--out", str(tmp_path)]) == 0
    found = rows(tmp_path)
    assert [row["preset"] for row in found] == [p.name for p in presets]
    for row, preset in zip(found, presets, strict=True):
        assert 0 <= float(row["accuracy"]) <= 100
        assert row["published"] == ("" if preset.published is None else str(preset.published))
        assert mondeq.load(tmp_path / preset.name).config.kind == preset.settings["model"]
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


@pytest.mark.parametrize("data", ALL)
def test_presets_are_what_was_published(data: str) -> None:
    """Names of settings are those of the command line; but for those of ours each has its published accuracy."""
    for preset in ALL[data]:
        if not preset.name.endswith("-short"):
            assert (preset.published is None) == (preset.settings["model"] == "lipschitz")
            assert preset.published is None or preset.settings["batch-size"] == "128"
        TrainingConfig(data, epochs=int(preset.settings.get("epochs", 1)), lr=float(preset.settings.get("lr", 1e-3)))


def test_an_unknown_preset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("experiments.mnist", "mnist", mnist.PRESETS, ["--only", "densse", "--out", str(tmp_path)])
    assert "'densse'" in capsys.readouterr().err
