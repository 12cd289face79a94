"""What a bound is, what a method of bounding is, and what both are told of a network: a chain of proofs.

What is proved and what is estimated never blur, nor whose it is.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mondeq import scrutiny
from mondeq.modes import proving
from mondeq.network import Network, exact_copy
from mondeq.norms import NORMS, Ball, Norm
from mondeq.pieces import Proof, Unproved
from mondeq.registry import Registry
from splitting import InvalidArgument, InvalidType, verified


@dataclass(frozen=True, eq=False)
class Bound:
    """A number about a Lipschitz constant, and what kind of statement it is.

    Args:
        value: In logits (ℓ2) per unit of the norm of the input, pixels in [0, 1].
        kind: "certified", an upper bound proved and computed with rounding accounted for; or "estimate", which proves
            nothing above it.
        method: What it was computed by, for the reader.
        assumptions: Under which it holds, for the reader.
        pairs: Where the method has them, constants of single logit gaps, (classes, classes) float64: y_i − y_j is
            pairs[i, j]-Lipschitz.
        owner: The fingerprint of the network that it was proved for; empty for estimates.
        norm: That of changes of the input, a name in NORMS.
        seal: Of owner, norm and pairs, by which a certificate knows that they are as they were proved.
        seconds: How long it took, where `lipschitz_bounds` computed it.
    """

    value: float
    kind: Literal["certified", "estimate"]
    method: str
    assumptions: str
    pairs: Tensor | None = None
    owner: str = ""
    norm: str = "l2"
    seal: str = ""
    seconds: float = math.nan

    @property
    def is_certified(self) -> bool:
        """Whether it is proved to be an upper bound."""
        return self.kind != "estimate"

    def sealed(self, chain: Chain) -> Bound:
        """This bound as one that has been proved of a network.

        Args:
            chain: What is proved of the network, in the norm of its inputs.

        Returns:
            The bound with the network's fingerprint and a seal.
        """
        seal = _seal(chain.owner, chain.norm, self.pairs)
        return replace(self, owner=chain.owner, norm=chain.norm, seal=seal)


@dataclass(frozen=True, eq=False)
class Chain:
    """What is proved of a network, stage after stage, for one norm of its inputs. It is made once and serves all.

    Args:
        exact: The float64 network that it is proved of.
        norm: The name of the norm of the inputs.
        entry: An upper bound on ‖x‖₂ over inputs of norm 1.
        stages: The proofs, in order; the last gives the logits.
        owner: The fingerprint of `exact`.
    """

    exact: Network
    norm: str
    entry: float
    stages: Sequence[Proof]
    owner: str

    @staticmethod
    def of(model: Network, norm: str = "l2") -> Chain:
        """Prove what can be proved of every piece of a network.

        Args:
            model: Any network.
            norm: That of its inputs, a name in NORMS.

        Returns:
            The chain.

        Raises:
            ConfigError: There is no such norm.
            InvalidType: model(x) may not be what its pieces say.
            InvalidArgument: The same, or nothing is proved of one of its pieces; the message names the piece.
        """
        kind = NORMS[norm]
        exact = exact_copy(model)
        stages: list[Proof] = []
        within = Norm()
        with proving(exact.device):
            for place in exact.places:
                try:
                    stages += place.piece.proofs(within, place.in_shape)
                except Unproved as error:
                    raise InvalidArgument(f"nothing can be certified: the piece `{place.name}` {error}") from None
                within = stages[-1].norm
        return Chain(exact, norm, kind.euclidean(exact.in_shape), stages, scrutiny.fingerprint(exact))

    @property
    def at_once(self) -> int:
        """How many images are solved for at a time, in float64 and with the memory of acceleration: about 2 GiB."""
        return min(max(_ENTRIES_AT_ONCE // self.exact.largest, 1), 500)

    def enclose(self, images: Tensor, number: int = -1) -> Ball:
        """What provably contains the exact input of a stage.

        Args:
            images: (batch, *in_shape) float64.
            number: Of the stage; by default the last.

        Returns:
            A ball for every image.
        """
        ball = Ball(images, images.new_zeros(len(images)), Norm())
        for stage in self.stages[:number]:
            ball = stage.enclose(ball)
        return ball

    def require_logits(self) -> None:
        """Raise unless the last stage gives logits of at least two classes.

        Raises:
            InvalidArgument: It gives something else.
        """
        shape = tuple(self.exact.out_shape)
        if len(shape) != 1 or shape[0] < 2:
            raise InvalidArgument(f"`model` gives samples of shape {shape}, and no logits of two classes or more")

    def require_owner(self, model: Network, norm: str) -> None:
        """Raise unless this was proved for the weights that a network has now, and for a norm.

        Args:
            model: The network.
            norm: The name of the norm.

        Raises:
            InvalidArgument: It was proved for other weights or another norm.
        """
        if self.norm != norm or self.owner != scrutiny.fingerprint(exact_copy(model)):
            raise InvalidArgument("`chain` was proved for other weights or another norm; use Chain.of(model, norm)")

    def constant(self, stages: Sequence[Proof]) -> float:
        """A bound for the first stages of the chain together, the norm of the inputs included.

        Args:
            stages: The first of the chain's stages.

        Returns:
            Their product, rounded upwards.
        """
        constants = [self.entry, *(stage.constant for stage in stages)]
        if all(constant == 1 for constant in constants):
            return 1.0
        return verified.round_up(product(constants) * (1 + len(constants) * 2.0**-50))


def product(factors: Sequence[float]) -> float:
    """A product that neither vanishes nor overflows on the way.

    Args:
        factors: Numbers ≥ 0.

    Returns:
        What `math.prod` gives where it does neither; wrong by one rounding per factor and one at the end.
    """
    mantissa, exponent = 1.0, 0
    for factor in factors:
        part, shift = math.frexp(factor)
        mantissa, more = math.frexp(mantissa * part)
        exponent += shift + more
    try:
        return math.ldexp(mantissa, exponent)
    except OverflowError:
        return math.inf


_ENTRIES_AT_ONCE = 2**24


class Method:
    """A way to prove something of networks: it says itself of which."""

    def unsuited(self, chain: Chain) -> str | None:
        """Why this method has nothing to say about a network.

        Args:
            chain: What is proved of the network.

        Returns:
            The reason, or None where it has something to say, as by default.
        """
        return None


class BoundMethod(Method, ABC):
    """A way to bound what a network does to changes of its inputs. One file each; it enrols in `BOUNDS`."""

    @abstractmethod
    def bound(self, chain: Chain) -> Bound:
        """The bound of this method on a network, proved under rounding too.

        Args:
            chain: What is proved of the network, which this method suits.

        Returns:
            The bound, sealed.
        """


BOUNDS: Registry[BoundMethod] = Registry("bound")
"""The methods of bounding by the names that `lipschitz_bounds` gives their results."""


def best_pairs(bounds: Mapping[str, Bound], owner: str | None = None, norm: str = "l2") -> Tensor:
    """The entrywise minimum of the certified `pairs`.

    Args:
        bounds: What `lipschitz_bounds` returned.
        owner: The fingerprint of the network they must belong to; by default all must belong to the same.
        norm: The norm that they must be proved in.

    Returns:
        The constants, (classes, classes) float64.

    Raises:
        InvalidType: `bounds` is something else.
        InvalidArgument: There are none that are certified, or one was not proved as it is now for that network and
            norm.
    """
    if not isinstance(bounds, Mapping) or not all(isinstance(bound, Bound) for bound in bounds.values()):
        raise InvalidType("`bounds` must be what lipschitz_bounds(model) returns: a dictionary of Bounds")
    certified = {name: b for name, b in bounds.items() if b.is_certified and b.pairs is not None}
    for name, bound in certified.items():
        if not bound.owner or bound.seal != _seal(bound.owner, bound.norm, bound.pairs):
            raise InvalidArgument(f"`bounds` hold {name!r}, which is not as it was proved; use lipschitz_bounds(model)")
        owner = bound.owner if owner is None else owner
        if bound.owner != owner:
            raise InvalidArgument(
                f"`bounds` hold {name!r}, proved for other weights or another model; use lipschitz_bounds(model)"
            )
        if bound.norm != norm:
            raise InvalidArgument(f"`bounds` hold {name!r}, proved for the norm {bound.norm!r}, not for {norm!r}")
    if not certified:
        raise InvalidArgument("`bounds` hold no certified constants of gaps; pass those of lipschitz_bounds(model)")
    return torch.stack([b.pairs.cpu() for b in certified.values() if b.pairs is not None]).amin(0)


def _seal(owner: str, norm: str, pairs: Tensor | None) -> str:
    content = b"" if pairs is None else pairs.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()
    return hashlib.sha256(f"{owner} {norm} ".encode() + content).hexdigest()
