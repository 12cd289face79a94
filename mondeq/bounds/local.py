"""Local Jacobians of the classifier at given images: estimates of its Lipschitz constant from below."""

from __future__ import annotations

import torch
from torch import Tensor

from mondeq import arguments
from mondeq.bounds.base import Bound
from mondeq.modes import proving
from mondeq.network import Network, exact_copy


def local_jacobian_norms(model: Network, images: Tensor, *, batch_size: int = 256) -> Tensor:
    """‖∂ logits/∂ image‖₂ at each image, in logits per pixel unit.

    One adjoint solve per class, in float64 to 1e-10, gives the rows of the Jacobian. At a kink of the activation it is
    the Jacobian of the selection that `derivative` makes.

    Args:
        model: Any network.
        images: (N, *in_shape), floating point.
        batch_size: Images at a time.

    Returns:
        The norms, (N,).

    Raises:
        InvalidType: Images are of the wrong kind or elsewhere than the weights, or the model may compute something else
            than its pieces say.
        InvalidArgument: Images have the wrong shape or are not finite, or the model may compute something else than its
            pieces say.
    """
    exact = exact_copy(model)
    arguments.check_images(exact.in_shape, images)
    arguments.check_values(images, exact.device, "the classifier has no Jacobian there")
    batch_size = arguments.count("batch_size", batch_size)
    with proving(exact.device):
        return torch.cat([_jacobian_norms(exact, chunk) for chunk in images.split(batch_size)])


def local_jacobian_bound(model: Network, images: Tensor) -> Bound:
    """The largest local Jacobian norm over images: no Lipschitz constant is smaller, but for solver error.

    Args:
        model: Any network.
        images: (N, *in_shape), floating point.

    Returns:
        An estimate, 0 where there are no images.

    Raises:
        InvalidType: As `local_jacobian_norms` says.
        InvalidArgument: As `local_jacobian_norms` says.
    """
    value = float(local_jacobian_norms(model, images).max()) if len(images) else 0.0
    return Bound(value, "estimate", "largest local Jacobian norm", f"at {len(images)} images; a lower bound")


@torch.enable_grad()
def _jacobian_norms(model: Network, images: Tensor) -> Tensor:
    images = images.detach().to(model.dtype, copy=True).requires_grad_()
    logits = model(images)
    rows = [
        torch.autograd.grad(logits[:, k].sum(), images, retain_graph=k + 1 < logits.shape[1])[0].flatten(1)
        for k in range(logits.shape[1])
    ]
    # The squared singular values of a (classes × pixels) matrix from its small Gram matrix.
    jacobian = torch.stack(rows, dim=1).double()
    return torch.linalg.eigvalsh(jacobian @ jacobian.mT)[:, -1].clamp_min(0).sqrt()
