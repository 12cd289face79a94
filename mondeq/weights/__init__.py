"""What networks do when their weights move: proved bounds, and what follows from them."""

from mondeq.weights.generalisation import GeneralisationBound, generalisation_bound
from mondeq.weights.perturbation import Comparison, Movement, movement, state_movement
from mondeq.weights.survival import Survival

__all__ = [
    "Comparison",
    "GeneralisationBound",
    "Movement",
    "Survival",
    "generalisation_bound",
    "movement",
    "state_movement",
]
