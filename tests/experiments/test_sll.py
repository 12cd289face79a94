"""The feed-forward rival: 1-Lipschitz for every weight, certified by the package's own bounds."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mondeq
from experiments.sll import SLLConv2d
from mondeq.testing import check_certificate
from tests.mondeq.zoo import log_uniform


def drawn(seed: int, scale: float) -> SLLConv2d:
    torch.manual_seed(seed)
    layer = SLLConv2d(2, 3).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=scale)
    return layer


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), scale=log_uniform(1e-2, 3))
def test_a_layer_is_one_lipschitz_for_every_weight(seed: int, scale: float) -> None:
    layer = drawn(seed, scale)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: layer(v[None])[0], x).reshape(40, 40)
    assert float(torch.linalg.matrix_norm(jacobian, 2)) <= 1 + 1e-9


def test_a_stack_of_them_is_certified() -> None:
    torch.manual_seed(0)
    images = {"image_shape": (3, 12, 12), "classes": 4, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    model = mondeq.Classifier(mondeq.ModelConfig("sll", **images, hidden=(6, 5), width=16)).eval()
    assert not list(model.solved())
    samples = torch.rand(8, 3, 12, 12)
    labels = model(samples).argmax(1)
    report = mondeq.certify(model, samples, labels)
    assert check_certificate(model, samples, labels, report, samples=100) == 8
    assert 0 < float(report.error_bound.max()) < 1e-9
