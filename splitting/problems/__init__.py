"""What is solved: inclusions 0 ∈ A z − c + ∂f(z), about which everything is proved, and general fixed points."""

from splitting.problems.base import Extent, Problem
from splitting.problems.fixed_point import FixedPoint
from splitting.problems.inclusion import Inclusion

__all__ = ["Extent", "FixedPoint", "Inclusion", "Problem"]
