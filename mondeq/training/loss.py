"""The certificate-aware loss: cross-entropy after an adversary moved the logits as far as the bound lets it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mondeq.models import Classifier
from mondeq.parameterizations import LipschitzDense, StronglyMonotone


def margin_loss(logits: Tensor, labels: Tensor, constants: Tensor, radius: float, scale: float) -> Tensor:
    """Cross-entropy of scale·(y_j + radius·L_{label,j}), with L = `constants` (classes, classes), zero diagonal.

    It is small only where every gap y_label − y_j exceeds radius·L_{label,j}, that is where the prediction is
    certified at `radius` (Tsuzuku, Sato & Sugiyama 2018, with constants per pair). radius 0 is plain cross-entropy.
    """
    return functional.cross_entropy(scale * (logits + radius * constants[labels]), labels)


def training_constants(model: Classifier) -> Tensor:
    """Gap constants (classes, classes) differentiable in the weights, in logits per pixel unit.

    Estimates in floating point that steer training; certificates are computed by `mondeq.lipschitz` afterwards.
    LipschitzDense: √2 γ for every pair, by construction. Others: ‖(w_i − w_j) P‖ ‖U diag(1/std)‖₂/m.
    """
    linear = model.linear
    if isinstance(linear, LipschitzDense):
        gamma = linear.gamma / min(model.config.std)
        eye = torch.eye(model.config.classes, device=linear.U.device, dtype=linear.U.dtype)
        return math.sqrt(2) * gamma * (1 - eye)
    if isinstance(linear, StronglyMonotone):
        input_gain = linear.input_norm_estimate(model.pixel_scale()) / linear.m
        # The diagonal is 0; the tiny term keeps its square root differentiable.
        distances = (model.head_weight[:, None] - model.head_weight[None]).square().sum(-1).add(1e-30).sqrt()
        return distances * model.features.gain * input_gain
    raise TypeError(f"no training constants are known for {type(linear).__name__}")
