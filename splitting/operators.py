"""Linear operators A of the inclusion 0 ∈ A z − c + ∂f(z): what A can do, and the dense one.

An operator is a value. It acts on states (batch, *state_shape) and carries the diagonal metric Λ in which it is
monotone: ⟨z, A z⟩_Λ ≥ m ‖z‖²_Λ with ⟨x, y⟩_Λ = Σ λᵢ xᵢ yᵢ, and L = ‖Λ^½ A Λ^-½‖₂. Λ = I when `metric` is None.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from splitting import verified
from splitting.errors import InvalidArgument, InvalidType, ResolventError

T = TypeVar("T")


class Resolvent(ABC):
    """V = (I + αA)⁻¹ as a value: call it on states. `resolvent.adjoint` equals the resolvent of A's adjoint."""

    @abstractmethod
    def __call__(self, v: Tensor) -> Tensor:
        """V v for states v (batch, *state_shape)."""

    @abstractmethod
    def reflect(self, v: Tensor, shift: Tensor) -> Tensor:
        """(2V − I) v + shift: the reflected resolvent, in as few passes over memory as the operator can."""

    @property
    @abstractmethod
    def adjoint(self) -> Resolvent:
        """Vᵀ = (I + αAᵀ)⁻¹, sharing this one's factors."""


class Operator(ABC):
    """A linear map A on states, strongly monotone in its metric.

    `tensors` are what A is made of and what gradients flow to; everything derived from them (assembled matrices,
    resolvents, bounds) is computed on demand and kept in a cache that `rebind` and `adjoint` share.
    """

    state_shape: torch.Size
    metric: Tensor | None
    tensors: tuple[Tensor, ...]
    _cache: dict[Any, Any]

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @abstractmethod
    def apply(self, z: Tensor) -> Tensor:
        """A z for states z (batch, *state_shape); differentiable in z and in `tensors`."""

    @property
    @abstractmethod
    def adjoint(self) -> Operator:
        """Aᵀ, with metric Λ⁻¹ and the same m and L."""

    @abstractmethod
    def resolvent(self, alpha: float) -> Resolvent:
        """(I + αA)⁻¹, checked on a probe. Raises ResolventError if the computed inverse does not invert."""

    @property
    @abstractmethod
    def strong_monotonicity(self) -> float:
        """m: a proved lower bound, rounding included. May be ≤ 0, and then nothing is guaranteed."""

    @property
    @abstractmethod
    def lipschitz(self) -> float:
        """L: a proved upper bound on ‖Λ^½ A Λ^-½‖₂, rounding included."""

    @property
    @abstractmethod
    def frobenius(self) -> float:
        """‖Λ^½ A Λ^-½‖_F: cheap, and never less than ‖Λ^½ A Λ^-½‖₂ (up to rounding)."""

    @abstractmethod
    def rounding(self, z: Tensor) -> Tensor:
        """Upper bound, per sample, on ‖fl(A z) − A z‖_Λ for `apply` in this dtype."""

    @abstractmethod
    def double(self) -> Operator:
        """The same numbers in float64."""

    @abstractmethod
    def rebind(self, *tensors: Tensor) -> Self:
        """This operator on other handles of the *same values*: the cache is shared, gradients flow to `tensors`."""

    @abstractmethod
    def replace(self, *tensors: Tensor) -> Self:
        """The operator of this kind made of new values."""

    @abstractmethod
    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        """∂⟨q, A z⟩/∂t for each t of `tensors`, itself differentiable; None for a t that needs none."""

    @property
    def root_metric(self) -> Tensor | None:
        """The diagonal of Λ^½, or None for Λ = I."""
        metric = self.metric
        return None if metric is None else self._cached("root_metric", metric.sqrt)

    def norm(self, z: Tensor) -> Tensor:
        """‖z‖_Λ of each sample of z (batch, *state_shape)."""
        root = self.root_metric
        return torch.linalg.vector_norm((z if root is None else z * root).flatten(1), dim=1)

    @property
    def typical_step(self) -> float:
        """√n/‖A‖_F in the metric: the reciprocal of A's root-mean-square singular value, the cheap step choice."""
        size = self.frobenius
        if not math.isfinite(size):
            raise InvalidArgument(
                f"`operator` has ‖A‖_F = {size}: A holds NaN or inf or overflows {self.dtype}, or its metric is not "
                "positive; check the weights, use float64 or rescale"
            )
        return math.sqrt(max(self.state_shape.numel(), 1)) / max(size, torch.finfo(torch.float32).tiny)

    def _cached(self, key: object, compute: Callable[[], T]) -> T:
        """`compute()`, once per set of values, without a graph."""
        if key not in self._cache:
            with torch.inference_mode(False), torch.no_grad():
                self._cache[key] = compute()
        value: T = self._cache[key]
        return value


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
        self._setup((matrix,), matrix.shape[0], metric)
        if strong_monotonicity is not None:
            self._cache["strong_monotonicity"] = float(strong_monotonicity)

    def _setup(self, tensors: tuple[Tensor, ...], n: int, metric: Tensor | None) -> None:
        for tensor in tensors:
            if tensor.dtype not in (torch.float32, torch.float64):
                raise InvalidType(
                    f"`matrix`, or what it is made of, must be float32 or float64, got {tensor.dtype}; convert it"
                )
        self.tensors = tensors
        self.state_shape = torch.Size((n,))
        if metric is not None:
            if metric.shape != self.state_shape:
                raise InvalidArgument(f"`metric` must have shape ({n},), the diagonal of Λ, got {tuple(metric.shape)}")
            metric = metric.detach()
        self.metric = metric
        self._cache = {}

    @property
    def matrix(self) -> Tensor:
        """A as an (n, n) tensor, differentiable in `tensors` where derivatives are being recorded."""
        recorded = torch.is_grad_enabled() and any(t.requires_grad for t in self.tensors)
        if recorded or any(map(is_transformed, self.tensors)):
            return self._assemble()
        return self._cached("matrix", self._assemble)

    def _assemble(self) -> Tensor:
        return self.tensors[0]

    def apply(self, z: Tensor) -> Tensor:
        return z @ self.matrix.mT

    @property
    def adjoint(self) -> DenseOperator:
        return _Transposed(self)

    def resolvent(self, alpha: float) -> Resolvent:
        return self._cached(("resolvent", alpha), lambda: _invert(self.matrix.detach(), alpha))

    @property
    def strong_monotonicity(self) -> float:
        return self._cached("strong_monotonicity", self._prove_monotonicity)

    def _prove_monotonicity(self) -> float:
        scaled = self._scaled()
        error = 8 * verified.gamma(1) * float(torch.linalg.matrix_norm(scaled))
        return verified.smallest_eigenvalue((scaled + scaled.mT) / 2, perturbation=error)

    @property
    def lipschitz(self) -> float:
        def prove() -> float:
            scaled = self._scaled()
            error = 8 * verified.gamma(1) * float(torch.linalg.matrix_norm(scaled))
            return verified.spectral_norm(scaled, perturbation=error)

        return self._cached("lipschitz", prove)

    @property
    def frobenius(self) -> float:
        return self._cached("frobenius", lambda: float(torch.linalg.matrix_norm(_scale(self.matrix, self.metric))))

    def rounding(self, z: Tensor) -> Tensor:
        gamma = verified.gamma(z.shape[1] + 2, self.dtype)
        return (
            gamma
            * (1 + 1e-6)
            * self.frobenius
            * verified.vector_norm(z if self.root_metric is None else z * self.root_metric)
        )

    def double(self) -> DenseOperator:
        def convert() -> DenseOperator:
            metric = None if self.metric is None else self.metric.double()
            twin = DenseOperator(self.matrix.detach().double(), metric=metric)
            # Both are proved in float64 already; ‖A‖_F may have overflowed here and not there.
            for key in ("strong_monotonicity", "lipschitz"):
                if key in self._cache:
                    twin._cache[key] = self._cache[key]
            twin._cache.setdefault("strong_monotonicity", self.strong_monotonicity)
            return twin

        return self._cached("double", convert)

    def rebind(self, *tensors: Tensor) -> Self:
        twin = self.replace(*tensors)
        twin._cache = self._cache
        return twin

    def replace(self, *tensors: Tensor) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.tensors = tensors
        twin._cache = {}
        return twin

    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        return (q.mT @ z,)

    def _scaled(self) -> Tensor:
        """Λ^½ A Λ^-½ in float64; each entry is off by at most four roundings."""
        metric = None if self.metric is None else self.metric.double()
        return _scale(self.matrix.detach().double(), metric)


class _Transposed(DenseOperator):
    """Aᵀ as a view of A: same tensors, same cache, metric Λ⁻¹."""

    def __init__(self, base: DenseOperator) -> None:
        self.base = base
        self.state_shape = base.state_shape
        self.metric = None if base.metric is None else base.metric.reciprocal()

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]  # a view has no tensors of its own
        return self.base.tensors

    @property
    def _cache(self) -> dict[Any, Any]:  # type: ignore[override]  # nor a cache
        cache: dict[Any, Any] = self.base._cache.setdefault("adjoint", {})
        return cache

    @property
    def matrix(self) -> Tensor:
        return self.base.matrix.mT

    @property
    def adjoint(self) -> DenseOperator:
        return self.base

    def resolvent(self, alpha: float) -> Resolvent:
        return self.base.resolvent(alpha).adjoint

    # Scaling by Λ^½ from the left and transposing by Λ^-½ give transposes of one matrix: m and L are the base's.
    @property
    def strong_monotonicity(self) -> float:
        return self.base.strong_monotonicity

    @property
    def lipschitz(self) -> float:
        return self.base.lipschitz

    @property
    def frobenius(self) -> float:
        return self.base.frobenius

    def double(self) -> DenseOperator:
        return self.base.double().adjoint

    def rebind(self, *tensors: Tensor) -> _Transposed:
        return _Transposed(self.base.rebind(*tensors))

    def replace(self, *tensors: Tensor) -> _Transposed:
        return _Transposed(self.base.replace(*tensors))

    def pairing_gradient(self, q: Tensor, z: Tensor) -> tuple[Tensor | None, ...]:
        return self.base.pairing_gradient(z, q)


class _DenseResolvent(Resolvent):
    """V as a matrix, with its Cayley transform 2V − I ready for the reflected form."""

    def __init__(self, inverse: Tensor) -> None:
        self.inverse = inverse
        self.cayley = 2 * inverse
        self.cayley.diagonal().sub_(1)

    def __call__(self, v: Tensor) -> Tensor:
        return v @ self.inverse.mT

    def reflect(self, v: Tensor, shift: Tensor) -> Tensor:
        return torch.addmm(shift, v, self.cayley.mT)

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


# Below this order the library's inverse is as fast as its matrix products make ours.
_BLOCK_ORDER = 128


def block_inverse(matrix: Tensor) -> Tensor:
    """Inverse by recursive 2×2 block elimination without pivoting, several times faster than LU for large n.

    Stable for I + αA with A monotone: the symmetric part of such a matrix (in its diagonal metric) is at least I,
    every Schur complement inherits that, so no pivot block is ill conditioned beyond the matrix itself
    (Golub & Van Loan, Matrix Computations, §4.2). The result is to be verified, as `verify_inverse` does.
    """
    n = len(matrix)
    if n <= _BLOCK_ORDER:
        return torch.linalg.inv_ex(matrix).inverse
    h = n // 2
    p = block_inverse(matrix[:h, :h])
    below, right = matrix[h:, :h] @ p, p @ matrix[:h, h:]
    schur = block_inverse(matrix[h:, h:] - below @ matrix[:h, h:])
    result = torch.empty_like(matrix)
    upper = right @ schur
    result[h:, h:] = schur
    result[:h, h:] = -upper
    result[h:, :h] = -(schur @ below)
    result[:h, :h] = p + upper @ below
    return result


def verify_inverse(forward: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], ones: Tensor) -> None:
    """Check V(Mp) = p on a probe p with entries of varied size and sign; `ones` gives shape, dtype and device.

    Raises ResolventError if the relative error exceeds the square root of the unit roundoff: rounding stays far
    below that for every inverse worth using, and a wrong one does not.
    """
    probe = torch.cos(torch.arange(1, ones.numel() + 1, device=ones.device, dtype=ones.dtype)).reshape(ones.shape)
    image = forward(probe)
    back = inverse(image)
    error = float((back - probe).norm() / probe.norm().clamp_min(torch.finfo(ones.dtype).tiny))
    allowed = math.sqrt(torch.finfo(ones.dtype).eps) * 16
    if not error <= allowed:
        raise ResolventError(
            f"the computed inverse of I + αA is wrong by {error:.1e} on a probe (allowed {allowed:.1e}): A is not "
            f"finite, not monotone, or too ill conditioned for {ones.dtype}; use float64 or check the weights"
        )


def is_transformed(tensor: Tensor) -> bool:
    """Whether a torch.func transform is at work on `tensor`: then it may have no values, and must not be cached."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _scale(matrix: Tensor, metric: Tensor | None) -> Tensor:
    if metric is None:
        return matrix
    root = metric.sqrt()
    return root[:, None] * matrix / root
