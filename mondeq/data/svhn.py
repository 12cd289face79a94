"""SVHN's cropped digits: two MATLAB files, each with X (32, 32, 3, N) in bytes and y (N, 1), where 10 stands for 0."""

from collections.abc import Sequence

import scipy.io
import torch

from mondeq.data.dataset import CHUNK_BYTES, Split, check_labels
from mondeq.data.files import foreign
from mondeq.data.published import Found
from mondeq.errors import DataError

_SIDES = (32, 32, 3)


def read_splits(found: Sequence[Found], sizes: tuple[int, int], classes: int) -> tuple[Split, Split]:
    """Training and test split from two files.

    Args:
        found: The file of the training images and that of the test images.
        sizes: The numbers of training and test images.
        classes: The number of classes.

    Returns:
        The training and the test split.

    Raises:
        DataError: A file is not as published, damaged or misshapen.
    """
    train, test = (_read(file, size, classes) for file, size in zip(found, sizes, strict=True))
    return train, test


def _read(found: Found, size: int, classes: int) -> Split:
    content = found.read()
    # Verified before: scipy's compiled reader can crash the process on a file that was made to do so.
    with foreign(f"{found.where} is truncated, damaged or no file of SVHN; get it again"):
        arrays = scipy.io.loadmat(content, variable_names=("X", "y"))
        pixels, labels = torch.from_numpy(arrays["X"]), torch.from_numpy(arrays["y"]).flatten().long()
    if pixels.dtype != torch.uint8 or tuple(pixels.shape) != (*_SIDES, size) or len(labels) != size:
        raise DataError(
            f"{found.where} holds {tuple(pixels.shape)} {pixels.dtype} and {len(labels)} labels, but SVHN has "
            f"{(*_SIDES, size)} bytes and {size} labels; get it again"
        )
    labels = torch.where(labels == 10, 0, labels)
    check_labels(labels, classes, found.where)
    return Split(_images_first(pixels), labels)


def _images_first(pixels: torch.Tensor) -> torch.Tensor:
    """(H, W, C, N) → (N, C, H, W), contiguous.

    MATLAB stores columns first, that is (N, C, W, H) in our order: each image is transposed where it lies, so that the
    set is never in memory twice.
    """
    images = pixels.permute(3, 2, 1, 0).contiguous()
    for part in images.split(max(1, CHUNK_BYTES // images[0].numel())):
        part.copy_(part.transpose(2, 3).clone())
    return images
