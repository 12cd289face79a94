"""Peak memory of one training step after a given number of solver steps: `python -m experiments.benchmarks.memory`.

Prints an object with the steps taken, forward and backward, and the largest resident size of this process in MiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import mondeq
import splitting
from experiments.benchmarks.convolutions import OurNetwork, convolution, new_head, random_batch

# No solve in float32 gets here.
_NEVER = 1e-30


def peak_memory(channels: Sequence[int], image_size: int, batch: int, steps: int) -> dict[str, Any]:
    """What this module prints, from a process of its own: `steps` solver steps forward and as many backward."""
    options = ["--channels", *map(str, channels), "--image-size", str(image_size)]
    options += ["--batch", str(batch), "--steps", str(steps)]
    command = [sys.executable, "-m", "experiments.benchmarks.memory", *options]
    content: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return content


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.manual_seed(0)
    linear = convolution(options.channels, options.image_size)
    solutions: dict[str, int] = {}

    def monitor(role: str, solution: splitting.Solution) -> None:
        solutions[role] = len(solution.history)

    layer = mondeq.EquilibriumLayer(linear, tol=_NEVER, max_steps=options.steps, on_failure="return", monitor=monitor)
    network = OurNetwork(layer, new_head(linear))
    optimizer = torch.optim.Adam(network.parameters())
    images, labels = random_batch(options.batch, options.image_size)
    functional.cross_entropy(network(images), labels).backward()
    optimizer.step()
    steps = {f"{role}_steps": solutions[role] for role in ("forward", "backward")}
    print(json.dumps({**steps, "peak_mib": _peak_mib()}))
    return 0


def _peak_mib() -> float:
    """The most memory this program has had. What the system says of the process counts what it was forked from too."""
    status = Path("/proc/self/status")
    if status.exists():
        (kib,) = (line.split()[1] for line in status.read_text(encoding="ascii").splitlines() if "VmHWM" in line)
        return int(kib) / 2**10
    # macOS counts bytes, others KiB.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _parser() -> argparse.ArgumentParser:
    description, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.memory", description=description)
    parser.add_argument("--channels", type=int, nargs="+", required=True, help="of every tier")
    parser.add_argument("--image-size", type=int, required=True, help="side of the images")
    parser.add_argument("--batch", type=int, required=True, help="images per step")
    parser.add_argument("--steps", type=int, required=True, help="solver steps, forward and backward each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
