"""Batches of two sources: shares, passes, ranks; folders of further pictures, refused where they do not fit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import torch
from PIL import Image
from torch import Tensor

from mondeq import data
from mondeq.data import Split, batches
from mondeq.errors import ConfigError, DataError
from mondeq.runs import CONFIG, WEIGHTS
from mondeq.training import Trainer, TrainingConfig
from tests.mondeq.test_cli import Call
from tests.mondeq.zoo import model_for, tiny_dataset

CPU = torch.device("cpu")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")


def numbered(count: int, first: int = 0) -> Split:
    """Images of one pixel, each its own number, which is its label too."""
    numbers = torch.arange(first, first + count)
    return Split(numbers.to(torch.uint8)[:, None, None, None], numbers)


def epoch(real: Split, extra: Split, size: int, share: float, **more: Any) -> list[list[int]]:
    mixed = batches(real, size, extra=extra, extra_share=share, generator=torch.Generator().manual_seed(0), **more)
    found = [(255 * images).round().long().flatten().tolist() for images, _ in mixed]
    assert [labels.tolist() for _, labels in batches_again(mixed)] == found
    assert len(mixed) == len(found)
    return found


def batches_again(mixed: data.Batches) -> list[tuple[Tensor, Tensor]]:
    """The same epoch: its generator is set back."""
    assert mixed.generator is not None
    return list(dataclasses.replace(mixed, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("size", "share", "real", "extra"), [(8, 0.75, 2, 6), (8, 0.5, 4, 4), (100, 0.29, 71, 29)])
def test_each_batch_has_its_share_and_an_epoch_is_one_pass(size: int, share: float, real: int, extra: int) -> None:
    found = epoch(numbered(100), numbered(100, 100), size, share)
    for batch in found[:-1]:
        assert sum(number < 100 for number in batch) == real
        assert sum(number >= 100 for number in batch) == extra
    assert sorted(n for batch in found for n in batch if n < 100) == list(range(100))
    assert len(found) == -(-100 // real)
    last = 100 - real * (len(found) - 1)
    assert len(found[-1]) == last + extra * last // real


def test_others_come_once_before_any_comes_again() -> None:
    """24 batches of 6 take 144 of 100: each once or twice. A larger source is passed over in part, anew each epoch."""
    counts = np.bincount(
        [n - 100 for batch in epoch(numbered(48), numbered(100, 100), 8, 0.75) for n in batch if n >= 100]
    )
    assert len(counts) == 100
    assert set(counts.tolist()) == {1, 2}
    assert counts.sum() == 144
    mixed = batches(
        numbered(4), 4, extra=numbered(100, 100), extra_share=0.5, generator=torch.Generator().manual_seed(0)
    )
    passes = [sorted(int(n) for _, labels in mixed for n in labels if n >= 100) for _ in range(2)]
    assert passes[0] != passes[1]
    assert all(len(set(each)) == 4 for each in passes)


def test_ranks_together_are_one_process() -> None:
    alone = epoch(numbered(64), numbered(90, 100), 16, 0.75)
    ranks = [epoch(numbered(64), numbered(90, 100), 8, 0.75, rank=rank, world_size=2) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(batch) for batch in alone]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra_share": 0.0}, r"`extra_share` is 0.0; it must be a number in \(0, 1\)"),
        ({"extra_share": 1}, "`extra_share` is 1; it must be"),
        ({"extra_share": "0.5"}, "`extra_share` is '0.5'; it must be"),
        ({"extra_share": 0.1}, "less than one image of a batch of 8"),
        ({"generator": None}, "`extra` is mixed in at random; give a `generator` too"),
        ({"extra": 3}, "`extra` is a int; it must be a `Split`"),
        ({"extra": tiny_dataset().train}, r"`extra` has images of shape \(1, 4, 4\), and the split of \(1, 1, 1\)"),
    ],
)
def test_what_cannot_be_mixed(change: dict[str, Any], message: str) -> None:
    settings = {"extra": numbered(9), "generator": torch.Generator(), **change}
    with pytest.raises(ConfigError, match=message):
        batches(numbered(9), 8, **settings)


def test_a_transform_sees_bytes_of_both() -> None:
    seen = []

    def invert(images: Tensor) -> Tensor:
        seen.append((images.dtype, len(images)))
        return 255 - images

    mixed = batches(
        numbered(4), 4, extra=numbered(9, 100), extra_share=0.5, generator=torch.Generator(), transform=invert
    )
    for images, labels in mixed:
        assert torch.equal((255 * images).round().long().flatten(), 255 - labels)
    assert seen == [(torch.uint8, 4)] * 2


# -- folders of pictures ---------------------------------------------------------------------------------------------


def folder(place: Path, classes: str = "abc", *, size: tuple[int, int] = (4, 4), count: int = 8) -> Path:
    random = np.random.default_rng(1)
    for name in classes:
        (place / "train" / name).mkdir(parents=True)
        for k in range(count):
            pixels = random.integers(0, 256, size).astype(np.uint8)
            Image.fromarray(pixels).save(place / "train" / name / f"{k}.png")
    return place


def test_classes_are_found_by_name(tmp_path: Path) -> None:
    dataset = dataclasses.replace(tiny_dataset(), classes=("c", "a", "b"))
    mixed = data.with_extra(dataset, f"folder:{folder(tmp_path / 'more', 'ab')}")
    assert mixed.extra is not None
    assert mixed.extra.labels.tolist() == [1, 2] * 8
    assert mixed.mean == dataset.mean
    assert mixed.train is dataset.train


def test_pictures_of_one_folder_wanted_in_both_ways_are_kept_in_both(tmp_path: Path) -> None:
    place = folder(tmp_path / "more")
    (place / "test").mkdir()
    (place / "train" / "a").rename(place / "kept")
    folder(place / "other", "a")
    (place / "other" / "train" / "a").rename(place / "train" / "a")
    (place / "kept").rename(place / "test" / "a")
    whole = data.load(f"folder:{place}")
    data.with_extra(whole, f"folder:{place}")
    assert len(list((tmp_path / "cache" / "folders").glob("*.npy"))) == 2


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("mnist", ConfigError, "`extra` is 'mnist'; it must be folder:PATH"),
        ("folder:nowhere", DataError, "nowhere does not exist"),
        ("folder:stranger", DataError, "train/d is none of the classes a, b, c"),
        ("folder:small", DataError, r"training images have shape \(1, 4, 4\), extra images \(1, 3, 4\)"),
        ("folder:empty", DataError, "empty has no `train/<class>/`"),
    ],
)
def test_folders_that_do_not_fit(
    name: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(Path("stranger"), "abd")
    folder(Path("small"), size=(3, 4))
    Path("empty").mkdir()
    with pytest.raises(error, match=message) as caught:
        data.with_extra(tiny_dataset(), name)
    assert "\n" not in str(caught.value)


def test_data_and_settings_agree(tmp_path: Path) -> None:
    dataset, config = tiny_dataset(), TrainingConfig(data="tiny", batch_size=16)
    mixed = dataclasses.replace(dataset, extra=dataset.test)
    with pytest.raises(ConfigError, match="`extra` is None, and the data have some"):
        Trainer(model_for(dataset), mixed, config, tmp_path, CPU)
    named = dataclasses.replace(config, extra="folder:x")
    with pytest.raises(ConfigError, match="`extra` is 'folder:x', and the data have none"):
        Trainer(model_for(dataset), dataset, named, tmp_path, CPU)
    assert len(Trainer(model_for(dataset), mixed, named, tmp_path, CPU).train) == 48 / 4


def test_a_run_with_further_pictures_and_its_continuation(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whom config.json knows no path; interrupted it resumes to the same bits; certifying needs none of them."""
    more = folder(tmp_path / "more", "0123456789", size=(8, 8), count=12)
    options = (
        "train", "--data", "digits", "--model", "dense", "--features", 4, "--epochs", 2, "--batch-size", 400,
        "--average", "ema", "--extra", f"folder:{more}", "--extra-share", "1/4",
    )  # fmt: skip
    assert call(*options, "--out", tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        step, taken = Trainer._step, []

        def stopped(self: Trainer, *arguments: Any) -> None:
            taken.append(0)
            if len(taken) > 7:
                raise KeyboardInterrupt
            step(self, *arguments)

        patch.setattr(Trainer, "_step", stopped)
        assert call(*options, "--out", tmp_path / "run").code == 130
    run = tmp_path / "run"
    assert str(tmp_path) not in (run / CONFIG).read_text()
    assert json.loads((run / CONFIG).read_text())["training"]["extra"] == "folder:more"
    assert json.loads((run / "local.json").read_text()) == {"extra": f"folder:{more}"}
    resume = ("train", "--resume", "--out", run)
    call.fails(1, "`extra` is 'folder:more' in this run, got 'folder:x'", *resume, "--extra", "folder:x")
    place = more.rename(tmp_path / "elsewhere")
    call.fails(1, "more does not exist", *resume)
    (run / "local.json").unlink()
    call.fails(1, "where the pictures `folder:more` .* is not known; give --extra", *resume)
    (tmp_path / "there").mkdir()
    place.rename(tmp_path / "there" / "more")
    again = (*resume, "--extra", f"folder:{tmp_path / 'there' / 'more'}")
    assert call(*again).code == 0
    assert (run / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert call("certify", run, "--limit", 5).code == 0
