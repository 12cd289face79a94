"""The operator given as a matrix, and its resolvent as another."""

from __future__ import annotations

import torch
from torch import Tensor

from splitting import norms, verified
from splitting.context import asking_is_free, full_precision
from splitting.errors import InvalidArgument, InvalidType
from splitting.operators.base import Operator, Resolvent
from splitting.operators.inverse import Probe, block_inverse, judge, verify_inverse


class DenseOperator(Operator):
    """A given as a matrix (n, n) that acts on states (batch, n).

    A matrix that is made of other tensors is a subclass: it gives `matrix`, and may give `strong_monotonicity` and
    `pairing_gradient`. Its constructor hands these tensors to `Operator.__init__`.

    Args:
        matrix: A, float32 or float64.
        metric: The diagonal of Λ, (n,), positive; None for Λ = I.
        strong_monotonicity: A lower bound on m that is known by construction. Left out, m is proved from the matrix on
            first use, by an eigenvalue problem in float64.

    Raises:
        InvalidArgument: The matrix is not square, or the metric does not fit.
        InvalidType: The matrix is no tensor, or of another dtype.
    """

    def __init__(
        self, matrix: Tensor, *, metric: Tensor | None = None, strong_monotonicity: float | None = None
    ) -> None:
        if not isinstance(matrix, Tensor):
            raise InvalidType(f"`matrix` must be a tensor, got {type(matrix).__name__}")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InvalidArgument(f"`matrix` must be square (n, n), got shape {tuple(matrix.shape)}")
        if matrix.dtype not in (torch.float32, torch.float64):
            raise InvalidType(f"`matrix` must be float32 or float64, got {matrix.dtype}; convert it")
        n = len(matrix)
        if metric is not None and metric.shape != (n,):
            raise InvalidArgument(f"`metric` must have shape ({n},), the diagonal of Λ, got {tuple(metric.shape)}")
        super().__init__((matrix,), (n,), metric=metric, strong_monotonicity=strong_monotonicity)

    @property
    def matrix(self) -> Tensor:
        """A as an (n, n) tensor that is not to be changed, differentiable in `tensors` where that is recorded."""
        return self.tensors[0]

    def apply(self, z: Tensor) -> Tensor:
        with full_precision(z.device):
            return z @ self.matrix.mT

    def apply_adjoint(self, z: Tensor) -> Tensor:
        with full_precision(z.device):
            return z @ self.matrix

    def resolvent(self, alpha: float) -> Resolvent:
        resolvent = self.cached(("resolvent", alpha), lambda: _invert(self.matrix.detach(), alpha))
        judge(resolvent.probes)
        return resolvent

    @property
    def strong_monotonicity(self) -> float:
        known = self.known_monotonicity
        return self.cached("strong monotonicity", self._prove_monotonicity) if known is None else known

    def _prove_monotonicity(self) -> float:
        scaled = self._scaled()
        return verified.smallest_eigenvalue((scaled + scaled.mT) / 2, perturbation=_scaling_error(scaled))

    @property
    def lipschitz(self) -> float:
        def prove() -> float:
            scaled = self._scaled()
            return verified.spectral_norm(scaled, perturbation=_scaling_error(scaled))

        return self.cached("lipschitz", prove)

    def difference_norm(self, other: Operator) -> float:
        if not isinstance(other, DenseOperator):
            return super().difference_norm(other)
        ours, theirs = (op.matrix.detach().double() for op in (self, other))
        difference = _scale(ours - theirs, None if self.metric is None else self.metric.double())
        # Subtraction rounds once, scaling four times.
        return verified.spectral_norm(difference, perturbation=_scaling_error(difference))

    @property
    def frobenius(self) -> float:
        def compute() -> float:
            read = None if asking_is_free(self.device) else self._measured()["frobenius"]
            return norms.frobenius(_scale(self.matrix, self.metric), read)

        return self.cached("frobenius", compute)

    def _measures(self) -> dict[str, Tensor]:
        return {"frobenius": torch.linalg.vector_norm(_scale(self.matrix, self.metric)), **super()._measures()}

    def rounding(self, z: Tensor) -> Tensor:
        factor = verified.rounding_factor(z.shape[1] + 2, self.dtype) * (1 + 1e-6)
        size = verified.vector_norm(z if self.root_metric is None else z * self.root_metric)
        return factor * self.frobenius * size + self.cached("underflow", self._underflow)

    def _underflow(self) -> float:
        """Upper bound on ‖·‖_Λ and ‖·‖_{Λ⁻¹} of what products below the normal numbers of the dtype may add."""
        n, root = self.state_shape[0], self.root_metric
        largest = 1.0 if root is None or n == 0 else float(torch.maximum(root, 1 / root).amax())
        return 4 * n**1.5 * torch.finfo(self.dtype).tiny * (1 + largest)

    def double(self) -> DenseOperator:
        def convert() -> DenseOperator:
            metric = None if self.metric is None else self.metric.double()
            return DenseOperator(
                self.matrix.detach().double(), metric=metric, strong_monotonicity=self.strong_monotonicity
            )

        return self if self.dtype == torch.float64 else self.cached("double", convert)

    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        return (q.mT @ z,)

    def _scaled(self) -> Tensor:
        """Λ^½ A Λ^-½ in float64; each entry is off by at most four roundings."""
        metric = None if self.metric is None else self.metric.double()
        return _scale(self.matrix.detach().double(), metric)


class _DenseResolvent(Resolvent):
    """V as a matrix, and its Cayley transform 2V − I for the reflected form."""

    def __init__(self, inverse: Tensor, cayley: Tensor, probes: tuple[Probe, ...] = ()) -> None:
        self.inverse, self.cayley, self.probes = inverse, cayley, probes

    def __call__(self, v: Tensor) -> Tensor:
        with full_precision(v.device):
            return v @ self.inverse.mT

    def reflect(self, v: Tensor) -> Tensor:
        with full_precision(v.device):
            return v @ self.cayley.mT

    @property
    def adjoint(self) -> Resolvent:
        return _DenseResolvent(self.inverse.mT, self.cayley.mT)


def _invert(matrix: Tensor, alpha: float) -> _DenseResolvent:
    """(I + αA)⁻¹ for a dense A, verified on a probe vector."""
    shifted = alpha * matrix
    shifted.diagonal().add_(1)
    inverse = block_inverse(shifted)
    probe = verify_inverse(lambda v: v @ shifted.mT, lambda v: v @ inverse.mT, shifted.new_ones(1, len(shifted)))
    cayley = 2 * inverse
    cayley.diagonal().sub_(1)
    return _DenseResolvent(inverse, cayley, (probe,))


def _scale(matrix: Tensor, metric: Tensor | None) -> Tensor:
    if metric is None:
        return matrix
    root = metric.double().sqrt().to(matrix.dtype)
    return root[:, None] * matrix / root


def _scaling_error(scaled: Tensor) -> float:
    """What a few roundings of every entry may change the 2-norm by."""
    return 8 * verified.rounding_factor(1) * norms.frobenius(scaled)
