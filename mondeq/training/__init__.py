"""Training: configuration, loss, loop, checkpoints, recipes."""

from mondeq.training.config import TrainingConfig
from mondeq.training.loss import margin_loss, training_constants
from mondeq.training.progress import Epoch
from mondeq.training.trainer import Trainer

__all__ = ["Epoch", "Trainer", "TrainingConfig", "margin_loss", "training_constants"]
