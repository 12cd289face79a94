"""Small networks and data for the tests of mondeq: random weights of a chosen scale, random pictures."""

import copy
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import mondeq
from mondeq.data import Dataset, Split

DENSE_KINDS = ("dense", "lipschitz")
KINDS = (*DENSE_KINDS, "conv", "multiscale")
# The slowest of them only where slow tests are asked for.
KINDS_IN_TURN = (*KINDS[:-1], pytest.param(KINDS[-1], marks=pytest.mark.slow))
# Widths for pictures of 2×3, and for those of 4×4 and more.
TINY: dict[str, dict[str, Any]] = {
    "dense": {"features": 5},
    "lipschitz": {"features": 5},
    "conv": {"channels": (3,), "kernel_size": 1, "pool": 2},
    "multiscale": {"channels": (3,), "kernel_size": 1},
    "interval": {"features": 5, "channels": (), "cut": 0.1},
}
SMALL: dict[str, dict[str, Any]] = {
    "dense": {"features": 6},
    "lipschitz": {"features": 6},
    "conv": {"channels": (3,), "pool": 2},
    "multiscale": {"channels": (2, 3)},
    "interval": {"features": 6, "channels": (), "cut": 0.0},
}
Array = NDArray[Any]


def jacobian(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """Every output of one copy of x, so that one backward solve gives all rows."""
    with torch.no_grad():
        outputs = layer(x[None]).numel()
    copies = x.expand(outputs, *x.shape).clone().requires_grad_()
    (rows,) = torch.autograd.grad(layer(copies).flatten(1).diagonal().sum(), copies)
    return rows.flatten(1)


def own(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` without those that only other presets have: a test of all kinds gives all what one of them takes."""
    names = {name: {each.name for each in fields(preset)} for name, preset in mondeq.PRESETS.items()}
    foreign = set().union(*names.values()) - names[kind]
    return {name: value for name, value in settings.items() if name not in foreign}


def classifier(kind: str = "dense", *, seed: int = 0, scale: float = 1.0, **settings: Any) -> mondeq.Classifier:
    """A classifier of 2×3 pictures with two channels into three classes, random weights times `scale`."""
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {
        "kind": kind,
        "image_shape": (2, 2, 3),
        "classes": 3,
        "mean": (0.4, 0.6),
        "std": (0.5, 0.25),
    }
    defaults |= TINY[kind]
    model = mondeq.Classifier(mondeq.ModelConfig(**own(kind, defaults | settings))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("log_m"):
                parameter.mul_(scale)
    return model


def pictures(model: mondeq.Network, count: int = 7, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random images (count, *image_shape) with pixels in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *model.in_shape, generator=generator, dtype=torch.float64).to(dtype)


def labels_of(model: mondeq.Network, count: int = 7, *, seed: int = 0) -> Tensor:
    return torch.randint(model.classes, (count,), generator=torch.Generator().manual_seed(seed))


def tiny_dataset(
    *, train: int = 48, test: int = 20, shape: tuple[int, int, int] = (1, 4, 4), classes: int = 3
) -> Dataset:
    """Random pictures whose class is the brightest of the first `classes` rows: there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for count in (train, test):
        images = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
        labels = images.float().mean(dim=(1, 3))[:, :classes].argmax(1)
        splits.append(Split(images, labels))
    return Dataset("tiny", *splits, tuple("abcdefgh"[:classes]))


def model_for(dataset: Dataset, kind: str = "dense", *, seed: int = 0, **settings: Any) -> mondeq.Classifier:
    """A small classifier of `dataset`."""
    torch.manual_seed(seed)
    channels, height, width = dataset.train.images.shape[1:]
    defaults: dict[str, Any] = {
        "kind": kind,
        "image_shape": (channels, height, width),
        "classes": len(dataset.classes),
        "mean": dataset.mean,
        "std": dataset.std,
    }
    defaults |= SMALL[kind]
    return mondeq.Classifier(mondeq.ModelConfig(**own(kind, defaults | settings)))


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state, for comparing."""
    return copy.deepcopy(module.state_dict())


def same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """To the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().double())


def head_of(model: mondeq.Network) -> tuple[Tensor, Tensor]:
    """W_o and b_o of a network with one equilibrium: those of its head, or of its own read-out."""
    layer = model.get_submodule("layer")
    if isinstance(layer, mondeq.ReadoutLayer):
        return layer.linear.readout
    head = model.get_submodule("head")
    return head.weight, head.bias


def normalised(model: mondeq.Network, images: Tensor) -> Tensor:
    """What the equilibrium is fed with, in the dtype of the weights."""
    return model.get_submodule("normalise")(images.to(model.dtype))


def features_of(model: mondeq.Network, z: Tensor) -> Tensor:
    """What the head sees of states z."""
    for name, module in model.named_children():
        if name not in ("normalise", "layer", "head"):
            z = module(z)
    return z.flatten(1)


def logits_of(model: mondeq.Network, z: Tensor) -> Tensor:
    """The logits of states z."""
    return functional.linear(features_of(model, z), *head_of(model))


def pixel_scale(model: mondeq.Network) -> Array:
    """d(normalised)/d(image): 1/std of every pixel."""
    _, std = model.get_submodule("normalise").constants(torch.zeros(1, dtype=torch.float64))
    return array((1 / std).expand(model.in_shape)).ravel()


def matrices(model: mondeq.Network) -> tuple[Array, Array, Array]:
    """W_o P Λ^-½, Λ^½ A Λ^-½ and Λ^½ U diag(1/std) of a float64 model, read off their columns."""
    linear = model.get_submodule("layer").linear
    states = torch.eye(linear.state_shape.numel(), dtype=torch.float64).reshape(-1, *linear.state_shape)
    pixels = torch.eye(linear.in_features, dtype=torch.float64)
    operator = linear.operator()
    root = np.ones(len(states)) if operator.metric is None else np.sqrt(array(operator.metric).ravel())
    head = array(head_of(model)[0]) @ array(features_of(model, states)).T / root
    matrix = root[:, None] * array(operator.apply(states).flatten(1)).T / root
    columns = linear.source(pixels) - linear.source(torch.zeros_like(pixels))
    return head, matrix, root[:, None] * array(columns.flatten(1)).T * pixel_scale(model)


def norms(model: mondeq.Network) -> tuple[float, Array, float]:
    """‖W_o P Λ^-½‖, ‖(w_i − w_j) P Λ^-½‖ and ‖Λ^½ U diag(1/std)‖."""
    head, _, inputs = matrices(model)
    gaps = np.linalg.norm(head[:, None] - head[None], axis=2)
    return float(np.linalg.norm(head, 2)), gaps, float(np.linalg.norm(inputs, 2))


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(np.log10(low), np.log10(high)).map(lambda exponent: float(10**exponent))
