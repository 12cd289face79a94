"""Laws of the data room: what is read equals what was written, damage is named, sharding loses nothing."""

import gzip
import hashlib
import io
import itertools
import os
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image

from mondeq.data import Batches, Dataset, Split, batches, decoding, load, names
from mondeq.data.catalogue import SOURCES
from mondeq.data.published import Covered, Form, PublishedFile, Source
from mondeq.errors import ConfigError, DataError

Bytes = NDArray[np.uint8]
IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_MEMBERS = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def random_bytes(*shape: int, seed: int = 0, below: int = 256) -> Bytes:
    return np.random.default_rng(seed).integers(0, below, shape, dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test uses the user's cache or environment: the cache is a folder that does not exist yet."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder)
    monkeypatch.delenv("MONDEQ_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


# -------------------------------------------------------------------------------------- splits and statistics


def make_split(images: Bytes, labels: NDArray[Any]) -> Split:
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def numbered(count: int) -> Split:
    """`count` one-pixel images; image i has value i % 251 and label i, so a batch tells what it holds."""
    index = np.arange(count)
    return make_split((index % 251).astype(np.uint8).reshape(count, 1, 1, 1), index)


@pytest.mark.parametrize("shape", [(7, 1, 5, 4), (9, 3, 2, 6)])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_mean_and_std_equal_numpys(shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mondeq.data.dataset.CHUNK_BYTES", chunk)
    images = random_bytes(*shape)
    labels = np.zeros(len(images))
    # The test split differs: statistics that touched it would not match.
    dataset = Dataset("x", make_split(images, labels), make_split(255 - images // 3, labels), ("a",))
    pixels = images.astype(np.float64) / 255
    assert np.allclose(dataset.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-13)
    assert np.allclose(dataset.std, pixels.std(axis=(0, 2, 3)), rtol=1e-13)
    assert all(type(value) is float for value in dataset.mean + dataset.std)
    assert len(dataset.mean) == len(dataset.std) == shape[1]


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), "float32"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\(2, 3, 3\)"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32), "int32"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"\(3,\)"),
        (torch.zeros(0, 1, 3, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "no images"),
    ],
)
def test_a_split_of_the_wrong_kind_is_refused(images: torch.Tensor, labels: torch.Tensor, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        Split(images, labels)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_dataset_refuses_labels_outside_its_classes(label: int) -> None:
    good, bad = numbered(2), make_split(random_bytes(2, 1, 1, 1), np.array([0, label]))
    with pytest.raises(DataError, match=f"test.*label {label}.*2 classes"):
        Dataset("x", good, bad, ("a", "b"))


def test_a_dataset_refuses_splits_of_different_image_sizes() -> None:
    labels = np.zeros(2)
    with pytest.raises(DataError, match=r"\(1, 2, 2\).*\(1, 3, 3\)"):
        Dataset(
            "x",
            make_split(random_bytes(2, 1, 2, 2), labels),
            make_split(random_bytes(2, 1, 3, 3), labels),
            ("a",),
        )


# ---------------------------------------------------------------------------------------------------- batches


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(source: Batches) -> list[list[int]]:
    return [labels.tolist() for _, labels in source]


small_cases = list(itertools.product(range(1, 10), range(1, 5), range(1, 5)))
"""(number of samples, batch size, number of ranks): all small ones, so also more ranks than samples."""


def test_unshuffled_ranks_in_order_give_every_sample_exactly_once() -> None:
    for count, batch_size, world_size in small_cases:
        seen: list[int] = []
        for rank in range(world_size):
            share = batches(numbered(count), batch_size, rank=rank, world_size=world_size)
            groups = labels_of(share)
            assert len(groups) == len(share)
            assert all(len(group) == batch_size for group in groups[:-1])
            assert all(1 <= len(group) <= batch_size for group in groups)
            seen += itertools.chain(*groups)
        assert seen == list(range(count))


def test_shuffled_ranks_match_batch_by_batch_and_miss_nothing() -> None:
    for count, batch_size, world_size in small_cases:
        ranks = [
            batches(numbered(count), batch_size, generator=seeded(), rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        groups = [labels_of(share) for share in ranks]
        shapes = [[len(group) for group in each] for each in groups]
        assert all(shape == shapes[0] for shape in shapes)
        assert all(len(share) == len(shapes[0]) for share in ranks)
        seen = [label for each in groups for group in each for label in group]
        assert set(seen) == set(range(count))
        assert len(seen) - count < world_size


def test_one_step_of_all_ranks_is_one_step_of_a_single_process_with_the_joint_batch() -> None:
    alone = labels_of(batches(numbered(24), 6, generator=seeded()))
    ranks = [labels_of(batches(numbered(24), 2, generator=seeded(), rank=r, world_size=3)) for r in range(3)]
    joint = [sorted(itertools.chain(*groups)) for groups in zip(*ranks, strict=True)]
    assert joint == [sorted(group) for group in alone]


def test_the_generator_alone_decides_the_order() -> None:
    split = numbered(50)
    torch.manual_seed(1)
    first = labels_of(batches(split, 8, generator=seeded(3)))
    torch.manual_seed(2)
    assert labels_of(batches(split, 8, generator=seeded(3))) == first
    assert labels_of(batches(split, 8, generator=seeded(4))) != first
    epochs = batches(split, 8, generator=seeded(3))
    assert [labels_of(epochs), labels_of(epochs)][0] == first
    assert labels_of(epochs) != first


def test_batches_are_the_pixels_over_255_whatever_the_default_dtype() -> None:
    images, labels = random_bytes(10, 3, 4, 5), np.arange(10)
    split = make_split(images, labels)
    before = split.images.clone()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        pairs = list(batches(split, 4, generator=seeded()))
    finally:
        torch.set_default_dtype(default)
    for pixels, numbers in pairs:
        assert pixels.dtype == torch.float32
        assert numbers.dtype == torch.int64
        assert np.array_equal(pixels.numpy(), images[numbers.numpy()].astype(np.float32) / np.float32(255))
        pixels.zero_()
        numbers.zero_()
    assert torch.equal(split.images, before)
    assert split.labels.tolist() == labels.tolist()


def test_unshuffled_batches_may_be_written_to_without_harming_the_split() -> None:
    split = numbered(5)
    for pixels, numbers in batches(split, 2):
        pixels.fill_(7)
        numbers.fill_(7)
    assert split.labels.tolist() == [0, 1, 2, 3, 4]
    assert split.images.flatten().tolist() == [0, 1, 2, 3, 4]


def test_batches_land_on_the_device_asked_for() -> None:
    pixels, names = next(iter(batches(numbered(5), 2, device="meta")))
    assert pixels.device.type == names.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank"),
        ({"batch_size": 4, "rank": -1}, "rank"),
        ({"batch_size": 4, "world_size": 0}, "world_size"),
    ],
)
def test_impossible_batches_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"`{named}`"):
        batches(numbered(5), **options)


# ---------------------------------------------------------------------------------------------- names, digits


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="mnits") as caught:
        load("mnits")
    assert all(name in str(caught.value) for name in names())


def test_digits_are_whole_stratified_and_the_same_every_time() -> None:
    from sklearn.datasets import load_digits

    dataset, again = load("digits"), load("digits")
    bunch = load_digits()
    assert dataset.classes == tuple("0123456789")
    assert dataset.train.images.shape[1:] == dataset.test.images.shape[1:] == (1, 8, 8)
    assert torch.equal(dataset.train.images, again.train.images)
    assert torch.equal(dataset.test.labels, again.test.labels)

    pixels = torch.cat([dataset.train.images, dataset.test.images]).flatten(1).numpy()
    labels = torch.cat([dataset.train.labels, dataset.test.labels]).numpy()
    expected = np.rint(bunch.data * 255 / 16)
    order, expected_order = (
        np.lexsort(np.column_stack([a, b]).T) for a, b in [(pixels, labels), (expected, bunch.target)]
    )
    assert np.array_equal(pixels[order], expected[expected_order])
    assert np.array_equal(labels[order], bunch.target[expected_order])
    assert int(dataset.train.images.max()) == 255

    totals = np.bincount(bunch.target)
    in_test = np.bincount(dataset.test.labels.numpy())
    assert np.all(np.abs(in_test - 0.2 * totals) <= 0.5)


# ------------------------------------------------------------------------------------- where files are sought


def idx(array: Bytes) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


class Tiny:
    """12 + 5 pictures of 4×3 pixels in the four IDX files, and the table row that describes them."""

    def __init__(self) -> None:
        self.arrays = [
            random_bytes(12, 4, 3, seed=1),
            random_bytes(12, seed=2, below=10),
            random_bytes(5, 4, 3, seed=3),
            random_bytes(5, seed=4, below=10),
        ]
        self.raw = dict(zip(IDX_NAMES, map(idx, self.arrays), strict=True))

    def source(self, *mirrors: str, covers: Covered = "contents") -> Source:
        files = []
        for name, raw in self.raw.items():
            covered = raw if covers == "contents" else gzip.compress(raw, mtime=0)
            offered = Form(f"{name}.gz", len(covered), sha256(covered), covers)
            md5 = hashlib.md5(raw, usedforsecurity=False).hexdigest()
            files.append(PublishedFile(offered, (Form(name, len(raw), md5, "contents"),)))
        files = tuple(files)
        return replace(SOURCES["mnist"], files=files, mirrors=mirrors, sizes=(12, 5))

    def write(self, folder: Path, *, compressed: bool = True, **changed: bytes) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, raw in self.raw.items():
            raw = changed.get(name.replace("-", "_"), raw)
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(raw, mtime=0))
            else:
                (folder / name).write_bytes(raw)
        return folder

    def check(self, dataset: Dataset) -> None:
        found = [dataset.train.images, dataset.train.labels, dataset.test.images, dataset.test.labels]
        for tensor, array in zip(found, self.arrays, strict=True):
            assert np.array_equal(tensor.squeeze(1).numpy() if tensor.ndim == 4 else tensor.numpy(), array)
        assert dataset.train.images.dtype == dataset.test.images.dtype == torch.uint8
        assert dataset.train.labels.dtype == dataset.test.labels.dtype == torch.int64
        assert dataset.train.images.shape == (12, 1, 4, 3)
        assert len(dataset.classes) == 10


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The tiny data set under the name `mnist`, with no mirrors: any attempt to download fails at once."""
    data = Tiny()
    monkeypatch.setitem(SOURCES, "mnist", data.source())
    return data


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("inside", ["", "mnist"])
def test_idx_files_are_read_from_the_directory_or_the_one_named_after_the_data(
    tiny: Tiny, tmp_path: Path, compressed: bool, inside: str
) -> None:
    tiny.write(tmp_path / "mine" / inside, compressed=compressed)
    dataset = load("mnist", tmp_path / "mine", download=False)
    assert dataset.name == "mnist"
    tiny.check(dataset)


def test_the_environment_and_then_the_cache_are_used_when_no_directory_is_given(
    tiny: Tiny, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(cache / "mnist")
    tiny.check(load("mnist", download=False))
    monkeypatch.setenv("MONDEQ_DATA", str(tmp_path / "set"))
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="set"):
        load("mnist", download=False)
    tiny.write(tmp_path / "set")
    tiny.check(load("mnist", download=False))
    (tmp_path / "given").mkdir()
    with pytest.raises(DataError, match="given"):
        load("mnist", str(tmp_path / "given"), download=False)


def test_a_mistyped_directory_is_an_error_and_is_not_created(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"`data_dir`.*dtaa"):
        load("mnist", tmp_path / "dtaa")
    monkeypatch.setenv("MONDEQ_DATA", str(tmp_path / "dtaa"))
    with pytest.raises(DataError, match=r"`\$MONDEQ_DATA`.*dtaa"):
        load("mnist")
    assert not (tmp_path / "dtaa").exists()


def test_without_download_the_missing_files_are_named_and_nothing_is_created(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "mine")
    for name in IDX_NAMES[1:3]:
        (folder / f"{name}.gz").unlink()
    with pytest.raises(DataError) as caught:
        load("mnist", folder, download=False)
    message = str(caught.value)
    assert [name in message for name in IDX_NAMES] == [False, True, True, False]
    assert not (folder / "mnist").exists()


# ------------------------------------------------------------------------------------------ damaged IDX files


def test_a_tampered_byte_is_found_reported_and_left_in_place(tiny: Tiny, tmp_path: Path) -> None:
    raw = bytearray(tiny.raw[IDX_NAMES[0]])
    raw[40] ^= 1
    folder = tiny.write(tmp_path / "mine", train_images_idx3_ubyte=bytes(raw))
    file = folder / f"{IDX_NAMES[0]}.gz"
    before = file.read_bytes()
    with pytest.raises(DataError) as caught:
        load("mnist", folder)
    message = str(caught.value)
    assert str(file) in message
    assert sha256(bytes(raw)) in message
    assert sha256(tiny.raw[IDX_NAMES[0]]) in message
    assert "\n" not in message
    assert file.read_bytes() == before


@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_a_truncated_gzip_file_is_named(tiny: Tiny, tmp_path: Path, keep: float) -> None:
    folder = tiny.write(tmp_path / "mine")
    file = folder / f"{IDX_NAMES[2]}.gz"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=rf"{file}.*(truncated|damaged)"):
        load("mnist", folder)


@pytest.mark.parametrize("covers", ["contents", "file"])
def test_an_empty_file_and_a_directory_in_its_place_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, covers: Covered
) -> None:
    data = Tiny()
    monkeypatch.setitem(SOURCES, "mnist", data.source(covers=covers))
    folder = data.write(tmp_path / "mine")
    file = folder / f"{IDX_NAMES[0]}.gz"
    file.write_bytes(b"")
    with pytest.raises(DataError, match=f"{file} is not the published"):
        load("mnist", folder)
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match=f"{file} cannot be read"):
        load("mnist", folder)


def header(*values: int) -> bytes:
    return struct.pack(">BBBB", *values)


@pytest.mark.parametrize(
    ("file", "damage", "complaint"),
    [
        (0, lambda raw: header(0, 0, 9, 3) + raw[4:], "00000903"),
        (0, lambda raw: header(0, 0, 8, 1) + raw[4:], "00000801"),
        (1, lambda raw: header(1, 0, 8, 1) + raw[4:], "01000801"),
        (0, lambda raw: raw[:9], "too short"),
        (0, lambda raw: raw[:-1], "143 bytes"),
        (0, lambda raw: raw + b"x", "145 bytes"),
        (0, lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "144 bytes"),
        (3, lambda raw: raw[:-1] + b"\x0a", r"t10k-labels.*gz: label 10.*10 classes"),
        (3, lambda raw: raw[:-1] + b"\xff", r"t10k-labels.*gz: label 255.*10 classes"),
        (1, lambda raw: idx(random_bytes(11, below=10)), "11.*12"),
        (0, lambda raw: idx(random_bytes(11, 4, 3)), "11.*12"),
        (2, lambda raw: idx(random_bytes(5, 3, 3)), r"\(1, 4, 3\).*\(1, 3, 3\)"),
        (2, lambda raw: idx(random_bytes(5, 0, 3)), "no values"),
    ],
)
def test_a_malformed_idx_file_is_refused_even_if_its_checksum_is_the_declared_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: int,
    damage: Callable[[bytes], bytes],
    complaint: str,
) -> None:
    data = Tiny()
    data.raw[IDX_NAMES[file]] = damage(data.raw[IDX_NAMES[file]])
    monkeypatch.setitem(SOURCES, "mnist", data.source())
    data.write(tmp_path / "mine")
    with pytest.raises(DataError, match=complaint) as caught:
        load("mnist", tmp_path / "mine")
    assert "\n" not in str(caught.value)


def test_a_checksum_of_the_published_file_covers_the_gz_and_an_unpacked_copy_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Tiny()
    monkeypatch.setitem(SOURCES, "mnist", data.source(covers="file"))
    data.write(tmp_path / "packed")
    data.check(load("mnist", tmp_path / "packed"))
    data.write(tmp_path / "plain", compressed=False)
    data.check(load("mnist", tmp_path / "plain"))
    raw = data.raw[IDX_NAMES[0]]
    (tmp_path / "plain" / IDX_NAMES[0]).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(DataError, match=f"{IDX_NAMES[0]} is not the published.*MD5"):
        load("mnist", tmp_path / "plain")
    file = tmp_path / "packed" / f"{IDX_NAMES[0]}.gz"
    file.write_bytes(gzip.compress(data.raw[IDX_NAMES[0]], mtime=1))
    with pytest.raises(DataError, match=f"{IDX_NAMES[0]}.gz"):
        load("mnist", tmp_path / "packed")


def test_the_table_is_complete() -> None:
    assert set(SOURCES) <= set(names())
    for name, source in SOURCES.items():
        assert len(source.mirrors) == 2
        # SVHN's authors alone offer it; where they do not by https, by http.
        assert [url.split(":")[0] for url in source.mirrors] == ["https", "http" if name == "svhn" else "https"]
        assert len(source.classes) == 10
        # What comes over the net has a SHA-256; of Fashion-MNIST's unpacked contents only an MD5 is known.
        assert all(len(bytes.fromhex(file.offered.checksum)) == 32 for file in source.files)
        forms = [form for file in source.files for form in (file.offered, *file.unpacked)]
        assert {len(bytes.fromhex(form.checksum)) for form in forms} == ({16, 32} if name == "fashion-mnist" else {32})
        assert len({(form.name, form.checksum) for form in forms}) == len(forms)
    assert all(file.offered.covers == "contents" for file in SOURCES["mnist"].files)


# --------------------------------------------------------------------------------------------------- download


class Mirror:
    """A web server on this machine that serves `pages` (path → body) and remembers what was asked of it."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.promise: dict[str, int] = {}
        self.asked: list[str] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                if (body := mirror.pages.get(self.path)) is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(mirror.promise.get(self.path, len(body))))
                self.end_headers()
                self.wfile.write(body)
                return None

            def log_message(self, format: str, *args: object) -> None:
                """Stay silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, folder: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{folder}/"

    def offer(self, folder: str, data: Tiny) -> None:
        for name, raw in data.raw.items():
            self.pages[f"/{folder}/{name}.gz"] = gzip.compress(raw, mtime=0)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()


def files_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_missing_files_are_downloaded_once_into_the_folder_named_after_the_data(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = Tiny()
    mirror.offer("good", data)
    monkeypatch.setitem(SOURCES, "mnist", data.source(mirror.url("good")))
    data.check(load("mnist", tmp_path))
    assert files_under(tmp_path) == {f"mnist/{name}.gz" for name in IDX_NAMES}
    asked = len(mirror.asked)
    assert asked == 4
    data.check(load("mnist", tmp_path))
    assert len(mirror.asked) == asked
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("where", ["environment", "cache"])
def test_downloads_land_in_the_environments_directory_or_the_cache(
    tmp_path: Path, mirror: Mirror, cache: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    data = Tiny()
    mirror.offer("good", data)
    monkeypatch.setitem(SOURCES, "mnist", data.source(mirror.url("good")))
    target = cache
    if where == "environment":
        target = tmp_path / "set"
        target.mkdir()
        monkeypatch.setenv("MONDEQ_DATA", str(target))
    data.check(load("mnist"))
    assert files_under(target) == {f"mnist/{name}.gz" for name in IDX_NAMES}


def test_only_the_missing_file_is_downloaded_and_the_users_own_are_not_touched(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Tiny()
    mirror.offer("good", data)
    monkeypatch.setitem(SOURCES, "mnist", data.source(mirror.url("good")))
    data.write(tmp_path, compressed=False)
    (tmp_path / IDX_NAMES[3]).unlink()
    data.check(load("mnist", tmp_path))
    assert mirror.asked == [f"/good/{IDX_NAMES[3]}.gz"]
    assert files_under(tmp_path) == {*IDX_NAMES[:3], f"mnist/{IDX_NAMES[3]}.gz"}


def damaged(mirror: Mirror, kind: str) -> None:
    """Spoil the first file under /bad/ in the way named."""
    page = f"/bad/{IDX_NAMES[0]}.gz"
    body = mirror.pages[page]
    if kind == "404":
        del mirror.pages[page]
    elif kind == "other content":
        mirror.pages[page] = gzip.compress(b"hello")
    elif kind == "not gzip":
        mirror.pages[page] = b"<html>please log in</html>"
    elif kind == "short":
        mirror.pages[page], mirror.promise[page] = body[:-20], len(body)
    elif kind == "short, and said so":
        mirror.pages[page] = body[:-20]


DAMAGES = ["404", "other content", "not gzip", "short", "short, and said so"]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("covers", ["contents", "file"])
def test_a_bad_mirror_is_followed_by_the_next(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, kind: str, covers: Covered
) -> None:
    data = Tiny()
    mirror.offer("bad", data)
    mirror.offer("good", data)
    damaged(mirror, kind)
    source = data.source("http://127.0.0.1:1/", mirror.url("bad"), mirror.url("good"), covers=covers)
    monkeypatch.setitem(SOURCES, "mnist", source)
    data.check(load("mnist", tmp_path))
    assert mirror.asked[:2] == [f"/bad/{IDX_NAMES[0]}.gz", f"/good/{IDX_NAMES[0]}.gz"]
    assert files_under(tmp_path) == {f"mnist/{name}.gz" for name in IDX_NAMES}


@pytest.mark.parametrize("kind", DAMAGES)
def test_when_every_mirror_fails_one_line_says_what_was_tried_and_nothing_stays(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data = Tiny()
    mirror.offer("bad", data)
    damaged(mirror, kind)
    monkeypatch.setitem(SOURCES, "mnist", data.source("http://127.0.0.1:1/", mirror.url("bad")))
    with pytest.raises(DataError) as caught:
        load("mnist", tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"http://127.0.0.1:1/{IDX_NAMES[0]}.gz" in message
    assert f"{mirror.url('bad')}{IDX_NAMES[0]}.gz" in message
    assert ("404 Client Error" in message) == (kind == "404")  # a port may contain 404 too
    assert str(tmp_path / "mnist") in message
    assert all(f"{name}.gz" in message for name in IDX_NAMES)
    assert files_under(tmp_path) == set()


def test_an_unwritable_place_for_the_download_is_a_data_error(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Tiny()
    mirror.offer("good", data)
    monkeypatch.setitem(SOURCES, "mnist", data.source(mirror.url("good")))
    (tmp_path / "mnist").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="mnist"):
        load("mnist", tmp_path)
    assert mirror.asked == []


# ------------------------------------------------------------------------------------------------------ CIFAR


class TinyCifar:
    """5 × 2 training and 3 test records in CIFAR's binary form."""

    def __init__(self) -> None:
        counts = [2, 2, 2, 2, 2, 3]
        self.labels = [random_bytes(n, seed=i, below=10) for i, n in enumerate(counts)]
        self.pixels = [random_bytes(n, 3072, seed=10 + i) for i, n in enumerate(counts)]
        self.raw = {
            name: np.column_stack([labels, pixels]).tobytes()
            for name, labels, pixels in zip(CIFAR_MEMBERS, self.labels, self.pixels, strict=True)
        }

    def archive(
        self, order: int = 1, before: Sequence[tarfile.TarInfo] = (), after: Sequence[tarfile.TarInfo] = ()
    ) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for member in before:
                archive.addfile(member)
            for name, raw in list(self.raw.items())[::order]:
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
            for member in after:
                archive.addfile(member)
        return stream.getvalue()

    def place(self, folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder.mkdir()
        (folder / "cifar-10-binary.tar.gz").write_bytes(content)
        self.declare(content, monkeypatch)
        return folder

    def declare(self, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        offered = Form("cifar-10-binary.tar.gz", len(content), sha256(content))
        unpacked = (Form(f"cifar-10-batches-bin/{name}", len(raw), sha256(raw)) for name, raw in self.raw.items())
        file = PublishedFile(offered, tuple(unpacked))
        monkeypatch.setitem(SOURCES, "cifar10", replace(SOURCES["cifar10"], files=(file,), mirrors=(), sizes=(10, 3)))

    def unpack(self, folder: Path) -> Path:
        inside = folder / "cifar-10-batches-bin"
        inside.mkdir(parents=True)
        for name, raw in self.raw.items():
            (inside / name).write_bytes(raw)
        return folder

    def check(self, dataset: Dataset) -> None:
        assert np.array_equal(dataset.train.images.numpy(), np.concatenate(self.pixels[:5]).reshape(10, 3, 32, 32))
        assert np.array_equal(dataset.test.images.numpy(), self.pixels[5].reshape(3, 3, 32, 32))
        assert np.array_equal(dataset.train.labels.numpy(), np.concatenate(self.labels[:5]))
        assert np.array_equal(dataset.test.labels.numpy(), self.labels[5])
        assert dataset.classes[3] == "cat"
        assert dataset.train.images.dtype == torch.uint8
        assert dataset.train.labels.dtype == torch.int64


@pytest.mark.parametrize("order", [1, -1])
def test_cifar_is_read_from_its_archive_in_the_numbers_order_without_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    data = TinyCifar()
    folder = data.place(tmp_path / "mine", data.archive(order=order), monkeypatch)
    data.check(load("cifar10", folder))
    assert files_under(tmp_path) == {"mine/cifar-10-binary.tar.gz"}


def test_cifar_is_read_from_the_unpacked_directory_and_each_file_in_it_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TinyCifar()
    data.declare(b"", monkeypatch)
    for folder in (tmp_path / "a", tmp_path / "b" / "cifar10"):
        data.unpack(folder)
    for folder in (tmp_path / "a", tmp_path / "b"):
        data.check(load("cifar10", folder, download=False))
    file = tmp_path / "a" / "cifar-10-batches-bin" / "data_batch_4.bin"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=rf"{file} is not the published"):
        load("cifar10", tmp_path / "a", download=False)
    file.unlink()
    with pytest.raises(DataError, match=r"lacks cifar-10-batches-bin/data_batch_4\.bin"):
        load("cifar10", tmp_path / "a", download=False)


def test_a_hostile_archive_writes_nothing_and_its_links_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TinyCifar()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(data.raw["test_batch.bin"])
    link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    outside, elsewhere = tarfile.TarInfo("../../escaped.txt"), tarfile.TarInfo("other/test_batch.bin")
    twice = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    content = data.archive(before=[link, outside, elsewhere], after=[twice])
    folder = data.place(tmp_path / "mine", content, monkeypatch)
    data.check(load("cifar10", folder))
    assert files_under(tmp_path) == {"secret.bin", "mine/cifar-10-binary.tar.gz"}


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            lambda raw: raw.update({"data_batch_3.bin": raw["data_batch_3.bin"][:-1]}),
            "data_batch_3.bin.*6145",
        ),
        (
            lambda raw: raw.update({"data_batch_3.bin": raw["data_batch_3.bin"][:3073]}),
            "data_batch_3.bin.*3073",
        ),
        (
            lambda raw: raw.update({"test_batch.bin": b"\x0b" + raw["test_batch.bin"][1:]}),
            "test_batch.bin.*label 11",
        ),
        (lambda raw: raw.pop("data_batch_5.bin"), "data_batch_5.bin"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_malformed_cifar_is_refused_naming_the_member(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[dict[str, bytes]], object],
    complaint: str,
    packed: bool,
) -> None:
    data = TinyCifar()
    damage(data.raw)
    if packed:
        folder = data.place(tmp_path / "mine", data.archive(), monkeypatch)
    else:
        data.declare(b"", monkeypatch)
        folder = data.unpack(tmp_path / "mine")
    with pytest.raises(DataError, match=complaint):
        load("cifar10", folder)


def test_a_tampered_or_truncated_cifar_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TinyCifar()
    content = data.archive()
    folder = data.place(tmp_path / "mine", content, monkeypatch)
    file = folder / "cifar-10-binary.tar.gz"
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"{file}.*{sha256(content)}"):
        load("cifar10", folder)
    # A truncated archive whose checksum is nevertheless the declared one.
    file.write_bytes(content[: len(content) // 2])
    data.declare(content[: len(content) // 2], monkeypatch)
    with pytest.raises(DataError, match=f"{file}.*(truncated|damaged)"):
        load("cifar10", folder)


def test_cifar_is_downloaded_verified_and_read(tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TinyCifar()
    content = data.archive()
    data.declare(content, monkeypatch)
    monkeypatch.setitem(SOURCES, "cifar10", replace(SOURCES["cifar10"], mirrors=(mirror.url("x"),)))
    mirror.pages["/x/cifar-10-binary.tar.gz"] = content
    data.check(load("cifar10", tmp_path))
    assert files_under(tmp_path) == {"cifar10/cifar-10-binary.tar.gz"}


# ----------------------------------------------------------------------------------------------------- folder


def encoded(pixels: Bytes, kind: str = "png") -> bytes:
    """A picture file of an (H, W) grey or (H, W, 3 or 4) colour array."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=kind)
    return stream.getvalue()


def pictures(*shape: int) -> dict[str, bytes]:
    """Two classes, 2 + 3 training and 1 + 1 test PNG pictures; names do not follow the order of creation."""
    names = [
        "train/dog/b",
        "train/dog/a",
        "train/cat/10",
        "train/cat/9",
        "train/cat/x y",
        "test/cat/q",
        "test/dog/q",
    ]
    return {f"{name}.png": encoded(random_bytes(*shape, seed=i)) for i, name in enumerate(names)}


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_either(tmp_path: Path, files: dict[str, bytes], form: str) -> Path:
    return write_zip(tmp_path / "set.zip", files) if form == "zip" else write_tree(tmp_path / "set", files)


both_forms = pytest.mark.parametrize("form", ["directory", "zip"])


@both_forms
@pytest.mark.parametrize(("shape", "channels"), [((4, 6), 1), ((4, 6, 3), 3)])
def test_the_classes_of_a_folder_take_turns_in_sorted_order(
    tmp_path: Path, form: str, shape: tuple[int, ...], channels: int
) -> None:
    files = pictures(*shape)
    dataset = load(f"folder:{write_either(tmp_path, files, form)}")
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 0]
    assert dataset.test.labels.tolist() == [0, 1]
    assert dataset.train.images.shape == (5, channels, 4, 6)
    assert dataset.train.images.dtype == torch.uint8
    order = ["train/cat/10", "train/dog/a", "train/cat/9", "train/dog/b", "train/cat/x y"]
    for image, name in zip(dataset.train.images, order, strict=True):
        original = np.asarray(Image.open(io.BytesIO(files[f"{name}.png"])))
        assert np.array_equal(image.numpy(), original.reshape(4, 6, channels).transpose(2, 0, 1))
    original = np.asarray(Image.open(io.BytesIO(files["test/dog/q.png"])))
    assert np.array_equal(dataset.test.images[1].numpy(), original.reshape(4, 6, channels).transpose(2, 0, 1))


def test_jpeg_pictures_are_read_as_pillow_reads_them(tmp_path: Path) -> None:
    content = encoded(random_bytes(8, 8, 3), "jpeg")
    root = write_tree(tmp_path / "set", {"train/a/1.JPG": content, "test/a/1.jpeg": content})
    dataset = load(f"folder:{root}")
    expected = np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1)
    assert np.array_equal(dataset.test.images[0].numpy(), expected)


@pytest.mark.parametrize("coloured", ["train/cat/10.png", "test/dog/q.png"])
def test_one_coloured_picture_makes_all_of_them_rgb(tmp_path: Path, coloured: str) -> None:
    files = pictures(4, 6)
    files[coloured] = encoded(random_bytes(4, 6, 3, seed=99))
    dataset = load(f"folder:{write_tree(tmp_path / 'set', files)}")
    assert dataset.train.images.shape == (5, 3, 4, 6)
    assert dataset.test.images.shape == (2, 3, 4, 6)
    grey = dataset.train.images[2].numpy()
    assert np.array_equal(grey[0], np.asarray(Image.open(io.BytesIO(files["train/cat/9.png"]))))
    assert np.array_equal(grey[0], grey[1])
    assert np.array_equal(grey[0], grey[2])


def with_alpha(opacity: int) -> bytes:
    return encoded(np.dstack([random_bytes(4, 6, 3), np.full((4, 6), opacity, np.uint8)]))


def test_an_opaque_alpha_channel_is_dropped_and_a_transparent_one_refused(tmp_path: Path) -> None:
    files = pictures(4, 6, 3)
    root = write_tree(tmp_path / "set", files | {"train/dog/a.png": with_alpha(255)})
    assert np.array_equal(load(f"folder:{root}").train.images[1].numpy(), random_bytes(4, 6, 3).transpose(2, 0, 1))
    (root / "train/dog/a.png").write_bytes(with_alpha(254))
    with pytest.raises(DataError, match=r"train/dog/a.png.*transparent"):
        load(f"folder:{root}")


def test_sixteen_bit_pictures_are_refused_not_clipped(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(stream, format="png")
    root = write_tree(tmp_path / "set", pictures(4, 6) | {"train/dog/a.png": stream.getvalue()})
    with pytest.raises(DataError, match=r"train/dog/a.png has 16 bits"):
        load(f"folder:{root}")


@both_forms
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"train/cat/notes.txt": b"hello"}, "train/cat/notes.txt.*PNG or JPEG"),
        ({"train/cat/10.png": encoded(random_bytes(40, 60), "jpeg")[:-300]}, "train/cat/10.png.*damaged"),
        ({"train/cat/9.png": encoded(random_bytes(4, 6))[:50]}, "train/cat/9.png.*damaged"),
        ({"train/cat/9.png": b""}, "train/cat/9.png.*damaged"),
        ({"test/cat/q.png": encoded(random_bytes(4, 6), "gif")}, "test/cat/q.png.*PNG or JPEG"),
        (
            {"train/cat/9.png": encoded(random_bytes(6, 4)), "train/dog/b.png": encoded(random_bytes(5, 5))},
            "train/cat/9.png is 4×6.*train/cat/10.png is 6×4",
        ),
        ({"test/cow/1.png": encoded(random_bytes(4, 6))}, "test/cow.*train"),
        ({"train/cow/": b""}, "train/cow.*no pictures"),
        ({"test/dog/": b"", "test/dog/q.png": b"\0"}, "test/dog.*no pictures"),
        ({"train/stray.png": encoded(random_bytes(4, 6))}, "train/stray.png"),
        ({"train/cat/deep/1.png": encoded(random_bytes(4, 6))}, "train/cat/deep/1.png"),
    ],
)
def test_a_faulty_folder_is_refused_naming_the_first_offender(
    tmp_path: Path, form: str, change: dict[str, bytes], complaint: str, cache: Path
) -> None:
    files = pictures(4, 6) | change
    for name in [name for name, content in files.items() if content == b"\0"]:
        del files[name]
    root = tmp_path / "set"
    if form == "directory":
        for name in [name for name in files if name.endswith("/")]:
            (root / name).mkdir(parents=True)
            del files[name]
    path = write_either(tmp_path, files, form)
    with pytest.raises(DataError, match=complaint) as caught:
        load(f"folder:{path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or files_under(cache) == set()


def test_a_class_absent_from_test_is_allowed(tmp_path: Path) -> None:
    files = pictures(4, 6)
    del files["test/cat/q.png"]
    dataset = load(f"folder:{write_tree(tmp_path / 'set', files)}")
    assert dataset.classes == ("cat", "dog")
    assert dataset.test.labels.tolist() == [1]


@both_forms
def test_hidden_files_and_what_lies_beside_train_and_test_are_passed_over(tmp_path: Path, form: str) -> None:
    extras = {".DS_Store": b"x", "train/.DS_Store": b"x", "train/cat/._9.png": b"x", "train/.git/a/b": b"x"}
    others = {"README.md": b"x", "val/cat/1.png": b"x", "__MACOSX/train/cat/1.png": b"x"}
    dataset = load(f"folder:{write_either(tmp_path, pictures(4, 6) | extras | others, form)}")
    assert len(dataset.train.labels) == 5
    assert dataset.classes == ("cat", "dog")


@both_forms
@pytest.mark.parametrize("absent", ["train", "test"])
def test_a_folder_without_train_or_test_is_refused(tmp_path: Path, form: str, absent: str) -> None:
    files = {name: content for name, content in pictures(4, 6).items() if not name.startswith(absent)}
    with pytest.raises(DataError, match=f"`{absent}/"):
        load(f"folder:{write_either(tmp_path, files, form)}")


def test_paths_that_are_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.*does not exist"):
        load(f"folder:{tmp_path / 'absent'}")
    whole = write_zip(tmp_path / "whole.zip", pictures(4, 6)).read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half.zip.*zip"):
        load(f"folder:{tmp_path / 'half.zip'}")
    with pytest.raises(ConfigError, match="folder:PATH"):
        load("folder:")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_of_a_zip_is_named(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, picture in pictures(4, 6).items():
            archive.writestr(name, picture)
        at = archive.getinfo("train/dog/a.png").header_offset + 30 + len("train/dog/a.png")
    content = bytearray(path.read_bytes())
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}: train/dog/a\.png cannot be read"):
        load(f"folder:{path}")


def test_an_unreadable_picture_is_named_and_not_blamed_on_the_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "set", pictures(4, 6))
    opened = Path.open

    def guarded(path: Path, *arguments: Any) -> Any:
        if path.name == "x y.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(DataError, match=r"train/cat/x y\.png cannot be read.*Permission denied") as caught:
        load(f"folder:{root}")
    assert str(cache) not in str(caught.value)


def test_a_class_that_may_not_be_listed_is_an_error_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "set", pictures(4, 6))
    scandir = os.scandir

    def guarded(path: str = ".") -> Any:
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match=r"train/dog cannot be listed \(Permission denied\)"):
        load(f"folder:{root}")


def test_more_pictures_than_are_decoded_at_a_time_stay_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "GROUP", 3)
    monkeypatch.setattr(decoding, "AHEAD", 7)
    values = list(range(0, 250, 10))
    files = {f"train/a/{value:03}.png": encoded(np.full((2, 2), value, np.uint8)) for value in values}
    files["test/a/1.png"] = encoded(np.full((2, 2), 255, np.uint8))
    dataset = load(f"folder:{write_tree(tmp_path / 'set', files)}")
    assert dataset.train.images[:, 0, 1, 1].tolist() == values
    assert dataset.test.images[:, 0, 1, 1].tolist() == [255]


# ----------------------------------------------------------------------------------------- the folder's cache


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The mode of each decoding since the test began."""
    seen: list[str] = []
    decode = decoding.decode

    def counting(content: bytes, mode: str, size: tuple[int, int] | None) -> Bytes:
        seen.append(mode)
        return decode(content, mode, size)

    monkeypatch.setattr(decoding, "decode", counting)
    return seen


@both_forms
def test_a_second_load_decodes_nothing_and_maps_the_file(
    tmp_path: Path, form: str, cache: Path, decodings: list[str]
) -> None:
    path = write_either(tmp_path, pictures(4, 6), form)
    first = load(f"folder:{path}")
    assert len(decodings) == 7
    second = load(f"folder:{path}")
    assert len(decodings) == 7
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.images, second.test.images)
    (stored,) = (cache / name for name in files_under(cache))
    # What is written to the tensor stays in memory: the cache is the same after it.
    before = stored.read_bytes()
    second.train.images.zero_()
    assert stored.read_bytes() == before
    assert torch.equal(load(f"folder:{path}").train.images, first.train.images)


def touch_later(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def test_a_changed_added_removed_or_renamed_picture_is_seen_and_old_caches_do_not_pile_up(
    tmp_path: Path, cache: Path
) -> None:
    root = write_tree(tmp_path / "set", pictures(4, 6))
    new = random_bytes(4, 6, seed=77)
    load(f"folder:{root}")
    (root / "train/cat/10.png").write_bytes(encoded(new))
    touch_later(root / "train/cat/10.png")
    assert np.array_equal(load(f"folder:{root}").train.images[0, 0].numpy(), new)
    (root / "train/dog/c.png").write_bytes(encoded(new))
    assert np.array_equal(load(f"folder:{root}").train.images[5, 0].numpy(), new)
    (root / "train/dog/a.png").unlink()
    assert len(load(f"folder:{root}").train.labels) == 5
    (root / "train/cat/10.png").rename(root / "train/cat/z.png")
    assert np.array_equal(load(f"folder:{root}").train.images[4, 0].numpy(), new)
    assert len(files_under(cache)) == 1


def test_a_zip_rewritten_with_other_pictures_of_the_same_size_is_seen(tmp_path: Path) -> None:
    files = pictures(4, 6)
    path = write_zip(tmp_path / "set.zip", files)
    stat = path.stat()
    load(f"folder:{path}")
    files["train/cat/10.png"] = files["train/dog/b.png"]
    write_zip(path, files)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    images = load(f"folder:{path}").train.images
    assert torch.equal(images[0], images[3])


def test_two_folders_with_the_same_pictures_do_not_evict_each_other(
    tmp_path: Path, cache: Path, decodings: list[str]
) -> None:
    roots = [write_tree(tmp_path / name, pictures(4, 6)) for name in "ab"]
    for root in roots + roots:
        load(f"folder:{root}")
    assert len(decodings) == 14
    assert len(files_under(cache)) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:20],
        lambda content: content[:-1],
        lambda content: content.replace(b"(7, 1, 4, 6)", b"(6, 1, 4, 7)"),
        lambda content: content.replace(b"|u1", b"|i1"),
        lambda content: b"no array at all" * 100,
    ],
)
def test_a_half_written_or_foreign_cache_is_never_used(
    tmp_path: Path, cache: Path, decodings: list[str], spoil: Callable[[bytes], bytes]
) -> None:
    root = write_tree(tmp_path / "set", pictures(4, 6))
    whole = load(f"folder:{root}").train.images.clone()
    (name,) = files_under(cache)
    content = (cache / name).read_bytes()
    assert spoil(content) != content
    (cache / name).write_bytes(spoil(content))
    assert torch.equal(load(f"folder:{root}").train.images, whole)
    assert (cache / name).read_bytes() == content
    assert len(decodings) == 14


def test_an_interrupted_decoding_leaves_no_file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "set", pictures(4, 6))

    def interrupted(content: bytes, mode: str, size: tuple[int, int] | None) -> Bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(f"folder:{root}")
    assert files_under(cache) == set()
    assert len(load(f"folder:{root}").train.labels) == 5


def test_an_unwritable_cache_is_a_data_error_that_names_it(tmp_path: Path, cache: Path) -> None:
    root = write_tree(tmp_path / "set", pictures(4, 6))
    cache.write_text("a file where the cache should be")
    with pytest.raises(DataError, match=str(cache)):
        load(f"folder:{root}")


def test_decoding_is_silent_when_not_on_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(f"folder:{write_tree(tmp_path / 'set', pictures(4, 6))}")
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_decoding_and_downloading_show_their_progress(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    load(f"folder:{write_tree(tmp_path / 'set', pictures(4, 6))}")
    assert "decoding: 100%" in screen.getvalue()
    data = Tiny()
    mirror.offer("good", data)
    monkeypatch.setitem(SOURCES, "mnist", data.source(mirror.url("good")))
    data.check(load("mnist", tmp_path))
    assert f"{IDX_NAMES[0]}.gz: 100%" in screen.getvalue()


# ------------------------------------------------------------------------------------------------- SVHN


def svhn_content(labels: Sequence[int], seed: int = 0, **changes: Any) -> bytes:
    """A file as SVHN has it: X (32, 32, 3, N) and y (N, 1)."""
    content = {"X": random_bytes(32, 32, 3, len(labels), seed=seed), "y": np.array(labels, dtype=np.uint8)[:, None]}
    file = io.BytesIO()
    scipy.io.savemat(file, content | changes)
    return file.getvalue()


@pytest.fixture
def svhn_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes, bytes], Path]:
    """Place two files where they are sought, published as they are, with 4 and 3 images."""

    def place(train: bytes, test: bytes) -> Path:
        source, folder = SOURCES["svhn"], tmp_path / "mine"
        folder.mkdir()
        for file, content in zip(source.files, (train, test), strict=True):
            (folder / file.offered.name).write_bytes(content)
        files = tuple(
            PublishedFile(Form(file.offered.name, len(content), sha256(content)))
            for file, content in zip(source.files, (train, test), strict=True)
        )
        monkeypatch.setitem(SOURCES, "svhn", replace(source, files=files, mirrors=(), sizes=(4, 3)))
        return folder

    return place


def test_svhn_is_read_with_ten_standing_for_zero(svhn_folder: Callable[[bytes, bytes], Path]) -> None:
    dataset = load("svhn", svhn_folder(svhn_content([10, 1, 9, 5]), svhn_content([3, 10, 2], seed=1)))
    assert dataset.train.labels.tolist() == [0, 1, 9, 5]
    assert dataset.test.labels.tolist() == [3, 0, 2]
    expected = random_bytes(32, 32, 3, 4, seed=0)
    assert torch.equal(dataset.train.images, torch.from_numpy(expected.transpose(3, 2, 0, 1).copy()))
    assert dataset.test.images.shape == (3, 3, 32, 32)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (b"hello", "is truncated, damaged or no file of SVHN"),
        (svhn_content([1, 2, 3, 4])[:900], "is truncated, damaged or no file of SVHN"),
        (svhn_content([1, 2, 3]), r"holds \(32, 32, 3, 3\) torch.uint8 and 3 labels, but SVHN has"),
        (svhn_content([1, 2, 3, 11]), "label 11 at position 3 names none of the 10 classes"),
        (svhn_content([1, 2, 3, 4], X=np.zeros((32, 32, 3, 4))), "torch.float64"),
        (svhn_content([1, 2, 3, 4], y=np.zeros((2, 1), dtype=np.uint8)), "2 labels"),
    ],
    ids=["text", "truncated", "too few", "label 11", "floats", "labels missing"],
)
def test_malformed_svhn_is_refused(train: bytes, message: str, svhn_folder: Callable[[bytes, bytes], Path]) -> None:
    folder = svhn_folder(train, svhn_content([1, 2, 3]))
    with pytest.raises(DataError, match=message) as caught:
        load("svhn", folder)
    assert "train_32x32.mat" in str(caught.value)
