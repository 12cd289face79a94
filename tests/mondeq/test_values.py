"""What a user hands in: settings of every kind of number, images, labels, radii. Right, or one line."""

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mondeq
from mondeq.bounds import local_jacobian_norms
from mondeq.errors import ConfigError
from mondeq.formats import describe
from splitting import InvalidArgument, InvalidType
from splitting.errors import SplittingError
from tests.mondeq.zoo import KINDS, TINY, classifier, labels_of, pictures

each_kind = pytest.mark.parametrize("kind", KINDS)


def settings_of(kind: str) -> dict[str, Any]:
    """Those of `classifier(kind)`."""
    images = {"image_shape": (2, 2, 3), "classes": 3, "mean": (0.4, 0.6), "std": (0.5, 0.25)}
    return mondeq.ModelConfig(kind, **images, **TINY[kind]).to_dict()


SETTINGS: dict[str, Any] = settings_of("dense")


def plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(plain, value))
    return type(value) in (int, float, bool, str, type(None))


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [np.array, np.float64, np.float32, torch.tensor])
def test_numbers_of_numpy_and_torch_are_settings(wrap: Callable[[Any], Any], tmp_path: Any) -> None:
    """Also on their way through a saved run."""
    pixels = np.random.default_rng(0).random((5, 2, 2, 3), dtype=np.float32)
    mean = pixels.mean((0, 2, 3)) if wrap is not torch.tensor else torch.from_numpy(pixels).mean((0, 2, 3))
    config = mondeq.ModelConfig(
        kind=np.str_("dense"),
        image_shape=np.array([2, 2, 3]),
        classes=np.int64(10),
        mean=mean,
        std=[np.float32(0.5), 0.25],
        features=torch.tensor(4),
        learn_m=np.bool_(True),
        m=wrap(0.5),
        tol=wrap(1e-3),
        max_steps=np.uint8(50),
    )
    assert all(plain(value) for value in config.to_dict().values())
    images, preset = config.images, config.preset
    assert images.mean == tuple(float(v) for v in mean)
    assert (images.classes, preset.features, preset.m, preset.learn_m) == (10, 4, 0.5, True)  # type: ignore[attr-defined]
    assert mondeq.ModelConfig.from_dict(config.to_dict()) == config
    model = mondeq.Classifier(config)
    mondeq.save(model, tmp_path)
    assert describe(mondeq.load(tmp_path)) == describe(model)
    assert json.loads(json.dumps(describe(model))) == json.loads((tmp_path / "config.json").read_text())["model"]


_JUNK = st.sampled_from(
    [None, True, "3", b"3", 3.5, -1, 0, math.nan, math.inf, 2**63, 10**5000, 1e308, 5e-324, 1j, [], [1], [[1]], {},
     (2,), np.array([[1]]), torch.zeros(2, 2), torch.tensor(1.5), torch.tensor(2, device="meta"), object(), float,
     np.datetime64("2020"), ["a", "b", "c"], ("a", "a", "b"), "\ud800"]
)  # fmt: skip


@settings(max_examples=300)
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_settings_are_plain_values_or_refused_in_one_line(kind: str, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(settings_of(kind))), min_size=1, max_size=2))
    values = settings_of(kind) | {name: data.draw(_JUNK) for name in names}
    try:
        config = mondeq.ModelConfig(**values)
    except ConfigError as error:
        message = str(error)
    else:
        message = ""
        assert all(plain(value) for value in config.to_dict().values())
        assert mondeq.ModelConfig.from_dict(config.to_dict()) == config
        assert max(config.images.image_shape) < 2**63
    assert "\n" not in message
    assert len(message) < 400


@each_kind
def test_settings_of_another_preset_are_refused(kind: str) -> None:
    for other in KINDS:
        for name in settings_of(other).keys() - settings_of(kind):
            with pytest.raises(
                ConfigError, match=f"unknown or missing settings of [A-Z][A-Za-z]+Preset: {name}; known"
            ):
                mondeq.ModelConfig(**settings_of(kind), **{name: settings_of(other)[name]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": True}, "`classes` must be ≥ 2, a whole number, got True"),
        ({"classes": 2**63}, "`classes` must be ≥ 2"),
        ({"classes": 2.0}, "`classes` must be ≥ 2, a whole number, got 2.0"),
        ({"features": True}, r"`features` must be an integer ≥ 1 and < 2\^63, got True"),
        ({"features": "5"}, r"`features` must be an integer ≥ 1 and < 2\^63, got '5'"),
        ({"features": 2**40}, "fits no memory"),
        ({"image_shape": (2, 2**40, 2**40)}, "fits no memory"),
        ({"image_shape": (2, 2, 0)}, "`image_shape` must be"),
        ({"image_shape": (2.0, 2, 3)}, "`image_shape` must be"),
        ({"learn_m": 1}, "`learn_m` must be true or false, got 1"),
        ({"m": 10**5000}, "`m` must be a finite number > 0, got a whole number of 16610 bits"),
        ({"mean": "ab"}, "one `mean` and `std` per channel"),
        ({"mean": 0.5}, "one `mean` and `std` per channel, got .*, no sequence of means"),
        ({"mean": (0.5, "x")}, "`mean` must be a list, each a finite number .*, got .0.5, 'x'"),
        ({"mean": (0.5, 1e308)}, "`mean` must be a list, each a finite number of a size that float32 holds"),
        ({"std": (1e308, 1.0)}, "`std` must be a list, each a finite number > 0 .*, like its reciprocal"),
        ({"std": (5e-324, 1.0)}, "`std` must be a list, each a finite number > 0 .*, like its reciprocal"),
        ({"tol": True}, "`tol` must be a finite number > 0, got True"),
        ({"backward_tol": 0}, "`backward_tol` must be a finite number > 0"),
        ({"kind": 3}, "unknown kind 3; choose one of"),
        ({"class_names": ("a", "b")}, "`class_names` must name all 3 classes or none, got 2"),
        ({"class_names": ("a", "b", "a")}, "`class_names` must be different names"),
        ({"class_names": "abc"}, "`class_names` must be a list, each a name, got 'abc'"),
        ({"activation": "leaky-relu", "activation_parameters": (2.0,)}, "do not fit LeakyReLU: `slope` must lie in"),
        ({"activation_parameters": (2.0,)}, "do not fit ReLU"),
        ({"activation": "box", "activation_parameters": (0.0, math.inf)}, "must be a list, each a finite number"),
    ],
)
def test_settings_outside_their_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mondeq.ModelConfig(**(SETTINGS | changes))


# -- images --------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int8, torch.bool])
def test_images_that_are_no_floats_are_refused_by_everything(kind: str, dtype: torch.dtype) -> None:
    model = classifier(kind)
    images = (255 * pictures(model)).to(dtype)
    for call in (
        model,
        model.normalise,
        lambda x: mondeq.lipschitz_bounds(model, x),
        lambda x: local_jacobian_norms(model, x),
        lambda x: mondeq.certify(model, x, labels_of(model)),
    ):
        with pytest.raises(InvalidArgument, match=f"floating point in .*, got {dtype}; divide bytes by 255"):
            call(images)


@each_kind
def test_images_must_be_of_the_weights_dtype_shape_and_kind(kind: str) -> None:
    model = classifier(kind, image_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    images, labels = pictures(model, 2), labels_of(model, 2)
    last = images.permute(0, 2, 3, 1).contiguous()
    wrong: list[tuple[Any, type[SplittingError], str]] = [
        (images.double(), InvalidType, r"are torch\.float64, the weights torch\.float32; use images\.to"),
        (images.half(), InvalidType, r"are torch\.float16, the weights torch\.float32"),
        (last, InvalidArgument, r"must have shape \(\w+, 3, 8, 8\), got \(2, 8, 8, 3\)"),
        (images.numpy(), InvalidType, "`images` must be a tensor, got a ndarray"),
        (images.tolist(), InvalidType, "`images` must be a tensor, got a list"),
        (images.to("meta"), InvalidType, "`images` are on meta, the weights on cpu"),
    ]
    for given_images, error, message in wrong:
        with pytest.raises(error, match=message):
            model(given_images)
    for given_images, error, message in wrong[2:]:
        for call in (
            lambda x: mondeq.certify(model, x, labels),
            lambda x: mondeq.lipschitz_bounds(model, x),
            lambda x: local_jacobian_norms(model, x),
        ):
            with pytest.raises(error, match=message):
                call(given_images)


# -- labels, batch sizes, radii ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [[0, 1], (0, 1), np.array([0, 1]), torch.tensor([True, False]), torch.tensor([0j, 1j]), None, 3,
     torch.tensor([0, 1], device="meta")],
)  # fmt: skip
def test_labels_that_are_no_integer_tensor_are_refused(labels: Any) -> None:
    model = classifier()
    with pytest.raises((InvalidArgument, InvalidType), match=r"`labels` must be (a tensor of )?2 integers, got"):
        mondeq.certify(model, pictures(model, 2), labels)


@pytest.mark.parametrize("batch_size", [2.0, True, "2", math.nan, 2**63, [2], np.float64(2)])
def test_a_batch_size_that_is_no_integer_is_refused(batch_size: Any) -> None:
    model = classifier()
    images = pictures(model, 3)
    for call in (
        lambda: mondeq.certify(model, images, labels_of(model, 3), batch_size=batch_size),
        lambda: local_jacobian_norms(model, images, batch_size=batch_size),
    ):
        with pytest.raises(InvalidArgument, match="`batch_size` must be an integer ≥ 1, got"):
            call()


@pytest.mark.parametrize("batch_size", [np.int64(2), np.uint8(2), torch.tensor(2)])
def test_integers_of_numpy_and_torch_are_batch_sizes(batch_size: Any) -> None:
    model = classifier()
    images, labels = pictures(model, 3), labels_of(model, 3)
    expected = mondeq.certify(model, images, labels).radius
    torch.testing.assert_close(mondeq.certify(model, images, labels, batch_size=batch_size).radius, expected)
    assert local_jacobian_norms(model, images, batch_size=batch_size).shape == (3,)


def report(radius: Tensor) -> mondeq.Report:
    number = torch.zeros(len(radius), dtype=torch.int64)
    correct = torch.ones(len(radius), dtype=torch.bool)
    return mondeq.Report(radius, correct, number, 0 * radius, {}, "l2", ("gaps",), number)


def test_nothing_is_certified_where_nothing_is_proved() -> None:
    found = report(torch.tensor([0.0, 0.0, 1e-300, math.inf], dtype=torch.float64))
    assert found.certified_accuracy([0, 1e-300, 1, math.inf]) == {0.0: 0.5, 1e-300: 0.5, 1.0: 0.25, math.inf: 0.25}
    assert found.certified_accuracy(np.linspace(0, 1, 2)) == {0.0: 0.5, 1.0: 0.25}
    assert found.certified_accuracy(r for r in (torch.tensor(0.5), np.float32(2), 36 / 255)) == {
        0.5: 0.25, 2.0: 0.25, 36 / 255: 0.25,
    }  # fmt: skip
    assert found.certified_accuracy([]) == {}


@pytest.mark.parametrize("radii", [0.5, [-0.1], [math.nan], ["0.5"], [None], [True], "0.5", None, [[0.1]], [1j]])
def test_radii_that_make_no_sense_are_refused(radii: Any) -> None:
    with pytest.raises((InvalidArgument, InvalidType), match="`radii` must be numbers ≥ 0"):
        report(torch.ones(2, dtype=torch.float64)).certified_accuracy(radii)


# -- replicas ------------------------------------------------------------------------------------------------------


@each_kind
def test_a_replica_as_data_parallel_makes_it_computes_the_same(kind: str) -> None:
    """Replicas have no parameters(), only tensors in their places."""
    model = classifier(kind)

    def replica(module: torch.nn.Module) -> torch.nn.Module:
        copied = module._replicate_for_data_parallel()  # type: ignore[operator]
        for name, child in module._modules.items():
            copied._modules[name] = None if child is None else replica(child)
        for name, parameter in module._parameters.items():
            if parameter is None:
                copied._parameters[name] = None
            else:
                setattr(copied, name, parameter.clone())
        return copied

    twin, images = replica(model), pictures(model)
    assert not list(twin.parameters())
    assert torch.equal(twin(images), model(images))
    twin.train()(images).sum().backward()
    unused = {"layer.linear.b_o"} if kind == "lipschitz" else set()
    assert {n for n, p in model.named_parameters() if p.grad is None} <= unused


def test_the_names_of_classes_are_kept(tmp_path: Any) -> None:
    config = mondeq.ModelConfig(**(SETTINGS | {"class_names": ["cat", np.str_("dog"), "ß"]}))
    mondeq.save(mondeq.Classifier(config), tmp_path)
    assert mondeq.load(tmp_path).class_names == ("cat", "dog", "ß")


def test_numbers_of_whatever_kind_raise_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mondeq.ModelConfig(**(SETTINGS | {"classes": np.array(3), "features": np.int32(4)}))
