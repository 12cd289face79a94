"""CIFAR-10 in its binary form: six files of records, each a label byte and 3×32×32 pixel bytes (RGB planes).

They are read straight from the archive, or from the directory it unpacks to; nothing is extracted to disk.
"""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO

import torch

from mondeq.data.dataset import Split, check_labels
from mondeq.data.files import foreign
from mondeq.data.published import Found
from mondeq.errors import DataError

FOLDER = "cifar-10-batches-bin"
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = "test_batch.bin"
_IMAGE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32


def read_splits(found: Sequence[Found], sizes: tuple[int, int], classes: int) -> tuple[Split, Split]:
    """Training and test split from the archive, or from the six files in it.

    Args:
        found: The archive alone, or the six files.
        sizes: The numbers of training and test images. Each of the five training files holds `sizes[0]` / 5 images.
        classes: The number of classes.

    Returns:
        The training and the test split.

    Raises:
        DataError: One of the six files is missing, not as published or of the wrong length, or a label names none of
            the classes.
    """
    train, test = (_unfilled(size) for size in sizes)
    share = sizes[0] // len(_TRAIN)
    parts = zip(train.images.split(share), train.labels.split(share), strict=True)
    awaited = dict(zip(_TRAIN, parts, strict=True)) | {_TEST: (test.images, test.labels)}
    for name, size, stream, where in _members(found):
        if name in awaited:
            _fill(*awaited.pop(name), size, stream, classes, where)
    if awaited:
        raise DataError(f"{found[0].where} lacks {', '.join(awaited)}; it is incomplete, so get it again")
    return train, test


def _unfilled(size: int) -> Split:
    return Split(
        torch.empty(size, *_IMAGE, dtype=torch.uint8, device="cpu"), torch.empty(size, dtype=torch.int64, device="cpu")
    )


def _fill(images: torch.Tensor, labels: torch.Tensor, size: int, stream: IO[bytes], classes: int, where: str) -> None:
    expected = len(labels) * _RECORD_BYTES
    if size != expected:
        raise DataError(
            f"{where} has {size} bytes, but {len(labels)} images take {expected}; "
            "it is truncated or damaged, so get it again"
        )
    with foreign(f"{where} is truncated or damaged; get it again"):
        content = bytearray(stream.read(size))
        records = torch.frombuffer(content, dtype=torch.uint8).view(len(labels), _RECORD_BYTES)
    check_labels(records[:, 0], classes, where)
    labels.copy_(records[:, 0])
    images.copy_(records[:, 1:].view(-1, *_IMAGE))


def _members(found: Sequence[Found]) -> Iterator[tuple[str, int, IO[bytes], str]]:
    """(name, size, stream, what messages call it) of the record files; special members are passed over."""
    if len(found) > 1:
        for each in found:
            yield each.path.name, each.form.size, each.read(), each.where
        return
    content, where = found[0].read(), found[0].where
    with (
        foreign(f"{where} is truncated or damaged; delete it and get it again"),
        tarfile.open(fileobj=content, mode="r:gz") as archive,
    ):
        for member in archive:
            *folders, name = PurePosixPath(member.name).parts or ("",)
            wanted = member.isfile() and folders == [FOLDER] and name in (*_TRAIN, _TEST)
            if wanted and (stream := archive.extractfile(member)) is not None:
                yield name, member.size, stream, f"{where}, {name}"
