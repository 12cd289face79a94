"""What enrols is held to the laws of its kind, by its example: settings, shapes, constants, enclosures, files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mondeq
from mondeq.formats import build, describe
from mondeq.norms import Ball, Box, Norm
from mondeq.pieces import Arithmetic, Proof, Unproved, arithmetic
from mondeq.testing import check_lipschitz, check_unique_equilibrium

every_piece = pytest.mark.parametrize("name", list(mondeq.PIECES))
every_parameterization = pytest.mark.parametrize("name", list(mondeq.PARAMETERIZATIONS))


def example(name: str, seed: int = 0) -> tuple[nn.Module, Arithmetic, torch.Size]:
    torch.manual_seed(seed)
    settings, shape = mondeq.PIECES[name].example()
    module = mondeq.PIECES[name].make(settings, shape).double().eval()
    piece = arithmetic(module)
    piece.sharpen()
    return module, piece, shape


def norms(shape: torch.Size) -> list[Norm]:
    return [Norm(), Norm(torch.rand(shape, dtype=torch.float64) + 0.3)]


def out_norm(proofs: list[Proof], x: Tensor) -> Tensor:
    root = proofs[-1].norm.root
    return torch.linalg.vector_norm((x if root is None else x * root).flatten(1), dim=1)


@every_piece
def test_settings_make_the_same_piece_again(name: str) -> None:
    _, piece, shape = example(name)
    settings = piece.settings()
    again = arithmetic(mondeq.PIECES[name].make(type(settings).from_dict(settings.to_dict()), shape))
    assert again.out_shape(shape) == piece.out_shape(shape)
    assert type(again) is type(piece)


@every_piece
def test_a_network_of_it_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    module, _, shape = example(name)
    model = mondeq.Network([module], shape).eval()
    assert describe(build(describe(model))) == describe(model)
    mondeq.save(model, tmp_path)
    x = torch.randn(3, *shape, dtype=torch.float64)
    assert torch.equal(mondeq.load(tmp_path).double()(x), model(x))


@every_piece
def test_its_constant_is_a_bound_and_no_wild_one(name: str) -> None:
    for seed in range(5):
        module, piece, shape = example(name, seed)
        for norm in norms(shape):
            proofs = list(piece.proofs(norm, shape))
            constant = 1.0
            for proof in proofs:
                constant *= proof.constant
            x = torch.randn(64, *shape, dtype=torch.float64)
            step = torch.randn_like(x) * torch.logspace(-3, 1, 64, dtype=torch.float64).reshape(-1, *[1] * len(shape))
            with torch.no_grad():
                moved = out_norm(proofs, module(x + step) - module(x))
            ratio = moved / norm.of(step)
            assert float(ratio.amax()) <= constant * (1 + 1e-6)
            assert constant <= 300 * float(ratio.amax())
            estimate, _ = piece.lipschitz_estimate(norm, shape)
            assert float(torch.as_tensor(estimate).detach()) == pytest.approx(constant, rel=0.9)


@every_piece
def test_its_enclosure_contains_the_exact_output_of_all_of_a_ball(name: str) -> None:
    module, piece, shape = example(name)
    for norm in norms(shape):
        proofs = list(piece.proofs(norm, shape))
        x = torch.randn(20, *shape, dtype=torch.float64)
        step = 0.1 * torch.randn_like(x)
        ball = Ball(x, norm.of(step), norm)
        for proof in proofs:
            ball = proof.enclose(ball)
        with torch.no_grad():
            distance = out_norm(proofs, module(x + step) - ball.centre)
        assert ball.centre.shape[1:] == piece.out_shape(shape)
        assert bool((distance <= ball.radius).all())
        # A point is enclosed tightly: what is computed is right to rounding and the error of a tight solve.
        point = Ball(x, torch.zeros(20, dtype=torch.float64), norm)
        for proof in proofs:
            point = proof.enclose(point)
        assert float(point.radius.amax()) < 1e-5


@every_piece
def test_its_box_contains_the_outputs_of_all_of_a_box_and_is_what_training_sees(name: str) -> None:
    module, piece, shape = example(name)
    x = torch.randn(20, *shape, dtype=torch.float64)
    box = proved = Box.around(x, 0.1)
    try:
        for proof in piece.proofs(Norm(), shape):
            proved = proof.enclose_box(proved)
    except Unproved:
        with pytest.raises(Unproved, match="boxes"):
            piece.box_estimate(box)
        return
    with torch.no_grad():
        # Equilibria that are looked at are solved to a tolerance.
        seen, slack = piece.box_estimate(box), torch.tensor(1e-8, dtype=torch.float64)
        for corner in (torch.zeros_like(x), *torch.randn(4, *x.shape, dtype=torch.float64).sign()):
            out = module(x + 0.1 * corner)
            assert bool(proved.widened(slack).contains(Box(out, out)).all())
    torch.testing.assert_close(seen.lower, proved.lower, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.upper, proved.upper, rtol=1e-5, atol=1e-5)


@every_piece
def test_a_shape_that_does_not_fit_is_named(name: str) -> None:
    if name in ("identity", "relu", "hardtanh", "flatten", "equilibrium", "readout"):  # these take any shape
        return
    with pytest.raises(mondeq.ConfigError, match="the piece `0`") as caught:
        mondeq.formats.build({"in_shape": [3, 5, 7, 11], "pieces": [{"piece": name, **settings_of(name)}]})
    assert "\n" not in str(caught.value)


def settings_of(name: str) -> dict[str, object]:
    settings, _ = mondeq.PIECES[name].example()
    return settings.to_dict()


@every_parameterization
def test_examples_have_one_equilibrium_and_keep_their_constants(name: str) -> None:
    settings, shape = mondeq.PARAMETERIZATIONS[name].example()
    torch.manual_seed(0)
    linear = mondeq.PARAMETERIZATIONS[name].make(settings, shape)
    assert linear.settings() == settings
    x = torch.randn(3, *linear.in_shape)
    for _, activation in mondeq.ACTIVATIONS.items():
        check_unique_equilibrium(linear, activation(), x)
    assert 0 < check_lipschitz(linear) <= 1


def test_a_name_is_given_once() -> None:
    with pytest.raises(mondeq.ConfigError, match="'flatten' is FlattenPiece already; choose another name"):
        mondeq.PIECES.enrol("flatten")(type("Other", (), {}))
    with pytest.raises(mondeq.ConfigError, match="unknown piece 'nothing'; choose one of"):
        mondeq.PIECES["nothing"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: mondeq.AveragePool(0),
        lambda: mondeq.Crop(0),
        lambda: mondeq.GroupSort(1),
        lambda: mondeq.Entries(-1),
        lambda: mondeq.PadChannels(2.5),  # type: ignore[arg-type]
        lambda: mondeq.Normalise(0.5, (0.5,)),  # type: ignore[arg-type]
    ],
)
def test_numbers_out_of_range_are_told_in_one_line(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(mondeq.ConfigError, match=r"^`\w+` must be .*, got .*$"):
        make()
