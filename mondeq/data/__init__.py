"""Pictures to learn from, as uint8 tensors: `load` a data set by name, cut a split into `batches`.

The names: scikit-learn's 8×8 digits (nothing to download), MNIST, Fashion-MNIST, CIFAR-10, SVHN, and
`folder:PATH` for pictures of one's own.
"""

import dataclasses
from pathlib import Path

from mondeq.data.batches import Batches, batches
from mondeq.data.catalogue import DATASETS, Loader
from mondeq.data.dataset import Dataset, Split
from mondeq.data.folder import load_folder, load_training
from mondeq.data.published import data_root
from mondeq.errors import ConfigError

__all__ = ["DATASETS", "Batches", "Dataset", "Loader", "Split", "batches", "load", "names", "with_extra"]

_FOLDER = "folder:"


def names() -> tuple[str, ...]:
    """Return what `load` accepts, for messages and command-line choices."""
    return (*DATASETS, f"{_FOLDER}PATH")


def load(name: str, data_dir: str | Path | None = None, *, download: bool = True) -> Dataset:
    """The data set called `name`.

    The files of a published data set are sought in one place: `data_dir` if given, else the directory named by the
    environment variable MONDEQ_DATA, else this package's cache. There they are sought in the folder `name` first, then
    in the place itself. What is absent is downloaded into the folder `name`. Every file is compared with its published
    checksum before it is parsed, and none that a user placed is ever changed.

    A folder of pictures is decoded once and memory-mapped from the cache afterwards. Of several processes, let one load
    it first.

    Args:
        name: One of `names()`, such as "mnist". "folder:PATH" stands for the pictures under the directory or .zip PATH.
        data_dir: The directory in which the files of a published data set are, or go. It must exist.
        download: Whether missing files are downloaded. If false, a missing file is a `DataError`.

    Returns:
        The training and the test split, with the names of the classes.

    Raises:
        ConfigError: The name is unknown, or `data_dir` is no path.
        DataError: `data_dir` does not exist, or a file is missing, damaged or not as published.
    """
    if not isinstance(name, str):
        raise ConfigError(f"`name` is {name!r}; it must be one of {', '.join(names())}")
    root = data_root(data_dir)
    if name.startswith(_FOLDER) and name != _FOLDER:
        return load_folder(name, Path(name.removeprefix(_FOLDER)))
    if name not in DATASETS:
        raise ConfigError(f"`data` is {name!r}; it must be one of {', '.join(names())}")
    return DATASETS[name].load(root, download=download)


def with_extra(dataset: Dataset, name: str) -> Dataset:
    """A data set with further images to learn from, those under train/ of a folder of pictures.

    Their classes are found by name and may be some of those of the data set. They are decoded once and memory-mapped
    from the cache, as the pictures of `load`.

    Args:
        dataset: The data set.
        name: "folder:PATH", PATH a directory or .zip with train/<class>/. Whatever lies beside train/ is passed over.

    Returns:
        The data set, with these images as `extra`.

    Raises:
        ConfigError: The name is none of a folder.
        DataError: The folder does not exist or cannot be read, a file is out of place, undecodable or of another size
            than the images of the data set, or a class is none of its classes.
    """
    if not isinstance(name, str) or not name.startswith(_FOLDER) or name == _FOLDER:
        raise ConfigError(f"`extra` is {name!r}; it must be {_FOLDER}PATH, a folder of pictures")
    extra = load_training(Path(name.removeprefix(_FOLDER)), dataset.classes)
    return dataclasses.replace(dataset, extra=extra)
