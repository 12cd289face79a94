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

from mondeq.norms import Ball, Box, Norm
from mondeq.parameterizations import Correlations, Noise
from mondeq.registry import Registry
from mondeq.settings import NoSettings
from mondeq.settings import Settings as AnySettings
from splitting import InvalidArgument, Slopes, verified


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
        """A bound on the error of y_chosen − y_j for every class j.

        Args:
            chosen: A class for every sample, (batch,).

        Returns:
            (batch, classes).
        """
        return self.gains[chosen] * self.radius[:, None] + self.rounding


class Proof(ABC):
    """What is proved of one stage of a float64 network, for inputs measured in a given norm. It is made once.

    Attributes:
        constant: An upper bound on ‖Δoutput‖/‖Δinput‖.
        norm: What the output is measured in.
        out_shape: The shape of one output.
    """

    constant: float
    norm: Norm
    out_shape: torch.Size

    @abstractmethod
    def enclose(self, ball: Ball) -> Ball:
        """A ball that contains the exact output of every exact input in a ball.

        Args:
            ball: What contains the inputs.

        Returns:
            What contains the outputs, in `norm`.
        """

    def follow(self, moved: Proof, ball: Ball, near: Ball) -> tuple[Ball, Ball]:
        """What contains the exact outputs of this stage, and those of the same stage with other weights.

        Args:
            moved: The stage with other weights.
            ball: What contains the inputs of this stage.
            near: What contains those of the other one, around the same centre, in its norm.

        Returns:
            Balls around the outputs that are computed of this stage, each in the norm of its stage.
        """
        out = self.enclose(ball)
        return out, moved.enclose(near).around(out.centre)

    def enclose_box(self, box: Box) -> Box:
        """A box that contains the exact output of every exact input in a box.

        Args:
            box: What contains the inputs, float64.

        Returns:
            What contains the outputs; its ends are infinite for samples of which nothing is proved.

        Raises:
            Unproved: This stage knows no boxes, as by default.
        """
        raise Unproved("knows no boxes")

    def least_gaps(self, box: Box, chosen: Tensor) -> Tensor:
        """Lower bounds on y_chosen − y_j for every input in a box and class j, for a stage that gives logits.

        Args:
            box: What contains the inputs, float64.
            chosen: A class for every sample, (batch,).

        Returns:
            (batch, classes) float64.

        Raises:
            Unproved: This stage knows no boxes.
        """
        return least_gaps(self.enclose_box(box), chosen)

    def gaps(self) -> Tensor:
        """Bounds on |Δ(y_i − y_j)|/‖Δinput‖, for a stage that gives logits.

        Returns:
            (classes, classes) float64.
        """
        return self.constant * _gap_gains(self.norm, self.out_shape)

    def logits(self, ball: Ball) -> Logits:
        """The logits of inputs with what their differences may be wrong by, for a stage that gives logits.

        Args:
            ball: What contains the inputs.

        Returns:
            The computed logits and bounds on their errors.
        """
        out = self.enclose(ball)
        gains = _gap_gains(self.norm, self.out_shape).to(out.centre.device)
        return Logits(out.centre, gains, out.radius, torch.zeros_like(out.radius)[:, None])

    def blocks(self) -> Blocks | None:
        """Operator and input map of an equilibrium that hands on its state.

        Returns:
            The matrices; None for all else.
        """
        return None

    def noise(self, scale: float, deviation: float) -> Noise | None:
        """What N(0, scale²) noise of every weight does to an equilibrium that hands on its state.

        Args:
            scale: The standard deviation.
            deviation: As `Parameterization.noise` has it.

        Returns:
            The bounds; None for all else, and where nobody has said.
        """
        return None

    def correlations(self) -> Correlations | None:
        """The same as kernels of correlations, for states that are images on a torus.

        Returns:
            The kernels, in units in which the norm of the inputs is the 2-norm; None for all else.
        """
        return None

    def preactivations(self, ball: Ball) -> tuple[Tensor, Tensor]:
        """Wz + Ux + b of an equilibrium that has `blocks`, entry by entry.

        Args:
            ball: What contains the inputs.

        Returns:
            The computed values (batch, n), and what the exact ones may differ by; infinite where nothing is known.
        """
        raise NotImplementedError  # only what has blocks is asked

    def chords(self, low: Tensor, high: Tensor, reach: Tensor) -> Slopes:
        """Proved intervals of the slopes of σ from its pre-activations, for an equilibrium that has `blocks`.

        Args:
            low: Lower ends of the pre-activations, (batch, n).
            high: Upper ends.
            reach: How far they may move.

        Returns:
            Lower and upper ends of [σ(b) − σ(a)]/(b − a), a in [low, high], |b − a| ≤ reach. By default 0 and 1.
        """
        return torch.zeros_like(low), torch.ones_like(low)

    def rows(self) -> Tensor | None:
        """C of a stage that is x ↦ C x + d for flat x, exactly as its weights say.

        Returns:
            C; None for all else.
        """
        return None

    def lift(self, rows: Tensor) -> Tensor | None:
        """C ∘ (this stage) as a matrix, where that rounds no entry more than once.

        Args:
            rows: C, which takes flat outputs of this stage.

        Returns:
            The matrix, which takes flat inputs; None where there is none.
        """
        return None


def least_gaps(box: Box, chosen: Tensor) -> Tensor:
    """Lower bounds on y_chosen − y_j where logits are known to lie in a box.

    Args:
        box: What contains the logits, (batch, classes).
        chosen: A class for every sample, (batch,).

    Returns:
        (batch, classes).
    """
    gaps = box.lower.gather(1, chosen[:, None]) - box.upper
    return Box(gaps, gaps).widened(gaps.new_zeros(())).lower


def _gap_gains(norm: Norm, shape: torch.Size) -> Tensor:
    """|y_i − y_j| ≤ √2 ‖y‖₂ for all pairs of different logits, (classes, classes)."""
    gain = verified.round_up(math.sqrt(2) * norm.euclidean())
    return torch.full((shape[0], shape[0]), gain, dtype=torch.float64, device="cpu").fill_diagonal_(0)


class Arithmetic(ABC):
    """The contract of a piece: shapes, settings, proofs, estimates.

    A class enrols in `PIECES` by the name that saved networks know it by.

    Attributes:
        Settings: The class of its settings.
        in_shape: The shape of one sample, where a piece takes only one shape and knows it; else None.
    """

    Settings: ClassVar[type[AnySettings]] = NoSettings
    in_shape: torch.Size | None = None

    def settings(self) -> AnySettings:
        """What `make` needs to make this piece again, weights aside.

        Returns:
            An object of `Settings`.

        Raises:
            InvalidArgument: No file can hold what it is made of.
        """
        return self.Settings()

    @classmethod
    @abstractmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> nn.Module:
        """The module, with initial weights.

        Args:
            settings: An object of `Settings`.
            in_shape: The shape of one sample that it is to take.

        Returns:
            The module.

        Raises:
            ConfigError: It cannot be made for such samples.
        """

    @classmethod
    def example(cls) -> tuple[AnySettings, torch.Size]:
        """A small example, by which the laws of pieces are tested.

        Returns:
            Settings and the shape of one sample.
        """
        return cls.Settings(), torch.Size((4, 6, 6))

    @abstractmethod
    def out_shape(self, in_shape: torch.Size) -> torch.Size:
        """The shape of the output for one sample.

        Args:
            in_shape: The shape of one sample that comes in.

        Returns:
            The shape of what goes out.

        Raises:
            InvalidArgument: The piece takes no such samples.
        """

    @abstractmethod
    def proofs(self, norm: Norm, in_shape: torch.Size) -> Sequence[Proof]:
        """What is proved of this piece, in float64, stage after stage.

        Args:
            norm: What inputs are measured in.
            in_shape: The shape of one sample that comes in.

        Returns:
            The proofs, in the order of the stages; the first takes inputs measured in `norm`.

        Raises:
            Unproved: Nothing is proved of it.
        """

    def lipschitz_estimate(self, norm: Norm, in_shape: torch.Size) -> tuple[Tensor | float, Norm]:
        """The constant of the piece in floating point, differentiable in the weights.

        It steers training and proves nothing. By default it is the product of the constants that are proved.

        Args:
            norm: What inputs are measured in.
            in_shape: The shape of one sample that comes in.

        Returns:
            The constant and the norm that the output is measured in.

        Raises:
            Unproved: Nothing is known of it.
        """
        proofs = self.proofs(norm, in_shape)
        return math.prod(proof.constant for proof in proofs), proofs[-1].norm

    def gap_estimates(self, norm: Norm, in_shape: torch.Size) -> Tensor:
        """Estimates of |Δ(y_i − y_j)|/‖Δinput‖ for a piece that gives logits, differentiable in the weights.

        Args:
            norm: What inputs are measured in.
            in_shape: The shape of one sample that comes in.

        Returns:
            (classes, classes).

        Raises:
            Unproved: Nothing is known of it.
        """
        constant, out = self.lipschitz_estimate(norm, in_shape)
        gains = _gap_gains(out, self.out_shape(in_shape))
        return constant * (gains.to(constant) if isinstance(constant, Tensor) else gains)

    def box_estimate(self, box: Box) -> Box:
        """The box that contains the outputs for inputs in a box, differentiable in box and weights.

        It steers training and proves nothing.

        Args:
            box: What contains the inputs, of the dtype and on the device of the weights.

        Returns:
            What contains the outputs, up to the tolerance of solves.

        Raises:
            Unproved: This piece knows no boxes, as by default.
        """
        raise Unproved(f"is a {type(getattr(self, 'module', self)).__name__}, which knows no boxes")

    def least_gap_estimates(self, box: Box, chosen: Tensor) -> Tensor:
        """Estimates of what `Proof.least_gaps` bounds, for a piece that gives logits, differentiable in the weights.

        Args:
            box: What contains the inputs.
            chosen: A class for every sample, (batch,).

        Returns:
            (batch, classes).

        Raises:
            Unproved: This piece knows no boxes.
        """
        return least_gaps(self.box_estimate(box), chosen)

    def entries(self, in_shape: torch.Size) -> int:
        """How many numbers a sample takes at most on its way through.

        Args:
            in_shape: The shape of one sample that comes in.

        Returns:
            The number.
        """
        return self.out_shape(in_shape).numel()

    def check(self) -> None:  # noqa: B027  # most have nothing to add
        """Raise where the module may compute something else than it proves.

        Raises:
            InvalidType: Its class changes some of the methods that belong together.
            InvalidArgument: An attribute is not what the class says.
        """

    def facts(self) -> dict[str, float]:
        """Figures that `mondeq info` shows of this piece, by name."""
        return {}

    def sharpen(self) -> None:  # noqa: B027  # most have nothing to add
        """Compute as exactly as a certificate wants it, at any cost: called on copies in float64."""


class Piece(nn.Module, Arithmetic):
    """A piece of a network that is a module of its own. A subclass gives forward, out_shape, proofs and make."""


PIECES: Registry[Arithmetic] = Registry("piece")
"""The kinds of pieces by the names that saved networks know them by."""


class Adapter(Arithmetic):
    """The arithmetic of a module that torch has: of exactly the class `wraps`, whose forward is known.

    Args:
        module: The module.

    Attributes:
        wraps: The class of the modules.
    """

    wraps: ClassVar[type[nn.Module]]

    def __init__(self, module: Any) -> None:
        self.module = module

    @classmethod
    def of(cls, module: nn.Module) -> Self | None:
        """The arithmetic of a module of the class that this one is for.

        Args:
            module: Any module.

        Returns:
            Its arithmetic, or None where it is of another class.
        """
        return cls(module) if type(module) is cls.wraps else None


class Unknown(Arithmetic):
    """What is known of any other module: nothing. It trains; it is neither proved nor saved.

    Args:
        module: The module.
    """

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
    """The contract of any module: its own, that of an adapter, or that nothing is known of it.

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
