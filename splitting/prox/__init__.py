"""Elementwise activations σ as proximal operators: σ = prox_f for a convex f, and prox_{αf} for every α > 0.

f is convex exactly when σ is nondecreasing and 1-Lipschitz (Combettes & Pesquet 2020, arXiv 1808.07526). A new
activation subclasses `Activation` and gives σ and σ′.
"""

from splitting.prox.base import Activation, Scale, Scaled, Step
from splitting.prox.elementwise import (
    Box,
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softplus,
    SoftThreshold,
    Tanh,
)
from splitting.prox.enclosure import Slopes
from splitting.prox.masked import Masked

__all__ = [
    "Activation",
    "Box",
    "Identity",
    "LeakyReLU",
    "Masked",
    "ReLU",
    "Scale",
    "Scaled",
    "Sigmoid",
    "Slopes",
    "SoftThreshold",
    "Softplus",
    "Step",
    "Tanh",
]
