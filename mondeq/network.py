"""Networks: lists of pieces, each of which does its own arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mondeq import arguments, scrutiny, values
from mondeq.modes import proving
from mondeq.pieces import Arithmetic, SolvedPiece, arithmetic
from splitting import InvalidArgument, InvalidType, SplittingError


@dataclass(frozen=True, eq=False)
class Place:
    """A piece where it stands in a network.

    Args:
        name: What it is called there.
        module: The module.
        piece: Its arithmetic.
        in_shape: The shape of one sample that comes in.
    """

    name: str
    module: nn.Module
    piece: Arithmetic
    in_shape: torch.Size


class Network(nn.Module):
    """The pieces one after the other, as in torch.nn.Sequential: images (batch, *in_shape) in, logits (batch, n) out.

    Pieces are those of mondeq (Normalise, EquilibriumLayer, …), modules of torch with a proved constant (Linear,
    Conv2d, AvgPool2d, Flatten, PixelUnshuffle, ReLU, Identity), and any other module; a network with one of the latter
    trains, and is neither certified nor saved.

    Args:
        pieces: Modules, called "0", "1", … in the network, or modules by name.
        in_shape: The shape of one sample. Where it is left out, the first piece that knows its own decides.
        class_names: One name per logit; none where they are not known.

    Raises:
        InvalidType: `pieces` are no modules.
        InvalidArgument: A shape does not fit, or a name is taken; the message says which piece.
    """

    def __init__(
        self,
        pieces: Sequence[nn.Module] | Mapping[str, nn.Module],
        in_shape: Sequence[int] | None = None,
        *,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        for name, module in _named(pieces).items():
            self.add_module(name, module)
        self.in_shape = torch.Size(in_shape) if in_shape is not None else self._own_shape()
        self.class_names = tuple(class_names)
        named = all(isinstance(name, str) for name in self.class_names)
        if not named or len(set(self.class_names)) != len(self.class_names):
            raise InvalidArgument(f"`class_names` must be different names, got {values.shown(self.class_names)}")
        # Also where there are no names: every piece must take what the one before it gives.
        logits = self.out_shape.numel()
        if self.class_names and len(self.class_names) != logits:
            raise InvalidArgument(f"`class_names` must name all {logits} logits or none, got {len(self.class_names)}")

    def forward(self, images: Tensor) -> Tensor:
        """The logits of images.

        Args:
            images: (batch, *in_shape), floating point, of the dtype and on the device of the weights.

        Returns:
            The output of the last piece.

        Raises:
            InvalidArgument: They are not floating point or of another shape.
            InvalidType: They have another dtype or device than the weights.
        """
        arguments.check_images(self.in_shape, images)
        weight = self._weight
        if weight is not None and images.dtype != weight.dtype:
            raise InvalidType(f"`images` are {images.dtype}, the weights {weight.dtype}; use images.to({weight.dtype})")
        if weight is not None and images.device != weight.device:
            raise InvalidType(f"`images` are on {images.device}, the weights on {weight.device}; move one of them")
        for module in self._modules.values():
            images = module(images)  # type: ignore[misc]  # no module here is None
        return images

    @property
    def places(self) -> list[Place]:
        """The pieces in order, each with its arithmetic and the shape of what it takes.

        Raises:
            InvalidArgument: A piece does not fit the one before it.
        """
        found, shape = [], self.in_shape
        for name, module in self._modules.items():
            piece = arithmetic(module)  # type: ignore[arg-type]  # no module here is None
            found.append(Place(name, module, piece, shape))  # type: ignore[arg-type]
            shape = self._fitted(found[-1])
        return found

    @property
    def out_shape(self) -> torch.Size:
        """The shape of the output for one sample."""
        return self._fitted(self.places[-1])

    @property
    def classes(self) -> int:
        """How many logits there are."""
        return self.out_shape.numel()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device("cpu") if self._weight is None else self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return torch.get_default_dtype() if self._weight is None else self._weight.dtype

    @property
    def largest(self) -> int:
        """How many numbers a sample takes at most on its way through."""
        return max(place.piece.entries(place.in_shape) for place in self.places)

    def solved(self) -> Iterator[SolvedPiece]:
        """The pieces that solve something, one after the other."""
        return (module for module in self.modules() if isinstance(module, SolvedPiece))

    @property
    def _weight(self) -> Tensor | None:
        return next(self.parameters(), None)

    def _own_shape(self) -> torch.Size:
        first = arithmetic(next(iter(self._modules.values())))  # type: ignore[arg-type]  # no module here is None
        if first.in_shape is None:
            raise InvalidArgument("`in_shape` is needed: the first piece takes samples of any shape; say which come in")
        return first.in_shape

    def _fitted(self, place: Place) -> torch.Size:
        try:
            return place.piece.out_shape(place.in_shape)
        except SplittingError as error:
            raise InvalidArgument(f"the piece `{place.name}` {error}") from None


def _named(pieces: Any) -> dict[str, nn.Module]:
    """Modules by name. Raises unless they are modules, and names that no attribute of a network has."""
    if not isinstance(pieces, (Mapping, Sequence)) or isinstance(pieces, str):
        raise InvalidType(f"`pieces` must be modules in a list, or by name, got a {type(pieces).__name__}")
    named = dict(pieces) if isinstance(pieces, Mapping) else {str(i): piece for i, piece in enumerate(pieces)}
    if not named:
        raise InvalidArgument("`pieces` are none; a network needs at least one")
    for name, module in named.items():
        if not isinstance(module, nn.Module):
            raise InvalidType(f"the piece `{name}` must be a torch.nn.Module, got a {type(module).__name__}")
        if not isinstance(name, str) or not name or "." in name or hasattr(Network, name) or name in _ATTRIBUTES:
            raise InvalidArgument(f"no piece can be called {name!r}; choose another name")
    return named


_ATTRIBUTES = frozenset({"in_shape", "class_names", *vars(nn.Module())})


def require_network(model: Any) -> Network:
    """A model, if it is a network and nothing but one.

    Args:
        model: What was given.

    Returns:
        The same.

    Raises:
        InvalidType: It is something else, a subclass that computes by methods of its own, say; the message says what to
            pass.
    """
    if not isinstance(model, Network) or not _computes_as_one(type(model)):
        inner = next((n for n in ("module", "_orig_mod") if isinstance(getattr(model, n, None), Network)), None)
        remedy = f"pass its `.{inner}`" if inner else "it may compute something else"
        raise InvalidType(f"`model` must be a mondeq.Network, got {type(model).__name__}: {remedy}")
    return model


def _computes_as_one(kind: type[Network]) -> bool:
    return all(
        getattr(kind, name) is getattr(Network, name) for name in ("__call__", "_call_impl", "forward", "places")
    )


def check_computes(model: Any) -> None:
    """Raise, with the reason, unless model(x) is what its pieces say.

    Pieces, parameterizations and activations of the user's own are taken at their author's word, and activations for σ
    beyond what a grid shows.

    Args:
        model: What was given.

    Raises:
        InvalidType: It is no network, has weights that are no real numbers, or has a class that changes some of the
            methods that belong together.
        InvalidArgument: Something was hung on it that may change what it computes, or a piece refuses.
    """
    require_network(model)
    scrutiny.check_untouched(model)
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if weight.is_meta or weight.is_complex():
            raise InvalidType(f"`model` holds no real numbers in {name}: it is {weight.dtype} on {weight.device}")
    for place in model.places:
        scrutiny.check_inherited(place.piece, ("forward", "proofs"))
        scrutiny.check_helpers(place.piece, "proofs")
        place.piece.check()


def detached_copy(model: Network) -> Network:
    """A network in evaluation mode on copies of its weights, which record no gradients, without its monitors.

    Args:
        model: Any network.

    Returns:
        The copy.

    Raises:
        InvalidType: model(x) may not be what its pieces say (`check_computes`).
        InvalidArgument: The same.
    """
    check_computes(model)
    # What a program hangs on a layer is not copied; tensors of an activation may belong to a graph, which cannot be.
    memo: dict[int, Any] = {}
    for layer in model.solved():
        memo[id(layer.monitor)] = None
        for activation in (value for value in vars(layer).values() if hasattr(value, "rebind")):
            memo[id(activation)] = activation.rebind(*(t.detach().clone() for t in activation.tensors))
    # Inference tensors of the caller must not reach computations outside inference mode.
    with torch.inference_mode(False), torch.no_grad():
        twin = copy.deepcopy(model, memo)
    return twin.eval().requires_grad_(False)


def exact_copy(model: Network) -> Network:
    """A network with its weights in float64, solved tightly, in evaluation mode, not recording gradients.

    This is what is certified: the exact network is the one whose matrices are assembled from the weights in float64.

    Args:
        model: Any network.

    Returns:
        The copy.

    Raises:
        InvalidType: model(x) may not be what its pieces say: such a network is not certified.
        InvalidArgument: The same.
    """
    exact = detached_copy(model)
    with proving(model.device):
        exact = exact.double()
        for place in exact.places:
            place.piece.sharpen()
    return exact
