"""The published data sets this package knows, one row each: files, checksums, mirrors, sizes, classes."""

from abc import ABC, abstractmethod
from pathlib import Path

from mondeq.data import cifar, idx, svhn
from mondeq.data.dataset import Dataset
from mondeq.data.digits import load_digits
from mondeq.data.published import Form, PublishedFile, Source, obtain
from mondeq.registry import Registry


class Loader(ABC):
    """A data set by name; it enrols in `DATASETS`."""

    @staticmethod
    @abstractmethod
    def load(root: Path, *, download: bool) -> Dataset:
        """The data set.

        Args:
            root: The folder in which its files are or go.
            download: Whether what is absent is downloaded.

        Returns:
            The training and the test split, with the names of the classes.

        Raises:
            DataError: A file is missing, damaged or not as published.
        """


DATASETS: Registry[Loader] = Registry("data set")
"""The data sets by the names that `load` and `mondeq train --data` take."""


@DATASETS.enrol("digits")
class Digits(Loader):
    """The digits that come with scikit-learn: nothing to download."""

    @staticmethod
    def load(root: Path, *, download: bool) -> Dataset:
        return load_digits()


_IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_IDX_BYTES = (47_040_016, 60_008, 7_840_016, 10_008)

# Several packings of the same four files are in circulation, so it is the contents that count.
_MNIST_SUMS = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
_FASHION_FILES = (
    (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
)
_FASHION_CONTENTS = (
    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "9018921c3c673c538a1fc5bad174d6f9",
    "8181f5470baa50b63fa0f6fddb340f0a",
    "15d484375f8d13e6eb1aabb0c3f46965",
)
_CIFAR10_MEMBERS = (
    ("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
    ("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
    ("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
    ("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
    ("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
    ("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
)


SOURCES: dict[str, Source] = {
    "mnist": Source(
        files=tuple(
            PublishedFile(Form(f"{name}.gz", size, sha256, "contents"), (Form(name, size, sha256, "contents"),))
            for name, size, sha256 in zip(_IDX_NAMES, _IDX_BYTES, _MNIST_SUMS, strict=True)
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sizes=(60_000, 10_000),
        classes=tuple("0123456789"),
        read=idx.read_splits,
    ),
    "fashion-mnist": Source(
        files=tuple(
            PublishedFile(Form(f"{name}.gz", *packed), (Form(name, size, md5, "contents"),))
            for name, packed, size, md5 in zip(_IDX_NAMES, _FASHION_FILES, _IDX_BYTES, _FASHION_CONTENTS, strict=True)
        ),
        mirrors=(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        sizes=(60_000, 10_000),
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        read=idx.read_splits,
    ),
    "cifar10": Source(
        files=(
            PublishedFile(
                Form(
                    "cifar-10-binary.tar.gz",
                    170_052_171,
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                ),
                tuple(Form(f"{cifar.FOLDER}/{name}", 30_730_000, sha256) for name, sha256 in _CIFAR10_MEMBERS),
            ),
        ),
        mirrors=(
            "https://www.cs.toronto.edu/~kriz/",
            "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
        ),
        sizes=(50_000, 10_000),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        read=cifar.read_splits,
    ),
    "svhn": Source(
        files=(
            PublishedFile(
                Form(
                    "train_32x32.mat",
                    182_040_794,
                    "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
                )
            ),
            PublishedFile(
                Form(
                    "test_32x32.mat",
                    64_275_384,
                    "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
                )
            ),
        ),
        # Its authors' server alone offers it; the checksums make up for http.
        mirrors=("https://ufldl.stanford.edu/housenumbers/", "http://ufldl.stanford.edu/housenumbers/"),
        sizes=(73_257, 26_032),
        classes=tuple("0123456789"),
        read=svhn.read_splits,
    ),
}


def _enrol(name: str) -> None:
    class Published(Loader):
        @staticmethod
        def load(root: Path, *, download: bool) -> Dataset:
            source = SOURCES[name]
            found = obtain(name, source, root, download=download)
            train, test = source.read(found, source.sizes, len(source.classes))
            return Dataset(name, train, test, source.classes)

    DATASETS.enrol(name)(Published)


for _name in SOURCES:
    _enrol(_name)
