"""Monotone operator equilibrium networks: solved, trained, bounded and certified."""

from mondeq.bounds import BOUNDS, Bound, BoundMethod, lipschitz_bounds, local_jacobian_norms
from mondeq.certificates import CERTIFICATES, Certificate, Certifier, Report, certify
from mondeq.data import DATASETS, Dataset
from mondeq.errors import ConfigError, DataError, MondeqError, RunError, TrainingError
from mondeq.losses import LOSSES, Loss
from mondeq.network import Network
from mondeq.norms import NORMS, Ball, Box, Norm
from mondeq.original import load_original_checkpoint
from mondeq.parameterizations import (
    PARAMETERIZATIONS,
    Conv2d,
    Dense,
    DenseInput,
    IntervalDense,
    LipschitzConv2d,
    LipschitzDense,
    MultiscaleConv2d,
    Parameterization,
    ReflectedConv2d,
    ReflectedDense,
)
from mondeq.pieces import (
    PIECES,
    AveragePool,
    Crop,
    Entries,
    Equilibrium,
    EquilibriumLayer,
    GroupSort,
    Normalise,
    NormalisedLinear,
    PadChannels,
    Piece,
    Proof,
    ReadoutLayer,
    ResidualLayer,
)
from mondeq.presets import PRESETS, Classifier, ModelConfig
from mondeq.quantisation import quantised
from mondeq.registry import Registry
from mondeq.runs import load, save, save_quantised
from mondeq.settings import Settings, setting
from mondeq.solving import ACTIVATIONS, SOLVERS
from mondeq.weights import (
    Comparison,
    GeneralisationBound,
    Movement,
    Survival,
    generalisation_bound,
    movement,
    state_movement,
)

__version__ = "0.1.0"

__all__ = [
    "ACTIVATIONS",
    "BOUNDS",
    "CERTIFICATES",
    "DATASETS",
    "LOSSES",
    "NORMS",
    "PARAMETERIZATIONS",
    "PIECES",
    "PRESETS",
    "SOLVERS",
    "AveragePool",
    "Ball",
    "Bound",
    "BoundMethod",
    "Box",
    "Certificate",
    "Certifier",
    "Classifier",
    "Comparison",
    "ConfigError",
    "Conv2d",
    "Crop",
    "DataError",
    "Dataset",
    "Dense",
    "DenseInput",
    "Entries",
    "Equilibrium",
    "EquilibriumLayer",
    "GeneralisationBound",
    "GroupSort",
    "IntervalDense",
    "LipschitzConv2d",
    "LipschitzDense",
    "Loss",
    "ModelConfig",
    "MondeqError",
    "Movement",
    "MultiscaleConv2d",
    "Network",
    "Norm",
    "Normalise",
    "NormalisedLinear",
    "PadChannels",
    "Parameterization",
    "Piece",
    "Proof",
    "ReadoutLayer",
    "ReflectedConv2d",
    "ReflectedDense",
    "Registry",
    "Report",
    "ResidualLayer",
    "RunError",
    "Settings",
    "Survival",
    "TrainingError",
    "certify",
    "generalisation_bound",
    "lipschitz_bounds",
    "load",
    "load_original_checkpoint",
    "local_jacobian_norms",
    "movement",
    "quantised",
    "save",
    "save_quantised",
    "setting",
    "state_movement",
]
