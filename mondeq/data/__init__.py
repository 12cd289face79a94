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
    """The data set called `name`, one of `NAMES`.

    The files of a published data set are sought in one place: `data_dir` if given, else the directory named
    by the environment variable MONDEQ_DATA, else this package's cache; there in the folder `name` first,
    then in the place itself. What is absent is downloaded into the folder `name`, unless `download` is
    false. Every file is compared with its published checksum before it is parsed, and none that a user placed is
    ever changed.
    A folder of pictures is decoded once and memory-mapped from the cache afterwards; of several processes,
    let one load it first.

    Raises `ConfigError` for an unknown name and `DataError` for what is missing, damaged or not as
    published.
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
