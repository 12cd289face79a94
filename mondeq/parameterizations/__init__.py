"""Free weights in, strongly monotone operators out."""

from mondeq.parameterizations.base import DenseInput, Parameterization, StronglyMonotone
from mondeq.parameterizations.convolutional import Conv2d, MultiscaleConv2d
from mondeq.parameterizations.dense import Dense
from mondeq.parameterizations.lipschitz_dense import LipschitzDense

__all__ = [
    "Conv2d",
    "Dense",
    "DenseInput",
    "LipschitzDense",
    "MultiscaleConv2d",
    "Parameterization",
    "StronglyMonotone",
]
