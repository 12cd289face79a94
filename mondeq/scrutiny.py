"""Whether a model is what it seems, and which one it is: what is certified or saved must be what model(x) computes.

A module computes what its class says unless something was hung on it: a hook, a parametrization, an attribute in place
of a method. It is what its settings say if it differs from a fresh module made of them in no more than weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize

from mondeq import values
from mondeq.registry import Registry
from splitting import InvalidArgument, InvalidType

# `compile()` puts torch's own translation of `forward` on the object.
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
_WEIGHTS = ("_parameters", "_buffers")
_OURS = ("mondeq.", "torch.")
# What a subclass may change of a piece that computes and proves by inherited methods.
_BESIDE = frozenset(
    {"__init__", "__getstate__", "__repr__", "extra_repr", "Settings", "settings", "make", "facts", "check", "entries"}
)


def check_untouched(model: nn.Module, name: str = "model") -> None:
    """Raise where something on a module or below it may change what its classes compute.

    Args:
        model: The module.
        name: What it is called in messages.

    Raises:
        InvalidArgument: A hook, a parametrization, or an attribute in place of a method was found.
    """
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


def check_same(model: nn.Module, fresh: nn.Module, free: Collection[str], name: str = "model") -> None:
    """Raise where a module is not what a fresh one is, but for the values of its weights.

    Compared are all modules by their types, weights by their names and shapes, and every attribute that `fresh` has;
    what it has not decided yet (a private None) may have been.

    Args:
        model: The module.
        fresh: One that was made of its settings.
        free: Modules and attributes that may differ, by their path, which begins with `name`.
        name: What `model` is called in paths and messages.

    Raises:
        InvalidArgument: They differ; the message says where.
    """
    found, expected = (dict(m.named_modules(prefix=name)) for m in (model, fresh))
    for path in sorted(found.keys() | expected.keys()):
        if any(path == each or path.startswith(f"{each}.") for each in free):
            continue
        ours, theirs = found.get(path), expected.get(path)
        if ours is None or theirs is None or type(ours) is not type(theirs):
            raise InvalidArgument(f"`{path}` is {_kind(ours)}; its settings make it {_kind(theirs)}")
        for attribute, value in vars(theirs).items():
            undecided = attribute.startswith("_") and value is None
            if attribute in _OF_EVERY_MODULE or undecided or f"{path}.{attribute}" in free:
                continue
            own = vars(ours).get(attribute)
            if not _alike(own, value):
                raise InvalidArgument(
                    f"`{path}.{attribute}` is {values.shown(own)}; its settings make it {values.shown(value)}"
                )
        if _weights(ours) != _weights(theirs):
            raise InvalidArgument(
                f"`{path}` has the weights {_weights(ours)}; its settings make them {_weights(theirs)}"
            )


def _alike(own: object, value: object) -> bool:
    """Whether an attribute is `value`; a number may be one of numpy or torch."""
    same = type(own) is type(value) and own == value
    return same or (type(value) in (int, float) and values.real(own) == value)


def check_inherited(thing: object, names: Sequence[str]) -> None:
    """Raise for a class that changes only some of the methods of this package that belong together.

    Args:
        thing: What is asked.
        names: Its methods: who inherits one inherits all of them, or writes all of them.

    Raises:
        InvalidType: It changes some and inherits others.
    """
    owners = {name: owner for name in names if (owner := _owner(type(thing), name)) is not None}
    foreign = {name for name, owner in owners.items() if not owner.__module__.startswith(_OURS)}
    if foreign and len(foreign) < len(owners):
        inherited = next(owner for name, owner in owners.items() if name not in foreign)
        missing = ", ".join(sorted(owners.keys() - foreign))
        raise InvalidType(
            f"`{type(thing).__name__}` derives from {inherited.__name__}, whose constants need not be its own; "
            f"give it {missing} of its own too"
        )


def check_unfinished(thing: object, registry: Registry[Any]) -> None:
    """Raise for a class that derives from a finished one of this package, whose methods prove things of each other.

    Args:
        thing: What is asked.
        registry: The finished classes; what they derive from may be derived from.

    Raises:
        InvalidType: It derives from one of them.
    """
    for base in type(thing).__mro__[1:]:
        if registry.name_of(base) is not None and base.__module__.startswith(_OURS):
            raise InvalidType(
                f"`{type(thing).__name__}` derives from {base.__name__}, whose constants need not be its own; derive "
                f"it from {base.__mro__[1].__name__} or Parameterization"
            )


def check_helpers(thing: object, proof: str) -> None:
    """Raise for a class that changes what inherited methods call, where the method `proof` is inherited.

    Args:
        thing: What is asked.
        proof: The method that is true of what the class computes.

    Raises:
        InvalidType: It does.
    """
    order = type(thing).__mro__
    ours = {name for base in order if base.__module__.startswith(_OURS) for name in vars(base)} - _BESIDE
    for base in order[: next(i for i, base in enumerate(order) if proof in vars(base))]:
        changed = sorted(name for name in vars(base).keys() & ours if _decides(vars(base)[name]))
        if changed and not base.__module__.startswith(_OURS):
            raise InvalidType(
                f"`{base.__name__}` changes {', '.join(changed)}, of which its inherited `{proof}` does not know; give "
                f"it a `{proof}` of its own too"
            )


def _decides(member: object) -> bool:
    return callable(member) or isinstance(member, (property, classmethod, staticmethod))


def _owner(cls: type, name: str) -> type | None:
    """The class that gives `cls` its method `name`."""
    return next((base for base in cls.__mro__ if name in vars(base)), None)


def fingerprint(model: nn.Module) -> str:
    """A SHA-256 over everything that constants of a network depend on.

    That is all of its modules: types, plain attributes, weights by name, shape and float64 value.

    Args:
        model: The network.

    Returns:
        The digest, in hexadecimal.

    Raises:
        InvalidType: An attribute is of a kind of which nothing tells whether it changes.
    """
    digest = hashlib.sha256()
    for path, module in model.named_modules():
        digest.update(f"{path} {type(module).__module__}.{type(module).__qualname__}".encode())
        for name, value in sorted(vars(module).items()):
            if name not in _OF_EVERY_MODULE:
                _update(digest, f"{path}.{name}", value)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _update(digest, name, tensor)
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    return str(tuple(tensor.shape)).encode() + tensor.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()


class _ByValue(pickle.Pickler):
    """Writes tensors by shape and value: torch's own way differs from copy to copy of a tensor."""

    def persistent_id(self, obj: object) -> bytes | None:
        return _bytes_of(obj) if isinstance(obj, Tensor) else None


def _update(digest: hashlib._Hash, name: str, value: object) -> None:
    """Add a value of any kind. Raises InvalidType for one that nothing tells from what it may become."""
    digest.update(f"{name} {type(value).__qualname__} ".encode())
    if isinstance(value, Tensor):
        digest.update(_bytes_of(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _update(digest, f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, (list, tuple, dict)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            _update(digest, f"{name}[{key!r}]", entry)
    else:
        try:
            written = io.BytesIO()
            _ByValue(written).dump(value)
            digest.update(written.getvalue())
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
