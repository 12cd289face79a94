"""Certificates under attack: the script attacks both norms, writes figures, and fails where a certificate is broken."""

import json
from pathlib import Path

import pytest
import torch

import mondeq
from experiments.attacked import main
from mondeq.certificates import base
from mondeq.data import load


def test_figures_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    digits = load("digits")
    config = mondeq.ModelConfig(
        kind="lipschitz",
        image_shape=(1, 8, 8),
        classes=10,
        features=8,
        mean=digits.mean,
        std=(1.0,),
        class_names=digits.classes,
    )
    mondeq.save(mondeq.Classifier(config), tmp_path / "run", training={"data": "digits"})
    out = tmp_path / "figures.json"
    options = ["--images", "12", "--steps", "4", "--attacks", "pgd margin", "--out", str(out)]
    assert main([str(tmp_path / "run"), *options]) == 0
    figures = json.loads(out.read_text())
    assert (figures["images"], figures["violations"]) == (24, 0)
    assert [row["norm"] for row in figures["runs"]] == ["l2", "linf"]
    for row in figures["runs"]:
        for radius, certified in row["certified"].items():
            assert certified <= row["attacked"][radius] <= row["clean"]
    original = base.Certifier._radii
    monkeypatch.setattr(base.Certifier, "_radii", lambda self, x: (30 * original(self, x)[0], *original(self, x)[1:]))
    assert main([str(tmp_path / "run"), *options]) == 1
    assert json.loads(out.read_text())["violations"] > 0
