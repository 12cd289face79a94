"""Reflected layers, dense and convolutional: y = x − Uᵀz is 1-Lipschitz for every value of the weights.

The operator is A = mI + ½UUᵀ + VᵀV + G − Gᵀ, so F = [Uᵀ/√2; V]. Since σ is monotone with slopes in [0, 1],
⟨Δz, UΔx⟩ ≥ ⟨Δz, AΔz⟩ ≥ m‖Δz‖² + ½‖UᵀΔz‖², and ‖Δy‖² = ‖Δx‖² − 2⟨Δz, UΔx⟩ + ‖UᵀΔz‖² ≤ ‖Δx‖² − 2m‖Δz‖². For m → 0,
V = G = 0 and ReLU it is y = 2P(x) − x with P the projection onto {w : Uw + b ≤ 0}: a reflected resolvent, whose
Jacobian is orthogonal wherever it has one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import splitting
from mondeq.errors import ConfigError
from mondeq.parameterizations.base import PARAMETERIZATIONS, DenseInput, Parameterization, check_count, check_positive
from mondeq.parameterizations.convolutional import ConvolutionalInput
from mondeq.parameterizations.dense import GramSkewOperator
from mondeq.parameterizations.kernels import gram_skew, promised_monotonicity, proved_monotonicity, transposed
from mondeq.settings import POSITIVE, Settings, Whole, setting
from splitting import norms, verified

# σ²/2m for the singular values σ of U at first. On active units the layer then shrinks by 1 − 2/(σ²/2m + 1): a stack
# of ten keeps 0.9 of every length. Rows of U are orthogonal at first, so that this costs no conditioning.
_TIGHTNESS = 200.0


class Reflected(Parameterization):
    """A parameterization whose layer gives y = x − Uᵀz.

    Attributes:
        in_shape: The shape of one x and one y.
        m: ⟨Δz, AΔz⟩ − ½‖UᵀΔz‖² is at least m‖Δz‖², up to the rounding that the operator's strong monotonicity leaves
            out.
    """

    m: float

    @abstractmethod
    def pull(self, z: Tensor) -> Tensor:
        """Uᵀz for states.

        Args:
            z: States (batch, *state_shape).

        Returns:
            (batch, *in_shape).
        """

    @abstractmethod
    def pull_rounding(self, z: Tensor) -> Tensor:
        """An upper bound on ‖fl(Uᵀz) − Uᵀz‖₂ of each state.

        Args:
            z: States (batch, *state_shape).

        Returns:
            The bounds, (batch,) float64.
        """

    @abstractmethod
    def reserve(self) -> float:
        """Return a lower bound on (⟨z, Az⟩ − ½‖Uᵀz‖²)/‖z‖² for A as it is assembled.

        The operator's own strong monotonicity may be larger, where ½UUᵀ adds to it, and is no substitute.
        """

    def monotonicity_estimate(self) -> float:
        return self.m

    def root_metric_estimate(self) -> None:
        return None


@dataclass(frozen=True)
class ReflectedDenseSettings(Settings):
    """Of ReflectedDense.

    Args:
        hidden: Units of the state z.
        m: Strong monotonicity, > 0; small against ½UUᵀ for an isometry.
    """

    hidden: int = setting(Whole(1), help="units of the state z")
    m: float = setting(POSITIVE, 0.01, help="strong monotonicity; small against ½UUᵀ for an isometry")


@PARAMETERIZATIONS.enrol("reflected-dense")
class ReflectedDense(DenseInput, Reflected):
    """y = x − Uᵀz with z = σ(Wz + Ux + b), I − W = mI + ½UUᵀ + G − Gᵀ: 1-Lipschitz for every U, b, G.

    U starts with orthogonal rows so long that a stack of ten layers is an isometry within a tenth, G and b at 0.

    Args:
        features: Entries of x and y.
        hidden: Entries of z.
        m: Strong monotonicity, > 0. The smaller it is against ½UUᵀ, the closer y is to an isometry of x, and the more
            steps a solve takes.

    Raises:
        InvalidArgument: One of them is out of range.
    """

    Settings = ReflectedDenseSettings

    def __init__(self, features: int, hidden: int, m: float = 0.01) -> None:
        super().__init__(features, hidden)
        self.m = check_positive("m", m)
        self.G = nn.Parameter(torch.zeros(hidden, hidden))
        with torch.no_grad():
            _orthogonal(self.U, self.m)
            self.b.zero_()

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> ReflectedDense:
        if len(in_shape) != 1:
            raise ConfigError(f"ReflectedDense takes flat samples, got {tuple(in_shape)}; put a flatten before it")
        return cls(in_shape[0], settings.hidden, settings.m)

    @classmethod
    def example(cls) -> tuple[ReflectedDenseSettings, torch.Size]:
        return ReflectedDenseSettings(4, 0.1), torch.Size((5,))

    def settings(self) -> ReflectedDenseSettings:
        return ReflectedDenseSettings(self.features, self.m)

    def operator(self) -> GramSkewOperator:
        m = torch.tensor(self.m, dtype=self.U.dtype, device=self.U.device)
        return GramSkewOperator(self.U.mT * 0.5**0.5, self.G, m)

    def reserve(self) -> float:
        size = norms.frobenius(self.U.detach().double())
        return _less_scaling(self.operator().by_construction, size, self.U.dtype)

    def pull(self, z: Tensor) -> Tensor:
        return z @ self.U

    def pull_rounding(self, z: Tensor) -> Tensor:
        terms = self.features + 4
        size = z.double().abs() @ self.U.detach().double().abs()
        vanished = terms * self.in_features * torch.finfo(self.U.dtype).tiny
        return verified.rounding_factor(terms, self.U.dtype) * verified.vector_norm(size) + vanished


@dataclass(frozen=True)
class ReflectedConv2dSettings(Settings):
    """Of ReflectedConv2d.

    Args:
        hidden: Channels of the state z.
        kernel_size: k, the side of the convolutions, odd.
        m: Strong monotonicity, > 0; small against ½UUᵀ for an isometry.
    """

    hidden: int = setting(Whole(1), help="channels of the state z")
    kernel_size: int = setting(Whole(1), 3, help="side of the convolutions, odd (default 3)")
    m: float = setting(POSITIVE, 0.01, help="strong monotonicity; small against ½UUᵀ for an isometry")


@PARAMETERIZATIONS.enrol("reflected-conv2d")
class ReflectedConv2d(ConvolutionalInput, Reflected):
    """y = x − Uᵀz for images: U and G are convolutions, z lives on a torus (k − 1)/2 larger, where it is held at zero.

    It is 1-Lipschitz for every U, b, G, as ReflectedDense is.

    Args:
        channels: Of x and y.
        hidden: Channels of z.
        image_size: The side of the images, or (height, width).
        kernel_size: k, odd.
        m: Strong monotonicity, > 0. The smaller it is against ½UUᵀ, the closer y is to an isometry of x, and the more
            steps a solve takes.

    Raises:
        InvalidArgument: One of them is out of range, or the kernel larger than the image.
    """

    Settings = ReflectedConv2dSettings

    def __init__(
        self, channels: int, hidden: int, image_size: int | tuple[int, int], kernel_size: int = 3, m: float = 0.01
    ) -> None:
        super().__init__(channels, check_count("hidden", hidden), image_size, kernel_size)
        self.hidden, self.m = hidden, check_positive("m", m)
        self.state_shape = torch.Size((hidden, *self.size))
        self.G = nn.Parameter(torch.zeros(hidden, hidden, kernel_size, kernel_size))
        with torch.no_grad():
            self.U.zero_()
            _orthogonal(self.U[:, :, kernel_size // 2, kernel_size // 2], self.m)
            self.b.zero_()

    @classmethod
    def make(cls, settings: Any, in_shape: torch.Size) -> ReflectedConv2d:
        if len(in_shape) != 3:
            raise ConfigError(f"ReflectedConv2d takes images (channels, height, width), got {tuple(in_shape)}")
        channels, height, width = in_shape
        return cls(channels, settings.hidden, (height, width), settings.kernel_size, settings.m)

    @classmethod
    def example(cls) -> tuple[ReflectedConv2dSettings, torch.Size]:
        return ReflectedConv2dSettings(3, m=0.1), torch.Size((2, 4, 3))

    def settings(self) -> ReflectedConv2dSettings:
        return ReflectedConv2dSettings(self.hidden, self.kernel_size, self.m)

    def reserve(self) -> float:
        m, F = self._parts()
        return _less_scaling(proved_monotonicity(m, F, self.G), self._moduli(), self.U.dtype)

    def _moduli(self) -> float:
        """An upper bound on ‖Û(ω)‖₂ at every frequency: that of the sums of moduli over taps."""
        return norms.frobenius(self.U.detach().double().abs().sum((2, 3)))

    def _parts(self) -> tuple[Tensor, Tensor]:
        """m and F = Uᵀ/√2."""
        m = torch.tensor(self.m, dtype=self.U.dtype, device=self.U.device)
        return m, transposed(self.U) * 0.5**0.5

    def operator(self) -> splitting.ConvolutionOperator:
        m, F = self._parts()
        known = promised_monotonicity(m, [F], [self.G])
        return splitting.ConvolutionOperator(gram_skew(m, F, self.G), self.size, strong_monotonicity=known)

    def source(self, x: Tensor) -> Tensor:
        images = self._input(x).view(-1, *self.in_shape)
        return splitting.correlate(self._bordered(images, self._border), self.U) + self.b[:, None, None]

    def source_rounding(self, size: Tensor) -> Tensor:
        relative, vanished = splitting.correlation_rounding(self.U, self.size)
        bias = norms.frobenius(self.b.detach().double()) * math.sqrt(math.prod(self.size))
        length, addition = verified.vector_norm(size), verified.rounding_factor(2, self.U.dtype)
        return ((relative + addition * self._moduli()) * length + addition * bias) * (1 + 1e-12) + vanished

    def pull(self, z: Tensor) -> Tensor:
        return self._bordered(splitting.correlate(z, transposed(self.U)), -self._border)

    def pull_rounding(self, z: Tensor) -> Tensor:
        relative, vanished = splitting.correlation_rounding(transposed(self.U), self.size)
        return relative * verified.vector_norm(z) + vanished

    @property
    def _border(self) -> int:
        """How much longer the sides of the torus are: what a tap reaches, so that none leads around it."""
        return self.kernel_size // 2

    def _torus_side(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[0] + self._border, size[1] + self._border

    @property
    def inside(self) -> Tensor:
        return _corner(self.image_size, self._border, self.U.device)

    @staticmethod
    def _bordered(images: Tensor, border: int) -> Tensor:
        """Images with zeros at their far sides, or what is there taken away; the batch last in memory."""
        return functional.pad(images.permute(2, 3, 1, 0), (0, 0, 0, 0, 0, border, 0, border)).permute(3, 2, 0, 1)


@splitting.constant
def _corner(size: tuple[int, int], border: int, device: torch.device) -> Tensor:
    """Boolean (height, width): true but on the far sides of a torus."""
    return functional.pad(torch.ones(size, dtype=torch.bool, device=device), (0, border, 0, border))


def _less_scaling(bound: float, size: float, dtype: torch.dtype) -> float:
    """`bound` less what U/√2 has rounded: entries are right to two roundings, and so FᵀF to four of ½‖U‖²."""
    return verified.round_down(bound - 4 * verified.rounding_factor(2, dtype) * size * size)


def _orthogonal(weight: Tensor, m: float) -> None:
    """Fill with orthonormal rows (columns where it is tall), times the length that `_TIGHTNESS` asks for."""
    if weight.is_meta:
        return
    drawn = torch.randn(weight.shape, dtype=torch.float64, device=weight.device)
    q, r = torch.linalg.qr(drawn if weight.shape[0] >= weight.shape[1] else drawn.mT)
    q = q * r.diagonal().sign()  # uniform over orthogonal matrices
    weight.copy_((2 * m * _TIGHTNESS) ** 0.5 * (q if weight.shape[0] >= weight.shape[1] else q.mT))
