"""Gradients of the solution by solving the adjoint inclusion with the same loop.

With D = diag σ′(y), y = W z* + c, W = I − A, and an incoming gradient g: q = D(Wᵀq + g) is the inclusion with operator
Aᵀ, source g and activation D (`Activation.linearised`). Then ∂ℓ/∂c = q and ∂ℓ/∂A acts as −⟨q, A z*⟩. Tangents solve
ż = D(W ż + ċ − Ȧ z*). Both are equilibria again, so differentiating them recurses: derivatives of every order, memory
of one state each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from splitting.context import full_precision, is_recorded, uncompiled
from splitting.implicit.base import Options, differentiable
from splitting.operators import Operator
from splitting.problems import Inclusion
from splitting.prox import Activation


@dataclass(frozen=True, eq=False)
class _Spec:
    """All that is not a differentiable input. `operator` and `prox` lend structure and cache, not values."""

    operator: Operator
    prox: Activation
    options: Options

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The differentiable ones of operator and prox, and the metric, which is none but is mapped with them."""
        metric = self.operator.metric
        return (*self.operator.tensors, *self.prox.tensors, *(() if metric is None else (metric,)))

    @property
    def counts(self) -> tuple[int, int]:
        """How many tensors are those of the operator, and of the prox."""
        return len(self.operator.tensors), len(self.prox.tensors)

    def bind(self, source: Tensor, tensors: tuple[Tensor, ...]) -> Inclusion:
        of_operator, of_prox = self.counts
        prox = self.prox.rebind(*tensors[of_operator : of_operator + of_prox])
        return Inclusion(self.operator.rebind(*tensors[:of_operator]), source, prox)

    def without_guess(self) -> _Spec:
        """For samples that are put together otherwise."""
        return replace(self, options=replace(self.options, initial=None))

    def linearised(self, operator: Operator, prox: Activation) -> _Spec:
        """The specification of a linear equilibrium that differentiating this one leads to."""
        return _Spec(operator, prox, self.options.of_adjoint())


@differentiable.register
def _(problem: Inclusion, options: Options) -> Tensor:
    return _apply(_Spec(problem.operator.frozen(), problem.prox, options), problem.source)


def _apply(spec: _Spec, source: Tensor) -> Tensor:
    return _call(spec, source, *spec.tensors)


@uncompiled
def _call(spec: _Spec, source: Tensor, *tensors: Tensor) -> Tensor:
    if not is_recorded(source, *tensors):
        return spec.options.solve(spec.bind(source, tensors).frozen())
    result: Tensor = _Equilibrium.apply(spec, source, *tensors)  # type: ignore[no-untyped-call]  # torch has no types for it
    return result


def _in_full_precision(rule: Callable[..., Any]) -> Callable[..., Any]:
    """`rule(ctx, …)` in the precision of its tensors, whatever surrounds the call."""

    @wraps(rule)
    def exact(ctx: Any, *arguments: Any) -> Any:
        # Of the specification: saved tensors may be unpacked only once (torch.utils.checkpoint).
        with full_precision(ctx.spec.operator.device):
            return rule(ctx, *arguments)

    return exact


class _Equilibrium(torch.autograd.Function):
    @staticmethod
    def forward(spec: _Spec, source: Tensor, *tensors: Tensor) -> Tensor:
        return spec.options.solve(spec.bind(source, tensors).frozen())  # without tangents of the inputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        spec, source, *tensors = inputs
        ctx.spec = spec
        ctx.save_for_backward(output, source, *tensors)
        ctx.save_for_forward(output, source, *tensors)

    @staticmethod
    @_in_full_precision
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, source, *tensors = ctx.saved_tensors
        problem = ctx.spec.bind(source, tuple(tensors))
        operator, prox = problem.operator, problem.prox
        needs = ctx.needs_input_grad[2:]
        count, of_prox = ctx.spec.counts
        # Unless a second derivative asks for y as a function of z, z may be enough to know σ′(y).
        linear = None if torch.is_grad_enabled() else prox.linearised_at(z)
        linear = prox.linearised(_preactivation(problem, z)) if linear is None else linear
        q = _apply(ctx.spec.linearised(operator.adjoint, linear), g)
        operator_grads: tuple[Tensor | None, ...] = (None,) * count
        if any(needs[:count]):
            operator_grads = tuple(None if t is None else -t for t in operator.pairing_gradient(q, z))
        prox_grads: tuple[Tensor | None, ...] = (None,) * of_prox
        if any(needs[count : count + of_prox]):
            # p is what reaches z before σ′ multiplies it: q = σ′(y) p.
            p = g + q - operator.adjoint.apply(q)
            prox_grads = prox.tensor_gradient(_preactivation(problem, z), p)
        return None, q, *operator_grads, *prox_grads, *(None for _ in tensors[count + of_prox :])

    @staticmethod
    @_in_full_precision
    def jvp(ctx: Any, _: None, source_dot: Tensor | None, *dots: Tensor | None) -> Tensor:
        z, source, *tensors = ctx.saved_tensors
        problem = ctx.spec.bind(source, tuple(tensors))
        operator, prox = problem.operator, problem.prox
        count, of_prox = ctx.spec.counts
        y = _preactivation(problem, z)
        moved = torch.zeros_like(z) if source_dot is None else source_dot
        moved = moved - _tangent(lambda q: operator.pairing_gradient(q, z), z, dots[:count])
        # ż = D(W ż + moved) + e with e the activation's own tangent; x = ż − e solves a problem of our kind.
        e = _tangent(lambda p: prox.tensor_gradient(y, p), z, dots[count : count + of_prox])
        linear = ctx.spec.linearised(operator, prox.linearised(y))
        return _apply(linear, moved + e - operator.apply(e)) + e

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], spec: _Spec, source: Tensor, *tensors: Tensor) -> tuple[Tensor, int]:
        size, (count, of_prox) = info.batch_size, spec.counts
        sources, *stacks = (_stack(t, d, size) for t, d in zip((source, *tensors), in_dims[1:], strict=True))
        if any(d is not None for d in (*in_dims[2 : 2 + count], *in_dims[2 + count + of_prox :])):
            # Different weights are different operators: one solve each.
            return torch.stack([_slice(spec, sources[i], [t[i] for t in stacks]) for i in range(size)]), 0
        shape = sources.shape[1:]
        merged = [
            t.reshape(size, *[1] * (len(shape) + 1 - t.ndim), *t.shape[1:]) for t in stacks[count : count + of_prox]
        ]
        merged = [t.expand(size, *shape).flatten(0, 1) for t in merged]
        metric = tensors[count + of_prox :]
        flat = _call(spec.without_guess(), sources.flatten(0, 1), *tensors[:count], *merged, *metric)
        return flat.unflatten(0, (size, shape[0])), 0


def _preactivation(problem: Inclusion, z: Tensor) -> Tensor:
    """y = W z + c, of which z = σ(y) at the solution."""
    return z - problem.operator.apply(z) + problem.source


def _tangent(
    gradient: Callable[[Tensor], tuple[Tensor | None, ...]], like: Tensor, dots: tuple[Tensor | None, ...]
) -> Tensor:
    """Σ ∂h/∂t ṫ for h with q ↦ ∂⟨q, h⟩/∂t = gradient(q): transposing the linear map q ↦ gradient(q)."""
    if all(dot is None for dot in dots):
        return torch.zeros_like(like)

    def pairing(q: Tensor) -> Tensor:
        terms = [(t * dot).sum() for t, dot in zip(gradient(q), dots, strict=True) if t is not None and dot is not None]
        return torch.stack(terms).sum()

    return torch.func.grad(pairing)(torch.zeros_like(like))


def _stack(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """`tensor` with its mapped dimension in front, repeated where it has none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _slice(spec: _Spec, source: Tensor, tensors: list[Tensor]) -> Tensor:
    count, of_prox = spec.counts
    operator = spec.operator.replace(*tensors[:count], metric=next(iter(tensors[count + of_prox :]), None))
    return _call(replace(spec.without_guess(), operator=operator.frozen()), source, *tensors)
