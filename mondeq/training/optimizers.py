"""What moves the weights: Adam, AdamW, and Muon for matrices and filters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from mondeq.network import Network
from mondeq.pieces import SolvedPiece

# Of Muon: what is kept of the momentum at a step, and the size of a step beside one of Adam.
_MOMENTUM, _MATCHED = 0.95, 0.2
# Five steps of s ↦ as + bs³ + cs⁵ move singular values from [1/500, 1] into [0.68, 1.21] (Jordan et al., 2024).
_STEPS, _A, _B, _C = 5, 3.4445, -4.7750, 2.0315


class Muon(Optimizer):
    """Momentum whose singular values are made equal: M ← βM + (1 − β)∇, w ← w − 0.2 √d η UVᵀ with (1 − β)∇ + βM = UΣVᵀ.

    A weight of the shape (n, …) is the matrix of n rows, d is its larger side. The factor 0.2 √d gives a step the size
    that Adam's has, so that one learning rate η serves both (Liu et al., arXiv:2502.16982). The method is that of
    Jordan et al. (2024), https://kellerjordan.github.io/posts/muon. `torch.optim.Muon` takes matrices alone and works
    in bfloat16, which most processors imitate: this one takes filters and works in the type of the weight.

    Args:
        weights: Tensors of at least two dimensions.
        lr: Learning rate η > 0.
        weight_decay: λ ≥ 0: before each step, w ← (1 − ηλ) w.
    """

    def __init__(self, weights: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every weight that has a gradient.

        Args:
            closure: Computes the loss and the gradients once more.

        Returns:
            What `closure` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group["lr"], group["weight_decay"])
        return loss

    def _move(self, weight: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["step"], state["exp_avg"] = torch.zeros((), device="cpu"), torch.zeros_like(weight)
        state["step"] += 1
        momentum = state["exp_avg"].lerp_(gradient, 1 - _MOMENTUM)
        ahead = orthogonalised(gradient.lerp(momentum, _MOMENTUM).flatten(1))
        weight.mul_(1 - lr * weight_decay)
        weight.add_(ahead.reshape(weight.shape), alpha=-lr * _MATCHED * max(ahead.shape) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """UΣ′Vᵀ for the matrix UΣVᵀ, with Σ′ about the identity: what is far below the largest value stays small.

    Args:
        matrix: (n, k), any. Of zeros it stays zeros.

    Returns:
        (n, k). Singular values of at least 1/500 of the matrix's Frobenius norm come to lie in [0.68, 1.21].
    """
    rows, columns = matrix.shape
    x = matrix.mT if rows > columns else matrix
    x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if rows > columns else x


def _adam(model: Network, lr: float, weight_decay: float) -> list[Optimizer]:
    return [Adam(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)]


def _adamw(model: Network, lr: float, weight_decay: float) -> list[Optimizer]:
    return [AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)]


def _muon(model: Network, lr: float, weight_decay: float) -> list[Optimizer]:
    """Muon for matrices and filters, AdamW for biases, scales and a last layer that only maps features to logits."""
    last = [piece for piece in model.children() if any(True for _ in piece.parameters())][-1]
    head = set() if isinstance(last, SolvedPiece) else set(last.parameters())
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2 and weight not in head]
    others = [weight for weight in model.parameters() if weight.ndim < 2 or weight in head]
    found: list[Optimizer] = [Muon(matrices, lr, weight_decay)] if matrices else []
    return found + ([AdamW(others, lr=lr, weight_decay=weight_decay, fused=True)] if others else [])


# What makes the optimisers of a network, of a learning rate and a weight decay.
OPTIMIZERS: dict[str, Callable[[Network, float, float], list[Optimizer]]] = {
    "adam": _adam,
    "adamw": _adamw,
    "muon": _muon,
}
# What each kind keeps of a weight besides its count of steps.
MOMENTS: dict[type[Optimizer], tuple[str, ...]] = {
    Adam: ("exp_avg", "exp_avg_sq"),
    AdamW: ("exp_avg", "exp_avg_sq"),
    Muon: ("exp_avg",),
}
