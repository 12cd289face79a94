"""What must hold for every parameterization and every certificate, checked in float64 with proved error bounds.

Computed points enter with their `error_bound`, so a violation that is reported is one of the exact network: neither
rounding nor an unfinished solve can cause it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from itertools import combinations
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

import splitting
from mondeq.certify import Report
from mondeq.features import Entries, Features
from mondeq.layer import EquilibriumLayer
from mondeq.lipschitz import best_pairs, lipschitz_bounds
from mondeq.models import Classifier, exact_copy
from mondeq.parameterizations import LipschitzDense, Parameterization
from mondeq.scrutiny import check_activation, check_untouched, is_own, proving
from splitting import verified
from splitting.errors import InvalidArgument, InvalidType

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

    x: (batch, …), inputs of `parameterization`, whose weights are taken to float64. Every solver runs from two random
    states, one of the size of the source and one a thousand times as large; all results are compared. A solve need
    not converge for the law to hold, so `max_steps` may be small. Raises AssertionError where m > 0 is not provable
    for the operator, where a result has no finite bound, or where two results are further apart than their bounds.
    """
    exact = _Exact.of(parameterization, activation)
    problem = exact.problem(x)
    generator = torch.Generator("cpu").manual_seed(seed)
    size = 1 + float(problem.source.abs().amax()) if problem.source.numel() else 1.0
    scales = (size, 1e3 * size)
    starts = [
        scale * torch.randn(problem.source.shape, generator=generator, dtype=torch.float64, device="cpu")
        for scale in scales
    ]
    # Samples do not depend on each other: both starts run as one batch.
    twice = splitting.Inclusion(exact.operator, torch.cat([problem.source] * 2), problem.prox)
    found: list[tuple[str, Tensor, Tensor]] = []
    for solver in solvers:
        initial = torch.cat(starts).to(exact.device)
        solution = splitting.solve(twice, solver, tol=tol, max_steps=max_steps, initial=initial, on_failure="return")
        for scale, value, error in zip(scales, solution.value.chunk(2), solution.error_bound.chunk(2), strict=True):
            found.append((f"{solver} from a start of size {scale:.1e}", value, error))
            _require(torch.isfinite(error), f"{found[-1][0]}: no finite error bound ({solution.status})")
    for (name, first, first_error), (other, second, second_error) in combinations(found, 2):
        apart, allowed = exact.operator.norm(first - second), first_error + second_error
        _require_at_most(apart, allowed, f"‖z₁ − z₂‖_Λ against the sum of the error bounds, {name}, {other}")


@_undisturbed
def check_lipschitz(
    model: Classifier | Parameterization,
    x: Tensor | None = None,
    *,
    activation: splitting.Activation | None = None,
    readout: Tensor | None = None,
    constant: float | None = None,
    ascent: int = 10,
    seed: int = 0,
) -> float:
    """No pair of inputs violates a certified Lipschitz bound: ‖C(z₁ − z₂)‖ ≤ K ‖x₁ − x₂‖.

    A Classifier is held to `lipschitz_bounds`, for all logits and for every gap of two, at images x (N, C, H, W). A
    Parameterization is held to ‖z₁ − z₂‖_Λ ≤ (‖Λ^½U‖/m) ‖x₁ − x₂‖ with its own `input_norm` and operator, under
    `activation` (ReLU by default), at x (N, …); a LipschitzDense also to its γ; and what promises a constant of its
    own to ‖readout (z₁ − z₂)‖ ≤ constant · ‖x₁ − x₂‖, for readout (outputs, n) and `constant` given together. Pairs are
    random, at distances from 10⁻³ to 10, and then moved by `ascent` steps of gradient ascent on the ratio. x: where
    the pairs start; by default eight random inputs.

    Returns the largest ratio that is proved of a pair seen, as a share of the bound it belongs to. Raises
    AssertionError where a bound is violated by more than the proved errors of the solves, or where m > 0 is not
    provable.
    """
    exact = _Exact.of(model, activation)
    generator = torch.Generator("cpu").manual_seed(seed)
    if x is None:
        shape = model.config.image_shape if isinstance(model, Classifier) else (model.in_features,)
        x = torch.rand(8, *shape, generator=generator, dtype=torch.float64, device="cpu")
    x = x.detach().to(exact.device, torch.float64)
    promises = _promises(model, exact)
    if readout is not None and constant is not None:
        promises.append(exact.promise("the given read-out", readout, constant))
    elif readout is not None or constant is not None:
        raise InvalidArgument("`readout` and `constant` belong together: give both or neither")
    step = torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(exact.device)
    distance = torch.logspace(-3, 1, len(x), dtype=torch.float64, device=exact.device)
    pair = x, x + _columns(distance / _lengths(step), x) * step
    # One search for all promises that are ascended one by one, and one in which every pair follows another gap.
    objectives: list[Callable[[Tensor], Tensor]] = [p.output for p in promises if p.rows is None or len(p.rows) > 1]
    single = [p.rows / p.constant for p in promises if p.rows is not None and len(p.rows) == 1 and p.constant > 0]
    if single:
        order = torch.randperm(len(single), generator=generator, device="cpu")[
            torch.arange(len(x), device="cpu") % len(single)
        ]
        chosen = torch.cat(single)[order.to(exact.device)]
        objectives.append(lambda z: (exact.features(z) * chosen).sum(1, keepdim=True))
    pairs = [pair, *(_ascend_pair(exact, objective, *pair, ascent) for objective in objectives)]
    first, second = (torch.cat(ends) for ends in zip(*pairs, strict=True))
    return max(_compare_pairs(exact, promises, first, second))


@_undisturbed
def check_certificate(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    report: Report,
    *,
    samples: int = 16,
    ascent: int = 10,
    seed: int = 0,
) -> int:
    """No perturbation inside a certified ball changes the prediction, and the columns of the report fit each other.

    report: what `mondeq.certify(model, images, labels)` returned. Every image with a positive radius r is moved by
    `samples` random vectors of norm r, and by `ascent` steps of projected gradient ascent on every y_j − y_prediction
    within the ball; pixels may leave [0, 1], as certificates allow. A prediction counts as changed where some
    y_j − y_prediction is proved positive for the exact network. An infinite radius is attacked at norm 10³.

    Returns the number of images attacked. Raises AssertionError for a certified image with a changed prediction.
    """
    if not isinstance(model, Classifier):
        raise InvalidType(f"`model` must be a Classifier, got {type(model).__name__}: certificates are of predictions")
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
    directions = steps / _lengths(steps.flatten(0, 1)).reshape(samples, -1, 1, 1, 1)
    attack.check(attack.project(x + 2 * _columns(attack.radius, x) * directions), ["a random vector"] * samples)
    rivals = torch.arange(model.config.classes, device=exact.device)
    # As many rivals at once as fit.
    for group in rivals.split(max(1, _ENTRIES_AT_ONCE // (len(x) * exact.linear.state_shape.numel()))):
        attack.check(attack.ascend(group, ascent), [f"gradient ascent towards class {r}" for r in group.tolist()])
    return len(x)


@dataclass(frozen=True, eq=False)
class _Promise:
    """‖output(z₁) − output(z₂)‖ ≤ constant · ‖x₁ − x₂‖. output is linear, ‖output(e)‖ ≤ gain · ‖e‖_Λ; rows: as a matrix
    (outputs, n), None for Λ^½."""

    name: str
    output: Callable[[Tensor], Tensor]
    gain: float
    constant: float
    rows: Tensor | None


@dataclass(frozen=True, eq=False)
class _Exact:
    """x ↦ z* of the exact network in float64: with a proved error bound, or differentiable and unproved."""

    linear: Parameterization
    operator: splitting.Operator
    solver: splitting.Solver
    layer: EquilibriumLayer
    classifier: Classifier | None

    @staticmethod
    def of(model: Classifier | Parameterization, activation: splitting.Activation | None) -> _Exact:
        if not isinstance(model, (Classifier, Parameterization)):
            raise InvalidType(f"`model` must be a Classifier or a Parameterization, got {type(model).__name__}")
        classifier: Classifier | None = None
        linear: Parameterization
        own: splitting.Activation = splitting.ReLU()
        if isinstance(model, Classifier):
            classifier = exact_copy(model)
            linear, own = classifier.linear, classifier.layer.activation
        else:
            check_untouched(model, "parameterization")
            is_own(model)
            with torch.inference_mode(False), torch.no_grad():
                linear = copy.deepcopy(model).double().requires_grad_(False)
        if activation is None:
            activation = own
        else:
            check_activation(activation, linear.state_shape)
        activation = activation.rebind(*(t.double() for t in activation.tensors))
        layer = EquilibriumLayer(linear, activation, max_steps=_SEARCH_STEPS, on_failure="return").eval()
        operator = layer.linear.operator()
        if not operator.strong_monotonicity > 0:
            raise AssertionError(
                f"no unique equilibrium is proved: strong monotonicity is only known to be ≥ "
                f"{operator.strong_monotonicity:.3g}"
            )
        solver = splitting.Anderson(splitting.PeacemanRachford()).tuned(operator)
        return _Exact(layer.linear, operator, solver, layer, classifier)

    @property
    def device(self) -> torch.device:
        return self.operator.device

    @property
    def features(self) -> Features:
        """P: what a classifier's head sees of a state; elsewhere all of it."""
        return Entries(self.operator.state_shape) if self.classifier is None else self.classifier.features

    def prepare(self, x: Tensor) -> Tensor:
        return x if self.classifier is None else self.classifier.prepare(x)

    def problem(self, x: Tensor) -> splitting.Inclusion:
        source = self.linear.source(self.prepare(x.detach().to(self.device, torch.float64)))
        return splitting.Inclusion(self.operator, source, self.layer.prox)

    def state(self, x: Tensor) -> Tensor:
        """z, differentiable in x."""
        return self.layer(self.prepare(x))

    def solve(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and a proved bound on ‖z − z*(x)‖_Λ per sample, the rounding of the source included."""
        solution = splitting.solve(self.problem(x), self.solver, tol=_TOL, max_steps=_MAX_STEPS, on_failure="return")
        size = x.abs()
        if self.classifier is not None:
            mean, std = self.classifier.normalise.constants(size)
            size = (size + mean.abs()) / std
        rounding = self.linear.source_rounding(size.flatten(1)) / self.operator.strong_monotonicity
        return solution.value, solution.error_bound + rounding

    def promise(self, name: str, C: Tensor, constant: float) -> _Promise:
        C = C.detach().to(self.device, torch.float64)
        gain = float(self.gains(C).square().sum().sqrt()) * (1 + _ROUNDING)
        return _Promise(name, lambda z: self.features(z) @ C.mT, gain, constant, C)

    def gains(self, C: Tensor) -> Tensor:
        """‖c P Λ^-½‖ of every row c of C: what an error of 1 of the state in the Λ-norm can make of c P z."""
        root = self.operator.root_metric
        return self.features.gain * verified.vector_norm(C if root is None else C / root.flatten()) * (1 + _ROUNDING)


def _promises(model: Classifier | Parameterization, exact: _Exact) -> list[_Promise]:
    """What mondeq itself certifies of `model`."""
    if exact.classifier is not None:
        bounds = lipschitz_bounds(exact.classifier)
        smallest = min(b.value for b in bounds.values() if b.kind == "certified")
        head, pairs = exact.classifier.head_weight, best_pairs(bounds)
        gaps = combinations(range(len(head)), 2)
        return [
            exact.promise("the vector of logits", head, smallest),
            *(exact.promise(f"logit {i} − logit {j}", (head[i] - head[j])[None], float(pairs[i, j])) for i, j in gaps),
        ]
    root = exact.operator.root_metric
    everything = torch.ones(exact.linear.in_features, dtype=torch.float64, device=exact.device)
    product = exact.linear.input_norm(everything) / exact.operator.strong_monotonicity
    state = _Promise("Λ^½ z", lambda z: (z if root is None else z * root).flatten(1), 1.0, product, None)
    if isinstance(exact.linear, LipschitzDense):
        return [state, exact.promise("W_o z", exact.linear.W_o, exact.linear.gamma)]
    return [state]


def _ascend_pair(
    exact: _Exact, output: Callable[[Tensor], Tensor], first: Tensor, second: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Both ends moved by normalised gradient ascent on ‖output(z₁) − output(z₂)‖/‖x₁ − x₂‖."""
    for step in range(steps):
        with torch.enable_grad():
            a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
            z, other = exact.state(torch.cat([a, b])).chunk(2)
            moved, distance = output(z - other).norm(dim=1), _lengths(a - b)
            ratio = moved.clamp_min(_TINY).log() - distance.log()
            up, down = (g.nan_to_num(0.0, 0.0, 0.0) for g in torch.autograd.grad(ratio.sum(), (a, b)))
        length = _lengths(torch.stack([up, down], dim=1))
        stride = _columns(0.5 * 0.9**step * distance.detach() / length, first)
        first, second = first + stride * up, second + stride * down
    return first, second


def _compare_pairs(exact: _Exact, promises: Sequence[_Promise], first: Tensor, second: Tensor) -> list[float]:
    """The largest share of each constant that is seen; raises where it is more than all of it."""
    states, errors = exact.solve(torch.cat([first, second]))
    (z, other), (error, other_error) = states.chunk(2), errors.chunk(2)
    distance = _lengths(first - second)
    shares = [0.0]
    for promise in promises:
        moved, bound = promise.output(z - other).norm(dim=1), promise.constant * distance
        excess = f"{promise.name} moves by more than {promise.constant:.9g} times the distance of the inputs"
        # What is proved of the exact network, whether or not the solves finished.
        proved = (moved - promise.gain * (error + other_error)).clamp_min(0)
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

    @cached_property
    def differences(self) -> tuple[Tensor, Tensor, Tensor]:
        """w_i − w_j, b_i − b_j and the gains of the former, i the prediction: (N, classes, n), then (N, classes)."""
        classifier = self.exact.classifier
        if classifier is None:
            raise InvalidType("only a Classifier has predictions")
        head, bias = classifier.head_weight, classifier.head_bias
        rows = head[self.prediction][:, None] - head
        gains = self.exact.gains(rows.flatten(0, 1)).reshape(rows.shape[:2])
        return rows, bias[self.prediction][:, None] - bias, gains

    def gaps(self, z: Tensor) -> Tensor:
        """y_prediction − y_j for all j, (…, N, classes), at states of (…, N) points."""
        rows, offsets, _ = self.differences
        features = self.exact.features(z).unflatten(0, (-1, len(self.x)))
        return torch.einsum("ijk,gik->gij", rows, features) + offsets

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
                gaps = self.gaps(self.exact.state(moving)).gather(2, chosen)
                (gradient,) = torch.autograd.grad(gaps.sum(), moving)
            gradient = (gradient / _columns(_lengths(gradient), gradient)).reshape(points.shape)
            points = self.project(points - 2 * 0.8**step * _columns(self.radius, self.x) * gradient)
        return points

    def check(self, points: Tensor, what: Sequence[str]) -> None:
        """Raise AssertionError if a prediction at `points` (groups, N, …) is proved to differ; what: of each group."""
        most = max(1, _ENTRIES_AT_ONCE // (len(self.x) * self.exact.linear.state_shape.numel()))
        for first in range(0, len(points), most):
            self._check(points[first : first + most], what[first:])

    def _check(self, points: Tensor, what: Sequence[str]) -> None:
        z, error = self.exact.solve(points.flatten(0, 1))
        rows, offsets, gains = self.differences
        sizes = self.exact.features(z.abs()).unflatten(0, (-1, len(self.x)))
        size = torch.einsum("ijk,gik->gij", rows.abs(), sizes) + offsets.abs()
        rounding = verified.gamma(rows.shape[2] + self.exact.features.terms + 8) * size
        slack = gains * error.reshape(-1, len(self.x), 1) + rounding
        gaps = self.gaps(z)
        for group, sample, rival in (gaps < -slack).nonzero()[:1].tolist():
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
