"""Equilibria with the read-out that their parameterization is made for: Lipschitz for every value of their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mondeq.norms import Ball, Box, Norm
from mondeq.parameterizations import Readable
from mondeq.pieces.base import PIECES, Proof, Unproved
from mondeq.pieces.equilibrium import EquilibriumLayer, EquilibriumProof, EquilibriumSettings
from mondeq.pieces.linear import LinearProof, linear_box, linear_gaps, scaled_radius
from splitting import InvalidType, verified


@PIECES.enrol("readout")
class ReadoutLayer(EquilibriumLayer):
    """y = C z + d with z = σ(Wz + Ux + b), for a parameterization such as mondeq.LipschitzDense or LipschitzConv2d.

    `solve` gives the state z.

    Args:
        linear: The parameterization.
        *arguments: Activation, solver, tol and max_steps, as those of EquilibriumLayer.
        **options: Those and the other options of EquilibriumLayer, by name.

    Raises:
        InvalidType: `linear` has no read-out of its own, or activation or solver is none.
        InvalidArgument: A tolerance or number of steps is out of range.
    """

    linear: Readable

    def __init__(self, linear: Readable, *arguments: object, **options: object) -> None:
        if not isinstance(linear, Readable):
            raise InvalidType(
                f"`linear` must have a read-out of its own, like mondeq.LipschitzDense, got {type(linear).__name__}"
            )
        super().__init__(linear, *arguments, **options)  # type: ignore[arg-type]  # checked there

    def forward(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        """The read-outs of inputs, differentiable in the inputs and the weights.

        Args:
            x: Inputs (batch, …).
            initial: States to start from, one per sample.

        Returns:
            y, (batch, …).

        Raises:
            InvalidType: Inputs or states have another type, dtype or device than the weights.
            InvalidArgument: They have another shape.
            NotConverged: A sample misses the tolerance and `on_failure` is "raise".
        """
        return self.linear.read(self._state(x, initial))

    @classmethod
    def example(cls) -> tuple[EquilibriumSettings, torch.Size]:
        parameterization = {"kind": "lipschitz-dense", "features": 5, "out_features": 3, "gamma": 2.0}
        return EquilibriumSettings(parameterization=parameterization), torch.Size((4,))

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        self.linear.check_inputs(in_shape)
        return self.linear.out_shape

    def entries(self, in_shape: torch.Size) -> int:
        return max(self.linear.state_shape.numel(), self.linear.out_shape.numel())

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        readout = self.linear.readout
        if readout is None:
            return [_ReadoutProof(self, norm, in_shape)]
        state = EquilibriumProof(self, norm, in_shape)
        return [state, LinearProof(*readout, state.norm)]

    def lipschitz_estimate(self, norm: Norm, in_shape: torch.Size) -> tuple[float, Norm]:
        return self.linear.gain * norm.euclidean(), Norm()

    def box_estimate(self, box: Box) -> Box:
        return linear_box(*self._matrix(), super().box_estimate(box))

    def least_gap_estimates(self, box: Box, chosen: Tensor) -> Tensor:
        return linear_gaps(*self._matrix(), super().box_estimate(box), chosen)

    def _matrix(self) -> tuple[Tensor, Tensor]:
        readout = self.linear.readout
        if readout is None:
            raise Unproved("has a read-out that is no matrix, and knows no boxes")
        return readout


class _ReadoutProof(Proof):
    """‖Δy‖ ≤ γ‖Δx‖, for a read-out C that A contains as CᵀC/(2γ)."""

    def __init__(self, layer: ReadoutLayer, norm: Norm, in_shape: torch.Size) -> None:
        self.state = EquilibriumProof(layer, Norm(), in_shape)
        self.linear, self.norm, self.out_shape = layer.linear, Norm(), layer.linear.out_shape
        self.reserve, self.gamma = self.linear.reserve(), self.linear.gain
        self.constant = verified.round_up(self.gamma * norm.euclidean()) if self.reserve > 0 else float("inf")

    def enclose(self, ball: Ball) -> Ball:
        z, own = self.state.solved_for_readout(ball.centre, self.reserve, self.gamma)
        own = (own + self.linear.read_rounding(z)) * (1 + 1e-12)
        return Ball(self.linear.read(z), scaled_radius(self.constant, ball.radius) + own, self.norm)
