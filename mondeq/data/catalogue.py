"""The published data sets this package knows, one row each: files, checksums, mirrors, sizes, classes."""

from mondeq.data import cifar, idx, svhn
from mondeq.data.published import Covered, PublishedFile, Source


def _idx_files(md5_of: Covered, *sums: str) -> tuple[PublishedFile, ...]:
    names = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    return tuple(PublishedFile(f"{name}.gz", name, md5, md5_of) for name, md5 in zip(names, sums, strict=True))


SOURCES: dict[str, Source] = {
    "mnist": Source(
        # Several packings of the same four files are in circulation, so it is the contents that count.
        files=_idx_files(
            "contents",
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
        sizes=(60_000, 10_000),
        classes=tuple("0123456789"),
        read=idx.read_splits,
    ),
    "fashion-mnist": Source(
        files=_idx_files(
            "file",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
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
                "cifar-10-binary.tar.gz",
                "cifar-10-batches-bin",
                "c32a1d4ab5d03f1284b67883e8d87530",
                "file",
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
            PublishedFile("train_32x32.mat", "train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", "file"),
            PublishedFile("test_32x32.mat", "test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", "file"),
        ),
        mirrors=("http://ufldl.stanford.edu/housenumbers/",),
        sizes=(73_257, 26_032),
        classes=tuple("0123456789"),
        read=svhn.read_splits,
    ),
}
