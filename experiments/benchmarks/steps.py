"""How many steps every method takes on one network until ‖z⁺ − z‖/‖z⁺‖ ≤ 1e-5 in every sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mondeq
import mondeq.data
import splitting
from experiments.benchmarks.competitors import MEAN, STD, random_images, relative, textbook_copy

TOLERANCE = 1e-5
MOST_STEPS = 5000
AUTO = 'Peaceman–Rachford, "auto"'


@dataclass(frozen=True)
class Method:
    """A solver, and what it costs: products with V = (I + αA)⁻¹ or A in every step."""

    solver: splitting.Solver
    per_step: int = 1


def count_steps(linear: mondeq.Dense, m: float, images: Tensor) -> dict[str, Any]:
    """Steps, products and final error of every method, started where the method itself starts, by method.

    error_worst_sample: largest ‖z − z*‖/‖z*‖ against a float64 solve to 1e-12.
    """
    with torch.no_grad():
        operator = linear.operator()
        problem = splitting.Inclusion(operator, linear.source(images), splitting.ReLU())
    exact = splitting.solve(problem.double(), splitting.Anderson(), tol=1e-12, on_failure="raise").value
    rows = {"textbook, α = 1, whole-batch criterion": _count_textbook(linear, m, images, exact)}
    return rows | {name: _count(problem, exact, method) for name, method in methods(operator).items()}


def methods(operator: splitting.Operator) -> dict[str, Method]:
    """What is compared."""
    return {
        "Peaceman–Rachford, α = 1": Method(splitting.PeacemanRachford(step=1.0)),
        "Peaceman–Rachford, α = 1/L": Method(splitting.PeacemanRachford(step=1 / operator.lipschitz)),
        AUTO: Method(splitting.PeacemanRachford()),
        "Peaceman–Rachford, tuned": Method(splitting.PeacemanRachford().tuned(operator)),
        "Anderson(Peaceman–Rachford), tuned": Method(splitting.Anderson().tuned(operator)),
        "Douglas–Rachford, tuned": Method(splitting.DouglasRachford().tuned(operator)),
        'forward–backward, "auto"': Method(splitting.ForwardBackward()),
        'forward–backward–forward, "auto"': Method(splitting.ForwardBackwardForward(), per_step=2),
    }


@torch.no_grad()
def _count(problem: splitting.Inclusion, exact: Tensor, method: Method) -> dict[str, Any]:
    """Step by hand. The first step has no predecessor to be compared with and so never ends the count."""
    iteration = method.solver.bind(problem)
    carry, previous = iteration.init(None), torch.full_like(problem.source, math.inf)
    change, count = math.inf, 0
    while not change <= TOLERANCE and count < MOST_STEPS:
        state = iteration.step(carry)
        carry, count = state.carry, count + 1
        change = float(relative(state.value - previous, state.value).max())
        previous = state.value.clone()
    return {
        "solver": repr(method.solver),
        "alpha": _step_size(method.solver, problem.operator),
        "steps": count,
        "products": method.per_step * count,
        "relative_change": change,
        "error_worst_sample": float(relative(previous.double() - exact, exact).max()),
        "success": change <= TOLERANCE,
    }


@torch.no_grad()
def _count_textbook(linear: mondeq.Dense, m: float, images: Tensor, exact: Tensor) -> dict[str, Any]:
    """As published: started at 0, ended by the relative change of the batch as a whole."""
    layer = textbook_copy(linear, m, tol=TOLERANCE)
    layer.max_steps = MOST_STEPS
    value = layer(images)
    return {
        "solver": repr(layer),
        "alpha": layer.alpha,
        "steps": layer.forward_steps,
        "products": layer.forward_steps,
        "relative_change": None,
        "error_worst_sample": float(relative(value.double() - exact, exact).max()),
        "success": layer.forward_steps < layer.max_steps,
    }


def _step_size(solver: splitting.Solver, operator: splitting.Operator) -> float | None:
    """α, where the solver says it or it is the automatic one of a method with a resolvent."""
    if isinstance(solver, splitting.Anderson):
        return _step_size(solver.inner, operator)
    if isinstance(solver, splitting.PeacemanRachford):
        return solver.chosen_step(operator)
    return None


def load_checkpoint(path: Path, m: float) -> mondeq.Dense:
    """The dense network of 2020 in a state_dict. Raises TypeError for one of another kind."""
    linear = mondeq.load_original_checkpoint(path, m=m, mean=MEAN, std=STD).get_submodule("layer.linear")
    if not isinstance(linear, mondeq.Dense):
        raise TypeError(f"{path} holds no dense network but a {type(linear).__name__}")
    return linear


def load_images(data_dir: Path | None, count: int, size: int) -> Tensor:
    """The first MNIST test images, normalised as in 2020, flat; random ones without a `data_dir`."""
    if data_dir is None:
        return random_images(count, size)
    images = mondeq.data.load("mnist", data_dir, download=False).test.images[:count]
    return (images.flatten(1).float() / 255 - MEAN) / STD
