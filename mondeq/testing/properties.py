"""What must hold for every parameterization and every certificate, checked in float64 with proved error bounds.

Computed points enter with their `error_bound`, so a violation that is reported is one of the exact network: neither
rounding nor an unfinished solve can cause it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
from torch import Tensor

import splitting
from mondeq.certify import Report
from mondeq.features import Entries, Features
from mondeq.layer import EquilibriumLayer
from mondeq.lipschitz import best_pairs, lipschitz_bounds
from mondeq.models import Classifier, exact_copy
from mondeq.parameterizations import LipschitzDense, Parameterization
from splitting import verified
from splitting.errors import InvalidArgument, InvalidType

# What the few operations of a comparison may have rounded, relatively.
_ROUNDING = 1e-9
_TINY = 1e-300
# Searching needs directions only; what is compared in the end is solved to this.
_TOL, _MAX_STEPS = 1e-10, 1000


def check_unique_equilibrium(
    parameterization: Parameterization,
    activation: splitting.Activation,
    x: Tensor,
    *,
    solvers: Sequence[splitting.Solver] = (splitting.PeacemanRachford(), splitting.ForwardBackwardForward()),
    tol: float = 1e-10,
    max_steps: int = 200,
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
    generator = torch.Generator().manual_seed(seed)
    size = 1 + float(problem.source.abs().amax()) if problem.source.numel() else 1.0
    found: list[tuple[str, splitting.Solution]] = []
    for solver in solvers:
        for scale in (size, 1e3 * size):
            start = scale * torch.randn(problem.source.shape, generator=generator, dtype=torch.float64)
            solution = splitting.solve(
                problem,
                solver,
                tol=tol,
                max_steps=max_steps,
                initial=start.to(exact.device),
                on_failure="return",
            )
            found.append((f"{solver} from a start of size {scale:.1e}", solution))
            _require(torch.isfinite(solution.error_bound), f"{found[-1][0]}: no finite error bound ({solution.status})")
    for (name, first), (other, second) in combinations(found, 2):
        apart = exact.operator.norm(first.value - second.value)
        allowed = first.error_bound + second.error_bound
        _require_at_most(apart, allowed, f"‖z₁ − z₂‖_Λ against the sum of the error bounds, {name}, {other}")


def check_lipschitz(
    model: Classifier | Parameterization,
    x: Tensor | None = None,
    *,
    activation: splitting.Activation | None = None,
    readout: Tensor | None = None,
    constant: float | None = None,
    ascent: int = 20,
    seed: int = 0,
) -> float:
    """No pair of inputs violates a certified Lipschitz bound: ‖C(z₁ − z₂)‖ ≤ K ‖x₁ − x₂‖.

    A Classifier is held to `lipschitz_bounds`, for all logits and for every gap of two, at images x (N, C, H, W). A
    Parameterization is held to ‖z₁ − z₂‖_Λ ≤ (‖Λ^½U‖/m) ‖x₁ − x₂‖ with its own `input_norm` and operator, under
    `activation` (ReLU by default), at x (N, …); a LipschitzDense also to its γ; and what promises a constant of its
    own to ‖readout (z₁ − z₂)‖ ≤ constant · ‖x₁ − x₂‖, for readout (outputs, n) and `constant` given together. Pairs are
    random, at distances from 10⁻³ to 10, and then moved by `ascent` steps of gradient ascent on the ratio. x: where
    the pairs start; by default eight random inputs.

    Returns the largest ratio seen, as a share of the bound it belongs to. Raises AssertionError where a bound is
    violated by more than the proved errors of the solves, or where m > 0 is not provable.
    """
    exact = _Exact.of(model, activation)
    generator = torch.Generator().manual_seed(seed)
    if x is None:
        shape = model.config.image_shape if isinstance(model, Classifier) else (model.in_features,)
        x = torch.rand(8, *shape, generator=generator, dtype=torch.float64)
    x = x.detach().to(exact.device, torch.float64)
    promises = _promises(model, exact)
    if readout is not None and constant is not None:
        promises.append(exact.promise("the given read-out", readout, constant))
    elif readout is not None or constant is not None:
        raise InvalidArgument("`readout` and `constant` belong together: give both or neither")
    step = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(exact.device)
    distance = torch.logspace(-3, 1, len(x), dtype=torch.float64, device=exact.device)
    pair = x, x + _columns(distance / _lengths(step), x) * step
    # One search for all promises that are ascended one by one, and one in which every pair follows another gap.
    objectives: list[Callable[[Tensor], Tensor]] = [p.output for p in promises if p.rows is None or len(p.rows) > 1]
    single = [p.rows / p.constant for p in promises if p.rows is not None and len(p.rows) == 1 and p.constant > 0]
    if single:
        order = torch.randperm(len(single), generator=generator)[torch.arange(len(x)) % len(single)]
        chosen = torch.cat(single)[order]
        objectives.append(lambda z: (exact.features(z) * chosen).sum(1, keepdim=True))
    pairs = [pair, *(_ascend_pair(exact, objective, *pair, ascent) for objective in objectives)]
    return max(share for a, b in pairs for share in _compare_pair(exact, promises, a, b))


def check_certificate(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    report: Report,
    *,
    samples: int = 16,
    ascent: int = 20,
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
    attack.check(x, "nothing at all")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        step = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(exact.device)
        attack.check(attack.project(x + _columns(attack.radius * 2 / _lengths(step), x) * step), "a random vector")
    for rival in range(model.config.classes):
        attack.check(attack.ascend(rival, ascent), f"gradient ascent towards class {rival}")
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
            linear = copy.deepcopy(model).double().requires_grad_(False)
        activation = own if activation is None else activation
        activation = activation.rebind(*(t.double() for t in activation.tensors))
        layer = EquilibriumLayer(linear, activation, on_failure="return").eval()
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
            moved, distance = output(exact.state(a) - exact.state(b)).norm(dim=1), _lengths(a - b)
            ratio = moved.clamp_min(_TINY).log() - distance.log()
            up, down = (g.nan_to_num(0.0, 0.0, 0.0) for g in torch.autograd.grad(ratio.sum(), (a, b)))
        length = _lengths(torch.stack([up, down], dim=1))
        stride = _columns(0.5 * 0.9**step * distance.detach() / length, first)
        first, second = first + stride * up, second + stride * down
    return first, second


def _compare_pair(exact: _Exact, promises: Sequence[_Promise], first: Tensor, second: Tensor) -> list[float]:
    """The largest share of each constant that is seen; raises where it is more than all of it."""
    (z, error), (other, other_error) = exact.solve(first), exact.solve(second)
    distance = _lengths(first - second)
    shares = [0.0]
    for promise in promises:
        moved, bound = promise.output(z - other).norm(dim=1), promise.constant * distance
        excess = f"{promise.name} moves by more than {promise.constant:.9g} times the distance of the inputs"
        _require_at_most(moved - promise.gain * (error + other_error), bound, excess)
        share = moved / bound
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
        """y_prediction − y_j for all j, (N, classes)."""
        rows, offsets, _ = self.differences
        return torch.einsum("ijk,ik->ij", rows, self.exact.features(z)) + offsets

    def project(self, points: Tensor) -> Tensor:
        """The nearest points of the balls, a hair inside them."""
        step = points - self.x
        scale = (self.radius * (1 - _ROUNDING) / _lengths(step)).clamp_max(1)
        return self.x + _columns(scale, step) * step

    def ascend(self, rival: int, steps: int) -> Tensor:
        """Projected gradient ascent on y_rival − y_prediction."""
        points = self.x
        for step in range(steps):
            with torch.enable_grad():
                moving = points.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(self.gaps(self.exact.state(moving))[:, rival].sum(), moving)
            stride = _columns(self.radius * 2 * 0.8**step / _lengths(gradient), gradient)
            points = self.project(points - stride * gradient)
        return points

    def check(self, points: Tensor, what: str) -> None:
        """Raise AssertionError if a prediction at `points` is proved to differ."""
        z, error = self.exact.solve(points)
        rows, offsets, gains = self.differences
        size = torch.einsum("ijk,ik->ij", rows.abs(), self.exact.features(z.abs())) + offsets.abs()
        slack = gains * error[:, None] + verified.gamma(rows.shape[2] + self.exact.features.terms + 8) * size
        gaps = self.gaps(z)
        for sample, rival in (gaps < -slack).nonzero()[:1].tolist():
            raise AssertionError(
                f"{what} turns certified image {sample} of class {int(self.prediction[sample])} into class {rival}: "
                f"distance {float(_lengths(points - self.x)[sample]):.9g}, certified radius "
                f"{float(self.radius[sample]):.9g}, gap {float(gaps[sample, rival]):.3g}"
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
