"""Convolutional layers against the algorithm of 2020: training step, its accuracy, memory and where its time goes.

`python -m experiments.benchmarks.conv [--json FILE] [--smoke] [--seed N]`

1. Training step: forward, cross-entropy of a 10-class head, backward and Adam, on random weights and batches of 128
   random images 3×32×32, for a single convolution and for several tiers; m = 1, tolerance 1e-2.
2. 200 channels: a training step on all threads, checked against the equation and against the textbook's gradient.
3. Peak memory of a step with 10 and with 300 solver steps.
4. Where the time of a step goes, and what it would be if every operation ran at the machine's measured rates.

The competitors run next to each other in every round. What counts is the ratio within a round; shown are its median
and, in brackets, its quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import mondeq
from experiments.benchmarks.competitors import Pair, TrainingStep, solve_and_differentiate
from experiments.benchmarks.convolutions import (
    OurNetwork,
    TextbookNetwork,
    check_reference,
    convolution,
    equation_residual,
    new_head,
    random_batch,
    random_pair,
    textbook_copy,
)
from experiments.benchmarks.cost import breakdown, machine_rates
from experiments.benchmarks.measure import Timings, heading, interleave, parser, table, write_json
from experiments.benchmarks.memory import peak_memory

MEMORY_TARGET = 0.02
# Largest errors of a solve to 1e-6 that count as right, in float32.
RESIDUAL_TARGET, GRADIENT_TARGET = 1e-5, 1e-3

Channels = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """How much is measured. training: least speed-up aimed at, by the channels of every tier. checked: images on which
    references are checked. wide: channels. memory: the networks whose memory is measured, a part of training.
    """

    image_size: int = 32
    batch: int = 128
    batches: int = 2
    rounds: int = 5
    seconds: float = 1.0
    training: dict[Channels, float] = field(default_factory=lambda: {(64,): 8.0, (16, 32, 60): 6.0})
    checked: int = 4
    wide: int = 200
    memory: tuple[Channels, ...] = ((64,), (16, 32, 60))
    memory_steps: tuple[int, int] = (10, 300)
    rates: dict[str, int] = field(default_factory=dict)


# Runs everything and measures nothing worth reading.
SMOKE = Plan(
    image_size=8,
    batch=4,
    rounds=2,
    seconds=0.0,
    training={(5,): 8.0, (3, 4): 6.0},
    checked=2,
    wide=7,
    memory=((3, 4),),
    memory_steps=(2, 20),
    rates={"size": 64, "megabytes": 1},
)


def main(arguments: list[str] | None = None) -> int:
    """Run the four measurements, print their tables, write `--json`."""
    options = parser("experiments.benchmarks.conv", __doc__).parse_args(arguments)
    torch.manual_seed(options.seed)
    plan = SMOKE if options.smoke else Plan()
    content = heading(options.seed)
    print(f"{', '.join(f'{key}: {value}' for key, value in content['machine'].items())}")
    print(f"{content['date']}, seed {options.seed}\n")
    content["training"] = [measure_training(channels, plan) for channels in plan.training]
    print(_training_table(plan, content["training"]))
    content["wide"] = measure_wide(plan)
    print(_wide_line(content["wide"]))
    content["memory"] = [measure_memory(channels, plan) for channels in plan.memory]
    print(_memory_table(plan, content["memory"]))
    content["cost"] = measure_cost(plan)
    print(_cost_table(plan, content["cost"]))
    if options.json is not None:
        write_json(options.json, content)
    return 0


def measure_training(channels: Channels, plan: Plan) -> dict[str, Any]:
    """Time of one training step, the same Adam on both sides. as_accurate: at no less accuracy than the textbook's."""
    pair = random_pair(channels, plan.image_size, plan.batch, plan.batches)
    tasks = {
        "textbook": TrainingStep(pair.textbook, pair.batches, fused=None),
        "mondeq": TrainingStep(pair.ours, pair.batches, fused=None),
        "mondeq, as accurate": TrainingStep(pair.as_accurate, pair.batches, fused=None),
    }
    timings = interleave(tasks, rounds=plan.rounds, seconds=plan.seconds)
    return _result(channels, timings, pair, plan) | {"reference": check_reference(pair, plan.checked)}


def _result(channels: Channels, timings: Timings, pair: Pair, plan: Plan) -> dict[str, Any]:
    speedup, target = timings.ratio("textbook", "mondeq"), plan.training[channels]
    return {
        "channels": channels,
        "milliseconds": {name: timings.milliseconds(name) for name in timings.rounds},
        "outcomes": pair.outcomes,
        "speedup": speedup,
        "speedup_of_fastest_rounds": timings.fastest("textbook") / timings.fastest("mondeq"),
        "as_accurate": timings.ratio("textbook", "mondeq, as accurate"),
        "target": target,
        "met": speedup.median >= target,
    }


def measure_wide(plan: Plan) -> dict[str, Any]:
    """A training step with so many channels that the library's stacked inverse cannot be trusted: is it right?

    residual: ‖z − σ(Wz + Ux + b)‖/‖z‖ with the textbook's W; gradient_error: ‖g − g′‖/‖g′‖, g′ of the textbook, which
    inverts one matrix at a time, on the first images; all in float32, solved to 1e-6.
    """
    linear = convolution((plan.wide,), plan.image_size)
    head = new_head(linear)
    batch = random_batch(plan.batch, plan.image_size)
    step = TrainingStep(OurNetwork(mondeq.EquilibriumLayer(linear, tol=1e-2), head), [batch], fused=None)
    step()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    tight = OurNetwork(mondeq.EquilibriumLayer(linear, tol=1e-6), head)
    textbook = TextbookNetwork(textbook_copy(linear, 1.0, tol=1e-6), head)
    residual = equation_residual(textbook.layer, tight.layer, batch[0])
    few = (batch[0][: plan.checked], batch[1][: plan.checked])
    _, gradient = solve_and_differentiate(tight, few)
    _, target = solve_and_differentiate(textbook, few)
    error = float((gradient - target).norm() / target.norm())
    return {
        "channels": plan.wide,
        "threads": torch.get_num_threads(),
        "milliseconds": 1e3 * seconds,
        "residual": residual,
        "gradient_error": error,
        "right": residual <= RESIDUAL_TARGET and error <= GRADIENT_TARGET,
    }


def measure_memory(channels: Channels, plan: Plan) -> dict[str, Any]:
    """Peak memory of a training step with few and with many solver steps, each in a process of its own."""
    few, many = (peak_memory(channels, plan.image_size, plan.batch, steps) for steps in plan.memory_steps)
    growth = many["peak_mib"] / few["peak_mib"] - 1
    return {
        "channels": channels,
        "few": few,
        "many": many,
        "growth": growth,
        "target": MEMORY_TARGET,
        "met": growth < MEMORY_TARGET,
    }


def measure_cost(plan: Plan) -> dict[str, Any]:
    """Shares of our step and its floor at the measured rates."""
    rates = machine_rates(**plan.rates)
    steps = {channels: _training_step(channels, plan) for channels in plan.training}
    parts = [{"channels": c, "parts": breakdown(step, rates, plan.rounds)} for c, step in steps.items()]
    return {"rates": rates, "steps": parts}


def _training_step(channels: Channels, plan: Plan) -> TrainingStep:
    linear = convolution(channels, plan.image_size)
    network = OurNetwork(mondeq.EquilibriumLayer(linear, tol=1e-2), new_head(linear))
    return TrainingStep(network, [random_batch(plan.batch, plan.image_size)], fused=None)


def _training_table(plan: Plan, results: list[dict[str, Any]]) -> str:
    """One row per competitor: time, steps, errors, success; then what was aimed at."""
    head = ("", "ms", "tol", "steps fwd/bwd", "error: worst", "batch", "gradient", "success")
    rows: list[list[object]] = []
    for result in results:
        for name, milliseconds in result["milliseconds"].items():
            one = result["outcomes"][name]
            rows.append(
                [
                    f"{_name(result['channels'])}, {name}",
                    milliseconds,
                    one["tolerance"],
                    f"{one['forward_steps']}/{one['backward_steps']}",
                    f"{one['error_worst_sample']:.1e}",
                    f"{one['error_batch']:.1e}",
                    f"{one['gradient_error']:.1e}",
                    "yes" if one["success"] else "no",
                ]
            )
    title = f"Training step, 3×{plan.image_size}×{plan.image_size}, batch {plan.batch}, m = 1, random weights"
    return "\n".join([table(title, head, rows), *map(_verdict, results), ""])


def _verdict(result: dict[str, Any]) -> str:
    speedup, reference = result["speedup"], result["reference"]
    return (
        f"{_name(result['channels'])}: {speedup.median:.2f} times as fast [{speedup.low:.2f}, {speedup.high:.2f}], "
        f"{result['as_accurate'].median:.2f} at no less accuracy; "
        f"target ≥ {result['target']:g} {'met' if result['met'] else 'MISSED'}; float64 reference: equation residual "
        f"{reference['residual']:.0e}, gradient {reference['gradient']:.0e} from the textbook's"
    )


def _wide_line(result: dict[str, Any]) -> str:
    return (
        f"{result['channels']} channels on {result['threads']} threads: {result['milliseconds']:.0f} ms a step, "
        f"equation residual {result['residual']:.1e}, gradient error {result['gradient_error']:.1e}: "
        f"{'right' if result['right'] else 'WRONG'}\n"
    )


def _memory_table(plan: Plan, results: list[dict[str, Any]]) -> str:
    head = ("", "solver steps fwd/bwd", "peak MiB", "growth")
    rows: list[list[object]] = []
    for result in results:
        for role in ("few", "many"):
            one = result[role]
            steps = f"{one['forward_steps']}/{one['backward_steps']}"
            growth = None if role == "few" else f"{100 * result['growth']:+.2f} %"
            rows.append([_name(result["channels"]), steps, f"{one['peak_mib']:.0f}", growth])
    verdict = "; ".join(f"{_name(r['channels'])} {'met' if r['met'] else 'MISSED'}" for r in results)
    title = f"Peak memory of a training step, batch {plan.batch}"
    return "\n".join([table(title, head, rows), f"target: growth < {100 * MEMORY_TARGET:g} %: {verdict}", ""])


def _cost_table(plan: Plan, result: dict[str, Any]) -> str:
    head = ("", "ms", "share", "GFLOP", "GB", "floor ms", "arithmetic only")
    rows: list[list[object]] = []
    for step in result["steps"]:
        parts = dict(step["parts"])
        keys = ("seconds", "share", "flops", "bytes", "floor", "arithmetic_floor")
        parts["whole step"] = {key: sum(part[key] for part in parts.values()) for key in keys}
        for name, part in parts.items():
            rows.append(
                [
                    f"{_name(step['channels'])}, {name}",
                    f"{1e3 * part['seconds']:.1f}",
                    f"{100 * part['share']:.0f} %",
                    f"{part['flops'] / 1e9:.2f}",
                    f"{part['bytes'] / 1e9:.2f}",
                    f"{1e3 * part['floor']:.1f}",
                    f"{1e3 * part['arithmetic_floor']:.1f}",
                ]
            )
    rates = result["rates"]
    title = (
        f"Where our step spends its time, and its floor at {rates['flops'] / 1e9:.0f} GFLOP/s (matrix product) and "
        f"{rates['bytes'] / 1e9:.1f} GB/s (copy), batch {plan.batch}"
    )
    return table(title, head, rows)


def _name(channels: Sequence[int]) -> str:
    return f"{channels[0]} channels" if len(channels) == 1 else f"tiers {', '.join(map(str, channels))}"


if __name__ == "__main__":
    raise SystemExit(main())
