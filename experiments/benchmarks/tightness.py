"""`python -m experiments.benchmarks.tightness`: what it costs in solver steps that reflected layers are isometries.

Ten convolutions in a row whose ‖U‖²/2m is a given number: the smallest and the largest singular
value of the Jacobian of the stack, and the steps that a solve takes to training's tolerance and to a certificate's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import mondeq
from experiments.benchmarks.measure import heading, parser, table, write_json

DEPTH, CHANNELS, SIDE = 10, 8, 4


def stack(tightness: float, orthogonal: bool) -> mondeq.Network:
    """Ten layers, float64, with ‖U‖²/2m = `tightness`: of the initial kind, or with independent entries in all taps."""
    layers = []
    for _ in range(DEPTH):
        linear = mondeq.ReflectedConv2d(CHANNELS, CHANNELS, SIDE, m=0.1)
        with torch.no_grad():
            if not orthogonal:
                linear.U.normal_()
            size = linear.double().input_norm(torch.ones(linear.in_features, dtype=torch.float64))
            linear.U.mul_((0.2 * tightness) ** 0.5 / size)
        layers.append(mondeq.ResidualLayer(linear, tol=1e-10, max_steps=5000))
    return mondeq.Network(layers, (CHANNELS, SIDE, SIDE)).double()


def measure(tightness: float, orthogonal: bool, seed: int = 0) -> dict[str, Any]:
    """Singular values of the Jacobian of a stack at its start, and the largest number of steps of any layer."""
    torch.manual_seed(seed)
    model = stack(tightness, orthogonal)
    x = torch.randn(CHANNELS, SIDE, SIDE, dtype=torch.float64)
    smallest = largest = None
    if orthogonal:  # others take thousands of steps for a column
        jacobian = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], x).reshape(x.numel(), x.numel())
        values = torch.linalg.svdvals(jacobian)
        smallest, largest = float(values[-1]), float(values[0])
    return {
        "rows of U": "orthogonal" if orthogonal else "independent",
        "‖U‖²/2m": tightness,
        "smallest singular value": smallest,
        "largest": largest,
        "steps to 2e-2": _steps(model, x, 2e-2),
        "steps to 1e-7": _steps(model, x, 1e-7),
    }


@torch.no_grad()
def _steps(model: mondeq.Network, x: Tensor, tol: float) -> int:
    state, most = x[None], 0
    for layer in model.solved():
        tuned = layer.tuned(layer.solver)
        solution = mondeq.ResidualLayer(layer.linear, solver=tuned).solve(state, tol=tol, max_steps=5000)
        most = max(most, int(solution.steps.max()))
        state = layer(state)
    return most


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it where asked."""
    options = parser("experiments.benchmarks.tightness", __doc__).parse_args(arguments)
    torch.set_num_threads(1)
    kinds = (2.0, 200.0) if options.smoke else (2.0, 20.0, 200.0, 2000.0)
    rows = [measure(tightness, kind, options.seed) for kind in (True, False) for tightness in kinds]
    print(table(f"{DEPTH} reflected convolutions", list(rows[0]), [list(row.values()) for row in rows]))
    if options.json:
        write_json(options.json, {**heading(options.seed), "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
