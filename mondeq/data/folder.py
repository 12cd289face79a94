"""One's own pictures: a directory or .zip with train/<class>/ and test/<class>/, PNG or JPEG, of one size.

Here such a tree is listed and understood; `decoding` turns its files into pixels, once, and keeps them.
"""

import hashlib
import os
import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO

import torch

from mondeq.data.dataset import Dataset, Split, class_names
from mondeq.data.decoding import Opener, stored_pictures
from mondeq.data.files import cache_directory, foreign, open_file, remove_abandoned
from mondeq.errors import DataError

_SPLITS = ("train", "test")
_SYSTEM_NAMES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir")
"""What operating systems leave in folders without asking; what they hide begins with a dot."""
_STORED_FORMAT = 2
"""To be raised when the stored arrays change their meaning, so that older ones are not used."""


def load_folder(name: str, path: Path) -> Dataset:
    """The pictures under `path` as a data set. Its classes are the folders in train/, sorted.

    Grey pictures give one channel; if any picture has colour, all become RGB. Hidden files, those of operating systems,
    and whatever lies beside train/ and test/, are passed over. The pixels are kept in the cache under the path and the
    names, sizes and times (in a zip: checksums) of the pictures, so that a changed folder is decoded anew.

    Args:
        name: What the data set shall be called.
        path: A directory or a .zip with train/<class>/ and test/<class>/.

    Returns:
        The data set. Classes take turns in it, so that its first images are of all classes. Images are memory-mapped
        from the cache.

    Raises:
        DataError: The path does not exist or cannot be read, or a file is out of place, undecodable or not of the
            common size. The message names the first such file.
    """
    split, layout = _load(path, _SPLITS)
    images, labels, cut = split.images, split.labels, layout.train_count
    return Dataset(name, Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:]), layout.classes)


def load_training(path: Path, classes: tuple[str, ...]) -> Split:
    """The pictures under train/ in `path` alone, with the labels that their classes have among others.

    Args:
        path: A directory or a .zip with train/<class>/.
        classes: The names of all classes.

    Returns:
        The images, memory-mapped from the cache as those of `load_folder`, and their labels.

    Raises:
        DataError: As of `load_folder`, or a class is none of `classes`.
    """
    split, layout = _load(path, _SPLITS[:1])
    if strangers := [name for name in layout.classes if name not in classes]:
        raise DataError(f"{path}: train/{strangers[0]} is none of the classes {', '.join(classes)}")
    numbers = torch.tensor([classes.index(name) for name in layout.classes], device="cpu")
    return Split(split.images, numbers[split.labels])


def _load(path: Path, splits: tuple[str, ...]) -> tuple[Split, "_Layout"]:
    """All pictures of some of the splits under `path`, and which is which."""
    path = Path(os.path.expanduser(path))
    with _open_tree(path) as tree:
        layout = _arrange(tree.stamps, splits, path)
        # Of one folder the training pictures may be wanted alone and with the others.
        place = _digest(path.resolve(), *(() if splits == _SPLITS else splits))
        content = _digest(_STORED_FORMAT, [(picture, tree.stamps[picture]) for picture in layout.pictures])
        stored = cache_directory() / "folders" / f"{place}-{content}.npy"
        remove_abandoned(stored.parent)
        sizes = {picture: tree.stamps[picture][0] for picture in layout.pictures}
        pixels = stored_pictures(stored, sizes, tree.opened, path)
    _remove_outdated(stored, f"{place}-*.npy")
    return Split(torch.from_numpy(pixels), torch.tensor(layout.labels, dtype=torch.int64, device="cpu")), layout


@dataclass(frozen=True)
class _Tree:
    """Files and directories, named as in a zip (relative, with /; directories end in /), and how to open one.

    The stamp of a name is its size in bytes and another number that changes when the file does.
    """

    stamps: Mapping[str, tuple[int, int]]
    opened: Opener


@dataclass(frozen=True)
class _Layout:
    """The names of the pictures, training ones first, and their labels: the first picture of every class by name, then
    the second of every class, and so on, so that the first N of them say something of all."""

    classes: tuple[str, ...]
    pictures: tuple[str, ...]
    labels: tuple[int, ...]
    train_count: int


@contextmanager
def _open_tree(path: Path) -> Iterator[_Tree]:
    if not os.path.exists(path):
        raise DataError(f"{path} does not exist; `folder:PATH` takes a directory or .zip with train/ and test/")
    if os.path.isdir(path):
        yield _Tree(dict(_walk(path)), lambda name: (path / name).open("rb"))
        return
    with open_file(path) as stream:
        with foreign(f"{path} cannot be read as a directory or zip archive"):
            archive = zipfile.ZipFile(stream)
            members = _members(archive)

        def opened(name: str) -> IO[bytes]:
            # The other ways of packing are unpacked in one go, however much comes out.
            if members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError("is packed in another way than deflate; pack the archive anew")
            return archive.open(members[name])

        yield _Tree({name: (member.file_size, member.CRC) for name, member in members.items()}, opened)


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by name, without the name of the folder that was packed if train/ and test/ are not at the top."""
    members = {}
    for member in archive.infolist():
        parts = [part for part in member.filename.split("/") if part not in ("", ".")]
        members["/".join(parts) + "/" * member.filename.endswith("/")] = member
    begins = tuple(f"{split}/" for split in _SPLITS)
    tops = {top for top, _, rest in (name.partition("/") for name in members) if rest.startswith(begins)}
    tops = {top for top in tops if not _passed_over(top)}
    if len(tops) != 1 or any(name.startswith(begins) for name in members):
        return members
    prefix = f"{tops.pop()}/"
    return {name.removeprefix(prefix): member for name, member in members.items() if name.startswith(prefix)}


def _walk(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    for split in _SPLITS:
        if os.path.isdir(root / split):
            yield from _listed(root, split)


def _listed(root: Path, folder: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """`folder` and what is in it, with stamps. Links lead to classes and pictures, but no deeper, so no loop is run."""
    yield f"{folder}/", (0, 0)
    with foreign(f"{root}: {folder} cannot be listed"), os.scandir(root / folder) as entries:
        visible = sorted((entry for entry in entries if not _passed_over(entry.name)), key=lambda entry: entry.name)
    for entry in visible:
        name = f"{folder}/{entry.name}"
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise DataError(f"{root}: {name} is a link that leads nowhere; remove or repair it")
        with foreign(f"{root}: {name} cannot be read"):
            is_folder, found = entry.is_dir(follow_symlinks=folder in _SPLITS), entry.stat()
        if is_folder:
            yield from _listed(root, name)
        elif stat.S_ISREG(found.st_mode):
            yield name, (found.st_size, found.st_mtime_ns)
        else:
            raise DataError(f"{root}: {name} is a link to a folder, a pipe, a socket or a device; remove it")


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM_NAMES


def _arrange(names: Iterable[str], splits: tuple[str, ...], where: Path) -> _Layout:
    train, *others = (_by_class(names, split, where) for split in splits)
    for test in others:
        if strangers := sorted(test.keys() - train.keys()):
            raise DataError(f"{where}: test/{strangers[0]} has no counterpart in train; remove or rename it")
    classes = class_names(sorted(train), str(where))
    pictures, labels = [], []
    for split in (train, *others):
        for turn in zip_longest(*(split.get(name, []) for name in classes)):
            found = [(label, picture) for label, picture in enumerate(turn) if picture is not None]
            labels += [label for label, _ in found]
            pictures += [picture for _, picture in found]
    return _Layout(classes, tuple(pictures), tuple(labels), sum(map(len, train.values())))


def _by_class(names: Iterable[str], split: str, where: Path) -> dict[str, list[str]]:
    """Class, in the Unicode form NFC → sorted names of its pictures in the split."""
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        first, *rest = name.split("/")
        if first != split or any(map(_passed_over, rest)):
            continue
        if len(rest) == 2:
            pictures = folders.setdefault(rest[0], [])
            pictures += [name] if rest[1] else []
        elif not name.endswith("/"):
            raise DataError(f"{where}: {name} is out of place; pictures belong directly into {split}/<class>/")
    if not folders:
        raise DataError(f"{where} has no `{split}/<class>/`; PNG or JPEG pictures belong into {split}/")
    classes: dict[str, list[str]] = {}
    for folder, pictures in folders.items():
        if not pictures:
            raise DataError(f"{where}: {split}/{folder} holds no pictures; fill it or remove it")
        label = unicodedata.normalize("NFC", folder)
        if label in classes:
            raise DataError(f"{where}: {split}/{label} is there twice, in two Unicode forms of its name; join the two")
        classes[label] = pictures
    return classes


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _remove_outdated(current: Path, pattern: str) -> None:
    """Delete what was stored for earlier states of the same folder."""
    for file in current.parent.glob(pattern):
        if file != current:
            with suppress(OSError):  # still mapped, where that forbids deletion: a later load will delete it
                file.unlink()
