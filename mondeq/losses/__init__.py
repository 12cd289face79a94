"""What training minimises. One loss a file."""

from mondeq.losses.base import LOSSES, Loss, Progress, gap_estimates, margins
from mondeq.losses.margin import Margin

__all__ = ["LOSSES", "Loss", "Margin", "Progress", "gap_estimates", "margins"]
