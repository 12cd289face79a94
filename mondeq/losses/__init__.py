"""What training minimises. One loss a file."""

from mondeq.losses.base import LOSSES, Loss, Progress, gap_estimates, margins
from mondeq.losses.calibrated import Calibrated
from mondeq.losses.crm import Crm
from mondeq.losses.emma import Emma
from mondeq.losses.interval import Interval
from mondeq.losses.margin import Margin

__all__ = ["LOSSES", "Calibrated", "Crm", "Emma", "Interval", "Loss", "Margin", "Progress", "gap_estimates", "margins"]
