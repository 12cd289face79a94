"""Weights of few bits: what is rounded to what, files of them, and `mondeq quantise`."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import mondeq
from mondeq.cli import main
from mondeq.data import Dataset
from mondeq.errors import RunError
from mondeq.quantisation import packed
from mondeq.runs import CONFIG, WEIGHTS
from splitting import InvalidArgument
from tests.mondeq.zoo import KINDS, classifier, log_uniform, same_weights

Called = tuple[int, str, str]


@settings(max_examples=30)
@given(st.integers(2, 16), st.sampled_from(["float32", "float64"]), log_uniform(1e-30, 1e30), st.integers(0, 99))
def test_weights_are_whole_multiples_within_half_a_step(bits: int, dtype: str, size: float, seed: int) -> None:
    model = classifier("dense", seed=seed).to(getattr(torch, dtype))
    with torch.no_grad():
        model.layer.linear.U.mul_(size)
        model.layer.linear.F[1] = 0
    files, twin = packed(model, bits), mondeq.quantised(model, bits)
    for name, weight in model.named_parameters():
        rounded = twin.get_parameter(name)
        if weight.ndim < 2:
            assert torch.equal(rounded, weight)
            continue
        whole, scale = files[name], files[f"{name}.scale"]
        assert whole.dtype == (torch.int8 if bits <= 8 else torch.int16)
        assert int(whole.abs().amax()) <= 2 ** (bits - 1) - 1
        # The product is exact: in twice as many digits it is the same.
        assert torch.equal(rounded.double(), whole.double() * scale.double())
        assert bool(((rounded - weight).double().abs() <= scale.double() * (0.5 + 1e-6)).all())
        # A step is no longer than the largest weight asks for, but for the digits that products need.
        longest = weight.detach().double().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert bool((scale.double() <= longest * (1 + 2.0**-8)).logical_or(longest == 0).all())


@pytest.mark.parametrize("bits", [1, 17, 0, -3, 8.5, "8", True, None])
def test_other_numbers_of_bits_are_refused(bits: Any) -> None:
    with pytest.raises(InvalidArgument, match="`bits` must be a whole number from 2 to 16, got"):
        mondeq.quantised(classifier("dense"), bits)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = classifier("dense")
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(InvalidArgument, match=r"NaN or inf in head\.weight"):
        mondeq.quantised(model, 8)


@pytest.mark.parametrize("bits", [3, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_network_is_saved_and_loaded_to_the_last_digit(kind: str, bits: int, tmp_path: Path) -> None:
    model = classifier(kind)
    mondeq.save_quantised(model, tmp_path / "run", bits)
    loaded = mondeq.load(tmp_path / "run")
    assert same_weights(loaded.state_dict(), mondeq.quantised(model, bits).state_dict())
    assert json.loads((tmp_path / "run" / CONFIG).read_text())["quantisation"]["bits"] == bits
    # It is a network like any other.
    mondeq.save(loaded, tmp_path / "plain")
    assert same_weights(mondeq.load(tmp_path / "plain").state_dict(), loaded.state_dict())


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: t.pop("head.weight.scale"),
        lambda t: t.update({"head.weight.scale": t["head.weight.scale"][:-1].clone()}),
        lambda t: t.update({"head.weight.scale": t["head.weight"].clone()}),
        lambda t: t.update({"head.weight.scale": t["head.weight.scale"] * torch.inf}),
        lambda t: t.update({"other.scale": torch.ones(1)}),
        lambda t: t.update({"head.weight": t["head.weight"][:, :-1].clone()}),
    ],
)
def test_a_damaged_file_is_told_in_one_line(damage: Callable[[dict[str, torch.Tensor]], Any], tmp_path: Path) -> None:
    mondeq.save_quantised(classifier("dense"), tmp_path / "run", 8)
    tensors = load_file(tmp_path / "run" / WEIGHTS)
    damage(tensors)
    save_file(tensors, tmp_path / "run" / WEIGHTS)
    with pytest.raises(RunError) as caught:
        mondeq.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(trained: dict[str, mondeq.Classifier], digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    model = copy.deepcopy(trained["dense"])
    model.class_names = digits.classes
    mondeq.save(model, folder, training={"data": "digits"})
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    def command(*arguments: object) -> Called:
        capsys.readouterr()
        try:
            code = main(["quantise", *map(str, arguments), "--device", "cpu"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return command


def test_quantise(run: Path, call: Callable[..., Called], tmp_path: Path, digits: Dataset) -> None:
    out, file = tmp_path / "new", tmp_path / "figures.json"
    code, shown, complaints = call(run, out, "--bits", 5, "--limit", 60, "--radii", "0", "0.1", "--json", file)
    assert (code, complaints) == (0, "")
    figures = json.loads(file.read_text())
    images, labels = digits.test.images[:60].float() / 255, digits.test.labels[:60]
    model = mondeq.load(run)
    moved = mondeq.quantised(model, 5)
    assert same_weights(mondeq.load(out).state_dict(), moved.state_dict())
    before, after = (mondeq.certify(each, images, labels) for each in (model, moved))
    survival = mondeq.Survival(before, after, mondeq.movement(model, moved, images))
    assert figures["accuracy"] == {"before": before.accuracy, "after": after.accuracy}
    assert figures["certified"] == {
        f"{r:g}": dict(zip(("before", "kept"), counts, strict=True)) for r, counts in survival.kept([0, 0.1]).items()
    }
    assert figures["same_prediction"] == int(survival.same.sum())
    assert 0 < figures["same_prediction_by_movement"] <= figures["same_prediction"] <= figures["samples"] == 60
    assert f"proved for {figures['same_prediction']} of 60 images" in shown
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["certified_accuracy"]["0.1"] == after.certified_accuracy([0.1])[0.1]
    for command in (["certify", "--limit", "20"], ["info"]):
        assert main([command[0], str(out), *command[1:]]) == 0


def test_the_folder_is_named_after_the_run(run: Path, call: Callable[..., Called], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "mine"))
    (copy / "local.json").write_text("{}")
    assert call(copy, "--bits", 16, "--limit", 5)[0] == 0
    assert {p.name for p in (tmp_path / "mine-16bit").iterdir()} == {CONFIG, WEIGHTS, "metrics.json", "local.json"}
    code, _, line = call(copy, "--bits", 16)
    assert (code, line.count("\n")) == (1, 1)
    assert "mine-16bit exists and is not an empty folder; choose another OUT" in line


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--bits", "1"], 1, "`bits` must be a whole number from 2 to 16, got 1"),
        (["--bits", "17"], 1, "`bits` must be a whole number from 2 to 16, got 17"),
        (["--bits", "many"], 2, "not a whole number"),
        ([], 2, "--bits"),
        (["--bits", "8", "--radii", "-1"], 2, "--radii"),
        (["--bits", "8", "--norm", "l7"], 2, "l7"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], code: int, said: str, run: Path, call: Callable[..., Called], tmp_path: Path
) -> None:
    found, shown, complaints = call(run, tmp_path / "out", *arguments)
    assert (found, shown) == (code, "")
    assert said in complaints.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["Certifier", "Comparison", "save_quantised"])
def test_ctrl_c_leaves_nothing(
    place: str, run: Path, call: Callable[..., Called], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mondeq.cli.quantise.{place}", interrupted)
    code, _, line = call(run, tmp_path / "out", "--bits", 8, "--limit", 5)
    assert (code, line) == (130, "mondeq quantise: interrupted\n")
    assert not (tmp_path / "out").exists()


def test_a_quantised_run_is_not_trained_on(run: Path, call: Callable[..., Called], tmp_path: Path) -> None:
    assert call(run, tmp_path / "out", "--bits", 8, "--limit", 5)[0] == 0
    before = mondeq.load(tmp_path / "out").state_dict()
    assert main(["train", "--resume", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert same_weights(mondeq.load(tmp_path / "out").state_dict(), before)
