"""What a network is made of. One file each: settings, arithmetic, proofs."""

from mondeq.pieces.base import (
    PIECES,
    Adapter,
    Arithmetic,
    Blocks,
    Logits,
    Piece,
    Proof,
    Unproved,
    arithmetic,
)
from mondeq.pieces.embed import PadChannels
from mondeq.pieces.equilibrium import EquilibriumLayer, EquilibriumProof
from mondeq.pieces.fixed_point import Equilibrium
from mondeq.pieces.linear import LinearProof, NormalisedLinear, scaled_radius
from mondeq.pieces.normalise import Normalise
from mondeq.pieces.pointwise import GroupSort
from mondeq.pieces.pool import AveragePool
from mondeq.pieces.readout import ReadoutLayer
from mondeq.pieces.reshape import Crop, Entries
from mondeq.pieces.residual import ResidualLayer
from mondeq.pieces.solved import SolvedPiece

__all__ = [
    "PIECES",
    "Adapter",
    "Arithmetic",
    "AveragePool",
    "Blocks",
    "Crop",
    "Entries",
    "Equilibrium",
    "EquilibriumLayer",
    "EquilibriumProof",
    "GroupSort",
    "LinearProof",
    "Logits",
    "Normalise",
    "NormalisedLinear",
    "PadChannels",
    "Piece",
    "Proof",
    "ReadoutLayer",
    "ResidualLayer",
    "SolvedPiece",
    "Unproved",
    "arithmetic",
    "scaled_radius",
]
