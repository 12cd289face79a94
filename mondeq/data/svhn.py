"""SVHN's cropped digits: two MATLAB files, each with X (32, 32, 3, N) in bytes and y (N, 1), where 10 stands for 0."""

from collections.abc import Sequence
from pathlib import Path

import scipy.io
import torch
from scipy.io.matlab import MatReadError

from mondeq.data.dataset import Split, check_labels
from mondeq.errors import DataError

_SIDES = (32, 32, 3)


def read_splits(paths: Sequence[Path], sizes: tuple[int, int], classes: int) -> tuple[Split, Split]:
    """Train and test from the files `paths`. Raises `DataError` for one that is damaged or of another shape."""
    train, test = (_read(path, size, classes) for path, size in zip(paths, sizes, strict=True))
    return train, test


def _read(path: Path, size: int, classes: int) -> Split:
    try:
        content = scipy.io.loadmat(path, variable_names=("X", "y"))
        pixels, labels = torch.from_numpy(content["X"]), torch.from_numpy(content["y"]).flatten().long()
    # What scipy raises for files that are cut short, of another format (HDF5: NotImplementedError) or without X and y.
    except (OSError, MatReadError, ValueError, KeyError, TypeError, NotImplementedError, EOFError) as error:
        raise DataError(f"{path} is truncated, damaged or no file of SVHN ({error}); get it again") from error
    if pixels.dtype != torch.uint8 or tuple(pixels.shape) != (*_SIDES, size) or len(labels) != size:
        raise DataError(
            f"{path} holds {tuple(pixels.shape)} {pixels.dtype} and {len(labels)} labels, but SVHN has "
            f"{(*_SIDES, size)} bytes and {size} labels; get it again"
        )
    labels = torch.where(labels == 10, 0, labels)
    check_labels(labels, classes, str(path))
    return Split(pixels.permute(3, 2, 0, 1).contiguous(), labels)
