"""The benchmark of reflected layers: stacks at their start, and the layers of a trained network."""

import json
from pathlib import Path

import pytest
import torch

import mondeq
from experiments.benchmarks.tightness import jacobian, main
from mondeq.data import load


def test_stacks_at_their_start(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert main(["--smoke", "--json", str(out)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    loose, tight = (row for row in rows if row["rows of U"] == "orthogonal")
    assert loose["smallest singular value"] < 0.1
    assert 0.9 <= tight["smallest singular value"] <= tight["largest"] <= 1 + 1e-9
    assert all(row["steps to 2e-2"] <= row["steps to 1e-7"] for row in rows)


def test_a_jacobian_is_that_of_autograd() -> None:
    linear = mondeq.ReflectedDense(5, 7, m=0.1).double()
    with torch.no_grad():
        for weight in linear.parameters():
            weight.normal_()
    layer = mondeq.ResidualLayer(linear, tol=1e-12, max_steps=5000)
    x = torch.randn(1, 5, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0], x[0])
    torch.testing.assert_close(jacobian(layer, x), expected, rtol=0, atol=1e-9)


def test_layers_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = load("digits")
    config = mondeq.ModelConfig(
        kind="certified", image_shape=(1, 8, 8), classes=10, mean=digits.mean, std=(1.0,), class_names=digits.classes,
        hidden=(3,), width=4,
    )  # fmt: skip
    mondeq.save(mondeq.Classifier(config), tmp_path / "run", training={"data": "digits"})
    out = tmp_path / "figures.json"
    assert main(["--run", str(tmp_path / "run"), "--json", str(out)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["layer"] for row in rows] == ["conv0_0"]
    assert all(0.95 <= row["0%"] <= row["50%"] <= row["100%"] <= 1 + 1e-5 for row in rows)
    assert "singular values in run" in capsys.readouterr().out
