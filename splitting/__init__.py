"""Operator splitting for 0 ∈ A z − c + ∂f(z): solve it, bound the error, differentiate the solution.

Knows torch, and nothing of neural networks.
"""

from splitting.checks import check_activation, check_adjoint, check_monotone, check_resolvent, error_bound
from splitting.errors import InvalidArgument, InvalidType, NotConverged, ResolventError, SplittingError
from splitting.implicit import Gradient, Implicit, OneStep, Unrolled, equilibrium, jacobian_norm
from splitting.operators import ConvolutionOperator, DenseOperator, MultiscaleOperator, Operator, Resolvent
from splitting.problems import FixedPoint, Inclusion, Problem
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
    Broyden,
    DouglasRachford,
    ForwardBackward,
    ForwardBackwardForward,
    Iterate,
    PeacemanRachford,
    Solver,
)
from splitting.steps import best_step, contraction_factor

__all__ = [
    "Activation",
    "Anderson",
    "Box",
    "Broyden",
    "ConvergenceWarning",
    "ConvolutionOperator",
    "DenseOperator",
    "DouglasRachford",
    "FixedPoint",
    "ForwardBackward",
    "ForwardBackwardForward",
    "Gradient",
    "Identity",
    "Implicit",
    "Inclusion",
    "InvalidArgument",
    "InvalidType",
    "Iterate",
    "LeakyReLU",
    "Masked",
    "MultiscaleOperator",
    "NotConverged",
    "OneStep",
    "Operator",
    "Outcome",
    "PeacemanRachford",
    "Problem",
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
    "Unrolled",
    "best_step",
    "check_activation",
    "check_adjoint",
    "check_monotone",
    "check_resolvent",
    "contraction_factor",
    "equilibrium",
    "error_bound",
    "jacobian_norm",
    "solve",
]
