"""The size of a map's Jacobian, estimated without forming it: what training of deep equilibria regularises."""

from __future__ import annotations

import torch
from torch import Tensor

from splitting.errors import InvalidArgument
from splitting.problems import Problem


@torch.enable_grad()
def jacobian_norm(problem: Problem, z: Tensor, *, draws: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Estimate of ‖J‖²_F for the Jacobian J = ∂T/∂z of a problem's map at z, per sample, itself differentiable.

    Hutchinson's: the mean of ‖vᵀJ‖² over `draws` standard normal v, which is unbiased, with variance 2‖JJᵀ‖²_F/draws.
    Adding it to a loss keeps an equilibrium stable and quick to solve (Bai, Koltun & Kolter 2021).

    Args:
        problem: What T is the map of.
        z: States, (batch, *state_shape), with or without a graph.
        draws: How many v, ≥ 1.
        generator: What v is drawn from, on the device of z; torch's own by default.

    Returns:
        The estimates, (batch,).

    Raises:
        InvalidArgument: If draws is no integer ≥ 1, or z has another shape than the problem's states.
        InvalidType: If z is no tensor, or of another dtype or device.
    """
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise InvalidArgument(f"`draws` must be an integer ≥ 1, got {draws!r}")
    problem.check_state("z", z)
    point = z if z.requires_grad else z.detach().requires_grad_()
    image = problem.map(point)
    total = image.new_zeros(len(image))
    for _ in range(draws):
        v = torch.randn(image.shape, generator=generator, dtype=image.dtype, device=image.device)
        (pulled,) = torch.autograd.grad(image, point, v, create_graph=True, allow_unused=True)
        if pulled is not None:
            total = total + pulled.square().flatten(1).sum(1)
    return total / draws
