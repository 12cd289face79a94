"""CIFAR-10 in its binary form: six files of records, each a label byte and 3×32×32 pixel bytes (RGB planes).

They are read straight from the archive, or from the directory it unpacks to; nothing is extracted to disk.
"""

import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import torch

from mondeq.data.dataset import Split, check_labels
from mondeq.errors import DataError

_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = "test_batch.bin"
_FOLDER = "cifar-10-batches-bin"
_IMAGE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32


def read_splits(paths: Sequence[Path], sizes: tuple[int, int], classes: int) -> tuple[Split, Split]:
    """Train and test from the archive or directory `paths[0]`; a training file holds `sizes[0]` / 5 images.

    Raises `DataError` when one of the six files is missing or has the wrong length, or a label names none
    of the classes.
    """
    path = paths[0]
    train, test = (_unfilled(size) for size in sizes)
    share = sizes[0] // len(_TRAIN)
    parts = zip(train.images.split(share), train.labels.split(share), strict=True)
    awaited = dict(zip(_TRAIN, parts, strict=True)) | {_TEST: (test.images, test.labels)}
    for name, content in _members(path):
        if name in awaited:
            images, labels = awaited.pop(name)
            _fill(images, labels, content, classes, f"{path}, {name}")
    if awaited:
        raise DataError(f"{path} lacks {', '.join(awaited)}; it is incomplete, so get it again")
    return train, test


def _unfilled(size: int) -> Split:
    return Split(torch.empty(size, *_IMAGE, dtype=torch.uint8), torch.empty(size, dtype=torch.int64))


def _fill(images: torch.Tensor, labels: torch.Tensor, content: bytearray, classes: int, where: str) -> None:
    expected = len(labels) * _RECORD_BYTES
    if len(content) != expected:
        raise DataError(
            f"{where} has {len(content)} bytes, but {len(labels)} images take {expected}; "
            "it is truncated or damaged, so get it again"
        )
    records = torch.frombuffer(content, dtype=torch.uint8).view(len(labels), _RECORD_BYTES)
    check_labels(records[:, 0], classes, where)
    labels.copy_(records[:, 0])
    images.copy_(records[:, 1:].view(-1, *_IMAGE))


def _members(path: Path) -> Iterator[tuple[str, bytearray]]:
    """(name, content) of the record files there are; links and other special members are passed over."""
    try:
        if path.is_dir():
            for name in (*_TRAIN, _TEST):
                if (path / name).is_file():
                    yield name, bytearray((path / name).read_bytes())
            return
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                *folders, name = PurePosixPath(member.name).parts
                wanted = member.isfile() and folders == [_FOLDER] and name in (*_TRAIN, _TEST)
                if wanted and (stream := archive.extractfile(member)) is not None:
                    yield name, bytearray(stream.read())
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); delete it and get it again") from error
