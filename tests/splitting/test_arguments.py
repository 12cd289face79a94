"""Misuse gets one line that names the argument, in an exception of the package's own family."""

import math
from collections.abc import Callable

import pytest
import torch

import splitting
from splitting import InvalidArgument, InvalidType
from tests.registry import monotone

A = splitting.DenseOperator(monotone(3))
SKEW = splitting.DenseOperator(monotone(2, m=0.0, gain=0.0))
C = torch.ones(2, 3, dtype=torch.float64)
PROBLEM = splitting.Inclusion(A, C, splitting.ReLU())
UNPROVED = splitting.Inclusion(SKEW, torch.ones(2, 2, dtype=torch.float64), splitting.ReLU())
NOT_FINITE = splitting.Inclusion(splitting.DenseOperator(monotone(3) * math.nan), C, splitting.ReLU())

Call = Callable[[], object]


def kernel(out: int = 2, inner: int = 2, height: int = 3, width: int = 3) -> torch.Tensor:
    return torch.ones(out, inner, height, width)


def convolution(K: object = kernel(), size: object = (4, 5), metric: object = None) -> Call:
    return lambda: splitting.ConvolutionOperator(K, size, metric=metric)


def multiscale(
    kernels: object = (kernel(), kernel(3, 3)),
    F: object = (kernel(3, 3),),
    D: object = (kernel(3, 2),),
    sizes: object = ((6, 8), (3, 4)),
) -> Call:
    return lambda: splitting.MultiscaleOperator(kernels, F, D, sizes)


def solve(**options: object) -> Call:
    return lambda: splitting.solve(PROBLEM, **options)


def equilibrium(**options: object) -> Call:
    return lambda: splitting.equilibrium(PROBLEM, **options)


def inclusion(operator: object = A, source: object = C, prox: object = splitting.ReLU()) -> Call:
    return lambda: splitting.Inclusion(operator, source, prox)


# (call, exception, argument named, another part of the message)
MISUSE: list[tuple[Call, type[Exception], str, str]] = [
    # operators
    (lambda: splitting.DenseOperator([[1.0]]), InvalidType, "matrix", "list"),
    (lambda: splitting.DenseOperator(torch.eye(2, dtype=torch.int64)), InvalidType, "matrix", "int64"),
    (lambda: splitting.DenseOperator(torch.eye(2, dtype=torch.float16)), InvalidType, "matrix", "float16"),
    (lambda: splitting.DenseOperator(torch.ones(2, 3)), InvalidArgument, "matrix", "(2, 3)"),
    (lambda: splitting.DenseOperator(torch.ones(4)), InvalidArgument, "matrix", "(4,)"),
    (lambda: splitting.DenseOperator(torch.eye(2), metric=torch.ones(3)), InvalidArgument, "metric", "(3,)"),
    # convolutions
    (convolution([[1.0]]), InvalidType, "kernel", "[[1.0]]"),
    (convolution(torch.ones(2, 2)), InvalidType, "kernel", "(out, in, k, k)"),
    (convolution(kernel().long()), InvalidType, "kernel", "int64"),
    (convolution(kernel().half()), InvalidType, "kernel", "float16"),
    (convolution(kernel(height=2, width=2)), InvalidArgument, "kernel", "(2, 2)"),
    (convolution(kernel(width=4)), InvalidArgument, "kernel", "(3, 4)"),
    (convolution(kernel(2, 3)), InvalidArgument, "kernel", "(2, 3, 3, 3)"),
    (convolution(kernel(0, 0)), InvalidArgument, "kernel", "(0, 0, 3, 3)"),
    (convolution(size=(4, 0)), InvalidArgument, "size", "(4, 0)"),
    *[(convolution(size=size), InvalidType, "size", repr(size)) for size in (4, (4,), (4, 5, 6), (4.5, 5), (True, 5))],
    (convolution(metric=torch.ones(3)), InvalidArgument, "metric", "(3,)"),
    (convolution(metric=torch.ones(2, 4, 5)), InvalidArgument, "metric", "(2, 4, 5)"),
    (multiscale(D=()), InvalidArgument, "D", "2, 2, 1, 0"),
    (multiscale(F=()), InvalidArgument, "F", "2, 2, 0, 1"),
    (multiscale(sizes=((6, 8),)), InvalidArgument, "sizes", "2, 1, 1, 1"),
    (multiscale((), (), (), ()), InvalidArgument, "kernels", "0, 0, 0, 0"),
    (multiscale(kernels=(kernel(), kernel(3, 2))), InvalidArgument, "kernels", "(3, 2, 3, 3)"),
    (multiscale(kernels=(kernel().double(), kernel(3, 3))), InvalidType, "kernels", "float64"),
    (multiscale(F=(kernel(3, 2),)), InvalidArgument, "F", "3 channels"),
    (multiscale(D=(kernel(2, 2),)), InvalidArgument, "D", "2 channels to the 3"),
    (multiscale(D=(kernel(3, 2).int(),)), InvalidType, "D", "int32"),
    (multiscale(D=(kernel(3, 2).double(),)), InvalidType, "D", "float64"),
    (multiscale(sizes=((6, 8), (3, 4.0))), InvalidType, "size", "(3, 4.0)"),
    (multiscale(sizes=((5, 8), (3, 4))), InvalidArgument, "sizes", "(5, 8)"),
    (multiscale(sizes=((6, 8), (3, 3))), InvalidArgument, "sizes", "(3, 3)"),
    # activations
    (lambda: splitting.LeakyReLU(0.0), InvalidArgument, "slope", "ReLU()"),
    (lambda: splitting.LeakyReLU(1.5), InvalidArgument, "slope", "1.5"),
    (lambda: splitting.LeakyReLU(math.nan), InvalidArgument, "slope", "nan"),
    (lambda: splitting.SoftThreshold(-1.0), InvalidArgument, "threshold", "-1.0"),
    (lambda: splitting.SoftThreshold(math.inf), InvalidArgument, "threshold", "inf"),
    (lambda: splitting.Box(1.0, 0.0), InvalidArgument, "low", "low=1.0, high=0.0"),
    (lambda: splitting.Box(math.nan, 0.0), InvalidArgument, "low", "nan"),
    (lambda: splitting.Scale(0.5), InvalidType, "d", "float"),
    (lambda: splitting.Masked(torch.tanh, torch.ones(3) > 0), InvalidType, "inner", "builtin"),
    (lambda: splitting.Masked(splitting.Tanh(), torch.ones(3)), InvalidType, "mask", "mask.bool()"),
    # inclusions and states
    (inclusion(operator=monotone(3)), InvalidType, "operator", "Tensor"),
    (inclusion(prox=torch.relu), InvalidType, "prox", "splitting.ReLU()"),
    (inclusion(source=[1.0]), InvalidType, "source", "list"),
    (inclusion(source=torch.ones(3).double()), InvalidArgument, "source", "(batch, 3)"),
    (inclusion(source=torch.ones(2, 4).double()), InvalidArgument, "source", "(2, 4)"),
    (inclusion(source=torch.ones(2, 1, 3).double()), InvalidArgument, "source", "(2, 1, 3)"),
    (inclusion(source=C.float()), InvalidType, "source", "float32"),
    (inclusion(source=C.to("meta")), InvalidType, "source", "meta"),
    (lambda: splitting.error_bound(PROBLEM, C[:, :2]), InvalidArgument, "z", "(2, 2)"),
    (lambda: splitting.error_bound(PROBLEM, C.float()), InvalidType, "z", "float32"),
    # solvers
    (lambda: splitting.PeacemanRachford("fast"), InvalidType, "step", "'fast'"),
    (lambda: splitting.PeacemanRachford(True), InvalidType, "step", "True"),
    (lambda: splitting.ForwardBackward(torch.tensor(0.1)), InvalidType, "step", "tensor(0.1000)"),
    (lambda: splitting.DouglasRachford(0.0), InvalidArgument, "step", "> 0"),
    (lambda: splitting.DouglasRachford(-1), InvalidArgument, "step", "-1"),
    (lambda: splitting.PeacemanRachford(math.inf), InvalidArgument, "step", "inf"),
    (lambda: splitting.PeacemanRachford(math.nan), InvalidArgument, "step", "nan"),
    (lambda: splitting.Anderson("PeacemanRachford"), InvalidType, "inner", "PeacemanRachford()"),
    (lambda: splitting.Anderson(splitting.Anderson()), InvalidType, "inner", "without memory"),
    (lambda: splitting.Anderson(memory=0), InvalidArgument, "memory", "0"),
    (lambda: splitting.Anderson(memory=2.5), InvalidArgument, "memory", "2.5"),
    (lambda: splitting.Anderson(memory=True), InvalidArgument, "memory", "True"),
    # steps outside the theorem
    (solve(solver=splitting.ForwardBackward(10.0)), InvalidArgument, "step", "2m/L²"),
    (solve(solver=splitting.ForwardBackwardForward(10.0)), InvalidArgument, "step", "1/L"),
    (solve(solver=splitting.Anderson(splitting.ForwardBackward(10.0))), InvalidArgument, "step", "2m/L²"),
    (lambda: splitting.solve(UNPROVED, splitting.ForwardBackward()), InvalidArgument, "operator", "strongly monotone"),
    (lambda: splitting.solve(UNPROVED, splitting.ForwardBackwardForward()), InvalidArgument, "operator", "≥ "),
    # weights that are not numbers
    *[
        (lambda solver=solver: splitting.solve(NOT_FINITE, solver), InvalidArgument, "operator", detail)
        for solver, detail in ((splitting.PeacemanRachford(), "NaN or inf"), (splitting.ForwardBackward(), "-inf"))
    ],
    # solving
    (lambda: splitting.solve(A), InvalidType, "problem", "DenseOperator"),
    (solve(solver="peaceman"), InvalidType, "solver", "'peaceman'"),
    (solve(solver=splitting.PeacemanRachford), InvalidType, "solver", "PeacemanRachford()"),
    *[(solve(tol=tol), InvalidArgument, "tol", repr(tol)) for tol in (0, -1e-3, math.inf, math.nan, "1e-3", True)],
    *[(solve(max_steps=n), InvalidArgument, "max_steps", repr(n)) for n in (0, -1, 1.5, True, None)],
    *[(solve(on_failure=word), InvalidArgument, "on_failure", repr(word)) for word in ("ignore", None)],
    (solve(initial=[0.0]), InvalidType, "initial", "list"),
    (solve(initial=C[:, :2]), InvalidArgument, "initial", "(2, 2)"),
    (solve(initial=C[:1]), InvalidArgument, "initial", "1 samples"),
    (solve(initial=C.float()), InvalidType, "initial", "float32"),
    # differentiating
    (lambda: splitting.equilibrium(A), InvalidType, "problem", "DenseOperator"),
    (equilibrium(solver="peaceman"), InvalidType, "solver", "'peaceman'"),
    (equilibrium(tol=0), InvalidArgument, "tol", "0"),
    (equilibrium(backward_tol=0), InvalidArgument, "backward_tol", "0"),
    (equilibrium(max_steps=0), InvalidArgument, "max_steps", "0"),
    (equilibrium(on_failure="ignore"), InvalidArgument, "on_failure", "'ignore'"),
    (equilibrium(initial=C[:1]), InvalidArgument, "initial", "1 samples"),
]


@pytest.mark.parametrize(
    ("call", "exception", "argument", "detail"), MISUSE, ids=[f"{a}: {d}" for _, _, a, d in MISUSE]
)
def test_misuse(call: Call, exception: type[Exception], argument: str, detail: str) -> None:
    with pytest.raises(exception) as caught:
        call()
    text = str(caught.value)
    assert f"`{argument}`" in text
    assert detail in text
    assert "\n" not in text


def test_the_family() -> None:
    """Everything raised on purpose can be caught at once, or as the built-in error it is."""
    family = {InvalidArgument: ValueError, InvalidType: TypeError}
    family |= dict.fromkeys((splitting.NotConverged, splitting.ResolventError), RuntimeError)
    for exception, builtin in family.items():
        assert issubclass(exception, splitting.SplittingError)
        assert issubclass(exception, builtin)
    assert issubclass(splitting.ConvergenceWarning, UserWarning)
