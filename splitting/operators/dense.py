"""The operator given as a matrix, and its resolvent as another."""

from __future__ import annotations

import torch
from torch import Tensor

from splitting import norms, verified
from splitting.context import full_precision
from splitting.errors import InvalidArgument, InvalidType
from splitting.operators.base import AdjointView, Operator, Resolvent
from splitting.operators.inverse import block_inverse, verify_inverse


class DenseOperator(Operator):
    """A given as a matrix (n, n) acting on states (batch, n).

    matrix: A, floating point. metric: the diagonal of Λ, (n,), positive, or None for Λ = I.
    strong_monotonicity: a lower bound on m known by construction; left out, it is proved from the matrix on first
    use (an eigenvalue problem in float64). Raises InvalidArgument for a matrix that is not square or a metric that
    does not fit, InvalidType for integers.
    """

    def __init__(
        self, matrix: Tensor, *, metric: Tensor | None = None, strong_monotonicity: float | None = None
    ) -> None:
        if not isinstance(matrix, Tensor):
            raise InvalidType(f"`matrix` must be a tensor, got {type(matrix).__name__}")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InvalidArgument(f"`matrix` must be square (n, n), got shape {tuple(matrix.shape)}")
        self._setup((matrix,), matrix.shape[0], metric, strong_monotonicity)

    def _setup(
        self, tensors: tuple[Tensor, ...], n: int, metric: Tensor | None, strong_monotonicity: float | None = None
    ) -> None:
        for tensor in tensors:
            if tensor.dtype not in (torch.float32, torch.float64):
                raise InvalidType(
                    f"`matrix`, or what it is made of, must be float32 or float64, got {tensor.dtype}; convert it"
                )
        if metric is not None and metric.shape != (n,):
            raise InvalidArgument(f"`metric` must have shape ({n},), the diagonal of Λ, got {tuple(metric.shape)}")
        Operator.__init__(self, tensors, (n,), metric=metric, strong_monotonicity=strong_monotonicity)

    @property
    def matrix(self) -> Tensor:
        """A as an (n, n) tensor, differentiable in `tensors` where derivatives are being recorded."""
        return self._matrix

    @property
    def _matrix(self) -> Tensor:
        """A, not to be changed."""
        return self.tensors[0]

    def apply(self, z: Tensor) -> Tensor:
        with full_precision(z.device):
            return z @ self._matrix.mT

    @property
    def adjoint(self) -> DenseOperator:
        return _Transposed(self)

    def resolvent(self, alpha: float) -> Resolvent:
        return self._cached(("resolvent", alpha), lambda: _invert(self._matrix.detach(), alpha))

    @property
    def strong_monotonicity(self) -> float:
        return self._cached("strong_monotonicity", self._prove_monotonicity)

    def _prove_monotonicity(self) -> float:
        scaled = self._scaled()
        error = 8 * verified.gamma(1) * norms.frobenius(scaled)
        return verified.smallest_eigenvalue((scaled + scaled.mT) / 2, perturbation=error)

    @property
    def lipschitz(self) -> float:
        def prove() -> float:
            scaled = self._scaled()
            error = 8 * verified.gamma(1) * norms.frobenius(scaled)
            return verified.spectral_norm(scaled, perturbation=error)

        return self._cached("lipschitz", prove)

    @property
    def frobenius(self) -> float:
        return self._cached("frobenius", lambda: norms.frobenius(_scale(self._matrix, self.metric)))

    def rounding(self, z: Tensor) -> Tensor:
        gamma = verified.gamma(z.shape[1] + 2, self.dtype) * (1 + 1e-6)
        size = verified.vector_norm(z if self.root_metric is None else z * self.root_metric)
        return gamma * self.frobenius * size + self._cached("underflow", self._underflow)

    def _underflow(self) -> float:
        """Upper bound on ‖·‖_Λ of what products below the normal numbers of the dtype may add to the rounding."""
        n, root = self.state_shape[0], self.root_metric
        largest = 1.0 if root is None or n == 0 else float(root.amax())
        return 4 * n**1.5 * torch.finfo(self.dtype).tiny * (1 + largest)

    def double(self) -> DenseOperator:
        def convert() -> DenseOperator:
            metric = None if self.metric is None else self.metric.double()
            matrix = self._matrix.detach().double()
            twin = DenseOperator(matrix, metric=metric, strong_monotonicity=self.strong_monotonicity)
            # It is proved in float64 already.
            if "lipschitz" in self._results:
                twin._results["lipschitz"] = self.lipschitz
            return twin

        return self if self.dtype == torch.float64 else self._cached("double", convert)

    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        return (q.mT @ z,)

    def _scaled(self) -> Tensor:
        """Λ^½ A Λ^-½ in float64; each entry is off by at most four roundings."""
        metric = None if self.metric is None else self.metric.double()
        return _scale(self._matrix.detach().double(), metric)


class _Transposed(AdjointView, DenseOperator):
    """Aᵀ as a view of A."""

    base: DenseOperator

    @property
    def matrix(self) -> Tensor:
        return self.base.matrix.mT

    @property
    def _matrix(self) -> Tensor:
        return self.base._matrix.mT

    @property
    def adjoint(self) -> DenseOperator:
        return self.base

    def double(self) -> DenseOperator:
        return self.base.double().adjoint

    def rounding(self, z: Tensor) -> Tensor:
        return DenseOperator.rounding(self, z)


class _DenseResolvent(Resolvent):
    """V as a matrix, with its Cayley transform 2V − I ready for the reflected form."""

    def __init__(self, inverse: Tensor) -> None:
        self.inverse = inverse
        self.cayley = 2 * inverse
        self.cayley.diagonal().sub_(1)

    def __call__(self, v: Tensor) -> Tensor:
        with full_precision(v.device):
            return v @ self.inverse.mT

    def reflect(self, v: Tensor, memory: Tensor | None = None) -> Tensor:
        # Autocast leaves alone what is written to given memory.
        return torch.mm(v, self.cayley.mT, out=torch.empty_like(v) if memory is None else memory)

    @property
    def adjoint(self) -> Resolvent:
        twin = object.__new__(_DenseResolvent)
        twin.inverse, twin.cayley = self.inverse.mT, self.cayley.mT
        return twin


def _invert(matrix: Tensor, alpha: float) -> _DenseResolvent:
    """(I + αA)⁻¹ for a dense A, verified on a probe vector."""
    shifted = alpha * matrix
    shifted.diagonal().add_(1)
    inverse = block_inverse(shifted)
    verify_inverse(lambda v: v @ shifted.mT, lambda v: v @ inverse.mT, shifted.new_ones(1, len(shifted)))
    return _DenseResolvent(inverse)


def _scale(matrix: Tensor, metric: Tensor | None) -> Tensor:
    if metric is None:
        return matrix
    root = metric.double().sqrt().to(matrix.dtype)
    return root[:, None] * matrix / root
