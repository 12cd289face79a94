"""Proved bounds against eigenvalues in several hundred digits: never on the wrong side, and never far off."""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from splitting import verified

U = 2.0**-53
# Enough digits to add 1e-300 to 1e300 without loss.
DIGITS = 700
# Near underflow there is no relative accuracy: bounds on eigenvalues may be this loose; never wrong.
SUBNORMAL = 1e-305


def exact_eigenvalues(matrix: Tensor) -> list[mpmath.mpf]:
    """Eigenvalues, ascending, of exactly this symmetric float64 matrix."""
    with mpmath.workdps(DIGITS):
        return sorted(mpmath.eigsy(mpmath.matrix(matrix.tolist()), eigvals_only=True))


def exact_norm(matrix: Tensor) -> mpmath.mpf:
    """2-norm of exactly this float64 matrix."""
    with mpmath.workdps(DIGITS):
        return max(mpmath.svd_r(mpmath.matrix(matrix.tolist()), compute_uv=False))


def _random(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rank_deficient(rows: int, columns: int, seed: int) -> Tensor:
    """Small integers, so that the rank is one in exact arithmetic, too."""
    return (4 * _random(rows, 1, seed)).round() @ (4 * _random(1, columns, seed + 1)).round()


def _graded(rows: int, columns: int, seed: int) -> Tensor:
    """Row and column sizes together spread over 1e-150 … 1e150."""
    left = 10 ** (75 * _random(rows, 1, seed).clamp(-1, 1))
    right = 10 ** (75 * _random(1, columns, seed + 1).clamp(-1, 1))
    return left * _random(rows, columns, seed + 2) * right


def _ill_conditioned(rows: int, columns: int, seed: int) -> Tensor:
    """Singular values from 1 down to the roundoff, where an eigenvalue routine gets not even the sign right."""
    left, right = (torch.linalg.qr(_random(n, n, seed)).Q for n in (rows, columns))
    values = torch.logspace(0, -17, min(rows, columns), dtype=torch.float64)
    return left[:, : len(values)] * values @ right[: len(values)]


def _scaled(factor: float) -> Callable[[int, int, int], Tensor]:
    return lambda rows, columns, seed: factor * _random(rows, columns, seed)


def _zero(rows: int, columns: int, seed: int) -> Tensor:
    return torch.zeros(rows, columns, dtype=torch.float64)


KINDS: dict[str, Callable[[int, int, int], Tensor]] = {
    "random": _random,
    "rank one": _rank_deficient,
    "ill conditioned": _ill_conditioned,
    "graded": _graded,
    "tiny": _scaled(1e-150),
    "subnormal": _scaled(1e-310),
    "large": _scaled(1e150),
    "smaller than a square may be": _scaled(1e-250),
    "larger than a square may be": _scaled(1e250),
    "zero": _zero,
}

each_kind = pytest.mark.parametrize("kind", KINDS)
shapes = st.integers(1, 4)
seeds = st.integers(0, 2**16)
perturbations = st.sampled_from([0.0, 1e-9, 0.3, 10.0])


def symmetric(kind: str, n: int, seed: int) -> Tensor:
    square = KINDS[kind](n, n, seed)
    if kind == "graded":
        size = square.abs().sqrt().diagonal()
        square = size[:, None] * _random(n, n, seed) * size
    if kind in ("rank one", "ill conditioned"):
        square = square @ square.mT
    return square.triu() + square.triu(1).mT


@each_kind
@settings(max_examples=15)
@given(n=shapes, seed=seeds, relative=perturbations)
def test_smallest_and_largest_eigenvalue(kind: str, n: int, seed: int, relative: float) -> None:
    """bound ≤ λ_min − ε < bound + slack for the perturbation ε, and the mirror image of it for λ_max."""
    matrix = symmetric(kind, n, seed)
    eigenvalues = exact_eigenvalues(matrix)
    size = float(max(abs(eigenvalues[0]), abs(eigenvalues[-1])))
    epsilon = relative * size
    slack = 400 * n**2 * U * (size + epsilon) + SUBNORMAL
    lower = verified.smallest_eigenvalue(matrix, perturbation=epsilon)
    upper = verified.largest_eigenvalue(matrix, perturbation=epsilon)
    with mpmath.workdps(DIGITS):
        assert lower <= eigenvalues[0] - epsilon <= lower + slack
        assert upper - slack <= eigenvalues[-1] + epsilon <= upper


@each_kind
@settings(max_examples=15)
@given(rows=shapes, columns=shapes, seed=seeds, relative=perturbations)
def test_spectral_norm(kind: str, rows: int, columns: int, seed: int, relative: float) -> None:
    """‖M‖₂ + ε ≤ bound ≤ (1 + slack)(‖M‖₂ + ε) for the perturbation ε."""
    matrix = KINDS[kind](rows, columns, seed)
    norm = exact_norm(matrix)
    epsilon = relative * float(norm)
    bound = verified.spectral_norm(matrix, perturbation=epsilon)
    with mpmath.workdps(DIGITS):
        # At every scale; but near the smallest numbers there is no relative accuracy.
        least = 16 * verified.UNDERFLOW
        assert norm + epsilon <= bound <= (norm + epsilon) * (1 + 1000 * U) + least


@each_kind
@settings(max_examples=15)
@given(columns=shapes, seed=seeds)
def test_vector_norm(kind: str, columns: int, seed: int) -> None:
    """‖x‖ ≤ bound ≤ (1 + slack)‖x‖ for each row, whatever its size."""
    matrix = KINDS[kind](3, columns, seed)
    bounds = verified.vector_norm(matrix)
    with mpmath.workdps(DIGITS):
        for row, bound in zip(matrix.tolist(), bounds.tolist(), strict=True):
            norm = mpmath.norm(mpmath.matrix(row))
            assert norm <= bound <= norm * (1 + 100 * U) + 8 * (columns + 1) * verified.UNDERFLOW


def test_sums_that_lose_digits() -> None:
    """A one, and a million numbers too small for their squares to count when they are added to it one by one."""
    small = 5e-9
    column = torch.full((10**6 + 1, 1), small, dtype=torch.float64)
    column[0] = 1
    with mpmath.workdps(DIGITS):
        norm = mpmath.sqrt(1 + 10**6 * mpmath.mpf(small) ** 2)
        assert norm <= verified.spectral_norm(column) <= norm * (1 + 1e-9)
        assert norm <= verified.spectral_norm(column.mT) <= norm * (1 + 1e-9)
        assert norm <= float(verified.vector_norm(column.mT)) <= norm * (1 + 1e-9)


@pytest.mark.parametrize("n", [40, 200])
def test_orders_that_networks_have(n: int) -> None:
    """Against LAPACK for larger n, which is right to about n roundings: both sides."""
    matrix = _random(n, n + 7, n)
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    assert norm * (1 - 1e-13) <= verified.spectral_norm(matrix) <= norm * (1 + 1e-9)
    gram = matrix @ matrix.mT
    gram = (gram + gram.mT) / 2
    smallest = float(torch.linalg.eigvalsh(gram)[0])
    assert -1e-9 * norm**2 <= verified.smallest_eigenvalue(gram) - smallest <= 1e-13 * norm**2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_matrices_prove_nothing(bad: float) -> None:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[1, 1] = bad
    assert verified.smallest_eigenvalue(matrix) == -math.inf
    assert verified.largest_eigenvalue(matrix) == math.inf
    assert verified.spectral_norm(matrix) == math.inf
    assert not math.isfinite(float(verified.vector_norm(matrix)[1]))


def test_empty_matrices() -> None:
    """Bounds over nothing: the infimum of no eigenvalues is ∞, the norm of the zero map 0 plus the perturbation."""
    empty = torch.zeros(0, 0, dtype=torch.float64)
    assert verified.smallest_eigenvalue(empty) == math.inf
    assert verified.largest_eigenvalue(empty) == -math.inf
    assert verified.spectral_norm(torch.zeros(0, 3), perturbation=0.5) == 0.5


@pytest.mark.parametrize("kind", ["rank one", "ill conditioned", "random"])
def test_an_eigenvalue_routine_may_be_wrong(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It only proposes. Whatever it says too much, by the last digits or by a factor, the bound is one: what proves it
    is a factorisation, and the rounding of that is counted too."""
    genuine, exaggeration = torch.linalg.eigvalsh, 0.0

    def exaggerating(matrix: Tensor) -> Tensor:
        values = genuine(matrix)
        return values + exaggeration * values.abs().max()

    monkeypatch.setattr(torch.linalg, "eigvalsh", exaggerating)
    # Finely around the margin that the bound starts from, where factorisations are finished that should not be.
    sizes = [*(U * torch.arange(25, 75, 0.25, dtype=torch.float64)).tolist(), 1e-12, 1e-6, 1.0, 10.0]
    for seed in range(8):
        matrix = symmetric(kind, 4, seed)
        smallest = exact_eigenvalues(matrix)[0]
        for exaggeration in sizes:
            bound = verified.smallest_eigenvalue(matrix)
            with mpmath.workdps(DIGITS):
                assert bound <= smallest, exaggeration


def test_the_precision_of_products_is_that_of_their_formats() -> None:
    """ "medium" products may be of bfloat16, "high" ones of TF32, which has as many digits as float16."""
    formats = {"highest": torch.float32, "high": torch.float16, "medium": torch.bfloat16}
    try:
        for setting, form in formats.items():
            torch.set_float32_matmul_precision(setting)
            assert verified.unit_roundoff(torch.float32) == torch.finfo(form).eps / 2
            assert verified.unit_roundoff(torch.float64) == U
    finally:
        torch.set_float32_matmul_precision("highest")


def test_rounding_factors_are_those_of_higham() -> None:
    """γ_k = ku/(1 − ku) in exact arithmetic, to the last digits; no bound where ku ≥ 1."""
    with mpmath.workdps(60):
        for dtype, u in ((torch.float64, mpmath.mpf(2) ** -53), (torch.float32, mpmath.mpf(2) ** -24)):
            for k in (1, 7, 10**4):
                assert abs(verified.rounding_factor(k, dtype) / (k * u / (1 - k * u)) - 1) < 1e-15
    assert verified.rounding_factor(2**24, torch.float32) == math.inf


@given(st.floats(allow_nan=False, min_value=-1e300, max_value=1e300))
def test_rounding_outwards(value: float) -> None:
    """Strictly outwards, by a few units in the last place."""
    assert verified.round_down(value) < value < verified.round_up(value)
    slack = 2.0**-49 * abs(value) + 5e-324
    assert verified.round_up(value) - value <= slack
    assert value - verified.round_down(value) <= slack


@settings(max_examples=30)
@given(seed=st.integers(0, 999), n=st.integers(1, 8), perturbation=st.sampled_from([0.0, 1e-6, 1e-3]))
def test_a_minorant_lies_below_every_matrix_near(seed: int, n: int, perturbation: float) -> None:
    """S − RRᵀ − δI ⪰ 0 for S at the edge of what is allowed, in exact arithmetic; and close below where it can be."""
    half = _random(n, n, seed)
    matrix = half @ half.mT + 0.1 * torch.eye(n, dtype=torch.float64)
    found = verified.minorant(matrix, perturbation=perturbation)
    assert found is not None
    factor, floor = found
    assert floor > 0
    with mpmath.workdps(DIGITS):
        R = mpmath.matrix(factor.tolist())
        rest = mpmath.matrix(matrix.tolist()) - R * R.T - (mpmath.mpf(perturbation) + floor) * mpmath.eye(n)
        values = mpmath.eigsy(rest, eigvals_only=True)
    assert min(values) >= 0
    assert max(values) <= 1e-8 * float(matrix.trace()) + perturbation


def test_what_has_no_minorant() -> None:
    indefinite = torch.diag(torch.tensor([1.0, -1e-3], dtype=torch.float64))
    assert verified.minorant(indefinite) is None
    eye = torch.eye(2, dtype=torch.float64)
    assert verified.minorant(eye, perturbation=1.1) is None
    assert verified.minorant(1e-200 * eye) is None
    assert verified.minorant(math.nan * eye) is None
