"""Gradients of the solution by solving the adjoint inclusion with the same loop.

With D = diag σ′(W z* + c), W = I − A, and an incoming gradient g: q = D(Wᵀq + g) is the inclusion with operator Aᵀ,
source g and activation `Scale(d)`. Then ∂ℓ/∂c = q and ∂ℓ/∂A acts as −⟨q, A z*⟩. Tangents solve ż = D(W ż + ċ − Ȧ z*).
Both are equilibria again, so differentiating them recurses: derivatives of every order, memory of one state each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from splitting.context import full_precision, uncompiled
from splitting.errors import InvalidType
from splitting.inclusion import Inclusion
from splitting.operators import Operator
from splitting.prox import Activation, Scale
from splitting.solve import OnFailure, Solution, announce, check_initial, check_options, run
from splitting.solvers import PeacemanRachford, Solver

Monitor = Callable[[str, Solution], None]


def equilibrium(
    problem: Inclusion,
    solver: Solver | None = None,
    *,
    tol: float = 1e-6,
    max_steps: int = 500,
    backward_tol: float | None = None,
    initial: Tensor | None = None,
    on_failure: OnFailure = "warn",
    monitor: Monitor | None = None,
) -> Tensor:
    """The solution z* of `problem` as a function of its source, operator and activation tensors, differentiable.

    Arguments as in `splitting.solve`; backward_tol (default: tol) is the tolerance of the adjoint solves. monitor is
    called with ("forward" | "backward", Solution) after every solve. Where σ has kinks the derivative is that of the
    selection `prox.derivative`. Supports backward and double backward, torch.func.vjp, jvp, grad and vmap over the
    source (one batched solve) or over operator tensors (one solve per slice). Memory does not grow with the number
    of steps.
    """
    if not isinstance(problem, Inclusion):
        raise InvalidType(f"`problem` must be a splitting.Inclusion, got {type(problem).__name__}")
    solver = PeacemanRachford() if solver is None else solver
    options = _Options(solver, tol, max_steps, tol if backward_tol is None else backward_tol, on_failure, monitor)
    check_options(solver, max_steps, on_failure, tol=tol, backward_tol=options.backward_tol)
    if initial is not None:
        check_initial(problem, initial)
    spec = _Spec(problem.operator.frozen(), problem.prox, options, initial, "forward")
    return _apply(spec, problem.source)


@dataclass(frozen=True, eq=False)
class _Options:
    solver: Solver
    tol: float
    max_steps: int
    backward_tol: float
    on_failure: OnFailure
    monitor: Monitor | None


@dataclass(frozen=True, eq=False)
class _Spec:
    """All that is not a differentiable input. `operator` and `prox` lend structure and cache, not values."""

    operator: Operator
    prox: Activation
    options: _Options
    initial: Tensor | None
    role: str

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

    def linearised(self, operator: Operator, d: Tensor) -> _Spec:
        """The specification of the linear equilibrium that differentiating this one leads to."""
        options = replace(self.options, tol=self.options.backward_tol)
        return _Spec(operator, Scale.of_slopes(d), options, None, "backward")


def _apply(spec: _Spec, source: Tensor) -> Tensor:
    return _call(spec, source, *spec.tensors)


@uncompiled
def _call(spec: _Spec, source: Tensor, *tensors: Tensor) -> Tensor:
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
        options = spec.options
        problem = spec.bind(source, tensors).frozen()  # without tangents of the inputs
        solution = run(problem, options.solver, options.tol, options.max_steps, spec.initial)
        announce(solution, options.on_failure, f"{spec.role} pass: ")
        if options.monitor is not None:
            options.monitor(spec.role, solution)
        return solution.value

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
        d = None if torch.is_grad_enabled() else prox.derivative_at(z)
        d = prox.derivative(_preactivation(problem, z)) if d is None else d
        q = _apply(ctx.spec.linearised(operator.adjoint, d), g)
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
        linear = ctx.spec.linearised(operator, prox.derivative(y))
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
        flat = _call(replace(spec, initial=None), sources.flatten(0, 1), *tensors[:count], *merged, *metric)
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
    return _call(replace(spec, operator=operator.frozen(), initial=None), source, *tensors)
