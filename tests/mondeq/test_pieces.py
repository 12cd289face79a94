"""Every piece alone: constants from both sides, enclosures in exact arithmetic, settings, shapes it refuses."""

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import mondeq
from mondeq import AveragePool, Ball, ConfigError, Entries, Norm
from mondeq.formats import build, describe
from mondeq.pieces import PIECES, Proof, SolvedPiece, arithmetic
from splitting import InvalidArgument, verified
from tests.mondeq.zoo import Array, array, jacobian, log_uniform

Case = tuple[str, dict[str, Any], tuple[int, ...]]
DENSE = {"kind": "dense", "features": 5, "m": 0.5}
LIPSCHITZ = {"kind": "lipschitz-dense", "features": 5, "out_features": 3}
# Name of the piece, its settings, the shape of what it takes. Affine ones, and …
LINEAR: dict[str, Case] = {
    "normalise": ("normalise", {"mean": (0.4, 0.6), "std": (0.5, 0.3)}, (2, 3, 4)),
    "linear": ("linear", {"features": 5}, (7,)),
    "linear, wide": ("linear", {"features": 4, "bias": False}, (3,)),
    "conv2d": ("conv2d", {"channels": 3}, (2, 5, 4)),
    "conv2d, stride and padding": ("conv2d", {"channels": 3, "stride": 2, "padding": 1}, (2, 6, 5)),
    "conv2d, even kernel": ("conv2d", {"channels": 2, "kernel_size": 2, "padding": 3, "bias": False}, (1, 3, 4)),
    "conv2d, blocks": ("conv2d", {"channels": 5, "kernel_size": 2, "stride": 2}, (2, 4, 4)),
    "conv2d, 1×1": ("conv2d", {"channels": 2, "kernel_size": 1, "stride": 2}, (3, 3, 5)),
    "avg-pool2d": ("avg-pool2d", {"size": 2}, (2, 4, 6)),
    "avg-pool2d, rows and columns left over": ("avg-pool2d", {"size": 3}, (2, 5, 7)),
    "average-pool": ("average-pool", {"size": 2}, (2, 4, 6)),
    "average-pool, rows and columns left over": ("average-pool", {"size": 3}, (2, 5, 7)),
    "average-pool, blocks of 1": ("average-pool", {"size": 1}, (2, 2, 3)),
    "flatten": ("flatten", {}, (2, 3, 2)),
    "identity": ("identity", {}, (2, 3)),
    "pixel-unshuffle": ("pixel-unshuffle", {"factor": 2}, (2, 4, 6)),
    "crop": ("crop", {"border": 2}, (2, 5, 6)),
    "entries": ("entries", {"start": 4}, (7,)),
    "entries, all": ("entries", {}, (5,)),
}
POOLS = ("avg-pool2d", "average-pool")
MOVES = ("flatten", "identity", "pixel-unshuffle", "crop", "entries")
# … all others.
NONLINEAR: dict[str, Case] = {
    "relu": ("relu", {}, (2, 3, 2)),
    "group-sort": ("group-sort", {"size": 2}, (4, 2, 3)),
    "group-sort, triples": ("group-sort", {"size": 3}, (6,)),
    "equilibrium, dense": ("equilibrium", {"parameterization": DENSE, "activation": "tanh"}, (2, 2, 3)),
    "equilibrium, m learned": ("equilibrium", {"parameterization": {**DENSE, "learn_m": True}}, (6,)),
    "equilibrium, lipschitz-dense": ("equilibrium", {"parameterization": LIPSCHITZ}, (6,)),
    "equilibrium, conv2d": (
        "equilibrium",
        {"parameterization": {"kind": "conv2d", "channels": 2, "m": 0.5}, "activation": "softplus"},
        (2, 3, 4),
    ),
    "equilibrium, conv2d, normalised": (
        "equilibrium",
        {"parameterization": {"kind": "conv2d", "channels": 2, "kernel_size": 1, "weight_norm": True}},
        (1, 3, 3),
    ),
    "equilibrium, multiscale-conv2d": (
        "equilibrium",
        {
            "parameterization": {"kind": "multiscale-conv2d", "channels": (2, 1), "m": 0.5},
            "activation": "box",
            "activation_parameters": (-0.5, 1.5),
            "solver": "douglas-rachford",
            "tol": 1e-3,
            "max_steps": 50,
            "backward_tol": 1e-2,
        },
        (1, 4, 6),
    ),
    "readout": ("readout", {"parameterization": LIPSCHITZ, "activation": "leaky-relu"}, (2, 3)),
    "readout, convolution": (
        "readout",
        {
            "parameterization": {"kind": "lipschitz-conv2d", "channels": 2, "out_channels": 3, "gamma": 2.0, "m": 0.3},
            "activation": "tanh",
        },
        (1, 3, 4),
    ),
}
# All others that the package has, by their examples.
for _kind, _contract in PIECES.items():
    if _contract.__module__.startswith("mondeq.") and _kind not in {case[0] for case in (LINEAR | NONLINEAR).values()}:
        _settings, _shape = _contract.example()
        NONLINEAR[_kind] = (_kind, _settings.to_dict(), tuple(_shape))
CASES = LINEAR | NONLINEAR
each_case = pytest.mark.parametrize("name", CASES)


def made(case: Case, *, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """The piece in float64, its weights normal times `scale`, those of a metric or of m by at most 1."""
    kind, given_settings, in_shape = case
    contract = PIECES[kind]
    module = contract.make(contract.Settings.from_dict(given_settings), torch.Size(in_shape)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            factor = min(scale, 1.0) if "log_" in name else scale
            weight.copy_(factor * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return module.requires_grad_(False)


def points(shape: tuple[int, ...], count: int = 1, *, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return scale * torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def norm_of(kind: str, shape: tuple[int, ...], seed: int) -> Norm:
    """The 2-norm, one number, a number per channel, a number per entry; over three decades."""
    sizes: dict[str, tuple[int, ...]] = {
        "scalar": (1,) * len(shape), "channels": (shape[0], *(1 for _ in shape[1:])), "entries": shape,
    }  # fmt: skip
    if kind == "plain":
        return Norm()
    return Norm(10 ** (points((), math.prod(sizes[kind]), seed=seed + 7).clamp(-2, 2) / 2).reshape(sizes[kind]))


NORM_KINDS = st.sampled_from(["plain", "scalar", "channels", "entries"])
SEEDS = st.integers(0, 2**16)


def proofs_of(module: nn.Module, norm: Norm, shape: tuple[int, ...]) -> list[Proof]:
    arithmetic(module).sharpen()
    return list(arithmetic(module).proofs(norm, torch.Size(shape)))


def constant_of(proofs: list[Proof]) -> float:
    return math.prod(proof.constant for proof in proofs)


def enclosed(proofs: list[Proof], ball: Ball) -> Ball:
    for proof in proofs:
        ball = proof.enclose(ball)
    return ball


def weights_of(norm: Norm, shape: tuple[int, ...]) -> Array:
    return np.ones(math.prod(shape)) if norm.root is None else array(norm.root.expand(shape)).ravel()


def matrix_of(module: nn.Module, shape: tuple[int, ...]) -> Array:
    """M of x ↦ M x + d, read off its columns."""
    basis = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return array((module(basis) - module(0 * basis)).flatten(1)).T


# -- constants -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINEAR)
@settings(max_examples=25)
@given(kind=NORM_KINDS, scale=log_uniform(1e-6, 1e6), seed=SEEDS)
def test_the_constant_of_a_linear_piece_from_both_sides(name: str, kind: str, scale: float, seed: int) -> None:
    case = LINEAR[name]
    piece, _, shape = case
    module, norm = made(case, seed=seed, scale=scale), norm_of(kind, shape, seed)
    (proof,) = proofs_of(module, norm, shape)
    assert proof.out_shape == arithmetic(module).out_shape(torch.Size(shape)) == module(points(shape)).shape[1:]
    weighted = weights_of(proof.norm, proof.out_shape)[:, None] * matrix_of(module, shape) / weights_of(norm, shape)
    exact = float(np.linalg.norm(weighted, 2))
    assert exact * (1 - 1e-12) <= proof.constant
    if piece in ("linear", "normalise", *MOVES) or (piece in POOLS and kind in ("plain", "scalar")):
        assert proof.constant <= 1.0001 * exact
    if piece == "conv2d" and kind in ("plain", "scalar"):
        # What a kernel reaches over the border of an image is in the constant, and what a stride leaves out.
        assert proof.constant <= 4 * exact
    estimate, out = arithmetic(module).lipschitz_estimate(norm, torch.Size(shape))
    assert float(estimate) == pytest.approx(proof.constant, rel=1e-6)
    np.testing.assert_allclose(weights_of(out, proof.out_shape), weights_of(proof.norm, proof.out_shape), rtol=1e-12)


@settings(max_examples=25)
@given(kind=st.sampled_from(["plain", "scalar", "entries"]), scale=log_uniform(1e-6, 1e6), seed=SEEDS)
def test_constants_of_gaps(kind: str, scale: float, seed: int) -> None:
    """‖(w_i − w_j) ρ⁻¹‖, from both sides, of logits that a linear piece gives; √2 times the constant of all others."""
    module, norm = made(LINEAR["linear"], seed=seed, scale=scale), norm_of(kind, (7,), seed)
    (proof,) = proofs_of(module, norm, (7,))
    rows = matrix_of(module, (7,)) / weights_of(norm, (7,))
    exact = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    found = array(proof.gaps())
    assert (exact * (1 - 1e-12) <= found).all()
    assert (found <= 1.0001 * exact).all()
    assert (np.diag(found) == 0).all()
    np.testing.assert_allclose(
        array(arithmetic(module).gap_estimates(norm, torch.Size((7,)))), exact, rtol=1e-6, atol=1e-12
    )
    (other,) = proofs_of(nn.ReLU(), norm, (7,))
    gain = math.sqrt(2) / weights_of(norm, (7,)).min()
    np.testing.assert_allclose(array(other.gaps()), gain * (1 - np.eye(7)), rtol=1e-12)
    assert float(other.gaps().amax()) >= gain


@pytest.mark.parametrize("name", NONLINEAR)
@settings(max_examples=8)
@given(kind=NORM_KINDS, scale=log_uniform(0.1, 3), seed=SEEDS)
def test_no_pair_violates_the_constant_of_a_nonlinear_piece(name: str, kind: str, scale: float, seed: int) -> None:
    """At distances from 10⁻³ to 10; and no Jacobian does."""
    case = NONLINEAR[name]
    shape = case[2]
    module, norm = made(case, seed=seed, scale=scale), norm_of(kind, shape, seed)
    proofs = proofs_of(module, norm, shape)
    constant, out = constant_of(proofs), proofs[-1].norm
    x = points(shape, 12, seed=seed)
    step = points(shape, 12, seed=seed + 100)
    step *= (torch.logspace(-3, 1, 12, dtype=torch.float64) / step.flatten(1).norm(dim=1)).reshape(
        -1, *[1] * len(shape)
    )
    moved = out.of(module(x + step) - module(x))
    assert moved.shape == (12,)
    # What the two solves left open: 10⁻⁷ for convolutions.
    slack = 1e-5 * (1 + constant) if isinstance(module, SolvedPiece) else 0.0
    assert (moved <= constant * norm.of(step) * (1 + 1e-9) + slack).all()
    rows = array(jacobian(module, x[0]))
    weighted = weights_of(out, proofs[-1].out_shape)[:, None] * rows / weights_of(norm, shape)
    assert np.linalg.norm(weighted, 2) <= constant * (1 + 1e-4)


def test_constants_of_pieces_that_sort_or_cut_are_one() -> None:
    for name in ("relu", "group-sort", "group-sort, triples"):
        (proof,) = proofs_of(made(NONLINEAR[name]), Norm(), NONLINEAR[name][2])
        assert proof.constant == 1.0


def test_a_chain_of_moves_keeps_the_weights_of_every_entry() -> None:
    """Unshuffled, cropped, flattened and cut: the norm says of each output where it came from."""
    shape = torch.Size((2, 8, 8))
    root = norm_of("entries", tuple(shape), 0)
    modules = [nn.PixelUnshuffle(2), mondeq.Crop(1), nn.Flatten(), Entries(3)]
    norm, x, within = root, root.root[None], shape  # type: ignore[index]  # it has one
    for module in modules:
        (proof,) = proofs_of(module, norm, tuple(within))
        norm, x, within = proof.norm, module(x), proof.out_shape
        assert norm.root is not None
        assert torch.equal(norm.root, x[0])


# -- enclosures ----------------------------------------------------------------------------------------------------


@each_case
@settings(max_examples=8)
@given(kind=NORM_KINDS, scale=log_uniform(0.1, 3), radius=st.sampled_from([0.0, 1e-9, 1e-2, 3.0]), seed=SEEDS)
def test_the_image_of_a_ball_is_enclosed(name: str, kind: str, scale: float, radius: float, seed: int) -> None:
    """Of points on its sphere; with radius 0 of points that the centre is the float32 of."""
    case = CASES[name]
    shape = case[2]
    module, norm = made(case, seed=seed, scale=scale), norm_of(kind, shape, seed)
    proofs = proofs_of(module, norm, shape)
    centre = points(shape, 5, seed=seed)
    if radius:
        step = points(shape, 5, seed=seed + 50)
        inside = centre + step * (radius * (1 - 1e-9) / norm.of(step)).reshape(-1, *[1] * len(shape))
        radii = torch.full((5,), radius, dtype=torch.float64)
    else:
        inside, centre = centre, centre.float().double()
        radii = norm.of(inside - centre)
    before = centre.clone()
    found = enclosed(proofs, Ball(centre, radii, norm))
    assert torch.equal(centre, before)
    assert found.radius.shape == (5,)
    assert found.centre.shape[1:] == proofs[-1].out_shape
    torch.testing.assert_close(found.centre, module(centre), rtol=1e-4, atol=1e-4)
    # What the float64 that stands for exact arithmetic here, or the solve, is wrong by itself.
    own = 1e-14 * (1 + found.norm.of(module(inside)) + norm.of(inside) * constant_of(proofs))
    if isinstance(module, SolvedPiece):
        own = enclosed(proofs, Ball(inside, torch.zeros_like(radii), norm)).radius
    assert (found.norm.of(module(inside) - found.centre) <= found.radius + own).all()
    assert (found.radius <= 1.001 * constant_of(proofs) * radii + 2 * own + 1e-9 * (1 + scale)).all()


def exact_image(name: str, module: nn.Module, x: Tensor) -> list[Fraction]:
    """Of one sample of a linear piece, in exact arithmetic."""
    piece, _, shape = LINEAR[name]
    entries = [Fraction(v) for v in x.flatten().tolist()]
    if isinstance(module, mondeq.Normalise):
        mean, std = (
            np.repeat(v, math.prod(shape[1:])).tolist() for v in (module.settings().mean, module.settings().std)
        )
        return [(v - Fraction(m)) / Fraction(s) for v, m, s in zip(entries, mean, std, strict=True)]
    bias = getattr(module, "bias", None)
    columns = module(torch.eye(len(entries), dtype=torch.float64).reshape(-1, *shape)).double()
    if bias is not None:
        plain = made(LINEAR[name])
        plain.load_state_dict(module.state_dict())
        plain.bias.zero_()
        columns = plain(torch.eye(len(entries), dtype=torch.float64).reshape(-1, *shape))
    rows = columns.flatten(1).mT.tolist()
    if piece in POOLS:
        side = arithmetic(module).settings().size  # type: ignore[attr-defined]  # pools have one
        rows = [[Fraction(int(v != 0), side**2) for v in row] for row in rows]
    offsets = [0.0] * len(rows)
    if bias is not None:
        offsets = bias[:, None].expand(-1, len(rows) // len(bias)).flatten().tolist()
    return [
        sum((Fraction(a) * v for a, v in zip(row, entries, strict=True)), Fraction(d))
        for row, d in zip(rows, offsets, strict=True)
    ]


@pytest.mark.parametrize("name", LINEAR)
@settings(max_examples=5)
@given(scale=log_uniform(1e-3, 1e3), seed=SEEDS)
def test_rounding_is_enclosed_in_exact_arithmetic(name: str, scale: float, seed: int) -> None:
    """A ball of radius 0: what is left of it is what was rounded, where terms of all sizes cancel too."""
    case = LINEAR[name]
    shape = case[2]
    module = made(case, seed=seed, scale=scale)
    x = points(shape, 1, seed=seed) * 10 ** (4 * points(shape, 1, seed=seed + 9))
    exact = exact_image(name, module, x)
    found = enclosed(proofs_of(module, Norm(), shape), Ball(x, x.new_zeros(1), Norm()))
    weights = [Fraction(w) for w in weights_of(found.norm, tuple(found.centre.shape[1:])).tolist()]
    error = sum(
        (w * (Fraction(c) - v)) ** 2 for w, c, v in zip(weights, found.centre.flatten().tolist(), exact, strict=True)
    )
    assert error <= Fraction(float(found.radius)) ** 2
    size = float(found.norm.of(found.centre)) + float(verified.vector_norm(x))
    assert float(found.radius) <= 1e-12 * (1 + scale) * (1 + size)


def test_what_cancels_with_the_mean_is_counted() -> None:
    """Pixels a hair from a mean that is no float32: the difference is wrong by a rounding of both, and that is told."""
    for exponent in (0, 20, 40):
        mean = 2.0**exponent / 3
        piece = mondeq.Normalise((mean,), (1 / 3,))
        x = torch.full((1, 1, 1, 3), mean, dtype=torch.float64) + mean * torch.tensor([1e-15, 3e-16, 0.0])
        (proof,) = proofs_of(piece, Norm(), (1, 1, 3))
        found = proof.enclose(Ball(x, torch.zeros(1, dtype=torch.float64), Norm()))
        exact = [(Fraction(v) - Fraction(mean)) / Fraction(1 / 3) for v in x.flatten().tolist()]
        pairs = zip(found.centre.flatten().tolist(), exact, strict=True)
        assert sum((Fraction(1 / 3) * (Fraction(c) - v)) ** 2 for c, v in pairs) <= Fraction(float(found.radius)) ** 2
        # The size of a rounding of the mean, whatever is left of the pixel.
        assert 2**-53 * mean <= float(found.radius) <= 2**-45 * mean


@pytest.mark.parametrize("name", [name for name in NONLINEAR if name.startswith(("equilibrium", "readout"))])
@pytest.mark.parametrize("tol", [1e-1, 1e-3])
def test_an_unfinished_solve_is_enclosed(name: str, tol: float) -> None:
    case = NONLINEAR[name]
    shape = case[2]
    for seed in range(5):
        module = made(case, seed=seed)
        tight, x = proofs_of(module, Norm(), shape), points(shape, 6, seed=seed)
        truth = enclosed(tight, Ball(x, x.new_zeros(6), Norm()))
        module.tol = tol  # type: ignore[assignment]
        loose = enclosed(proofs := list(module.proofs(Norm(), torch.Size(shape))), Ball(x, x.new_zeros(6), Norm()))  # type: ignore[operator]
        assert constant_of(proofs) == constant_of(tight)
        assert (loose.norm.of(loose.centre - truth.centre) <= loose.radius + truth.radius).all()
        assert (loose.radius > truth.radius).any()


# -- settings ------------------------------------------------------------------------------------------------------


@each_case
def test_settings_make_the_piece_and_come_back(name: str) -> None:
    kind, given_settings, shape = CASES[name]
    contract = PIECES[kind]
    wanted = contract.Settings.from_dict(given_settings)
    module = contract.make(wanted, torch.Size(shape))
    assert type(arithmetic(module)) is contract
    found = arithmetic(module).settings()
    again = arithmetic(contract.make(found, torch.Size(shape))).settings()
    assert found == again
    for setting, value in wanted.to_dict().items():
        if setting == "parameterization":
            assert value.items() <= found.to_dict()[setting].items()
        else:
            assert found.to_dict()[setting] == value


@each_case
def test_through_json_and_back_it_is_the_same_network(name: str) -> None:
    case = CASES[name]
    shape = case[2]
    model = mondeq.Network({"thing": made(case)}, shape).eval()
    described = json.loads(json.dumps(describe(model)))
    twin = build(described).double().eval()
    assert json.loads(json.dumps(describe(twin))) == described
    assert described["pieces"][0]["piece"] == case[0]
    assert twin.in_shape == model.in_shape == torch.Size(shape)
    twin.load_state_dict(model.state_dict())
    x = points(shape, 3)
    assert torch.equal(twin(x), model(x))


# -- shapes --------------------------------------------------------------------------------------------------------

WRONG: dict[str, list[tuple[int, ...]]] = {
    "normalise": [(3, 4, 4), (2,), (2, 3, 4, 5)],
    "linear": [(8,), (7, 1), (1, 7)],
    "conv2d": [(3, 5, 4), (2, 2, 4), (2, 5), (40,)],
    "avg-pool2d": [(2, 1, 6), (48,), (2, 3, 4, 4)],
    "average-pool": [(2, 1, 6), (48,), (4, 6)],
    "pixel-unshuffle": [(2, 5, 6), (48,)],
    "crop": [(2, 4, 6), (48,), (5, 6)],
    "entries": [(4,), (2, 7), (1,)],
    "group-sort": [(3, 2, 3), (5,)],
    "equilibrium, dense": [(2, 2, 4), (11,)],
    "equilibrium, conv2d": [(2, 4, 3), (23,), (3, 2, 4)],
    "equilibrium, multiscale-conv2d": [(1, 6, 4), (23,)],
    "readout": [(7,), (2, 4)],
    "readout, convolution": [(1, 4, 3), (13,), (2, 3, 4)],
}


@pytest.mark.parametrize("name", WRONG)
def test_shapes_that_do_not_fit_are_refused_in_one_line_that_names_the_piece(name: str) -> None:
    case = CASES[name]
    for shape in WRONG[name]:
        with pytest.raises(InvalidArgument, match=r"^the piece `thing` ") as caught:
            mondeq.Network({"before": nn.Identity(), "thing": made(case)}, shape)
        assert "\n" not in str(caught.value)
        assert str(shape) in str(caught.value)


@pytest.mark.parametrize("name", WRONG)
def test_descriptions_with_shapes_that_do_not_fit_are_refused_in_one_line(name: str) -> None:
    kind, given_settings, shape = CASES[name]
    # Pieces that are made for what comes in fit what comes in; these are what they can never be made for.
    never = {
        "normalise": WRONG["normalise"], "linear": [(7, 1)], "conv2d": [(2, 2, 4), (2, 5), (40,)],
        "equilibrium, dense": [], "equilibrium, conv2d": [(23,), (2, 2, 4)],
        "equilibrium, multiscale-conv2d": [(23,), (1, 5, 4)], "readout": [],
        "readout, convolution": [(13,), (1, 2, 4)],
    }  # fmt: skip
    for wrong in never.get(name, WRONG[name]):
        rows = [{"name": "before", "piece": "identity"}, {"name": "thing", "piece": kind, **given_settings}]
        with pytest.raises(ConfigError, match=r"^the piece `thing`") as caught:
            build({"in_shape": list(wrong), "pieces": rows})
        assert "\n" not in str(caught.value)
    good = build({"in_shape": list(shape), "pieces": [{"piece": kind, **given_settings}]})
    assert good.in_shape == torch.Size(shape)


def test_a_module_of_the_users_own_that_does_not_fit_is_named_too() -> None:
    for module, shape in ((nn.BatchNorm2d(3), (2, 4, 4)), (nn.Bilinear(2, 3, 4), (2,)), (nn.LSTM(3, 2), (4, 3))):
        with pytest.raises(InvalidArgument, match=r"^the piece `thing` ") as caught:
            mondeq.Network({"thing": module}, shape)
        assert "\n" not in str(caught.value)


# -- what a head sees of a state -----------------------------------------------------------------------------------

PICKED: dict[str, tuple[nn.Module, tuple[int, ...], float, int]] = {
    "entries": (Entries(), (7,), 1, 1),
    "entries of a picture": (nn.Sequential(nn.Flatten(), Entries()), (2, 3, 4), 1, 1),
    "last entries": (Entries(4), (7,), 1, 1),
    "blocks of 2": (AveragePool(2), (2, 4, 6), 1 / 2, 4),
    "blocks of 3 that leave rows and columns over": (AveragePool(3), (2, 5, 7), 1 / 3, 9),
    "blocks of 1": (AveragePool(1), (2, 2, 3), 1, 1),
}


@pytest.mark.parametrize("name", PICKED)
def test_laws(name: str) -> None:
    """Linear; the rows of P are orthogonal, of norm `gain`, with `terms` entries each; no float: rounded up."""
    module, shape, gain, terms = PICKED[name]
    P = module(torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)).flatten(1).mT
    torch.testing.assert_close(P @ P.mT, gain**2 * torch.eye(len(P), dtype=torch.float64))
    assert ((P != 0).sum(1) == terms).all()
    z = torch.randn(3, *shape, dtype=torch.float64)
    torch.testing.assert_close(module(z).flatten(1), z.flatten(1) @ P.mT)
    if isinstance(module, mondeq.Piece):
        assert module.out_shape(torch.Size(shape)).numel() == len(P)
        (proof,) = module.proofs(Norm(), torch.Size(shape))
        exact = math.frexp(gain)[0] == 0.5
        assert proof.constant == gain if exact else gain < proof.constant <= gain * (1 + 1e-14)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_average_pooling_is_that_of_torch(size: int) -> None:
    z = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(AveragePool(size)(z), functional.avg_pool2d(z, size))
    torch.testing.assert_close(AveragePool(size)(z), nn.AvgPool2d(size)(z))


def test_entries_start_where_they_should() -> None:
    z = torch.arange(14.0).reshape(2, 7)
    assert torch.equal(Entries(4)(z), z[:, 4:])
    assert torch.equal(Entries()(z), z)


def test_a_border_is_cut_off_on_every_side() -> None:
    x = torch.arange(60.0).reshape(1, 2, 5, 6)
    assert torch.equal(mondeq.Crop(2)(x), x[:, :, 2:3, 2:4])


def test_groups_of_channels_are_sorted() -> None:
    x = torch.tensor([[3.0, 1.0, -1.0, 2.0, 0.0, 5.0]])
    assert mondeq.GroupSort(2)(x).tolist() == [[1.0, 3.0, -1.0, 2.0, 0.0, 5.0]]
    assert mondeq.GroupSort(3)(x).tolist() == [[-1.0, 1.0, 3.0, 0.0, 2.0, 5.0]]
    images = torch.randn(2, 4, 3, 3)
    assert torch.equal(mondeq.GroupSort(2)(images)[:, :2], images[:, :2].sort(dim=1).values)


# -- pieces of torch whose settings prove nothing ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.Conv2d(2, 2, 3, groups=2), (2, 5, 5), "groups, dilation or another padding"),
        (nn.Conv2d(2, 2, 3, dilation=2), (2, 5, 5), "groups, dilation or another padding"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (2, 5, 5), "another padding than so many zeros"),
        (nn.Conv2d(2, 2, 3, padding="same"), (2, 5, 5), "another padding than so many zeros"),
        (nn.AvgPool2d(3, stride=1), (2, 5, 5), "overlapping blocks or padding"),
        (nn.AvgPool2d(2, padding=1), (2, 5, 5), "overlapping blocks or padding"),
        (nn.AvgPool2d(2, ceil_mode=True), (2, 5, 5), "overlapping blocks or padding"),
        (nn.AvgPool2d(2, divisor_override=1), (2, 5, 5), "overlapping blocks or padding"),
        (nn.BatchNorm2d(2), (2, 5, 5), "is a BatchNorm2d, of which no constant is known"),
    ],
)
def test_variants_of_which_nothing_is_proved_are_not_certified(
    module: nn.Module, shape: tuple[int, ...], message: str
) -> None:
    model = mondeq.Network({"thing": module, "flatten": nn.Flatten()}, shape)
    with pytest.raises(InvalidArgument, match=f"nothing can be certified: the piece `thing` .*{message}"):
        mondeq.lipschitz_bounds(model)


def test_only_a_piece_that_its_settings_describe_is_saved() -> None:
    """A description that leaves out what a module of torch can have besides is refused, not written."""
    for module in (nn.Conv2d(2, 2, (3, 1)), nn.Conv2d(2, 2, 3, stride=(1, 2)), nn.Conv2d(2, 2, 3, dilation=2)):
        with pytest.raises(InvalidArgument, match=r"`model\.thing"):
            describe(mondeq.Network({"thing": module}, (2, 6, 6)))


@pytest.mark.parametrize("kernel", [(3, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("stride", [1, (1, 2)])
def test_convolutions_of_any_sides_keep_their_constant(kernel: tuple[int, int], stride: Any) -> None:
    module = nn.Conv2d(2, 3, kernel, stride=stride, padding=(1, 0)).double().requires_grad_(False)
    (proof,) = proofs_of(module, Norm(), (2, 5, 6))
    exact = float(np.linalg.norm(matrix_of(module, (2, 5, 6)), 2))
    assert exact * (1 - 1e-12) <= proof.constant <= 2 * exact
