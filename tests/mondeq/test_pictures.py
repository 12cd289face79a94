"""Pictures of one's own, as they are found: odd encodings, odd names, odd archives, and files that are no pictures."""

import io
import itertools
import os
import signal
import socket
import struct
import time
import tracemalloc
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mondeq.data import decoding, load
from mondeq.data.files import remove_abandoned, written_whole
from mondeq.errors import DataError, MondeqError, is_showable
from tests.mondeq.test_data import both_forms, encoded, pictures, random_bytes, write_either, write_tree, write_zip

Bytes = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder)
    return folder


def refused(path: Path, complaint: str) -> DataError:
    """The error of loading the folder: one line with the complaint, in characters that a terminal may be shown."""
    with pytest.raises(DataError, match=complaint) as caught:
        load(f"folder:{path}")
    assert is_one_line(caught.value)
    return caught.value


def is_one_line(error: DataError) -> bool:
    return bool(str(error)) and all(map(is_showable, str(error)))


# -------------------------------------------------------------------------------------------- what is in a file

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour: int, width: int, height: int, *, before: bytes = b"", after: bytes = b"", fill: int = 0x1B):
    """A PNG file with `fill` in each byte of its pixels, and chunks before and after those."""
    row = b"\0" + bytes([fill]) * -(-width * depth * CHANNELS[colour] // 8)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(row * height)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), before, chunk(b"IDAT", pixels), after, chunk(b"IEND", b"")]
    )


def one_of_each(root: Path, content: bytes, kind: str = "png") -> Path:
    return write_tree(root, {f"train/a/1.{kind}": content, f"test/a/1.{kind}": content})


@pytest.mark.parametrize("transparency", [b"", chunk(b"tRNS", b"\x12\x34" * 3)], ids=["", "tRNS"])
@pytest.mark.parametrize("colour", [GREY, RGB, GREY_ALPHA, RGB_ALPHA])
def test_sixteen_bits_are_refused_in_every_kind_of_png(tmp_path: Path, colour: int, transparency: bytes) -> None:
    refused(
        one_of_each(tmp_path / "set", png(16, colour, 5, 4, before=transparency)),
        r"train/a/1\.png has 16 bits per channel",
    )


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_fewer_than_eight_bits_are_stretched_to_the_full_range(tmp_path: Path, depth: int) -> None:
    images = load(f"folder:{one_of_each(tmp_path / 'set', png(depth, GREY, 8, 3))}").train.images
    bits = np.unpackbits(np.full(depth, 0x1B, np.uint8)).reshape(8, depth)
    values = bits @ (2 ** np.arange(depth)[::-1])
    assert images[0, 0, 2].tolist() == (values * 255 // (2**depth - 1)).tolist()


@pytest.mark.parametrize(("depth", "value"), [(1, 1), (2, 3), (4, 11), (8, 0x1B)])
def test_a_grey_value_that_stands_for_transparent_is_found_at_every_depth(
    tmp_path: Path, depth: int, value: int
) -> None:
    used, unused = (chunk(b"tRNS", struct.pack(">H", v)) for v in (value, value + 1 if depth > 2 else 7))
    refused(one_of_each(tmp_path / "used", png(depth, GREY, 8, 3, before=used)), "transparent")
    if depth > 2:
        assert load(f"folder:{one_of_each(tmp_path / 'not', png(depth, GREY, 8, 3, before=unused))}").classes == ("a",)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_are_looked_up_and_must_have_the_colours_that_are_used(tmp_path: Path, depth: int) -> None:
    palette = random_bytes(2**depth, 3)
    content = png(depth, PALETTE, 8, 2, before=chunk(b"PLTE", palette.tobytes()))
    images = load(f"folder:{one_of_each(tmp_path / 'set', content)}").train.images
    bits = np.unpackbits(np.full(depth, 0x1B, np.uint8)).reshape(8, depth)
    assert np.array_equal(images[0, :, 1].numpy().T, palette[bits @ (2 ** np.arange(depth)[::-1])])
    short = chunk(b"PLTE", palette[: int((bits @ (2 ** np.arange(depth)[::-1])).max())].tobytes())
    refused(one_of_each(tmp_path / "short", png(depth, PALETTE, 8, 2, before=short)), "palette")
    refused(one_of_each(tmp_path / "none", png(depth, PALETTE, 8, 2)), "damaged")


def test_a_jpeg_of_twelve_bits_is_refused(tmp_path: Path) -> None:
    content = bytearray(encoded(random_bytes(8, 8), "jpeg"))
    content[content.index(b"\xff\xc0") + 4] = 12
    refused(one_of_each(tmp_path / "set", bytes(content), "jpg"), "8 bits per channel")


def exif(orientation: int) -> bytes:
    """EXIF data that states an orientation and nothing else."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


UPRIGHT: dict[int, Callable[[Bytes], Bytes]] = {
    0: lambda a: a,
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: np.rot90,
    9: lambda a: a,
}
"""Stored → upright, by the definition of the orientations: where the first row and the first column belong."""


@pytest.mark.parametrize("place", ["before", "after", "jpeg"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_are_turned_as_their_exif_data_says(tmp_path: Path, orientation: int, place: str) -> None:
    stored = random_bytes(4, 6)
    if place == "jpeg":
        stream = io.BytesIO()
        Image.fromarray(stored).save(stream, "jpeg", exif=b"Exif\0\0" + exif(orientation))
        content = stream.getvalue()
        stored = np.asarray(Image.open(io.BytesIO(content)))
    else:
        plain = encoded(stored)
        at = plain.index(b"IDAT") - 4 if place == "before" else plain.index(b"IEND") - 4
        content = plain[:at] + chunk(b"eXIf", exif(orientation)) + plain[at:]
    images = load(f"folder:{one_of_each(tmp_path / 'set', content)}").train.images
    assert np.array_equal(images[0, 0].numpy(), UPRIGHT[orientation](stored))


def test_the_upright_pictures_must_be_of_one_size(tmp_path: Path) -> None:
    lying = encoded(random_bytes(6, 4))
    at = lying.index(b"IEND") - 4
    turned = lying[:at] + chunk(b"eXIf", exif(6)) + lying[at:]
    files = pictures(4, 6)
    assert len(load(f"folder:{write_tree(tmp_path / 'a', files | {'train/cat/9.png': turned})}").train) == 5
    refused(write_tree(tmp_path / "b", files | {"train/cat/9.png": lying}), "train/cat/9.png is 4×6 .*10.png is 6×4")


@pytest.mark.parametrize("place", ["png", "jpeg"])
@pytest.mark.parametrize("damage", [exif(6)[:14], exif(6)[:4] + b"\xff" * 4])
def test_exif_data_that_cannot_be_read_is_an_error_because_the_picture_may_lie(
    tmp_path: Path, place: str, damage: bytes, recwarn: pytest.WarningsRecorder
) -> None:
    if place == "png":
        content = png(8, GREY, 5, 4, after=chunk(b"eXIf", damage))
    else:
        stream = io.BytesIO()
        Image.fromarray(random_bytes(4, 5)).save(stream, "jpeg", exif=b"Exif\0\0" + damage)
        content = stream.getvalue()
    refused(one_of_each(tmp_path / "set", content, place), "EXIF")
    assert not recwarn


# ------------------------------------------------------------------------------------------------------- memory


@contextmanager
def at_most(peak_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < peak_bytes
    finally:
        tracemalloc.stop()


def test_a_picture_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    huge = png(8, RGB, 9000, 1, fill=0)[:41] + b"no pixels at all"
    refused(
        write_tree(tmp_path / "set", pictures(4, 6) | {"train/dog/a.png": huge}), "train/dog/a.png is 9000×1 pixels"
    )


@pytest.mark.parametrize("sides", [(10_000, 10_000), (40_000, 40_000), (2**31 - 1, 2**31 - 1)])
def test_a_header_that_promises_an_absurd_size_is_refused(
    tmp_path: Path, sides: tuple[int, int], recwarn: pytest.WarningsRecorder
) -> None:
    plain = png(8, GREY, 1, 1)
    header = struct.pack(">IIBBBBB", *sides, 8, GREY, 0, 0, 0)
    content = plain[:8] + chunk(b"IHDR", header) + plain[33:]
    with at_most(20_000_000):
        refused(one_of_each(tmp_path / "set", content), "train/a/1.png is .*too large")
    assert not recwarn


@both_forms
@pytest.mark.parametrize("begin", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"], ids=["zeros", "png", "jpeg"])
def test_a_large_stray_file_is_not_read_whole(
    tmp_path: Path, form: str, begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PICTURE_BYTES", 1 << 20)
    if form == "directory":
        root = write_tree(tmp_path / "set", pictures(4, 6) | {"train/cat/0.png": begin})
        os.truncate(root / "train/cat/0.png", 1_500_000_000)  # nothing is stored: a file of zeros that takes no room
    else:
        root = write_zip(tmp_path / "set.zip", pictures(4, 6))
        with zipfile.ZipFile(root, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("train/cat/0.png", begin + bytes(30_000_000))
    with at_most(3_000_000):
        refused(root, r"train/cat/0\.png (is no PNG or JPEG|has [0-9]+ bytes)")


def test_members_that_are_unpacked_in_one_go_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        for name, content in pictures(4, 6).items():
            archive.writestr(name, content)
    refused(path, "train/cat/10.png is packed in another way than deflate")


def test_what_is_decoded_ahead_is_bounded_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "AHEAD", 7)
    monkeypatch.setattr(decoding, "AHEAD_BYTES", 100)
    random = np.random.default_rng(0)
    for count in range(40):
        names = [str(number) for number in range(count)]
        costs = random.choice([1, 30, 99, 101, 1000], count).tolist()
        portions = list(decoding._portions(names, costs))
        assert [name for portion in portions for name in portion] == names
        for portion in portions:
            assert 1 <= len(portion) <= 7
            assert len(portion) == 1 or sum(costs[int(name)] for name in portion) <= 100
        # No portion could have taken the first of the next.
        for this, following in itertools.pairwise(portions):
            assert len(this) == 7 or sum(costs[int(name)] for name in [*this, following[0]]) > 100


def test_pictures_decoded_in_small_portions_stay_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "AHEAD_BYTES", 1000)
    values = list(range(0, 250, 10))
    files = {f"train/a/{value:03}.png": encoded(np.full((2, 2), value, np.uint8)) for value in values}
    files["test/a/1.png"] = encoded(np.full((2, 2), 255, np.uint8))
    dataset = load(f"folder:{write_tree(tmp_path / 'set', files)}")
    assert dataset.train.images[:, 0, 1, 1].tolist() == values


# ----------------------------------------------------------------------------------------------- names and kinds


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_named_and_not_opened(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "set", pictures(4, 6))
    monkeypatch.chdir(tmp_path)
    special = Path("set/train/dog/odd.png")
    if kind == "pipe":
        os.mkfifo(special)
    elif kind == "device":
        special.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(special))
    refused(root, r"train/dog/odd\.png is a .*pipe, a socket or a device")
    refused(special, r"odd\.png is a pipe, a socket or a device")


def test_links_are_followed_to_classes_and_pictures_and_nowhere_else(tmp_path: Path) -> None:
    files = pictures(4, 6)
    root = write_tree(tmp_path / "set", {name: c for name, c in files.items() if name != "train/cat/9.png"})
    write_tree(tmp_path, {"else/9.png": files["train/cat/9.png"], "cow/1.png": files["train/cat/10.png"]})
    (root / "train/cat/9.png").symlink_to(tmp_path / "else/9.png")
    (root / "train/cow").symlink_to(tmp_path / "cow")
    (root / "train/cat/.hidden").symlink_to("nowhere")
    (root / "train/.hidden").symlink_to("nowhere")
    assert load(f"folder:{root}").classes == ("cat", "cow", "dog")
    for target in ("nowhere", "itself.png", ".."):
        (root / "train/dog/itself.png").symlink_to(target)
        refused(root, r"train/dog/itself\.png is a link")
        (root / "train/dog/itself.png").unlink()
    (root / "train/loop").symlink_to(".")
    refused(root, "train/loop/cow is a link to a folder")


@both_forms
def test_what_operating_systems_leave_is_passed_over(tmp_path: Path, form: str) -> None:
    names = [
        "Thumbs.db",
        "desktop.ini",
        "Icon\r",
        "ehthumbs.db",
        ".DS_Store",
        "._9.png",
        "__MACOSX/9.png",
        "@eaDir/x/y",
    ]
    files = pictures(4, 6) | {f"train{folder}/{name}": b"x" for folder in ("", "/cat") for name in names}
    dataset = load(f"folder:{write_either(tmp_path, files, form)}")
    assert (len(dataset.train), dataset.classes) == (5, ("cat", "dog"))


def test_classes_take_turns_so_that_the_first_images_are_of_all_of_them(tmp_path: Path) -> None:
    numbers = {"a": (1, 2, 3, 4), "b": (5,), "c": (6, 7)}
    pictures = {f"train/{name}/{n}.png": png(8, GREY, 2, 2, fill=n) for name, own in numbers.items() for n in own}
    pictures |= {f"test/{name}/1.png": png(8, GREY, 2, 2, fill=10 * ord(name) % 256) for name in "bc"}
    dataset = load(f"folder:{write_tree(tmp_path / 'set', pictures)}")
    assert dataset.train.images[:, 0, 0, 0].tolist() == [1, 5, 6, 2, 7, 3, 4]
    assert dataset.train.labels.tolist() == [0, 1, 2, 0, 2, 0, 0]
    assert dataset.test.labels.tolist() == [1, 2]


@pytest.mark.parametrize("prefix", ["pets/", "./", "./pets/", "/", "train/"])
def test_an_archive_of_the_folder_itself_is_read_like_one_of_its_contents(tmp_path: Path, prefix: str) -> None:
    files = pictures(4, 6)
    plain = load(f"folder:{write_zip(tmp_path / 'plain.zip', files)}")
    packed = {prefix + name: content for name, content in files.items()}
    packed |= {f"__MACOSX/{name}": b"x" for name in packed} | {"notes.txt": b"x", ".x/train/a/1.png": b"x"}
    path = write_zip(tmp_path / "packed.zip", packed)
    if prefix == "train/":  # a folder of that name is ambiguous
        refused(path, "out of place")
        return
    dataset = load(f"folder:{path}")
    assert dataset.classes == plain.classes
    assert torch.equal(dataset.train.images, plain.train.images)


@both_forms
def test_names_that_differ_in_their_unicode_form_alone_are_one_class(tmp_path: Path, form: str) -> None:
    composed, decomposed = (unicodedata.normalize(kind, "été") for kind in ("NFC", "NFD"))
    assert composed != decomposed

    def placed(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    picture = {name: encoded(random_bytes(4, 6, seed=i)) for i, name in enumerate("abc")}
    files = {f"train/{decomposed}/1.png": picture["a"], f"test/{composed}/1.png": picture["b"]}
    dataset = load(f"folder:{write_either(placed('one'), files, form)}")
    assert dataset.classes == (composed,)
    assert dataset.test.labels.tolist() == [0]
    files[f"train/{composed}/2.png"] = picture["c"]
    refused(write_either(placed("two"), files, form), f"train/{composed} is there twice")
    both = {f"train/a/{name}.png": picture["a"] for name in (composed, decomposed)} | {"test/a/1.png": picture["b"]}
    assert len(load(f"folder:{write_either(placed('three'), both, form)}").train) == 2


@both_forms
@pytest.mark.parametrize("name", ["\x1b[31mred", "line\nbreak", "\u202eton", "tab\t", " ", "a\u200bb", "\x7f"])
def test_class_names_that_no_terminal_should_be_shown_are_refused_and_shown_escaped(
    tmp_path: Path, form: str, name: str
) -> None:
    picture = encoded(random_bytes(4, 6))
    refused(
        write_either(tmp_path, {f"{split}/{name}/1.png": picture for split in ("train", "test")}, form), "class name"
    )


def test_names_that_are_no_unicode_are_refused_as_classes_and_fine_as_pictures(tmp_path: Path) -> None:
    picture = encoded(random_bytes(4, 6))
    odd = os.fsdecode(b"\xff\xfe")
    root = write_tree(tmp_path / "a", {f"train/a/{odd}.png": picture, "test/a/1.png": picture})
    assert len(load(f"folder:{root}").train) == 1
    refused(write_tree(tmp_path / "b", {f"train/{odd}/1.png": picture, f"test/{odd}/1.png": picture}), "class name")


@both_forms
def test_file_names_are_escaped_in_messages(tmp_path: Path, form: str) -> None:
    name = "train/cat/\x1b]0;owned\x07\u202e.png"
    refused(write_either(tmp_path, pictures(4, 6) | {name: b"x"}, form), r"train/cat/\\x1b\]0;owned\\x07\\u202e\.png")


def test_every_error_of_the_package_is_one_showable_line() -> None:
    assert str(MondeqError("a\nb\x1b[0m\u2066\udcff ℓ₂ σ×é")) == r"a\nb\x1b[0m\u2066\udcff ℓ₂ σ×é"
    # The joiners belong to the spelling of Persian and Hindi.
    assert str(MondeqError("می\u200cخواهم")) == "می\u200cخواهم"


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "~nobody-of-this-name/pictures"])
def test_paths_that_cannot_exist_do_not(path: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load(f"folder:{path}")


# --------------------------------------------------------------------------------------------- killed processes


def writer(path: Path) -> int:
    """A child process that is half through writing `path`; its number."""
    ready, say = os.pipe()
    if child := os.fork():
        assert os.read(ready, 1) == b"!"
        return child
    with written_whole(path) as temporary:
        temporary.write_bytes(b"half")
        os.write(say, b"!")
        time.sleep(60)
    os._exit(0)


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_the_next_load_removes_what_a_killed_one_left_and_nothing_of_a_living_one(tmp_path: Path, cache: Path) -> None:
    root = write_tree(tmp_path / "set", pictures(4, 6))
    folder = cache / "folders"
    folder.mkdir(parents=True)
    foreign = folder / ".notes.partial"
    foreign.write_bytes(b"not ours")
    living, killed = (writer(folder / "x.npy") for _ in range(2))
    kill(killed)
    assert len(list(folder.glob(".x.npy.*.partial"))) == 2
    load(f"folder:{root}")
    assert len(list(folder.glob(".x.npy.*.partial"))) == 1
    kill(living)
    load(f"folder:{root}")  # decodes nothing, and tidies up all the same
    assert list(folder.glob(".*.partial")) == [foreign]


def test_a_writer_whose_file_is_taken_for_abandoned_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    lock = fcntl.flock
    calls = []

    def late(stream: io.BufferedWriter, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:  # between making and locking the file
            remove_abandoned(tmp_path)
        lock(stream, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with written_whole(tmp_path / "x") as temporary:
        temporary.write_bytes(b"whole")
        remove_abandoned(tmp_path)
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["x"]


# ------------------------------------------------------------------------------------------------------- fuzzing


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """`content` with a few bytes changed, cut off, put in, doubled or zeroed."""
    data = bytearray(content)
    for _ in range(random.integers(1, 4)):
        at, length = int(random.integers(len(data) + 1)), int(random.integers(1, 9))
        kind = random.integers(6)
        if kind <= 1 and at < len(data):
            data[at] = random.integers(256)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = random.bytes(length)
        elif kind == 4:
            data[at : at + length] = b"\xff" * length
        else:
            del data[at : at + length]
    return bytes(data)


def samples() -> dict[str, bytes]:
    """Picture files of many kinds; chunk checksums of PNGs are mended after the damage, so that it gets further in."""
    colour, grey = random_bytes(4, 6, 3), random_bytes(4, 6)
    files = {
        "grey.png": encoded(grey),
        "colour.png": encoded(colour),
        "grey.jpg": encoded(grey, "jpeg"),
        "colour.jpg": encoded(colour, "jpeg"),
        "alpha.png": encoded(np.dstack([colour, np.full((4, 6), 255, np.uint8)])),
        "turned.png": png(8, GREY, 6, 4, after=chunk(b"eXIf", exif(6))),
        "palette.png": png(4, PALETTE, 6, 4, before=chunk(b"PLTE", bytes(48)) + chunk(b"tRNS", b"\xff" * 16)),
    }
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "jpeg", exif=b"Exif\0\0" + exif(6), progressive=True)
    return files | {"turned.jpg": stream.getvalue()}


def mended(content: bytes) -> bytes:
    """A PNG whose chunks have right checksums again, as far as they can be told apart."""
    result, at = content[:8], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        if at + 12 + length > len(content):
            break
        result += chunk(content[at + 4 : at + 8], content[at + 8 : at + 8 + length])
        at += 12 + length
    return result + content[at:]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", samples())
def test_damaged_pictures_decode_or_fail_in_one_line(name: str) -> None:
    random = np.random.default_rng(0)
    content, outcomes = samples()[name], set()
    for trial in range(400):
        damaged = mutated(content, random)
        if name.endswith("png") and trial % 2:
            damaged = mended(damaged)
        try:
            outcomes.add(decoding.decode(damaged, "RGB", (6, 4)).shape)
        except decoding._OtherSize:
            outcomes.add("other size")
        except DataError as error:
            outcomes.add("refused" if is_one_line(error) else str(error))
    assert outcomes <= {(3, 4, 6), "other size", "refused"}
    assert "refused" in outcomes


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_archives_load_or_fail_in_one_line(tmp_path: Path, compression: int) -> None:
    random = np.random.default_rng(0)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", compression) as archive:
        for name, content in pictures(4, 6).items():
            archive.writestr(name, content)
    outcomes = set()
    path = tmp_path / "set.zip"
    for trial in range(150):
        content = whole.getvalue()
        cut = content.index(b"PK\x01\x02")
        # By turns anywhere, and in the directory at the end, where names, sizes and places stand.
        path.write_bytes(mutated(content, random) if trial % 2 else content[:cut] + mutated(content[cut:], random))
        try:
            outcomes.add(load(f"folder:{path}").train.images.shape[1:])
        except DataError as error:
            outcomes.add("refused" if is_one_line(error) else str(error))
    assert outcomes == {(1, 4, 6), "refused"}
