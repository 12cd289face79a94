"""Free weights in, strongly monotone operators out."""

from mondeq.parameterizations.base import DenseInput, Parameterization
from mondeq.parameterizations.dense import Dense
from mondeq.parameterizations.lipschitz_dense import LipschitzDense

__all__ = ["Dense", "DenseInput", "LipschitzDense", "Parameterization"]
