"""Operator splitting for 0 ∈ A z − c + ∂f(z): solve it, bound the error, differentiate the solution.

Knows torch, and nothing of neural networks.
"""

from splitting.checks import check_activation, check_adjoint, check_monotone, check_resolvent, error_bound
from splitting.errors import InvalidArgument, InvalidType, NotConverged, ResolventError, SplittingError
from splitting.implicit import equilibrium
from splitting.inclusion import Inclusion
from splitting.operators import ConvolutionOperator, DenseOperator, MultiscaleOperator, Operator, Resolvent
from splitting.prox import (
    Activation,
    Box,
    Identity,
    LeakyReLU,
    Masked,
    ReLU,
    Scale,
    Sigmoid,
    Softplus,
    SoftThreshold,
    Tanh,
)
from splitting.solve import ConvergenceWarning, Outcome, Solution, Status, solve
from splitting.solvers import (
    Anderson,
    DouglasRachford,
    ForwardBackward,
    ForwardBackwardForward,
    PeacemanRachford,
    Solver,
)
from splitting.steps import best_step, contraction_factor

__all__ = [
    "Activation",
    "Anderson",
    "Box",
    "ConvergenceWarning",
    "ConvolutionOperator",
    "DenseOperator",
    "DouglasRachford",
    "ForwardBackward",
    "ForwardBackwardForward",
    "Identity",
    "Inclusion",
    "InvalidArgument",
    "InvalidType",
    "LeakyReLU",
    "Masked",
    "MultiscaleOperator",
    "NotConverged",
    "Operator",
    "Outcome",
    "PeacemanRachford",
    "ReLU",
    "Resolvent",
    "ResolventError",
    "Scale",
    "Sigmoid",
    "SoftThreshold",
    "Softplus",
    "Solution",
    "Solver",
    "SplittingError",
    "Status",
    "Tanh",
    "best_step",
    "check_activation",
    "check_adjoint",
    "check_monotone",
    "check_resolvent",
    "contraction_factor",
    "equilibrium",
    "error_bound",
    "solve",
]
