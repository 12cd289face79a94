"""What to draw: weights of every scale, inputs, activations, and solvers with any step inside their theorems.

Tensors come from seeds that are drawn, so an example is small to store and the same when it is replayed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import splitting
from mondeq.parameterizations import Conv2d, Dense, LipschitzDense, MultiscaleConv2d, Parameterization
from splitting import SteppedSolver


def parameterizations(
    *, dtype: torch.dtype = torch.float64, largest: int = 6
) -> st.SearchStrategy[Dense | LipschitzDense]:
    """Dense and LipschitzDense with random weights, 1 … `largest` features and as many inputs.

    Dense: F and G normal, scaled by 10⁻³ … 10³ each on its own, m in 10⁻³ … 10², fixed or learned. LipschitzDense: V
    and S so scaled, U and W_o by 10⁻² … 10², γ in 0.1 … 10, Λ over two decades. In float64 m is provable for all of
    them; in float32 it is not for large weights.

    Args:
        dtype: Of the weights.
        largest: The most features and inputs.

    Returns:
        The strategy.
    """
    sizes = st.integers(1, largest)
    return st.one_of(
        st.builds(
            _dense,
            sizes,
            sizes,
            m=_log_uniform(1e-3, 1e2),
            learn_m=st.booleans(),
            scales=st.fixed_dictionaries({"F": _log_uniform(1e-3, 1e3), "G": _log_uniform(1e-3, 1e3)}),
            seed=_seeds(),
            dtype=st.just(dtype),
        ),
        st.builds(
            _lipschitz,
            sizes,
            sizes,
            st.integers(1, 4),
            gamma=_log_uniform(0.1, 10),
            scales=st.fixed_dictionaries(
                {
                    "V": _log_uniform(1e-3, 1e3),
                    "S": _log_uniform(1e-3, 1e3),
                    "U": _log_uniform(1e-2, 1e2),
                    "W_o": _log_uniform(1e-2, 1e2),
                    "log_metric": st.floats(0, 1),
                }
            ),
            seed=_seeds(),
            dtype=st.just(dtype),
        ),
    )


def convolutions(*, dtype: torch.dtype = torch.float64) -> st.SearchStrategy[Conv2d | MultiscaleConv2d]:
    """Conv2d and MultiscaleConv2d with random weights on images of up to 6×6, 1 … 3 channels and tiers, kernels 1 or 3.

    F, G and D normal, scaled by 10⁻² … 10 each on its own, m in 10⁻² … 10², fixed or learned; normalised or not.

    Args:
        dtype: Of the weights.

    Returns:
        The strategy.
    """
    common = {
        "kernel_size": st.sampled_from([1, 3]),
        "m": _log_uniform(1e-2, 1e2),
        "learn_m": st.booleans(),
        "weight_norm": st.booleans(),
        "scales": st.fixed_dictionaries({name: _log_uniform(1e-2, 10) for name in ("F", "G", "D")}),
        "seed": _seeds(),
        "dtype": st.just(dtype),
    }
    width = st.integers(1, 3)
    sides = st.tuples(st.integers(3, 6), st.integers(3, 6))
    tiers = st.lists(width, min_size=1, max_size=2).map(tuple)
    halved = st.tuples(st.integers(2, 3), st.integers(2, 3)).map(lambda size: (2 * size[0], 2 * size[1]))
    return st.one_of(
        st.builds(_convolution, st.just(Conv2d), width, width, sides, **common),
        st.builds(_convolution, st.just(MultiscaleConv2d), width, tiers, halved, **common),
    )


def inputs(parameterization: Parameterization, *, largest_batch: int = 4) -> st.SearchStrategy[Tensor]:
    """Inputs of a parameterization: normal entries scaled by 10⁻² … 10²; now and then all zero.

    Args:
        parameterization: What takes them; they have the dtype and device of its weights.
        largest_batch: The most samples.

    Returns:
        A strategy of x (batch, in_features).
    """
    like = next(parameterization.parameters())

    def make(batch: int, scale: float, seed: int) -> Tensor:
        return scale * _randn((batch, parameterization.in_features), seed).to(like.device, like.dtype)

    return st.builds(make, st.integers(1, largest_batch), st.just(0.0) | _log_uniform(1e-2, 1e2), _seeds())


def activations() -> st.SearchStrategy[splitting.Activation]:
    """Every elementwise activation of `splitting`, with parameters drawn where it has them."""
    bounds = st.tuples(st.floats(-2, 2), st.floats(-2, 2)).map(sorted)
    return st.one_of(
        st.sampled_from(
            [splitting.ReLU(), splitting.Tanh(), splitting.Sigmoid(), splitting.Softplus(), splitting.Identity()]
        ),
        st.builds(splitting.LeakyReLU, _log_uniform(1e-3, 1)),
        st.builds(splitting.SoftThreshold, st.floats(0, 2)),
        bounds.map(lambda ends: splitting.Box(ends[0], ends[1])),
    )


def solvers(parameterization: Parameterization | None = None) -> st.SearchStrategy[splitting.Solver]:
    """Every method, plain and within Anderson acceleration of memory 1 … 6.

    Steps are "auto"; with a parameterization also any step that is `admissible` for its operator, of unbounded ones
    0.1/L … 10/L. The two forward methods are left out where m > 0 is not provable.

    Args:
        parameterization: What is to be solved, if that is known.

    Returns:
        The strategy.
    """
    kinds: list[type[SteppedSolver]] = [splitting.PeacemanRachford, splitting.DouglasRachford]
    forward: list[type[SteppedSolver]] = [splitting.ForwardBackward, splitting.ForwardBackwardForward]
    if parameterization is None:
        methods = st.sampled_from([kind() for kind in kinds + forward])
    else:
        with torch.no_grad():
            operator = parameterization.operator()
        usable = kinds + forward if operator.strong_monotonicity > 0 else kinds
        methods = st.one_of([st.builds(kind, st.just("auto") | _steps(kind(), operator)) for kind in usable])
    return methods | st.builds(splitting.Anderson, methods, st.integers(1, 6))


def _steps(solver: splitting.Solver, operator: splitting.Operator) -> st.SearchStrategy[float]:
    """Steps well inside of what the solver's theorem admits."""
    low, high = solver.admissible(operator)
    if high == math.inf:
        return _log_uniform(0.1 / operator.lipschitz, 10 / operator.lipschitz)
    return st.floats(low + 0.05 * (high - low), low + 0.95 * (high - low))


def _dense(
    in_features: int,
    features: int,
    *,
    m: float,
    learn_m: bool,
    scales: dict[str, float],
    seed: int,
    dtype: torch.dtype,
) -> Dense:
    with _initial_weights():
        linear = Dense(in_features, features, m, learn_m=learn_m).to(dtype)
    _fill(linear, {"U": 1.0, "b": 1.0, **scales}, seed)
    return linear


def _lipschitz(
    in_features: int,
    features: int,
    out_features: int,
    *,
    gamma: float,
    scales: dict[str, float],
    seed: int,
    dtype: torch.dtype,
) -> LipschitzDense:
    with _initial_weights():
        linear = LipschitzDense(in_features, features, out_features, gamma).to(dtype)
    _fill(linear, {"b": 1.0, "b_o": 1.0, **scales}, seed)
    return linear


def _convolution(
    kind: type[Conv2d] | type[MultiscaleConv2d],
    in_channels: int,
    channels: Any,
    image_size: tuple[int, int],
    *,
    scales: dict[str, float],
    seed: int,
    dtype: torch.dtype,
    **settings: Any,
) -> Conv2d | MultiscaleConv2d:
    with _initial_weights():
        linear = kind(in_channels, channels, image_size, **settings).to(dtype)
    kernels = {name: scales[name[0]] for name, _ in linear.named_parameters() if name.partition(".")[0] in scales}
    _fill(linear, {"U": 1.0, "b": 1.0, **kernels}, seed)
    return linear


@contextmanager
def _initial_weights() -> Iterator[None]:
    """For making a module whose weights are then filled: the caller's random numbers and modes stay out of it."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.device("cpu"):
        yield


def _fill(module: nn.Module, scales: dict[str, float], seed: int) -> None:
    """Normal entries of standard deviation `scales[name]` for every parameter named there."""
    with torch.no_grad():
        for offset, (name, scale) in enumerate(scales.items()):
            parameter = module.get_parameter(name)
            parameter.copy_(scale * _randn(tuple(parameter.shape), 1000 * seed + offset))


def _randn(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**20)


def _log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(math.log(low), math.log(high)).map(math.exp)
