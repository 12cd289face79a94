"""Linear operators A of the inclusion 0 ∈ A z − c + ∂f(z)."""

from splitting.operators.base import Operator, Resolvent
from splitting.operators.dense import DenseOperator
from splitting.operators.multiscale import ConvolutionOperator, MultiscaleOperator

__all__ = ["ConvolutionOperator", "DenseOperator", "MultiscaleOperator", "Operator", "Resolvent"]
