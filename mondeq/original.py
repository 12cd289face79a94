"""Networks of 2020 (Winston & Kolter) from their state_dicts: W = (1 − m)I − AᵀA + B − Bᵀ there, so F = A, G = Bᵀ.

Convolutions are normalised there as by our `weight_norm`: √g · A/‖A‖_F, h · B/‖B‖_F. m is not stored.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mondeq import values
from mondeq.errors import ConfigError, RunError
from mondeq.network import Network, exact_copy
from mondeq.presets import Classifier, ModelConfig
from splitting import ConvergenceWarning, SplittingError

_PREFIX = "mon.linear_module."
_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_Reader = Callable[[dict[str, Tensor], int | None], tuple[dict[str, Any], dict[str, Tensor]]]


def load_original_checkpoint(
    path: str | Path,
    *,
    m: float,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    image_size: int | None = None,
) -> Network:
    """The classifier that a state_dict of 2020 describes: dense, single convolution or multi-tier, told by its names.

    Weights become float32. The file is read with torch's loader for tensors only, which runs no code.

    Args:
        path: The file that torch.save wrote of the state_dict.
        m: The strong monotonicity it was trained with.
        mean: That of its normalisation, per channel or one for all.
        std: That of its normalisation, per channel or one for all.
        image_size: The side of its images; needed where the shapes leave it open and it is neither 28 nor 32.

    Returns:
        The network, in evaluation mode.

    Raises:
        RunError: The file is anything else, holds a tensor more or less, or makes a network that cannot be solved.
        ConfigError: m, mean, std or image_size lies outside its range.
    """
    path = Path(path)
    tensors = _read(path)
    read, dimensions = _layout(tensors, path)
    try:
        _check_dimensions(tensors, dimensions)
        config, weights = read(tensors, image_size)
    except ValueError as error:
        raise RunError(f"{path} is no complete network of 2020: {error}") from error
    if image_size is not None and config["image_shape"][1] != image_size:
        raise ConfigError(f"`image_size` is {image_size!r}, but {path} is for images of shape {config['image_shape']}")
    channels = config["image_shape"][0]
    config |= {"m": m, "mean": _per_channel(mean, channels), "std": _per_channel(std, channels)}
    # Not where and how the caller wants new tensors made, and without memory until the sizes are known to be right.
    with torch.device("meta"):
        _check_sizes(weights, Classifier(ModelConfig(**config)), path)
    with torch.device("cpu"):
        model = Classifier(ModelConfig(**config)).float().eval()
        model.load_state_dict(weights)
        _check_usable(model, path)
    return model


def _read(path: Path) -> dict[str, Tensor]:
    """Its tensors by their names without the common prefix, float32.

    Whatever goes wrong while a foreign file is read is the file's fault, and torch's loader raises nearly anything.
    """
    try:
        if not path.is_file():
            raise RunError(f"cannot read {path}: there is no such file, or it is a folder, pipe or device")
        _check_unpacked(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise RunError(f"{path} is not a state_dict of tensors alone, and nothing else is read: {reason}") from error
    if not isinstance(content, dict) or not all(_is_named_tensor(*item) for item in content.items()):
        raise RunError(f"{path} is not a state_dict of tensors alone, and nothing else is read")
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in content.items()}
    if len(tensors) < len(content):
        raise RunError(f"{path} is no network of 2020: it holds two tensors of one name")
    return {name: _plain(name, tensor, path) for name, tensor in tensors.items()}


def _check_unpacked(path: Path) -> None:
    """Raise RunError for an archive larger than its file: torch.save never compresses, and memory has an end."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise RunError(f"{path} is a compressed archive, which torch.save did not write; nothing else is read")


def _is_named_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and name.isprintable() and isinstance(value, Tensor)


def _plain(name: str, tensor: Tensor, path: Path) -> Tensor:
    """`tensor` as float32. Raises RunError for what is not finite real numbers, each with a place of its own in memory
    (a few bytes can claim to be a tensor of any size)."""
    if not (
        tensor.dtype in _REAL
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_nested
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    ):
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}".replace("torch.", "")
        raise RunError(f"{path} holds no plain tensor of real numbers in {name}, but one that is {kind}")
    if not bool(torch.isfinite(tensor).all()):
        raise RunError(f"{path} holds NaN or inf in {name}")
    single = tensor.detach().float()
    if not bool(torch.isfinite(single).all()):
        raise RunError(f"{path} holds numbers in {name} that are too large for float32")
    return single


def _layout(tensors: dict[str, Tensor], path: Path) -> tuple[_Reader, dict[str, int]]:
    """What reads a network with these names, and how many dimensions each of its tensors has."""
    names = {"U.bias": 1, "Wout.weight": 2, "Wout.bias": 1}
    tiers = sum(name.startswith("A0.") for name in tensors)
    if tiers:
        kernels = [f"{name}.{i}.weight" for name in ("A0", "B0") for i in range(tiers)]
        kernels += [f"A_n0.{i}.weight" for i in range(tiers - 1)]
        scales = [f"{name}.{i}" for name in ("g", "h") for i in range(tiers)] + [f"gn.{i}" for i in range(tiers - 1)]
        return _multiscale, names | dict.fromkeys(["U.weight", *kernels], 4) | dict.fromkeys(scales, 0)
    if "A.weight" not in tensors:
        raise RunError(f"{path} is no network of 2020: it holds {', '.join(sorted(tensors)[:4]) or 'nothing'}")
    if tensors["A.weight"].ndim == 2:
        return _dense, names | dict.fromkeys(["U.weight", "A.weight", "B.weight"], 2)
    return _convolution, names | dict.fromkeys(["U.weight", "A.weight", "B.weight"], 4) | {"g": 0, "h": 0}


def _check_dimensions(tensors: dict[str, Tensor], dimensions: dict[str, int]) -> None:
    """Raise ValueError unless `tensors` are just these: one too many makes another network of it."""
    for problem, names in (("missing", dimensions.keys() - tensors), ("unknown", tensors.keys() - dimensions)):
        if names:
            raise ValueError(f"{', '.join(map(repr, sorted(names)[:4]))} {problem}")
    for name, count in dimensions.items():
        if tensors[name].ndim != count or tensors[name].numel() == 0:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, where {count} dimensions are needed")


def _check_sizes(weights: dict[str, Tensor], model: Network, path: Path) -> None:
    """Raise RunError unless the tensors fit together; `model` is what some of them say."""
    for name, expected in model.state_dict().items():
        if weights[name].shape != expected.shape:
            raise RunError(
                f"{path} is no complete network of 2020: size mismatch, {name} is {tuple(weights[name].shape)} where "
                f"the other tensors need {tuple(expected.shape)}"
            )


def _check_usable(model: Network, path: Path) -> None:
    """Raise RunError unless the network has an operator, and finite answers to a black and a white image."""
    black = torch.zeros(1, *model.in_shape, dtype=torch.float32)
    try:
        for layer in exact_copy(model).solved():
            layer.tuned(layer.solver)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            finite = bool(torch.isfinite(model(torch.cat([black, black + 1]))).all())
    except SplittingError as error:
        raise RunError(f"{path} cannot be solved with these settings: {error}") from error
    if not finite:
        raise RunError(f"{path} answers with NaN or inf with these settings; are `m`, `mean` and `std` right?")


def _dense(tensors: dict[str, Tensor], _: int | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    features, entries = tensors["U.weight"].shape
    channels = 3 if entries % 3 == 0 and math.isqrt(entries // 3) ** 2 == entries // 3 else 1
    side = math.isqrt(entries // channels)
    if channels * side * side != entries:
        raise ValueError(f"{entries} inputs are no square image of one or three channels")
    config = {"kind": "dense", "image_shape": (channels, side, side), "features": features, **_classes(tensors)}
    own = {"U": tensors["U.weight"], "b": tensors["U.bias"], "F": tensors["A.weight"], "G": tensors["B.weight"].mT}
    return config, _named(own, tensors)


def _convolution(tensors: dict[str, Tensor], image_size: int | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    width, channels, k, _ = tensors["U.weight"].shape
    blocks = math.isqrt(tensors["Wout.weight"].shape[1] // width)
    # 4×4 pooling leaves out what fills no block, so several sizes fit.
    fitting = [n for n in range(4 * blocks - k + 1, 4 * blocks - k + 5) if n > 0]
    chosen = [n for n in fitting if n in ((28, 32) if image_size is None else (image_size,))]
    if not chosen:
        sides = f"side {fitting[0]} to {fitting[-1]}; say which with `image_size`" if fitting else "no side"
        raise ValueError(f"its head fits images of {sides}")
    side = chosen[0]
    config = {
        "kind": "conv", "image_shape": (channels, side, side), "channels": (width,), "kernel_size": k,
        "weight_norm": True, **_classes(tensors),
    }  # fmt: skip
    own = {
        "U": tensors["U.weight"],
        "b": tensors["U.bias"],
        "F": tensors["A.weight"],
        "G": _transposed(tensors["B.weight"]),
        "F_scale": _root("g", tensors["g"]),
        "G_scale": tensors["h"],
    }
    return config, _named(own, tensors)


def _multiscale(tensors: dict[str, Tensor], _: int | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    count = sum(name.startswith("A0.") for name in tensors)
    widths = tuple(tensors[f"A0.{i}.weight"].shape[0] for i in range(count))
    _, channels, k, _ = tensors["U.weight"].shape
    last = math.isqrt(tensors["Wout.weight"].shape[1] // widths[-1])
    side = (last - k + 1) * 2 ** (count - 1)
    if side < 1 or last * last * widths[-1] != tensors["Wout.weight"].shape[1]:
        raise ValueError(f"size mismatch, its head takes no square images of {widths[-1]} channels")
    config = {
        "kind": "multiscale", "image_shape": (channels, side, side), "channels": widths, "kernel_size": k,
        "weight_norm": True, **_classes(tensors),
    }  # fmt: skip
    own = {"U": tensors["U.weight"], "b": tensors["U.bias"]}
    for i in range(count):
        own[f"F.{i}"] = tensors[f"A0.{i}.weight"]
        own[f"G.{i}"] = _transposed(tensors[f"B0.{i}.weight"])
    for i in range(count - 1):
        own[f"D.{i}"] = tensors[f"A_n0.{i}.weight"]
    own["F_scale"] = torch.stack([_root(f"g.{i}", tensors[f"g.{i}"]) for i in range(count)])
    own["G_scale"] = torch.stack([tensors[f"h.{i}"] for i in range(count)])
    roots = [_root(f"gn.{i}", tensors[f"gn.{i}"]) for i in range(count - 1)]
    own["D_scale"] = torch.stack(roots) if roots else torch.ones(0, device="cpu")
    # There the last tier is flattened by channels, rows, columns; here states run over channels last.
    head = tensors["Wout.weight"].unflatten(1, (widths[-1], last, last)).permute(0, 2, 3, 1).flatten(1)
    return config, _named(own, {**tensors, "Wout.weight": head})


def _named(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {f"layer.linear.{name}": tensor for name, tensor in own.items()}
    return weights | {"head.weight": tensors["Wout.weight"], "head.bias": tensors["Wout.bias"]}


def _classes(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {"classes": len(tensors["Wout.bias"])}


def _transposed(kernel: Tensor) -> Tensor:
    """The kernel of the adjoint correlation."""
    return kernel.transpose(0, 1).flip(2, 3)


def _root(name: str, value: Tensor) -> Tensor:
    if float(value) < 0:
        raise ValueError(f"{name} is {float(value):.3g}, which makes W not monotone")
    return value.sqrt()


def _per_channel(given: object, channels: int) -> tuple[Any, ...]:
    """One number for every channel, or what is given for each of them, which ModelConfig checks."""
    each = values.entries(given)
    return (given,) * channels if each is None else each
