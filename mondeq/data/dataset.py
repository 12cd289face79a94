"""What every loader returns: a `Dataset` of two `Split`s, training and test, and the names of the classes.

Images are uint8 (N, C, H, W) and stay so; statistics are taken from counts of the 256 pixel values.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import torch

from mondeq.errors import DataError, is_showable

CHUNK_BYTES = 1 << 24
"""Pixels are counted in pieces of about this size, so that a memory-mapped set is never in memory whole."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels.

    Args:
        images: The images, uint8 (N, C, H, W), with at least one pixel.
        labels: Their labels, int64 (N,).

    Raises:
        DataError: The tensors are of another type, dtype or shape, or there are no images.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        _require("images", self.images, torch.uint8, dims=4)
        _require("labels", self.labels, torch.int64, dims=1)
        if len(self.labels) != len(self.images):
            shape = tuple(self.labels.shape)
            raise DataError(f"`labels` has shape {shape} for {len(self.images)} images; give one label per image")
        if self.images.numel() == 0:
            shape = tuple(self.images.shape)
            raise DataError(f"`images` has shape {shape}: there are no images, or no pixels in them")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of images of one shape, and perhaps more to learn from; label k means `classes[k]`.

    Args:
        name: What messages call the data set.
        train: The split to learn from.
        test: The split to judge by. Its images have the shape of those of `train`.
        classes: The names of the classes, different and showable. They are kept in the Unicode form NFC, in which equal
            names are equal strings.
        extra: Further images to learn from, generated ones, say; None for none. Statistics are those of `train`.

    Raises:
        DataError: The names of the classes are not different, showable names, the image shapes of the splits differ, or
            a label names no class.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    extra: Split | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", class_names(self.classes, self.name))
        splits = {"train": self.train, "test": self.test} | ({} if self.extra is None else {"extra": self.extra})
        for argument, split in splits.items():
            if not isinstance(split, Split):
                raise DataError(f"`{argument}` is a {type(split).__name__}; it must be a `Split`")
        shapes = {argument: tuple(split.images.shape[1:]) for argument, split in splits.items()}
        for argument in shapes:
            if shapes[argument] != shapes["train"]:
                raise DataError(
                    f"{self.name}: training images have shape {shapes['train']}, {argument} images {shapes[argument]}"
                )
        for argument, split in splits.items():
            check_labels(split.labels, len(self.classes), f"{self.name}, {argument}")

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of the training pixels of each channel, on the scale [0, 1]."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of the training pixels of each channel, on the scale [0, 1].

        It divides by N, not N − 1, and is 0 for a constant channel.
        """
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        counts = _pixel_counts(self.train.images).double()
        weights = counts / counts.sum(dim=1, keepdim=True)
        values = torch.arange(256, dtype=torch.float64, device="cpu") / 255
        mean = weights @ values
        variance = (weights * (values - mean[:, None]) ** 2).sum(dim=1)
        return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def check_labels(labels: torch.Tensor, classes: int, where: str) -> None:
    """Check that every label names a class.

    Args:
        labels: Whole numbers (N,).
        classes: The number of classes.
        where: What the message begins with.

    Raises:
        DataError: A label is outside 0 … classes − 1.
    """
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        position = int(wrong[0])
        label = int(labels[position])
        raise DataError(f"{where}: label {label} at position {position} names none of the {classes} classes")


def class_names(names: object, where: str) -> tuple[str, ...]:
    """The names of the classes in the Unicode form NFC.

    Args:
        names: A tuple or list of texts.
        where: What the message begins with.

    Returns:
        The names, in their order.

    Raises:
        DataError: `names` is no tuple or list of texts, or the names are not different and showable.
    """
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: `classes` is {names!r}; it must be a tuple of names, one per class")
    classes = tuple(unicodedata.normalize("NFC", name) for name in names)
    for name, times in Counter(classes).items():
        if not name.strip() or not all(map(is_showable, name)):
            raise DataError(
                f"{where}: the class name {name!r} is blank, or holds control characters or marks that turn the "
                "writing direction; rename it"
            )
        if times > 1:
            raise DataError(f"{where}: the class name {name!r} is there twice, if in two Unicode forms; rename one")
    return classes


def _require(argument: str, tensor: object, dtype: torch.dtype, dims: int) -> None:
    if not isinstance(tensor, torch.Tensor):
        hint = "use `torch.from_numpy`" if type(tensor).__module__ == "numpy" else "use `torch.tensor`"
        raise DataError(f"`{argument}` is a {type(tensor).__name__}; it must be a {dtype} tensor, so {hint}")
    if tensor.dtype != dtype or tensor.ndim != dims:
        raise DataError(
            f"`{argument}` is a {tensor.dtype} tensor of shape {tuple(tensor.shape)}; "
            f"it must be {dtype} with {dims} dimension{'s' if dims > 1 else ''}"
        )


def _pixel_counts(images: torch.Tensor) -> torch.Tensor:
    """How often each of the 256 values occurs in each channel: int64 (C, 256). Exact, whatever the chunks."""
    channels = images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64, device="cpu")
    for chunk in images.split(max(1, CHUNK_BYTES // images[0].numel())):
        for channel in range(channels):
            counts[channel] += torch.bincount(chunk[:, channel].flatten(), minlength=256).cpu()
    return counts
