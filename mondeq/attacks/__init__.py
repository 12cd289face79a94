"""Attacks on classifiers: how near an adversary finds an image of another class, to hold certificates against."""

from mondeq.attacks.base import ATTACKS, Attack, Target, prepared
from mondeq.attacks.cross_entropy import CrossEntropyDescent
from mondeq.attacks.decision import DecisionBased
from mondeq.attacks.geometry import GEOMETRIES, Geometry
from mondeq.attacks.margin import MarginDescent
from mondeq.attacks.minimum_norm import MinimumNorm
from mondeq.attacks.nearest import (
    Adversarials,
    AttackedAccuracy,
    accuracy_under_attack,
    nearest_adversarials,
    standing,
    violations,
)

__all__ = [
    "ATTACKS",
    "GEOMETRIES",
    "Adversarials",
    "Attack",
    "AttackedAccuracy",
    "CrossEntropyDescent",
    "DecisionBased",
    "Geometry",
    "MarginDescent",
    "MinimumNorm",
    "Target",
    "accuracy_under_attack",
    "nearest_adversarials",
    "prepared",
    "standing",
    "violations",
]
