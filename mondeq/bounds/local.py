"""Local Jacobians of the classifier, at given images and where gradient ascent leads from there: estimates from below.

The Jacobian of a ReLU network is constant between kinks, so that its norm has no gradient. What is climbed instead is
‖y(x + rd) − y(x − rd)‖/(2r), its mean along a segment, with r becoming smaller.
"""

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
    """The largest local Jacobian norm over images and what they lead to: no Lipschitz constant is smaller.

    It is made smaller by `SOLVED`, more than solves are off by. From the `STARTS` images of the largest norms a
    gradient ascent goes on, anywhere in pixel space, as the bounds have it.

    Args:
        model: Any network.
        images: (N, *in_shape), floating point.

    Returns:
        An estimate, 0 where there are no images.

    Raises:
        InvalidType: As `local_jacobian_norms` says.
        InvalidArgument: As `local_jacobian_norms` says.
    """
    value, found = 0.0, local_jacobian_norms(model, images) if len(images) else images.new_zeros(0)
    if len(images):
        starts = images[found.topk(min(STARTS, len(images))).indices.to(images.device)]
        climbed = local_jacobian_norms(model, _ascend(model, starts))
        value = max(float(found.max()), float(climbed.max())) * (1 - SOLVED)
    assumptions = f"at {len(images)} images and by ascent from {min(STARTS, len(images))} of them; a lower bound"
    return Bound(value, "estimate", "largest local Jacobian norm", assumptions)


STARTS = 8
"""From how many images the ascent starts."""
SOLVED = 1e-7
"""What an estimate is made smaller by, relatively: solves are not exact, and bounds may be."""
_STEPS, _RADII, _SEARCH_TOL, _SEARCH_MAX_STEPS = 20, (2.0, 0.2), 1e-4, 100


def _ascend(model: Network, images: Tensor) -> Tensor:
    """Inputs near images at which the network is steeper: up the mean slope along segments x ± rd that turn with it."""
    exact = exact_copy(model)
    for layer in exact.solved():  # a search needs directions only
        layer.tol = layer.backward_tol = _SEARCH_TOL
        layer.max_steps, layer.on_failure = _SEARCH_MAX_STEPS, "return"
    with proving(exact.device):
        x = images.detach().to(exact.dtype, copy=True)
        generator = torch.Generator().manual_seed(0)
        d = _directions(torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device))
        for step in range(_STEPS):
            r = _RADII[0] * (_RADII[1] / _RADII[0]) ** (step / (_STEPS - 1))
            ahead, behind = _slopes(exact, x + r * d, x - r * d)
            d, x = _directions(ahead + behind), x + r / 2 * _directions(ahead - behind)
        return x


@torch.enable_grad()
def _slopes(model: Network, ahead: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
    """Jᵀu at both ends of segments, u the direction of the difference of the logits."""
    ends = torch.cat([ahead, behind]).requires_grad_()
    first, second = model(ends).chunk(2)
    (gradient,) = torch.autograd.grad((first - second).norm(dim=1).sum(), ends)
    at_first, at_second = gradient.chunk(2)
    return at_first, -at_second


def _directions(x: Tensor) -> Tensor:
    """Samples of length 1; 0 where they are 0."""
    return torch.nn.functional.normalize(x.flatten(1), dim=1).view_as(x)


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
