"""Fixtures of the mondeq tests: one thread, the digits, and two small networks trained on them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mondeq
from mondeq.data import Dataset, load
from mondeq.training import Trainer, TrainingConfig

WIDTHS: dict[str, dict[str, Any]] = {
    "dense": {"features": 16},
    "lipschitz": {"features": 16},
    "conv": {"channels": (4,), "pool": 2, "weight_norm": True},
    "multiscale": {"channels": (3, 6), "weight_norm": True},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The problems here are tiny: a second thread would only wait, very long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="session")
def trained(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, mondeq.Classifier]:
    """One small certificate-aware network of each kind, trained for a second. Not to be changed by a test."""
    return _Trained(digits, tmp_path_factory)


class _Trained(dict[str, mondeq.Classifier]):
    """Each is trained when it is first asked for."""

    def __init__(self, digits: Dataset, folders: pytest.TempPathFactory) -> None:
        super().__init__()
        self.digits, self.folders = digits, folders

    def __missing__(self, kind: str) -> mondeq.Classifier:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        digits = self.digits
        torch.manual_seed(0)
        model = mondeq.Classifier(
            mondeq.ModelConfig(
                kind=kind,
                image_shape=(1, 8, 8),
                classes=10,
                **WIDTHS[kind],
                mean=digits.mean,
                std=(1.0,) if kind == "lipschitz" else digits.std,
                **({"learn_m": True} if kind == "dense" else {}),
            )
        )
        config = TrainingConfig(
            data="digits",
            epochs=5,
            batch_size=128,
            lr=1e-2,
            radius=0.2,
            logit_scale=6.0 if kind == "lipschitz" else 1.0,
        )
        folder: Path = self.folders.mktemp(kind)
        Trainer(model, digits, config, folder, torch.device("cpu")).run()
        torch.set_num_threads(threads)
        self[kind] = model.eval()
        return self[kind]
