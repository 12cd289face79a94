"""Splitting methods, one per file. Each is a frozen value; `splitting.solve` runs it."""

from splitting.solvers.anderson import Anderson
from splitting.solvers.base import Iteration, Solver, State, SteppedSolver
from splitting.solvers.broyden import Broyden
from splitting.solvers.forward_backward import ForwardBackward
from splitting.solvers.forward_backward_forward import ForwardBackwardForward
from splitting.solvers.iterate import Iterate
from splitting.solvers.peaceman_rachford import DouglasRachford, PeacemanRachford

__all__ = [
    "Anderson",
    "Broyden",
    "DouglasRachford",
    "ForwardBackward",
    "ForwardBackwardForward",
    "Iterate",
    "Iteration",
    "PeacemanRachford",
    "Solver",
    "State",
    "SteppedSolver",
]
