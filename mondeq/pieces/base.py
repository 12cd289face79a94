"""What a network is made of: pieces, each with its own arithmetic, and what is proved of them.

A piece maps samples of one shape to samples of another. It proves how far its outputs can move when its inputs do, and
how far its computed outputs are from the exact ones.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mondeq.norms import Ball, Norm
from mondeq.registry import Registry
from mondeq.settings import NoSettings
from mondeq.settings import Settings as AnySettings
from splitting import InvalidArgument, verified


class Unproved(InvalidArgument):
    """Nothing is proved of a piece; the message says of which and why."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """z = σ(Wz + Ux + b) as matrices, float64, for proofs that see operator and input map together.

    Args:
        matrix: A = I − W, (n, n).
        metric: The diagonal of Λ in which A is monotone, (n,); None for 1.
        inputs: U, (n, d), in units in which the norm of the inputs is the 2-norm.
    """

    matrix: Tensor
    metric: Tensor | None
    inputs: Tensor


@dataclass(frozen=True, eq=False)
class Logits:
    """Computed logits and how far the differences of two of them may be from the exact ones.

    Args:
        value: The logits, (batch, classes).
        gains: What an error of size 1 can make of each difference, (classes, classes).
        radius: The size of the error, (batch,).
        rounding: What the last operations may have rounded, (batch, 1).
    """

    value: Tensor
    gains: Tensor
    radius: Tensor
    rounding: Tensor

    def slack(self, chosen: Tensor) -> Tensor:
        """Return a bound on the error of y_chosen − y_j for every class j, (batch, classes)."""
        return self.gains[chosen] * self.radius[:, None] + self.rounding


class Proof(ABC):
    """What is proved of one stage of a float64 network, for inputs measured in a given norm. It is made once.

    constant: an upper bound on ‖Δoutput‖/‖Δinput‖. norm: what the output is measured in. out_shape: of one output.
    """

    constant: float
    norm: Norm
    out_shape: torch.Size

    @abstractmethod
    def enclose(self, ball: Ball) -> Ball:
        """Return a ball that contains the exact output of every exact input in `ball`."""

    def gaps(self) -> Tensor:
        """Return, for a stage that gives logits, bounds on |Δ(y_i − y_j)|/‖Δinput‖, (classes, classes) float64."""
        return self.constant * _gap_gains(self.norm, self.out_shape)

    def logits(self, ball: Ball) -> Logits:
        """Return the logits of the inputs in `ball`, for a stage that gives them."""
        out = self.enclose(ball)
        gains = _gap_gains(self.norm, self.out_shape).to(out.centre.device)
        return Logits(out.centre, gains, out.radius, torch.zeros_like(out.radius)[:, None])

    def blocks(self) -> Blocks | None:
        """Return operator and input map of an equilibrium that hands on its state; None for all else."""
        return None

    def rows(self) -> Tensor | None:
        """Return C of a stage that is x ↦ C x + d for flat x, exactly as its weights say; None for all else."""
        return None

    def lift(self, rows: Tensor) -> Tensor | None:
        """Return C ∘ (this stage) as a matrix for C = `rows`, where that takes no rounding; else None."""
        return None


def _gap_gains(norm: Norm, shape: torch.Size) -> Tensor:
    """|y_i − y_j| ≤ √2 ‖y‖₂ for all pairs of different logits, (classes, classes)."""
    gain = verified.round_up(math.sqrt(2) * norm.euclidean())
    return torch.full((shape[0], shape[0]), gain, dtype=torch.float64, device="cpu").fill_diagonal_(0)


class Arithmetic(ABC):
    """The contract of a piece: shapes, settings, proofs, estimates.

    A class enrols in `PIECES` by the name that saved networks know it by. in_shape: of samples, where a piece takes
    only one shape and knows it; else None.
    """

    Settings: ClassVar[type[AnySettings]] = NoSettings
    in_shape: torch.Size | None = None

    def settings(self) -> AnySettings:
        """Return what `make` needs to make this piece again, weights aside."""
        return self.Settings()

    @classmethod
    @abstractmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        """Make the module, with initial weights, for samples of `in_shape`. Raises ConfigError where it cannot be."""

    @classmethod
    def example(cls) -> tuple[AnySettings, torch.Size]:
        """Return settings and a shape of inputs of a small example, by which the laws of pieces are tested."""
        return cls.Settings(), torch.Size((4, 6, 6))

    @abstractmethod
    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        """Return the shape of the output for one sample of `in_shape`. Raises InvalidArgument where it does not fit."""

    @abstractmethod
    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        """Return what is proved of this piece, in float64, stage after stage, for inputs measured in `norm`.

        Raises Unproved where nothing is.
        """

    def lipschitz_estimate(self, norm: Norm, in_shape: torch.Size) -> tuple[Tensor | float, Norm]:
        """Return the constant, and the norm of the output, in floating point and differentiable in the weights.

        It steers training and proves nothing. By default it is the product of the constants that are proved.
        """
        proofs = self.proofs(norm, in_shape)
        return math.prod(proof.constant for proof in proofs), proofs[-1].norm

    def gap_estimates(self, norm: Norm, in_shape: torch.Size) -> Tensor:
        """Return estimates of |Δ(y_i − y_j)|/‖Δinput‖ for a piece that gives logits, (classes, classes)."""
        constant, out = self.lipschitz_estimate(norm, in_shape)
        gains = _gap_gains(out, self.out_shape(in_shape))
        return constant * (gains.to(constant) if isinstance(constant, Tensor) else gains)

    def entries(self, in_shape: torch.Size) -> int:
        """Return how many numbers a sample takes at most on its way through."""
        return self.out_shape(in_shape).numel()

    def check(self) -> None:  # noqa: B027  # most have nothing to add
        """Raise InvalidType or InvalidArgument where the module may compute something else than it proves."""

    def facts(self) -> dict[str, float]:
        """Return figures that `mondeq info` shows of this piece."""
        return {}

    def sharpen(self) -> None:  # noqa: B027  # most have nothing to add
        """Compute as exactly as a certificate wants it, at any cost: called on copies in float64."""


class Piece(nn.Module, Arithmetic):
    """A piece of a network that is a module of its own. A subclass gives forward, out_shape, proofs and make."""


PIECES: Registry[Arithmetic] = Registry("piece")


class Adapter(Arithmetic):
    """The arithmetic of a module that torch has: of exactly the class `wraps`, whose forward is known.

    Args:
        module: The module.
    """

    wraps: ClassVar[type[nn.Module]]

    def __init__(self, module: Any) -> None:
        self.module = module

    @classmethod
    def of(cls, module: nn.Module) -> Self | None:
        """Return the arithmetic of `module`, or None where it is of another class."""
        return cls(module) if type(module) is cls.wraps else None


class Unknown(Arithmetic):
    """What is known of any other module: nothing. It trains; it is neither proved nor saved."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        raise NotImplementedError  # it has no name, and so nobody asks

    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        try:
            # A copy: running a module may change it.
            module = copy.deepcopy(self.module).eval()
            like = next(module.parameters(), torch.empty(0, device="cpu"))
            with torch.no_grad():
                shape: torch.Size = module(like.new_zeros(2, *in_shape)).shape[1:]
        except Exception as error:  # whatever a stranger's module raises
            kind, reason = type(self.module).__name__, str(error).strip().partition("\n")[0]
            raise InvalidArgument(f"is a {kind} and takes no samples of {tuple(in_shape)}: {reason}") from None
        return shape

    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        kind = type(self.module).__name__
        raise Unproved(f"is a {kind}, of which no constant is known; use pieces of mondeq, or write one (mondeq.Piece)")


def arithmetic(module: nn.Module) -> Arithmetic:
    """Return the contract of any module: its own, that of an adapter, or that nothing is known of it.

    Args:
        module: A piece of a network.

    Returns:
        Its arithmetic.
    """
    if isinstance(module, Arithmetic):
        return module
    for _, kind in PIECES.items():
        if issubclass(kind, Adapter) and (adapter := kind.of(module)) is not None:
            return adapter
    return Unknown(module)
