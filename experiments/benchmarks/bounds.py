"""How tight certified bounds are: small random networks, whose constants are known by enumeration of all slopes.

`python -m experiments.benchmarks.bounds [--networks N]`

Printed is, for every method and for the best of all, bound/constant over all gaps of all networks: at least 1, and the
smaller the better.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import mondeq
from mondeq.network import exact_copy


def network(seed: int) -> mondeq.Network:
    """Dense, 3 to 6 units of ReLU, 3 or 4 classes, at least as many inputs as units, so that every pattern occurs.

    Args:
        seed: Decides sizes and weights.

    Returns:
        The network.
    """
    torch.manual_seed(seed)
    units, classes, m = 3 + seed % 4, 3 + seed // 4 % 2, (0.1, 0.5, 1.0)[seed // 8 % 3]
    linear = mondeq.Dense(units + seed % 3, units, m)
    with torch.no_grad():
        for weight in linear.parameters():
            weight.copy_(torch.randn_like(weight) * (units**-0.5 if weight.shape == (units, units) else 1))
    pieces = [mondeq.EquilibriumLayer(linear), nn.Linear(units, classes)]
    return mondeq.Network(pieces, in_shape=(linear.in_features,)).eval()


def exact_gaps(model: mondeq.Network) -> Tensor:
    """max ‖(c_i − c_j)(I − DW)⁻¹DU‖ over all D of zeros and ones.

    Args:
        model: One of `network`.

    Returns:
        (classes, classes) float64.
    """
    layer, head = exact_copy(model).children()
    matrix, inputs = layer.linear.operator().matrix, layer.linear.U
    patterns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(matrix))), dtype=torch.float64)[:, :, None]
    eye = torch.eye(len(matrix), dtype=torch.float64)
    J = head.weight @ torch.linalg.solve(eye - patterns * (eye - matrix), patterns * inputs)
    return (J[:, :, None] - J[:, None]).norm(dim=3).amax(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=300, metavar="N", help="how many networks (default 300)")
    options = parser.parse_args(arguments)
    ratios: dict[str, list[Tensor]] = {}
    for seed in range(options.networks):
        model = network(seed)
        with torch.no_grad():
            exact, bounds = exact_gaps(model), mondeq.lipschitz_bounds(model)
        first, second = torch.tril_indices(len(exact), len(exact), -1)
        found = {name: bound.pairs for name, bound in bounds.items() if bound.pairs is not None}
        for name, pairs in {**found, "best": torch.stack(list(found.values())).amin(0)}.items():
            ratios.setdefault(name, []).append((pairs / exact)[first, second])
    for name, parts in ratios.items():
        ratio = torch.cat(parts)
        print(f"{name:38} least {ratio.min():.9f}  median {ratio.median():.4f}  largest {ratio.max():.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
