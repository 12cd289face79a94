"""Attacks on classifiers, from the Foolbox library: what an adversary finds, to hold certificates against."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from mondeq.errors import ConfigError
from mondeq.models import Classifier


def accuracy_under_attack(
    model: Classifier, images: Tensor, labels: Tensor, radii: Sequence[float], *, steps: int = 50, seed: int = 0
) -> dict[float, float]:
    """Share of images still classified right after ℓ2 projected gradient descent at each radius: an upper bound on
    robust accuracy, as certified accuracy is a lower one.

    images: (N, C, H, W) in [0, 1]; attacked images stay in that box. Raises ConfigError where Foolbox is missing.
    """
    try:
        from foolbox.attacks.projected_gradient_descent import L2ProjectedGradientDescentAttack
        from foolbox.models.pytorch import PyTorchModel
    except ImportError:
        raise ConfigError('attacks need the foolbox package: pip install "mondeq[attack]"') from None
    torch.manual_seed(seed)
    # A copy whose weights gather no gradients: the attack differentiates in the images alone.
    victim = copy.deepcopy(model).eval().requires_grad_(False)
    attack = L2ProjectedGradientDescentAttack(steps=steps, rel_stepsize=2.5 / steps)
    target = PyTorchModel(victim, bounds=(0, 1), device=images.device)
    _, _, fooled = attack(target, images, labels, epsilons=[float(r) for r in radii])
    return {float(r): float((~f).double().mean()) for r, f in zip(radii, fooled, strict=True)}
