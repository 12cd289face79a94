"""Run folders: what is saved comes back to the bit, what does not fit is refused, an interrupted save loses nothing."""

import json
import os
import pickle
import stat
import struct
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mondeq
import splitting
from mondeq import ACTIVATIONS, PRESETS, SOLVERS
from mondeq.errors import ConfigError, RunError
from mondeq.files import read_json, replace_file, write_json, write_text
from mondeq.formats import describe
from mondeq.pieces import PIECES, arithmetic
from mondeq.runs import CONFIG, WEIGHTS, read_tensors, write_tensors
from splitting import InvalidArgument
from tests.mondeq.zoo import KINDS, TINY, classifier, pictures, same_weights, weights

each_kind = pytest.mark.parametrize("kind", KINDS)
# What config.json of format 1 held of every model, whatever its kind.
FORMAT_1: dict[str, Any] = {
    "features": 0, "channels": [], "kernel_size": 3, "pool": 4, "weight_norm": False, "m": 1.0, "learn_m": False,
    "gamma": 1.0, "epsilon": 0.01, "activation": "relu", "solver": "peaceman-rachford", "tol": 1e-4, "max_steps": 300,
    "activation_parameters": [], "backward_tol": None, "class_names": [],
}  # fmt: skip


def own(kind: str, **settings: Any) -> dict[str, Any]:
    """Those of `settings` that models of this kind have."""
    names = {field.name for field in fields(PRESETS[kind])}
    return {name: value for name, value in settings.items() if name in names}


def config_of(kind: str, **settings: Any) -> mondeq.ModelConfig:
    images = {"image_shape": (2, 2, 3), "classes": 3, "mean": (0.4, 0.6), "std": (0.5, 0.25)}
    return mondeq.ModelConfig(kind, **(images | TINY[kind] | settings))


def in_format_1(folder: Path, kind: str, **settings: Any) -> Path:
    """Make the config.json of a saved `config_of(kind, **settings)` what version 0.1 wrote."""
    config = json.loads((folder / CONFIG).read_text())
    config |= {"format": 1, "model": FORMAT_1 | config_of(kind, **settings).to_dict()}
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


@torch.no_grad()
def logits(model: mondeq.Network) -> Tensor:
    return model(pictures(model, dtype=next(model.parameters()).dtype))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a saved model."""
    folder = tmp_path / "run"
    mondeq.save(classifier(), folder)
    return folder


@pytest.fixture
def old_run(run: Path) -> Path:
    """The same as version 0.1 wrote it."""
    return in_format_1(run, "dense")


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of the model in format 1; None removes one."""
    config = json.loads((folder / CONFIG).read_text())
    for name, value in changes.items():
        if value is None:
            del config["model"][name]
        else:
            config["model"][name] = value
    (folder / CONFIG).write_text(json.dumps(config))


def edit_pieces(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the model in format 2."""
    config = json.loads((folder / CONFIG).read_text())
    change(config["model"])
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
    model = classifier(kind, **own(kind, m=0.1, learn_m=learn_m, gamma=0.3, activation="softplus")).to(dtype)
    mondeq.save(model, tmp_path / "run")
    loaded = mondeq.load(tmp_path / "run")
    assert not loaded.training
    assert describe(loaded) == describe(model)
    assert same_weights(loaded.state_dict(), model.state_dict())
    assert torch.equal(logits(loaded), logits(model))
    assert {p.dtype for p in loaded.parameters()} == {dtype}


@each_kind
def test_a_model_made_in_float64_comes_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Constants that are no weights (m, mean, std) are not rounded to float32 on the way."""
    torch.set_default_dtype(torch.float64)
    model = classifier(kind, **own(kind, m=0.1), mean=(0.4, 0.6), std=(0.3, 0.7))
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
        **own(kind, m=m, learn_m=learn_m),
        max_steps=5,
    )
    model.layer.on_failure = "return"
    folder = tmp_path_factory.mktemp("run")
    mondeq.save(model, folder)
    loaded = mondeq.load(folder)
    loaded.layer.on_failure = "return"
    assert describe(loaded) == describe(model)
    assert type(loaded.layer.activation) is type(model.layer.activation)
    assert loaded.layer.solver == model.layer.solver
    assert torch.equal(logits(loaded), logits(model))


def test_what_a_run_folder_holds(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == {CONFIG, WEIGHTS}
    config = json.loads((run / CONFIG).read_text())
    assert config["format"] == 2
    assert config["model"] == json.loads(json.dumps(describe(classifier())))
    assert set(config) == {"format", "model"}
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


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"learn_m": True, "m": 0.1, "gamma": 0.3, "weight_norm": True}])
def test_runs_of_format_1_are_read(kind: str, dtype: torch.dtype, settings: dict[str, Any], tmp_path: Path) -> None:
    """To the same network, whose next file is of format 2."""
    more = own(kind, **settings, activation="leaky-relu", activation_parameters=(0.3,), solver="anderson", tol=1e-6)
    model = mondeq.Classifier(config_of(kind, **more, class_names=("a", "b", "c"))).to(dtype)
    mondeq.save(model, tmp_path)
    expected = (tmp_path / CONFIG).read_bytes()
    loaded = mondeq.load(in_format_1(tmp_path, kind, **more, class_names=("a", "b", "c")))
    assert describe(loaded) == describe(model)
    assert same_weights(loaded.state_dict(), model.state_dict())
    assert torch.equal(logits(loaded), logits(model.eval()))
    mondeq.save(loaded, tmp_path)
    assert (tmp_path / CONFIG).read_bytes() == expected


def test_format_1_may_leave_out_what_it_had_defaults_for(old_run: Path) -> None:
    expected = logits(mondeq.load(old_run))
    edit(old_run, **dict.fromkeys(FORMAT_1.keys() - {"features"}))
    assert torch.equal(logits(mondeq.load(old_run)), expected)


def test_a_list_of_pieces_is_saved_as_it_is(tmp_path: Path) -> None:
    """Pieces of many kinds, with settings that are not their defaults."""
    linear = mondeq.Conv2d(4, 2, (3, 3), kernel_size=3, m=0.5, weight_norm=True)
    pieces = {
        "normalise": mondeq.Normalise((0.1, 0.2), (0.3, 0.4)),
        "blocks": nn.PixelUnshuffle(2),
        "first": nn.Conv2d(8, 4, 3, stride=2, padding=2, bias=False),
        "sorted": mondeq.GroupSort(4),
        "relu": nn.ReLU(),
        "same": nn.Identity(),
        "pool": nn.AvgPool2d(1),
        "layer": mondeq.EquilibriumLayer(linear, splitting.Box(-1, 2), splitting.DouglasRachford(), 1e-6, 50),
        "crop": mondeq.Crop(1),
        "mean": mondeq.AveragePool(1),
        "flatten": nn.Flatten(),
        "tier": mondeq.Entries(3),
        "dense": nn.Linear(15, 7, bias=False),
        "readout": mondeq.ReadoutLayer(mondeq.LipschitzDense(7, 4, 3, 0.5, epsilon=0.1)),
    }
    assert None not in {PIECES.name_of(type(arithmetic(piece))) for piece in pieces.values()}
    model = mondeq.Network(pieces, (2, 8, 8), class_names="abc").eval()
    mondeq.save(model, tmp_path)
    loaded = mondeq.load(tmp_path)
    assert describe(loaded) == describe(model)
    assert torch.equal(logits(loaded), logits(model))
    labels = torch.zeros(7, dtype=torch.int64)
    reports = [mondeq.certify(m, pictures(m), labels) for m in (model, loaded)]
    assert torch.equal(reports[0].radius, reports[1].radius)


# -- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 6}, r"does not fit its config: .* is torch.float32 \(.*\), the config needs torch.float32"),
        ({"image_shape": [2, 3, 3]}, "does not fit its config"),
        ({"classes": 4}, "does not fit its config"),
        ({"learn_m": True}, r"does not fit its config: missing \['layer.linear.log_m'\]"),
        ({"kind": "lipschitz"}, "does not fit its config: missing"),
        ({"kind": "conv", "features": None}, r"`channels` must be a list of 1, each an integer ≥ 1 .*, got \[\]"),
        ({"kind": "convolutional"}, "unknown kind 'convolutional'; choose one of .*dense, interval, lipschitz"),
        ({"activation": "gelu"}, "`activation` must be one of .*relu.*, got 'gelu'"),
        ({"solver": "newton"}, "`solver` must be one of .*peaceman-rachford.*, got 'newton'"),
        ({"activation_parameters": [1, 2, 3]}, "`activation_parameters` .* do not fit ReLU"),
        ({"classes": None}, "missing settings of Images: classes"),
        ({"kind": None}, "unknown kind None; choose one of .*dense, interval, lipschitz"),
        ({"featrues": 5}, r"unknown model setting\(s\) featrues; known are .*features"),
        ({"m": float("nan")}, "`m` must be a finite number > 0, got nan"),
        ({"m": -1.0}, "`m` must be a finite number > 0"),
        ({"m": "large"}, "`m` must be a finite number > 0"),
        ({"mean": [float("nan"), 0.5]}, "`mean`"),
        ({"mean": [float("inf"), 0.5]}, "`mean`"),
        ({"std": [0.5, float("nan")]}, "`std` must be"),
        ({"std": [0.5, float("inf")]}, "`std` must be"),
        ({"std": [0.5, 0.0]}, "`std` must be .* > 0 of a size that float32 holds"),
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
def test_a_config_of_format_1_that_makes_no_sense_is_refused(
    changes: dict[str, Any], message: str, old_run: Path
) -> None:
    edit(old_run, **changes)
    with pytest.raises(RunError, match=message) as caught:
        mondeq.load(old_run)
    assert "\n" not in str(caught.value)


def layer(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda model: model["pieces"][1].update(changes)


def linear(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """Change settings of the parameterization; None removes one."""

    def change(model: dict[str, Any]) -> None:
        given = model["pieces"][1]["parameterization"] | changes
        model["pieces"][1]["parameterization"] = {k: v for k, v in given.items() if v is not None}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (linear(features=6), "the piece `head` .*|does not fit its config"),
        (
            lambda m: m["pieces"][2].update(features=4),
            r"head.* is torch.float32 \(.*\), the config needs torch.float32",
        ),
        (lambda m: m.update(in_shape=[2, 3, 3]), "does not fit its config"),
        (lambda m: m.update(in_shape=[2, 2]), r"the piece `normalise`: has one mean .* samples of shape \(2, 2\)"),
        (lambda m: m.update(in_shape=12), "`in_shape` must be whole numbers ≥ 1, .*got 12"),
        (lambda m: m.update(in_shape=[2, 2, 0]), "`in_shape` must be whole numbers ≥ 1"),
        (lambda m: m.update(in_shape=[2, 2, 2.5]), "`in_shape` must be whole numbers ≥ 1"),
        (lambda m: m.update(in_shape=[]), "`in_shape` must be whole numbers ≥ 1"),
        (lambda m: m.pop("in_shape"), "`in_shape` must be whole numbers ≥ 1, .*got None"),
        (lambda m: m.update(pieces=[]), r"`pieces` must be a list of settings, got \[\]"),
        (lambda m: m.update(pieces=["dense"]), "`pieces` must be a list of settings"),
        (lambda m: m.pop("pieces"), "`pieces` must be a list of settings, got None"),
        (lambda m: m.update(note=1), "a network is described by"),
        (lambda m: m.update(class_names=["a", "b"]), "`class_names` must name all 3 logits or none, got 2"),
        (lambda m: m.update(class_names=["a", "b", "b"]), "`class_names` must be different"),
        (lambda m: m.update(class_names=[1, 2, 3]), "`class_names` must be .*names"),
        (lambda m: m["pieces"].reverse(), "the piece `head`"),
        (lambda m: m["pieces"].pop(), r"does not fit its config: missing none, unknown \['head.bias', 'head.weight'\]"),
        (lambda m: m["pieces"][2].update(piece="convolution"), "unknown piece 'convolution'; choose one of .*linear"),
        (lambda m: m["pieces"][2].pop("piece"), "unknown piece None; choose one of"),
        (lambda m: m["pieces"][2].pop("features"), "the piece `head`: .*missing settings of LinearSettings: features"),
        (lambda m: m["pieces"][2].update(size=5), "the piece `head`: unknown .* settings of LinearSettings: size"),
        (lambda m: m["pieces"][2].update(name="layer"), "`name` of piece 2 must be a name of its own, got 'layer'"),
        (lambda m: m["pieces"][2].update(name="forward"), "no piece can be called 'forward'"),
        (lambda m: m["pieces"][2].update(name="a.b"), "no piece can be called 'a.b'"),
        (lambda m: m["pieces"][2].update(name=2), "`name` of piece 2 must be a name of its own, got 2"),
        (layer(activation="gelu"), "the piece `layer`: `activation` must be one of .*relu.*, got 'gelu'"),
        (layer(activation_parameters=[1]), "the piece `layer`: `activation_parameters` .* do not fit ReLU"),
        (layer(solver="newton"), "the piece `layer`: `solver` must be one of .*peaceman-rachford.*, got 'newton'"),
        (layer(tol=0), "the piece `layer`: `tol` must be a finite number > 0"),
        (layer(tol=float("nan")), "the piece `layer`: `tol` must be"),
        (layer(max_steps=-1), "the piece `layer`: `max_steps` must be an integer ≥ 1"),
        (layer(parameterization=[1]), "the piece `layer`: `parameterization` must be an object"),
        (layer(parameterization={}), "the piece `layer`: unknown parameterization None; choose one of .*dense"),
        (linear(kind="dens"), "the piece `layer`: unknown parameterization 'dens'; choose one of .*dense"),
        (linear(kind="lipschitz-dense"), "the piece `layer`: .*settings of LipschitzDenseSettings: learn_m, m"),
        (linear(learn_m=True), r"does not fit its config: missing \['layer.linear.log_m'\]"),
        (linear(featrues=5), "the piece `layer`: unknown .* settings of DenseSettings: featrues"),
        (linear(features=None), "the piece `layer`: .*missing settings of DenseSettings: features"),
        (linear(features=0), "the piece `layer`: `features` must be an integer ≥ 1"),
        (linear(features="five"), "the piece `layer`: `features` must be an integer ≥ 1"),
        (linear(features=10**15), "config"),
        (linear(m=float("nan")), "the piece `layer`: `m` must be a finite number > 0, got nan"),
        (linear(m=-1.0), "the piece `layer`: `m` must be a finite number > 0"),
        (linear(m="large"), "the piece `layer`: `m` must be a finite number > 0"),
        (lambda m: m["pieces"][0].update(mean=[float("nan"), 0.5]), "the piece `normalise`: `mean` must be"),
        (lambda m: m["pieces"][0].update(std=[0.5, 0.0]), "the piece `normalise`: `std` must be"),
        (lambda m: m["pieces"][0].update(std=[0.5, float("inf")]), "the piece `normalise`: `std` must be"),
        (lambda m: m["pieces"][0].update(mean=[0.5]), "the piece `normalise`: one `mean` and `std` per channel"),
    ],
)
def test_a_config_that_disagrees_or_makes_no_sense_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, run: Path
) -> None:
    edit_pieces(run, change)
    with pytest.raises(RunError, match=message) as caught:
        mondeq.load(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"format": 1, "model"', "not valid JSON"),
        ("[1, 2]", "must hold a JSON object, got a list"),
        ("{}", "is not of format 1 or 2"),
        ('{"format": 3, "model": {}}', "is not of format 1 or 2, which this version of mondeq reads"),
        ('{"format": "2", "model": {}}', "is not of format 1 or 2"),
        ('{"format": 2, "model": {}}', "`in_shape` must be whole numbers ≥ 1, .*got None"),
        ('{"format": 2, "model": []}', "a network is described by"),
        ('{"format": 2}', "a network is described by"),
        ('{"format": 1, "model": []}', r"`model` must be settings by name, got \[\]"),
        ('{"format": 1}', "`model` must be settings by name, got None"),
        ('{"format": 1, "model": {}}', "unknown kind None; choose one of .*dense"),
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
        describe(found) == describe(model) and same_weights(found.state_dict(), model.state_dict())
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
    config = config_of("lipschitz", gamma=0.5, activation="box")
    assert mondeq.ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("kind", "conv3d", tuple(PRESETS)),
        ("activation", "swish", tuple(ACTIVATIONS)),
        ("solver", "sgd", tuple(SOLVERS)),
    ],
)
def test_unknown_names_are_answered_with_the_valid_ones(name: str, value: str, valid: tuple[str, ...]) -> None:
    known = ", ".join(valid)
    line = f"unknown {name} '{value}'; choose one of {known}|`{name}` must be one of {known}, got '{value}'"
    with pytest.raises(ConfigError, match=line):
        mondeq.ModelConfig(**(config_of("dense").to_dict() | {name: value}))


@each_kind
def test_settings_of_other_kinds_are_refused(kind: str) -> None:
    for other in KINDS:
        foreign = {field.name for field in fields(PRESETS[other])} - {field.name for field in fields(PRESETS[kind])}
        for name in foreign:
            with pytest.raises(ConfigError, match=f"unknown or missing settings of .*: {name}; known are") as caught:
                config_of(kind, **{name: 1})
            assert "\n" not in str(caught.value)


def test_the_wrong_images_are_refused_by_the_model() -> None:
    model = classifier()
    for wrong in (torch.zeros(3, 2, 3, 2), torch.zeros(3, 12), torch.zeros(2, 2, 3)):
        with pytest.raises(InvalidArgument, match=r"`images` must have shape \(batch, 2, 2, 3\), got"):
            model(wrong)
