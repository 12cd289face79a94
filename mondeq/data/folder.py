"""One's own pictures: a directory or .zip with train/<class>/ and test/<class>/, PNG or JPEG, of one size.

Here such a tree is listed and understood; `decoding` turns its files into pixels, once, and keeps them.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mondeq.data.dataset import Dataset, Split
from mondeq.data.decoding import stored_pictures
from mondeq.data.files import cache_directory
from mondeq.errors import DataError

_SPLITS = ("train", "test")
_STORED_FORMAT = 1
"""To be raised when the stored arrays change their meaning, so that older ones are not used."""


def load_folder(name: str, path: Path) -> Dataset:
    """The pictures under `path` as the data set `name`; its classes are the folders in train/, sorted.

    Grey pictures give one channel; if any picture has colour, all become RGB. Hidden files, and whatever
    lies beside train/ and test/, are passed over. The pixels are kept in the cache under the path and the
    names, sizes and times (in a zip: checksums) of the pictures, so that a changed folder is decoded anew.

    Raises `DataError` naming the first file that is out of place, undecodable or not of the common size.
    """
    path = path.expanduser()
    with _open_tree(path) as tree:
        layout = _arrange(tree.stamps, path)
        place = _digest(path.resolve())
        content = _digest(_STORED_FORMAT, [(picture, tree.stamps[picture]) for picture in layout.pictures])
        stored = cache_directory() / "folders" / f"{place}-{content}.npy"
        pixels = stored_pictures(stored, layout.pictures, tree.read, path)
    _remove_outdated(stored, f"{place}-*.npy")
    images, labels = torch.from_numpy(pixels), torch.tensor(layout.labels, dtype=torch.int64)
    cut = layout.train_count
    return Dataset(name, Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:]), layout.classes)


@dataclass(frozen=True)
class _Tree:
    """Files and directories, named as in a zip (relative, with /; directories end in /), and how to read one.

    The stamp of a name is two numbers, one of which changes when the file does.
    """

    stamps: Mapping[str, tuple[int, int]]
    read: Callable[[str], bytes]


@dataclass(frozen=True)
class _Layout:
    """The names of the pictures, training ones first, by class and then name, and their labels."""

    classes: tuple[str, ...]
    pictures: tuple[str, ...]
    labels: tuple[int, ...]
    train_count: int


@contextmanager
def _open_tree(path: Path) -> Iterator[_Tree]:
    if not path.exists():
        raise DataError(f"{path} does not exist; `folder:PATH` takes a directory or .zip with train/ and test/")
    try:
        if path.is_dir():
            yield _Tree(dict(_walk(path)), lambda name: (path / name).read_bytes())
        else:
            with zipfile.ZipFile(path) as archive:
                stamps = {each.filename: (each.file_size, each.CRC) for each in archive.infolist()}
                yield _Tree(stamps, archive.read)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} cannot be read as a directory or zip archive: {error}") from error


def _walk(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    for split in _SPLITS:
        if not (root / split).is_dir():
            continue
        for folder, _, names in os.walk(root / split, onerror=_raise, followlinks=True):
            relative = Path(folder).relative_to(root).as_posix()
            yield f"{relative}/", (0, 0)
            for name in names:
                stat = os.stat(os.path.join(folder, name))
                yield f"{relative}/{name}", (stat.st_size, stat.st_mtime_ns)


def _raise(error: OSError) -> None:
    """For `os.walk`, which would pass over a directory that it may not read."""
    raise error


def _arrange(names: Iterable[str], where: Path) -> _Layout:
    train, test = (_by_class(names, split, where) for split in _SPLITS)
    if strangers := sorted(test.keys() - train.keys()):
        raise DataError(f"{where}: test/{strangers[0]} has no counterpart in train; remove or rename it")
    classes = tuple(sorted(train))
    pictures, labels = [], []
    for split in (train, test):
        for label, name in enumerate(classes):
            pictures += split.get(name, [])
            labels += [label] * len(split.get(name, []))
    return _Layout(classes, tuple(pictures), tuple(labels), sum(map(len, train.values())))


def _by_class(names: Iterable[str], split: str, where: Path) -> dict[str, list[str]]:
    """Class → sorted names of its pictures in the split."""
    classes: dict[str, list[str]] = {}
    for name in sorted(names):
        first, *rest = name.split("/")
        if first != split or any(part.startswith(".") for part in rest):
            continue
        if len(rest) == 2:
            pictures = classes.setdefault(rest[0], [])
            pictures += [name] if rest[1] else []
        elif not name.endswith("/"):
            raise DataError(f"{where}: {name} is out of place; pictures belong directly into {split}/<class>/")
    if not classes:
        raise DataError(f"{where} has no `{split}/<class>/`; PNG or JPEG pictures belong into train/ and test/")
    for label, pictures in classes.items():
        if not pictures:
            raise DataError(f"{where}: {split}/{label} holds no pictures; fill it or remove it")
    return classes


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _remove_outdated(current: Path, pattern: str) -> None:
    """Delete what was stored for earlier states of the same folder."""
    for file in current.parent.glob(pattern):
        if file != current:
            with suppress(OSError):  # still mapped, where that forbids deletion: a later load will delete it
                file.unlink()
