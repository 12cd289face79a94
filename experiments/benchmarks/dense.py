"""The dense layer against the algorithm of 2020: training step, evaluation, number of steps; each with its accuracy.

`python -m experiments.benchmarks.dense [--json FILE] [--smoke] [--data-dir DIR] [--checkpoint PATH]`

1. Training step: forward, cross-entropy of a 10-class head, backward and Adam, on random weights and batches of 128.
2. Evaluation: forward without a graph, weights fixed, batch after batch.
3. Steps until the relative change ‖z⁺ − z‖/‖z⁺‖ of every sample is ≤ 1e-5, one criterion for every method, with m = 20.

Times are medians over rounds that run the competitors next to each other; what counts is the ratio within a round.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import mondeq
import mondeq.data
import splitting
from experiments.benchmarks.measure import interleave, report, table, write_json
from experiments.benchmarks.textbook import TextbookLayer

CLASSES = 10
TOLERANCE = 1e-2
STEPS_TOLERANCE = 1e-5
STEPS_TARGET = 10
MEAN, STD = 0.1307, 0.3081  # of MNIST's training pixels in [0, 1]


@dataclass(frozen=True)
class Plan:
    """How much is measured. training_targets, evaluation_targets: least speed-up aimed at, by number of units."""

    in_features: int = 784
    batch: int = 128
    batches: int = 8
    rounds: int = 15
    seconds: float = 0.3
    images: int = 500
    training_targets: dict[int, float] = field(default_factory=lambda: {87: 1.3, 1024: 1.4})
    evaluation_targets: dict[int, float | None] = field(default_factory=lambda: {87: None, 1024: 5.0})


# Runs everything once, measures nothing worth reading.
SMOKE = Plan(28 * 28, 8, 2, 2, 0.0, 16, {6: 1.3, 20: 1.4}, {6: None, 20: 5.0})


def main(arguments: list[str] | None = None) -> int:
    """Run the three measurements, print their tables and write `--json`."""
    options = _parser().parse_args(arguments)
    torch.manual_seed(options.seed)
    plan = SMOKE if options.smoke else Plan()
    content = report(options.seed)
    print(f"{content['machine']}\n{content['date']}, seed {options.seed}\n")
    content["training"] = [training(features, plan, target) for features, target in plan.training_targets.items()]
    print(_comparison_table(f"Training step, batch {plan.batch}, m = 1, tolerance {TOLERANCE:g}", content["training"]))
    content["evaluation"] = [evaluation(features, plan, target) for features, target in plan.evaluation_targets.items()]
    print(_comparison_table(f"Evaluation, batch {plan.batch}, m = 1, tolerance {TOLERANCE:g}", content["evaluation"]))
    content["steps"] = steps(plan, options.checkpoint, options.m, options.data_dir)
    print(_steps_table(content["steps"]))
    if options.json is not None:
        write_json(options.json, content)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.dense", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, date, seed and all results to FILE")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, seconds in all: does it run?")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where MNIST is; random images if not given")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="trained dense network of 2020 (a state_dict); random weights if not given",
    )
    parser.add_argument(
        "--m", type=float, default=20.0, help="its m, which the file does not hold (default: %(default)g)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and labels (default: %(default)d)")
    return parser


# ---------------------------------------------------------------------------------------------------------------------
# 1. Training step


def training(features: int, plan: Plan, target: float) -> dict[str, Any]:
    """Time of one training step of both layers, with torch's default Adam and with the fused one.

    `speedup` is what a user gets: torch's default Adam, as in 2020, against ours with the fused one;
    `speedup_same_optimizer` is the layer's own part in it.
    """
    pair = Pair.random(features, plan)
    tasks = {
        "textbook": TrainingStep(pair.textbook, pair.batches, fused=None),
        "mondeq": TrainingStep(pair.ours, pair.batches, fused=True),
        "textbook, fused Adam": TrainingStep(pair.textbook, pair.batches, fused=True),
        "mondeq, default Adam": TrainingStep(pair.ours, pair.batches, fused=None),
    }
    timings = interleave(tasks, rounds=plan.rounds, seconds=plan.seconds)
    speedup = timings.ratio("textbook", "mondeq")
    return {
        "features": features,
        "milliseconds": {name: timings.milliseconds(name) for name in tasks},
        "speedup": speedup,
        "speedup_same_optimizer": timings.ratio("textbook, fused Adam", "mondeq"),
        "target": target,
        "met": speedup.median >= target,
        **pair.diagnostics(),
    }


class TrainingStep:
    """Forward, cross-entropy, backward and Adam on the next of a few batches.

    The learning rate is 0: every step does all the work of a step and leaves the initial weights as they are.
    """

    def __init__(self, network: nn.Module, batches: list[Batch], *, fused: bool | None) -> None:
        self.network = copy.deepcopy(network).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.0, fused=fused)
        self.batches: Iterator[Batch] = itertools.cycle(batches)

    def __call__(self) -> None:
        images, labels = next(self.batches)
        self.optimizer.zero_grad()
        functional.cross_entropy(self.network(images), labels).backward()
        self.optimizer.step()


# ---------------------------------------------------------------------------------------------------------------------
# 2. Evaluation


def evaluation(features: int, plan: Plan, target: float | None) -> dict[str, Any]:
    """Time of one forward pass in evaluation mode, and of our first one, which inverts and chooses the step."""
    pair = Pair.random(features, plan)
    tasks = {
        "textbook": partial(_evaluate, pair.textbook.eval(), itertools.cycle(pair.batches)),
        "mondeq": partial(_evaluate, pair.ours.eval(), itertools.cycle(pair.batches)),
    }
    fresh = copy.deepcopy(pair.ours)
    start = time.perf_counter()
    _evaluate(fresh, iter(pair.batches))
    first = 1e3 * (time.perf_counter() - start)
    timings = interleave(tasks, rounds=plan.rounds, seconds=plan.seconds)
    speedup = timings.ratio("textbook", "mondeq")
    return {
        "features": features,
        "milliseconds": {name: timings.milliseconds(name) for name in tasks},
        "first_call_milliseconds": first,
        "speedup": speedup,
        "target": target,
        "met": None if target is None else speedup.median >= target,
        **pair.diagnostics(),
    }


@torch.no_grad()
def _evaluate(network: nn.Module, batches: Iterator[Batch]) -> Tensor:
    logits: Tensor = network(next(batches)[0])
    return logits


# ---------------------------------------------------------------------------------------------------------------------
# The two networks of 1 and 2

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Pair:
    """Both layers with the same weights under the same head, and batches of images and labels."""

    textbook: nn.Sequential
    ours: nn.Sequential
    batches: list[Batch]

    @classmethod
    def random(cls, features: int, plan: Plan) -> Pair:
        """Random initial weights, random images, random labels, m = 1."""
        linear = mondeq.Dense(plan.in_features, features, m=1.0)
        head = nn.Linear(features, CLASSES)
        ours = mondeq.EquilibriumLayer(linear, tol=TOLERANCE)
        batches = [
            (random_images(plan.batch, plan.in_features), torch.randint(CLASSES, (plan.batch,)))
            for _ in range(plan.batches)
        ]
        textbook = textbook_copy(linear, 1.0, tol=TOLERANCE)
        return cls(nn.Sequential(textbook, head), nn.Sequential(ours, copy.deepcopy(head)), batches)

    def diagnostics(self) -> dict[str, Any]:
        """Steps, success and errors of both, in the mode they are in, on the first batch.

        Errors are against a float64 solve to 1e-12 of the same network: `error` is ‖z − z*‖/‖z*‖, its largest value
        over the samples and that of the whole batch; `gradient_error` is ‖g − g*‖/‖g*‖ over all weights.
        """
        images, labels = self.batches[0]
        exact = copy.deepcopy(self.ours).double()
        exact[0] = mondeq.EquilibriumLayer(exact[0].linear, solver=splitting.Anderson(), tol=1e-12, on_failure="raise")
        best = _solve_and_differentiate(exact, images.double(), labels)
        outcomes: dict[str, Any] = {}
        solutions: dict[str, splitting.Solution] = {}
        for name, network in (("textbook", self.textbook), ("mondeq", self.ours)):
            network = copy.deepcopy(network)
            if name == "mondeq":
                network[0].monitor = solutions.__setitem__
            state, gradient = _solve_and_differentiate(network, images, labels)
            sizes = best[0].norm(dim=1).clamp_min(1e-30)
            outcomes[name] = {
                "error_worst_sample": float(((state - best[0]).norm(dim=1) / sizes).max()),
                "error_batch": float((state - best[0]).norm() / best[0].norm()),
                "gradient_error": float((gradient - best[1]).norm() / best[1].norm()),
                **(_textbook_outcome(network[0]) if name == "textbook" else _our_outcome(solutions)),
            }
        return {"outcomes": outcomes}


def random_images(count: int, size: int) -> Tensor:
    """Normalised random images: a fifth of the pixels lit, as in MNIST, with its mean and standard deviation."""
    lit = torch.rand(count, size) < 0.19
    return (lit * (0.4 + 0.6 * torch.rand(count, size)) - MEAN) / STD


def textbook_copy(linear: mondeq.Dense, m: float, *, tol: float) -> TextbookLayer:
    """The textbook layer with the weights of `linear`."""
    layer = TextbookLayer(linear.in_features, linear.features, m, tol=tol)
    with torch.no_grad():
        layer.U.weight.copy_(linear.U)
        layer.U.bias.copy_(linear.b)
        layer.F.weight.copy_(linear.F)
        layer.G.weight.copy_(linear.G)
    return layer


def _solve_and_differentiate(network: nn.Sequential, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The state and the gradient of the cross-entropy in (F, G, U, b, head), flat; float64."""
    layer, head = network
    state = layer(images)
    functional.cross_entropy(head(state), labels).backward()
    if isinstance(layer, TextbookLayer):
        weights = [layer.F.weight, layer.G.weight, layer.U.weight, layer.U.bias]
    else:
        weights = [layer.linear.F, layer.linear.G, layer.linear.U, layer.linear.b]
    gradients = [w.grad.flatten() for w in (*weights, head.weight, head.bias) if w.grad is not None]
    return state.detach().double(), torch.cat(gradients).double()


def _textbook_outcome(layer: TextbookLayer) -> dict[str, Any]:
    return {
        "forward_steps": layer.forward_steps,
        "backward_steps": layer.backward_steps,
        "success": max(layer.forward_steps, layer.backward_steps) < layer.max_steps,
        "status": "stops on the relative change of the whole batch, and reports nothing",
    }


def _our_outcome(solutions: dict[str, splitting.Solution]) -> dict[str, Any]:
    return {
        "forward_steps": len(solutions["forward"].history),
        "backward_steps": len(solutions["backward"].history),
        "success": all(solution.status.ok for solution in solutions.values()),
        "status": {role: str(solution.status) for role, solution in solutions.items()},
        "residual": {role: float(solution.residual.max()) for role, solution in solutions.items()},
        "error_bound_worst_sample": float(solutions["forward"].error_bound.max()),
    }


# ---------------------------------------------------------------------------------------------------------------------
# 3. Number of steps


def steps(plan: Plan, checkpoint: Path | None, m: float, data_dir: Path | None) -> dict[str, Any]:
    """Steps of every method until the relative change of every sample is ≤ 1e-5, and the error it then has."""
    linear = mondeq.Dense(plan.in_features, 40, m) if checkpoint is None else load_checkpoint(checkpoint, m)
    images = random_images(plan.images, linear.in_features) if data_dir is None else _mnist(data_dir, plan.images)
    with torch.no_grad():
        operator = linear.operator()
        problem = splitting.Inclusion(operator, linear.source(images), splitting.ReLU())
    exact = splitting.solve(problem.double(), splitting.Anderson(), tol=1e-12, on_failure="raise").value
    rows = {"textbook, α = 1, whole-batch criterion": _count_textbook(linear, m, images, exact)}
    rows |= {name: _count(problem, exact, method) for name, method in _methods(operator).items()}
    auto = rows['Peaceman–Rachford, "auto"']
    return {
        "weights": "random" if checkpoint is None else checkpoint.name,
        "images": f"{len(images)} {'random' if data_dir is None else 'MNIST test'} images",
        "features": linear.features,
        "m": m,
        "lipschitz": operator.lipschitz,
        "tolerance": STEPS_TOLERANCE,
        "methods": rows,
        "target": STEPS_TARGET,
        "met": auto["success"] and auto["steps"] <= STEPS_TARGET,
    }


@dataclass(frozen=True)
class Method:
    """A solver, and what it costs: products with V or A at the start and in every step."""

    solver: splitting.Solver
    at_start: int
    per_step: int


def _methods(operator: splitting.Operator) -> dict[str, Method]:
    return {
        "Peaceman–Rachford, α = 1": Method(splitting.PeacemanRachford(step=1.0), 1, 1),
        "Peaceman–Rachford, α = 1/L": Method(splitting.PeacemanRachford(step=1 / operator.lipschitz), 1, 1),
        'Peaceman–Rachford, "auto"': Method(splitting.PeacemanRachford(), 1, 1),
        "Peaceman–Rachford, tuned": Method(splitting.PeacemanRachford().tuned(operator), 1, 1),
        "Anderson(Peaceman–Rachford), tuned": Method(splitting.Anderson().tuned(operator), 1, 1),
        "Douglas–Rachford, tuned": Method(splitting.DouglasRachford().tuned(operator), 1, 1),
        'forward–backward, "auto"': Method(splitting.ForwardBackward(), 0, 1),
        'forward–backward–forward, "auto"': Method(splitting.ForwardBackwardForward(), 0, 2),
    }


@torch.no_grad()
def _count(problem: splitting.Inclusion, exact: Tensor, method: Method, max_steps: int = 5000) -> dict[str, Any]:
    """Step by hand from the method's own start; the first step has no predecessor to be compared with."""
    iteration = method.solver.bind(problem)
    carry, previous = iteration.init(None), torch.full_like(problem.source, torch.inf)
    change, count = float("inf"), 0
    while not change <= STEPS_TOLERANCE and count < max_steps:
        state = iteration.step(carry)
        carry, value = state.carry, state.value
        change, count = float(_relative(value - previous, value).max()), count + 1
        previous = value.clone()
    return {
        "solver": repr(method.solver),
        "alpha": _step_size(method.solver, problem.operator),
        "steps": count,
        "products": method.at_start + method.per_step * count,
        "relative_change": change,
        "error_worst_sample": float(_relative(previous.double() - exact, exact).max()),
        "success": change <= STEPS_TOLERANCE,
    }


@torch.no_grad()
def _count_textbook(linear: mondeq.Dense, m: float, images: Tensor, exact: Tensor) -> dict[str, Any]:
    """As published: relative change of the batch as a whole."""
    layer = textbook_copy(linear, m, tol=STEPS_TOLERANCE)
    layer.max_steps = 5000
    value = layer(images)
    return {
        "solver": "TextbookLayer",
        "alpha": layer.alpha,
        "steps": layer.forward_steps,
        "products": layer.forward_steps,
        "relative_change": None,
        "error_worst_sample": float(_relative(value.double() - exact, exact).max()),
        "success": layer.forward_steps < layer.max_steps,
    }


def _relative(difference: Tensor, value: Tensor) -> Tensor:
    """‖difference‖/‖value‖ per sample."""
    return difference.norm(dim=1) / value.norm(dim=1).clamp_min(torch.finfo(value.dtype).tiny)


def _step_size(solver: splitting.Solver, operator: splitting.Operator) -> float | None:
    """α, where the solver says it or it is Peaceman–Rachford's automatic one."""
    if isinstance(solver, splitting.Anderson):
        return _step_size(solver.inner, operator)
    step = getattr(solver, "step", None)
    if step == "auto":
        return operator.typical_step if isinstance(solver, splitting.PeacemanRachford) else None
    return step


def load_checkpoint(path: Path, m: float) -> mondeq.Dense:
    """The dense network of 2020 from its state_dict: there W = (1 − m)I − AᵀA + B − Bᵀ, so F = A and G = Bᵀ."""
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    part = {
        name: tensors[f"mon.linear_module.{name}"].float() for name in ("U.weight", "U.bias", "A.weight", "B.weight")
    }
    features, in_features = part["U.weight"].shape
    linear = mondeq.Dense(in_features, features, m)
    with torch.no_grad():
        linear.U.copy_(part["U.weight"])
        linear.b.copy_(part["U.bias"])
        linear.F.copy_(part["A.weight"])
        linear.G.copy_(part["B.weight"].T)
    return linear


def _mnist(data_dir: Path, count: int) -> Tensor:
    """The first test images, normalised as the network of 2020 expects them."""
    images = mondeq.data.load("mnist", data_dir, download=False).test.images[:count]
    return (images.flatten(1).float() / 255 - MEAN) / STD


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _comparison_table(title: str, results: list[dict[str, Any]]) -> str:
    """One row per competitor: time with quartiles, ratio, steps, errors, success."""
    head = ("", "ms", "ratio", "steps fwd/bwd", "error (worst, batch)", "gradient error", "success")
    rows: list[list[object]] = []
    for result in results:
        for name, milliseconds in result["milliseconds"].items():
            outcome = result["outcomes"][name.partition(",")[0]]
            rows.append(
                [
                    f"{result['features']} units, {name}",
                    milliseconds,
                    result["speedup"] if name == "mondeq" else None,
                    f"{outcome['forward_steps']}/{outcome['backward_steps']}",
                    f"{outcome['error_worst_sample']:.1e}, {outcome['error_batch']:.1e}",
                    outcome["gradient_error"],
                    "yes" if outcome["success"] else "no",
                ]
            )
    return "\n".join([table(title, head, rows), *map(_verdict, results), ""])


def _verdict(result: dict[str, Any]) -> str:
    notes = [f"{result['features']} units: {result['speedup'].median:.2f} times as fast"]
    if "speedup_same_optimizer" in result:
        notes.append(f"{result['speedup_same_optimizer'].median:.2f} with fused Adam on both sides")
    if "first_call_milliseconds" in result:
        notes.append(f"first call {result['first_call_milliseconds']:.1f} ms")
    if result["target"] is not None:
        notes.append(f"target ≥ {result['target']:g} {'met' if result['met'] else 'MISSED'}")
    return "; ".join(notes)


def _steps_table(result: dict[str, Any]) -> str:
    title = (
        f"Steps to relative change {result['tolerance']:g}: {result['features']} units, m = {result['m']:g}, "
        f"L = {result['lipschitz']:.4g}, weights {result['weights']}, {result['images']}"
    )
    head = ("", "α", "α L", "steps", "products", "error (worst)", "success")
    rows = []
    for name, row in result["methods"].items():
        scaled = None if row["alpha"] is None else row["alpha"] * result["lipschitz"]
        outcome = "yes" if row["success"] else "no"
        rows.append([name, row["alpha"], scaled, row["steps"], row["products"], row["error_worst_sample"], outcome])
    verdict = f'"auto": target ≤ {result["target"]} steps {"met" if result["met"] else "MISSED"}'
    return "\n".join([table(title, head, rows), verdict])


if __name__ == "__main__":
    raise SystemExit(main())
