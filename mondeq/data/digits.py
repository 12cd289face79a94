"""The 1797 handwritten digits that come with scikit-learn: 8×8 grey pictures, nothing to download."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mondeq.data.dataset import Dataset, Split

_FULL_INK = 16
_TEST_SHARE = 0.2


def load_digits() -> Dataset:
    """The digits, their ink 0 … 16 stretched to 0 … 255.

    Returns:
        The data set "digits". Its test split is a fixed fifth of each class.
    """
    from sklearn import (
        datasets,
    )  # here: this import takes a second, needed by no other data set

    bunch = datasets.load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / _FULL_INK)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    in_test = torch.from_numpy(_stratified(bunch.target))
    train, test = (Split(images[chosen], labels[chosen]) for chosen in (~in_test, in_test))
    return Dataset("digits", train, test, tuple("0123456789"))


def _stratified(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """True for the test samples: a fifth of each class."""
    # RandomState, unlike default_rng, promises the same stream in every version of numpy.
    random = np.random.RandomState(0)
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(_TEST_SHARE * len(members))]] = True
    return chosen
