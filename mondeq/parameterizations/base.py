"""What a parameterization is: free weights in, a strongly monotone operator and an input map out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional

import splitting
from splitting import verified
from splitting.errors import InvalidArgument, InvalidType


class Parameterization(nn.Module, ABC):
    """Owns the weights of z = σ(Wz + Ux + b), for every value of which I − W is strongly monotone.

    state_shape: shape of one state z. in_features: number of entries of one input x.
    """

    state_shape: torch.Size
    in_features: int

    @abstractmethod
    def operator(self) -> splitting.Operator:
        """A = I − W as a splitting operator, differentiable in the weights."""

    @abstractmethod
    def source(self, x: Tensor) -> Tensor:
        """c = U x + b for inputs x (batch, …), as states (batch, *state_shape)."""

    @abstractmethod
    def input_norm(self, scale: Tensor) -> float:
        """Proved upper bound on ‖Λ^½ U diag(scale)‖₂, with `scale` (in_features,) multiplying the inputs."""

    @abstractmethod
    def source_rounding(self, size: Tensor) -> Tensor:
        """Upper bound, per sample, on ‖fl(Ux + b) − (Ux + b)‖_Λ where |x| ≤ size entrywise, and x itself is only
        known to a few roundings relative to `size` (batch, in_features), float64."""

    def weight(self) -> Tensor:
        """W as a dense (n, n) matrix, for study and tests: column j is W eⱼ."""
        eye = torch.eye(self.state_shape.numel(), dtype=next(self.parameters()).dtype)
        basis = eye.to(next(self.parameters()).device).reshape(-1, *self.state_shape)
        return (basis - self.operator().apply(basis)).flatten(1).mT


class DenseInput(Parameterization):
    """The part that dense parameterizations share: U (features, in_features) and b (features,)."""

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
        x = x.flatten(1)
        if x.shape[1] != self.in_features:
            raise InvalidArgument(f"`x` must have {self.in_features} entries per sample, got {x.shape[1]}")
        if x.dtype != self.U.dtype:
            raise InvalidType(f"`x` is {x.dtype} but the weights are {self.U.dtype}; convert one of them")
        if x.device != self.U.device:
            raise InvalidType(f"`x` is on {x.device} but the weights are on {self.U.device}; move one of them")
        return functional.linear(x, self.U, self.b)

    def input_norm(self, scale: Tensor) -> float:
        root = self._root_metric()
        matrix = root[:, None] * self.U.detach().double() * scale.double()
        rounding = 4 * verified.gamma(1) * float(torch.linalg.matrix_norm(matrix))
        return verified.spectral_norm(matrix, perturbation=rounding)

    def source_rounding(self, size: Tensor) -> Tensor:
        magnitude = size @ self.U.detach().double().abs().mT + self.b.detach().double().abs()
        gamma = verified.gamma(self.in_features + 8, self.U.dtype)
        return gamma * verified.vector_norm(magnitude * self._root_metric())

    def _root_metric(self) -> Tensor:
        """The diagonal of Λ^½, float64."""
        metric = self.operator().metric
        return torch.ones_like(self.b, dtype=torch.float64) if metric is None else metric.double().sqrt()


def check_count(name: str, value: int) -> int:
    """`value` if it is a positive integer; otherwise raise, naming the argument."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(f"`{name}` must be an integer ≥ 1, got {value!r}")
    return value


def check_positive(name: str, value: float) -> float:
    """`value` if it is a finite number > 0; otherwise raise, naming the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InvalidArgument(f"`{name}` must be a finite number > 0, got {value!r}")
    return float(value)
