"""The one loop: runs any method on any problem, per sample, and says how it ended."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from splitting.checks import error_bound
from splitting.context import asking_is_free, full_precision, is_transformed, on_host, uncompiled
from splitting.derived import Derived
from splitting.errors import InvalidArgument, InvalidType, NotConverged
from splitting.operators import Probe, judged_later
from splitting.problems import Extent, Problem
from splitting.scratch import recycled
from splitting.solvers import PeacemanRachford, Solver

OnFailure = Literal["raise", "warn", "return"]
"""What a solve does where a sample misses tol: raise NotConverged, issue a ConvergenceWarning, or just return."""

# Asking an accelerator whether all samples have converged stalls it. It is asked after a few steps, next when by the
# pace of the residuals all should have converged, with a margin, and so on. Results do not depend on this: what a
# sample returns is what it had when it converged, noted on the device. The usual solve asks once or twice, and takes a
# quarter more steps than it needs at most.
_FIRST_QUESTION = 6
_MARGIN = 1.15
# However slow or fast the pace: the next question comes between so many times the steps taken.
_SOONEST, _LATEST = 1.25, 10.0
# On a CPU, steps between looks for samples that will never converge.
_STEPS_PER_LOOK = 5


class ConvergenceWarning(UserWarning):
    """A solve ended without reaching its tolerance."""


class Outcome(Enum):
    """How a solve ended."""

    CONVERGED = "converged"
    MAX_STEPS = "maximum number of steps reached"
    NON_FINITE = "non-finite values"


@dataclass(frozen=True)
class Status:
    """How a solve ended.

    Attributes:
        outcome: One of three.
        text: A sentence with the numbers and, if the solve failed, the remedy.
    """

    outcome: Outcome
    text: str

    @property
    def ok(self) -> bool:
        """Whether every sample reached its tolerance."""
        return self.outcome is Outcome.CONVERGED

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, eq=False)
class Solution:
    """An approximate solution of a problem, with its diagnostics per sample.

    Attributes:
        problem: The problem that was solved.
        value: The solution z, (batch, *state_shape).
        residual: For an Inclusion an upper bound, up to rounding, on the backward error ‖r‖/(‖A‖ ‖z‖ + ‖c‖) with
            r ∈ A z − c + ∂f(z), norms in the operator's metric, for ‖A‖ its `norm_bound` (Rigal & Gaches 1967); for a
            FixedPoint ‖f(z, x) − z‖/‖z‖. (batch,)
        steps: Steps taken until the sample converged or gave up, (batch,).
        converged: Whether the residual reached the tolerance, (batch,).
        history: The residual after every step, (steps, batch).
        status: How the solve ended, for the batch as a whole.
    """

    problem: Problem
    value: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor
    history: Tensor
    status: Status
    _versions: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_versions", self._present_versions())

    @property
    def error_bound(self) -> Tensor:
        """Proved upper bound on ‖value − z*‖_Λ per sample, rounding included.

        Computed from `value` as it is (see `splitting.error_bound`), on first use and again where it has changed: no
        solver is trusted. The problem is the one that was solved.

        Returns:
            The bounds, (batch,), float64; inf where nothing is proved.

        Raises:
            InvalidArgument: If tensors of the problem have changed since, as they may after a solution was handed to a
                monitor; what `solve` returns has tensors of its own.
        """
        if self._versions != self._present_versions():
            raise InvalidArgument(
                "`problem` has changed since this solution was handed to its monitor, and a bound would be on another "
                "solution's error; read `error_bound` inside the monitor, or use splitting.solve or layer.solve"
            )
        known: tuple[Derived, Tensor] | None = self.__dict__.get("_bounded")
        if known is None or not known[0].fits((self.value,)):
            known = self.__dict__["_bounded"] = (Derived((self.value,)), error_bound(self.problem, self.value))
        return known[1]

    def _present_versions(self) -> list[int]:
        """How often each tensor of the problem was written to; unknown for those of inference mode."""
        return [-1 if t.is_inference() or is_transformed(t) else t._version for t in self.problem.tensors]


def solve(
    problem: Problem,
    solver: Solver | None = None,
    *,
    tol: float = 1e-6,
    max_steps: int = 500,
    initial: Tensor | None = None,
    on_failure: OnFailure = "warn",
) -> Solution:
    """Solve a problem for every sample of the batch; no gradients (see `splitting.equilibrium`).

    A sample's result does not depend on its batch-mates.

    Args:
        problem: An Inclusion 0 ∈ A z − c + ∂f(z), or a FixedPoint z = f(z, x), which takes solvers of its own.
        solver: The method; PeacemanRachford() by default.
        tol: Stop a sample once its relative residual (`Solution.residual`) is ≤ tol.
        max_steps: Stop after so many steps.
        initial: A guess of the solution to start from, shaped like the states.
        on_failure: Whether to raise NotConverged, to issue a ConvergenceWarning or just to return when a sample misses
            tol: "raise", "warn" or "return".

    Returns:
        The solution of every sample and how it was reached.

    Raises:
        InvalidArgument: If an argument lies outside its range, or the solver's theorem does not cover its step or the
            operator.
        InvalidType: If an argument is of the wrong type, dtype or device, or the solver cannot split the problem.
        NotConverged: If a sample misses tol and on_failure is "raise".
        ResolventError: If a computed resolvent does not invert.
    """
    solver = PeacemanRachford() if solver is None else solver
    _check_arguments(problem, solver, tol, max_steps, initial, on_failure)
    with torch.no_grad():
        solution = run(problem.snapshot(), solver, tol, max_steps, initial)
    announce(solution, on_failure)
    return solution


def announce(solution: Solution, on_failure: OnFailure, prefix: str = "") -> None:
    """Raise or warn if a solution did not converge.

    Args:
        solution: What a solve returned.
        on_failure: "raise", "warn" or "return", which does neither.
        prefix: Whose solve it was, for the message.

    Raises:
        NotConverged: If it did not converge and on_failure is "raise".
    """
    if solution.status.ok or on_failure == "return":
        return
    if on_failure == "raise":
        raise NotConverged(prefix + solution.status.text)
    warnings.warn(prefix + solution.status.text, ConvergenceWarning, stacklevel=3)


@uncompiled
def run(problem: Problem, solver: Solver, tol: float, max_steps: int, initial: Tensor | None) -> Solution:
    """The same as `solve` for checked arguments, where nothing is recorded, on a problem that does not change.

    Args:
        problem: What to solve; a frozen one.
        solver: The method.
        tol: The tolerance of the relative residual.
        max_steps: Stop after so many steps.
        initial: A guess of the solution, or None.

    Returns:
        The solution, converged or not.
    """
    with full_precision(problem.like.device):
        initial = None if initial is None else initial.detach()
        if not asking_is_free(problem.like.device):
            # The host learns whether numbers are in range when it learns how far the solve has come.
            extent = problem.extent(tol)
            if extent is None or extent.problem is problem:
                record = _run(problem, solver, tol, max_steps, initial, extent)
                if record.in_range:
                    return record.solution(problem, tol, solver)
        other = problem.in_range(tol)
        if other is None:
            return _run(problem, solver, tol, max_steps, initial).solution(problem, tol, solver)
        scaled, units = other
        record = _run(scaled, solver, tol, max_steps, None if initial is None else initial * units)
        return record.solution(problem, tol, solver, units)


def _run(
    problem: Problem,
    solver: Solver,
    tol: float,
    max_steps: int,
    initial: Tensor | None,
    extent: Extent | None = None,
) -> _Record:
    """Run a method on a problem; until it turns out that numbers are not in range, where `extent` is given."""
    like, free = problem.like, asking_is_free(problem.like.device)
    with judged_later() as probes:
        iteration = solver.bind(problem)
    carry = iteration.init(initial)
    record = _Record(like, tol, max_steps)
    record.rounding, hidden = iteration.rounding, like.new_full((), iteration.rounding)
    scale_of, tiny = problem.scale(), torch.finfo(like.dtype).tiny
    due = 1 if free else _FIRST_QUESTION
    for step in range(1, max_steps + 1 if len(like) else 1):
        state = iteration.step(carry)
        carry = state.carry
        # Dividing by a scale that overflowed would look like convergence.
        scale = scale_of(state.value)
        scale = scale.masked_fill_(scale == math.inf, math.nan).clamp_min_(tiny)
        record.note(step, state.value, torch.addcdiv(hidden, state.gap, scale), tol)
        if free and record.finished():
            break
        if not free and step in (due, max_steps):
            due = record.ask(tol, probes, extent)
            probes, extent = [], None
            if due == step:
                break
    if probes:
        record.ask(tol, probes, None)
    return record


@dataclass(frozen=True)
class _Answer:
    """How far a solve is.

    missing: samples that have not converged. bad: those that have left the finite numbers. worst: the largest residual
    where samples are missing.
    """

    missing: int
    bad: int
    worst: float


class _Record:
    """What each sample had when it converged. Nothing here depends on how often `finished` is asked."""

    def __init__(self, like: Tensor, tol: float, max_steps: int) -> None:
        count = len(like)
        self.value: Tensor | None = None
        self.residual = like.new_full((count,), math.inf)
        self.converged = torch.zeros(count, dtype=torch.bool, device=like.device)
        self.steps = torch.full((count,), max_steps, device=like.device)
        # Residuals step by step. Small tensors made in every step would keep the heap from closing over larger ones.
        self.history = like.new_empty(min(max_steps, 64), count)
        self.taken = 0
        self.asking_is_free = asking_is_free(like.device)
        # A residual above this is larger than tol in every dtype that tol may be rounded to.
        self.limit = tol * (1 + torch.finfo(like.dtype).eps)
        self.rounding = 0.0  # of the iteration whose steps are recorded
        self.in_range = True  # as far as the host knows
        self.answer: _Answer | None = None  # what the host knows of the present residuals
        self.untouched = True  # no sample has converged yet, as far as the host knows

    def note(self, step: int, value: Tensor, residual: Tensor, tol: float) -> None:
        """Take over `value` for the samples still open, and close those with residual ≤ tol."""
        if step > len(self.history):
            self.history = torch.cat([self.history, torch.empty_like(self.history)])
        self.history[step - 1] = residual
        self.taken, self.answer = step, None
        if self.untouched and self.asking_is_free and float(residual.amin()) > self.limit:
            self.value, self.residual = value, residual
            return
        done = residual <= tol
        if self.untouched and self.asking_is_free:
            # The common cases: nothing to freeze, or everything, so the iterate itself is the record.
            closed = int(done.sum())
            if closed in (0, len(done)):
                self.value, self.residual = value, residual
                if closed:
                    self.converged, self.untouched = done, False
                    self.steps.fill_(step)
                    self.answer = _Answer(0, 0, 0.0)
                return
        if self.value is None or self.untouched:
            # No sample has converged before this step. From now on the record has memory of its own.
            self.value, self.residual, self.converged = recycled(value).copy_(value), residual, done
            self.steps.masked_fill_(done, step)
            self.untouched = False
            return
        column = self.converged.reshape(-1, *[1] * (value.ndim - 1))
        torch.where(column, self.value, value, out=self.value)
        self.residual = torch.where(self.converged, self.residual, residual)
        newly = done & ~self.converged
        self.steps.masked_fill_(newly, step)
        self.converged = self.converged | newly

    def finished(self) -> bool:
        """Whether every sample has converged or left the finite numbers for good."""
        if self.answer is not None:
            return True  # all have converged
        if self.untouched and self.taken % _STEPS_PER_LOOK:
            return False  # none has converged; that all have overflowed is worth asking only now and then
        return bool((self.converged | ~torch.isfinite(self.residual)).all())

    def ask(self, tol: float, probes: Sequence[Probe], extent: Extent | None) -> int:
        """Learn in one transfer how far the solve is, how good the inverses are, and whether numbers are in range.

        Returns:
            The step at which to ask again; the present one where there is no need to.

        Raises:
            ResolventError: A computed resolvent does not invert.
        """
        sizes = [] if extent is None or extent.sizes is None else [extent.sizes]
        questions = [*self._questions(), self._remaining(tol), *(probe.error for probe in probes), *sizes]
        missing, bad, worst, remaining, *others = on_host(*questions)
        for probe, error in zip(probes, others, strict=False):
            probe.judge(error)
        if extent is not None and sizes:
            self.in_range = extent.is_ordinary(*others[len(probes) :])
        self.answer = _Answer(int(missing), int(bad), worst)
        if missing == bad or not self.in_range:
            return self.taken
        soonest, latest = _SOONEST * self.taken, _LATEST * self.taken
        return math.ceil(min(max(self.taken + _MARGIN * remaining + 1, soonest), latest))

    def known(self) -> _Answer:
        """How the solve ended: from the last question, if nothing has changed since."""
        if self.answer is None:
            if self.asking_is_free and bool(self.converged.all()):
                return _Answer(0, 0, 0.0)
            missing, bad, worst = on_host(*self._questions())
            self.answer = _Answer(int(missing), int(bad), worst)
        return self.answer

    def _questions(self) -> tuple[Tensor, Tensor, Tensor]:
        worst = self.residual.amax() if len(self.residual) else self.residual.new_zeros(())
        return (~self.converged).sum(), (~torch.isfinite(self.residual)).sum(), worst

    def _remaining(self, tol: float) -> Tensor:
        """The steps that the slowest sample still needs if its residual goes on shrinking as it did of late."""
        if not self.taken or not len(self.residual):
            return self.residual.new_zeros(())
        early = max(self.taken * 2 // 5, 1)
        before, now = (self.history[step - 1].double().log() for step in (early, self.taken))
        pace = (before - now) / max(self.taken - early, 1)
        steps = (now - math.log(tol)) / pace.clamp_min(1e-3)
        return torch.where(self.converged | ~torch.isfinite(steps), 0.0, steps).amax()

    def solution(self, problem: Problem, tol: float, solver: Solver, units: Tensor | None = None) -> Solution:
        """What was recorded; `units` are those in which it was computed."""
        value = torch.zeros_like(problem.like) if self.value is None else self.value
        if units is not None:
            value = self._converted(value, problem, tol, units)
        steps = torch.where(self.converged, self.steps, self.taken)
        status = _status(self, problem, tol, solver)
        return Solution(
            problem, value, self.residual, steps, self.converged, self.history[: self.taken].clone(), status
        )

    def _converted(self, value: Tensor, problem: Problem, tol: float, units: Tensor) -> Tensor:
        """`value` in the units of the problem. What that rounds, where numbers are subnormal, counts as residual."""
        converted = value / units
        self.residual = self.residual + problem.lost(value, converted, units)
        self.converged, self.answer = self.converged & (self.residual <= tol), None
        return converted


def _status(record: _Record, problem: Problem, tol: float, solver: Solver) -> Status:
    known, total, steps, name = record.known(), len(record.converged), record.taken, type(solver).__name__
    missing, bad, worst = known.missing, known.bad, known.worst
    if missing == 0:
        return Status(
            Outcome.CONVERGED, f"{name}: all {total} samples reached relative residual {tol:.1e} in {steps} steps"
        )
    if bad:
        finite_input = bool(torch.isfinite(problem.source).all())
        cause = problem.overflow if finite_input else "the source c holds NaN or inf; check the input"
        return Status(
            Outcome.NON_FINITE, f"{name}: {bad} of {total} samples became NaN or inf within {steps} steps: {cause}"
        )
    remedy = _remedy(record, problem, worst, tol)
    return Status(
        Outcome.MAX_STEPS,
        f"{name}: {missing} of {total} samples did not reach relative residual {tol:.1e} in {steps} steps "
        f"(worst {worst:.1e}); {remedy}",
    )


def _remedy(record: _Record, problem: Problem, worst: float, tol: float) -> str:
    """What to do about samples that missed the tolerance."""
    source, info = problem.source, torch.finfo(problem.like.dtype)
    largest = torch.linalg.vector_norm(source[~record.converged], math.inf, dim=tuple(range(1, source.ndim)))
    if 0 < float(largest.min()) < info.tiny / info.eps:
        return f"its source is near the smallest numbers of {source.dtype}: use float64 or rescale"
    if worst < 100 * info.eps:
        return f"this is near the rounding of {source.dtype}: use float64 or a larger tol"
    if record.rounding > tol:
        return f'with this step, rounding hides residuals below {record.rounding:.1e}: use step="auto" or float64'
    return "raise max_steps, use Anderson(…) or a tuned step, or raise m"


def _check_arguments(
    problem: Problem, solver: Solver, tol: float, max_steps: int, initial: Tensor | None, on_failure: str
) -> None:
    if not isinstance(problem, Problem):
        raise InvalidType(f"`problem` must be a splitting.Inclusion or FixedPoint, got {type(problem).__name__}")
    check_options(solver, max_steps, on_failure, tol=tol)
    if initial is not None:
        problem.check_state("initial", initial)


def check_options(solver: Solver, max_steps: int, on_failure: str, **tolerances: float) -> None:
    """Raise unless these are options that `solve` can run with.

    Args:
        solver: The method.
        max_steps: An integer ≥ 1.
        on_failure: "raise", "warn" or "return".
        **tolerances: Finite numbers > 0, by the names of their arguments.

    Raises:
        InvalidType: If solver is none.
        InvalidArgument: If another one is not as said.
    """
    if not isinstance(solver, Solver):
        raise InvalidType(f"`solver` must be a splitting solver such as PeacemanRachford(), got {solver!r}")
    for name, value in tolerances.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
            raise InvalidArgument(f"`{name}` must be a finite number > 0, got {value!r}")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise InvalidArgument(f"`max_steps` must be an integer ≥ 1, got {max_steps!r}")
    if on_failure not in ("raise", "warn", "return"):
        raise InvalidArgument(f'`on_failure` must be "raise", "warn" or "return", got {on_failure!r}')
