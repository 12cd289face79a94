"""Convolutions and tiers of them against plain spatial convolutions, by both kinds of transform."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import splitting
from mondeq.parameterizations.kernels import gram, gram_skew, proved_monotonicity, transposed
from splitting.operators import layout, symbols, torus
from splitting.operators.torus import Torus
from tests.registry import DTYPES


def correlate(kernel: Tensor, images: Tensor, stride: int = 1) -> Tensor:
    """Circular correlation of images (batch, channels, height, width), by the library's spatial convolution."""
    vertical, horizontal = kernel.shape[2] // 2, kernel.shape[3] // 2
    padded = functional.pad(images, (horizontal, horizontal, vertical, vertical), mode="circular")
    return functional.conv2d(padded, kernel, stride=stride)


def circular(kernel: Tensor, images: Tensor) -> Tensor:
    """Circular correlation with a kernel of any size: a sum of shifted images."""
    total = images.new_zeros(len(images), len(kernel), *images.shape[2:])
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            moved = images.roll((kernel.shape[2] // 2 - i, kernel.shape[3] // 2 - j), (2, 3))
            total = total + torch.einsum("oi,bihw->bohw", kernel[:, :, i, j], moved)
    return total


def pairing(tensors: Sequence[Tensor], q: Sequence[Tensor], z: Sequence[Tensor]) -> Tensor:
    """⟨q, A z⟩ summed over the batch, for the tiers of q and z as images: the definition of A, term by term."""
    count = len(q)
    K, F, D = tensors[:count], tensors[count : 2 * count - 1], tensors[2 * count - 1 :]
    total = K[0].new_zeros(())
    for kernel, x, y in zip(K, q, z, strict=True):
        total = total + (x * circular(kernel, y)).sum()
    for i, d in enumerate(D):
        down, above = correlate(d, z[i], stride=2), correlate(F[i], q[i + 1])
        total = total + (correlate(d, q[i], stride=2) * down).sum()
        # The rest of the successor's torus is zero.
        total = total + 2 * (above[:, :, : down.shape[2], : down.shape[3]] * down).sum()
    return total


M = 0.25  # of every example


@dataclass(frozen=True)
class Example:
    """Random kernels of mI + FᵀF + G − Gᵀ, F and D. rows: channels that F maps to, the state's if None."""

    channels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    sides: tuple[int, int] = (3, 3)
    rows: int | None = None
    known: bool = False  # whether m of several tiers is given by construction, or left to be proved

    def operator(self, dtype: torch.dtype = torch.float64) -> splitting.MultiscaleOperator:
        random = torch.Generator().manual_seed(5)

        def kernel(out: int, inner: int) -> Tensor:
            scale = 0.7 / math.sqrt(inner * math.prod(self.sides))
            return scale * torch.randn(out, inner, *self.sides, generator=random)

        F = [kernel(self.rows or c, c).to(dtype) for c in self.channels]
        G = [kernel(c, c).to(dtype) for c in self.channels]
        D = [kernel(b, a).to(dtype) for a, b in zip(self.channels[:-1], self.channels[1:], strict=True)]
        m = torch.tensor(M, dtype=dtype)
        K = [gram_skew(m, f, g) for f, g in zip(F, G, strict=True)]
        if D:
            known = min(proved_monotonicity(m, f, g) for f, g in zip(F, G, strict=True)) if self.known else None
            return splitting.MultiscaleOperator(K, F[1:], D, self.sizes, strong_monotonicity=known)
        return splitting.ConvolutionOperator(K[0], self.sizes[0])

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """A of kernels composed in `dtype`, on the tiers as images, flattened one after the other, column by column."""
        shapes = [(c, *size) for c, size in zip(self.channels, self.sizes, strict=True)]
        entries = [math.prod(shape) for shape in shapes]
        columns = torch.eye(sum(entries), dtype=torch.float64).split(entries, dim=1)
        z = [part.reshape(-1, *shape) for part, shape in zip(columns, shapes, strict=True)]
        q = [torch.zeros_like(part, requires_grad=True) for part in z]
        kernels = [t.double() for t in self.operator(dtype).tensors]
        return flat(torch.autograd.grad(pairing(kernels, q, z), q)).mT


CONVOLUTIONS: dict[str, Example] = {
    "odd sides": Example((2,), ((5, 7),)),
    "even sides": Example((2,), ((4, 6),)),
    "one side much longer": Example((2,), ((3, 10),)),
    "one channel": Example((1,), ((5, 4),)),
    "1×1 kernel": Example((3,), ((4, 3),), (1, 1)),
    "5×5 kernel": Example((2,), ((7, 6),), (5, 5)),
    "rectangular kernel": Example((2,), ((4, 5),), (1, 5)),
    "kernel as large as the torus": Example((2,), ((5, 5),), (5, 5)),
    "one pixel": Example((3,), ((1, 1),), (1, 1)),
    "F to fewer channels": Example((4,), ((3, 4),), rows=1),
    "F to more channels": Example((2,), ((3, 4),), rows=5),
    "too wide for products": Example((1,), ((3, 66),)),
}
MULTISCALES: dict[str, Example] = {
    "two tiers": Example((2, 3), ((6, 8), (3, 4))),
    "larger successor": Example((2, 1), ((4, 6), (5, 4))),
    "three tiers": Example((1, 2, 3), ((8, 12), (4, 6), (3, 3))),
    "three tiers, larger successors": Example((2, 1, 2), ((4, 8), (4, 6), (3, 5))),
    "tiers of 5×5 kernels": Example((1, 2), ((6, 10), (5, 5)), (5, 5)),
    "tiers of 1×1 kernels": Example((2, 2, 3), ((4, 4), (2, 2), (1, 1)), (1, 1)),
}
EXAMPLES = CONVOLUTIONS | MULTISCALES

everywhere = pytest.mark.parametrize("name", EXAMPLES)
all_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
toruses = pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 2), (3, 5), (4, 7), (6, 6), (9, 12)], ids=str)


LIMITS = {"one product per side": (64, 256), "two products per side": (1, 256), "fast transform": (64, 0)}


@pytest.fixture(params=LIMITS)
def _transform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What sides of any size are transformed by."""

    def forget() -> None:
        for constant in (torus._weights, torus._tap_phases, torus._forward_stages, torus._inverse_stages):
            constant.cache_clear()

    side, factor = LIMITS[request.param]
    monkeypatch.setattr(torus, "_LARGEST_SIDE", side)
    monkeypatch.setattr(torus, "_LARGEST_FACTOR", factor)
    forget()
    yield
    forget()


all_transforms = pytest.mark.usefixtures("_transform")


def flat(tiers: Sequence[Tensor]) -> Tensor:
    return torch.cat([image.flatten(1) for image in tiers], dim=1)


def images(operator: splitting.MultiscaleOperator, z: Tensor) -> list[Tensor]:
    """The tiers of z; a state of a convolution is an image already."""
    return [z] if isinstance(operator, splitting.ConvolutionOperator) else operator.tiers(z)


def states(operator: splitting.Operator, batch: int = 4) -> Tensor:
    return torch.randn(batch, *operator.state_shape).to(operator.dtype)


def check(actual: Tensor, expected: Tensor, *, condition: float = 1.0) -> None:
    """Equal up to rounding of the dtype of `actual`, relative to the size of the samples, times `condition`."""
    scale = torch.finfo(actual.dtype).eps * float(expected.norm(dim=1).max())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=20 * condition * scale)


# -- the map ---------------------------------------------------------------------------------------------------------


@everywhere
@all_dtypes
@all_transforms
def test_apply_and_adjoint_are_spatial_convolutions(name: str, dtype: torch.dtype) -> None:
    """Entry by entry, and within the proved rounding."""
    A, M = EXAMPLES[name].operator(dtype), EXAMPLES[name].matrix(dtype)
    z = states(A)
    for operator, matrix in ((A, M), (A.adjoint, M.mT)):
        found, exact = flat(images(A, operator.apply(z))), flat(images(A, z)).double() @ matrix.mT
        check(found, exact, condition=4)
        assert ((found.double() - exact).norm(dim=1) <= A.rounding(z)).all()


@everywhere
@all_transforms
def test_pairing_gradient_is_that_of_spatial_convolutions(name: str) -> None:
    """∂⟨q, A z⟩/∂t for m and every kernel, also through the adjoint."""
    A = EXAMPLES[name].operator()
    q, z = states(A), states(A)
    leaves = [t.clone().requires_grad_() for t in A.tensors]
    expected = torch.autograd.grad(pairing(leaves, images(A, q), images(A, z)), leaves)
    for found in (A.pairing_gradient(q, z), A.adjoint.pairing_gradient(z, q)):
        for gradient, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["one channel", "larger successor"])
def test_pairing_gradient_is_differentiable(name: str) -> None:
    """In q, z, m and every kernel: what second derivatives of a solution are made of."""
    A = EXAMPLES[name].operator()
    inputs = tuple(t.clone().requires_grad_() for t in (states(A, 2), states(A, 2), *A.tensors))
    assert torch.autograd.gradcheck(lambda q, z, *t: A.replace(*t).pairing_gradient(q, z), inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["one channel", "larger successor"])
def test_gradcheck_of_apply(name: str) -> None:
    """In z, m and every kernel, by reverse and forward mode, of A and its adjoint."""
    A = EXAMPLES[name].operator()
    inputs = tuple(t.clone().requires_grad_() for t in (states(A, 2), *A.tensors))
    for call in (lambda z, *t: A.replace(*t).apply(z), lambda z, *t: A.replace(*t).adjoint.apply(z)):
        assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("name", ["odd sides", "larger successor"])
def test_transforms_of_apply(name: str) -> None:
    """Mapped over a further dimension it is one on a larger batch; its derivative in z is itself; norms map, too."""
    A = EXAMPLES[name].operator()
    z = torch.randn(3, 4, *A.state_shape, dtype=torch.float64)
    for function in (A.apply, A.adjoint.apply, A.norm):
        close(torch.func.vmap(function)(z).flatten(0, 1), function(z.flatten(0, 1)))
    value, tangent = torch.func.jvp(A.apply, (z[0],), (z[1],))
    close(value, A.apply(z[0]))
    close(tangent, A.apply(z[1]))


@everywhere
def test_tiers_and_state_are_inverse(name: str) -> None:
    """They move entries and change none."""
    example = EXAMPLES[name]
    A = example.operator()
    z = states(A)
    tiers = A.tiers(z)
    shapes = [(len(z), c, *size) for c, size in zip(example.channels, example.sizes, strict=True)]
    assert [tuple(tier.shape) for tier in tiers] == shapes
    assert torch.equal(A.state(tiers), z)
    assert torch.equal(flat(tiers).sort(1).values, z.flatten(1).sort(1).values)


@pytest.mark.parametrize("name", ["two tiers", "larger successor"])
def test_upper_half_is_zero(name: str) -> None:
    """What is below does not act on what is above, to the last bit."""
    A = EXAMPLES[name].operator()
    top, below = A.tiers(states(A))
    image = A.tiers(A.apply(A.state([torch.zeros_like(top), below])))
    assert (image[0] == 0).all()
    assert (image[1] != 0).all()


@pytest.mark.parametrize("name", CONVOLUTIONS)
@all_dtypes
def test_one_tier_is_a_convolution(name: str, dtype: torch.dtype) -> None:
    """A single tier of the one operator is the other, on states that lie differently."""
    A = EXAMPLES[name].operator(dtype)
    B = splitting.MultiscaleOperator([A.kernel], [], [], EXAMPLES[name].sizes)
    z = states(A)
    v = B.state([z])
    alpha = A.typical_step
    check(flat(B.tiers(B.apply(v))), A.apply(z).flatten(1).double())
    check(flat(B.tiers(B.adjoint.apply(v))), A.adjoint.apply(z).flatten(1).double())
    check(flat(B.tiers(B.resolvent(alpha)(v))), A.resolvent(alpha)(z).flatten(1).double())
    constants = [(o.strong_monotonicity, o.lipschitz, o.frobenius, o.norm_bound) for o in (A, B)]
    assert constants[0] == constants[1]


def test_memory_order_of_a_state_does_not_matter() -> None:
    """Channels last, expanded and strided states give the bits of their contiguous copies."""
    A = EXAMPLES["odd sides"].operator()
    z = torch.randn(4, *A.state_shape, dtype=torch.float64)
    V = A.resolvent(0.3)
    for loose in (z.to(memory_format=torch.channels_last), z[::2], z[:1].expand(3, -1, -1, -1), z.flip(3).mT.mT):
        tight = loose.contiguous()
        for operation in (A.apply, A.adjoint.apply, V, V.adjoint, A.norm):
            assert torch.equal(operation(loose), operation(tight))


@pytest.mark.parametrize("operator", [Example((5,), ((30, 31),)), Example((4, 3), ((32, 32), (16, 18)))], ids=str)
@all_dtypes
def test_norm_of_states_of_thousands_of_entries(operator: Example, dtype: torch.dtype) -> None:
    A = operator.operator(dtype)
    z = states(A)
    expected = z.double().flatten(1).norm(dim=1)
    torch.testing.assert_close(A.norm(z).double(), expected, rtol=50 * torch.finfo(dtype).eps, atol=0)


# -- constants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVOLUTIONS)
@all_dtypes
def test_constants_of_a_convolution_are_tight(name: str, dtype: torch.dtype) -> None:
    """m and L are on the right side of the extreme eigenvalue and singular value, and close to them."""
    A, M = EXAMPLES[name].operator(dtype), EXAMPLES[name].matrix(dtype)
    smallest, norms = float(torch.linalg.eigvalsh((M + M.mT) / 2)[0]), torch.linalg.svdvals(M)
    size = float(norms[0])
    assert smallest - 1e-11 * size <= A.strong_monotonicity <= smallest + 1e-14 * size
    assert size * (1 - 1e-14) <= A.lipschitz <= size * (1 + 1e-11)
    assert A.frobenius == pytest.approx(float(norms.norm()), rel=10 * torch.finfo(dtype).eps)
    assert size * (1 - 10 * torch.finfo(dtype).eps) <= A.norm_bound


@pytest.mark.parametrize("name", MULTISCALES)
@all_dtypes
def test_constants_of_several_tiers(name: str, dtype: torch.dtype) -> None:
    """m is a lower bound, the same but for rounding if it is proved and if it is known by construction. L is an upper
    one, at most three times too large: it adds the norms of blocks."""
    A, M = EXAMPLES[name].operator(dtype), EXAMPLES[name].matrix(dtype)
    known = replace(EXAMPLES[name], known=True).operator(dtype)
    smallest, norms = float(torch.linalg.eigvalsh((M + M.mT) / 2)[0]), torch.linalg.svdvals(M)
    size, total = float(norms[0]), float(norms.norm())
    rounding = 10 * torch.finfo(dtype).eps
    for operator in (A, known):
        assert operator.strong_monotonicity <= smallest + 1e-14 * size
        slack = 1e-11 if dtype == torch.float64 else 1e-4
        assert operator.strong_monotonicity == pytest.approx(0.25, abs=slack * size)
    assert size * (1 - 1e-14) <= A.lipschitz <= 3 * size
    assert total * (1 - rounding) <= A.frobenius <= 3 * total
    assert size * (1 - rounding) <= A.norm_bound


@pytest.mark.parametrize("sign", [1, -1])
def test_constants_on_a_torus_of_many_frequencies(sign: int) -> None:
    """F = (±¼, 0.6, ±¼) along rows has the symbol 0.6 ± ½cos ω: its extremes are at the first and the last frequency,
    on the one torus or, above a last tier, on four interleaved ones."""
    F = torch.tensor([0.25 * sign, 0.6, 0.25 * sign], dtype=torch.float64).reshape(1, 1, 1, 3)
    K, m = gram_skew(torch.tensor(0.3, dtype=torch.float64), F, torch.zeros_like(F)), 0.3
    A = splitting.ConvolutionOperator(K, (18, 32))
    assert A.lipschitz == pytest.approx(0.3 + 1.1**2, rel=1e-10)
    assert A.strong_monotonicity == pytest.approx(0.3 + 0.1**2, rel=1e-10)
    tap = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    tiers = splitting.MultiscaleOperator([K, m * tap], [0 * tap], [0 * tap], ((36, 64), (18, 32)))
    assert tiers.lipschitz == pytest.approx(0.3 + 1.1**2, rel=1e-10)


@pytest.mark.parametrize("coupled", [0, 1])
@pytest.mark.parametrize(("f", "d"), [(1.0, 1.0), (0.3, 3.0)])
def test_bounds_of_tiers_that_are_coupled_by_single_taps(coupled: int, f: float, d: float) -> None:
    """F = f and D = d between two of three tiers make blocks [[m + d², 0], [2fd, m + f²]], all else is m: L and what is
    cheaper are no less than the norm of that, and L no more than the larger diagonal plus 2fd."""
    m = 0.01
    tap, none = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    F = [f * tap if i == coupled else none for i in range(2)]
    D = [d * tap if i == coupled else none for i in range(2)]
    kernels = [m * tap + same**2 for same in (none, *F)]
    A = splitting.MultiscaleOperator(kernels, F, D, ((8, 8), (4, 4), (2, 2)))
    assert A.strong_monotonicity == pytest.approx(m, rel=1e-12)
    block = torch.tensor([[m + d**2, 0], [2 * f * d, m + f**2]], dtype=torch.float64)
    exact = float(torch.linalg.matrix_norm(block, 2))
    assert exact * (1 - 1e-12) <= A.lipschitz <= (m + max(f, d) ** 2 + 2 * f * d) * (1 + 1e-10)
    assert exact * (1 - 1e-12) <= A.norm_bound
    for shift in (0.1, 1.0, 3.0):
        exact = float(torch.linalg.matrix_norm(block - shift * torch.eye(2), 2))
        assert exact * (1 - 1e-12) <= A.distance_bound(shift)


def test_m_is_all_there_is_where_channels_are_lost() -> None:
    """With fewer rows than columns FᵀF is singular: m + σ_min(F)² is m."""
    assert EXAMPLES["F to fewer channels"].operator().strong_monotonicity == pytest.approx(0.25, rel=1e-12)
    assert EXAMPLES["F to more channels"].operator().strong_monotonicity > 0.26


@pytest.mark.parametrize("channels", [1, 7])
@all_dtypes
def test_cayley_norm(channels: int, dtype: torch.dtype) -> None:
    """‖(I − αA)(I + αA)⁻¹‖ from below, to two per cent."""
    example = Example((channels,), ((4, 5),))
    A, M = example.operator(dtype), example.matrix(dtype)
    identity = torch.eye(len(M), dtype=torch.float64)
    for alpha in (0.2 * A.typical_step, A.typical_step, 5 * A.typical_step):
        exact = float(torch.linalg.matrix_norm((identity - alpha * M) @ torch.linalg.inv(identity + alpha * M), 2))
        rounding = 100 * torch.finfo(dtype).eps
        assert 0.98 * exact - rounding <= A.cayley_norm(alpha) <= exact + rounding
        torch.testing.assert_close(splitting.contraction_factor(A.adjoint, alpha), exact, rtol=0, atol=rounding)


@all_dtypes
def test_cayley_norm_where_many_singular_values_are_near_one(dtype: torch.dtype) -> None:
    """The rate 1 − ρ of an ill-conditioned operator comes out to a fifth near the best α, and so does that."""
    weight = 0.3 * torch.randn(12, 12, 5, 5, dtype=torch.float64) + torch.randn(12, 1, 1, 1, dtype=torch.float64)
    kernel = gram_skew(torch.tensor(0.1, dtype=torch.float64), weight, torch.zeros_like(weight))
    # A phase moves the kernel's centre; of a symmetric A the singular values are the eigenvalues all the same.
    values = torch.linalg.svdvals(torch.fft.fft2(kernel, s=(12, 12)).permute(2, 3, 0, 1))

    def rate(alpha: float) -> float:
        return 1 - float(((1 - alpha * values) / (1 + alpha * values)).abs().amax())

    A = splitting.ConvolutionOperator(kernel.to(dtype), (12, 12), strong_monotonicity=0.1)
    steps = [A.typical_step * 2.0**power for power in range(-6, 10)]
    best = max(map(rate, steps))
    assert best < 0.05
    for alpha in (step for step in steps if rate(step) > 0.2 * best):
        assert rate(alpha) - 1e-5 <= 1 - A.cayley_norm(alpha) <= 1.2 * rate(alpha) + 1e-5
    assert rate(splitting.best_step(A)) >= 0.7 * best


@pytest.mark.parametrize("name", ["one tier, large", "two tiers, large"])
def test_tuned_step_of_large_operators(name: str) -> None:
    """Large operators are tuned by a sample of frequencies: about as few steps as with the best of a grid."""
    example = {
        "one tier, large": Example((12,), ((14, 14),)),
        "two tiers, large": Example((8, 12), ((18, 18), (10, 10))),
    }[name]
    A = example.operator()
    assert A.state_shape.numel() > 256
    problem = splitting.Inclusion(A, states(A), splitting.ReLU())

    def steps(step: float) -> float:
        return float(splitting.solve(problem, splitting.PeacemanRachford(step), tol=1e-6).steps.double().mean())

    best = min(steps(A.typical_step * 2.0**power) for power in range(-4, 4))
    assert steps(splitting.best_step(A)) <= 1.5 * best


@pytest.mark.parametrize("name", ["odd sides", "larger successor"])
def test_constants_need_no_graph(name: str) -> None:
    """Where m and the kernels are being learned, nothing warns of a gradient lost on the way."""
    A = EXAMPLES[name].operator(torch.float32)
    leaves = [t.clone().requires_grad_() for t in A.tensors]
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            B = A.replace(*leaves)
            assert B.strong_monotonicity == A.strong_monotonicity
            assert B.lipschitz == A.lipschitz == B.double().lipschitz
            assert (B.frobenius, B.norm_bound, B.cayley_norm(0.3)) == (A.frobenius, A.norm_bound, A.cayley_norm(0.3))
            assert torch.equal(B.rounding(states(A) * 0 + 1), A.rounding(states(A) * 0 + 1))
    finally:
        torch.set_warn_always(always)


# -- the resolvent ---------------------------------------------------------------------------------------------------

ALPHAS = (1e-3, 0.3, 4.0)


@everywhere
@all_dtypes
@all_transforms
def test_resolvent_is_the_inverse(name: str, dtype: torch.dtype) -> None:
    """V and its adjoint against the inverse of the explicit matrix."""
    A, M = EXAMPLES[name].operator(dtype), EXAMPLES[name].matrix(dtype)
    v = states(A)
    exact = flat(images(A, v)).double()
    for alpha in ALPHAS:
        inverse = torch.linalg.inv(torch.eye(len(M), dtype=torch.float64) + alpha * M)
        V, condition = A.resolvent(alpha), 1 + alpha * A.lipschitz
        for resolvent, matrix in ((V, inverse), (V.adjoint, inverse.mT), (A.adjoint.resolvent(alpha), inverse.mT)):
            check(flat(images(A, resolvent(v))), exact @ matrix.mT, condition=condition)


@everywhere
@all_dtypes
def test_resolvent_undoes_the_forward_step(name: str, dtype: torch.dtype) -> None:
    """V (z + αA z) = z, for the adjoint as well."""
    A = EXAMPLES[name].operator(dtype)
    z = states(A)
    for alpha in ALPHAS:
        for operator in (A, A.adjoint):
            back = operator.resolvent(alpha)(z + alpha * operator.apply(z))
            check(back.flatten(1), z.flatten(1).double(), condition=1 + alpha * A.lipschitz)


@pytest.mark.parametrize("name", ["even sides", "three tiers"])
@pytest.mark.parametrize("tier", [0, -1], ids=["first tier", "last tier"])
@pytest.mark.parametrize("frequency", [0, -1], ids=["first frequency", "last frequency"])
def test_a_wrong_inverse_is_never_used(name: str, tier: int, frequency: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry off by a thousandth, at one frequency of one tier: the resolvent is refused before it is applied."""
    example = EXAMPLES[name]
    genuine, calls = symbols.complex_inverse, []

    def corrupted(matrix: Tensor) -> Tensor:
        inverse = genuine(matrix)
        calls.append(matrix)
        if len(calls) - 1 == tier % len(example.channels):
            inverse[frequency, 0, 0] += 1e-3
        return inverse

    monkeypatch.setattr(symbols, "complex_inverse", corrupted)
    problem = splitting.Inclusion(example.operator(), states(example.operator()), splitting.ReLU())
    with pytest.raises(splitting.ResolventError, match="wrong by"):
        splitting.solve(problem)
    assert len(calls) == tier % len(example.channels) + 1


# -- transforms ------------------------------------------------------------------------------------------------------


def field(size: tuple[int, int], n: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(*size, n, batch, dtype=torch.float64)


def as_complex(spectrum: Tensor) -> Tensor:
    n = spectrum.shape[1] // 2
    return torch.complex(spectrum[:, :n].contiguous(), spectrum[:, n:].contiguous())


def close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@toruses
@all_transforms
def test_analyse_is_the_fourier_transform(size: tuple[int, int]) -> None:
    """On the half of the frequencies that is kept."""
    x, t = field(size), Torus(*size)
    whole = torch.fft.fft2(x.to(torch.complex128), dim=(0, 1))
    expected = whole[t.row_frequencies][:, t.column_frequencies].transpose(0, 1).flatten(0, 1)
    found = t.analyse(x)
    close(as_complex(found), expected)


@toruses
@all_transforms
def test_synthesise_inverts_analyse(size: tuple[int, int]) -> None:
    x, t = field(size), Torus(*size)
    close(t.synthesise(t.analyse(x)), x)


@pytest.mark.parametrize("size", [(66, 5), (3, 70), (67, 2), (2, 514)], ids=str)
def test_large_sides(size: tuple[int, int]) -> None:
    """Two products, one for a prime side, the fast transform for one that is twice a large prime."""
    x, t = field(size, n=1, batch=1), Torus(*size)
    whole = torch.fft.fft2(x.to(torch.complex128), dim=(0, 1))
    spectrum = t.analyse(x)
    torch.testing.assert_close(
        as_complex(spectrum),
        whole[t.row_frequencies][:, t.column_frequencies].transpose(0, 1).flatten(0, 1),
        rtol=0,
        atol=1e-10,
    )
    close(t.synthesise(spectrum), x)
    assert t.columns <= size[1] / 2 + math.sqrt(size[1])


@toruses
@all_transforms
def test_parseval(size: tuple[int, int]) -> None:
    """Σ weight(ω) x̂(ω)ᴴ ŷ(ω) = ⟨x, y⟩, and the kept frequencies stand for all hw of them."""
    x, y, t = field(size), field(size), Torus(*size)
    weights = t.weights(x)
    products = (t.analyse(x) * t.analyse(y)).sum((1, 2))
    close((weights * products).sum(), (x * y).sum())
    close(weights.sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize(("phases", "stride"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("sides", [(1, 1), (3, 3), (5, 3)], ids=str)
@all_transforms
def test_symbol_is_the_convolution(phases: int, stride: int, sides: tuple[int, int]) -> None:
    """Multiplying by the symbol is the spatial correlation: on the torus, on its four sub-images, subsampled."""
    height, width = 3, 4
    kernel = torch.randn(2, 3, *sides, dtype=torch.float64)
    images = torch.randn(2, 3, phases * height, phases * width, dtype=torch.float64)
    t = Torus(height, width, phases)

    def spectrum(batch: Tensor, parts: int) -> Tensor:
        pixels = batch.permute(2, 3, 1, 0)
        return as_complex(Torus(height, width).analyse(layout.divided(pixels) if parts == 2 else pixels))

    found = symbols.as_complex(t.symbol(kernel, stride=stride)) @ spectrum(images, phases)
    close(found, spectrum(correlate(kernel, images, stride), phases // stride))


def test_symbols_stand_for_complex_matrices() -> None:
    """Stacked matrices multiply symbols, transposing them is taking the adjoint of the symbol."""
    S, T = torch.randn(5, 6, 2, dtype=torch.float64), torch.randn(5, 4, 4, dtype=torch.float64)
    close(symbols.as_complex(symbols.stacked(S) @ T), symbols.as_complex(S) @ symbols.as_complex(T))
    complex_adjoint = symbols.as_complex(S).mH
    adjoint = torch.cat([complex_adjoint.real, complex_adjoint.imag], 1)
    close(symbols.stacked(S).mT, symbols.stacked(adjoint))


@pytest.mark.parametrize("shift", [0.0, 1.3])
@pytest.mark.parametrize("size", [1.0, 1e-15, 1e15])
def test_bound_on_the_norms_of_a_symbol(size: float, shift: float) -> None:
    """At least the largest 2-norm, at most n^¼ times as much."""
    shift *= size
    S = torch.randn(7, 2 * 6, 6) * size
    S[3] *= 1e-9
    exact = torch.linalg.matrix_norm(symbols.as_complex(S.double()) - shift * torch.eye(6), 2).max()
    bound = symbols.two_norm_bound(S, shift)
    assert exact * (1 - 1e-6) <= bound <= exact * (1 + 1e-6) * 6**0.25


def test_bound_on_the_norm_of_a_symbol_of_rank_one_is_exact() -> None:
    """v wᴴ with complex v and w has the norm ‖v‖‖w‖ whatever their phases, and so has its bound."""
    v, w = torch.randn(2, 5, 4, dtype=torch.complex128)
    products = v[:, :, None] * w[:, None].conj()
    bound = symbols.two_norm_bound(torch.cat([products.real, products.imag], 1))
    close(bound, (v.norm(dim=1) * w.norm(dim=1)).max())


@pytest.mark.parametrize("sides", [(1, 1), (3, 3), (1, 5), (5, 3)], ids=str)
def test_kernel_of_a_composition(sides: tuple[int, int]) -> None:
    """Correlating with the kernel of FᵀF is correlating with F and then with Fᵀ; it is differentiable."""
    F = torch.randn(4, 3, *sides, dtype=torch.float64, requires_grad=True)
    composed = gram(F)
    z = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    close(correlate(composed, z), correlate(transposed(F), correlate(F, z)))
    assert torch.autograd.gradcheck(gram, F)


@pytest.mark.parametrize(("phases", "stride"), [(1, 1), (2, 1), (2, 2)])
@all_transforms
def test_kernel_gradient_is_the_adjoint_of_symbol(phases: int, stride: int) -> None:
    """Σ_ω weight(ω) Re ⟨H, symbol(K)⟩ = ⟨kernel_gradient(H), K⟩."""
    t, kernel = Torus(3, 4, phases), torch.randn(2, 3, 3, 5, dtype=torch.float64)
    symbol = t.symbol(kernel, stride=stride)
    H = torch.randn_like(symbol)
    close((t.kernel_gradient(H, kernel.shape, stride=stride) * kernel).sum(), (H * symbol).sum((1, 2)) @ t.weights(H))


@toruses
@all_transforms
def test_correlate_is_the_gradient_in_the_symbol(size: tuple[int, int]) -> None:
    """⟨q, S z⟩ = Re Σ ⟨correlate(ω), S(ω)⟩ for the symbol of any convolution."""
    q, z, t = field(size, n=2), field(size, n=3), Torus(*size)
    kernel = torch.randn(2, 3, 1, 1, dtype=torch.float64)
    symbol = t.symbol(kernel)
    image = t.synthesise(torch.bmm(symbols.stacked(symbol), t.analyse(z)))
    products = (t.correlate(t.analyse(q), t.analyse(z)) * symbol).sum((1, 2)) * t.weights(q)
    close(products.sum(), (q * image).sum())


# -- batches ---------------------------------------------------------------------------------------------------------

few = pytest.mark.parametrize("name", ["odd sides", "one channel", "three tiers", "larger successor"])


@few
def test_empty_batch(name: str) -> None:
    """Nothing in, nothing out, of the right shape: maps, resolvents, solutions and gradients."""
    A = EXAMPLES[name].operator()
    nothing = torch.empty(0, *A.state_shape, dtype=torch.float64)
    V = A.resolvent(0.3)
    for operation in (A.apply, A.adjoint.apply, V, V.adjoint):
        assert operation(nothing).shape == nothing.shape
    assert A.norm(nothing).shape == A.rounding(nothing).shape == (0,)
    assert all((g == 0).all() for g in A.pairing_gradient(nothing, nothing))
    leaves = [t.clone().requires_grad_() for t in A.tensors]
    problem = splitting.Inclusion(A.replace(*leaves), nothing, splitting.Tanh())
    assert splitting.solve(problem).status.ok
    z = splitting.equilibrium(problem)
    assert z.shape == nothing.shape
    assert all((g == 0).all() for g in torch.autograd.grad(z.sum(), leaves))


@few
def test_batch_of_one_is_a_row_of_a_batch(name: str) -> None:
    """Value, steps and gradient of a sample do not depend on its company."""
    A = EXAMPLES[name].operator()
    source = torch.tensor([1e-2, 1.0, 30.0], dtype=torch.float64).reshape(3, *[1] * len(A.state_shape))
    source = (source * states(A, 3)).requires_grad_()

    def run(c: Tensor) -> tuple[splitting.Solution, Tensor]:
        problem = splitting.Inclusion(A, c, splitting.Tanh())
        z = splitting.equilibrium(problem, tol=1e-11)
        return splitting.solve(problem, tol=1e-11), torch.autograd.grad(z.pow(3).sum(), c)[0]

    together, gradient = run(source)
    for i in range(3):
        alone, own = run(source[i : i + 1])
        assert int(alone.steps) == int(together.steps[i])
        torch.testing.assert_close(alone.value[0], together.value[i], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(own[0], gradient[i], rtol=1e-9, atol=1e-9)
