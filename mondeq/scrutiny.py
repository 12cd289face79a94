"""Whether a model is what it seems, and which one it is: what is certified or saved must be what model(x) computes.

A module computes what its class says unless something was hung on it: a hook, a parametrization, an attribute in place
of a method. It is what its configuration says if it differs from a fresh module made of that in no more than weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

import splitting
from mondeq import values
from mondeq.parameterizations import Conv2d, Dense, DenseInput, LipschitzDense, MultiscaleConv2d, Parameterization
from splitting.errors import InvalidArgument, InvalidType

_OWN_LINEAR = (Dense, LipschitzDense, Conv2d, MultiscaleConv2d)
# Nondecreasing and 1-Lipschitz for every parameter that they accept.
_PROVED_ACTIVATIONS = (
    splitting.Identity,
    splitting.ReLU,
    splitting.LeakyReLU,
    splitting.SoftThreshold,
    splitting.Box,
    splitting.Tanh,
    splitting.Sigmoid,
    splitting.Softplus,
)
# `compile()` puts torch's own translation of `forward` on the object.
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
_WEIGHTS = ("_parameters", "_buffers")


@contextmanager
def proving(device: torch.device) -> Iterator[None]:
    """Without graphs and inference tensors, new tensors on `device`, whatever the caller has set for himself."""
    default = torch.get_default_device()
    elsewhere = default.type not in ("cpu", device.type)
    with torch.inference_mode(False), torch.no_grad(), torch.device(device) if elsewhere else nullcontext():
        yield


def check_untouched(model: nn.Module, name: str = "model") -> None:
    """Raise InvalidArgument where something on `model` or below it may change what its classes compute."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        raise InvalidArgument("a forward hook for all modules is registered with torch; remove it first")
    for path, module in model.named_modules(prefix=name):
        if module._forward_hooks or module._forward_pre_hooks:
            raise InvalidArgument(f"`{path}` has a forward hook, which may change what it computes; remove it first")
        if parametrize.is_parametrized(module):
            raise InvalidArgument(f"`{path}` is parametrized; use torch.nn.utils.parametrize.remove_parametrizations")
        for attribute in vars(module).keys() - _OF_EVERY_MODULE:
            hidden = getattr(type(module), attribute, None)
            if callable(hidden) or isinstance(hidden, property):
                raise InvalidArgument(f"`{path}.{attribute}` takes the place of what {type(module).__name__} computes")


def check_same(model: nn.Module, fresh: nn.Module, free: Collection[str]) -> None:
    """Raise InvalidArgument where `model` is not what `fresh` is, but for the values of its weights.

    Compared are all modules by their types, weights by their names and shapes, and every attribute that `fresh` has;
    what it has not decided yet (a private None) may have been. free: modules and attributes that may differ.
    """
    found, expected = (dict(m.named_modules(prefix="model")) for m in (model, fresh))
    for path in sorted(found.keys() | expected.keys()):
        if any(path == name or path.startswith(f"{name}.") for name in free):
            continue
        ours, theirs = found.get(path), expected.get(path)
        if ours is None or theirs is None or type(ours) is not type(theirs):
            raise InvalidArgument(f"`{path}` is {_kind(ours)}; the configuration of the model makes it {_kind(theirs)}")
        for name, value in vars(theirs).items():
            undecided = name.startswith("_") and value is None
            if name in _OF_EVERY_MODULE or undecided or f"{path}.{name}" in free:
                continue
            own = vars(ours).get(name)
            if type(own) is not type(value) or own != value:
                raise InvalidArgument(
                    f"`{path}.{name}` is {values.shown(own)}; the configuration of the model makes it "
                    f"{values.shown(value)}"
                )
        if _weights(ours) != _weights(theirs):
            raise InvalidArgument(
                f"`{path}` has the weights {_weights(ours)}; the configuration of the model makes them "
                f"{_weights(theirs)}"
            )


def is_own(linear: Parameterization) -> bool:
    """Whether `linear` is one of this package's parameterizations.

    Any other is its author's word for its operator, source and constants, if it keeps to one contract: raises
    InvalidType for a subclass that would mix its own with those of the class it derives from.
    """
    if type(linear) in _OWN_LINEAR:
        return True
    for own in _OWN_LINEAR:
        if isinstance(linear, own):
            raise InvalidType(
                f"`{type(linear).__name__}` derives from {own.__name__}, whose constants need not be its own; derive "
                "from mondeq.Parameterization or DenseInput"
            )
    if isinstance(linear, DenseInput) and type(linear).source is not DenseInput.source:
        raise InvalidType(
            f"`{type(linear).__name__}` has another source than DenseInput, whose constants are of U and b; derive it "
            "from mondeq.Parameterization"
        )
    return False


def check_activation(activation: splitting.Activation, state_shape: torch.Size) -> None:
    """Raise InvalidArgument unless σ is nondecreasing and 1-Lipschitz: known to be, or found so on a grid."""
    kind = type(activation)
    if kind in (splitting.Masked, splitting.prox.Scaled):
        check_activation(activation.inner, state_shape)  # type: ignore[attr-defined]  # both have one
        factor = getattr(activation, "factor", torch.ones((), device="cpu"))
        _require(kind, bool((factor > 0).all()), "has a factor that is not positive")
    elif kind is splitting.Scale:
        (d,) = activation.tensors
        _require(kind, bool(((d >= 0) & (d <= 1)).all()), "has a `d` that does not lie in [0, 1]")
    elif kind in _PROVED_ACTIVATIONS:
        dataclasses.replace(activation)  # type: ignore[type-var]  # all are; checks the parameters as they are now
    else:
        with proving(torch.device("cpu")):
            try:
                if not activation.tensors:
                    splitting.check_activation(activation)
                _check_on_grid(activation, state_shape)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise InvalidArgument(f"`activation` {kind.__name__} does not act entry by entry: {reason}") from None


def _check_on_grid(activation: splitting.Activation, state_shape: torch.Size) -> None:
    """On a wide grid, for every entry of a state: slopes in [0, 1], and prox_f = σ as the solvers take it."""
    points = torch.logspace(-3, 6, 46, dtype=torch.float64, device="cpu")
    line = torch.cat([-points.flip(0), points.new_zeros(1), points])
    tensors = tuple(t.detach().double().cpu() for t in activation.tensors)
    kind, activation, shape = type(activation), activation.rebind(*tensors), state_shape if tensors else torch.Size()
    y = line.reshape(-1, *(1 for _ in shape)).expand(-1, *shape)
    sigma, step = activation(y), y.diff(dim=0)
    rise, slack = sigma.diff(dim=0), 1e-9 * step
    steady = bool(((rise >= -slack) & (rise <= step + slack)).all())
    _require(kind, steady, "is not nondecreasing and 1-Lipschitz, as every certificate needs")
    if activation.homogeneous:
        _require(kind, _close(activation(8 * y), 8 * sigma, y), "says that it is homogeneous, and is not")
    for alpha in (0.3, 1.0, 3.0):
        expected = activation(activation.point(y, alpha))
        for found in (activation.proximal(y, alpha), activation.proximal_at(alpha)(y, None)):
            _require(kind, _close(found, expected, y), "has a prox that is not σ(point), so it solves another problem")


def _close(found: Tensor, expected: Tensor, y: Tensor) -> bool:
    return bool(((found - expected).abs() <= 1e-6 * (1 + y.abs())).all())


def _require(kind: type[splitting.Activation], holds: bool, failure: str) -> None:
    if not holds:
        raise InvalidArgument(f"`activation` {kind.__name__} {failure}")


def fingerprint(linear: Parameterization, head: tuple[Tensor, ...], *facts: object) -> str:
    """SHA-256 over everything that constants of a network depend on, the same in float32 and as a float64 copy.

    That is: `facts`, the read-out `head`, and all of `linear`: types, plain attributes, weights by name, shape and
    float64 value.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for path, module in linear.named_modules():
        digest.update(f"{path} {type(module).__module__}.{type(module).__qualname__}".encode())
        for name, value in sorted(vars(module).items()):
            if name not in _OF_EVERY_MODULE:
                _update(digest, f"{path}.{name}", value)
    for name, tensor in [*linear.named_parameters(), *linear.named_buffers(), *enumerate(head)]:
        _update(digest, str(name), tensor)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, name: str, value: object) -> None:
    """Add a value of any kind. Raises InvalidType for one that nothing tells from what it may become."""
    digest.update(f"{name} {type(value).__qualname__} ".encode())
    if isinstance(value, Tensor):
        digest.update(str(tuple(value.shape)).encode())
        digest.update(value.detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _update(digest, f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, (list, tuple, dict)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            _update(digest, f"{name}[{key!r}]", entry)
    else:
        try:
            digest.update(pickle.dumps(value))
        except Exception as error:  # whatever a stranger's attribute raises
            raise InvalidType(
                f"`{name}` is a {type(value).__name__}, of which nothing tells whether it changes; use numbers"
            ) from error


def _kind(module: nn.Module | None) -> str:
    return "absent" if module is None else f"a {type(module).__name__}"


def _weights(module: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """{name: shape} of the weights that the module itself has."""
    own = {name: tensor for registry in _WEIGHTS for name, tensor in vars(module)[registry].items()}
    return {name: None if tensor is None else tuple(tensor.shape) for name, tensor in sorted(own.items())}
