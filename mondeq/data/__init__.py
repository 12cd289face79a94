"""Pictures to learn from, as uint8 tensors: `load` a data set by name, cut a split into `batches`.

The names: scikit-learn's 8×8 digits (nothing to download), MNIST, Fashion-MNIST, CIFAR-10, SVHN, and
`folder:PATH` for pictures of one's own.
"""

from pathlib import Path

from mondeq.data.batches import Batches, batches
from mondeq.data.catalogue import SOURCES
from mondeq.data.dataset import Dataset, Split
from mondeq.data.digits import load_digits
from mondeq.data.folder import load_folder
from mondeq.data.published import data_root, obtain
from mondeq.errors import ConfigError

__all__ = ["NAMES", "Batches", "Dataset", "Split", "batches", "load"]

_FOLDER = "folder:"

NAMES: tuple[str, ...] = ("digits", *SOURCES, f"{_FOLDER}PATH")
"""What `load` accepts, for messages and command-line choices."""


def load(name: str, data_dir: str | Path | None = None, *, download: bool = True) -> Dataset:
    """The data set called `name`.

    The files of a published data set are sought in one place: `data_dir` if given, else the directory named by the
    environment variable MONDEQ_DATA, else this package's cache. There they are sought in the folder `name` first, then
    in the place itself. What is absent is downloaded into the folder `name`. Every file is compared with its published
    checksum before it is parsed, and none that a user placed is ever changed.

    A folder of pictures is decoded once and memory-mapped from the cache afterwards. Of several processes, let one load
    it first.

    Args:
        name: One of `NAMES`, such as "mnist". "folder:PATH" stands for the pictures under the directory or .zip PATH.
        data_dir: The directory in which the files of a published data set are, or go. It must exist.
        download: Whether missing files are downloaded. If false, a missing file is a `DataError`.

    Returns:
        The training and the test split, with the names of the classes.

    Raises:
        ConfigError: The name is unknown, or `data_dir` is no path.
        DataError: `data_dir` does not exist, or a file is missing, damaged or not as published.
    """
    if not isinstance(name, str):
        raise ConfigError(f"`name` is {name!r}; it must be one of {', '.join(NAMES)}")
    root = data_root(data_dir)
    if name == "digits":
        return load_digits()
    if name.startswith(_FOLDER) and name != _FOLDER:
        return load_folder(name, Path(name.removeprefix(_FOLDER)))
    if name not in SOURCES:
        raise ConfigError(f"`data` is {name!r}; it must be one of {', '.join(NAMES)}")
    source = SOURCES[name]
    found = obtain(name, source, root, download=download)
    train, test = source.read(found, source.sizes, len(source.classes))
    return Dataset(name, train, test, source.classes)
