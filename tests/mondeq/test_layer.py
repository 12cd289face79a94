"""EquilibriumLayer: one answer per sample, right gradients in every mode, an operator kept exactly as long as valid."""

import copy
import gc
import io
import math
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mondeq
import splitting
from splitting import ConvergenceWarning, InvalidArgument, InvalidType, NotConverged

# Pictures of one channel, 4×6, flattened or not.
INPUTS = 24
KINDS: dict[str, Callable[[], mondeq.Parameterization]] = {
    "dense": lambda: mondeq.Dense(INPUTS, 6, m=0.5, learn_m=True),
    "lipschitz": lambda: mondeq.LipschitzDense(INPUTS, 6, 2),
    "conv": lambda: mondeq.Conv2d(1, 2, (4, 6), learn_m=True, weight_norm=True),
    "multiscale": lambda: mondeq.MultiscaleConv2d(1, (1, 2), (4, 6), learn_m=True),
}
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if "multiscale" in kind else []) for kind in KINDS]
)


def parameterization(kind: str = "dense", *, seed: int = 0) -> mondeq.Parameterization:
    torch.manual_seed(seed)
    linear = KINDS[kind]()
    with torch.no_grad():
        if kind == "lipschitz":
            linear.get_parameter("log_metric").normal_(std=0.3)
    return linear


def layer_of(kind: str = "dense", *, dtype: torch.dtype = torch.float64, **options: Any) -> mondeq.EquilibriumLayer:
    defaults: dict[str, Any] = {"activation": splitting.Tanh(), "tol": 1e-11, "max_steps": 500}
    return mondeq.EquilibriumLayer(parameterization(kind), **(defaults | options)).to(dtype)


def batch(count: int = 5, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def applied(layer: mondeq.EquilibriumLayer, z: Tensor, x: Tensor) -> Tensor:
    """σ(Wz + Ux + b) with W as a matrix."""
    image = (z.flatten(1) @ layer.linear.weight().mT).reshape(z.shape)
    return layer.linear.confined(splitting.Tanh())(image + layer.linear.source(x))


def gradients(layer: mondeq.EquilibriumLayer, x: Tensor) -> dict[str, Tensor]:
    """Of a function of z that tells its entries apart, to the input and every weight that matters."""
    x = x.clone().requires_grad_()
    z = layer(x)
    loss = (z * torch.linspace(1, 2, z.numel(), dtype=z.dtype).reshape(z.shape)).square().sum()
    named = {n: p for n, p in layer.named_parameters() if not n.endswith("b_o")}  # it has no part in z
    grads = torch.autograd.grad(loss, [x, *named.values()], allow_unused=True)
    return {n: g for n, g in zip(["x", *named], grads, strict=True) if g is not None}


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-8) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=tolerance, atol=tolerance, msg=f"{name} differs")


# -- the point -----------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("training", [False, True])
def test_the_output_is_the_fixed_point(kind: str, training: bool) -> None:
    layer = layer_of(kind).train(training)
    x = batch()
    with torch.no_grad():
        z = layer(x)
        torch.testing.assert_close(z, applied(layer, z, x), rtol=0, atol=1e-10)
    assert z.shape == (5, *layer.linear.state_shape)


@each_kind
@pytest.mark.parametrize("training", [False, True])
def test_solve_is_the_same_point_with_diagnostics(kind: str, training: bool) -> None:
    layer = layer_of(kind).train(training)
    x = batch().requires_grad_()
    solution = layer.solve(x)
    assert not solution.value.requires_grad
    assert torch.equal(solution.value, layer(x).detach())
    assert solution.error_bound.shape == solution.steps.shape == solution.residual.shape == (5,)
    assert solution.status.ok
    assert (solution.residual <= layer.tol).all()


@each_kind
def test_solve_takes_its_own_tolerance_and_start(kind: str) -> None:
    layer = layer_of(kind, tol=1e-3)
    x = batch()
    rough, fine = layer.solve(x), layer.solve(x, tol=1e-11)
    assert (fine.steps > rough.steps).all()
    assert (layer.solve(x, tol=1e-11, initial=fine.value).steps < fine.steps).all()
    with pytest.warns(ConvergenceWarning):
        assert int(layer.solve(x, tol=1e-11, max_steps=2).steps.max()) == 2


@each_kind
@pytest.mark.parametrize("training", [False, True])
def test_batch_mates_do_not_matter(kind: str, training: bool) -> None:
    """Not a huge one, not one that is NaN: same answer, same number of steps, same gradient to the input."""
    layer = layer_of(kind, on_failure="return", max_steps=100, tol=1e-9).train(training)
    x = batch(4)
    alone = [layer.solve(x[i : i + 1]) for i in range(4)]
    crowd = torch.cat([x, 1e6 * torch.ones(1, INPUTS), torch.full((1, INPUTS), math.nan), 0 * x])
    together = layer.solve(crowd)
    for i, single in enumerate(alone):
        assert int(together.steps[i]) == int(single.steps)
        torch.testing.assert_close(together.value[i], single.value[0], rtol=1e-13, atol=1e-13)
        slope = gradient_to_input(layer, crowd)[i]
        torch.testing.assert_close(slope, gradient_to_input(layer, x[i : i + 1])[0], rtol=1e-12, atol=1e-12)
    assert not together.converged[5]


def gradient_to_input(layer: mondeq.EquilibriumLayer, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).square().sum(), x)
    return slope


@each_kind
@pytest.mark.parametrize("training", [False, True])
def test_empty_batch(kind: str, training: bool) -> None:
    layer = layer_of(kind).train(training)
    z = layer(torch.zeros(0, INPUTS, dtype=torch.float64))
    assert z.shape == (0, *layer.linear.state_shape)
    z.sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name
    solution = layer.solve(torch.zeros(0, INPUTS, dtype=torch.float64))
    assert solution.value.shape == z.shape
    assert solution.error_bound.shape == (0,)
    assert solution.status.ok


@each_kind
def test_inputs_of_any_shape_and_layout(kind: str) -> None:
    layer = layer_of(kind).eval()
    x = batch(4)
    with torch.no_grad():
        expected = layer(x)
        strided = x.repeat_interleave(2, dim=1)[:, ::2]
        transposed = x.mT.contiguous().mT
        assert not strided.is_contiguous()
        assert not transposed.is_contiguous()
        for same in (strided, transposed, x.reshape(4, 1, 4, 6), x[:1].expand(4, INPUTS)):
            torch.testing.assert_close(layer(same)[0], expected[0], rtol=1e-13, atol=1e-13)


@each_kind
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_dtype_throughout(kind: str, training: bool, dtype: torch.dtype) -> None:
    layer = layer_of(kind, dtype=dtype, tol=1e-5).train(training)
    x = batch(dtype=dtype).requires_grad_()
    z = layer(x)
    assert z.dtype == dtype
    z.sum().backward()
    assert x.grad is not None
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {dtype}
    solution = layer.solve(x)
    assert solution.value.dtype == dtype
    assert solution.error_bound.dtype == torch.float64


@each_kind
@pytest.mark.parametrize("training", [False, True])
def test_autocast_does_not_reach_the_solver(kind: str, training: bool) -> None:
    layer = layer_of(kind, dtype=torch.float32, tol=1e-6).train(training)
    x = batch(dtype=torch.float32)
    expected = gradients(layer, x)
    with torch.no_grad():
        z = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(x), z)
            assert torch.equal(layer.solve(x).value, z)
    y = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = layer(y)
    scale = torch.linspace(1, 2, z.numel()).reshape(z.shape)
    (slope,) = torch.autograd.grad((z * scale).square().sum(), y)
    torch.testing.assert_close(slope, expected["x"])


@each_kind
def test_float64_is_more_exact_than_float32_can_be(kind: str) -> None:
    """Nothing on the way is rounded to float32: the fixed-point equation holds to 1e-12."""
    layer = layer_of(kind, tol=1e-13).double()
    x = batch()
    with torch.no_grad():
        z = layer(x)
        gap = z - applied(layer, z, x)
    assert float(gap.abs().max()) < 1e-12


@each_kind
def test_mismatched_inputs_are_refused(kind: str) -> None:
    layer = layer_of(kind)
    with pytest.raises(InvalidType, match=r"`x` is torch\.float32 but the weights are torch\.float64"):
        layer(batch(dtype=torch.float32))
    with pytest.raises(InvalidType, match="`x` is on meta but the weights are on cpu"):
        layer(torch.zeros(2, INPUTS, device="meta", dtype=torch.float64))
    with pytest.raises(InvalidArgument, match=f"`x` must have {INPUTS} entries per sample, got 4"):
        layer(torch.zeros(2, 4, dtype=torch.float64))
    with pytest.raises(InvalidArgument, match=r"`initial` must have shape \(batch, .*\), got \(5, 4\)"):
        layer.solve(batch(), initial=torch.zeros(5, 4, dtype=torch.float64))


@each_kind
@pytest.mark.parametrize("training", [False, True])
def test_dtype_moved_after_construction_and_use(kind: str, training: bool) -> None:
    layer = layer_of(kind, dtype=torch.float32, tol=1e-6).train(training)
    before = layer.solve(batch(dtype=torch.float32)).value
    layer.double()
    after = layer.solve(batch(), tol=1e-12).value
    assert after.dtype == torch.float64
    torch.testing.assert_close(after.float(), before, rtol=1e-4, atol=1e-4)
    layer.float()
    assert torch.equal(layer.solve(batch(dtype=torch.float32)).value, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"linear": torch.nn.Linear(2, 2)},
            InvalidType,
            "`linear` must be a Parameterization such as mondeq.Dense, got",
        ),
        ({"activation": torch.relu}, InvalidType, r"`activation` must be one such as splitting\.ReLU\(\)"),
        ({"solver": "peaceman-rachford"}, InvalidType, "`solver` must be a splitting solver"),
        ({"tol": 0}, InvalidArgument, "`tol` must be a finite number > 0, got 0"),
        ({"tol": -1e-3}, InvalidArgument, "`tol` must be"),
        ({"tol": math.nan}, InvalidArgument, "`tol` must be"),
        ({"backward_tol": 0.0}, InvalidArgument, r"tol` must be a finite number > 0, got 0\.0"),
        ({"max_steps": 0}, InvalidArgument, "`max_steps` must be an integer ≥ 1, got 0"),
        ({"max_steps": 2.5}, InvalidArgument, "`max_steps` must be"),
        ({"on_failure": "ignore"}, InvalidArgument, '`on_failure` must be "raise", "warn" or "return"'),
    ],
)
def test_misuse_is_refused_at_construction(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mondeq.EquilibriumLayer(**({"linear": mondeq.Dense(2, 3)} | arguments))


def test_a_step_out_of_range_is_refused_with_the_range() -> None:
    layer = layer_of(solver=splitting.ForwardBackward(step=100.0))
    with pytest.raises(InvalidArgument, match=r"`step` must lie in \(0, .*\) for ForwardBackward"):
        layer(batch())


@pytest.mark.parametrize("training", [False, True])
def test_on_failure_is_obeyed(training: bool) -> None:
    x = batch()
    with pytest.warns(ConvergenceWarning, match="did not reach relative residual"):
        layer_of(max_steps=2).train(training)(x)
    with pytest.raises(NotConverged, match="raise max_steps"):
        layer_of(max_steps=2, on_failure="raise").train(training)(x)
    assert layer_of(max_steps=2, on_failure="return").train(training)(x).shape == (5, 6)


# -- evaluation keeps the operator ---------------------------------------------------------------------------------


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many matrices were assembled and how many inverted."""
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    count(splitting.operators.dense, "_invert")
    count(splitting.MultiscaleOperator, "_invert")
    for owner in (mondeq.Dense, mondeq.LipschitzDense, mondeq.Conv2d, mondeq.MultiscaleConv2d):
        count(owner, "operator")
    return counted


@each_kind
@pytest.mark.parametrize("grad", [False, True])
def test_evaluation_inverts_once_per_weights(kind: str, grad: bool, counts: Counter[str]) -> None:
    layer = layer_of(kind).eval()
    with torch.set_grad_enabled(grad):
        layer(batch())
        first = counts["_invert"]
        assert first >= 1
        for count in (1, 5, 2):
            layer(batch(count))
            layer.solve(batch(count))
    assert counts["_invert"] == first


@each_kind
def test_evaluation_builds_the_operator_once(kind: str, counts: Counter[str]) -> None:
    layer = layer_of(kind).eval()
    with torch.no_grad():
        for _ in range(4):
            layer(batch())
    assert counts["operator"] == 1


@each_kind
def test_evaluation_inverts_once_for_forward_and_backward(kind: str, counts: Counter[str]) -> None:
    layer = layer_of(kind).eval()
    layer(batch())
    before = counts["_invert"]
    layer(batch()).sum().backward()
    assert counts["_invert"] == before


@each_kind
def test_training_inverts_once_a_step(kind: str, counts: Counter[str]) -> None:
    """The backward pass uses the adjoint of the forward resolvent; nothing is kept for the next step."""
    layer = layer_of(kind).train()
    for step in range(1, 4):
        layer(batch()).sum().backward()
        assert counts["_invert"] == step


def in_place(layer: mondeq.EquilibriumLayer) -> mondeq.EquilibriumLayer:
    with torch.no_grad():
        for parameter in layer.linear.parameters():
            parameter.mul_(1.2).add_(0.02)
    return layer


def of_the_operator_alone(layer: mondeq.EquilibriumLayer) -> mondeq.EquilibriumLayer:
    """One entry of one weight that the source does not see."""
    (weight,) = (p for name, p in layer.linear.named_parameters() if name in ("F", "F.0", "V"))
    with torch.no_grad():
        weight.view(-1)[1] += 0.5
    return layer


def through_data(layer: mondeq.EquilibriumLayer) -> mondeq.EquilibriumLayer:
    for parameter in layer.linear.parameters():
        parameter.data = parameter.data * 1.2 + 0.01
    return layer


def through_data_in_place(layer: mondeq.EquilibriumLayer) -> mondeq.EquilibriumLayer:
    for parameter in layer.linear.parameters():
        parameter.data.mul_(1.3)
    return layer


def through_numpy(layer: mondeq.EquilibriumLayer) -> mondeq.EquilibriumLayer:
    for parameter in layer.linear.parameters():
        parameter.detach().numpy()[...] += 0.05
    return layer


def by_loading(layer: mondeq.EquilibriumLayer) -> mondeq.EquilibriumLayer:
    layer.load_state_dict({name: 1.1 * value + 0.02 for name, value in layer.state_dict().items()})
    return layer


def by_optimizer(layer: mondeq.EquilibriumLayer) -> mondeq.EquilibriumLayer:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(batch()).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return layer


def by_replacing_a_parameter(layer: mondeq.EquilibriumLayer) -> mondeq.EquilibriumLayer:
    layer.linear.U = torch.nn.Parameter(layer.linear.get_parameter("U").detach() * 2)
    return layer


def by_dtype(layer: mondeq.EquilibriumLayer) -> mondeq.EquilibriumLayer:
    return in_place(layer.float()).double()


CHANGES = (
    in_place,
    of_the_operator_alone,
    through_data,
    through_data_in_place,
    through_numpy,
    by_loading,
    by_optimizer,
    by_replacing_a_parameter,
    by_dtype,
)


@each_kind
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changed_weights_are_noticed_in_evaluation(
    kind: str, change: Callable[[mondeq.EquilibriumLayer], mondeq.EquilibriumLayer]
) -> None:
    layer = layer_of(kind).eval()
    with torch.no_grad():
        before = layer(batch())
    layer = change(layer)
    fresh = layer_of(kind).eval()
    fresh.load_state_dict(layer.state_dict())
    with torch.no_grad():
        after = layer(batch())
        assert torch.equal(after, fresh(batch()))
    assert not torch.allclose(after, before, atol=1e-4)


def test_another_solver_or_activation_is_noticed_in_evaluation() -> None:
    layer = layer_of().eval()
    with torch.no_grad():
        before = layer.solve(batch())
        layer.solver = splitting.DouglasRachford()
        after = layer.solve(batch())
        assert not torch.equal(before.steps, after.steps)
        torch.testing.assert_close(before.value, after.value, rtol=1e-9, atol=1e-9)
        layer.activation = splitting.ReLU()
        assert (layer(batch()) >= 0).all()


def test_another_parameterization_is_noticed_in_evaluation() -> None:
    layer = layer_of().eval()
    with torch.no_grad():
        layer(batch())
        for kind in KINDS:
            layer.linear = parameterization(kind, seed=4).double()
            fresh = mondeq.EquilibriumLayer(layer.linear, splitting.Tanh(), tol=1e-11, max_steps=500).eval()
            assert torch.equal(layer(batch()), fresh(batch()))


@each_kind
def test_copies_are_independent(kind: str) -> None:
    layer = layer_of(kind).eval()
    with torch.no_grad():
        before = layer(batch())
        twin = copy.deepcopy(layer)
        in_place(twin)
        assert torch.equal(layer(batch()), before)
        assert not torch.equal(twin(batch()), before)
        in_place(layer)
        assert torch.equal(layer(batch()), twin(batch()))


@each_kind
def test_a_used_layer_can_be_pickled_and_its_state_saved(kind: str) -> None:
    layer = layer_of(kind).eval()
    with torch.no_grad():
        expected = layer(batch())
        twin = pickle.loads(pickle.dumps(layer))
        assert torch.equal(twin(batch()), expected)
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        other = layer_of(kind).eval()
        in_place(other)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other(batch()), expected)


@each_kind
def test_the_kept_operator_is_not_part_of_the_state(kind: str) -> None:
    layer = layer_of(kind).eval()
    before = set(layer.state_dict())
    with torch.no_grad():
        layer(batch())
    assert set(layer.state_dict()) == before
    assert len(list(layer.parameters())) == len(before)


@each_kind
def test_inference_mode_leaves_gradients_possible(kind: str) -> None:
    """What evaluation keeps from inference mode must be usable when gradients are wanted later."""
    layer = layer_of(kind).eval()
    with torch.inference_mode():
        layer(batch())
    assert_close(gradients(layer, batch()), gradients(layer_of(kind).train(), batch()))
    frozen = layer_of(kind).eval().requires_grad_(False)
    with torch.inference_mode():
        frozen(batch())
    x = batch().requires_grad_()
    (slope,) = torch.autograd.grad(frozen(x).square().sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    assert torch.isfinite(curvature).all()


# -- gradients -----------------------------------------------------------------------------------------------------


@each_kind
def test_evaluation_gives_the_gradients_of_training(kind: str) -> None:
    train, evaluate = layer_of(kind).train(), layer_of(kind).eval()
    expected = gradients(train, batch())
    assert {"x", "linear.U", "linear.b"} < expected.keys()
    assert_close(gradients(evaluate, batch()), expected)
    with torch.no_grad():
        evaluate(batch())
    assert_close(gradients(evaluate, batch()), expected)
    # And again after the weights have changed.
    in_place(train), in_place(evaluate)
    changed = gradients(train, batch())
    assert not torch.allclose(changed["linear.U"], expected["linear.U"], atol=1e-3)
    assert_close(gradients(evaluate, batch()), changed)


@each_kind
@pytest.mark.parametrize("training", [False, True])
def test_implicit_gradients_are_those_of_unrolling(kind: str, training: bool) -> None:
    """Differentiating through a thousand damped plain iterations gives the same, without any of our machinery."""
    layer = layer_of(kind).train(training)
    x = batch().requires_grad_()
    W, c = layer.linear.weight(), layer.linear.source(x)
    sigma = layer.linear.confined(splitting.Tanh())
    z = torch.zeros_like(c)
    for _ in range(1500):
        z = 0.9 * z + 0.1 * sigma((z.flatten(1) @ W.mT).reshape(z.shape) + c)
    scale = torch.linspace(1, 2, z.numel(), dtype=z.dtype).reshape(z.shape)
    named = {n: p for n, p in layer.named_parameters() if n not in ("linear.b_o",)}
    unrolled = torch.autograd.grad((z * scale).square().sum(), [x, *named.values()])
    assert_close(gradients(layer, batch()), dict(zip(["x", *named], unrolled, strict=True)), 1e-6)


@each_kind
def test_a_second_solver_on_the_same_weights_gives_the_same_gradient(kind: str) -> None:
    """Two layers share one parameterization; both run forward before either runs backward."""
    linear = parameterization(kind).double()
    options: dict[str, Any] = {"activation": splitting.Tanh(), "tol": 1e-12, "max_steps": 3000}
    first = mondeq.EquilibriumLayer(linear, solver=splitting.PeacemanRachford(step=0.3), **options)
    second = mondeq.EquilibriumLayer(linear, solver=splitting.ForwardBackwardForward(), **options)
    x = batch()
    names = [n for n, _ in linear.named_parameters() if n != "b_o"]
    parameters = [linear.get_parameter(n) for n in names]
    outputs = [layer(x).square().sum() for layer in (first, second)]
    found = [torch.autograd.grad(output, parameters) for output in outputs]
    assert_close(dict(zip(names, found[0], strict=True)), dict(zip(names, found[1], strict=True)), 1e-8)
    both = torch.autograd.grad(first(x).square().sum() + second(x).square().sum(), parameters)
    assert_close(dict(zip(names, both, strict=True)), {n: 2 * g for n, g in zip(names, found[0], strict=True)}, 1e-8)


@each_kind
@pytest.mark.parametrize("training", [False, True])
def test_per_sample_gradients_by_vmap(kind: str, training: bool) -> None:
    layer = layer_of(kind).train(training)
    parameters = {n: p.detach() for n, p in layer.named_parameters()}
    x = batch(3)

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        z: Tensor = torch.func.functional_call(layer, values, (sample[None],))
        return z.square().sum()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(3):
        alone = torch.func.grad(loss)(parameters, x[i])
        assert_close({n: g[i] for n, g in together.items()}, alone, 1e-9)
    total = torch.func.grad(lambda values: torch.func.functional_call(layer, values, (x,)).square().sum())(parameters)
    assert_close({n: g.sum(0) for n, g in together.items()}, total, 1e-8)


@each_kind
def test_functional_call_uses_the_weights_it_is_given(kind: str) -> None:
    """Also in evaluation, where an operator of other weights may be kept."""
    layer = layer_of(kind).eval()
    with torch.no_grad():
        kept = layer(batch())
        other = {n: 1.3 * p.detach() for n, p in layer.named_parameters()}
        swapped = torch.func.functional_call(layer, other, (batch(),))
        assert not torch.allclose(swapped, kept)
        fresh = layer_of(kind)
        fresh.load_state_dict(other)
        torch.testing.assert_close(swapped, fresh(batch()), rtol=1e-9, atol=1e-9)
        assert torch.equal(layer(batch()), kept)


@each_kind
def test_directional_derivatives(kind: str) -> None:
    layer = layer_of(kind).train()
    x, direction = batch(), torch.randn(5, INPUTS, dtype=torch.float64)
    _, forward = torch.func.jvp(layer, (x,), (direction,))
    with torch.no_grad():
        difference = (layer(x + 1e-5 * direction) - layer(x - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close(forward, difference, rtol=1e-6, atol=1e-6)
    _, pull = torch.func.vjp(layer, x)
    weights = torch.randn_like(forward)
    torch.testing.assert_close((pull(weights)[0] * direction).sum(), (weights * forward).sum())


# -- what a solve tells, and what it keeps -------------------------------------------------------------------------


def test_monitor_sees_every_solve() -> None:
    seen: list[tuple[str, splitting.Solution]] = []
    layer = layer_of(monitor=lambda role, solution: seen.append((role, solution)), tol=1e-9, backward_tol=1e-3)
    layer.train()
    z = layer(batch())
    assert [role for role, _ in seen] == ["forward"]
    assert torch.equal(seen[0][1].value, z.detach())
    z.sum().backward()
    assert [role for role, _ in seen] == ["forward", "backward"]
    forward, backward = (solution for _, solution in seen)
    assert (forward.residual <= 1e-9).all()
    assert (backward.residual <= 1e-3).all()
    assert (backward.residual > 1e-9).any()
    layer.eval()
    with torch.no_grad():
        layer(batch())
    assert [role for role, _ in seen] == ["forward", "backward", "forward"]


def saved_numbers(layer: mondeq.EquilibriumLayer, x: Tensor) -> int:
    """Entries of all tensors that the graph of one forward pass holds on to."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x).sum()
    return kept


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    few = saved_numbers(layer_of(tol=1e-1), batch())
    many_layer = layer_of(tol=1e-12, solver=splitting.DouglasRachford())
    many = saved_numbers(many_layer, batch())
    assert int(many_layer.solve(batch()).steps.max()) > 5 * int(layer_of(tol=1e-1).solve(batch()).steps.max())
    assert many == few


def live_tensors() -> int:
    gc.collect()
    return sum(1 for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))


@pytest.mark.parametrize("training", [False, True])
def test_memory_does_not_grow_with_the_number_of_calls(training: bool) -> None:
    layer = layer_of().train(training)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        layer(batch()).sum().backward()
        in_place(layer)

    for _ in range(2):
        step()
    before = live_tensors()
    for _ in range(5):
        step()
    assert live_tensors() <= before
