"""What holds for every parameterization: enrol one in tests/registry.py and all of this runs over it."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mondeq
import splitting
from mondeq.runs import read_tensors, write_tensors
from mondeq.testing import check_lipschitz, check_unique_equilibrium
from tests.registry import DTYPES, PARAMETERIZATIONS

everywhere = pytest.mark.parametrize("name", PARAMETERIZATIONS)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES)


def inputs(linear: mondeq.Parameterization, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, linear.in_features, generator=generator, dtype=torch.float64)
    return x.to(next(linear.parameters()).dtype)


def layer_of(linear: mondeq.Parameterization, **options: Any) -> mondeq.EquilibriumLayer:
    defaults: dict[str, Any] = {"activation": splitting.Tanh(), "tol": 1e-11, "max_steps": 1000}
    return mondeq.EquilibriumLayer(linear, **(defaults | options))


@everywhere
@all_dtypes
def test_the_operator_passes_the_public_checks(name: str, dtype: torch.dtype) -> None:
    A = PARAMETERIZATIONS[name](dtype).operator()
    rounding = 100 * torch.finfo(dtype).eps
    assert splitting.check_adjoint(A) <= rounding
    for alpha in (0.1, 1.0, 10.0):
        assert splitting.check_resolvent(A, alpha) <= rounding * (1 + alpha * A.lipschitz)
    assert 0 < A.strong_monotonicity <= splitting.check_monotone(A) + rounding
    assert splitting.check_monotone(A) <= A.lipschitz
    assert (A.dtype, A.adjoint.dtype) == (dtype, dtype)
    assert A.state_shape == PARAMETERIZATIONS[name](dtype).state_shape


@everywhere
def test_the_weight_is_the_identity_minus_the_operator(name: str) -> None:
    linear = PARAMETERIZATIONS[name](torch.float64)
    z = torch.randn(3, *linear.state_shape, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(z.flatten(1) @ linear.weight().mT, (z - linear.operator().apply(z)).flatten(1))


@everywhere
def test_the_operator_in_float64_is_the_same_map(name: str) -> None:
    A = PARAMETERIZATIONS[name](torch.float32).operator()
    z = torch.randn(3, *A.state_shape)
    with torch.no_grad():
        error = A.double().apply(z.double()) - A.apply(z).double()
        assert (A.double().norm(error) <= A.rounding(z)).all()
    assert A.double().strong_monotonicity == A.strong_monotonicity


@everywhere
def test_every_weight_of_the_operator_gets_its_gradient(name: str) -> None:
    """∂⟨q, A z⟩ through `pairing_gradient` is what differentiating `apply` gives."""
    linear = PARAMETERIZATIONS[name](torch.float64)
    A = linear.operator()
    q, z = torch.randn(2, 3, *linear.state_shape, dtype=torch.float64)
    learned = [t.requires_grad for t in A.tensors]
    assert any(learned)
    # One kernel may be made of another: here each counts for itself.
    leaves = [t.detach().clone().requires_grad_(t.requires_grad) for t in A.tensors]
    expected = iter(torch.autograd.grad((q * A.rebind(*leaves).apply(z)).sum(), [t for t in leaves if t.requires_grad]))
    for needed, gradient in zip(learned, A.pairing_gradient(q, z), strict=True):
        if needed:
            torch.testing.assert_close(gradient, next(expected), rtol=1e-10, atol=1e-10)


@everywhere
def test_gradients_are_finite_differences(name: str) -> None:
    linear = PARAMETERIZATIONS[name](torch.float64)
    solver = splitting.PeacemanRachford().tuned(linear.operator())
    layer = layer_of(linear, solver=solver, on_failure="return").train()
    x = inputs(linear, 2)
    used = torch.autograd.grad(layer(x).sum(), [p for _, p in layer.named_parameters()], allow_unused=True)
    names = [n for (n, _), g in zip(layer.named_parameters(), used, strict=True) if g is not None]

    def function(y: Tensor, *values: Tensor) -> Tensor:
        z: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (y,))
        return z

    arguments = (x.requires_grad_(), *(layer.get_parameter(n).detach().clone().requires_grad_() for n in names))
    assert len(arguments) >= min(5, 1 + len(list(layer.parameters())))
    assert torch.autograd.gradcheck(function, arguments, eps=1e-5, atol=1e-6, rtol=1e-5, fast_mode=True)


@everywhere
def test_batch_mates_do_not_matter(name: str) -> None:
    layer = layer_of(PARAMETERIZATIONS[name](torch.float64)).eval()
    x = inputs(layer.linear)
    together = layer.solve(torch.cat([x, 1e5 * x]))
    for i in range(len(x)):
        alone = layer.solve(x[i : i + 1])
        assert int(together.steps[i]) == int(alone.steps)
        torch.testing.assert_close(together.value[i], alone.value[0], rtol=1e-13, atol=1e-13)


@everywhere
def test_saved_and_loaded_it_gives_the_same(name: str, tmp_path: Any) -> None:
    linear = PARAMETERIZATIONS[name](torch.float64)
    write_tensors(tmp_path / "weights", linear.state_dict())
    other = copy.deepcopy(linear)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(read_tensors(tmp_path / "weights"))
    with torch.no_grad():
        assert torch.equal(layer_of(other)(inputs(linear)), layer_of(linear)(inputs(linear)))


@everywhere
@pytest.mark.parametrize("activation", [splitting.ReLU(), splitting.Softplus(), splitting.Box(-0.3, 0.5)], ids=str)
def test_one_equilibrium(name: str, activation: splitting.Activation) -> None:
    linear = PARAMETERIZATIONS[name](torch.float64)
    check_unique_equilibrium(linear, activation, inputs(linear), max_steps=50)


@everywhere
def test_its_lipschitz_bounds(name: str) -> None:
    linear = PARAMETERIZATIONS[name](torch.float64)
    assert 0.05 < check_lipschitz(linear, inputs(linear), activation=splitting.LeakyReLU(0.5), ascent=5) <= 1


@everywhere
def test_the_source_is_right_to_its_rounding(name: str) -> None:
    single, double = (PARAMETERIZATIONS[name](dtype) for dtype in DTYPES)
    x = inputs(single)
    with torch.no_grad():
        error = single.source(x).double() - double.source(x.double())
        size = double.operator().norm(error)
    bound = single.source_rounding(x.double().abs())
    assert (size <= bound).all()
    assert (bound <= 1e-4).all()


@everywhere
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_input_norm_scales(name: str, scale: float) -> None:
    linear = PARAMETERIZATIONS[name](torch.float64)
    ones = torch.ones(linear.in_features, dtype=torch.float64)
    assert linear.input_norm(scale * ones) == pytest.approx(scale * linear.input_norm(ones), rel=1e-9)
    assert linear.input_norm(0 * ones) == pytest.approx(0, abs=1e-100)


def input_matrix(linear: mondeq.Parameterization) -> Tensor:
    """Λ^½ U, read off its columns."""
    pixels = torch.eye(linear.in_features, dtype=torch.float64)
    with torch.no_grad():
        columns = (linear.source(pixels) - linear.source(0 * pixels)).flatten(1)
        metric = linear.operator().metric
    return columns.mT if metric is None else metric.detach().flatten().sqrt()[:, None] * columns.mT


@everywhere
def test_the_input_norm_from_both_sides(name: str) -> None:
    """No less than ‖Λ^½ U diag(scale)‖ for scales of any pattern, a single entry too; for one number no more, but for
    what kernels reach over the border of an image. What steers training is the same number."""
    linear = PARAMETERIZATIONS[name](torch.float64)
    U, count = input_matrix(linear), linear.in_features
    ones = torch.ones(count, dtype=torch.float64)
    for scale in (ones, *torch.eye(count, dtype=torch.float64), *torch.rand(3, count, dtype=torch.float64)):
        true, bound = float(torch.linalg.matrix_norm(U * scale, 2)), linear.input_norm(scale)
        assert true * (1 - 1e-12) <= bound
        assert float(linear.input_norm_estimate(scale).detach()) == pytest.approx(bound, rel=1e-9)
        general = mondeq.Parameterization.input_norm_estimate(linear, scale)
        assert float(general.detach()) == pytest.approx(true, rel=1e-9)
    images = (mondeq.Conv2d, mondeq.LipschitzConv2d, mondeq.MultiscaleConv2d)
    slack = 1.3 if isinstance(linear, images) else 1 + 1e-9
    assert linear.input_norm(ones) <= slack * float(torch.linalg.matrix_norm(U, 2))


@everywhere
def test_it_can_be_copied_moved_and_printed(name: str, recwarn: pytest.WarningsRecorder) -> None:
    linear = PARAMETERIZATIONS[name](torch.float32)
    moved: Callable[..., Any] = copy.deepcopy(linear).double
    assert moved().operator().dtype == torch.float64
    assert linear.operator().dtype == torch.float32
    assert repr(linear).startswith(f"{type(linear).__name__}(")
    assert math.isfinite(linear.operator().lipschitz)
    assert not [w for w in recwarn if "scalar" in str(w.message)]
