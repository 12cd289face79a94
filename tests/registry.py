"""What the laws are tested on. Enrol a new operator, activation or solver here and every law runs over it.

Operators are made for a dtype and activations for a state shape and a dtype, so that a law chooses both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

import mondeq
import splitting
from mondeq.parameterizations.kernels import gram_skew

OperatorFactory = Callable[[torch.dtype], splitting.Operator]
ParameterizationFactory = Callable[[torch.dtype], mondeq.Parameterization]
ActivationFactory = Callable[[tuple[int, ...], torch.dtype], splitting.Activation]

DTYPES = (torch.float32, torch.float64)


def monotone(n: int, *, m: float = 0.5, gain: float = 1.0, skew: float = 1.0, rank: int | None = None) -> Tensor:
    """mI + FᵀF + G − Gᵀ in float64 with random F (rank, n) and G; the same numbers on every call."""
    random = torch.Generator().manual_seed(n)
    F = torch.randn(n if rank is None else rank, n, generator=random, dtype=torch.float64) * gain / n**0.5
    G = torch.randn(n, n, generator=random, dtype=torch.float64) * skew / n**0.5
    return m * torch.eye(n, dtype=torch.float64) + F.mT @ F + G - G.mT


def _dense(matrix: Tensor, metric: Tensor | None = None) -> OperatorFactory:
    def make(dtype: torch.dtype) -> splitting.Operator:
        return splitting.DenseOperator(matrix.to(dtype), metric=None if metric is None else metric.to(dtype))

    return make


def _huge_weight() -> OperatorFactory:
    F = torch.eye(6, dtype=torch.float64)
    F[0, 0] = 1e3
    return _dense(monotone(6) + F.mT @ F)


def _metric() -> OperatorFactory:
    """Λ⁻¹M with M monotone is monotone in Λ, and for this Λ not monotone in the Euclidean inner product."""
    metric = torch.logspace(-2, 2, 6, dtype=torch.float64)
    return _dense(monotone(6, m=0.0) / metric[:, None] + 0.5 * torch.eye(6, dtype=torch.float64), metric)


def _parameterized(make: Callable[[], mondeq.Parameterization]) -> ParameterizationFactory:
    """A parameterization with random weights, the same on every call."""

    def build(dtype: torch.dtype) -> mondeq.Parameterization:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(6)
            linear = make()
            for parameter in linear.parameters():
                parameter.normal_(std=0.5)
        return linear.to(dtype)

    return build


def _its_operator(make: ParameterizationFactory) -> OperatorFactory:
    return lambda dtype: make(dtype).requires_grad_(False).operator()


PARAMETERIZATIONS: dict[str, ParameterizationFactory] = {
    "mondeq.Dense": _parameterized(lambda: mondeq.Dense(3, 6, m=0.5)),
    "mondeq.Dense, m learned": _parameterized(lambda: mondeq.Dense(3, 6, m=0.5, learn_m=True)),
    "mondeq.LipschitzDense": _parameterized(lambda: mondeq.LipschitzDense(3, 6, 2)),
    "mondeq.LipschitzConv2d": _parameterized(lambda: mondeq.LipschitzConv2d(1, 2, 2, (3, 4), gamma=1.5, m=0.3)),
    "mondeq.IntervalDense": _parameterized(lambda: mondeq.IntervalDense(3, 6)),
    "mondeq.Conv2d": _parameterized(lambda: mondeq.Conv2d(1, 2, (3, 4), m=0.5)),
    "mondeq.Conv2d, normalised": _parameterized(
        lambda: mondeq.Conv2d(2, 1, 3, kernel_size=1, m=0.5, learn_m=True, weight_norm=True)
    ),
    "mondeq.MultiscaleConv2d": _parameterized(lambda: mondeq.MultiscaleConv2d(1, (1, 2), (4, 6), m=0.5)),
    "mondeq.MultiscaleConv2d, normalised": _parameterized(
        lambda: mondeq.MultiscaleConv2d(1, (1, 1, 1), 4, m=0.5, learn_m=True, weight_norm=True)
    ),
}


def _kernel(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _convolution(channels: int, size: tuple[int, int], k: int) -> OperatorFactory:
    F, G = (0.4 * _kernel(channels, channels, k, k, seed=seed) for seed in range(2))
    kernel = gram_skew(torch.tensor(0.5, dtype=torch.float64), F, G)
    return lambda dtype: splitting.ConvolutionOperator(kernel.to(dtype), size)


def _weighted_convolution() -> OperatorFactory:
    """Λ⁻¹K per channel, with K ⋆ monotone, is monotone in Λ and, for this Λ, not in the Euclidean inner product."""
    F, G = (0.4 * _kernel(3, 3, 3, 3, seed=seed) for seed in range(2))
    metric = torch.logspace(-2, 2, 3, dtype=torch.float64)
    kernel = gram_skew(torch.tensor(0.1, dtype=torch.float64), F, G) / metric[:, None, None, None]
    kernel[:, :, 2, 2] += 0.5 * torch.eye(3, dtype=torch.float64)
    return lambda dtype: splitting.ConvolutionOperator(kernel.to(dtype), (4, 5), metric=metric.to(dtype))


def _multiscale(channels: tuple[int, ...], sizes: tuple[tuple[int, int], ...]) -> OperatorFactory:
    F, G = ([0.4 * _kernel(c, c, 3, 3, seed=s + i) for i, c in enumerate(channels)] for s in (1, 20))
    D = [0.4 * _kernel(b, a, 3, 3, seed=40 + i) for i, (a, b) in enumerate(pairwise(channels))]

    m = torch.tensor(0.5, dtype=torch.float64)
    composed = [gram_skew(m, f, g) for f, g in zip(F, G, strict=True)]

    def make(dtype: torch.dtype) -> splitting.Operator:
        kernels = ([k.to(dtype) for k in given] for given in (composed, F[1:], D))
        return splitting.MultiscaleOperator(*kernels, sizes)

    return make


# Small ones, for laws that solve many problems.
SMALL_OPERATORS: dict[str, OperatorFactory] = {
    "scalar": _dense(torch.tensor([[0.7]], dtype=torch.float64)),
    "general": _dense(monotone(6)),
    "symmetric": _dense(monotone(6, skew=0.0)),
    "skew-dominant": _dense(monotone(6, skew=8.0)),
    "metric": _metric(),
    "m near 0": _dense(monotone(6, m=1e-3, rank=2)),
    "one huge weight": _huge_weight(),
    "convolution, 3×5": _convolution(1, (3, 5), 3),
    "convolution, 1×1 kernel": _convolution(3, (2, 2), 1),
    "convolution in a metric": _weighted_convolution(),
    "multiscale": _multiscale((1, 2), ((4, 6), (3, 3))),
} | {name: _its_operator(make) for name, make in PARAMETERIZATIONS.items()}
# Large enough for the blockwise inverse to recurse, with blocks of odd order.
LARGE_OPERATORS: dict[str, OperatorFactory] = {"order 301": _dense(monotone(301))}


def _with_adjoints(operators: dict[str, OperatorFactory]) -> dict[str, OperatorFactory]:
    def adjoint(make: OperatorFactory) -> OperatorFactory:
        return lambda dtype: make(dtype).adjoint

    return operators | {f"adjoint of {name}": adjoint(make) for name, make in operators.items()}


OPERATORS: dict[str, OperatorFactory] = _with_adjoints(SMALL_OPERATORS | LARGE_OPERATORS)


@dataclass(frozen=True)
class Arctan(splitting.Activation):
    """What a user writes: σ and σ′, nothing else."""

    def __call__(self, y: Tensor) -> Tensor:
        return y.atan()

    def derivative(self, y: Tensor) -> Tensor:
        return 1 / (1 + y.square())


@dataclass(frozen=True)
class Staircase(splitting.Activation):
    """(y + sin y)/2, flat at every odd multiple of π: there, unsafeguarded Newton steps go anywhere."""

    def __call__(self, y: Tensor) -> Tensor:
        return (y + y.sin()) / 2

    def derivative(self, y: Tensor) -> Tensor:
        return (1 + y.cos()) / 2


def _fixed(activation: splitting.Activation) -> ActivationFactory:
    return lambda shape, dtype: activation


def _scale(shape: tuple[int, ...], dtype: torch.dtype) -> splitting.Activation:
    d = torch.rand(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return splitting.Scale((1.6 * d - 0.3).clamp(0, 1).to(dtype))


def _masked(inner: splitting.Activation) -> ActivationFactory:
    def make(shape: tuple[int, ...], dtype: torch.dtype) -> splitting.Activation:
        return splitting.Masked(inner, torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.7)

    return make


# Twice differentiable: what second derivatives are tested on.
SMOOTH_ACTIVATIONS: dict[str, ActivationFactory] = {
    "Identity": _fixed(splitting.Identity()),
    "Tanh": _fixed(splitting.Tanh()),
    "Sigmoid": _fixed(splitting.Sigmoid()),
    "Softplus": _fixed(splitting.Softplus()),
    "Arctan": _fixed(Arctan()),
    "Scale": _scale,
    "Masked(Tanh)": _masked(splitting.Tanh()),
}
ACTIVATIONS: dict[str, ActivationFactory] = SMOOTH_ACTIVATIONS | {
    "Staircase": _fixed(Staircase()),
    "ReLU": _fixed(splitting.ReLU()),
    "LeakyReLU": _fixed(splitting.LeakyReLU(0.1)),
    "SoftThreshold": _fixed(splitting.SoftThreshold(0.3)),
    "Box": _fixed(splitting.Box(-0.5, 0.25)),
    "Masked(ReLU)": _masked(splitting.ReLU()),
}

_METHODS: dict[str, splitting.Solver] = {
    "ForwardBackward": splitting.ForwardBackward(),
    "ForwardBackwardForward": splitting.ForwardBackwardForward(),
    "PeacemanRachford": splitting.PeacemanRachford(),
    "DouglasRachford": splitting.DouglasRachford(),
}
SOLVERS: dict[str, splitting.Solver] = _METHODS | {
    f"Anderson({name})": splitting.Anderson(method) for name, method in _METHODS.items()
}
