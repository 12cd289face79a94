"""The problem: find z with 0 ∈ A z − c + ∂f(z), equivalently z = σ((I − A) z + c) with σ = prox_f."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from splitting import verified
from splitting.context import in_full_precision
from splitting.errors import InvalidType
from splitting.operators import Operator
from splitting.problems.base import Extent, Problem, check_state
from splitting.prox import Activation

# Evaluating σ in float64 is taken to be right to this many units in the last place of the result.
_ACTIVATION_ULPS = 4


@dataclass(frozen=True, eq=False)
class Inclusion(Problem):
    """The inclusion 0 ∈ A z − c + ∂f(z), equivalently z = σ((I − A) z + c) with σ = prox_f.

    It has exactly one solution per sample where operator.strong_monotonicity > 0.

    Args:
        operator: A.
        source: c, (batch, *operator.state_shape), of the operator's dtype and device.
        prox: σ, the activation.

    Raises:
        InvalidType: If operator, source or prox is of another type, or source of another dtype or device.
        InvalidArgument: If source has another shape.
    """

    operator: Operator
    source: Tensor
    prox: Activation
    overflow = "A, c or z overflows this dtype; use float64 or rescale"

    def __post_init__(self) -> None:
        if not isinstance(self.operator, Operator):
            raise InvalidType(f"`operator` must be a splitting.Operator, got {type(self.operator).__name__}")
        if not isinstance(self.prox, Activation):
            raise InvalidType(
                f"`prox` must be a splitting.Activation such as splitting.ReLU(), got {type(self.prox).__name__}"
            )
        check_state("source", self.source, self.operator.state_shape, self.operator.tensors[0])

    @property
    def like(self) -> Tensor:  # type: ignore[override]  # the source is one state per sample
        return self.source

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.source, *self.operator.tensors, *self.prox.tensors)

    @property
    def root_metric(self) -> Tensor | None:
        return self.operator.root_metric

    def norm(self, z: Tensor) -> Tensor:
        return self.operator.norm(z)

    def map(self, z: Tensor) -> Tensor:
        """The map T(z) = σ(z − A z + c).

        Args:
            z: States, (batch, *state_shape).

        Returns:
            T(z), of the same shape; differentiable in z and in all that the problem is made of.
        """
        return self.prox(z - self.operator.apply(z) + self.source)

    def scale(self) -> Callable[[Tensor], Tensor]:
        """The function z ↦ ‖A‖ ‖z‖ + ‖c‖ per sample, with `operator.norm_bound` for ‖A‖.

        Returns:
            A function of states (batch, *state_shape) that gives one number per sample, (batch,).
        """
        # Sources are 1/`step` times as large as solutions, and measured where those are.
        power = 2.0 ** round(math.log2(self._step))
        weight = min(self.operator.norm_bound, torch.finfo(self.source.dtype).max)
        offset = self.norm(self.source * power) / power if abs(math.log2(power)) > 20 else self._source_norm
        return lambda z: torch.add(offset, self.norm(z), alpha=weight)

    def judged(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        # z′ = σ(y) with y = z − Az + c, so s = y − z′ ∈ ∂f(z′) and r = Az′ − c + s = (A − I)(z′ − z).
        return image, self.operator.distance_bound(1.0) * self.norm(image - z)

    def frozen(self) -> Inclusion:
        operator = self.operator.rebind(*(t.detach() for t in self.operator.tensors))
        prox = self.prox.rebind(*(t.detach() for t in self.prox.tensors))
        return Inclusion(operator, self.source.detach(), prox)

    def snapshot(self) -> Inclusion:
        # What is no differentiable tensor of an activation, such as a mask, may change as well.
        prox = copy.deepcopy(self.prox.rebind(*(t.detach() for t in self.prox.tensors)))
        return Inclusion(self.operator.snapshot(), self.source.detach().clone(), prox)

    def double(self) -> Inclusion:
        """The same numbers in float64.

        Returns:
            A problem without a graph.
        """
        prox = self.prox.rebind(*(t.double() for t in self.prox.tensors))
        return Inclusion(self.operator.double(), self.source.detach().double(), prox)

    def extent(self, tol: float) -> Extent:
        operator, step, problem = self.operator.balanced(), self._step, self
        if operator is not self.operator:
            problem = Inclusion(operator, self.source, self.prox)
        size = problem._source_norm
        info = torch.finfo(size.dtype)
        # A residual of tol times the size, of which an entry has a thousandth, is to have squares that do not vanish.
        # Solutions are about `step` times as large as sources.
        low = 1e3 * math.sqrt(info.tiny) / min(tol, 1.0) / min(step, 1.0)
        high = math.sqrt(info.max) * info.eps / max(step, 1.0)
        return Extent(problem, torch.stack(size.aminmax()) if len(size) else None, low, high)

    def in_range(self, tol: float) -> tuple[Inclusion, Tensor] | None:
        """This problem in units of powers of two, such that no sample's numbers overflow or vanish.

        Norms square what they sum, so float32 numbers below 1e-19 would count as 0, and a sample of such numbers as
        solved. κ = 1 for a sample of ordinary numbers, which so does not depend on its batch-mates.

        Args:
            tol: The tolerance of the relative residual that it is to be solved to.

        Returns:
            The problem that κz solves, and the factors κ, shaped to multiply states; None where all samples are
            ordinary.
        """
        extent, step, source, prox = self.extent(tol), self._step, self.source, self.prox
        problem: Inclusion = extent.problem  # type: ignore[assignment]  # as `extent` makes it
        operator, size = problem.operator, problem._source_norm
        ordinary = None if problem is self else (problem, source.new_ones(()))
        if extent.sizes is None or extent.is_ordinary(*extent.sizes.tolist()):
            return ordinary
        info = torch.finfo(source.dtype)
        unusual = ~((size >= extent.low) & (size <= extent.high))
        # What σ makes of 0 is in every state, however small the source is.
        largest = (
            source.abs() if prox.homogeneous else source.abs().maximum(prox(torch.zeros_like(source)).abs() / step)
        )
        largest = torch.linalg.vector_norm(largest[unusual], math.inf, dim=tuple(range(1, source.ndim)))
        known = torch.isfinite(largest) & (largest > 0)
        # Solutions are to be near 1, and κ and 1/κ normal numbers.
        exponents = torch.frexp(largest).exponent + round(math.log2(step))
        reach = math.frexp(info.max)[1] - 4
        units = torch.ones_like(size)
        units[unusual] = torch.where(known, torch.exp2(-exponents.clamp(-reach, reach).to(size.dtype)), 1.0)
        if bool((units == 1).all()):
            return ordinary
        units = units.reshape(-1, *[1] * (source.ndim - 1))
        return Inclusion(operator, source * units, prox.scaled(units)), units

    @cached_property
    def _source_norm(self) -> Tensor:
        """‖c‖_Λ, for the loop, which works on frozen problems."""
        return self.norm(self.source)

    @property
    def _step(self) -> float:
        """How many times larger solutions are than sources, about."""
        # What is wrong with an operator that is not finite is the solver's to say.
        return self.operator.typical_step if math.isfinite(self.operator.frobenius) else 1.0

    def lost(self, z: Tensor, converted: Tensor, units: Tensor) -> Tensor:
        operator = self.operator.balanced()
        # An error e of z is one of A z of ‖A‖‖e‖, and one of s ∈ ∂f(z) that prox makes as large again.
        lost = operator.norm(converted * units - z) * (operator.norm_bound + 1 / operator.typical_step)
        scale = operator.norm(self.source * units) + operator.norm_bound * operator.norm(z)
        return torch.where(scale > 0, lost / scale, 0.0)

    @torch.no_grad()
    @in_full_precision
    def error_bound(self, z: Tensor) -> Tensor:
        """Proved upper bound on ‖z − z*‖_Λ for each sample and any z, wherever it came from.

        It is d + ρ/m for the two numbers of `backward_error`. The exact problem is the one whose A, c are the given
        floating-point numbers.

        Args:
            z: States, (batch, *state_shape).

        Returns:
            The bounds, (batch,), float64; inf where m ≤ 0 or z is not finite.

        Raises:
            InvalidArgument: If z has another shape than the source.
            InvalidType: If z is no tensor, or of another dtype or device.
        """
        self.check_state("z", z)
        m = self.frozen().double().operator.strong_monotonicity
        if not m > 0 or z.numel() == 0:
            return self.source.double().new_full((len(self.source),), torch.inf if z.numel() else 0.0)
        distance, residual = self.backward_error(z)
        return (distance + residual / m) * (1 + 1e-12)

    @torch.no_grad()
    @in_full_precision
    def backward_error(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(d, ρ) for each sample and any z: some z′ with ‖z − z′‖_Λ ≤ d has an r ∈ A z′ − c + ∂f(z′) with ‖r‖_Λ ≤ ρ.

        With that r, ⟨z′ − z*, A(z′ − z*)⟩_Λ ≤ ⟨z′ − z*, r⟩_Λ: strong monotonicity gives ‖z′ − z*‖_Λ ≤ ρ/m, and more
        where more is known of A. One forward–backward step with step β = 1/rms(A) leads from z to z′ = σ(y), for which
        s = y − z′ ∈ ∂f(z′) exactly, whatever y is, and r = A z′ − c + s. All in float64, with the rounding of every
        operation added.

        Args:
            z: States, (batch, *state_shape).

        Returns:
            Both bounds, (batch,), float64; inf where z is not finite.

        Raises:
            InvalidArgument: If z has another shape than the source.
            InvalidType: If z is no tensor, or of another dtype or device.
        """
        self.check_state("z", z)
        exact = self.frozen().double()
        operator, source, prox = exact.operator.frozen(), exact.source, exact.prox
        z = z.detach().double()
        beta = operator.typical_step
        y = prox.point(z - beta * (operator.apply(z) - source), beta)
        nearby = prox(y)
        image = operator.apply(nearby)
        r = image - source + (y - nearby)
        size = _norm(operator, image.abs() + source.abs() + y.abs() + nearby.abs())
        sigma_error = _ACTIVATION_ULPS * verified.unit_roundoff(torch.float64) * _norm(operator, nearby)
        # 8: differences that may vanish below the normal numbers.
        vanished = _norm(operator, torch.full_like(nearby[:1], 8 * verified.UNDERFLOW))
        r_error = operator.rounding(nearby) + verified.rounding_factor(4) * size + vanished
        # A wrong last digit of σ moves both A z′ and s.
        r_error = r_error + (operator.frobenius + 1) * sigma_error
        bounds = _norm(operator, z - nearby) + sigma_error, _norm(operator, r) + r_error
        distance, residual = (torch.nan_to_num(bound * (1 + 1e-12), nan=torch.inf) for bound in bounds)
        return distance, residual


def _norm(operator: Operator, z: Tensor) -> Tensor:
    """Upper bound on ‖z‖_Λ per sample."""
    root = operator.root_metric
    return verified.vector_norm(z if root is None else z * root) * (1 + 4 * verified.unit_roundoff(torch.float64))
