"""Ready for an accelerator without one: nothing lands on a default device, and the host seldom asks for values."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mondeq
from mondeq.bounds import local_jacobian_norms
from mondeq.training import Trainer, TrainingConfig
from tests.mondeq.test_stacks import stack
from tests.mondeq.zoo import KINDS, model_for, tiny_dataset, weights


def stacked(seed: int = 0) -> mondeq.Network:
    torch.manual_seed(seed)
    pieces = {
        "normalise": mondeq.Normalise((0.4,), (0.3,)),
        "first": mondeq.EquilibriumLayer(mondeq.Conv2d(1, 2, 4)),
        "crop": mondeq.Crop(1),
        "flatten": torch.nn.Flatten(),
        "second": mondeq.EquilibriumLayer(mondeq.Dense(32, 6)),
        "head": torch.nn.Linear(6, 3),
    }
    return mondeq.Network(pieces, (1, 4, 4))


NETWORKS: dict[str, Callable[[], mondeq.Network]] = {
    **{kind: lambda kind=kind: model_for(tiny_dataset(), kind) for kind in KINDS},  # type: ignore[misc]
    "stack": stacked,
}
every_kind = pytest.mark.parametrize("kind", NETWORKS)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


def used(kind: str, folder: Path) -> dict[str, Any]:
    """A network trained for an epoch, bounded, certified and differentiated; what all of it gave."""
    with torch.device("cpu"):
        dataset, model = tiny_dataset(), NETWORKS[kind]()
        images = dataset.test.images[:6].float() / 255
    labels = dataset.test.labels[:6]
    config = TrainingConfig(data="tiny", epochs=1, batch_size=16, radius=0.1, shift=1, flip=True)
    Trainer(model, dataset, config, folder, torch.device("cpu")).run()
    model.eval()
    bounds, report = mondeq.lipschitz_bounds(model, images), mondeq.certify(model, images, labels)
    mondeq.save(model, folder / "saved")
    found = {name: bound.value for name, bound in bounds.items()}
    found |= {f"{name} of pairs": bound.pairs for name, bound in bounds.items() if bound.pairs is not None}
    found |= {"radius": report.radius, "prediction": report.prediction, "logits": model(images).detach()}
    found |= {
        "jacobian": local_jacobian_norms(model, images),
        **weights(model),
        **weights(mondeq.load(folder / "saved")),
    }
    return found


@every_kind
def test_nothing_lands_on_the_default_device(kind: str, tmp_path: Path) -> None:
    """What does would have no values on "meta", or would be refused by what is on the CPU."""
    expected = used(kind, tmp_path / "cpu")
    with default_device("meta"):
        found = used(kind, tmp_path / "meta")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(value, found[name]) if isinstance(value, Tensor) else value == found[name]
        assert same, name


def test_the_stack_of_the_other_tests_is_built_on_the_device_that_is_asked_for() -> None:
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in stack().parameters())
