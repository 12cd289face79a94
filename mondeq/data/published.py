"""Data sets published as files: where they are sought, how they are verified, how they are downloaded."""

import os
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pooch
from tqdm import tqdm

from mondeq.data.dataset import Split
from mondeq.data.files import cache_directory, md5, open_contents, written_whole
from mondeq.errors import DataError

_TIMEOUT_SECONDS = 30

Covered = Literal["contents", "file"]
"""What a checksum covers: the file as it is, or its contents, which survive being packed anew."""

Reader = Callable[[Sequence[Path], tuple[int, int], int], tuple[Split, Split]]
"""(paths in the order of `Source.files`, `Source.sizes`, number of classes) → (train, test)."""


@dataclass(frozen=True)
class PublishedFile:
    """One file as its publisher offers it; `unpacked` is the file or directory that unpacking it gives."""

    name: str
    unpacked: str
    md5: str
    md5_of: Covered


@dataclass(frozen=True)
class Source:
    """A published data set. A file's address is a mirror (which ends in /) followed by the file's name.

    `sizes` are the numbers of training and test images.
    """

    files: tuple[PublishedFile, ...]
    mirrors: tuple[str, ...]
    sizes: tuple[int, int]
    classes: tuple[str, ...]
    read: Reader


def data_root(data_dir: str | Path | None) -> Path:
    """The directory to look in: `data_dir`, else $MONDEQ_DATA, else the cache of this package.

    Raises `DataError` when one of the first two is given and does not exist: no mistyped name is created.
    """
    argument, given = "data_dir", data_dir
    if given is None:
        argument, given = "$MONDEQ_DATA", os.environ.get("MONDEQ_DATA") or None
    if given is None:
        return cache_directory()
    root = Path(given).expanduser()
    if not root.is_dir():
        raise DataError(f"`{argument}` is {root}, which is not an existing directory; correct it or create it")
    return root


def obtain(name: str, source: Source, root: Path, *, download: bool) -> list[Path]:
    """The verified paths of the source's files, sought in root/name and root, downloaded into root/name.

    Raises `DataError` when a file differs from the published one, when files are missing and `download` is
    false, and when no mirror delivers.
    """
    found = {file: _find(file, (root / name, root)) for file in source.files}
    missing = [file.name for file, path in found.items() if path is None]
    if missing and not download:
        raise DataError(
            f"{name}: {', '.join(missing)} missing in {root / name} and in {root}; "
            "place what is missing there or allow the download"
        )
    paths = []
    for file, path in found.items():
        if path is None:
            path = _download(file, source, root / name)
        else:
            _verify(name, file, path)
        paths.append(path)
    return paths


def _find(file: PublishedFile, folders: Sequence[Path]) -> Path | None:
    candidates = (folder / name for folder in folders for name in (file.name, file.unpacked))
    return next((path for path in candidates if path.exists()), None)


def _verify(name: str, file: PublishedFile, path: Path) -> None:
    """Compare a file found on this machine with the published one; a difference is the user's to resolve."""
    if path.name == file.unpacked and file.md5_of == "file":
        warnings.warn(
            f"{path} is an unpacked copy, and the published checksum is that of {file.name}: "
            "only its form is checked, not its contents",
            stacklevel=4,  # the caller of `load`
        )
    elif (found := _checksum(file, path)) != file.md5:
        raise DataError(
            f"{path} is not the published {file.name} of {name}: the MD5 of the {file.md5_of} is {found} "
            f"instead of {file.md5}; it is truncated, changed or of another data set, so move it away and "
            "get it again (for pictures of your own use folder:PATH)"
        )


def _checksum(file: PublishedFile, path: Path) -> str:
    if file.md5_of == "contents":
        with open_contents(path) as stream:
            return md5(stream)
    try:
        with path.open("rb") as stream:
            return md5(stream)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


def _download(file: PublishedFile, source: Source, folder: Path) -> Path:
    """Try the mirrors in turn; the file appears under its name only after its checksum was found right."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be created for the download ({error.strerror or error})") from error
    failures = []
    for mirror in source.mirrors:
        url = mirror + file.name
        try:
            with written_whole(folder / file.name) as temporary:
                _fetch(url, temporary, file.name)
                if (found := _checksum(file, temporary)) != file.md5:
                    raise DataError(f"the MD5 of the {file.md5_of} is {found} instead of {file.md5}")
            return folder / file.name
        except (OSError, DataError) as error:  # what requests raises is an OSError
            failures.append(f"{url} ({textwrap.shorten(str(error), 200)})")
    raise DataError(
        f"{file.name} could not be downloaded; tried {', '.join(failures) or 'nothing: no mirror is known'}. "
        f"Or place these files in {folder} by hand: {', '.join(each.name for each in source.files)}"
    )


def _fetch(url: str, path: Path, label: str) -> None:
    # pooch asks the bar for its truth value, which tqdm has only with a total: 1, until the server tells it.
    with tqdm(total=1, desc=label, unit="B", unit_scale=True, disable=None) as bar:
        fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=_TIMEOUT_SECONDS)
        fetch(url, str(path), None)
