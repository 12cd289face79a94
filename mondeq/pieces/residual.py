"""Residual layers y = x − Uᵀz on a reflected parameterization: 1-Lipschitz for every weight, nearly isometries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mondeq.norms import Ball, Box, Norm
from mondeq.parameterizations import Reflected
from mondeq.pieces.base import PIECES, Proof, Unproved
from mondeq.pieces.equilibrium import EquilibriumLayer, EquilibriumProof, EquilibriumSettings
from mondeq.pieces.linear import scaled_radius
from splitting import InvalidArgument, InvalidType, verified


@PIECES.enrol("residual")
class ResidualLayer(EquilibriumLayer):
    """y = x − Uᵀz with z = σ(Wz + Ux + b), for a reflected parameterization such as mondeq.ReflectedConv2d.

    It is 1-Lipschitz for every value of the weights: ‖Δy‖² ≤ ‖Δx‖² − 2m‖Δz‖². `solve` gives the state z.

    Args:
        linear: The parameterization.
        *arguments: Activation, solver, tol and max_steps, as those of EquilibriumLayer.
        **options: Those and the other options of EquilibriumLayer, by name.

    Raises:
        InvalidType: `linear` is no reflected parameterization, or activation or solver is none.
        InvalidArgument: A tolerance or number of steps is out of range.
    """

    linear: Reflected

    def __init__(self, linear: Reflected, *arguments: object, **options: object) -> None:
        if not isinstance(linear, Reflected):
            raise InvalidType(f"`linear` must be one such as mondeq.ReflectedDense, got {type(linear).__name__}")
        super().__init__(linear, *arguments, **options)  # type: ignore[arg-type]  # checked there

    def forward(self, x: Tensor, initial: Tensor | None = None) -> Tensor:
        """The reflected inputs, differentiable in the inputs and the weights.

        Args:
            x: Inputs (batch, *in_shape).
            initial: States to start from, one per sample.

        Returns:
            y, shaped like x.

        Raises:
            InvalidType: Inputs or states have another type, dtype or device than the weights.
            InvalidArgument: They have another shape.
            NotConverged: A sample misses the tolerance and `on_failure` is "raise".
        """
        return x - self.linear.pull(self._state(x, initial))

    @classmethod
    def example(cls) -> tuple[EquilibriumSettings, torch.Size]:
        parameterization = {"kind": "reflected-conv2d", "hidden": 3, "m": 0.1}
        return EquilibriumSettings(parameterization=parameterization), torch.Size((2, 4, 3))

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        if tuple(in_shape) != tuple(self.linear.in_shape):
            raise InvalidArgument(f"takes samples of shape {tuple(self.linear.in_shape)}, got {tuple(in_shape)}")
        return in_shape

    def entries(self, in_shape: torch.Size) -> int:
        return max(self.linear.state_shape.numel(), in_shape.numel())

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        return [_ResidualProof(self, norm, in_shape)]

    def box_estimate(self, box: Box) -> Box:
        raise Unproved("is a ResidualLayer, which knows no boxes")

    def lipschitz_estimate(self, norm: Norm, in_shape: torch.Size) -> tuple[Tensor | float, Norm]:
        return norm.euclidean(), Norm()


class _ResidualProof(Proof):
    """‖Δy‖ ≤ ‖Δx‖; errors of Uᵀz are those of a read-out that A contains, with γ = 1."""

    def __init__(self, layer: ResidualLayer, norm: Norm, in_shape: torch.Size) -> None:
        self.state = EquilibriumProof(layer, Norm(), in_shape)
        self.linear, self.norm, self.out_shape = layer.linear, Norm(), in_shape
        self.reserve = self.linear.reserve()
        self.constant = norm.euclidean() if self.reserve > 0 else float("inf")

    def enclose(self, ball: Ball) -> Ball:
        x = ball.centre
        z, own = self.state.solved_for_readout(x, self.reserve, 1.0)
        pulled = self.linear.pull(z)
        rounding = 4 * verified.rounding_factor(1) * (verified.vector_norm(x) + verified.vector_norm(pulled))
        rounding = rounding + self.linear.pull_rounding(z)
        return Ball(x - pulled, scaled_radius(self.constant, ball.radius) + (own + rounding) * (1 + 1e-12), self.norm)
