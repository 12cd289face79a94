"""The dense equilibrium layer as its paper describes it: Winston & Kolter 2020, arXiv 2006.08591.

z = σ(Wz + Ux + b), W = (1 − m)I − FᵀF + Gᵀ − G, σ = ReLU, by Peaceman–Rachford splitting with α = 1. Nothing is
shared with `splitting` or `mondeq`, and nothing is made slower than the description needs: plain torch throughout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TextbookLayer(nn.Module):
    """x (batch, in_features) ↦ z (batch, features).

    Every forward pass assembles W, inverts I + α(I − W) by LU, iterates until the relative change ‖z⁺ − z‖/‖z⁺‖ of
    the whole batch is ≤ tol, reading both norms at every step, and applies W once more where the graph is recorded:
    two products for FᵀFz, one for Gᵀz and one for Gz. A hook on the result solves the adjoint equation the same way.
    forward_steps, backward_steps: how many steps the last passes took.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        m: float = 1.0,
        *,
        alpha: float = 1.0,
        tol: float = 1e-2,
        max_steps: int = 500,
    ) -> None:
        super().__init__()
        self.U = nn.Linear(in_features, features)
        self.F = nn.Linear(features, features, bias=False)
        self.G = nn.Linear(features, features, bias=False)
        self.m, self.alpha, self.tol, self.max_steps = m, alpha, tol, max_steps
        self.forward_steps = self.backward_steps = 0

    def forward(self, x: Tensor) -> Tensor:
        source = self.U(x)
        with torch.no_grad():
            inverse = self._inverse()
            z = self._solve(source, inverse)
        z = (source + self._multiply(z)).relu()
        if z.requires_grad:
            derivative = (z.detach() > 0).to(z.dtype)
            z.register_hook(lambda g: self._implicit(g, derivative, inverse))
        return z

    def _multiply(self, z: Tensor) -> Tensor:
        """W z"""
        return (1 - self.m) * z - self.F(z) @ self.F.weight + z @ self.G.weight - self.G(z)

    def _multiply_transposed(self, g: Tensor) -> Tensor:
        """Wᵀ g"""
        return (1 - self.m) * g - self.F(g) @ self.F.weight - g @ self.G.weight + self.G(g)

    def _inverse(self) -> Tensor:
        """(I + α(I − W))⁻¹"""
        F, G = self.F.weight, self.G.weight
        identity = torch.eye(len(F), dtype=F.dtype, device=F.device)
        W = (1 - self.m) * identity - F.T @ F + G.T - G
        return torch.linalg.inv((1 + self.alpha) * identity - self.alpha * W)

    def _solve(self, source: Tensor, inverse: Tensor) -> Tensor:
        z = u = torch.zeros_like(source)
        change, self.forward_steps = float("inf"), 0
        while change > self.tol and self.forward_steps < self.max_steps:
            reflected = 2 * z - u
            u = 2 * ((reflected + self.alpha * source) @ inverse.T) - reflected
            previous, z = z, u.relu()
            change, self.forward_steps = _relative_change(z, previous), self.forward_steps + 1
        return z

    @torch.no_grad()
    def _implicit(self, g: Tensor, derivative: Tensor, inverse: Tensor) -> Tensor:
        """g + Wᵀq with q = D(Wᵀq + g), D = σ′: the gradient that z must receive instead of g."""
        excess = (1 - derivative) / derivative  # infinite where the unit is off
        off = derivative == 0
        start = derivative * g
        q = u = torch.zeros_like(g)
        change, self.backward_steps = float("inf"), 0
        while change > self.tol and self.backward_steps < self.max_steps:
            reflected = 2 * q - u
            u = 2 * (reflected @ inverse) - reflected
            previous, q = q, (u + self.alpha * (1 + excess) * start) / (1 + self.alpha * excess)
            q[off] = start[off]
            change, self.backward_steps = _relative_change(q, previous), self.backward_steps + 1
        return g + self._multiply_transposed(q)


def _relative_change(new: Tensor, old: Tensor) -> float:
    """‖new − old‖/‖new‖ over the whole batch, on the host."""
    return (new - old).norm().item() / (1e-6 + new.norm().item())
