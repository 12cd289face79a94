"""RandAugment on bytes: seeded, apart from the program's random numbers, resumable; one line without torchvision."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from mondeq.data import Dataset
from mondeq.errors import ConfigError
from mondeq.training.augmentation import distortion
from tests.mondeq.test_training import interrupt, rows, trained, trainer_for
from tests.mondeq.zoo import same_weights, tiny_dataset, weights

V2 = "torchvision.transforms.v2"


def real() -> bool:
    try:
        distortion("rand", 1, torch.Generator())
    except ConfigError:
        return False
    return True


class Turned:
    """As torchvision's: of one image of bytes, by the random numbers of the program."""

    def __call__(self, image: Tensor) -> Tensor:
        assert image.dtype == torch.uint8
        assert image.ndim == 3
        turned = image.rot90(int(torch.randint(4, ())), (1, 2))
        return torch.where(torch.rand(()) < 0.5, 255 - turned, turned)


@pytest.fixture(params=["stand-in", "torchvision"])
def _torchvision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torchvision":
        if not real():
            pytest.skip("no torchvision for this torch")
        return
    module: Any = ModuleType(V2)
    module.RandAugment = Turned
    for name in ("torchvision", "torchvision.transforms"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, V2, module)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return tiny_dataset()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.usefixtures("_torchvision")
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_distorted_by_itself_from_the_seed_alone(channels: int) -> None:
    torch.manual_seed(5)
    images = torch.randint(256, (1, channels, 8, 8), dtype=torch.uint8).expand(40, -1, -1, -1)
    before, state = images.clone(), torch.get_rng_state()
    found = [distortion("rand", channels, generator(seed))(images) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(images, before)
    assert found[0].dtype == torch.uint8
    assert found[0].shape == images.shape
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert len(found[0].unique(dim=0)) > 4
    torch.rand(3)
    assert torch.equal(distortion("rand", channels, generator())(images), found[0])


@pytest.mark.usefixtures("_torchvision")
def test_a_second_batch_is_distorted_anew() -> None:
    distort = distortion("rand", 1, generator())
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8)
    assert distort is not None
    assert not torch.equal(distort(images), distort(images))


@pytest.mark.usefixtures("_torchvision")
@pytest.mark.parametrize("after_steps", [2, 4])
def test_an_interrupted_run_resumes_to_the_same_bits(
    after_steps: int, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"augment": "rand", "shift": 1, "flip": True}
    whole = trained(data, tmp_path / "whole", **settings)
    assert rows(whole) != rows(trained(data, tmp_path / "plain", shift=1, flip=True))
    (tmp_path / "broken").mkdir()
    interrupt(trainer_for(data, tmp_path / "broken", **settings), monkeypatch, after_steps=after_steps)
    torch.manual_seed(99)
    resumed = trainer_for(data, tmp_path / "broken", **settings)
    resumed.resume()
    resumed.run()
    assert same_weights(weights(whole.model), weights(resumed.model))


@pytest.mark.parametrize("missing", [None, RuntimeError("operator torchvision::nms does not exist")])
def test_without_torchvision(
    missing: Exception | None, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is absent, or was built for another torch."""
    if missing is None:
        monkeypatch.setitem(sys.modules, V2, None)
    else:
        monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(missing))
    with pytest.raises(ConfigError, match=r'needs torchvision, one for this torch: pip install "mondeq\[augment\]"$'):
        trainer_for(data, tmp_path, augment="rand")
    trainer_for(data, tmp_path)


def test_images_of_other_channels() -> None:
    with pytest.raises(ConfigError, match="takes images of 1 or 3 channels, those of the data have 2"):
        distortion("rand", 2, generator())
