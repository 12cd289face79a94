"""The IDX format of MNIST and its kin: 0, 0, type, number of dimensions; the dimensions; the values.

The dimensions are big-endian 32-bit numbers; the values of images and labels are bytes, type 8.
"""

import gzip
import io
import math
import struct
from collections.abc import Sequence

import torch

from mondeq.data.dataset import Split, check_labels
from mondeq.data.files import GZIP_MAGIC, foreign
from mondeq.data.published import Found
from mondeq.errors import DataError

_UNSIGNED_BYTES = 8


def read_splits(found: Sequence[Found], sizes: tuple[int, int], classes: int) -> tuple[Split, Split]:
    """Training and test split from four files, plain or gzip.

    Args:
        found: The training images, training labels, test images and test labels.
        sizes: The numbers of training and test images.
        classes: The number of classes.

    Returns:
        The training and the test split.

    Raises:
        DataError: A file is not the published one, is malformed or has not as many entries as `sizes` says, or a label
            names none of the classes.
    """
    train_images, train_labels, test_images, test_labels = found
    return (
        _read_split(train_images, train_labels, sizes[0], classes),
        _read_split(test_images, test_labels, sizes[1], classes),
    )


def read_idx(found: Found, dims: int) -> torch.Tensor:
    """The values of an IDX file of bytes.

    Args:
        found: The file, plain or gzip.
        dims: The number of dimensions that the values must have.

    Returns:
        The values, uint8, with `dims` dimensions.

    Raises:
        DataError: The file is anything else.
    """
    content = found.read()
    if content.getbuffer()[: len(GZIP_MAGIC)] == GZIP_MAGIC:
        with foreign(f"{found.where} is truncated or damaged; get it again"):
            content = io.BytesIO(gzip.decompress(content.getbuffer()))
    buffer = content.getbuffer()
    magic = bytes([0, 0, _UNSIGNED_BYTES, dims])
    begin = len(magic) + 4 * dims
    if buffer[: len(magic)] != magic:
        raise DataError(
            f"{found.where} begins with {buffer[: len(magic)].hex() or 'nothing'}; "
            f"an IDX file of bytes in {dims} dimension(s) begins with {magic.hex()}"
        )
    if len(buffer) < begin:
        raise DataError(f"{found.where} is too short for the header of an IDX file: it is truncated; get it again")
    shape = struct.unpack(f">{dims}I", buffer[len(magic) : begin])
    described = f"{'×'.join(map(str, shape))} = {math.prod(shape)}"
    if math.prod(shape) != len(buffer) - begin:
        raise DataError(
            f"{found.where} holds {len(buffer) - begin} bytes of values, but its header promises {described}; "
            "it is truncated or damaged, so get it again"
        )
    if len(buffer) == begin:
        raise DataError(f"{found.where} holds no values: its header promises {described}")
    return torch.frombuffer(buffer, dtype=torch.uint8, offset=begin).reshape(shape)


def _read_split(images_file: Found, labels_file: Found, size: int, classes: int) -> Split:
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    for found, tensor in ((images_file, images), (labels_file, labels)):
        if len(tensor) != size:
            raise DataError(f"{found.where} holds {len(tensor)} entries; the published file holds {size}")
    check_labels(labels, classes, labels_file.where)
    return Split(images.unsqueeze(1), labels.long())
