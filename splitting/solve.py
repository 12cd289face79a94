"""The one loop: runs any method on any inclusion, per sample, and says how it ended."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from splitting.checks import error_bound
from splitting.errors import InvalidArgument, InvalidType, NotConverged
from splitting.inclusion import Inclusion, check_state
from splitting.scratch import recycled
from splitting.solvers import PeacemanRachford, Solver

OnFailure = Literal["raise", "warn", "return"]

# Asking an accelerator whether all samples have converged stalls it, so it is asked only every few steps. Results do
# not depend on this: what a sample returns is what it had when it converged, noted on the device.
_STEPS_PER_QUESTION = 5
_FREE_TO_ASK = frozenset({"cpu"})


class ConvergenceWarning(UserWarning):
    """A solve ended without reaching its tolerance."""


class Outcome(Enum):
    """How a solve ended."""

    CONVERGED = "converged"
    MAX_STEPS = "maximum number of steps reached"
    NON_FINITE = "non-finite values"


@dataclass(frozen=True)
class Status:
    """How a solve ended: the outcome, and a sentence with the numbers and, if it failed, the remedy."""

    outcome: Outcome
    text: str

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.CONVERGED

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Solution:
    """An approximate solution of an inclusion, with its diagnostics; all but `problem` per sample.

    value: (batch, *state_shape). steps: number of steps taken until the sample converged (or gave up).
    residual: upper bound, up to rounding, on the relative backward error ‖r‖/(‖A‖ ‖z‖ + ‖c‖) with
    r ∈ A z − c + ∂f(z), norms in the operator's metric, for ‖A‖ its `norm_bound`
    (Rigal & Gaches 1967). history: that, after every step,
    (steps, batch).
    """

    problem: Inclusion
    value: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor
    history: Tensor
    status: Status

    @cached_property
    def error_bound(self) -> Tensor:
        """Proved upper bound on ‖value − z*‖_Λ per sample, float64, rounding included; inf where nothing is proved.

        Computed on first use, from `value` alone (see `splitting.error_bound`): no solver is trusted.
        """
        return error_bound(self.problem, self.value)


def solve(
    problem: Inclusion,
    solver: Solver | None = None,
    *,
    tol: float = 1e-6,
    max_steps: int = 500,
    initial: Tensor | None = None,
    on_failure: OnFailure = "warn",
) -> Solution:
    """Solve 0 ∈ A z − c + ∂f(z) for every sample of the batch; no gradients (see `splitting.equilibrium`).

    solver: PeacemanRachford() by default. tol: stop a sample once its relative backward error is ≤ tol.
    initial: a guess of the solution to start from, shaped like the source. on_failure: whether to raise NotConverged,
    issue a ConvergenceWarning or just return when a sample misses `tol`. A sample's result does not depend on its
    batch-mates. Raises InvalidArgument/InvalidType for arguments outside their range.
    """
    solver = PeacemanRachford() if solver is None else solver
    _check_arguments(problem, solver, tol, max_steps, initial, on_failure)
    # Autocast would run the iteration in half precision, which no tolerance worth asking for survives.
    with torch.no_grad(), torch.autocast(problem.source.device.type, enabled=False):
        solution = _run(_detached(problem), solver, tol, max_steps, initial)
    announce(solution, on_failure)
    return solution


def announce(solution: Solution, on_failure: OnFailure, prefix: str = "") -> None:
    """Raise or warn, as `on_failure` says, if `solution` did not converge; `prefix` tells whose solve it was."""
    if solution.status.ok or on_failure == "return":
        return
    if on_failure == "raise":
        raise NotConverged(prefix + solution.status.text)
    warnings.warn(prefix + solution.status.text, ConvergenceWarning, stacklevel=3)


def _run(problem: Inclusion, solver: Solver, tol: float, max_steps: int, initial: Tensor | None) -> Solution:
    source, operator = problem.source, problem.operator
    iteration = solver.bind(problem)
    carry = iteration.init(None if initial is None else initial.detach())
    record = _Record(source, max_steps)
    weight, offset = operator.norm_bound, operator.norm(source)
    tiny = torch.finfo(source.dtype).tiny
    every = 1 if record.asking_is_free else _STEPS_PER_QUESTION
    for step in range(1, max_steps + 1 if len(source) else 1):
        state = iteration.step(carry)
        carry = state.carry
        scale = torch.add(offset, operator.norm(state.value), alpha=weight)
        # Dividing by a scale that overflowed would look like convergence.
        scale = scale.masked_fill_(scale == math.inf, math.nan).clamp_min_(tiny)
        record.note(step, state.value, state.gap / scale, tol)
        if (step % every == 0 or step == max_steps) and record.finished():
            break
    return record.solution(problem, tol, solver)


class _Record:
    """What each sample had when it converged. Nothing here depends on how often `finished` is asked."""

    def __init__(self, source: Tensor, max_steps: int) -> None:
        count = len(source)
        self.value: Tensor | None = None
        self.residual = source.new_full((count,), math.inf)
        self.converged = torch.zeros(count, dtype=torch.bool, device=source.device)
        self.steps = torch.full((count,), max_steps, device=source.device)
        # Residuals step by step. Small tensors made in every step would keep the heap from closing over larger ones.
        self.history = source.new_empty(min(max_steps, 64), count)
        self.taken = 0
        self.asking_is_free = source.device.type in _FREE_TO_ASK
        self.untouched = True  # no sample has converged yet, as far as the host knows

    def note(self, step: int, value: Tensor, residual: Tensor, tol: float) -> None:
        """Take over `value` for the samples still open, and close those with residual ≤ tol."""
        if step > len(self.history):
            self.history = torch.cat([self.history, torch.empty_like(self.history)])
        self.history[step - 1] = residual
        self.taken = step
        done = residual <= tol
        if self.untouched and self.asking_is_free:
            # The common cases: nothing to freeze, or everything, so the iterate itself is the record.
            closed = int(done.sum())
            if closed in (0, len(done)):
                self.value, self.residual = value, residual
                if closed:
                    self.converged, self.untouched = done, False
                    self.steps.fill_(step)
                return
        if self.value is None or self.untouched:
            # No sample has converged before this step. From now on the record has memory of its own.
            self.value = recycled(value).copy_(value)
        else:
            column = self.converged.reshape(-1, *[1] * (value.ndim - 1))
            torch.where(column, self.value, value, out=self.value)
        self.untouched = False
        self.residual = torch.where(self.converged, self.residual, residual)
        newly = done & ~self.converged
        self.steps.masked_fill_(newly, step)
        self.converged = self.converged | newly

    def finished(self) -> bool:
        """Whether every sample has converged or left the finite numbers for good."""
        if self.untouched and self.asking_is_free and self.taken % _STEPS_PER_QUESTION:
            return False  # none has converged; that all have overflowed is worth asking only now and then
        return bool((self.converged | ~torch.isfinite(self.residual)).all())

    def solution(self, problem: Inclusion, tol: float, solver: Solver) -> Solution:
        steps = torch.where(self.converged, self.steps, self.taken)
        status = _status(self.converged, self.residual, problem, tol, solver, self.taken)
        value = torch.zeros_like(problem.source) if self.value is None else self.value
        return Solution(
            problem, value, self.residual, steps, self.converged, self.history[: self.taken].clone(), status
        )


def _status(converged: Tensor, residual: Tensor, problem: Inclusion, tol: float, solver: Solver, steps: int) -> Status:
    total, missing = len(converged), int((~converged).sum())
    name = type(solver).__name__
    if missing == 0:
        return Status(
            Outcome.CONVERGED, f"{name}: all {total} samples reached relative residual {tol:.1e} in {steps} steps"
        )
    bad = int((~torch.isfinite(residual)).sum())
    if bad:
        finite_input = bool(torch.isfinite(problem.source).all())
        cause = (
            "A, c or z overflows this dtype; use float64 or rescale"
            if finite_input
            else "the source c holds NaN or inf; check the input"
        )
        return Status(
            Outcome.NON_FINITE, f"{name}: {bad} of {total} samples became NaN or inf within {steps} steps: {cause}"
        )
    worst = float(residual.max())
    precision = torch.finfo(problem.source.dtype).eps
    if worst < 100 * precision:
        remedy = f"this is near the rounding of {problem.source.dtype}: use float64 or a larger tol"
    else:
        remedy = "raise max_steps, use Anderson(…) or a tuned step, or raise m"
    return Status(
        Outcome.MAX_STEPS,
        f"{name}: {missing} of {total} samples did not reach relative residual {tol:.1e} in {steps} steps "
        f"(worst {worst:.1e}); {remedy}",
    )


def _detached(problem: Inclusion) -> Inclusion:
    operator = problem.operator.rebind(*(t.detach() for t in problem.operator.tensors))
    prox = problem.prox.rebind(*(t.detach() for t in problem.prox.tensors))
    return Inclusion(operator, problem.source.detach(), prox)


def _check_arguments(
    problem: Inclusion, solver: Solver, tol: float, max_steps: int, initial: Tensor | None, on_failure: str
) -> None:
    if not isinstance(problem, Inclusion):
        raise InvalidType(f"`problem` must be a splitting.Inclusion, got {type(problem).__name__}")
    check_options(solver, max_steps, on_failure, tol=tol)
    if initial is not None:
        check_state("initial", initial, problem.operator)
        if len(initial) != len(problem.source):
            raise InvalidArgument(f"`initial` has {len(initial)} samples but the source has {len(problem.source)}")


def check_options(solver: Solver, max_steps: int, on_failure: str, **tolerances: float) -> None:
    """Raise unless these are options that `solve` can run with; `tolerances` by the name of their argument."""
    if not isinstance(solver, Solver):
        raise InvalidType(f"`solver` must be a splitting solver such as PeacemanRachford(), got {solver!r}")
    for name, value in tolerances.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise InvalidArgument(f"`{name}` must be a finite number > 0, got {value!r}")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise InvalidArgument(f"`max_steps` must be an integer ≥ 1, got {max_steps!r}")
    if on_failure not in ("raise", "warn", "return"):
        raise InvalidArgument(f'`on_failure` must be "raise", "warn" or "return", got {on_failure!r}')
