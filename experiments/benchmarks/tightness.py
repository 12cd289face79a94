"""`python -m experiments.benchmarks.tightness`: what it costs in solver steps that reflected layers are isometries.

Ten convolutions in a row whose ‖U‖²/2m is a given number: the smallest and the largest singular
value of the Jacobian of the stack, and the steps that a solve takes to training's tolerance and to a certificate's.
With `--run RUN --data-dir DIR`: singular values of the Jacobian of every reflected layer of a trained network instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mondeq
from experiments.benchmarks.measure import heading, parser, table, write_json
from mondeq.cli.evaluation import pixels, run_data

DEPTH, CHANNELS, SIDE = 10, 8, 4
# Rows of a Jacobian at a time, how exactly they are solved, and which of its singular values are shown.
ROWS, TOL, SHARES = 256, 1e-5, (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)


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
        values = torch.linalg.svdvals(jacobian(model, x[None]))
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


def trained(run: Path, data_dir: Path | None) -> list[dict[str, Any]]:
    """Quantiles of the singular values of every reflected layer of a run, at its first test image."""
    model = mondeq.load(run)
    state, _ = pixels(run_data(run, data_dir, model).test, 0, 1, model.device)
    rows = []
    for name, piece in model.named_children():
        if isinstance(piece, mondeq.ResidualLayer):
            piece.tol = piece.backward_tol = TOL
            piece.solver, piece.max_steps = piece.tuned(piece.solver), 5000
            values = torch.linalg.svdvals(jacobian(piece, state)).double()
            shares = torch.tensor(SHARES, dtype=torch.float64)
            found = torch.quantile(values, shares, interpolation="nearest").tolist()
            rows.append({"layer": name, **{f"{share:.0%}": v for share, v in zip(SHARES, found, strict=True)}})
        with torch.no_grad():
            state = piece(state)
    return rows


def jacobian(piece: torch.nn.Module, x: Tensor) -> Tensor:
    """That of a piece at one sample, `ROWS` rows in every backward pass."""
    rows = []
    for unit in torch.eye(x.numel(), dtype=x.dtype).split(ROWS):
        copies = x.expand(len(unit), *x.shape[1:]).clone().requires_grad_()
        output = piece(copies)
        rows.append(torch.autograd.grad(output, copies, unit.view_as(output))[0].flatten(1))
    return torch.cat(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it where asked."""
    options_of = parser("experiments.benchmarks.tightness", __doc__)
    options_of.add_argument("--run", type=Path, metavar="RUN", help="a trained network with reflected layers")
    options_of.add_argument("--data-dir", type=Path, metavar="DIR", help="where the data of RUN are")
    options = options_of.parse_args(arguments)
    if options.run is not None:
        title, rows = f"singular values in {options.run.name}", trained(options.run, options.data_dir)
    else:
        torch.set_num_threads(1)
        values = (2.0, 200.0) if options.smoke else (2.0, 20.0, 200.0, 2000.0)
        title, cases = f"{DEPTH} reflected convolutions", [(value, kind) for kind in (True, False) for value in values]
        rows = [measure(*case, options.seed) for case in (cases[:3] if options.smoke else cases)]
    print(table(title, list(rows[0]), [list(row.values()) for row in rows]))
    if options.json:
        write_json(options.json, {**heading(options.seed), "rows": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
