"""The dense layer against the algorithm of 2020: training step, evaluation, number of steps; each with its accuracy.

`python -m experiments.benchmarks.dense [--json FILE] [--smoke] [--data-dir DIR] [--checkpoint PATH]`

1. Training step: forward, cross-entropy of a 10-class head, backward and Adam, on random weights and batches of 128.
2. Evaluation: forward without a graph, weights fixed, batch after batch.
3. Steps until the relative change ‖z⁺ − z‖/‖z⁺‖ of every sample is ≤ 1e-5, one criterion for every method, with m = 20.

The competitors run next to each other in every round. What counts is the ratio within a round; shown are its median
and, in brackets, its quartiles.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import mondeq
from experiments.benchmarks.competitors import Evaluation, Pair, TrainingStep
from experiments.benchmarks.measure import Timings, heading, interleave, parser, table, write_json
from experiments.benchmarks.steps import AUTO, TOLERANCE, count_steps, load_checkpoint, load_images

STEPS_TARGET = 10


@dataclass(frozen=True)
class Plan:
    """How much is measured. training, evaluation: least speed-up aimed at (None: just measured), by number of units."""

    in_features: int = 784
    batch: int = 128
    batches: int = 8
    rounds: int = 15
    seconds: float = 0.3
    images: int = 500
    training: dict[int, float | None] = field(default_factory=lambda: {87: 1.3, 1024: 1.4})
    evaluation: dict[int, float | None] = field(default_factory=lambda: {87: None, 1024: 5.0})


# Runs everything and measures nothing worth reading.
SMOKE = Plan(batch=4, batches=2, rounds=2, seconds=0.0, images=8, training={6: 1.3}, evaluation={6: None, 9: 5.0})


def main(arguments: list[str] | None = None) -> int:
    """Run the three measurements, print their tables, write `--json`."""
    options = _parser().parse_args(arguments)
    torch.manual_seed(options.seed)
    plan = SMOKE if options.smoke else Plan()
    content = heading(options.seed)
    print(f"{', '.join(f'{key}: {value}' for key, value in content['machine'].items())}")
    print(f"{content['date']}, seed {options.seed}\n")
    content["training"] = [measure_training(features, plan) for features in plan.training]
    print(_speed_table("Training step", plan, content["training"]))
    content["evaluation"] = [measure_evaluation(features, plan) for features in plan.evaluation]
    print(_speed_table("Evaluation", plan, content["evaluation"]))
    content["steps"] = measure_steps(plan, options.checkpoint, options.m, options.data_dir)
    print(_steps_table(content["steps"]))
    if options.json is not None:
        write_json(options.json, content)
    return 0


def _parser() -> argparse.ArgumentParser:
    result = parser("experiments.benchmarks.dense", __doc__)
    result.add_argument("--data-dir", type=Path, metavar="DIR", help="where MNIST is; without it, random images")
    result.add_argument(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        help="a dense network of 2020, a state_dict; without it, random weights",
    )
    result.add_argument(
        "--m", type=float, default=20.0, help="its m, which the file does not hold (default %(default)g)"
    )
    return result


def measure_training(features: int, plan: Plan) -> dict[str, Any]:
    """Time of one training step.

    speedup: what a user gets, torch's default Adam as in 2020 against ours with the fused one. same_optimizer: the
    layer's own part in that, the fused Adam on both sides. as_accurate: also at an accuracy not below the textbook's.
    """
    pair = Pair.random(plan.in_features, features, plan.batch, plan.batches, training=True)
    tasks = {
        "textbook": TrainingStep(pair.textbook, pair.batches, fused=None),
        "mondeq": TrainingStep(pair.ours, pair.batches, fused=True),
        "textbook, fused Adam": TrainingStep(pair.textbook, pair.batches, fused=True),
        "mondeq, as accurate": TrainingStep(pair.as_accurate, pair.batches, fused=True),
        "mondeq, default Adam": TrainingStep(pair.ours, pair.batches, fused=None),
    }
    timings = interleave(tasks, rounds=plan.rounds, seconds=plan.seconds)
    ratios = {
        "same_optimizer": timings.ratio("textbook, fused Adam", "mondeq"),
        "as_accurate": timings.ratio("textbook, fused Adam", "mondeq, as accurate"),
    }
    return _result(features, timings, pair, plan.training[features]) | ratios


def measure_evaluation(features: int, plan: Plan) -> dict[str, Any]:
    """Time of one forward pass, and of our first one, which inverts and chooses the step for all that follow."""
    pair = Pair.random(plan.in_features, features, plan.batch, plan.batches, training=False)
    first = Evaluation(pair.ours, pair.batches)
    start = time.perf_counter()
    first()
    seconds = time.perf_counter() - start
    tasks = {
        "textbook": Evaluation(pair.textbook, pair.batches),
        "mondeq": first,
        "mondeq, as accurate": Evaluation(pair.as_accurate, pair.batches),
    }
    timings = interleave(tasks, rounds=plan.rounds, seconds=plan.seconds)
    ratios = {"as_accurate": timings.ratio("textbook", "mondeq, as accurate")}
    return _result(features, timings, pair, plan.evaluation[features]) | ratios | {"first_call_ms": 1e3 * seconds}


def _result(features: int, timings: Timings, pair: Pair, target: float | None) -> dict[str, Any]:
    speedup = timings.ratio("textbook", "mondeq")
    return {
        "features": features,
        "milliseconds": {name: timings.milliseconds(name) for name in timings.rounds},
        "outcomes": pair.outcomes,
        "speedup": speedup,
        "speedup_of_fastest_rounds": timings.fastest("textbook") / timings.fastest("mondeq"),
        "target": target,
        "met": None if target is None else speedup.median >= target,
    }


def measure_steps(plan: Plan, checkpoint: Path | None, m: float, data_dir: Path | None) -> dict[str, Any]:
    """Steps of every method on the checkpoint, or on a network of random weights."""
    linear = mondeq.Dense(plan.in_features, 40, m) if checkpoint is None else load_checkpoint(checkpoint, m)
    images = load_images(data_dir, plan.images, linear.in_features)
    rows = count_steps(linear, m, images)
    return {
        "weights": "random" if checkpoint is None else checkpoint.name,
        "images": f"{len(images)} {'random' if data_dir is None else 'MNIST test'} images",
        "features": linear.features,
        "m": m,
        "lipschitz": linear.operator().lipschitz,
        "tolerance": TOLERANCE,
        "methods": rows,
        "target": STEPS_TARGET,
        "met": rows[AUTO]["success"] and rows[AUTO]["steps"] <= STEPS_TARGET,
    }


def _speed_table(title: str, plan: Plan, results: list[dict[str, Any]]) -> str:
    """One row per competitor: time, steps, errors, success; then what was aimed at."""
    head = ("", "ms", "tol", "steps fwd/bwd", "error: worst", "batch", "gradient", "success")
    rows: list[list[object]] = []
    for result in results:
        for name, milliseconds in result["milliseconds"].items():
            outcomes = result["outcomes"]
            one = outcomes.get(name) or outcomes[name.partition(",")[0]]
            rows.append(
                [
                    f"{result['features']} units, {name}",
                    milliseconds,
                    one["tolerance"],
                    f"{one['forward_steps']}/{one['backward_steps']}",
                    f"{one['error_worst_sample']:.1e}",
                    f"{one['error_batch']:.1e}",
                    one["gradient_error"],
                    "yes" if one["success"] else "no",
                ]
            )
    full = f"{title}, batch {plan.batch}, m = 1, random weights"
    return "\n".join([table(full, head, rows), *map(_verdict, results), ""])


def _verdict(result: dict[str, Any]) -> str:
    speedup = result["speedup"]
    notes = [f"{result['features']} units: {speedup.median:.2f} times as fast [{speedup.low:.2f}, {speedup.high:.2f}]"]
    if "same_optimizer" in result:
        notes.append(f"{result['same_optimizer'].median:.2f} with the fused Adam on both sides")
    notes.append(f"{result['as_accurate'].median:.2f} at no less accuracy")
    if "first_call_ms" in result:
        notes.append(f"first call {result['first_call_ms']:.0f} ms")
    if result["target"] is not None:
        notes.append(f"target ≥ {result['target']:g} {'met' if result['met'] else 'MISSED'}")
    return "; ".join(notes)


def _steps_table(result: dict[str, Any]) -> str:
    title = (
        f"Steps to relative change {result['tolerance']:g}: {result['features']} units, m = {result['m']:g}, "
        f"L = {result['lipschitz']:.4g}, weights {result['weights']}, {result['images']}"
    )
    head = ("", "α", "α L", "steps", "products", "error worst", "success")
    rows: list[list[object]] = []
    for name, row in result["methods"].items():
        scaled = None if row["alpha"] is None else row["alpha"] * result["lipschitz"]
        success = "yes" if row["success"] else "no"
        rows.append([name, row["alpha"], scaled, row["steps"], row["products"], row["error_worst_sample"], success])
    verdict = f'"auto": target ≤ {result["target"]} steps {"met" if result["met"] else "MISSED"}'
    return "\n".join([table(title, head, rows), verdict])


if __name__ == "__main__":
    raise SystemExit(main())
