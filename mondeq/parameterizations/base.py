"""What a parameterization is: free weights in, a strongly monotone operator and an input map out.

A class enrols in `PARAMETERIZATIONS` by the name that saved networks know it by, with the `Settings` that `make` takes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

import splitting
from mondeq import scrutiny
from mondeq.errors import ConfigError
from mondeq.norms import spectral_estimate
from mondeq.registry import Registry
from mondeq.settings import NoSettings
from mondeq.settings import Settings as AnySettings
from splitting import InvalidArgument, InvalidType, Torus, norms, verified


@dataclass(frozen=True, eq=False)
class Correlations:
    """z = σ(Wz + Ux + b) as circular correlations on a torus, float64: one block of A and U per frequency.

    Args:
        torus: Where images of states lie.
        operator: The kernel of A = I − W, (channels, channels, k, k).
        inputs: That of a map that acts on images that are padded with zeros as U does, (channels, in_channels, k, k).
        inside: Boolean (height, width): false where states are held at 0.
    """

    torus: Torus
    operator: Tensor
    inputs: Tensor
    inside: Tensor


@dataclass(frozen=True)
class Noise:
    """What independent normal noise of every weight does to W, U and b, but for a few rare draws.

    Args:
        operator: A bound on ‖ΔW‖₂.
        inputs: A bound on ‖ΔU‖₂.
        bias: A bound on ‖Δb‖₂.
        strong_monotonicity: What is left of m.
        bounds: How many events were assumed, each of which fails with probability exp(−deviation²/2) at most.
    """

    operator: float
    inputs: float
    bias: float
    strong_monotonicity: float
    bounds: int


def normal_norm(scale: float, deviation: float, *sides: int) -> float:
    """‖X‖₂ of a matrix or vector of independent N(0, scale²) entries, but with probability exp(−deviation²/2).

    E‖X‖₂ ≤ scale (√rows + √columns) (Gordon), and Gaussian concentration.

    Args:
        scale: The standard deviation.
        deviation: How unlikely the exception is.
        *sides: Rows and columns; of a vector, its entries.

    Returns:
        The bound.
    """
    return scale * (sum(math.sqrt(side) for side in sides) + deviation) * (1 + 1e-12)


class Parameterization(nn.Module, ABC):
    """The weights of z = σ(Wz + Ux + b), for every value of which I − W is strongly monotone.

    A class enrols in `PARAMETERIZATIONS` by the name that saved networks know it by.

    Attributes:
        Settings: The class of its settings.
        state_shape: The shape of one state z.
        in_features: The number of entries of one input x.
        in_shape: The shape of one input x.
        proving_solver: By what an equilibrium is solved for a certificate, in float64.
        proving_tol: How exactly it is solved then.
    """

    Settings: ClassVar[type[AnySettings]] = NoSettings
    # Tight enough for the error of the solver to cost nothing of a radius that matters.
    # A tuned step of Peaceman–Rachford takes a third of the time of an accelerated one, and twice as many are needed.
    proving_solver: ClassVar[splitting.Solver] = splitting.PeacemanRachford()
    proving_tol: ClassVar[float] = 2e-11

    state_shape: torch.Size
    in_features: int

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> Self:
        """One with initial weights.

        Args:
            settings: An object of `Settings`.
            in_shape: The shape of one input that it is to take.

        Returns:
            The parameterization.

        Raises:
            ConfigError: It cannot be made for such inputs, or nobody has said how.
        """
        raise ConfigError(f"{cls.__name__} has no `make`, and cannot be made from settings")

    def settings(self) -> AnySettings:
        """What `make` needs to make this one again, weights aside."""
        return self.Settings()

    @classmethod
    def example(cls) -> tuple[AnySettings, torch.Size]:
        """A small example, by which the laws are tested.

        Returns:
            Settings and the shape of one input.
        """
        return cls.Settings(), torch.Size((3,))

    @property
    def in_shape(self) -> torch.Size:
        """The shape of one input; inputs of any other shape with as many entries will do too where it is flat."""
        return torch.Size((self.in_features,))

    def check_inputs(self, in_shape: Sequence[int]) -> None:
        """Raise unless inputs of a shape fit.

        Args:
            in_shape: The shape of one input.

        Raises:
            InvalidArgument: They do not.
        """
        if math.prod(in_shape) != self.in_features:
            raise InvalidArgument(f"takes {self.in_features} entries per sample, got samples of {tuple(in_shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """None: a parameterization says what the problem is, and a layer solves it.

        Args:
            x: Anything.

        Raises:
            InvalidType: Always; the message says what to call.
        """
        name = type(self).__name__
        raise InvalidType(
            f"`{name}` is no layer; call mondeq.EquilibriumLayer(linear)(x), or linear.source(x) for Ux + b"
        )

    @abstractmethod
    def operator(self) -> splitting.Operator:
        """A = I − W as a splitting operator, differentiable in the weights."""

    def operator_weights(self) -> Sequence[Tensor] | None:
        """Return the weights that decide, with plain attributes, what `operator()` is; None where any may.

        Evaluation compares only these from call to call. It believes the class that defines both methods.
        """
        return None

    @abstractmethod
    def source(self, x: Tensor) -> Tensor:
        """c = U x + b for inputs.

        Args:
            x: Inputs (batch, …).

        Returns:
            States (batch, *state_shape).

        Raises:
            InvalidType: Inputs have another type, dtype or device than the weights.
            InvalidArgument: They have another shape.
        """

    @abstractmethod
    def input_norm(self, scale: Tensor) -> float:
        """A proved upper bound on ‖Λ^½ U diag(scale)‖₂.

        Args:
            scale: What multiplies the inputs, (in_features,).

        Returns:
            The bound.
        """

    @abstractmethod
    def source_rounding(self, size: Tensor) -> Tensor:
        """An upper bound on ‖fl(Ux + b) − (Ux + b)‖_Λ of each sample.

        It holds where |x| ≤ size entrywise, and x itself is only known to a few roundings relative to `size`.

        Args:
            size: (batch, in_features), float64.

        Returns:
            The bounds, (batch,).
        """

    def input_norm_estimate(self, scale: Tensor) -> Tensor:
        """What `input_norm` bounds, in floating point and differentiable in the weights: it steers training.

        This one builds U column by column; a parameterization with large inputs has a better way.

        Args:
            scale: What multiplies the inputs, (in_features,).

        Returns:
            A scalar tensor.
        """
        basis = torch.eye(self.in_features, dtype=scale.dtype, device=scale.device) * scale
        basis = basis.to(next(self.parameters()))
        columns = (self.source(basis) - self.source(torch.zeros_like(basis[:1]))).flatten(1)
        metric = self.operator().metric
        return spectral_estimate(columns if metric is None else columns * metric.sqrt().flatten())

    def monotonicity_estimate(self) -> Tensor | float:
        """What m is, differentiable in the weights where it depends on them: it steers training."""
        return self.operator().strong_monotonicity

    def root_metric_estimate(self) -> Tensor | None:
        """The diagonal of Λ^½, shaped to multiply states, differentiable in the weights; None for 1."""
        metric = self.operator().metric
        return None if metric is None else metric.sqrt()

    def blocks(self) -> tuple[Tensor, Tensor] | None:
        """A and U as float64 matrices, exactly as the weights say: they let bounds see operator and input map together.

        Returns:
            (n, n) and (n, in_features); None where they are no matrices.
        """
        return None

    def noise(self, scale: float, deviation: float) -> Noise | None:
        """What noise N(0, scale²) of every weight does, in the Euclidean norm.

        Args:
            scale: The standard deviation.
            deviation: How unlikely an exception is: each bound may fail with probability exp(−deviation²/2).

        Returns:
            The bounds; None where nobody has said.
        """
        return None

    def contraction(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """W, U and b, differentiable, of a parameterization with ‖W‖_∞ < 1 for every value of its weights.

        The iteration of z ↦ σ(Wz + Ux + b) on boxes, and not only on states, then converges to one box.

        Returns:
            (n, n), (n, in_features) and (n,) in the dtype of the weights; None for all other parameterizations.
        """
        return None

    def correlations(self, scale: Tensor) -> Correlations | None:
        """A and U diag(scale) as correlations, where states are images on a torus and A is monotone with Λ = I.

        Args:
            scale: What multiplies the inputs, (in_features,). A larger one per channel may stand in for it.

        Returns:
            The kernels; None where there are none.
        """
        return None

    def check_contract(self) -> None:
        """Raise where this object may compute something else than it proves.

        A class that derives from a finished one of this package, or mixes a source of its own with constants that
        others proved of theirs, is refused, and so is an enrolled one whose attributes differ from those of a fresh
        one with its settings.

        Raises:
            InvalidType: The class mixes methods.
            InvalidArgument: Attributes differ.
        """
        scrutiny.check_unfinished(self, PARAMETERIZATIONS)
        scrutiny.check_inherited(self, ("source", "input_norm", "source_rounding"))
        if PARAMETERIZATIONS.name_of(type(self)) is not None:
            with torch.device("meta"):
                fresh = type(self).make(self.settings(), self.in_shape)
            scrutiny.check_same(self, fresh, (), name="linear")

    def confined(self, activation: splitting.Activation) -> splitting.Activation:
        """An activation as this parameterization's equilibria use it.

        Args:
            activation: σ.

        Returns:
            The activation itself, unless part of a state is fixed at 0.
        """
        return activation

    def weight(self) -> Tensor:
        """W as a dense (n, n) matrix, for study and tests: column j is W eⱼ."""
        A = self.operator()
        eye = torch.eye(self.state_shape.numel(), dtype=A.dtype, device=A.device)
        basis = eye.reshape(-1, *self.state_shape)
        return (basis - A.apply(basis)).flatten(1).mT


PARAMETERIZATIONS: Registry[Parameterization] = Registry("parameterization")
"""The kinds of parameterizations by the names that saved networks know them by."""


class Readable(Parameterization):
    """A parameterization with a read-out of its own, y = C z + d, made for a Lipschitz constant.

    Attributes:
        gain: x ↦ y is gain-Lipschitz for every value of the weights.
        out_shape: The shape of one y.
    """

    gain: float
    out_shape: torch.Size

    @abstractmethod
    def read(self, z: Tensor) -> Tensor:
        """The read-outs of states.

        Args:
            z: States (batch, *state_shape).

        Returns:
            y, (batch, *out_shape).
        """

    @property
    def readout(self) -> tuple[Tensor, Tensor] | None:
        """C (outputs, n) and d (outputs,), which let bounds see operator and read-out together; None where C is none.

        Without them the constant rests on `reserve` and `read_rounding`.
        """
        return None

    def reserve(self) -> float:
        """A lower bound on (⟨z, Az⟩ − (‖Cz‖² + ‖Uᵀz‖²)/(2·gain))/‖z‖² for A as it is assembled.

        Where it is positive, the gain is proved. By default nothing is.
        """
        return 0.0

    def read_rounding(self, z: Tensor) -> Tensor:
        """An upper bound on ‖fl(Cz + d) − (Cz + d)‖₂ of each state, by default infinite.

        Args:
            z: States (batch, *state_shape).

        Returns:
            The bounds, (batch,) float64.
        """
        return torch.full((len(z),), math.inf, dtype=torch.float64, device=z.device)


class DenseInput(Parameterization):
    """The part that dense parameterizations share: U (features, in_features) and b (features,).

    Args:
        in_features: Entries of x, of any shape.
        features: n, entries of z.

    Raises:
        InvalidArgument: One of them is no integer ≥ 1.
    """

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.in_features = check_count("in_features", in_features)
        self.features = check_count("features", features)
        self.state_shape = torch.Size((features,))
        bound = in_features**-0.5
        self.U = nn.Parameter(torch.empty(features, in_features).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(features).uniform_(-bound, bound))

    @abstractmethod
    def operator(self) -> splitting.DenseOperator: ...

    def source(self, x: Tensor) -> Tensor:
        return functional.linear(flat_input(x, self.in_features, self.U), self.U, self.b)

    def blocks(self) -> tuple[Tensor, Tensor]:
        return self.operator().matrix.detach().double(), self.U.detach().double()

    def input_norm(self, scale: Tensor) -> float:
        root = self._root_metric()
        matrix = root[:, None] * self.U.detach().double() * scale.double()
        rounding = 4 * verified.rounding_factor(1) * norms.frobenius(matrix)
        return verified.spectral_norm(matrix, perturbation=rounding)

    def input_norm_estimate(self, scale: Tensor) -> Tensor:
        metric = self.operator().metric
        inputs = self.U * scale.to(self.U)
        return spectral_estimate(inputs if metric is None else metric.sqrt()[:, None] * inputs)

    def source_rounding(self, size: Tensor) -> Tensor:
        magnitude = size @ self.U.detach().double().abs().mT + self.b.detach().double().abs()
        factor, root = verified.rounding_factor(self.in_features + 8, self.U.dtype), self._root_metric()
        # Products below the normal numbers may vanish, whatever their size is relative to c.
        vanished = (self.in_features + 8) * torch.finfo(self.U.dtype).tiny * norms.frobenius(root)
        return factor * verified.vector_norm(magnitude * root) + vanished

    def _root_metric(self) -> Tensor:
        """The diagonal of Λ^½, float64."""
        metric = self.operator().metric
        return torch.ones_like(self.b, dtype=torch.float64) if metric is None else metric.double().sqrt()


class StronglyMonotone(Parameterization):
    """The part that parameterizations with an m of their own share: m fixed, or learned as exp(log_m)."""

    U: nn.Parameter
    log_m: nn.Parameter | None

    def _own_m(self, m: float, learn_m: bool) -> None:
        self._fixed_m = check_positive("m", m)
        self.log_m = nn.Parameter(torch.tensor(math.log(m))) if learn_m else None

    def monotonicity_estimate(self) -> Tensor:
        return self.m

    def root_metric_estimate(self) -> None:
        return None

    @property
    def m(self) -> Tensor:
        """Strong monotonicity of I − W, a scalar tensor."""
        if self.log_m is None:
            return torch.tensor(self._fixed_m, dtype=self.U.dtype, device=self.U.device)
        return self.log_m.exp()


def flat_input(x: Tensor, entries: int, weight: Tensor, image_shape: tuple[int, ...] | None = None) -> Tensor:
    """Inputs as (batch, entries).

    Args:
        x: Inputs (batch, …).
        entries: How many numbers a sample has.
        weight: What they are to be multiplied with.
        image_shape: What a sample must be shaped like where it is not flat; by default any shape will do.

    Returns:
        The same numbers.

    Raises:
        InvalidType: They are no tensor, or have another dtype or device than the weight.
        InvalidArgument: They have another shape.
    """
    if not isinstance(x, Tensor):
        raise InvalidType(f"`x` must be a tensor, got {type(x).__name__}; convert it with torch.as_tensor")
    shapes = f"(batch, {entries})" + ("" if image_shape is None else f" or (batch, {', '.join(map(str, image_shape))})")
    if x.ndim < 2:
        raise InvalidArgument(f"`x` must have shape {shapes}, got {tuple(x.shape)}; x[None] makes a batch of one")
    if image_shape is not None and x.ndim > 2 and tuple(x.shape[1:]) != image_shape:
        raise InvalidArgument(f"`x` must have shape {shapes}, got {tuple(x.shape)}; are its channels last?")
    x = x.flatten(1)
    if x.shape[1] != entries:
        raise InvalidArgument(f"`x` must have {entries} entries per sample, got {x.shape[1]}")
    if x.dtype != weight.dtype:
        raise InvalidType(f"`x` is {x.dtype} but the weights are {weight.dtype}; convert one of them")
    if x.device != weight.device:
        raise InvalidType(f"`x` is on {x.device} but the weights are on {weight.device}; move one of them")
    return x


def check_count(name: str, value: int) -> int:
    """A positive integer.

    Args:
        name: What the argument is called, for the message.
        value: What was given.

    Returns:
        The same.

    Raises:
        InvalidArgument: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(f"`{name}` must be an integer ≥ 1, got {value!r}")
    return value


def check_positive(name: str, value: float) -> float:
    """A finite number > 0.

    Args:
        name: What the argument is called, for the message.
        value: What was given.

    Returns:
        The same as a float.

    Raises:
        InvalidArgument: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InvalidArgument(f"`{name}` must be a finite number > 0, got {value!r}")
    return float(value)
