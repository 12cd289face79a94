"""Free weights in, strongly monotone operators out."""

from mondeq.parameterizations.base import (
    PARAMETERIZATIONS,
    Correlations,
    DenseInput,
    Noise,
    Parameterization,
    Readable,
    StronglyMonotone,
    normal_norm,
)
from mondeq.parameterizations.convolutional import Conv2d, MultiscaleConv2d
from mondeq.parameterizations.dense import Dense
from mondeq.parameterizations.interval import IntervalDense
from mondeq.parameterizations.lipschitz_conv2d import LipschitzConv2d
from mondeq.parameterizations.lipschitz_dense import LipschitzDense
from mondeq.parameterizations.reflected import Reflected, ReflectedConv2d, ReflectedDense

__all__ = [
    "PARAMETERIZATIONS",
    "Conv2d",
    "Correlations",
    "Dense",
    "DenseInput",
    "IntervalDense",
    "LipschitzConv2d",
    "LipschitzDense",
    "MultiscaleConv2d",
    "Noise",
    "Parameterization",
    "Readable",
    "Reflected",
    "ReflectedConv2d",
    "ReflectedDense",
    "StronglyMonotone",
    "normal_norm",
]
