"""Data sets published as files: where they are sought, how they are verified, how they are downloaded."""

import hashlib
import io
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pooch
from tqdm import tqdm

from mondeq.data.dataset import Split
from mondeq.data.files import (
    cache_directory,
    foreign,
    open_contents,
    open_file,
    pieces,
    remove_abandoned,
    written_whole,
)
from mondeq.errors import ConfigError, DataError

_TIMEOUT_SECONDS = 30

Covered = Literal["contents", "file"]
"""What size and checksum are those of: the file as it is, or its contents, which survive being packed anew."""


@dataclass(frozen=True)
class Form:
    """A form in which published bytes come.

    Args:
        name: The name of the file.
        size: The number of bytes of what is covered.
        checksum: The checksum of what is covered: a SHA-256 (64 digits), or an MD5 (32 digits) where nobody published a
            SHA-256.
        covers: What size and checksum are those of: "file", the file as it is, or "contents", which survive being
            packed anew.
    """

    name: str
    size: int
    checksum: str
    covers: Covered = "file"


@dataclass(frozen=True)
class PublishedFile:
    """One file as its publisher offers it, and what unpacking it gives.

    Args:
        offered: The file that is downloaded.
        unpacked: The file or files that unpacking it gives, which a user may have instead.
    """

    offered: Form
    unpacked: tuple[Form, ...] = ()


@dataclass(frozen=True)
class Found:
    """A file that should hold the bytes of a form.

    Args:
        path: Where the file is.
        form: What it should hold.
        dataset: The name of the data set that it belongs to.
        where: What messages call the file.
    """

    path: Path
    form: Form
    dataset: str
    where: str

    def read(self) -> io.BytesIO:
        """The bytes that `form` covers, in memory: those that are parsed are those that were verified.

        No more is read than was published.

        Returns:
            The bytes, at their beginning.

        Raises:
            DataError: The file cannot be read, or its bytes are not those that were published, which is the user's to
                resolve.
        """
        form, content = self.form, io.BytesIO()
        algorithm = "sha256" if len(form.checksum) == 64 else "md5"
        digest = hashlib.new(algorithm, usedforsecurity=False)
        opened = open_contents(self.path) if form.covers == "contents" else open_file(self.path)
        with foreign(f"{self.where} cannot be read"), opened as stream:
            for piece in pieces(stream):
                digest.update(piece)
                if content.write(piece) and content.tell() > form.size:
                    break
        size = content.tell()
        if size != form.size or digest.hexdigest() != form.checksum:
            found = f"more than {form.size} bytes" if size > form.size else f"{size} bytes with {digest.hexdigest()}"
            covered = "it has" if form.covers == "file" else "its contents have"
            raise DataError(
                f"{self.where} is not the published {form.name} of {self.dataset}: {covered} {found} "
                f"instead of {form.size} bytes with the {algorithm.upper()} {form.checksum}; it is truncated, changed "
                "or of another data set, so move it away and get it again (for pictures of your own use folder:PATH)"
            )
        content.seek(0)
        return content


Reader = Callable[[Sequence[Found], tuple[int, int], int], tuple[Split, Split]]
"""(what was found, in the order of `Source.files`; `Source.sizes`; number of classes) → (train, test)."""


@dataclass(frozen=True)
class Source:
    """A published data set.

    Args:
        files: The files of the data set.
        mirrors: Where they are offered, tried in this order. A file's address is a mirror, which ends in /, followed by
            the file's name.
        sizes: The numbers of training and test images.
        classes: The names of the classes.
        read: What makes the two splits of the files.
    """

    files: tuple[PublishedFile, ...]
    mirrors: tuple[str, ...]
    sizes: tuple[int, int]
    classes: tuple[str, ...]
    read: Reader


def data_root(data_dir: str | Path | None) -> Path:
    """The directory in which data are sought: `data_dir`, else $MONDEQ_DATA, else the cache of this package.

    Args:
        data_dir: A directory that exists, or None.

    Returns:
        The directory. The cache alone need not exist yet.

    Raises:
        ConfigError: `data_dir` is no path.
        DataError: One of the first two is given and does not exist: no mistyped name is created.
    """
    argument, given = "data_dir", data_dir
    if given is None:
        argument, given = "$MONDEQ_DATA", os.environ.get("MONDEQ_DATA") or None
    if given is None:
        return cache_directory()
    if not isinstance(given, (str, os.PathLike)):
        raise ConfigError(f"`{argument}` is {given!r}; it must be a path")
    root = Path(os.path.expanduser(given))
    if not os.path.isdir(root):
        raise DataError(f"`{argument}` is {root}, which is not an existing directory; correct it or create it")
    return root


def obtain(name: str, source: Source, root: Path, *, download: bool) -> list[Found]:
    """The files of a source, sought in root/name and in root, and downloaded into root/name.

    Reading them verifies them.

    Args:
        name: The name of the data set.
        source: What it consists of.
        root: The directory to look in, as `data_root` gives it.
        download: Whether missing files are downloaded.

    Returns:
        The files, in the order of `source.files`; for a file that is there unpacked, what unpacking it gave.

    Raises:
        DataError: Files are missing and `download` is false, only a part of what unpacking gives is there, or no mirror
            delivers.
    """
    remove_abandoned(root / name)
    places = {file: _find(name, file, (root / name, root)) for file in source.files}
    missing = [file.offered.name for file, found in places.items() if not found]
    if missing and not download:
        raise DataError(
            f"{name}: {', '.join(missing)} missing in {root / name} and in {root}; "
            "place what is missing there or allow the download"
        )
    return [
        each for file, found in places.items() for each in found or [_download(name, file.offered, source, root / name)]
    ]


def _find(name: str, file: PublishedFile, folders: Sequence[Path]) -> list[Found]:
    """What there is of the file: as offered, or unpacked; nothing if it is absent."""
    for folder in folders:
        for forms in ((file.offered,), file.unpacked):
            absent = [form.name for form in forms if not os.path.exists(folder / form.name)]
            if len(absent) == len(forms):
                continue
            if absent:
                raise DataError(f"{folder} lacks {', '.join(absent)}; {name} is incomplete, so get it again")
            return [Found(folder / form.name, form, name, str(folder / form.name)) for form in forms]
    return []


def _download(name: str, form: Form, source: Source, folder: Path) -> Found:
    """Try the mirrors in turn; the file appears under its name only after its checksum was found right."""
    path = folder / form.name
    with foreign(f"{folder} cannot be created for the download"):
        folder.mkdir(parents=True, exist_ok=True)
    failures = []
    for mirror in source.mirrors:
        url = mirror + form.name
        try:
            with written_whole(path) as temporary:
                _fetch(url, temporary, form.name)
                Found(temporary, form, name, "what came").read()
            return Found(path, form, name, str(path))
        except (OSError, DataError) as error:  # what requests raises is an OSError
            failures.append(f"{url} ({textwrap.shorten(str(error), 200)})")
    raise DataError(
        f"{form.name} could not be downloaded; tried {', '.join(failures) or 'nothing: no mirror is known'}. "
        f"Or place these files in {folder} by hand: {', '.join(each.offered.name for each in source.files)}"
    )


def _fetch(url: str, path: Path, label: str) -> None:
    # pooch asks the bar for its truth value, which tqdm has only with a total: 1, until the server tells it.
    with tqdm(total=1, desc=label, unit="B", unit_scale=True, disable=None) as bar:
        fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=_TIMEOUT_SECONDS)
        fetch(url, str(path), None)
