"""Free weights in, strongly monotone operators out."""

from mondeq.parameterizations.base import (
    PARAMETERIZATIONS,
    Correlations,
    DenseInput,
    Parameterization,
    Readable,
    StronglyMonotone,
)
from mondeq.parameterizations.convolutional import Conv2d, MultiscaleConv2d
from mondeq.parameterizations.dense import Dense
from mondeq.parameterizations.lipschitz_dense import LipschitzDense
from mondeq.parameterizations.reflected import Reflected, ReflectedConv2d, ReflectedDense

__all__ = [
    "PARAMETERIZATIONS",
    "Conv2d",
    "Correlations",
    "Dense",
    "DenseInput",
    "LipschitzDense",
    "MultiscaleConv2d",
    "Parameterization",
    "Readable",
    "Reflected",
    "ReflectedConv2d",
    "ReflectedDense",
    "StronglyMonotone",
]
