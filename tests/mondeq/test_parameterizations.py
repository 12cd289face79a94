"""Dense and LipschitzDense: the formulas, their constants from both sides, their gradients, the built-in γ."""

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mondeq
import splitting
from mondeq.bounds import Chain, MatrixInequality, Product
from mondeq.bounds.matrix_inequality import prove
from mondeq.network import exact_copy
from mondeq.testing import activations, check_lipschitz, inputs, parameterizations
from splitting import InvalidArgument, InvalidType
from tests.mondeq.zoo import array, classifier, head_of, log_uniform

DTYPES = (torch.float32, torch.float64)
Linear = mondeq.Dense | mondeq.LipschitzDense


def dense(n: int = 4, *, in_features: int = 3, m: float = 0.6, learn_m: bool = True) -> mondeq.Dense:
    torch.manual_seed(n)
    return mondeq.Dense(in_features, n, m, learn_m=learn_m).double()


def lipschitz(n: int = 4, *, in_features: int = 3, out_features: int = 2, gamma: float = 1.5) -> mondeq.LipschitzDense:
    torch.manual_seed(n)
    linear = mondeq.LipschitzDense(in_features, n, out_features, gamma).double()
    with torch.no_grad():
        linear.log_metric.normal_()
    return linear


# -- formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learn_m", [False, True])
def test_dense_weight_is_the_formula(learn_m: bool) -> None:
    linear = mondeq.Dense(3, 5, m=0.25, learn_m=learn_m).double()
    F, G = array(linear.F), array(linear.G)
    W = (1 - 0.25) * np.eye(5) - F.T @ F + G.T - G
    np.testing.assert_allclose(array(linear.weight()), W, atol=1e-15 if not learn_m else 1e-7)
    z = torch.randn(2, 5, dtype=torch.float64)
    np.testing.assert_allclose(array(linear.operator().apply(z)), array(z) @ (np.eye(5) - W).T, atol=1e-7)
    assert float(linear.m.detach()) == pytest.approx(0.25, rel=1e-7)


def test_lipschitz_dense_weight_is_the_formula() -> None:
    linear = lipschitz()
    W_o, U, V, S, metric = (array(t) for t in (linear.W_o, linear.U, linear.V, linear.S, linear.log_metric.exp()))
    Psi, Psi_inverse, gamma = np.diag(1 / metric), np.diag(metric), linear.gamma
    inner = W_o.T @ W_o / (2 * gamma) + Psi_inverse @ U @ U.T @ Psi_inverse / (2 * gamma)
    inner += V.T @ V + linear.epsilon * np.eye(4) + S.T - S
    np.testing.assert_allclose(array(linear.weight()), np.eye(4) - Psi @ inner, atol=1e-13)
    np.testing.assert_allclose(array(linear.operator().metric), metric)


@pytest.mark.parametrize("make", [dense, lipschitz])
def test_source_is_the_formula(make: Any) -> None:
    linear = make()
    x = torch.randn(2, 3, dtype=torch.float64)
    expected = array(x) @ array(linear.U).T + array(linear.b)
    np.testing.assert_allclose(array(linear.source(x)), expected, atol=1e-14)
    np.testing.assert_allclose(array(linear.source(x.reshape(2, 1, 3))), expected, atol=1e-14)


def test_what_is_learned() -> None:
    fixed = mondeq.Dense(3, 4, m=0.5)
    assert set(dict(fixed.named_parameters())) == set(fixed.state_dict()) == {"F", "G", "U", "b"}
    learned = mondeq.Dense(3, 4, m=0.5, learn_m=True)
    assert set(dict(learned.named_parameters())) == {"F", "G", "U", "b", "log_m"}
    optimizer = torch.optim.SGD(learned.parameters(), lr=1.0)
    layer = mondeq.EquilibriumLayer(learned)
    layer(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    assert float(learned.m.detach()) != pytest.approx(0.5)
    assert learned.operator().strong_monotonicity == pytest.approx(float(learned.m.detach()), rel=1e-3)
    robust = mondeq.LipschitzDense(3, 4, 2)
    assert set(dict(robust.named_parameters())) == {"U", "b", "W_o", "b_o", "V", "S", "log_metric"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("learn_m", [False, True])
def test_it_can_be_printed(learn_m: bool) -> None:
    assert "in_features=3, features=4, m=0.5" in repr(mondeq.Dense(3, 4, m=0.5, learn_m=learn_m))
    assert "out_features=2, gamma=1.5" in repr(lipschitz())


# -- gradients -----------------------------------------------------------------------------------------------------


def as_function(linear: Linear, activation: splitting.Activation, **options: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """The layer's output (and read-out) as a function of the input and all weights, for gradcheck."""
    layer = mondeq.EquilibriumLayer(linear, activation, tol=1e-12, max_steps=300, on_failure="return").train()
    names = [name for name, _ in layer.named_parameters() if name != "linear.b_o"]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        z: Tensor = torch.func.functional_call(layer, state, (x,))
        return z if isinstance(linear, mondeq.Dense) else z @ state["linear.W_o"].mT

    x = torch.randn(options["batch"], linear.in_features, dtype=torch.float64, requires_grad=True)
    return function, (x, *(layer.get_parameter(n).detach().clone().requires_grad_() for n in names))


# With n = 7 a batch of 2 takes the thin branch of the gradient to F (3·batch < n), a batch of 3 the other.
@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize(("activation", "fast"), [(splitting.LeakyReLU(0.2), False), (splitting.Softplus(), True)])
def test_dense_gradients_are_finite_differences(batch: int, activation: splitting.Activation, fast: bool) -> None:
    function, arguments = as_function(dense(7), activation, batch=batch)
    assert len(arguments) == 6
    assert torch.autograd.gradcheck(function, arguments, eps=1e-5, atol=1e-6, rtol=1e-5, fast_mode=fast)


@pytest.mark.parametrize(("activation", "fast"), [(splitting.ReLU(), False), (splitting.Tanh(), True)])
def test_lipschitz_dense_gradients_are_finite_differences(activation: splitting.Activation, fast: bool) -> None:
    function, arguments = as_function(lipschitz(), activation, batch=3)
    assert len(arguments) == 7
    assert torch.autograd.gradcheck(function, arguments, eps=1e-5, atol=1e-6, rtol=1e-5, fast_mode=fast)


@pytest.mark.parametrize(("make", "batch"), [(dense, 1), (dense, 2), (lipschitz, 2)])
def test_second_derivatives_are_finite_differences(make: Any, batch: int) -> None:
    function, arguments = as_function(make(4, in_features=2), splitting.Tanh(), batch=batch)
    assert torch.autograd.gradgradcheck(function, arguments, eps=1e-5, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_the_gradient_of_a_fixed_m() -> None:
    """∂z/∂m for an m that is no parameter: z solves (m + a)z = x + b on one positive unit."""
    linear = mondeq.Dense(1, 1, m=0.5).double()
    operator = linear.operator()
    F, G, m = (t.detach().clone().requires_grad_() for t in operator.tensors)
    source = torch.tensor([[3.0]], dtype=torch.float64)
    problem = splitting.Inclusion(operator.replace(F, G, m), source, splitting.ReLU())
    z = splitting.equilibrium(problem, tol=1e-14)
    z.backward()
    a = 0.5 + float(F.detach()) ** 2
    assert float(z.detach()) == pytest.approx(3 / a)
    assert float(m.grad) == pytest.approx(-3 / a**2)
    assert float(F.grad) == pytest.approx(-3 / a**2 * 2 * float(F.detach()))
    assert float(G.grad) == 0


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_pairing_gradient_is_that_of_the_pairing(batch: int) -> None:
    """⟨q, A z⟩ through A assembled by plain operations, on both branches."""
    linear = dense(7)
    q, z = torch.randn(2, batch, 7, dtype=torch.float64)
    F, G, m = (t.detach().clone().requires_grad_() for t in linear.operator().tensors)
    A = m * torch.eye(7, dtype=torch.float64) + F.mT @ F + G - G.mT
    expected = torch.autograd.grad((q * (z @ A.mT)).sum(), (F, G, m))
    for got, wanted in zip(linear.operator().pairing_gradient(q, z), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    # The adjoint pairs the other way round.
    for got, wanted in zip(linear.operator().adjoint.pairing_gradient(z, q), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


# -- constants, from both sides ------------------------------------------------------------------------------------


def in_metric(operator: splitting.DenseOperator) -> mpmath.matrix:
    """Λ^½ A Λ^-½ with 60 digits."""
    A = mpmath.matrix(array(operator.matrix).tolist())
    if operator.metric is not None:
        for i, a in enumerate(array(operator.metric).tolist()):
            for j, b in enumerate(array(operator.metric).tolist()):
                A[i, j] *= mpmath.sqrt(mpmath.mpf(a)) / mpmath.sqrt(mpmath.mpf(b))
    return A


@settings(max_examples=60)
@given(st.data(), st.sampled_from(DTYPES))
def test_constants_are_never_on_the_wrong_side(data: st.DataObject, dtype: torch.dtype) -> None:
    """m never above the smallest eigenvalue of the symmetric part, L never below the norm, whatever the scale."""
    linear = data.draw(parameterizations(dtype=dtype, largest=4))
    operator = linear.operator()
    with mpmath.workdps(60):
        A = in_metric(operator)
        true_m = min(mpmath.eigsy((A + A.T) / 2, eigvals_only=True))
        true_L = mpmath.sqrt(max(mpmath.eigsy(A.T * A, eigvals_only=True)))
    assert operator.strong_monotonicity <= true_m
    assert operator.lipschitz >= true_L
    assert operator.lipschitz <= true_L * (1 + 1e-6) + 1e-12
    slack = 1e-6 if dtype == torch.float64 else 1e-3
    assert operator.frobenius >= true_L * (1 - slack)
    assert operator.adjoint.strong_monotonicity == operator.strong_monotonicity
    if dtype == torch.float64:
        # Not so far below that it would be of no use: m is kept to a per cent.
        floor = float(linear.m.detach()) if isinstance(linear, mondeq.Dense) else float(true_m)
        assert operator.strong_monotonicity >= 0.99 * floor - 1e-12 * float(true_L)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("m", [1e-3, 1.0, 1e2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_monotonicity_over_the_whole_range(scale: float, m: float, dtype: torch.dtype) -> None:
    """Rounding of the assembled matrix may cost all of m in float32; then nothing is claimed."""
    torch.manual_seed(0)
    linear = mondeq.Dense(2, 20, m).to(dtype)
    with torch.no_grad():
        # One row: FᵀF has rank 1 and nothing but m makes A monotone.
        linear.F.zero_()
        linear.F[0].normal_().mul_(scale)
        linear.G.normal_().mul_(scale)
    A = array(linear.operator().matrix)
    true = np.linalg.eigvalsh((A + A.T) / 2)[0]
    claimed = linear.operator().strong_monotonicity
    assert claimed <= true + 1e-10 * np.abs(A).max()
    if dtype == torch.float64:
        assert claimed >= 0.99 * m - 1e-10 * scale**2


def test_monotonicity_follows_the_learned_m() -> None:
    linear = dense(m=1.0)
    with torch.no_grad():
        linear.log_m.fill_(math.log(7.0))
    assert linear.operator().strong_monotonicity == pytest.approx(7, rel=1e-9)
    assert linear.operator().strong_monotonicity <= float(linear.m.detach())


@settings(max_examples=40)
@given(st.data())
def test_input_norm_from_both_sides(data: st.DataObject) -> None:
    linear = data.draw(parameterizations())
    scale = data.draw(st.lists(log_uniform(1e-3, 1e3), min_size=linear.in_features, max_size=linear.in_features))
    metric = linear.operator().metric
    root = np.ones(linear.state_shape) if metric is None else np.sqrt(array(metric))
    true = np.linalg.norm(root[:, None] * array(linear.U) * np.array(scale), 2)
    bound = linear.input_norm(torch.tensor(scale, dtype=torch.float64))
    assert true * (1 - 1e-12) <= bound <= true * (1 + 1e-6)


@settings(max_examples=40)
@given(st.data(), st.sampled_from(DTYPES))
def test_source_rounding_covers_the_rounding(data: st.DataObject, dtype: torch.dtype) -> None:
    """fl(Ux + b) against Ux + b with 40 digits, and with x off by a rounding of |x|."""
    linear = data.draw(parameterizations(dtype=dtype))
    x = data.draw(inputs(linear))
    with torch.no_grad():
        computed = linear.source(x * (1 + torch.finfo(dtype).eps))
    bound = linear.source_rounding(x.double().abs())
    metric = linear.operator().metric
    with mpmath.workdps(40):
        U, b = mpmath.matrix(array(linear.U).tolist()), mpmath.matrix(array(linear.b).tolist())
        for row, got, allowed in zip(array(x).tolist(), array(computed).tolist(), bound.tolist(), strict=True):
            error = U * mpmath.matrix(row) + b - mpmath.matrix(got)
            weight = [1.0] * len(got) if metric is None else array(metric).tolist()
            size = mpmath.sqrt(sum(w * e**2 for w, e in zip(weight, error, strict=True)))
            assert size <= allowed
    # And it is a rounding, not a guess: a few hundred units in the last place of |U||x| + |b|.
    with torch.no_grad():
        size = x.abs() @ linear.U.abs().mT + linear.b.abs()
        assert (bound <= 1e3 * torch.finfo(dtype).eps * linear.operator().norm(size)).all()


# -- the built-in Lipschitz constant -------------------------------------------------------------------------------


def inequality(linear: mondeq.LipschitzDense) -> tuple[Tensor, Tensor]:
    """ΛA + AᵀΛ − W_oᵀW_o/γ − ΛUUᵀΛ/γ of the operator as built, and what it should be: 2VᵀV + 2εI."""
    with torch.no_grad():
        operator = linear.operator()
        scaled = operator.metric[:, None] * operator.matrix
        B = operator.metric[:, None] * linear.U
        left = scaled + scaled.mT - (linear.W_o.mT @ linear.W_o + B @ B.mT) / linear.gamma
        right = 2 * linear.V.mT @ linear.V + 2 * linear.epsilon * torch.eye(linear.features, dtype=torch.float64)
        return left, right


@settings(max_examples=60)
@given(parameterizations().filter(lambda p: isinstance(p, mondeq.LipschitzDense)))
def test_the_matrix_inequality_holds_for_weights_of_any_scale(linear: mondeq.LipschitzDense) -> None:
    """By its value, and by its smallest eigenvalue after symmetric scaling to unit diagonal."""
    left, right = inequality(linear)
    with torch.no_grad():
        B = linear.log_metric.exp()[:, None] * linear.U
        size = float(right.norm() + (linear.W_o.norm() ** 2 + B.norm() ** 2) / linear.gamma + linear.S.norm())
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12 * size)
    root = right.diagonal().rsqrt()
    unit = root[:, None] * left * root
    assert float(torch.linalg.eigvalsh(unit)[0]) >= -1e-12 * size * float(root.square().max())


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    scales=st.fixed_dictionaries(
        {
            "V": log_uniform(1e-3, 1e3),
            "S": log_uniform(1e-3, 1e3),
            "U": log_uniform(1e-2, 1e2),
            "W_o": log_uniform(1e-2, 1e2),
            "log_metric": st.floats(0, 1),
        }
    ),
    gamma=log_uniform(0.1, 10),
)
def test_gamma_is_proved_whatever_the_weights(seed: int, scales: dict[str, float], gamma: float) -> None:
    """The certified bound of the model as a whole never exceeds γ, in pixel units."""
    model = classifier("lipschitz", seed=seed, gamma=gamma, std=(0.5, 0.5)).double()
    with torch.no_grad():
        for name, scale in scales.items():
            model.layer.linear.get_parameter(name).normal_().mul_(scale)
    bound = MatrixInequality().bound(Chain.of(exact_copy(model)))
    assert bound.kind == "certified"
    assert bound.value <= gamma * (1 + 1e-6)


@settings(max_examples=6)
@given(st.data(), activations())
def test_the_read_out_is_gamma_lipschitz(data: st.DataObject, activation: splitting.Activation) -> None:
    """Pairs ascended towards the worst case never pass γ, with every activation."""
    linear = data.draw(parameterizations().filter(lambda p: isinstance(p, mondeq.LipschitzDense)))
    x = data.draw(inputs(linear))
    check_lipschitz(linear, x, activation=activation, ascent=4)


def test_with_a_scalar_metric_gamma_is_the_product_bound() -> None:
    """n = 1, Λ = λ = |W_o|/|U|, ε → 0, V = 0: then m = |W_o||U|/γ, and |W_o||U|/m is γ again."""
    model = classifier("lipschitz", image_shape=(1, 1, 2), features=1, classes=2, mean=(0.0,), std=(1.0,), gamma=0.8)
    model = model.double()
    linear = model.layer.linear
    with torch.no_grad():
        for name in ("V", "S"):
            linear.get_parameter(name).zero_()
        linear.log_metric.copy_((linear.W_o.norm() / linear.U.norm()).log())
    linear.epsilon = 1e-12
    assert Product().bound(Chain.of(model)).value == pytest.approx(0.8, rel=1e-6)
    assert MatrixInequality().bound(Chain.of(model)).value == pytest.approx(0.8, rel=1e-6)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 50.0])
def test_a_multiple_of_the_identity_never_does_worse_than_the_product_bound(factor: float) -> None:
    """Λ = λI gives back ‖W_o‖‖U‖/m: never more, whatever λ, and exactly that where U, W_o and A = mI align."""
    model = exact_copy(classifier("dense", m=0.3))
    metric = factor * torch.ones(5, dtype=torch.float64)
    product, inequality_bound = Product().bound(Chain.of(model)), prove(Chain.of(model), metric)
    assert inequality_bound.value <= product.value * (1 + 1e-8)
    assert (inequality_bound.pairs <= product.pairs * (1 + 1e-8)).all()
    linear = model.layer.linear
    assert isinstance(linear, mondeq.Dense)
    linear.F.zero_()
    linear.G.zero_()
    linear.U.zero_()
    linear.U[0, 0] = 2.0
    head_of(model)[0].zero_()
    head_of(model)[0][:, 0] = torch.tensor([1.0, -2.0, 0.5])
    exact = math.sqrt(5.25) * 2.0 / 0.5 / float(linear.m)
    assert Product().bound(Chain.of(model)).value == pytest.approx(exact, rel=1e-9)
    assert prove(Chain.of(model), metric).value == pytest.approx(exact, rel=1e-6)


# -- misuse --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [0, -1, 0.0, math.nan, math.inf, "1", True, None])
def test_m_must_be_positive(m: Any) -> None:
    with pytest.raises(InvalidArgument, match="`m` must be a finite number > 0, got"):
        mondeq.Dense(2, 3, m)


@pytest.mark.parametrize("name", ["gamma", "epsilon"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_gamma_and_epsilon_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(InvalidArgument, match=f"`{name}` must be a finite number > 0, got"):
        mondeq.LipschitzDense(2, 3, 4, **{name: value})


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("value", [0, -3, 2.0, True, "4"])
def test_sizes_must_be_counts(position: int, value: Any) -> None:
    sizes: list[Any] = [2, 3, 4]
    sizes[position] = value
    name = ("in_features", "features", "out_features")[position]
    with pytest.raises(InvalidArgument, match=f"`{name}` must be an integer ≥ 1, got"):
        mondeq.LipschitzDense(*sizes)


def test_inputs_must_fit() -> None:
    linear = mondeq.Dense(6, 3)
    with pytest.raises(InvalidArgument, match="`x` must have 6 entries per sample, got 5"):
        linear.source(torch.zeros(2, 5))
    with pytest.raises(InvalidType, match=r"`x` is torch\.float64 but the weights are torch\.float32"):
        linear.source(torch.zeros(2, 6, dtype=torch.float64))
    with pytest.raises(InvalidType, match=r"`x` is torch\.int64"):
        linear.source(torch.zeros(2, 6, dtype=torch.int64))
    with pytest.raises(InvalidType, match="`x` is on meta but the weights are on cpu; move one of them"):
        linear.source(torch.zeros(2, 6, device="meta"))


def test_what_is_measured_in_the_metric_follows_it() -> None:
    """Four times the metric: twice the norm of the input map, and of the rounding of the source."""
    linear = lipschitz()
    scale, size = torch.ones(3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    norm, estimate, rounding = (
        linear.input_norm(scale),
        linear.input_norm_estimate(scale),
        linear.source_rounding(size),
    )
    with torch.no_grad():
        linear.log_metric.add_(math.log(4))
    assert linear.input_norm(scale) == pytest.approx(2 * norm)
    torch.testing.assert_close(linear.input_norm_estimate(scale), 2 * estimate, rtol=1e-9, atol=0)
    torch.testing.assert_close(linear.source_rounding(size), 2 * rounding, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("channels", [2, (2, 3)])
def test_convolutions_are_padded_with_zeros(kernel_size: int, channels: int | tuple[int, ...]) -> None:
    """Without F, G and D z is σ of the zero-padded correlation with U, and lies in the middle of a border of zeros."""
    kind = mondeq.Conv2d if isinstance(channels, int) else mondeq.MultiscaleConv2d
    linear = kind(1, channels, (6, 8), kernel_size).double()
    with torch.no_grad():
        for name, weight in linear.named_parameters():
            if name not in ("U", "b"):
                weight.zero_()
        x = torch.randn(3, 1, 6, 8, dtype=torch.float64)
        z = mondeq.EquilibriumLayer(linear, splitting.Softplus(), tol=1e-13)(x)
        tiers = [z] if isinstance(channels, int) else linear.operator().tiers(z)
        border = kernel_size // 2
        expected = torch.nn.functional.softplus(torch.nn.functional.conv2d(x, linear.U, linear.b, padding=border))
    torch.testing.assert_close(tiers[0], torch.nn.functional.pad(expected, [border] * 4), rtol=1e-11, atol=1e-11)
    for image in tiers:
        inside = torch.zeros(image.shape[2:], dtype=torch.bool)
        inside[border : len(inside) - border, border : inside.shape[1] - border] = True
        assert ((image > 0) == inside).all()
