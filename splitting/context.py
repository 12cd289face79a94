"""What surrounds a computation and changes what it may do: recorded derivatives, transforms, autocast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., object])

# Asking an accelerator for a value stalls it: all that was started must end before the host goes on.
_FREE_TO_ASK = frozenset({"cpu"})


def asking_is_free(device: torch.device) -> bool:
    """Whether the host may look at values on a device as often as it likes.

    Args:
        device: Where the values are.

    Returns:
        False for an accelerator, which would have to end first what it has started.
    """
    return device.type in _FREE_TO_ASK


def on_host(*tensors: Tensor) -> list[float]:
    """The entries of tensors, one after the other, in a single transfer.

    Args:
        *tensors: Few and small, of any real dtype, on one device.

    Returns:
        The numbers, exactly for all but huge integers.
    """
    numbers: list[float] = torch.cat([t.detach().reshape(-1).double() for t in tensors]).tolist()
    return numbers


def uncompiled(function: F) -> F:
    """A function that runs as it is, also inside `torch.compile`: values decide how long a solve runs.

    Outside of a compilation it is called at once, since leaving the compiler takes as long as a step of a small solve.

    Args:
        function: Any function.

    Returns:
        The function, which the compiler does not look into.
    """
    # That is `torch.compiler.disable`, whose public name imports the compiler at once, which takes a second.
    disabled = (getattr(torch, "_disable_dynamo", None) or torch.compiler.disable)(function)

    @wraps(function)
    def called(*arguments: object, **options: object) -> object:
        return (disabled if torch.compiler.is_compiling() else function)(*arguments, **options)

    return cast(F, called)


def is_transformed(tensor: Tensor) -> bool:
    """Whether a transform of torch.func is at work on a tensor: it may have no values then, and must not be cached.

    Args:
        tensor: Any tensor.

    Returns:
        True inside vmap, grad, jvp and the like, for what they map or differentiate.
    """
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_recorded(*tensors: Tensor) -> bool:
    """Whether derivatives of what is computed from tensors may be asked for: it must not come from a cache then.

    Args:
        *tensors: What is computed with.

    Returns:
        True where a graph, a tangent or a transform of torch.func records.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return True
    # A tangent of torch.autograd.forward_ad may be on any tensor while a level is open.
    return torch.autograd.forward_ad._current_level >= 0 or any(map(is_transformed, tensors))


P = ParamSpec("P")
T = TypeVar("T")


def in_full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """A function that computes in the `full_precision` of every device that autocast may be on.

    Args:
        function: Any function.

    Returns:
        A function of the same signature.
    """

    @wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> T:
        with full_precision(torch.device("cpu")), full_precision(torch.device("cuda")):
            return function(*args, **kwargs)

    return exact


_NOTHING = nullcontext()


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which products are of the dtype of their factors, also inside `torch.autocast`.

    What is claimed of an operator is claimed of its own dtype, and no tolerance worth asking for survives half
    precision.

    Args:
        device: The device of the products.

    Returns:
        The context, to be entered at once.
    """
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return _NOTHING


def constant(compute: Callable[P, T]) -> Callable[P, T]:
    """`compute` remembered for its arguments, as a tensor that serves everywhere, whatever surrounds the first call.

    Neither inference mode nor a transform of torch.func nor a default device gets into what it computes.

    Args:
        compute: A function of hashable arguments, which it depends on alone.

    Returns:
        The function, which keeps its last 64 results.
    """

    @lru_cache(maxsize=64)
    @wraps(compute)
    def ordinary(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch._C._DisableFuncTorch(), torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            return compute(*args, **kwargs)

    return cast(Callable[P, T], ordinary)
