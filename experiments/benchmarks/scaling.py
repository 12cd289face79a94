"""What a training step costs per pixel as images grow: no more than log n, as a fast transform promises.

`python -m experiments.benchmarks.scaling [--json FILE] [--smoke] [--seed N]`

Forward, cross-entropy of a 10-class head, backward and Adam on random weights and images 3×n×n, for a single
convolution (torus of side n + 2) and for several tiers (n/2ⁱ + 2), at m = 1 and tolerance 1e-2. The sizes run next to
each other in every round. What counts is the cost per pixel relative to that of the smallest image in the same round;
shown are its median and, in brackets, its quartiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

import mondeq
import splitting
from experiments.benchmarks.competitors import TrainingStep
from experiments.benchmarks.convolutions import OurNetwork, convolution, new_head, random_batch
from experiments.benchmarks.measure import Quartiles, heading, interleave, parser, table, write_json

ALLOWANCE = 1.3


@dataclass(frozen=True)
class Plan:
    """How much is measured. channels: of every tier, for each of the networks."""

    sizes: tuple[int, ...] = (32, 64, 128, 256)
    channels: tuple[tuple[int, ...], ...] = ((16,), (16, 16, 16))
    batch: int = 16
    rounds: int = 7
    seconds: float = 0.5


# Runs everything and measures nothing worth reading.
SMOKE = Plan(sizes=(8, 16), channels=((3,), (3, 4)), batch=2, rounds=2, seconds=0.0)


def main(arguments: list[str] | None = None) -> int:
    """Measure every network at every size, print a table, write `--json`."""
    options = parser("experiments.benchmarks.scaling", __doc__).parse_args(arguments)
    torch.manual_seed(options.seed)
    plan = SMOKE if options.smoke else Plan()
    content = heading(options.seed)
    print(f"{', '.join(f'{key}: {value}' for key, value in content['machine'].items())}")
    print(f"{content['date']}, seed {options.seed}\n")
    content["networks"] = [measure(channels, plan) for channels in plan.channels]
    print(_table(plan, content["networks"]))
    if options.json is not None:
        write_json(options.json, content)
    return 0


def measure(channels: tuple[int, ...], plan: Plan) -> dict[str, Any]:
    """One network at every size. growth: cost per pixel over that at the smallest size; allowed: 1.3 × that of log n.

    Solver steps are what the tolerance asks for at each size, and reported.
    """
    steps = {str(n): _Step(channels, n, plan.batch) for n in plan.sizes}
    timings = interleave(steps, rounds=plan.rounds, seconds=plan.seconds)
    smallest = plan.sizes[0]
    rows = []
    for n in plan.sizes:
        pixels, ratio = (n / smallest) ** 2, timings.ratio(str(n), str(smallest))
        growth = Quartiles(ratio.median / pixels, ratio.low / pixels, ratio.high / pixels)
        allowed = ALLOWANCE * math.log(n) / math.log(smallest)
        milliseconds = timings.milliseconds(str(n))
        rows.append(
            {
                "image_size": n,
                "sides": steps[str(n)].sides,
                "milliseconds": milliseconds,
                "microseconds_per_pixel": 1e3 * milliseconds.median / (plan.batch * n * n),
                "growth": growth,
                "allowed": allowed,
                "met": growth.median <= allowed,
                **steps[str(n)].counts,
                "success": steps[str(n)].success,
            }
        )
    return {"channels": channels, "batch": plan.batch, "sizes": rows, "met": all(row["met"] for row in rows)}


class _Step:
    """A training step on images of side n, which notes how its solves ended."""

    def __init__(self, channels: tuple[int, ...], n: int, batch: int) -> None:
        linear = convolution(channels, n)
        self.sides = [n // 2**i + 2 for i in range(len(channels))]
        network = OurNetwork(mondeq.EquilibriumLayer(linear, tol=1e-2), new_head(linear))
        self.step = TrainingStep(network, [random_batch(batch, n)], fused=None)
        self.step.network.layer.monitor = self._note
        self.counts: dict[str, int] = {}
        self.success = True

    def __call__(self) -> None:
        self.step()

    def _note(self, role: str, solution: splitting.Solution) -> None:
        self.counts[f"{role}_steps"] = len(solution.history)
        self.success = self.success and solution.status.ok


def _table(plan: Plan, results: list[dict[str, Any]]) -> str:
    head = ("", "sides of the tori", "ms", "steps fwd/bwd", "µs per pixel", "growth", "allowed", "success")
    rows: list[list[object]] = []
    for result in results:
        for row in result["sizes"]:
            rows.append(
                [
                    f"{', '.join(map(str, result['channels']))} channels, {row['image_size']}²",
                    ", ".join(map(str, row["sides"])),
                    row["milliseconds"],
                    f"{row['forward_steps']}/{row['backward_steps']}",
                    f"{row['microseconds_per_pixel']:.3f}",
                    row["growth"],
                    f"{row['allowed']:.2f}",
                    "yes" if row["success"] else "no",
                ]
            )
    title = f"Cost per pixel of a training step, batch {plan.batch}, m = 1, random weights"
    verdicts = [f"{', '.join(map(str, r['channels']))}: {'met' if r['met'] else 'MISSED'}" for r in results]
    verdict = f"target: growth ≤ {ALLOWANCE:g} × that of log n; " + "; ".join(verdicts)
    return "\n".join([table(title, head, rows), verdict])


if __name__ == "__main__":
    raise SystemExit(main())
