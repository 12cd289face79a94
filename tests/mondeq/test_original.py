"""Networks of 2020: synthetic state_dicts in their layout, against W built directly with torch's convolutions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import mondeq
from mondeq.cli import main
from mondeq.errors import ConfigError, RunError
from tests.mondeq.zoo import logits_of, normalised

PREFIX = "mon.linear_module."
M = 0.7
Tensors = dict[str, Tensor]


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def own(tensors: Tensors) -> Tensors:
    return {name if name.startswith("Wout") else PREFIX + name: tensor for name, tensor in tensors.items()}


def dense() -> Tensors:
    shapes = {"U.weight": (5, 16), "U.bias": (5,), "A.weight": (5, 5), "B.weight": (5, 5)}
    return own(random_tensors(shapes | {"Wout.weight": (3, 5), "Wout.bias": (3,)}))


def convolution(channels: int = 2, size: int = 28) -> Tensors:
    kernel = (channels, channels, 3, 3)
    shapes: dict[str, tuple[int, ...]] = {"U.weight": (channels, 1, 3, 3), "U.bias": (channels,)}
    shapes |= {"A.weight": kernel, "B.weight": kernel}
    shapes |= {"Wout.weight": (3, channels * ((size + 2) // 4) ** 2), "Wout.bias": (3,)}
    return own(random_tensors(shapes) | {"g": torch.tensor(0.8), "h": torch.tensor(-1.3)})


def multi_tier(channels: tuple[int, ...] = (2, 3, 1), size: int = 8) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {"U.weight": (channels[0], 1, 3, 3), "U.bias": (channels[0],)}
    numbers: Tensors = {}
    for i, c in enumerate(channels):
        shapes |= {f"A0.{i}.weight": (c, c, 3, 3), f"B0.{i}.weight": (c, c, 3, 3)}
        numbers |= {f"g.{i}": torch.tensor(0.5 + i), f"h.{i}": torch.tensor(1.5 - i)}
        if i + 1 < len(channels):
            shapes[f"A_n0.{i}.weight"] = (channels[i + 1], c, 3, 3)
            numbers[f"gn.{i}"] = torch.tensor(0.3 + i)
    last = channels[-1] * (size // 2 ** (len(channels) - 1) + 2) ** 2
    return own(random_tensors(shapes | {"Wout.weight": (3, last), "Wout.bias": (3,)}) | numbers)


def saved(tensors: Any, path: Path) -> Path:
    torch.save(tensors, path)
    return path


def load(path: Path, **options: Any) -> mondeq.Network:
    return mondeq.load_original_checkpoint(path, m=M, mean=0.2, std=0.5, **options)


def circular(x: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="circular"), kernel, stride=stride)


def adjoint_of(linear: Callable[[Tensor], Tensor], like: Tensor) -> Callable[[Tensor], Tensor]:
    def adjoint(y: Tensor) -> Tensor:
        x = torch.zeros_like(like).expand(len(y), *like.shape[1:]).clone().requires_grad_()
        return torch.autograd.grad(linear(x), x, y)[0]

    return adjoint


def test_dense(tmp_path: Path) -> None:
    tensors = dense()
    model = load(saved(tensors, tmp_path / "net.pt"))
    A, B = tensors[f"{PREFIX}A.weight"], tensors[f"{PREFIX}B.weight"]
    torch.testing.assert_close(model.layer.linear.weight(), (1 - M) * torch.eye(5) - A.mT @ A + B - B.mT)
    assert model.in_shape == (1, 4, 4)
    images = torch.rand(2, 1, 4, 4)
    z = model.layer.solve(normalised(model, images), tol=1e-6).value
    source = ((images - 0.2) / 0.5).flatten(1) @ tensors[f"{PREFIX}U.weight"].mT + tensors[f"{PREFIX}U.bias"]
    torch.testing.assert_close(z, (z @ model.layer.linear.weight().mT + source).relu(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits_of(model, z), z @ tensors["Wout.weight"].mT + tensors["Wout.bias"])


def test_single_convolution(tmp_path: Path) -> None:
    """z = σ(Wz + Ux + b) on the torus of the image padded by one, border at zero, pooled by blocks of 4×4."""
    tensors = convolution()
    model = load(saved(tensors, tmp_path / "net.pt"))
    A, B, g, h = (tensors[PREFIX + name] for name in ("A.weight", "B.weight", "g", "h"))
    z = torch.randn(2, 2, 30, 30)
    skew = h * B / B.norm()
    A = A / A.norm()
    W = (1 - M) * z - g * adjoint_of(lambda x: circular(x, A), z)(circular(z, A))
    W = W + circular(z, skew) - adjoint_of(lambda x: circular(x, skew), z)(z)
    with torch.no_grad():
        torch.testing.assert_close(z - model.layer.linear.operator().apply(z), W, rtol=1e-4, atol=1e-5)
        images = torch.rand(2, 1, 28, 28)
        padded = functional.pad((images - 0.2) / 0.5, (1, 1, 1, 1))
        source = circular(padded, tensors[f"{PREFIX}U.weight"]) + tensors[f"{PREFIX}U.bias"][:, None, None]
        inside = model.layer.linear.inside
        ours = model.layer.linear.source(normalised(model, images))
        torch.testing.assert_close(ours * inside, source * inside, rtol=1e-4, atol=1e-5)
        assert not inside[0].any()
        assert not inside[:, -1].any()
        assert inside[1:-1, 1:-1].all()
        pooled = functional.avg_pool2d(z, 4).flatten(1)
        expected = pooled @ tensors["Wout.weight"].mT + tensors["Wout.bias"]
        torch.testing.assert_close(logits_of(model, z), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "size"), [((2, 3, 1), 8), ((1, 2), 6), ((2,), 5)])
def test_multi_tier(channels: tuple[int, ...], size: int, tmp_path: Path) -> None:
    tensors = multi_tier(channels, size)
    model = load(saved(tensors, tmp_path / "net.pt"))
    get = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    operator = model.layer.linear.operator()
    sides = [size // 2**i + 2 for i in range(len(channels))]
    tiers = [torch.randn(2, c, n, n) for c, n in zip(channels, sides, strict=True)]

    def unit(kind: str, scale: str, i: int, root: bool = True) -> Tensor:
        kernel, factor = get[f"{kind}.{i}.weight"], get[f"{scale}.{i}"]
        return (factor.sqrt() if root else factor) * kernel / kernel.norm()

    def down(i: int, x: Tensor) -> Tensor:
        return functional.pad(circular(x, unit("A_n0", "gn", i), stride=2), (0, 1, 0, 1))

    expected = []
    for i, z in enumerate(tiers):
        A, B = unit("A0", "g", i), unit("B0", "h", i, root=False)
        W = (1 - M) * z - adjoint_of(lambda x, A=A: circular(x, A), z)(circular(z, A))
        W = W + circular(z, B) - adjoint_of(lambda x, B=B: circular(x, B), z)(z)
        if i + 1 < len(tiers):
            W = W - adjoint_of(lambda x, i=i: down(i, x), z)(down(i, z))
        if i:
            W = W - 2 * adjoint_of(lambda x, A=A: circular(x, A), z)(down(i - 1, tiers[i - 1]))
        expected.append(W)
    with torch.no_grad():
        state = model.layer.linear.layout.state(tiers)
        found = model.layer.linear.layout.images(state - operator.apply(state))
        for ours, W in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, W, rtol=1e-4, atol=1e-5)
        logits = tiers[-1].flatten(1) @ get["Wout.weight"].mT + get["Wout.bias"]
        torch.testing.assert_close(logits_of(model, state), logits, rtol=1e-4, atol=1e-5)
        assert model(torch.rand(2, 1, size, size)).shape == (2, 3)


def test_sizes_that_the_head_leaves_open(tmp_path: Path) -> None:
    """4×4 pooling fits four sizes; the usual ones are taken, others are asked for."""
    assert load(saved(convolution(size=29), tmp_path / "a")).in_shape == (1, 28, 28)
    assert load(tmp_path / "a", image_size=29).in_shape == (1, 29, 29)
    path = saved(convolution(size=12), tmp_path / "b")
    with pytest.raises(RunError, match="its head fits images of side 10 to 13; say which with `image_size`"):
        load(path)
    assert load(path, image_size=12).in_shape == (1, 12, 12)
    with pytest.raises(RunError, match="its head fits images of side 10 to 13"):
        load(path, image_size=28)


class Harmless:
    """Anything that is no tensor."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state": Harmless()}, "is not a state_dict of tensors alone, and nothing else is read"),
        ([torch.zeros(2)], "is not a state_dict of tensors alone"),
        ({"a": 3}, "is not a state_dict of tensors alone"),
        ({"a": torch.zeros(2)}, "is no network of 2020: it holds a"),
        ({}, "is no network of 2020: it holds nothing"),
        ({k: v for k, v in dense().items() if "B.weight" not in k}, "is no complete network of 2020: 'B.weight'"),
        ({k: v for k, v in multi_tier().items() if "gn.1" not in k}, "is no complete network of 2020: 'gn.1'"),
        (dense() | {f"{PREFIX}A.weight": torch.full((5, 5), torch.nan)}, "holds NaN or inf in A.weight"),
        (dense() | {f"{PREFIX}U.weight": torch.zeros(5, 17)}, "17 inputs are no square image"),
        (dense() | {"Wout.weight": torch.zeros(3, 6)}, "is no complete network of 2020: size mismatch"),
        (convolution() | {f"{PREFIX}g": torch.tensor(-0.1)}, "g is -0.1, which makes W not monotone"),
    ],
)
def test_what_is_no_network_of_2020_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=message) as caught:
        load(saved(content, tmp_path / "net.pt"))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot read .*absent"):
        load(tmp_path / "absent")
    whole = saved(dense(), tmp_path / "net.pt").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text").write_text("hello")
    for name in ("half", "text"):
        with pytest.raises(RunError, match=rf"{name} is not a state_dict of tensors alone"):
            load(tmp_path / name)


@pytest.mark.parametrize("options", [{"m": 0}, {"m": -1.0}, {"std": 0.0}, {"mean": [0.1, 0.2]}])
def test_settings_out_of_range(options: dict[str, Any], tmp_path: Path) -> None:
    path = saved(dense(), tmp_path / "net.pt")
    with pytest.raises(ConfigError, match=f"`{next(iter(options))}`"):
        mondeq.load_original_checkpoint(path, **({"m": M, "mean": 0.2, "std": 0.5} | options))


def test_the_command_makes_a_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ten_classes = {"Wout.weight": torch.randn(10, 16), "Wout.bias": torch.zeros(10)}
    path, out = saved(multi_tier() | ten_classes, tmp_path / "net.pt"), tmp_path / "run"
    command = ["import-checkpoint", str(path), "--m", "0.7", "--mean", "0.2", "--std", "0.5", "--data", "digits"]
    assert main([*command, "--out", str(out)]) == 0
    assert "network for images (1, 8, 8), 10 classes, m = 0.7" in capsys.readouterr().out
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(mondeq.load(out)(images), load(path)(images), rtol=1e-3, atol=1e-4)
    assert main(["info", str(out)]) == 0
    assert main(["certify", str(out), "--limit", "3", "--json", str(tmp_path / "c.json")]) == 0
    assert json.loads((tmp_path / "c.json").read_text())["samples"] == 3
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert main([*command, "--out", str(out)]) == 1
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
