"""What must hold for every parameterization and every certificate, checked in float64 with proved error bounds.

Computed points enter with their `error_bound`, so a violation that is reported is one of the exact network: neither
rounding nor an unfinished solve can cause it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

import splitting
from mondeq.certify import Report
from mondeq.layer import EquilibriumLayer
from mondeq.lipschitz import best_pairs, lipschitz_bounds
from mondeq.models import Classifier, exact_copy
from mondeq.parameterizations import LipschitzDense, Parameterization
from splitting import verified

# What the last few operations of a comparison may have rounded.
_ROUNDING = 1e-9


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
    size = 1 + float(problem.source.abs().max()) if problem.source.numel() else 1.0
    found: list[tuple[str, splitting.Solution]] = []
    for solver in solvers:
        for scale in (size, 1e3 * size):
            start = scale * torch.randn(problem.source.shape, generator=generator, dtype=torch.float64)
            initial = start.to(problem.source.device)
            solution = splitting.solve(
                problem, solver, tol=tol, max_steps=max_steps, initial=initial, on_failure="return"
            )
            name = f"{solver} from a start of size {scale:.1e}"
            _require(
                torch.isfinite(solution.error_bound), f"{name} has no finite error bound", solution.status, len(found)
            )
            found.append((name, solution))
    for (name, first), (other, second) in combinations(found, 2):
        apart = exact.operator.norm(first.value - second.value)
        allowed = first.error_bound + second.error_bound
        _require_at_most(apart, allowed, f"two equilibria: ‖z₁ − z₂‖_Λ against the sum of the bounds of {name}, {other}")


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
    `activation` (ReLU by default); a LipschitzDense also to its γ; and one that promises a constant of its own to
    ‖readout z₁ − readout z₂‖ ≤ constant · ‖x₁ − x₂‖, readout (outputs, n), for the two arguments given together.
    Pairs are random, at distances from 10⁻³ to 10, and then moved by `ascent` steps of gradient ascent on the ratio.
    x: where the pairs start; by default eight random inputs.

    Returns the largest ratio seen, as a share of the bound it came closest to. Raises AssertionError where a bound is
    violated, by more than the proved errors of the solves, or where m > 0 is not provable.
    """
    exact = _Exact.of(model, activation)
    generator = torch.Generator().manual_seed(seed)
    if x is None:
        shape = model.config.image_shape if isinstance(model, Classifier) else (model.in_features,)
        x = torch.rand(8, *shape, generator=generator, dtype=torch.float64).to(exact.device)
    promises = _promises(model, exact, readout, constant)
    largest = 0.0
    for promise in promises:
        distances = torch.logspace(-3, 1, len(x), dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1))
        step = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        step = step / step.flatten(1).norm(dim=1).reshape(distances.shape).clamp_min(1e-300) * distances
        first = x.detach().double()
        second = first + step.to(first)
        for pair in ((first, second), _ascend_pair(exact, promise, first, second, ascent)):
            largest = max(largest, _compare_pair(exact, promise, *pair))
    return largest


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
    """No perturbation inside a certified ball changes the prediction, and the report's columns are consistent.

    report: what `mondeq.certify(model, images, labels)` returned. Every image with a positive radius r is moved by
    `samples` random vectors of norm r, and by `ascent` steps of projected gradient ascent on every gap y_j − y_i
    within the ball; pixels may leave [0, 1], as certificates allow. A prediction counts as changed where some
    y_j − y_i is proved positive for the exact network. An infinite radius is attacked at norm 10³.

    Returns the number of images attacked. Raises AssertionError for a certified image with a changed prediction.
    """
    if not len(report.radius) == len(report.prediction) == len(report.correct) == len(images) == len(labels):
        raise AssertionError(
            f"the report has {len(report.radius)} radii, {len(report.prediction)} predictions and "
            f"{len(report.correct)} marks for {len(images)} images and {len(labels)} labels"
        )
    _require(report.correct.cpu() == (report.prediction == labels.to(report.prediction.device)).cpu(), "`correct` is wrong")
    _require(report.radius.cpu() >= 0, "a radius is negative or NaN")
    certified = (report.radius > 0).to(images.device)
    exact = _Exact.of(model, None)
    x = images.detach().double()[certified].to(exact.device)
    prediction = report.prediction.to(exact.device)[certified.to(exact.device)]
    radius = report.radius.to(exact.device)[certified.to(exact.device)].clamp_max(1e3)
    attack = _Attack(exact, x, prediction, radius)
    attack.check(x, "the image itself")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples if len(x) else 0):
        step = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(exact.device)
        attack.check(attack.project(x + step * 1e6), "a random perturbation")
    for rival in range(model.config.classes if len(x) else 0):
        attack.check(attack.ascend(rival, ascent), f"gradient ascent towards class {rival}")
    return len(x)


@dataclass(frozen=True, eq=False)
class _Exact:
    """x ↦ z* of the exact network in float64, with a proved error bound, and the same differentiable but unproved."""

    linear: Parameterization
    operator: splitting.Operator
    layer: EquilibriumLayer
    classifier: Classifier | None

    @staticmethod
    def of(model: Classifier | Parameterization, activation: splitting.Activation | None) -> _Exact:
        classifier = exact_copy(model) if isinstance(model, Classifier) else None
        linear = copy.deepcopy(model).double().requires_grad_(False) if classifier is None else classifier.linear
        if not isinstance(linear, Parameterization):
            raise TypeError(f"`model` must be a Classifier or a Parameterization, got {type(model).__name__}")
        if activation is None:
            activation = splitting.ReLU() if classifier is None else classifier.layer.activation
        operator = linear.operator()
        m = operator.strong_monotonicity
        if not m > 0:
            raise AssertionError(f"no unique equilibrium is proved: strong monotonicity is only known to be ≥ {m:.3g}")
        solver = splitting.Anderson(splitting.PeacemanRachford())
        activation = activation.rebind(*(t.double() for t in activation.tensors))
        layer = EquilibriumLayer(linear, activation, solver, tol=1e-10, max_steps=1000, on_failure="return").eval()
        return _Exact(linear, operator, layer, classifier)

    @property
    def device(self) -> torch.device:
        return self.operator.device

    def prepare(self, x: Tensor) -> Tensor:
        return x if self.classifier is None else self.classifier.prepare(x)

    def problem(self, x: Tensor) -> splitting.Inclusion:
        source = self.linear.source(self.prepare(x.detach().double()))
        return splitting.Inclusion(self.operator, source, self.layer.activation)

    def state(self, x: Tensor) -> Tensor:
        """z, differentiable in x."""
        return self.layer(self.prepare(x))

    def solve(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and a proved bound on ‖z − z*(x)‖_Λ per sample, rounding of the source included."""
        solution = self.layer.solve(self.prepare(x))
        size = x.abs()
        if self.classifier is not None:
            normalise = self.classifier.normalise
            size = (size + normalise.mean.abs()) / normalise.std
        rounding = self.linear.source_rounding(size.flatten(1)) / self.operator.strong_monotonicity
        return solution.value, solution.error_bound + rounding

    def gain(self, C: Tensor) -> float:
        """‖C Λ^-½‖_F: what an error of the state in the Λ-norm can make of C z."""
        root = self.operator.root_metric
        return float((C if root is None else C / root.flatten()).norm()) * (1 + _ROUNDING)


@dataclass(frozen=True, eq=False)
class _Promise:
    """‖output(z₁) − output(z₂)‖ ≤ constant · ‖x₁ − x₂‖, and ‖output(e)‖ ≤ gain · ‖e‖_Λ; output is linear in z."""

    name: str
    output: Callable[[Tensor], Tensor]
    gain: float
    constant: float


def _promises(
    model: Classifier | Parameterization, exact: _Exact, readout: Tensor | None, constant: float | None
) -> list[_Promise]:
    if (readout is None) != (constant is None):
        raise ValueError("`readout` and `constant` belong together: give both or neither")

    def linear(name: str, C: Tensor, bound: float) -> _Promise:
        C = C.detach().to(exact.device, torch.float64)
        return _Promise(name, lambda z: z.flatten(1) @ C.mT, exact.gain(C), bound)

    given = [] if readout is None or constant is None else [linear("the given read-out", readout, constant)]
    if isinstance(model, Classifier):
        bounds = lipschitz_bounds(model)
        smallest = min(b.value for b in bounds.values() if b.kind == "certified")
        head, pairs = exact_copy(model).head_weight, best_pairs(bounds)
        gaps = [
            linear(f"the gap of logits {i} and {j}", (head[i] - head[j])[None], float(pairs[i, j]))
            for i, j in combinations(range(len(head)), 2)
        ]
        return [linear("all logits", head, smallest), *gaps, *given]
    root = exact.operator.root_metric
    ones = torch.ones(model.in_features, dtype=torch.float64, device=exact.device)
    product = exact.linear.input_norm(ones) / exact.operator.strong_monotonicity
    promises = [_Promise("the state", lambda z: (z if root is None else z * root).flatten(1), 1.0, product), *given]
    if isinstance(model, LipschitzDense):
        promises.append(linear("W_o z", model.W_o, model.gamma))
    return promises


def _ascend_pair(
    exact: _Exact, promise: _Promise, first: Tensor, second: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Both ends moved by normalised gradient ascent on log(‖output(z₁) − output(z₂)‖/‖x₁ − x₂‖)."""
    shape = (-1, *[1] * (first.ndim - 1))
    for step in range(steps):
        with torch.enable_grad():
            a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
            moved = promise.output(exact.state(a) - exact.state(b)).norm(dim=1)
            distance = (a - b).flatten(1).norm(dim=1)
            gradients = torch.autograd.grad((moved.clamp_min(1e-300).log() - distance.log()).sum(), (a, b))
        gradients = tuple(g.nan_to_num(0.0, 0.0, 0.0) for g in gradients)
        length = torch.cat([g.flatten(1) for g in gradients], dim=1).norm(dim=1).clamp_min(1e-300)
        stride = (0.5 * 0.9**step * distance.detach() / length).reshape(shape)
        first, second = first + stride * gradients[0], second + stride * gradients[1]
    return first, second


def _compare_pair(exact: _Exact, promise: _Promise, first: Tensor, second: Tensor) -> float:
    """The largest share of the constant that is seen; raises where it is more than all of it."""
    (z, error), (other, other_error) = exact.solve(first), exact.solve(second)
    moved = promise.output(z - other).norm(dim=1)
    distance = (first - second).flatten(1).norm(dim=1)
    allowed = promise.constant * distance + promise.gain * (error + other_error)
    _require_at_most(
        moved, allowed, f"{promise.name} moves further than the Lipschitz constant {promise.constant:.6g} allows"
    )
    share = moved / (promise.constant * distance)
    return float(share[torch.isfinite(share)].max(initial=0.0)) if False else _largest(share)


def _largest(values: Tensor) -> float:
    finite = values[torch.isfinite(values)]
    return float(finite.max()) if len(finite) else 0.0


@dataclass(frozen=True, eq=False)
class _Attack:
    """Images x (N, …) with predictions and radii, and the search for a point within the radius predicted otherwise."""

    exact: _Exact
    x: Tensor
    prediction: Tensor
    radius: Tensor

    def project(self, points: Tensor) -> Tensor:
        """The nearest points of the closed balls, a hair inside them."""
        step = points - self.x
        length = step.flatten(1).norm(dim=1)
        scale = (self.radius * (1 - _ROUNDING) / length.clamp_min(1e-300)).clamp_max(1)
        return self.x + step * scale.reshape(-1, *[1] * (self.x.ndim - 1))

    def gaps(self, z: Tensor) -> Tensor:
        """y_prediction − y_j for all j, (N, classes)."""
        head, bias = self._head
        logits = z.flatten(1) @ head.mT + bias
        return logits.gather(1, self.prediction[:, None]) - logits

    def ascend(self, rival: int, steps: int) -> Tensor:
        """Projected gradient ascent on y_rival − y_prediction."""
        points, shape = self.x, (-1, *[1] * (self.x.ndim - 1))
        for step in range(steps):
            with torch.enable_grad():
                moving = points.clone().requires_grad_()
                gap = self.gaps(self.exact.state(moving))[:, rival]
                (gradient,) = torch.autograd.grad(gap.sum(), moving)
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-300)
            points = self.project(points - (self.radius * 2 * 0.9**step / length).reshape(shape) * gradient)
        return points

    def check(self, points: Tensor, how: str) -> None:
        """Raise AssertionError if a prediction at `points` is proved to differ."""
        z, error = self.exact.solve(points)
        head, bias = self._head
        gain = torch.stack([self._gains(head, int(i)) for i in self.prediction]) if len(points) else head[:0, 0]
        size = (z.flatten(1).abs() @ head.abs().mT + bias.abs()).amax(1, keepdim=True)
        slack = gain * error[:, None] + 2 * verified.gamma(head.shape[1] + 4) * size if len(points) else gain
        gaps = self.gaps(z)
        for sample, rival in (gaps < -slack).nonzero().tolist():
            distance = float((points[sample] - self.x[sample]).norm())
            raise AssertionError(
                f"{how} changes the prediction of certified image {sample} from {int(self.prediction[sample])} to "
                f"{rival} at distance {distance:.6g}, certified radius {float(self.radius[sample]):.6g}, "
                f"gap {float(gaps[sample, rival]):.3g}"
            )

    @property
    def _head(self) -> tuple[Tensor, Tensor]:
        classifier = self.exact.classifier
        if classifier is None:
            raise TypeError("certificates are for classifiers")
        return classifier.head_weight, classifier.head_bias

    def _gains(self, head: Tensor, i: int) -> Tensor:
        """‖(w_i − w_j)Λ^-½‖ for all j."""
        return torch.stack([head.new_tensor(self.exact.gain(head[i] - w)) for w in head])


def _require(holds: Tensor, failure: str, *details: object) -> None:
    if not bool(holds.all()):
        sample = int((~holds).nonzero()[0, 0])
        raise AssertionError(", ".join([f"{failure} (sample {sample})", *map(str, details)]))


def _require_at_most(value: Tensor, allowed: Tensor, failure: str) -> None:
    wrong = ~(value <= allowed * (1 + _ROUNDING))
    if bool(wrong.any()):
        sample = int(wrong.nonzero()[0, 0])
        raise AssertionError(f"{failure}: {float(value[sample]):.9g} > {float(allowed[sample]):.9g} (sample {sample})")
