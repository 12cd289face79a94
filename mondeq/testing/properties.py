"""What must hold for every parameterization and every certificate, checked in float64 with proved error bounds.

Computed points enter with their `error_bound`, so a violation that is reported is one of the exact network: neither
rounding nor an unfinished solve can cause it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import combinations
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

import splitting
from mondeq.bounds import Chain, best_pairs, lipschitz_bounds
from mondeq.certificates import Report
from mondeq.modes import proving
from mondeq.network import Network
from mondeq.parameterizations import Parameterization, Readable
from mondeq.pieces import EquilibriumLayer, EquilibriumProof, Logits
from mondeq.scrutiny import check_untouched
from splitting import InvalidArgument, InvalidType, verified

# What the few operations of a comparison may have rounded, relatively.
_ROUNDING = 1e-9
_TINY = 1e-300
_Rest = ParamSpec("_Rest")
_Result = TypeVar("_Result")
# What is compared in the end is solved to this; searching needs directions only. A property with its own defaults
# stays within the 200 ms that Hypothesis allows an example, so the number of steps is bounded everywhere.
_TOL, _MAX_STEPS = 1e-10, 60
_SEARCH_STEPS = 10
# State entries solved for at a time.
_ENTRIES_AT_ONCE = 2**22


def _undisturbed(check: Callable[_Rest, _Result]) -> Callable[_Rest, _Result]:
    """`check`, whose first argument is a model, whatever modes and defaults of torch its caller is in."""

    @wraps(check)
    def undisturbed(*arguments: _Rest.args, **options: _Rest.kwargs) -> _Result:
        parameters = (p for a in arguments[:1] if isinstance(a, nn.Module) for p in a.parameters())
        parameter = next(parameters, None)
        with proving(torch.device("cpu") if parameter is None else parameter.device):
            return check(*arguments, **options)

    return undisturbed


@_undisturbed
def check_unique_equilibrium(
    parameterization: Parameterization,
    activation: splitting.Activation,
    x: Tensor,
    *,
    solvers: Sequence[splitting.Solver] = (splitting.PeacemanRachford(), splitting.ForwardBackwardForward()),
    tol: float = 1e-10,
    max_steps: int = 100,
    seed: int = 0,
) -> None:
    """Whatever the start and the method, one answer: ‖z₁ − z₂‖_Λ ≤ e₁ + e₂ with the proved error bounds eᵢ.

    Every solver runs from two random states, one of the size of the source and one a thousand times as large; all
    results
    are compared. A solve need not converge for the law to hold, so `max_steps` may be small.

    Args:
        parameterization: The parameterization, whose weights are taken to float64.
        activation: σ.
        x: Its inputs, (batch, …).
        solvers: The methods.
        tol: Relative residual at which a sample stops.
        max_steps: Steps after which a solve gives up.
        seed: Of the random states.

    Raises:
        AssertionError: m > 0 is not provable for the operator, a result has no finite bound, or two results are further
            apart than their bounds.
    """
    state = (exact := _Exact.of(parameterization, activation)).state
    source = state.linear.source(exact.shaped(x))
    generator = torch.Generator("cpu").manual_seed(seed)
    size = 1 + float(source.abs().amax()) if source.numel() else 1.0
    scales = (size, 1e3 * size)
    starts = [
        scale * torch.randn(source.shape, generator=generator, dtype=torch.float64, device="cpu") for scale in scales
    ]
    # Samples do not depend on each other: both starts run as one batch.
    twice = splitting.Inclusion(state.operator, torch.cat([source] * 2), state.layer.prox)
    found: list[tuple[str, Tensor, Tensor]] = []
    for solver in solvers:
        initial = torch.cat(starts).to(exact.device)
        solution = splitting.solve(twice, solver, tol=tol, max_steps=max_steps, initial=initial, on_failure="return")
        for scale, value, error in zip(scales, solution.value.chunk(2), solution.error_bound.chunk(2), strict=True):
            found.append((f"{solver} from a start of size {scale:.1e}", value, error))
            _require(torch.isfinite(error), f"{found[-1][0]}: no finite error bound ({solution.status})")
    for (name, first, first_error), (other, second, second_error) in combinations(found, 2):
        apart, allowed = state.operator.norm(first - second), first_error + second_error
        _require_at_most(apart, allowed, f"‖z₁ − z₂‖_Λ against the sum of the error bounds, {name}, {other}")


@_undisturbed
def check_lipschitz(
    model: Network | Parameterization,
    x: Tensor | None = None,
    *,
    activation: splitting.Activation | None = None,
    readout: Tensor | None = None,
    constant: float | None = None,
    ascent: int = 10,
    seed: int = 0,
) -> float:
    """No pair of inputs violates a certified Lipschitz bound: ‖C(z₁ − z₂)‖ ≤ K ‖x₁ − x₂‖.

    A Network is held to `lipschitz_bounds`, for all logits and for every gap of two. A Parameterization is held to
    ‖z₁ − z₂‖_Λ ≤ (‖Λ^½U‖/m) ‖x₁ − x₂‖ with its own `input_norm` and operator; one with a read-out also to its γ; and
    what
    promises a constant of its own to ‖readout (z₁ − z₂)‖ ≤ constant · ‖x₁ − x₂‖. Pairs are random, at distances from
    10⁻³
    to 10, and then moved by gradient ascent on the ratio.

    Args:
        model: The network or parameterization.
        x: Where the pairs start, images (N, *in_shape) of a network and inputs (N, …) of a parameterization; by default
            eight random inputs.
        activation: σ of a parameterization; splitting.ReLU() by default.
        readout: (outputs, n), given together with `constant`.
        constant: What is promised of `readout`.
        ascent: Steps of gradient ascent.
        seed: Of the random numbers.

    Returns:
        The largest ratio that is proved of a pair seen, as a share of the bound it belongs to.

    Raises:
        AssertionError: A bound is violated by more than the proved errors of the solves, or m > 0 is not provable.
        InvalidArgument: Only one of `readout` and `constant` is given.
    """
    exact = _Exact.of(model, activation)
    generator = torch.Generator("cpu").manual_seed(seed)
    if x is None:
        x = torch.rand(8, *model.in_shape, generator=generator, dtype=torch.float64, device="cpu")
    x = exact.shaped(x)
    promises = _promises(model, exact)
    if readout is not None and constant is not None:
        promises.append(exact.rows("the given read-out", readout, constant))
    elif readout is not None or constant is not None:
        raise InvalidArgument("`readout` and `constant` belong together: give both or neither")
    step = torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(exact.device)
    distance = torch.logspace(-3, 1, len(x), dtype=torch.float64, device=exact.device)
    pair = x, x + _columns(distance / _lengths(step), x) * step
    # One search for all promises that are ascended one by one, and one in which every pair follows another gap.
    objectives = [promise.output for promise in promises if promise.gap is None]
    gaps = [promise for promise in promises if promise.gap is not None and promise.constant > 0]
    if gaps:
        order = torch.randperm(len(gaps), generator=generator, device="cpu")
        chosen = [gaps[order[k % len(gaps)]] for k in range(len(x))]
        objectives.append(
            lambda y: torch.cat([p.output(row[None]) / p.constant for p, row in zip(chosen, y, strict=True)])
        )
    pairs = [pair, *(_ascend_pair(exact, objective, *pair, ascent) for objective in objectives)]
    first, second = (torch.cat(ends) for ends in zip(*pairs, strict=True))
    return max(_compare_pairs(exact, promises, first, second))


@_undisturbed
def check_certificate(
    model: Network,
    images: Tensor,
    labels: Tensor,
    report: Report,
    *,
    samples: int = 16,
    ascent: int = 10,
    seed: int = 0,
) -> int:
    """No perturbation inside a certified ball changes the prediction, and the columns of the report fit each other.

    Every image with a positive radius r is moved by random vectors of norm r, and by projected gradient ascent on every
    y_j − y_prediction within the ball; pixels may leave [0, 1], as certificates allow. A prediction counts as changed
    where
    some y_j − y_prediction is proved positive for the exact network. An infinite radius is attacked at norm 10³.

    Args:
        model: The network.
        images: (N, *in_shape), floating point.
        labels: (N,) integers.
        report: What `mondeq.certify(model, images, labels)` returned.
        samples: How many random vectors are tried.
        ascent: Steps of gradient ascent.
        seed: Of the random numbers.

    Returns:
        The number of images attacked.

    Raises:
        AssertionError: A certified image has a changed prediction, or columns do not fit.
        InvalidType: `model` is no network.
    """
    if not isinstance(model, Network):
        raise InvalidType(f"`model` must be a Network, got {type(model).__name__}: certificates are of predictions")
    sizes = {len(column) for column in (report.radius, report.correct, report.prediction, images, labels)}
    if len(sizes) > 1:
        raise AssertionError(f"a report on {len(report.radius)} images for {len(images)} images, {len(labels)} labels")
    radius, prediction, correct = report.radius.cpu(), report.prediction.cpu(), report.correct.cpu()
    _require(radius >= 0, "a radius is negative or NaN")
    _require(correct == (prediction == labels.cpu()), "`correct` is not `prediction == label`")
    chosen = radius > 0
    if not bool(chosen.any()):
        return 0
    exact = _Exact.of(model, None)
    x = images.detach().cpu()[chosen].to(exact.device, torch.float64)
    attack = _Attack(exact, x, prediction[chosen].to(exact.device), radius[chosen].clamp_max(1e3).to(exact.device))
    attack.check(x[None], ["nothing at all"])
    generator = torch.Generator("cpu").manual_seed(seed)
    steps = torch.randn(samples, *x.shape, generator=generator, dtype=torch.float64, device="cpu").to(exact.device)
    flat = steps.flatten(0, 1)
    directions = (flat / _columns(_lengths(flat), flat)).reshape(steps.shape)
    attack.check(attack.project(x + 2 * _columns(attack.radius, x) * directions), ["a random vector"] * samples)
    rivals = torch.arange(model.classes, device=exact.device)
    # As many rivals at once as fit.
    for group in rivals.split(max(1, _ENTRIES_AT_ONCE // (len(x) * exact.search.largest))):
        attack.check(attack.ascend(group, ascent), [f"gradient ascent towards class {r}" for r in group.tolist()])
    return len(x)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the exact model gives for some inputs, as far as it is proved.

    value: what was computed, (batch, …). radius: a bound on its error, in the norm of the last stage. logits: for
    networks, the same for differences of two logits.
    """

    value: Tensor
    radius: Tensor
    logits: Logits | None


@dataclass(frozen=True, eq=False)
class _Promise:
    """‖output(y₁) − output(y₂)‖ ≤ constant · ‖x₁ − x₂‖, for a linear output of what the model gives, right to `error`.

    gap: the two logits whose difference it is, where it is one.
    """

    name: str
    output: Callable[[Tensor], Tensor]
    error: Callable[[_Seen], Tensor]
    constant: float
    gap: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class _Exact:
    """x ↦ y of the exact network in float64: with proved errors, or differentiable and unproved.

    A parameterization is a network of one layer, whose y are its states.
    """

    chain: Chain
    search: Network
    has_logits: bool

    @staticmethod
    def of(model: Network | Parameterization, activation: splitting.Activation | None) -> _Exact:
        has_logits = isinstance(model, Network)
        if isinstance(model, Parameterization):
            check_untouched(model, "parameterization")
            layer = EquilibriumLayer(model, activation)
            model = Network({"layer": layer}, model.in_shape)
        elif not isinstance(model, Network):
            raise InvalidType(f"`model` must be a Network or a Parameterization, got {type(model).__name__}")
        chain = Chain.of(model)
        search = copy.deepcopy(chain.exact)
        for network, steps in ((chain.exact, _MAX_STEPS), (search, _SEARCH_STEPS)):
            for each in network.solved():
                each.tol = each.backward_tol = _TOL
                each.max_steps, each.on_failure = steps, "return"
        for stage in chain.stages:
            m = getattr(stage, "m", 1.0)
            if not m > 0:
                raise AssertionError(
                    f"no unique equilibrium is proved: strong monotonicity is only known to be ≥ {m:.3g}"
                )
        return _Exact(chain, search, has_logits)

    @property
    def device(self) -> torch.device:
        return self.chain.exact.device

    @property
    def state(self) -> EquilibriumProof:
        """What is proved of the layer of a parameterization."""
        return cast(EquilibriumProof, self.chain.stages[0])

    def shaped(self, x: Tensor) -> Tensor:
        """x in float64, in the shape that the network takes."""
        return x.detach().to(self.device, torch.float64).reshape(-1, *self.chain.exact.in_shape)

    def see(self, x: Tensor) -> _Seen:
        ball = self.chain.enclose(self.shaped(x))
        last = self.chain.stages[-1]
        out = last.enclose(ball)
        logits = last.logits(ball) if self.has_logits else None
        return _Seen(out.centre, out.radius, logits)

    def rows(self, name: str, C: Tensor, constant: float) -> _Promise:
        """‖C (z₁ − z₂)‖ ≤ constant · ‖x₁ − x₂‖ for the states z of a parameterization."""
        C = C.detach().to(self.device, torch.float64)
        root = self.state.norm.root
        scaled = C if root is None else C / root.flatten()
        # What an error of 1 of the state in the Λ-norm can make of C z.
        gain = float(verified.vector_norm(scaled).square().sum().sqrt()) * (1 + _ROUNDING)
        return _Promise(name, lambda z: z.flatten(1) @ C.mT, lambda seen: gain * seen.radius, constant)


def _promises(model: Network | Parameterization, exact: _Exact) -> list[_Promise]:
    """What mondeq itself certifies of `model`."""
    if isinstance(model, Parameterization):
        root, constant = exact.state.norm.root, exact.state.constant
        weight = torch.ones((), device=exact.device) if root is None else root
        state = _Promise("Λ^½ z", lambda z: (z * weight).flatten(1), lambda seen: seen.radius, constant)
        if isinstance(model, Readable):
            return [state, exact.rows("C z", _read_matrix(cast(Readable, exact.state.linear)), model.gain)]
        return [state]
    bounds = lipschitz_bounds(model, chain=exact.chain)
    smallest = min(b.value for b in bounds.values() if b.is_certified)
    pairs = best_pairs(bounds)
    out = exact.chain.stages[-1].norm.euclidean()
    return [
        _Promise("the vector of logits", lambda y: y, lambda seen: out * seen.radius, smallest),
        *(_gap(i, j, float(pairs[i, j])) for i, j in combinations(range(len(pairs)), 2)),
    ]


def _read_matrix(linear: Readable) -> Tensor:
    """C of y = C z + d for flat states and read-outs: column j is C eⱼ."""
    basis = torch.eye(linear.state_shape.numel(), dtype=torch.float64, device=linear.operator().device)
    with torch.no_grad():
        states = basis.view(-1, *linear.state_shape)
        return (linear.read(states) - linear.read(torch.zeros_like(states))).flatten(1).mT


def _gap(i: int, j: int, constant: float) -> _Promise:
    def error(seen: _Seen) -> Tensor:
        logits = cast(Logits, seen.logits)  # only networks promise gaps
        return logits.gains[i, j] * logits.radius + logits.rounding[:, 0]

    return _Promise(f"logit {i} − logit {j}", lambda y: (y[:, i] - y[:, j])[:, None], error, constant, (i, j))


def _ascend_pair(
    exact: _Exact, output: Callable[[Tensor], Tensor], first: Tensor, second: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Both ends moved by normalised gradient ascent on ‖output(y₁) − output(y₂)‖/‖x₁ − x₂‖."""
    for step in range(steps):
        with torch.enable_grad():
            a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
            y, other = exact.search(torch.cat([a, b])).chunk(2)
            moved, distance = output(y - other).norm(dim=1), _lengths(a - b)
            ratio = moved.clamp_min(_TINY).log() - distance.log()
            up, down = (g.nan_to_num(0.0, 0.0, 0.0) for g in torch.autograd.grad(ratio.sum(), (a, b)))
        length = _lengths(torch.stack([up, down], dim=1))
        stride = _columns(0.5 * 0.9**step * distance.detach() / length, first)
        first, second = first + stride * up, second + stride * down
    return first, second


def _compare_pairs(exact: _Exact, promises: Sequence[_Promise], first: Tensor, second: Tensor) -> list[float]:
    """The largest share of each constant that is seen; raises where it is more than all of it."""
    here, there = exact.see(first), exact.see(second)
    distance = _lengths(first - second)
    shares = [0.0]
    for promise in promises:
        moved, bound = promise.output(here.value - there.value).norm(dim=1), promise.constant * distance
        excess = f"{promise.name} moves by more than {promise.constant:.9g} times the distance of the inputs"
        # What is proved of the exact network, whether or not the solves finished.
        proved = (moved - (promise.error(here) + promise.error(there)) * (1 + _ROUNDING)).clamp_min(0)
        _require_at_most(proved, bound, excess)
        share = proved / bound
        shares += share[torch.isfinite(share)].tolist()
    return shares


@dataclass(frozen=True, eq=False)
class _Attack:
    """Images x (N, …) with predictions and radii, and the search for points within the radius predicted otherwise."""

    exact: _Exact
    x: Tensor
    prediction: Tensor
    radius: Tensor

    def gaps(self, y: Tensor) -> Tensor:
        """y_prediction − y_j for all j, (…, N, classes), of the logits of (…, N) points."""
        grouped = y.unflatten(0, (-1, len(self.x)))
        own = self.prediction[None, :, None].expand(len(grouped), -1, 1)
        return grouped.gather(2, own) - grouped

    def project(self, points: Tensor) -> Tensor:
        """The nearest points of the balls, a hair inside them; points (groups, N, …)."""
        step = points - self.x
        length = _lengths(step.flatten(0, 1)).reshape(step.shape[:2])
        scale = (self.radius * (1 - _ROUNDING) / length).clamp_max(1)
        return self.x + scale.reshape(*scale.shape, *[1] * (self.x.ndim - 1)) * step

    def ascend(self, rivals: Tensor, steps: int) -> Tensor:
        """Projected gradient ascent on y_rival − y_prediction for each of `rivals`, (rivals, N, …)."""
        points = self.x.expand(len(rivals), *self.x.shape)
        chosen = rivals[:, None, None].expand(-1, len(self.x), 1)
        for step in range(steps):
            with torch.enable_grad():
                moving = points.flatten(0, 1).clone().requires_grad_()
                gaps = self.gaps(self.exact.search(moving)).gather(2, chosen)
                (gradient,) = torch.autograd.grad(gaps.sum(), moving)
            gradient = (gradient / _columns(_lengths(gradient), gradient)).reshape(points.shape)
            points = self.project(points - 2 * 0.8**step * _columns(self.radius, self.x) * gradient)
        return points

    def check(self, points: Tensor, what: Sequence[str]) -> None:
        """Raise AssertionError if a prediction at `points` (groups, N, …) is proved to differ; what: of each group."""
        most = max(1, _ENTRIES_AT_ONCE // (len(self.x) * self.exact.search.largest))
        for first in range(0, len(points), most):
            self._check(points[first : first + most], what[first:])

    def _check(self, points: Tensor, what: Sequence[str]) -> None:
        logits = self.exact.see(points.flatten(0, 1)).logits
        if logits is None:
            raise InvalidType("only a network with logits has predictions")
        slack = logits.slack(self.prediction.repeat(len(points))).unflatten(0, (-1, len(self.x)))
        gaps = self.gaps(logits.value)
        for group, sample, rival in (gaps < -slack * (1 + _ROUNDING)).nonzero()[:1].tolist():
            raise AssertionError(
                f"{what[group]} turns certified image {sample} of class {int(self.prediction[sample])} into class "
                f"{rival}: distance {float((points[group, sample] - self.x[sample]).norm()):.9g}, certified radius "
                f"{float(self.radius[sample]):.9g}, gap {float(gaps[group, sample, rival]):.3g}"
            )


def _lengths(x: Tensor) -> Tensor:
    """‖x‖₂ of every sample, never 0."""
    return x.flatten(1).norm(dim=1).clamp_min(_TINY)


def _columns(values: Tensor, like: Tensor) -> Tensor:
    """`values` (N,) shaped to multiply `like` (N, …)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _require(holds: Tensor, failure: str) -> None:
    if not bool(holds.all()):
        raise AssertionError(f"{failure}; first at sample {int((~holds).nonzero()[0, 0])}")


def _require_at_most(value: Tensor, allowed: Tensor, failure: str) -> None:
    wrong = ~(value <= allowed * (1 + _ROUNDING))
    if bool(wrong.any()):
        sample = int(wrong.nonzero()[0, 0])
        raise AssertionError(f"{failure}: {float(value[sample]):.9g} > {float(allowed[sample]):.9g} at sample {sample}")
