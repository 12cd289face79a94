"""Linear operators A of the inclusion 0 ∈ A z − c + ∂f(z)."""

from splitting.operators.base import Adjoint, Operator, Resolvent
from splitting.operators.correlation import correlate, correlation_rounding
from splitting.operators.dense import DenseOperator
from splitting.operators.inverse import Probe, judged_later
from splitting.operators.layout import Layout
from splitting.operators.multiscale import ConvolutionOperator, MultiscaleOperator
from splitting.operators.torus import Torus

__all__ = [
    "Adjoint",
    "ConvolutionOperator",
    "DenseOperator",
    "Layout",
    "MultiscaleOperator",
    "Operator",
    "Probe",
    "Resolvent",
    "Torus",
    "correlate",
    "correlation_rounding",
    "judged_later",
]
