"""What is left of predictions and certificates when the weights of a network move, counted in images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from mondeq import arguments
from mondeq.certificates import Report
from mondeq.weights.perturbation import Movement


@dataclass(frozen=True, eq=False)
class Survival:
    """The same images before and after.

    Args:
        before: What `certify` proved with the original weights.
        after: What it proved with the moved ones, in the same norm.
        movement: What is proved of the moved weights from the states of the original ones.
    """

    before: Report
    after: Report
    movement: Movement

    @property
    def same(self) -> Tensor:
        """For which images both exact networks are proved to predict the same class, (N,).

        It is proved from both certificates, or by the movement alone.
        """
        certified = (self.before.radius > 0) & (self.after.radius > 0)
        return (certified & (self.before.prediction == self.after.prediction)) | self.movement.same

    def kept(self, radii: Iterable[float]) -> dict[float, tuple[int, int]]:
        """How many images are certified right at r with the original weights, and of these with the moved ones too.

        Args:
            radii: Numbers r ≥ 0.

        Returns:
            {r: (before, kept)}.

        Raises:
            InvalidType: They are no list of numbers.
            InvalidArgument: One of them is none, or negative.
        """
        proved = [report.correct & (report.radius > 0) for report in (self.before, self.after)]
        found = {}
        for r in arguments.radii(radii):
            first, second = (
                p & (report.radius >= r) for p, report in zip(proved, (self.before, self.after), strict=True)
            )
            found[r] = (int(first.sum()), int((first & second).sum()))
        return found
