"""Gradients of general fixed points: q = Jᵀq + g with J = ∂f/∂z at z*, solved by the same loop; ∂ℓ/∂θ = (∂f/∂θ)ᵀ q.

q is itself a fixed point, of a linear map that is made of z*, x and the parameters of f. So it can be differentiated in
the same way, and derivatives of every order follow, with the memory of one application of f each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from splitting.context import uncompiled
from splitting.errors import InvalidArgument
from splitting.implicit.base import Options, differentiable
from splitting.problems import FixedPoint


@differentiable.register
@uncompiled
def _(problem: FixedPoint, options: Options) -> Tensor:
    if torch.is_grad_enabled() and not any(t.requires_grad for t in problem.tensors):
        _check_declared(problem.map(problem.like), problem.tensors)
    result: Tensor = _Implicit.apply(problem, options, *problem.tensors)  # type: ignore[no-untyped-call]  # untyped in torch
    return result


class _Implicit(torch.autograd.Function):
    """z* as a function of the tensors of its problem."""

    @staticmethod
    def forward(problem: FixedPoint, options: Options, *tensors: Tensor) -> Tensor:
        # What a method starts from may be what it returns, and that is the caller's.
        return options.solve(problem.frozen()).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.problem, ctx.options, *tensors = inputs
        ctx.save_for_backward(output, *tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, *tensors = ctx.saved_tensors
        adjoint = _Transposed.of(ctx.problem, z, tensors, g)
        q = differentiable(adjoint, ctx.options.of_adjoint())
        wanted = [i for i, needs in enumerate(ctx.needs_input_grad[2:]) if needs]
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            # z is held fixed: what it contributes is in q. So is each tensor while another is varied.
            places = _places(tensors, recorded)
            image = ctx.problem.at(z if recorded else z.detach(), places)
        _check_declared(image, (z, *places))
        found = torch.autograd.grad(image, [places[i] for i in wanted], q, create_graph=recorded, allow_unused=True)
        gradients: list[Tensor | None] = [None] * len(tensors)
        for i, gradient in zip(wanted, found, strict=True):
            gradients[i] = gradient
        return None, None, *gradients


@dataclass(frozen=True, eq=False)
class _Transposed(FixedPoint):
    """q = Jᵀq + g with J = ∂f/∂z of `problem` at z: a function of g, z and the tensors of the problem."""

    problem: FixedPoint = field(kw_only=True)

    @staticmethod
    def of(problem: FixedPoint, z: Tensor, tensors: Sequence[Tensor], g: Tensor) -> _Transposed:
        def transposed(q: Tensor, g: Tensor, z: Tensor, *tensors: Tensor) -> Tensor:
            recorded = torch.is_grad_enabled()
            with torch.enable_grad():
                (point,) = _places([z], recorded)
                image = problem.at(point, tensors)
            return _pulled(image, point, q, create_graph=recorded) + g

        return _Transposed(transposed, g, torch.zeros_like(g), (z, *tensors), problem=problem)

    def frozen(self) -> FixedPoint:
        """The graph of f at z is made once for all steps."""
        z, *tensors = (t.detach() for t in self.parameters)
        with torch.enable_grad():
            z.requires_grad_()
            image = self.problem.at(z, tensors)
        return FixedPoint(lambda q, g: _pulled(image, z, q) + g, self.source.detach(), self.like)


def _pulled(image: Tensor, point: Tensor, q: Tensor, *, create_graph: bool = False) -> Tensor:
    """Jᵀq for J = ∂image/∂point."""
    if not image.requires_grad:
        return torch.zeros_like(q)
    (pulled,) = torch.autograd.grad(image, point, q, retain_graph=True, create_graph=create_graph, allow_unused=True)
    return torch.zeros_like(q) if pulled is None else pulled


def _places(tensors: Sequence[Tensor], recorded: bool) -> list[Tensor]:
    """The same values, each cut off from the history that it may share with others; part of the graph if `recorded`."""
    return [
        t.view_as(t) if recorded and t.requires_grad else t.detach().requires_grad_(t.is_floating_point())
        for t in tensors
    ]


def _check_declared(image: Tensor, known: Sequence[Tensor]) -> None:
    """Raise InvalidArgument if `image` depends on a leaf that requires a gradient and is not behind `known`."""
    seen = {t.grad_fn for t in known if t.grad_fn is not None}
    leaves = {id(t) for t in known}
    todo = [image.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in leaves:
            raise InvalidArgument(
                f"`f` uses a tensor of shape {tuple(variable.shape)} whose gradient would be lost: use "
                "a torch.nn.Module that owns it, or f(z, x, *parameters) with it among `parameters`"
            )
        todo += [following for following, _ in node.next_functions]
