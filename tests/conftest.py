"""Every test starts from the same random state; property-based tests draw the same examples on every run.

`pytest --hypothesis-profile=default` searches at random instead.
"""

import gc
import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

# Workers share the cores: one thread each, also in the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class _TorchRandom:
    """Lets Hypothesis rewind torch's generator, so that an example is the same when it is replayed."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


_torch_random = _TorchRandom()  # Hypothesis keeps a weak reference only
hypothesis.register_random(_torch_random)
hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci")


def pytest_collection_finish() -> None:
    """Thousands of collected tests are no garbage: the collector need not walk through them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _restore_torch_defaults() -> Iterator[None]:
    """A test that changes the number of threads or the default dtype does not change the next one."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
