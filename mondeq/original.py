"""Networks of 2020 (Winston & Kolter) from their state_dicts: W = (1 − m)I − AᵀA + B − Bᵀ there, so F = A, G = Bᵀ.

Convolutions are normalised there as by our `weight_norm`: √g · A/‖A‖_F, h · B/‖B‖_F. m is not stored.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mondeq.errors import RunError
from mondeq.models import Classifier, ModelConfig

_PREFIX = "mon.linear_module."


def load_original_checkpoint(
    path: str | Path,
    *,
    m: float,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    image_size: int | None = None,
) -> Classifier:
    """The classifier that a state_dict of 2020 describes: dense, single convolution or multi-tier, told by its names.

    m: the strong monotonicity it was trained with. mean, std: its normalisation, per channel or one for all.
    image_size: side of its images; needed where the shapes leave it open and it is neither 28 nor 32. The file is read
    with torch's loader for tensors only, which runs no code. Raises RunError for a file that is anything else or that
    does not fit, ConfigError for m, mean or std outside their range.
    """
    path = Path(path)
    tensors = _read(path)
    names = set(tensors)
    try:
        if "A.weight" in names and tensors["A.weight"].ndim == 2:
            config, weights = _dense(tensors)
        elif "A.weight" in names:
            config, weights = _convolution(tensors, image_size)
        elif "A0.0.weight" in names:
            config, weights = _multiscale(tensors)
        else:
            raise RunError(f"{path} is no network of 2020: it holds {', '.join(sorted(names)[:4]) or 'nothing'}")
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise RunError(f"{path} is no complete network of 2020: {str(error).partition(chr(10))[0]}") from None
    channels = config["image_shape"][0]
    config |= {"mean": _per_channel(mean, channels), "std": _per_channel(std, channels), "m": float(m)}
    model = Classifier(ModelConfig(**config))
    try:
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    except RuntimeError as error:
        raise RunError(f"{path} is no complete network of 2020: {str(error).splitlines()[-1].strip()}") from None
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    """Its tensors by their names without the common prefix."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"{path} is not a state_dict of tensors alone, and nothing else is read: {reason}") from None
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise RunError(f"{path} is not a state_dict of tensors alone, and nothing else is read")
    tensors = {str(name).removeprefix(_PREFIX): tensor for name, tensor in content.items()}
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise RunError(f"{path} holds NaN or inf in {', '.join(bad)}")
    return tensors


def _dense(tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
    usual = [n for n in (28, 32) if n in fitting]
    side = image_size if image_size is not None else (usual or fitting[:1])[0]
    if side not in fitting or (image_size is None and not usual):
        raise ValueError(f"its head fits images of side {fitting[0]} to {fitting[-1]}; say which with `image_size`")
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


def _multiscale(tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    count = sum(name.startswith("A0.") for name in tensors)
    widths = tuple(tensors[f"A0.{i}.weight"].shape[0] for i in range(count))
    _, channels, k, _ = tensors["U.weight"].shape
    last = math.isqrt(tensors["Wout.weight"].shape[1] // widths[-1])
    side = (last - k + 1) * 2 ** (count - 1)
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
    own["D_scale"] = torch.stack(roots) if roots else torch.ones(0)
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


def _per_channel(values: float | Sequence[float], channels: int) -> tuple[float, ...]:
    if isinstance(values, (int, float)):
        return (float(values),) * channels
    return tuple(float(v) for v in values)
