"""Training: configuration, loop, checkpoints, recipes."""

from mondeq.training.config import TrainingConfig
from mondeq.training.progress import Epoch
from mondeq.training.trainer import Trainer

__all__ = ["Epoch", "Trainer", "TrainingConfig"]
