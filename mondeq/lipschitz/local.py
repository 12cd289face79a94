"""Local Jacobians of the classifier at given images: estimates of its Lipschitz constant from below."""

from __future__ import annotations

import torch
from torch import Tensor

from mondeq import arguments
from mondeq.lipschitz.bound import Bound
from mondeq.models import Classifier, exact_copy
from mondeq.scrutiny import proving


def local_jacobian_norms(model: Classifier, images: Tensor, *, batch_size: int = 256) -> Tensor:
    """‖∂ logits/∂ image‖₂ at each image, (N,), in logits per pixel unit.

    One adjoint solve per class, in float64 to 1e-10, gives the rows of the Jacobian. At a kink of the activation it is
    the Jacobian of the selection that `derivative` makes. Raises InvalidType or InvalidArgument for images of the wrong
    kind, shape or place, and for a model that may compute something else than its weights say.
    """
    exact = exact_copy(model)
    arguments.check_images(exact.config, images)
    arguments.check_values(images, exact.device, "the classifier has no Jacobian there")
    batch_size = arguments.count("batch_size", batch_size)
    with proving(exact.device):
        return torch.cat([_jacobian_norms(exact, chunk) for chunk in images.split(batch_size)])


def local_jacobian_bound(model: Classifier, images: Tensor) -> Bound:
    """The largest local Jacobian norm over `images`: no Lipschitz constant is smaller, but for solver error."""
    value = float(local_jacobian_norms(model, images).max()) if len(images) else 0.0
    return Bound(value, "estimate", "largest local Jacobian norm", f"at {len(images)} images; a lower bound")


@torch.enable_grad()
def _jacobian_norms(model: Classifier, images: Tensor) -> Tensor:
    images = images.detach().to(model.head_weight.dtype, copy=True).requires_grad_()
    logits = model(images)
    rows = [
        torch.autograd.grad(logits[:, k].sum(), images, retain_graph=k + 1 < logits.shape[1])[0].flatten(1)
        for k in range(logits.shape[1])
    ]
    # The squared singular values of a (classes × pixels) matrix from its small Gram matrix.
    jacobian = torch.stack(rows, dim=1).double()
    return torch.linalg.eigvalsh(jacobian @ jacobian.mT)[:, -1].clamp_min(0).sqrt()
