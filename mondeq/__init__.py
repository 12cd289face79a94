"""Monotone operator equilibrium networks: solved, trained, bounded and certified."""

from mondeq.certify import Report, certify
from mondeq.equilibrium import Equilibrium
from mondeq.errors import ConfigError, DataError, MondeqError, RunError, TrainingError
from mondeq.layer import EquilibriumLayer
from mondeq.lipschitz import Bound, lipschitz_bounds, local_jacobian_norms
from mondeq.models import Classifier, ModelConfig
from mondeq.original import load_original_checkpoint
from mondeq.parameterizations import Conv2d, Dense, LipschitzDense, MultiscaleConv2d, Parameterization
from mondeq.runs import load, save

__version__ = "0.1.0"

__all__ = [
    "Bound",
    "Classifier",
    "ConfigError",
    "Conv2d",
    "DataError",
    "Dense",
    "Equilibrium",
    "EquilibriumLayer",
    "LipschitzDense",
    "ModelConfig",
    "MondeqError",
    "MultiscaleConv2d",
    "Parameterization",
    "Report",
    "RunError",
    "TrainingError",
    "certify",
    "lipschitz_bounds",
    "load",
    "load_original_checkpoint",
    "local_jacobian_norms",
    "save",
]
