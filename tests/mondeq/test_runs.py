"""Run folders: what is saved comes back to the bit, what does not fit is refused, an interrupted save loses nothing."""

import json
import os
import pickle
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import mondeq
from mondeq.errors import ConfigError, RunError
from mondeq.files import read_json, replace_file, write_json, write_text
from mondeq.models import ACTIVATIONS, KINDS, SOLVERS
from mondeq.runs import CONFIG, WEIGHTS, read_tensors, write_tensors
from tests.mondeq.zoo import classifier, pictures, same_weights, weights

each_kind = pytest.mark.parametrize("kind", KINDS)


@torch.no_grad()
def logits(model: mondeq.Classifier) -> Tensor:
    return model(pictures(model, dtype=next(model.parameters()).dtype))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a saved model."""
    folder = tmp_path / "run"
    mondeq.save(classifier(), folder)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of the model's configuration; None removes one."""
    config = json.loads((folder / CONFIG).read_text())
    for name, value in changes.items():
        if value is None:
            del config["model"][name]
        else:
            config["model"][name] = value
    (folder / CONFIG).write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


# -- there and back ------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("learn_m", [False, True])
def test_the_same_logits_to_the_bit(kind: str, dtype: torch.dtype, learn_m: bool, tmp_path: Path) -> None:
    model = classifier(kind, m=0.1, learn_m=learn_m, gamma=0.3, activation="softplus").to(dtype)
    mondeq.save(model, tmp_path / "run")
    loaded = mondeq.load(tmp_path / "run")
    assert not loaded.training
    assert loaded.config == model.config
    assert same_weights(loaded.state_dict(), model.state_dict())
    assert torch.equal(logits(loaded), logits(model))
    assert {p.dtype for p in loaded.parameters()} == {dtype}


@each_kind
def test_a_model_made_in_float64_comes_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Constants that are no weights (m, mean, std) are not rounded to float32 on the way."""
    torch.set_default_dtype(torch.float64)
    model = classifier(kind, m=0.1, mean=(0.4, 0.6), std=(0.3, 0.7))
    mondeq.save(model, tmp_path)
    expected = logits(model)
    assert torch.equal(logits(mondeq.load(tmp_path)), expected)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(logits(mondeq.load(tmp_path)), expected)


def test_a_float32_run_loads_whatever_the_default_dtype(run: Path) -> None:
    expected = logits(mondeq.load(run))
    torch.set_default_dtype(torch.float64)
    assert torch.equal(logits(mondeq.load(run)), expected)


@settings(max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    solver=st.sampled_from(sorted(SOLVERS)),
    features=st.integers(1, 9),
    classes=st.integers(2, 12),
    channels=st.integers(1, 3),
    m=st.floats(1e-3, 1e2),
    learn_m=st.booleans(),
    seed=st.integers(0, 100),
)
def test_every_configuration_comes_back(
    kind: str,
    activation: str,
    solver: str,
    features: int,
    classes: int,
    channels: int,
    m: float,
    learn_m: bool,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = classifier(
        kind,
        seed=seed,
        activation=activation,
        solver=solver,
        **({"features": features} if kind in ("dense", "lipschitz") else {}),
        classes=classes,
        image_shape=(channels, 2, 2),
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        m=m,
        learn_m=learn_m,
        max_steps=5,
    )
    model.layer.on_failure = "return"
    folder = tmp_path_factory.mktemp("run")
    mondeq.save(model, folder)
    loaded = mondeq.load(folder)
    loaded.layer.on_failure = "return"
    assert loaded.config == model.config
    assert type(loaded.layer.activation) is type(model.layer.activation)
    assert loaded.layer.solver == model.layer.solver
    assert torch.equal(logits(loaded), logits(model))


def test_what_a_run_folder_holds(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == {CONFIG, WEIGHTS}
    config = json.loads((run / CONFIG).read_text())
    assert config["format"] == 1
    assert mondeq.ModelConfig.from_dict(config["model"]) == classifier().config
    # Readable for whoever may read the user's other files.
    umask = os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(p.stat().st_mode) for p in run.iterdir()} == {0o666 & ~umask}


def test_saving_leaves_the_model_as_it_was_and_takes_any_model(tmp_path: Path) -> None:
    model = classifier().train()
    before = weights(model)
    mondeq.save(model, str(tmp_path / "a" / "b"), training={"data": "digits"}, note="hello")
    assert model.training
    assert same_weights(before, model.state_dict())
    assert json.loads((tmp_path / "a" / "b" / CONFIG).read_text())["note"] == "hello"


def test_saving_again_replaces(run: Path) -> None:
    other = classifier("lipschitz", seed=5, features=7)
    mondeq.save(other, run)
    assert torch.equal(logits(mondeq.load(run)), logits(other))


def test_bounds_and_certificates_survive(run: Path) -> None:
    model, loaded = classifier(), mondeq.load(run)
    labels = torch.zeros(3, dtype=torch.int64)
    first, second = (mondeq.certify(m, pictures(m, 3), labels) for m in (model, loaded))
    assert torch.equal(first.radius, second.radius)


@pytest.mark.parametrize("header", [640, 896, 1152, 1408, 19280])
def test_a_sound_file_is_read_whatever_the_length_of_its_header(header: int, tmp_path: Path) -> None:
    """The first bytes of a safetensors file are the length of its header, and may look like those of a pickle."""
    path = tmp_path / WEIGHTS
    tensors = {"a": torch.arange(3.0)}
    for length in range(header):
        write_tensors(path, tensors, {"note": "x" * (header - 200 + length)})
        if struct.unpack("<Q", path.read_bytes()[:8])[0] == header:
            break
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] == header
    assert torch.equal(read_tensors(path)["a"], tensors["a"])


# -- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 6}, r"does not fit its config: .* is torch.float32 \(.*\), the config needs torch.float32"),
        ({"image_shape": [2, 3, 3]}, "does not fit its config"),
        ({"classes": 4}, "does not fit its config"),
        ({"learn_m": True}, r"does not fit its config: missing \['layer.linear.log_m'\]"),
        ({"kind": "lipschitz"}, "does not fit its config: missing"),
        ({"kind": "conv", "features": None}, "`channels` must be one number for a conv model, got none"),
        ({"kind": "convolutional"}, "unknown kind 'convolutional'; choose one of dense, lipschitz"),
        ({"activation": "gelu"}, "unknown activation 'gelu'; choose one of .*relu"),
        ({"solver": "newton"}, "unknown solver 'newton'; choose one of .*peaceman-rachford"),
        ({"classes": None}, "incomplete or mistyped model settings"),
        ({"featrues": 5}, r"unknown model setting\(s\) featrues; known are .*features"),
        ({"m": float("nan")}, "`m` must be a finite number > 0, got nan"),
        ({"m": -1.0}, "`m` must be a finite number > 0"),
        ({"m": "large"}, "`m` must be a finite number > 0"),
        ({"mean": [float("nan"), 0.5]}, "`mean`"),
        ({"mean": [float("inf"), 0.5]}, "`mean`"),
        ({"std": [0.5, float("nan")]}, "`std` must be"),
        ({"std": [0.5, float("inf")]}, "`std` must be"),
        ({"std": [0.5, 0.0]}, "`std` must be > 0 in every channel"),
        ({"mean": [0.5]}, "one `mean` and `std` per channel"),
        ({"image_shape": [2, 2]}, "`image_shape` must be"),
        ({"image_shape": 12}, "config.json"),
        ({"classes": 1}, "`classes` must be ≥ 2"),
        ({"classes": 2.5}, "config.json"),
        ({"features": 0}, "`features` must be an integer ≥ 1"),
        ({"features": "five"}, "config.json"),
        ({"features": 10**15}, "config"),
        ({"tol": 0}, "`tol` must be a finite number > 0"),
        ({"tol": float("nan")}, "`tol` must be"),
        ({"max_steps": -1}, "`max_steps` must be an integer ≥ 1"),
    ],
)
def test_a_config_that_disagrees_or_makes_no_sense_is_refused(changes: dict[str, Any], message: str, run: Path) -> None:
    edit(run, **changes)
    with pytest.raises(RunError, match=message) as caught:
        mondeq.load(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"format": 1, "model"', "not valid JSON"),
        ("[1, 2]", "must hold a JSON object, got a list"),
        ("{}", "is not of format 1"),
        ('{"format": 2, "model": {}}', "is not of format 1; it was not written by this version"),
        ('{"format": 1, "model": []}', "is not of format 1"),
        ('{"format": 1, "model": {}}', "incomplete or mistyped model settings"),
    ],
)
def test_a_broken_config_is_refused(text: str, message: str, run: Path) -> None:
    (run / CONFIG).write_text(text)
    with pytest.raises(RunError, match=message):
        mondeq.load(run)


def test_a_config_that_is_no_text_is_refused(run: Path) -> None:
    (run / CONFIG).write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RunError, match="not valid JSON"):
        mondeq.load(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value: float, run: Path) -> None:
    edit_tensors(run, lambda tensors: tensors["layer.linear.F"][0].fill_(value))
    with pytest.raises(RunError, match=r"holds NaN or inf in layer\.linear\.F"):
        mondeq.load(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layer.linear.U"), r"missing \['layer.linear.U'\], unknown none"),
        (lambda t: t.update(extra=torch.zeros(2)), r"missing none, unknown \['extra'\]"),
        (lambda t: t.update({"layer.linear.U": t["layer.linear.U"].mT.contiguous()}), r"is torch.float32 \(12, 5\)"),
        (lambda t: t.update({"layer.linear.U": t["layer.linear.U"].double()}), r"is torch.float64 \(5, 12\)"),
        (lambda t: t.update({"layer.linear.U": t["layer.linear.U"].half()}), r"is torch.float16 \(5, 12\)"),
        (lambda t: t.clear(), "missing .*head.bias"),
    ],
)
def test_tensors_that_disagree_are_refused(
    change: Callable[[dict[str, Tensor]], None], message: str, run: Path
) -> None:
    edit_tensors(run, change)
    with pytest.raises(RunError, match=message):
        mondeq.load(run)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(keep: int, run: Path) -> None:
    content = (run / WEIGHTS).read_bytes()
    (run / WEIGHTS).write_bytes(content[:keep])
    with pytest.raises(RunError, match="is damaged or not a safetensors file"):
        mondeq.load(run)


@pytest.mark.parametrize("position", [0, 3, 9, 40])
def test_a_tampered_header_is_refused(position: int, run: Path) -> None:
    content = bytearray((run / WEIGHTS).read_bytes())
    content[position] ^= 0xFF
    (run / WEIGHTS).write_bytes(bytes(content))
    with pytest.raises(RunError):
        mondeq.load(run)


def test_bytes_behind_the_tensors_are_refused(run: Path) -> None:
    with (run / WEIGHTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(RunError, match="is damaged"):
        mondeq.load(run)


class Trap:
    """What a pickle can do: run a function when it is loaded."""

    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (setattr, (Trap, "sprung", True))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_unopened(protocol: int, run: Path) -> None:
    (run / WEIGHTS).write_bytes(pickle.dumps({"layer.linear.F": Trap()}, protocol=protocol))
    with pytest.raises(RunError, match=r"pickle|is damaged or not a safetensors file"):
        mondeq.load(run)
    assert not Trap.sprung


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_is_refused_by_name(zipped: bool, run: Path) -> None:
    torch.save(classifier().state_dict(), run / WEIGHTS, _use_new_zipfile_serialization=zipped)
    with pytest.raises(RunError, match="is a pickle, which can run code when loaded; only safetensors files are read"):
        mondeq.load(run)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a folder; give the run folder that `mondeq train --out` wrote"):
        mondeq.load(tmp_path / "absent")
    with pytest.raises(RunError, match=r"config\.json does not exist; is .* a run folder made by `mondeq train`"):
        mondeq.load(tmp_path)
    (tmp_path / "file").write_text("hello")
    with pytest.raises(RunError, match="is not a folder"):
        mondeq.load(tmp_path / "file")


def test_missing_weights(run: Path) -> None:
    (run / WEIGHTS).unlink()
    with pytest.raises(RunError, match=r"cannot read .*model\.safetensors: No such file"):
        mondeq.load(run)
    (run / WEIGHTS).mkdir()
    with pytest.raises(RunError, match=r"cannot read .*model\.safetensors: it is not a regular file"):
        mondeq.load(run)


# -- interrupted and impossible saves ------------------------------------------------------------------------------


class Interrupted(BaseException):
    """Like KeyboardInterrupt: no handler for mistakes catches it."""


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: BaseException) -> None:
    """The `call`'th flush to disk or move into place fails."""
    owner, attribute = {"fsync": (os, "fsync"), "replace": (Path, "replace")}[name]
    original, seen = getattr(owner, attribute), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, attribute, failing)


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("error", [Interrupted(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("other", ["same architecture", "other architecture", "other normalisation"])
def test_an_interrupted_save_leaves_the_run_before(
    name: str, call: int, error: BaseException, other: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is interrupted, the folder holds the old model or the new one, and nothing else."""
    before = classifier()
    after = {
        "same architecture": classifier(seed=9),
        "other architecture": classifier("lipschitz", seed=9, features=8),
        "other normalisation": classifier(seed=9, mean=(0.1, 0.2), std=(0.9, 0.8)),
    }[other]
    fail_at(monkeypatch, name, call, error)
    with pytest.raises((Interrupted, RunError)):
        mondeq.save(after, run)
    monkeypatch.undo()
    assert {p.name for p in run.iterdir()} == {CONFIG, WEIGHTS}
    found = mondeq.load(run)
    assert any(
        found.config == model.config and same_weights(found.state_dict(), model.state_dict())
        for model in (before, after)
    )


def test_a_full_disk_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, "fsync", 1, OSError(28, "No space left on device"))
    with pytest.raises(RunError, match=r"^cannot write .*: No space left on device; is the disk full\?$"):
        mondeq.save(classifier(), run)


def test_a_writer_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise Interrupted

    with pytest.raises(Interrupted):
        replace_file(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("below", ["", "deeper/down"])
def test_a_file_in_place_of_the_folder(below: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("precious")
    with pytest.raises(RunError, match="cannot make the folder"):
        mondeq.save(classifier(), tmp_path / "taken" / below)
    assert (tmp_path / "taken").read_text() == "precious"


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_folder_in_place_of_a_file(name: str, run: Path) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(RunError, match="cannot write"):
        mondeq.save(classifier(), run)
    assert not [p for p in run.iterdir() if p.name.startswith(".")]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="choose a writable folder"):
            mondeq.save(classifier(), tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_json_there_and_back(tmp_path: Path) -> None:
    value = {"a": 1, "b": [0.1, None, "é"], "c": {"d": True}}
    write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file") == value
    with pytest.raises(RunError, match="does not exist"):
        read_json(tmp_path / "absent")
    with pytest.raises(RunError, match="cannot read"):
        read_json(tmp_path)


# -- configurations ------------------------------------------------------------------------------------------------


def test_configurations_go_through_json_and_back() -> None:
    config = classifier("lipschitz", gamma=0.5, activation="box").config
    assert mondeq.ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [("kind", "conv3d", KINDS), ("activation", "swish", tuple(ACTIVATIONS)), ("solver", "sgd", tuple(SOLVERS))],
)
def test_unknown_names_are_answered_with_the_valid_ones(name: str, value: str, valid: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=f"unknown {name} '{value}'; choose one of {', '.join(valid)}"):
        mondeq.ModelConfig(**(classifier().config.to_dict() | {name: value}))


def test_the_wrong_images_are_refused_by_the_model() -> None:
    model = classifier()
    for wrong in (torch.zeros(3, 2, 3, 2), torch.zeros(3, 12), torch.zeros(2, 2, 3)):
        with pytest.raises(mondeq.models.InvalidArgument, match=r"`images` must have shape \(batch, 2, 2, 3\), got"):
            model(wrong)
