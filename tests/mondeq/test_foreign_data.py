"""Data that is not what it should be: other files in place of published ones, damage, arguments of other kinds."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import scipy.io
import torch

from mondeq.data import Dataset, Split, batches, load
from mondeq.data.catalogue import SOURCES
from mondeq.data.published import Form, PublishedFile, Source
from mondeq.errors import ConfigError, DataError, is_showable
from tests.mondeq.test_data import (
    IDX_NAMES,
    Tiny,
    TinyCifar,
    numbered,
    pictures,
    random_bytes,
    seeded,
    sha256,
    svhn_content,
    write_tree,
)
from tests.mondeq.test_pictures import at_most, mutated


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder)
    monkeypatch.delenv("MONDEQ_DATA", raising=False)
    return folder


def declared(name: str, contents: dict[str, bytes], sizes: tuple[int, int]) -> Source:
    """The row of `name`, published as `contents` of these sizes."""
    files = tuple(PublishedFile(Form(file, len(content), sha256(content))) for file, content in contents.items())
    return replace(SOURCES[name], files=files, mirrors=(), sizes=sizes)


def refused(name: str, folder: Path, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint) as caught:
        load(name, folder, download=False)
    assert all(map(is_showable, str(caught.value)))


# ------------------------------------------------------------------------------- verified first, and what is then read

FORMS = [(name, form) for name, source in SOURCES.items() for form in ("offered", "unpacked") if name != "svhn"]


@pytest.mark.parametrize(("name", "form"), [*FORMS, ("svhn", "offered")])
def test_another_file_in_place_of_a_published_one_is_refused_unparsed(
    tmp_path: Path, name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(*arguments: object, **options: object) -> None:
        raise RuntimeError("a file that is not the published one was parsed")

    for module, function in ((scipy.io, "loadmat"), (tarfile, "open"), (gzip, "decompress")):
        monkeypatch.setattr(module, function, parsed)
    forms = [each for file in SOURCES[name].files for each in ((file.offered,) if form == "offered" else file.unpacked)]
    write_tree(tmp_path, {each.name: b"another file" for each in forms})
    refused(name, tmp_path, f"{forms[0].name} is not the published.*{forms[0].checksum}")


def test_what_is_parsed_is_what_was_verified_even_if_the_file_changes_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {"train_32x32.mat": svhn_content([10, 1, 9, 5]), "test_32x32.mat": svhn_content([3, 10, 2], seed=1)}
    monkeypatch.setitem(SOURCES, "svhn", declared("svhn", contents, (4, 3)))
    parse = scipy.io.loadmat

    def late(*arguments: Any, **options: Any) -> Any:
        write_tree(tmp_path, dict.fromkeys(contents, b"changed after it was verified"))
        result = parse(*arguments, **options)
        write_tree(tmp_path, contents)
        return result

    monkeypatch.setattr(scipy.io, "loadmat", late)
    write_tree(tmp_path, contents)
    dataset = load("svhn", tmp_path)
    assert dataset.train.labels.tolist() == [0, 1, 9, 5]
    expected = random_bytes(32, 32, 3, 4, seed=0).transpose(3, 2, 0, 1)
    assert np.array_equal(dataset.train.images.numpy(), expected)


@pytest.mark.parametrize("name", [f"{IDX_NAMES[0]}.gz", IDX_NAMES[0]])
@pytest.mark.parametrize("kind", ["bomb", "long", "pipe"])
def test_no_more_is_read_than_was_published(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Tiny()
    monkeypatch.setitem(SOURCES, "mnist", data.source())
    data.write(tmp_path)
    (tmp_path / f"{IDX_NAMES[0]}.gz").unlink()
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
        refused("mnist", tmp_path, f"{name} is a pipe, a socket or a device")
        return
    (tmp_path / name).write_bytes(gzip.compress(bytes(30_000_000), 1) if kind == "bomb" else b"")
    if kind == "long":
        os.truncate(tmp_path / name, 2_000_000_000)
    with at_most(6_000_000):
        refused("mnist", tmp_path, f"{name} is not the published .* more than {len(data.raw[IDX_NAMES[0]])} bytes")


def test_a_member_of_cifar_that_promises_gigabytes_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        member.size = 6_000_000_000
        archive.fileobj.write(member.tobuf())
    content = {"cifar-10-binary.tar.gz": stream.getvalue()}
    monkeypatch.setitem(SOURCES, "cifar10", declared("cifar10", content, (10, 3)))
    with at_most(3_000_000):
        refused("cifar10", write_tree(tmp_path / "set", content), "test_batch.bin has 6000000000 bytes")


# ------------------------------------------------------------------------------------------------------ fuzzing


def idx_case(packed: bool) -> tuple[str, dict[str, bytes], str, tuple[int, int]]:
    raw = Tiny().raw
    contents = {f"{name}.gz": gzip.compress(content, mtime=0) if packed else content for name, content in raw.items()}
    return "fashion-mnist", contents, f"{IDX_NAMES[0]}.gz", (12, 5)


FUZZED = {
    "idx": idx_case(packed=False),
    "idx.gz": idx_case(packed=True),
    "cifar": ("cifar10", {"cifar-10-binary.tar.gz": TinyCifar().archive()}, "cifar-10-binary.tar.gz", (10, 3)),
}


@pytest.mark.parametrize("case", FUZZED)
def test_damaged_files_load_or_fail_in_one_line_even_with_a_right_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, contents, spoilt, sizes = FUZZED[case]
    random, outcomes = np.random.default_rng(0), set()
    write_tree(tmp_path, contents)
    for trial in range(200):
        content = contents[spoilt]
        if case == "cifar" and trial % 2:  # inside the packing too
            damaged = gzip.compress(mutated(gzip.decompress(content), random), 1)
        else:
            damaged = mutated(content, random)
        files = contents | {spoilt: damaged}
        monkeypatch.setitem(SOURCES, name, declared(name, files, sizes))
        (tmp_path / spoilt).write_bytes(damaged)
        try:
            outcomes.add(len(load(name, tmp_path).train))
        except DataError as error:
            outcomes.add("refused" if all(map(is_showable, str(error))) else str(error))
    assert outcomes == {sizes[0], "refused"}


def test_damaged_matlab_files_are_not_even_given_to_the_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {"train_32x32.mat": svhn_content([10, 1, 9, 5]), "test_32x32.mat": svhn_content([3, 10, 2], seed=1)}
    monkeypatch.setitem(SOURCES, "svhn", declared("svhn", contents, (4, 3)))
    write_tree(tmp_path, contents)
    assert len(load("svhn", tmp_path).test) == 3
    random = np.random.default_rng(0)
    for _ in range(50):
        damaged = mutated(contents["train_32x32.mat"], random)
        write_tree(tmp_path, {"train_32x32.mat": damaged})
        if damaged != contents["train_32x32.mat"]:
            refused("svhn", tmp_path, "train_32x32.mat is not the published")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_what_says_nothing_about_the_file_is_not_blamed_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    contents = {"train_32x32.mat": svhn_content([10, 1, 9, 5]), "test_32x32.mat": svhn_content([3, 10, 2])}
    monkeypatch.setitem(SOURCES, "svhn", declared("svhn", contents, (4, 3)))
    monkeypatch.setattr(scipy.io, "loadmat", fail)
    with pytest.raises(type(error)):
        load("svhn", write_tree(tmp_path, contents))


def test_the_original_failure_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ZeroDivisionError("a bug in a parser")

    def fail(*arguments: object, **options: object) -> None:
        raise original

    contents = {"train_32x32.mat": svhn_content([10, 1, 9, 5]), "test_32x32.mat": svhn_content([3, 10, 2])}
    monkeypatch.setitem(SOURCES, "svhn", declared("svhn", contents, (4, 3)))
    monkeypatch.setattr(scipy.io, "loadmat", fail)
    with pytest.raises(DataError, match="a bug in a parser") as caught:
        load("svhn", write_tree(tmp_path, contents))
    assert caught.value.__cause__ is original


# ------------------------------------------------------------------------------- defaults of torch, and arguments


@pytest.fixture(params=["meta", "float64", "float16"])
def defaults(request: pytest.FixtureRequest) -> Iterator[str]:
    """Any default device and dtype that a user may have set."""
    dtype = torch.get_default_dtype()
    if request.param == "meta":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(getattr(torch, request.param))
    yield request.param
    torch.set_default_device(None)
    torch.set_default_dtype(dtype)


def cases(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Dataset]]:
    mat = {"train_32x32.mat": svhn_content([10, 1, 9, 5]), "test_32x32.mat": svhn_content([3, 10, 2])}
    tar = {"cifar-10-binary.tar.gz": TinyCifar().archive()}
    monkeypatch.setitem(SOURCES, "svhn", declared("svhn", mat, (4, 3)))
    monkeypatch.setitem(SOURCES, "cifar10", declared("cifar10", tar, (10, 3)))
    monkeypatch.setitem(SOURCES, "mnist", Tiny().source())
    Tiny().write(folder)
    write_tree(folder, mat | tar)
    pets = write_tree(folder / "pets", pictures(4, 6, 3))
    names = ("digits", "mnist", "cifar10", "svhn", f"folder:{pets}")
    return {name: lambda name=name: load(name, folder) for name in names}


def test_data_sets_are_the_same_whatever_the_default_device_and_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defaults: str
) -> None:
    def shuffled(dataset: Dataset) -> list[torch.Tensor]:
        generator = torch.Generator(device="cpu").manual_seed(0)
        return [each for pair in batches(dataset.train, 3, generator=generator) for each in pair][:8]

    for make in cases(tmp_path, monkeypatch).values():
        dataset = make()
        found = dataset.mean, dataset.std, shuffled(dataset), next(iter(batches(dataset.test, 2)))
        with torch.device("cpu"):
            dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
            expected = make()
            wanted = expected.mean, expected.std, shuffled(expected), next(iter(batches(expected.test, 2)))
            torch.set_default_dtype(dtype)
        assert found[:2] == wanted[:2]
        for these, those in zip(found[2:], wanted[2:], strict=True):
            for this, that in zip(these, those, strict=True):
                assert (this.device.type, this.dtype) == ("cpu", that.dtype)
                assert this.tolist() == that.tolist()


@pytest.mark.parametrize("whole", [np.int64(2), np.uint8(2), np.array(2), torch.tensor(2)])
def test_whole_numbers_of_numpy_and_torch_are_whole_numbers(whole: Any) -> None:
    share = batches(numbered(9), whole, rank=np.int32(1), world_size=whole)
    assert [labels.tolist() for _, labels in share] == [[4, 5], [6, 7], [8]]
    assert [type(value) for value in (share.batch_size, share.rank, share.world_size, len(share))] == [int] * 4


@pytest.mark.parametrize("argument", ["batch_size", "rank", "world_size"])
@pytest.mark.parametrize("value", [2.0, np.float64(2), True, np.bool_(True), "2", None, [2], torch.tensor(2.0)])
def test_other_numbers_are_refused_in_one_line(argument: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"`{argument}` is .*whole number"):
        batches(numbered(9), **{"batch_size": 2, argument: value})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"split": [1, 2]}, "`split` is a list"),
        ({"generator": 3}, "`generator` is a int"),
        ({"device": "gpu"}, "`device` is 'gpu'"),
        ({"device": 1.5}, "`device` is 1.5"),
    ],
)
def test_arguments_of_other_kinds_are_refused_in_one_line(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        batches(**{"split": numbered(9), "batch_size": 2, "generator": seeded()} | options)


@pytest.mark.parametrize("other", [[[0]], np.zeros((2, 1, 1, 1), np.uint8), None, "images"])
def test_lists_and_arrays_for_tensors_are_refused_with_the_remedy(other: Any) -> None:
    good = numbered(2)
    with pytest.raises(DataError, match=r"`images` is a .*must be a torch.uint8 tensor.*use `torch\.") as caught:
        Split(other, good.labels)
    assert ("from_numpy" in str(caught.value)) == isinstance(other, np.ndarray)
    with pytest.raises(DataError, match=r"`labels` is a .*must be a torch.int64 tensor"):
        Split(good.images, other)
    with pytest.raises(DataError, match=r"`test` is a .*must be a `Split`"):
        Dataset("x", good, other, ("a", "b"))


@pytest.mark.parametrize("name", [None, 3, Path("digits"), ["digits"], b"digits"])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"`name` is .*must be one of"):
        load(name)


@pytest.mark.parametrize("place", [3, ["here"], 1.5])
def test_a_directory_that_is_no_path_is_refused(place: Any) -> None:
    with pytest.raises(ConfigError, match=r"`data_dir` is .*must be a path"):
        load("mnist", place)


def test_class_names_are_kept_composed() -> None:
    assert Dataset("x", numbered(2), numbered(2), ("e\u0301", "b")).classes == ("\u00e9", "b")


@pytest.mark.parametrize(
    "classes",
    [
        "ab",
        2,
        None,
        ("a", 1),
        ("a", ""),
        ("a", "  "),
        ("a", "a"),
        ("\u00e9", "e\u0301"),
        ("a", "\x1b[0m"),
        ("a", "\udcff"),
    ],
)
def test_class_names_that_are_not_different_and_showable_are_refused(classes: Any) -> None:
    with pytest.raises(DataError, match=r"class name|`classes`"):
        Dataset("x", numbered(2), numbered(2), classes)
