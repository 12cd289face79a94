"""Monotone operator equilibrium networks: solved, trained, bounded and certified."""

from mondeq.certify import Report, certify
from mondeq.errors import ConfigError, DataError, MondeqError, RunError, TrainingError
from mondeq.layer import EquilibriumLayer
from mondeq.lipschitz import Bound, lipschitz_bounds, local_jacobian_norms
from mondeq.models import Classifier, ModelConfig
from mondeq.parameterizations import Dense, LipschitzDense, Parameterization
from mondeq.runs import load, save

__version__ = "0.1.0"

__all__ = [
    "Bound",
    "Classifier",
    "ConfigError",
    "DataError",
    "Dense",
    "EquilibriumLayer",
    "LipschitzDense",
    "ModelConfig",
    "MondeqError",
    "Parameterization",
    "Report",
    "RunError",
    "TrainingError",
    "certify",
    "lipschitz_bounds",
    "load",
    "local_jacobian_norms",
    "save",
]
