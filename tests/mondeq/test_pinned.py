"""Small networks saved by version 0.1 (format 1): loaded, bounded and certified today as they were then, to 1e-10."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mondeq
from mondeq.bounds import best_pairs, local_jacobian_norms
from mondeq.data import Dataset

PINNED = Path(__file__).parent / "pinned"
# Where a later version proves more, the radius may grow by what the better proof gives.
TOLERANCE = 1e-10
# Bounds whose numbers come from a search, which later versions do better.
SEARCHES = ("matrix inequality, optimised metric",)


@pytest.mark.parametrize("kind", sorted(folder.name for folder in PINNED.iterdir()))
def test_what_was_proved_once_is_proved_for_ever(kind: str, digits: Dataset) -> None:
    model = mondeq.load(PINNED / kind)
    then: dict[str, Any] = json.loads((PINNED / kind / "certified.json").read_text())
    images, labels = digits.test.images[:60].float() / 255, digits.test.labels[:60]
    bounds = mondeq.lipschitz_bounds(model)
    for name, expected in then["bounds"].items():
        pairs = torch.tensor(expected["pairs"], dtype=torch.float64)
        found = bounds[name].pairs
        assert found is not None
        if name in SEARCHES:  # they have become better
            assert bounds[name].value <= expected["value"] * (1 + TOLERANCE)
            assert bool((found <= pairs * (1 + TOLERANCE)).all())
            continue
        assert bounds[name].value == pytest.approx(expected["value"], rel=TOLERANCE)
        assert torch.allclose(found, pairs, rtol=TOLERANCE, atol=0)
    report = mondeq.certify(model, images, labels)
    assert report.accuracy == then["accuracy"]
    assert report.prediction.tolist() == then["prediction"]
    radius = torch.tensor(then["radius"], dtype=torch.float64)
    assert bool((report.radius >= radius - TOLERANCE).all())
    # A radius is a gap over its constant: it may have grown as much as a constant has shrunk, and no more.
    best = best_pairs(bounds)
    shrunk = torch.stack([torch.tensor(b["pairs"], dtype=torch.float64) for b in then["bounds"].values()]).amin(0)
    assert bool((report.radius <= radius * float((shrunk / best).nan_to_num(1.0).amax()) * (1 + 1e-6) + 1e-9).all())
    jacobian = torch.tensor(then["jacobian"], dtype=torch.float64)
    assert torch.allclose(local_jacobian_norms(model, images[:8]), jacobian, rtol=1e-6)
    assert torch.allclose(model(images[:4]), torch.tensor(then["logits"]), atol=1e-3)
