"""Networks of 2020 as others may hand them over: damaged, exotic, of two layouts at once, with settings of no sense."""

import itertools
import os
import random
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mondeq
from mondeq.cli import main
from mondeq.errors import MondeqError, RunError
from tests.mondeq.test_doors import INF, STRANGE, Called, explained
from tests.mondeq.test_original import PREFIX, convolution, dense, multi_tier, saved


def imported(path: Path, **settings: Any) -> mondeq.Network:
    return mondeq.load_original_checkpoint(path, **({"m": 1.0, "mean": 0.2, "std": 0.5} | settings))


def test_damaged_checkpoints(tmp_path: Path) -> None:
    """Bytes changed, lost and added, in both formats of torch.save: refused in one line, or a network that works."""
    generator, path = random.Random(0), tmp_path / "net.pt"
    files = []
    for network, zipped in itertools.product((dense(), convolution(), multi_tier()), (True, False)):
        torch.save(network, path, _use_new_zipfile_serialization=zipped)
        files.append(path.read_bytes())
    refusals = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(400):
            path.write_bytes(damaged(generator.choice(files), generator))
            try:
                model = imported(path)
            except MondeqError as error:
                refusals.append(str(error))
            else:
                assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert 300 < len(refusals) < 400
    assert all(str(path) in line and "\n" not in line for line in refusals)


def damaged(content: bytes, generator: random.Random) -> bytes:
    data = bytearray(content)
    place = generator.randrange(min(len(data), 900)) if generator.random() < 0.7 else generator.randrange(len(data))
    match generator.randrange(4):
        case 0:
            for _ in range(generator.choice((1, 2, 8, 64))):
                data[generator.randrange(len(data))] = generator.randrange(256)
        case 1:
            del data[place:]
        case 2:
            del data[place : place + generator.randrange(1, 40)]
        case 3:
            data[place:place] = generator.randbytes(generator.randrange(1, 9))
    data[min(place, len(data) - 1) if data else 0 : place + 1] = generator.randbytes(1)
    return bytes(data)


def exotic(tensor: Tensor) -> dict[str, Tensor]:
    """`tensor` made into other kinds of tensor of its shape."""
    single = tensor.reshape(-1)[0].clone()
    return {
        "complex": tensor.to(torch.complex64),
        "integer": (10 * tensor).long(),
        "boolean": tensor > 0,
        "byte": (10 * tensor).to(torch.uint8),
        "float8": tensor.to(torch.float8_e4m3fn),
        "sparse": tensor.to_sparse(),
        "meta": tensor.to("meta"),
        "quantised": torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "expanded": single.expand(tensor.shape),
        "huge": single.expand(10**9, *tensor.shape),
        "overlapping": torch.as_strided(single, tensor.shape, (0,) * tensor.ndim),
        "overflowing": tensor.double() * 1e39,
        "infinite": tensor / 0,
        "empty": tensor.new_zeros(0, *tensor.shape[1:]),
        "a dimension more": tensor[None],
        "a dimension less": tensor.reshape(-1),
        "scalar": single,
    }


@pytest.mark.filterwarnings("ignore")
def test_exotic_tensors(tmp_path: Path) -> None:
    for network, name in itertools.product(
        (dense(), convolution(), multi_tier()), (f"{PREFIX}U.weight", "Wout.weight")
    ):
        for kind, tensor in exotic(network[name]).items():
            saved(network | {name: tensor}, tmp_path / "net.pt")
            with pytest.raises(RunError) as caught:
                imported(tmp_path / "net.pt")
            assert "\n" not in str(caught.value), kind


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_and_shared_memory_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    network = {name: tensor.to(dtype) for name, tensor in dense().items()}
    network[f"{PREFIX}B.weight"] = network[f"{PREFIX}A.weight"].mT
    model = imported(saved(network, tmp_path / "net.pt"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.layer.linear.get_parameter("F"), network[f"{PREFIX}A.weight"].float())
    assert torch.equal(model.layer.linear.get_parameter("G"), network[f"{PREFIX}A.weight"].float())
    mondeq.save(model, tmp_path / "run")


def test_names_and_shapes_of_two_layouts(tmp_path: Path) -> None:
    """Every network with a tensor more, less, or in the shape of another layout's is refused."""
    networks = (dense(), convolution(), multi_tier())
    for network, other in itertools.permutations(networks, 2):
        for name in network:
            wrong: list[dict[str, Tensor]] = [{k: v for k, v in network.items() if k != name}]
            if name in other and other[name].shape != network[name].shape:
                wrong.append(network | {name: other[name]})
            for content in wrong:
                with pytest.raises(RunError, match=r"network of 2020|size mismatch"):
                    imported(saved(content, tmp_path / "net.pt"))
        for more in ({"bn.weight": torch.ones(3)}, {"U.weight": network[f"{PREFIX}U.weight"]}, {3: torch.ones(1)}):
            with pytest.raises(RunError, match=r"unknown|two tensors of one name|of tensors alone"):
                imported(saved(network | more, tmp_path / "net.pt"))  # type: ignore[operator]
    scale = convolution() | {f"{PREFIX}h": torch.tensor(INF)}
    with pytest.raises(RunError, match="NaN or inf in h"):
        imported(saved(scale, tmp_path / "net.pt"))


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    plain, packed = saved(dense() | {"x": torch.zeros(10**6)}, tmp_path / "net.pt"), tmp_path / "packed.pt"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(RunError, match="compressed archive"):
        imported(packed)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / ("n" * 300), Path("a\0b")):
        with pytest.raises(RunError):
            imported(path)


@pytest.mark.parametrize("name", ["m", "mean", "std", "image_size"])
def test_settings_of_an_import(name: str, tmp_path: Path) -> None:
    """What makes no sense is refused; what is taken gives a network that can be saved, loaded and solved."""
    for network in (dense(), multi_tier((1, 2), 6)):
        path = saved(network, tmp_path / "net.pt")
        for value in (*STRANGE, np.float64(0.5), np.array([0.5]), [0.5, 0.5]):
            try:
                model = imported(path, **{name: value})
            except MondeqError:
                continue
            mondeq.save(model, tmp_path / "run")
            assert bool(torch.isfinite(mondeq.load(tmp_path / "run")(torch.rand(1, *model.in_shape))).all())


@pytest.mark.parametrize(
    "options",
    [
        ["--image-size", "0"],
        ["--image-size", "5"],
        ["--image-size", "9" * 5000],
        ["--std", "1e308"],
        ["--std", "1e-320"],
        ["--mean", "1e308"],
        ["--mean", "nan"],
        ["--mean", "0.1", "0.2"],
        ["--m", "0"],
        ["--m", "1e400"],
        ["--m", "1e300"],
        ["--data", "mnits"],
        ["--data", "x" * 5000],
    ],
    ids=lambda options: " ".join(options)[:20],
)
def test_an_import_that_is_refused_writes_nothing(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = saved(dense(), tmp_path / "net.pt"), tmp_path / "run"
    given = {"--m": ["1"], "--mean": ["0.2"], "--std": ["0.5"]} | {options[0]: options[1:]}
    command = ["import-checkpoint", str(path), "--out", str(out), *(a for k, v in given.items() for a in (k, *v))]
    explained(Called(main(command), *capsys.readouterr()), 1, 2)
    assert not out.exists()


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_import_minds_no_defaults(device: str, dtype: torch.dtype, tmp_path: Path) -> None:
    expected = imported(saved(multi_tier(), tmp_path / "net.pt"))
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        model = imported(tmp_path / "net.pt")
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(default)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
