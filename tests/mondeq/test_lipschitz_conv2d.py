"""LipschitzConv2d: x ↦ C z + d is γ-Lipschitz for all weights, comes close to γ, and stacks of it are certified."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import mondeq
import splitting
from mondeq.bounds import Chain
from mondeq.norms import Ball, Norm
from mondeq.testing import check_certificate, check_lipschitz
from splitting import InvalidArgument, InvalidType
from tests.mondeq.zoo import jacobian, log_uniform


def drawn(seed: int, *, scale: float = 0.5, gamma: float = 1.5, m: float = 0.1) -> mondeq.LipschitzConv2d:
    torch.manual_seed(seed)
    linear = mondeq.LipschitzConv2d(2, 3, 2, (4, 5), gamma=gamma, m=m).double()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_(std=scale)
    return linear


def layer_of(linear: mondeq.LipschitzConv2d, activation: splitting.Activation | None = None) -> mondeq.ReadoutLayer:
    options: dict[str, Any] = {"tol": 1e-12, "max_steps": 300, "on_failure": "return"}
    return mondeq.ReadoutLayer(linear, activation, splitting.Anderson(), **options)


ACTIVATIONS = [splitting.ReLU(), splitting.Tanh(), splitting.LeakyReLU(0.2), splitting.Sigmoid(), splitting.Identity()]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 99),
    scale=log_uniform(1e-2, 10),
    gamma=log_uniform(1e-3, 1e3),
    m=log_uniform(1e-3, 10),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_it_is_gamma_lipschitz_for_every_weight(
    seed: int, scale: float, gamma: float, m: float, activation: splitting.Activation
) -> None:
    """Differences near and far: ‖Δy‖² ≤ γ²‖Δx‖² − 2γm‖Δz‖², what solvers leave open aside."""
    linear = drawn(seed, scale=scale, gamma=gamma, m=m)
    layer = layer_of(linear, activation)
    x = torch.randn(6, *linear.in_shape, dtype=torch.float64)
    step = torch.randn_like(x) * torch.logspace(-3, 1, 6, dtype=torch.float64).view(-1, 1, 1, 1)
    with torch.no_grad():
        first, second = layer.solve(x), layer.solve(x + step)
        moved = (linear.read(first.value) - linear.read(second.value)).flatten(1).norm(dim=1)
    states = (first.value - second.value).flatten(1).norm(dim=1)
    allowed = (gamma * step.flatten(1).norm(dim=1)).square() - 2 * gamma * m * states.square()
    # √(γ/2m)‖r‖ of either solve, and rounding.
    error = (first.error_bound + second.error_bound) * linear.operator().strong_monotonicity * (gamma / m / 2) ** 0.5
    size = float(linear.C.detach().norm()) * (1 + states)
    error = error + 2 * gamma * m * states * (first.error_bound + second.error_bound) + 1e-11 * size
    assert bool((moved <= allowed.clamp_min(0).sqrt() + (2 * error * moved).sqrt() + error).all())


@settings(max_examples=10)
@given(seed=st.integers(0, 99), gamma=log_uniform(1e-2, 1e2), activation=st.sampled_from(ACTIVATIONS))
def test_no_jacobian_is_larger_than_gamma(seed: int, gamma: float, activation: splitting.Activation) -> None:
    linear = drawn(seed, scale=0.5 * gamma**0.5, gamma=gamma, m=0.3 * gamma)
    layer = layer_of(linear, activation)
    largest = torch.linalg.matrix_norm(jacobian(layer, torch.randn(*linear.in_shape, dtype=torch.float64)), 2)
    assert 0 < float(largest) <= gamma * (1 + 1e-8)


@settings(max_examples=10)
@given(length=log_uniform(0.1, 10), gamma=log_uniform(0.1, 10), m=log_uniform(1e-3, 1))
def test_the_bound_cannot_be_lowered(length: float, gamma: float, m: float) -> None:
    """From the other side: U = C = length·I, V = G = 0 and all units on make y = γ length²/(γm + length²) x + const."""
    linear = mondeq.LipschitzConv2d(2, 2, 2, 3, gamma=gamma, m=m).double()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.zero_()
        for kernel in (linear.U, linear.C):
            kernel[:, :, 1, 1] = length * torch.eye(2, dtype=torch.float64)
        linear.b.fill_(10 * length)
    layer = layer_of(linear)
    x, step = torch.rand(2, 4, 2, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        moved = layer(x + step) - layer(x)
    share = length**2 / (gamma * m + length**2)
    torch.testing.assert_close(moved, gamma * share * step, rtol=1e-7, atol=1e-8 * gamma)


def circular(kernel: Tensor, z: Tensor) -> Tensor:
    k = kernel.shape[-1] // 2
    return functional.conv2d(functional.pad(z, (k, k, k, k), mode="circular"), kernel)


def test_the_operator_is_what_the_formula_says() -> None:
    """⟨z, Az⟩ = m‖z‖² + (‖Cz‖² + ‖Uᵀz‖²)/(2γ) + ‖Vz‖², all circular, and Az has the skew part of G − Gᵀ."""
    linear = drawn(0)
    z, w = torch.randn(2, 3, *linear.state_shape, dtype=torch.float64)
    back = linear.U.transpose(0, 1).flip(2, 3)

    def form(a: Tensor, b: Tensor) -> Tensor:
        symmetric = linear.m * (a * b).sum() + (circular(linear.V, a) * circular(linear.V, b)).sum()
        tied = sum((circular(kernel, a) * circular(kernel, b)).sum() for kernel in (linear.C, back))
        skew = (a * circular(linear.G, b)).sum() - (circular(linear.G, a) * b).sum()
        return symmetric + tied / (2 * linear.gamma) + skew

    with torch.no_grad():
        torch.testing.assert_close((w * linear.operator().apply(z)).sum(), form(w, z))


def test_its_transpose_is_the_adjoint_of_the_source_and_images_are_read() -> None:
    """‖Uᵀz‖ over images is at most that over the torus; C z is a convolution with zeros around the image."""
    linear = drawn(1)
    z = torch.randn(2, *linear.state_shape, dtype=torch.float64) * linear.inside
    back = linear.U.transpose(0, 1).flip(2, 3)
    x = torch.zeros(2, *linear.in_shape, dtype=torch.float64, requires_grad=True)
    (pulled,) = torch.autograd.grad((linear.source(x) * z).sum(), x)
    with torch.no_grad():
        assert float(pulled.norm()) <= float(circular(back, z).norm()) * (1 + 1e-12)
        image = z[:, :, 1:-1, 1:-1]
        torch.testing.assert_close(linear.read(z), functional.conv2d(image, linear.C, linear.d, padding=1))
    assert linear.read(z).shape[1:] == linear.out_shape == (2, 4, 5)


@settings(max_examples=30)
@given(seed=st.integers(0, 99), scale=log_uniform(1e-3, 1e3), gamma=log_uniform(1e-6, 1e6), m=log_uniform(1e-9, 10))
def test_what_is_proved_rests_on_the_part_without_f(seed: int, scale: float, gamma: float, m: float) -> None:
    """`reserve` is m but for the rounding of FᵀF; where that is more than m, nothing is proved."""
    linear = drawn(seed, scale=scale, gamma=gamma, m=m)
    reserve = linear.reserve()
    size = scale**2 * (1 / gamma + 1)
    assert reserve <= m
    assert reserve >= m * (1 - 1e-12) - 1e-10 * size - 1e-10 * scale
    layer = layer_of(linear)
    layer.sharpen()
    (proof,) = layer.proofs(Norm(), linear.in_shape)
    if reserve > 0:
        assert gamma <= proof.constant <= gamma * (1 + 1e-12)
    else:
        assert proof.constant == math.inf


def test_an_unfinished_solve_is_enclosed_by_far_less_than_the_norm_of_c() -> None:
    linear = drawn(2, m=1e-3)
    layer = layer_of(linear)
    layer.sharpen()
    x = torch.randn(8, *linear.in_shape, dtype=torch.float64)
    ball = Ball(x, x.new_zeros(8), Norm())
    truth = layer.proofs(Norm(), linear.in_shape)[0].enclose(ball)
    layer.tol, layer.max_steps = 1e-2, 400
    (proof,) = layer.proofs(Norm(), linear.in_shape)
    found = proof.enclose(ball)
    assert bool(((found.centre - truth.centre).flatten(1).norm(dim=1) <= found.radius + truth.radius).all())
    crude = float(torch.linalg.matrix_norm(linear.C.detach().flatten(1), 2)) * layer.solve(x).error_bound
    assert bool((found.radius < 0.5 * crude).all())


def stack(seed: int = 0) -> mondeq.Network:
    torch.manual_seed(seed)
    pieces = [
        mondeq.ReadoutLayer(mondeq.LipschitzConv2d(3, 6, 5, (4, 6), gamma=1.25, m=0.05)),
        torch.nn.PixelUnshuffle(2),
        mondeq.ReadoutLayer(mondeq.LipschitzConv2d(20, 6, 4, (2, 3), kernel_size=1, gamma=0.8, m=0.05)),
        torch.nn.Flatten(),
        mondeq.NormalisedLinear(24, 3),
    ]
    return mondeq.Network(pieces, (3, 4, 6)).double().eval()


def test_a_stack_is_bounded_by_the_product_of_its_gammas_and_certified(tmp_path: Any) -> None:
    model = stack()
    chain = Chain.of(model)
    assert chain.constant(chain.stages[:-1]) == pytest.approx(1.0, rel=1e-9)
    images = torch.rand(16, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = model(images).argmax(1)
    report = mondeq.certify(model, images, labels)
    assert check_certificate(model, images, labels, report, samples=20, ascent=3) == 16
    assert float(report.error_bound.max()) < 1e-5 * float(report.radius.median())
    assert 0.03 < check_lipschitz(model, ascent=3) <= 1
    mondeq.save(model, tmp_path)
    again = mondeq.load(tmp_path).double()
    assert torch.equal(again(images), model(images))
    torch.testing.assert_close(mondeq.certify(again, images, labels).radius, report.radius, rtol=1e-12, atol=0)


@pytest.mark.parametrize("activation", [splitting.ReLU(), splitting.Tanh()], ids=str)
def test_gradients_are_finite_differences(activation: splitting.Activation) -> None:
    linear = drawn(3)
    layer = layer_of(linear, activation).train()
    x = torch.randn(2, *linear.in_shape, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    assert len(names) == 6

    def function(y: Tensor, *values: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (y,))
        return found

    arguments = (x.requires_grad_(), *(layer.get_parameter(n).detach().clone().requires_grad_() for n in names))
    assert torch.autograd.gradcheck(function, arguments, eps=1e-5, atol=1e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, "`gamma` must be a finite number > 0, got 0.0"),
        ({"gamma": -1.0}, "`gamma` must be a finite number > 0, got -1.0"),
        ({"gamma": math.inf}, "`gamma` must be a finite number > 0, got inf"),
        ({"m": 0.0}, "`m` must be a finite number > 0"),
        ({"channels": 0}, "`channels` must be an integer ≥ 1"),
        ({"out_channels": 2.5}, "`out_channels` must be an integer ≥ 1"),
        ({"kernel_size": 2}, "`kernel_size` must be odd"),
        ({"kernel_size": 9}, "larger than the image"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    given_options = {"in_channels": 1, "channels": 2, "out_channels": 2, "image_size": 4} | options
    with pytest.raises(InvalidArgument, match=message) as caught:
        mondeq.LipschitzConv2d(**given_options)
    assert "\n" not in str(caught.value)


class Louder(mondeq.LipschitzConv2d):
    """Reads ten times as loud as its proof knows."""

    def read(self, z: Tensor) -> Tensor:
        return 10 * super().read(z)


def test_a_class_that_changes_what_the_proof_rests_on_is_refused() -> None:
    model = mondeq.Network([mondeq.ReadoutLayer(Louder(1, 2, 2, 3)), torch.nn.Flatten()], (1, 3, 3)).double().eval()
    with pytest.raises(InvalidType, match="derives from LipschitzConv2d, whose constants need not be its own"):
        mondeq.lipschitz_bounds(model)
