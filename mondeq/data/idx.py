"""The IDX format of MNIST and its kin: 0, 0, type, number of dimensions; the dimensions; the values.

The dimensions are big-endian 32-bit numbers; the values of images and labels are bytes, type 8.
"""

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import torch

from mondeq.data.dataset import Split, check_labels
from mondeq.data.files import open_contents, pieces
from mondeq.errors import DataError

_UNSIGNED_BYTES = 8


def read_splits(paths: Sequence[Path], sizes: tuple[int, int], classes: int) -> tuple[Split, Split]:
    """Train and test from (training images, training labels, test images, test labels), plain or gzip.

    Raises `DataError` when a file is malformed or has not as many entries as `sizes` says, or a label names
    none of the classes.
    """
    train_images, train_labels, test_images, test_labels = paths
    return (
        _read_split(train_images, train_labels, sizes[0], classes),
        _read_split(test_images, test_labels, sizes[1], classes),
    )


def read_idx(path: Path, dims: int) -> torch.Tensor:
    """The values as a uint8 tensor with `dims` dimensions; `DataError` if the file is anything else."""
    magic = bytes([0, 0, _UNSIGNED_BYTES, dims])
    with open_contents(path) as stream:
        header = stream.read(len(magic) + 4 * dims)
        # Read what there is, instead of reserving what the header promises: the header may be wrong.
        values = bytearray()
        for piece in pieces(stream):
            values += piece
    if header[: len(magic)] != magic:
        raise DataError(
            f"{path} begins with {header[: len(magic)].hex() or 'nothing'}; "
            f"an IDX file of bytes in {dims} dimension(s) begins with {magic.hex()}"
        )
    if len(header) < len(magic) + 4 * dims:
        raise DataError(f"{path} is too short for the header of an IDX file: it is truncated; get it again")
    shape = struct.unpack(f">{dims}I", header[len(magic) :])
    described = f"{'×'.join(map(str, shape))} = {math.prod(shape)}"
    if math.prod(shape) != len(values):
        raise DataError(
            f"{path} holds {len(values)} bytes of values, but its header promises {described}; "
            "it is truncated or damaged, so get it again"
        )
    if not values:
        raise DataError(f"{path} holds no values: its header promises {described}")
    return torch.frombuffer(values, dtype=torch.uint8).reshape(shape)


def _read_split(images_path: Path, labels_path: Path, size: int, classes: int) -> Split:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    for path, tensor in ((images_path, images), (labels_path, labels)):
        if len(tensor) != size:
            raise DataError(f"{path} holds {len(tensor)} entries; the published file holds {size}")
    check_labels(labels, classes, str(labels_path))
    return Split(images.unsqueeze(1), labels.long())
