"""Layers in what surrounds them: devices without values, transforms, compilers, replicas, changed settings."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mondeq
import splitting
from splitting import InvalidArgument, InvalidType

MAKERS: dict[str, Callable[[], mondeq.Parameterization]] = {
    "dense": lambda: mondeq.Dense(12, 6, m=0.5, learn_m=True),
    "dense, m fixed": lambda: mondeq.Dense(12, 6, m=0.5),
    "lipschitz": lambda: mondeq.LipschitzDense(12, 6, 2),
    "readout": lambda: mondeq.LipschitzDense(12, 6, 2),
    "readout, conv": lambda: mondeq.LipschitzConv2d(1, 2, 3, (3, 4), m=0.5),
    "conv": lambda: mondeq.Conv2d(1, 2, (3, 4), m=0.5, weight_norm=True, learn_m=True),
    "conv, m fixed": lambda: mondeq.Conv2d(3, 2, 2, kernel_size=1, m=0.5),
    "multiscale": lambda: mondeq.MultiscaleConv2d(3, (2, 3), 2, kernel_size=1, m=0.5, learn_m=True),
}
each_kind = pytest.mark.parametrize("kind", sorted(MAKERS))


def layer_of(kind: str, *, seed: int = 0, **options: Any) -> mondeq.EquilibriumLayer:
    torch.manual_seed(seed)
    made = mondeq.ReadoutLayer if kind.startswith("readout") else mondeq.EquilibriumLayer
    return made(MAKERS[kind](), splitting.Tanh(), **({"tol": 1e-10} | options)).double()


def batch(count: int = 4) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def state_gradients(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad is not None
    return x.grad


@each_kind
@pytest.mark.parametrize("assign", [False, True])
def test_a_layer_made_without_memory_is_what_is_loaded_into_it(kind: str, assign: bool) -> None:
    """Nothing that follows from the configuration is a buffer that `to_empty` could leave without values."""
    expected = layer_of(kind)
    with torch.device("meta"):
        layer = layer_of(kind)
    if not assign:
        layer = layer.to_empty(device="cpu")
    layer.load_state_dict(expected.state_dict(), assign=assign)
    for training in (True, False):
        assert torch.equal(layer.train(training)(batch()), expected.train(training)(batch()))


@each_kind
def test_gradients_under_checkpointing(kind: str) -> None:
    layer = layer_of(kind)
    expected = state_gradients(layer, batch())
    for reentrant in (False, True):
        got = state_gradients(lambda x, r=reentrant: checkpoint(layer, x, use_reentrant=r), batch())
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@each_kind
@pytest.mark.parametrize("training", [False, True])
def test_an_ensemble_by_vmap(kind: str, training: bool) -> None:
    """States and gradients of stacked weights are those of each layer."""
    layers = [layer_of(kind, seed=seed).train(training) for seed in range(3)]
    weights, buffers = torch.func.stack_module_state(layers)
    base, x = copy.deepcopy(layers[0]), batch()

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        z = torch.func.functional_call(base, (weights, buffers), (x,))
        return z.square().sum(), z

    gradients, states = torch.func.vmap(torch.func.grad(loss, has_aux=True))(weights, buffers)
    for i, layer in enumerate(layers):
        z = layer(x)
        torch.testing.assert_close(states[i], z, rtol=1e-7, atol=1e-9)
        z.square().sum().backward()
        for name, parameter in layer.named_parameters():
            # The bias of a read-out has no part in a state: there autograd has nothing where torch.func has zeros.
            unused = (kind, name) == ("lipschitz", "linear.b_o")
            expected = torch.zeros_like(parameter) if unused else parameter.grad
            torch.testing.assert_close(gradients[name][i], expected, rtol=1e-6, atol=1e-8)


@each_kind
def test_a_compiled_layer(kind: str) -> None:
    torch._dynamo.reset()
    layer = layer_of(kind)
    compiled = torch.compile(nn.Sequential(nn.Identity(), layer), backend="eager")
    torch.testing.assert_close(compiled(batch()), layer(batch()), rtol=0, atol=0)
    torch.testing.assert_close(state_gradients(compiled, batch()), state_gradients(layer, batch()), rtol=0, atol=0)


def replica_of(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """What nn.DataParallel makes on another device: plain tensors instead of parameters."""
    replica = module._replicate_for_data_parallel()
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, change(parameter))
    for name, child in module._modules.items():
        assert child is not None
        replica._modules[name] = replica_of(child, change)
    return replica


@each_kind
@pytest.mark.parametrize("training", [False, True])
def test_replicas_have_no_parameters(kind: str, training: bool) -> None:
    layer = layer_of(kind).train(training)
    layer(batch())
    for factor in (1.0, 0.5):
        expected = copy.deepcopy(layer)
        with torch.no_grad():
            for parameter in expected.parameters():
                parameter.mul_(factor)
        replica = replica_of(layer, lambda p, f=factor: p.detach() * f)
        torch.testing.assert_close(replica(batch()), expected(batch()), rtol=1e-9, atol=1e-9)


@each_kind
def test_every_weight_of_a_layer_alone_gets_a_gradient(kind: str) -> None:
    """What DistributedDataParallel waits for. A read-out's bias has no part in z: it wants a ReadoutLayer."""
    layer = layer_of(kind)
    layer(batch()).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    without = {name for name, g in gradients.items() if g is None or not g.any()}
    assert without == ({"linear.b_o"} if kind == "lipschitz" else set())


@each_kind
def test_averaged_models_with_buffers(kind: str) -> None:
    layer = layer_of(kind)
    averaged = torch.optim.swa_utils.AveragedModel(layer, use_buffers=True)
    for _ in range(2):
        averaged.update_parameters(layer)
    torch.testing.assert_close(averaged(batch()), layer(batch()), rtol=1e-9, atol=1e-12)


@each_kind
def test_layers_work_under_any_default_device(kind: str) -> None:
    """ "meta" has no values: whatever is made there by mistake fails."""
    layer = layer_of(kind)
    ones = torch.ones(12, dtype=torch.float64)

    def numbers(x: Tensor, scale: Tensor) -> list[Tensor]:
        linear, results = layer.linear, []
        for training in (True, False):
            layer.train(training)
            results += [layer(x).detach(), state_gradients(layer, x), layer.solve(x).error_bound]
        bounds = [linear.input_norm(scale), float(linear.input_norm_estimate(scale).detach())]
        return [*results, linear.weight().detach(), linear.source_rounding(scale[None]), *(scale * b for b in bounds)]

    x = batch()
    expected = numbers(x, ones)
    torch.set_default_device("meta")
    try:
        found = numbers(x, ones)
    finally:
        torch.set_default_device(None)
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == "cpu"
        assert torch.equal(one, other)


@each_kind
def test_a_guess_changes_steps_and_not_the_answer(kind: str) -> None:
    layer, x = layer_of(kind).train(), batch()
    z = layer.solve(x).value
    torch.testing.assert_close(layer(x, initial=z), layer(x), rtol=1e-8, atol=1e-9)
    steps: list[int] = []
    layer.monitor = lambda role, solution: steps.append(int(solution.steps.max()))
    layer(x), layer(x, initial=z)
    assert steps[1] < steps[0]
    with pytest.raises(InvalidArgument, match="`initial`"):
        layer(x, initial=z[:2])


WRONG_INPUTS: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "list": (lambda x: x.tolist(), InvalidType, "`x` must be a tensor, got list"),
    "numpy": (lambda x: x.numpy(), InvalidType, "`x` must be a tensor, got ndarray"),
    "one sample": (lambda x: x[0], InvalidArgument, r"`x` must have shape \(batch, 12\)"),
    "number": (lambda x: x[0, 0], InvalidArgument, r"`x` must have shape \(batch, 12\)"),
    "too wide": (lambda x: torch.cat([x, x], 1), InvalidArgument, "`x` must have 12 entries per sample, got 24"),
    "bytes": (lambda x: x.to(torch.uint8), InvalidType, "`x` is torch.uint8"),
    "float32": (lambda x: x.float(), InvalidType, "`x` is torch.float32"),
}


@each_kind
@pytest.mark.parametrize("wrong", sorted(WRONG_INPUTS))
def test_wrong_inputs_are_named(kind: str, wrong: str) -> None:
    make, exception, text = WRONG_INPUTS[wrong]
    layer = layer_of(kind)
    for call in (layer, layer.solve, layer.linear.source):
        with pytest.raises(exception, match=text) as caught:
            call(make(batch()))
        assert "\n" not in str(caught.value)


@each_kind
def test_a_parameterization_is_no_layer(kind: str) -> None:
    with pytest.raises(InvalidType, match=r"is no layer; call mondeq.EquilibriumLayer\(linear\)\(x\)"):
        layer_of(kind).linear(batch())


@pytest.mark.parametrize("kind", ["conv, m fixed", "multiscale"])
def test_images_with_channels_last_are_refused(kind: str) -> None:
    layer = layer_of(kind)
    images = batch().reshape(4, 3, 2, 2)
    assert torch.equal(layer(images), layer(batch()))
    for wrong in (images.permute(0, 2, 3, 1), images.reshape(4, 2, 6), images.reshape(4, 3, 4)):
        with pytest.raises(InvalidArgument, match="channels last"):
            layer(wrong)


def test_nothing_is_assembled_in_half_precision() -> None:
    """What is claimed of m holds for the matrix that autocast surrounds."""
    for seed in range(25):
        torch.manual_seed(seed)
        linear = mondeq.Dense(3, 20, m=0.01)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            A = linear.operator()
            m, matrix = A.strong_monotonicity, A.matrix.double()
        assert float(torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[0].detach()) >= m > 0
        lipschitz = mondeq.LipschitzDense(3, 5, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = lipschitz.operator().matrix
        assert torch.equal(inside, lipschitz.operator().matrix)


# -- evaluation keeps what it derived, for as long as nothing has changed -------------------------------------------


def _scaled(p: Tensor) -> None:
    p.data.mul_(1.25)


def _replaced(layer: mondeq.EquilibriumLayer, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(layer.get_submodule(owner), leaf, nn.Parameter(layer.get_parameter(name).detach() * 1.25))


CHANGES: dict[str, Callable[[mondeq.EquilibriumLayer], None]] = {
    "gamma": lambda layer: setattr(layer.linear, "gamma", 2.5),
    "epsilon": lambda layer: setattr(layer.linear, "epsilon", 0.5),
    "fixed m": lambda layer: setattr(layer.linear, "_fixed_m", 1.75),
    "in place": lambda layer: [p.detach().mul_(1.25) for p in layer.parameters()] and None,
    "data": lambda layer: [_scaled(p) for p in layer.parameters()] and None,
    "new parameter": lambda layer: _replaced(layer, "linear.U" if hasattr(layer.linear, "log_metric") else "linear.b"),
    "loaded": lambda layer: layer.load_state_dict({k: 0.5 * v for k, v in layer.state_dict().items()}) and None,
    "method": lambda layer: setattr(layer.linear, "operator", copy.deepcopy(layer.linear).operator),
    "activation": lambda layer: setattr(layer, "activation", splitting.Sigmoid()),
    "tolerance": lambda layer: setattr(layer, "tol", 1e-11),
    "nothing": lambda layer: None,
}


@settings(max_examples=20)
@given(st.sampled_from(sorted(MAKERS)), st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=3))
def test_evaluation_is_that_of_the_layer_as_it_is(kind: str, changes: list[str]) -> None:
    layer, x = layer_of(kind).eval(), batch()
    for change in changes:
        with torch.no_grad():
            layer(x)
            CHANGES[change](layer)
            fresh = copy.deepcopy(layer)  # a copy keeps nothing
            torch.testing.assert_close(layer(x), fresh(x), rtol=0, atol=0)
            torch.testing.assert_close(layer.solve(x).error_bound, fresh.solve(x).error_bound, rtol=0, atol=0)


def test_attributes_that_cannot_be_copied_or_compared_are_taken_to_have_changed() -> None:
    class Awkward:
        def __deepcopy__(self, memo: object) -> "Awkward":
            raise RuntimeError("not me")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("nor so")

        __hash__ = None  # type: ignore[assignment]

    layer = layer_of("lipschitz").eval()
    layer.linear.note = Awkward()  # type: ignore[assignment]
    with torch.no_grad():
        before = layer(batch())
        layer.linear.gamma = 2.5  # type: ignore[assignment]
        assert not torch.equal(layer(batch()), before)
