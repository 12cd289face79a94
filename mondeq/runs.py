"""A run folder: `config.json` and `model.safetensors` make a model; nothing in it is ever a pickle."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mondeq import values
from mondeq.errors import ConfigError, RunError
from mondeq.files import (
    Writer,
    check_regular,
    json_text,
    read_json,
    replace_file,
    replace_files,
    sole_writer,
    text_writer,
)
from mondeq.formats import FORMAT, describe
from mondeq.formats import read as read_network
from mondeq.network import Network
from mondeq.quantisation import packed, unpacked
from splitting import SplittingError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save(model: Network, folder: str | Path, **extra: Any) -> None:
    """Write a network to a folder as config.json and model.safetensors, each in one atomic step.

    What is written is the network as it is now, activation, solver and tolerances of its layers included; `on_failure`
    and `monitor` are left to the program that loads it.

    Args:
        model: A network of pieces that files know.
        folder: Where to; it is made if absent.
        **extra: Further JSON entries of config.json.

    Raises:
        RunError: The folder cannot be written, somebody else writes to it, or `load` would not give the same network
            back: hooks, parametrizations, subclasses and wrappers, pieces or settings that no file holds, weights that
            are not finite, share memory or are not all float32 or all float64. Nothing is written then.
    """
    folder = Path(folder)
    described, tensors = _contents(model, folder)
    _write(folder, config_text(described, **extra), tensors)


def save_quantised(model: Network, folder: str | Path, bits: int, **extra: Any) -> None:
    """Write a network as `save` does, its matrices and kernels as whole numbers of so many bits with their scales.

    `load` gives the network `mondeq.quantised(model, bits)` back, to the last digit.

    Args:
        model: A network of pieces that files know.
        folder: Where to; it is made if absent.
        bits: 2 … 16.
        **extra: Further JSON entries of config.json, which also says `quantisation`.

    Raises:
        RunError: As `save` raises it.
        InvalidArgument: `bits` is out of range.
    """
    folder = Path(folder)
    described, _ = _contents(model, folder)
    tensors = packed(model, bits)
    _write(
        folder, config_text(described, **extra, quantisation={"bits": bits, "scales": "per output channel"}), tensors
    )


def _write(folder: Path, config: str, tensors: dict[str, Tensor]) -> None:
    with sole_writer(folder):
        replace_files({folder / CONFIG: text_writer(config), folder / WEIGHTS: _tensor_writer(tensors)})


def config_text(described: dict[str, Any], /, **extra: Any) -> str:
    """What config.json holds of a network.

    Args:
        described: What `describe` returned.
        **extra: Further entries.

    Returns:
        The text.

    Raises:
        RunError: An entry is no JSON value, or takes a name that is taken.
    """
    if "format" in extra:
        raise RunError("`format` is an entry of config.json that `save` writes itself; choose another name")
    try:
        return json_text({"format": FORMAT, "model": described, **extra})
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(f"the further entries of config.json must be JSON values: {error}") from None


def _contents(model: Network, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors that make `model`. Raises RunError where `load` would not take them back."""
    try:
        described = describe(model)
        # Not the state_dict, which hooks may change.
        tensors = {name: weight.detach() for name, weight in model.named_parameters(remove_duplicate=False)}
        _check_memory(tensors)
        check_tensors(tensors, _expected({"format": FORMAT, "model": described}, tensors), "`model`")
    except (ConfigError, SplittingError, RunError) as error:
        raise RunError(f"cannot save this model to {folder}: {error}") from None
    return described, tensors


def _check_memory(tensors: dict[str, Tensor]) -> None:
    """Raise RunError for tensors without values of their own: loaded, those that share memory would go apart."""
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout is not torch.strided:
            raise RunError(f"{name} is a {tensor.layout} tensor on {tensor.device}, whose values no file takes")
    spans = sorted(
        (str(t.device), t.data_ptr(), t.data_ptr() + _extent(t), name) for name, t in tensors.items() if t.numel()
    )
    for (place, _, end, name), (other_place, start, _, other) in pairwise(spans):
        if place == other_place and start < end:
            raise RunError(f"{name} and {other} share memory, which a file cannot express; clone one of them")


def _extent(tensor: Tensor) -> int:
    """Bytes from the first entry of `tensor` to the end of its last."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


def _expected(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names, shapes and dtype of the weights of `config`: float64 where all of `tensors` are, else float32."""
    double = bool(tensors) and all(t.dtype == torch.float64 for t in tensors.values())
    # Without memory behind it: a config that asks for absurd sizes is found out by its tensors.
    with torch.device("meta"):
        return dict(read_network(config).to(torch.float64 if double else torch.float32).state_dict())


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> Network:
    """The network saved in a folder, in evaluation mode: images in [0, 1] in, logits out.

    Args:
        folder: A run folder of `mondeq train`, or what `save` wrote, of this version or an older one.
        device: Where the network is to be.

    Returns:
        The network.

    Raises:
        RunError: The folder is no run, its config disagrees with its tensors, is of no format that is known or
            describes no network, a pickle is offered as weights, a file is damaged, or tensors are not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; give the run folder that `mondeq train --out` wrote")
    config = read_json(folder / CONFIG)
    tensors = unpacked(read_tensors(folder / WEIGHTS), folder / WEIGHTS)
    try:
        expected = _expected(config, tensors)
        check_tensors(tensors, expected, folder / WEIGHTS)
        # Its initial weights are drawn in vain: the caller's random numbers, modes and defaults stay out of it.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            model = read_network(config).to(next(iter(expected.values()), torch.empty(0, device="cpu")).dtype)
            model.load_state_dict(tensors)
    except RunError:
        raise
    except (ConfigError, SplittingError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"{folder / CONFIG} describes no model: {reason}") from None
    return model.to(device).eval()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as a safetensors file, in one atomic step.

    Args:
        path: The file.
        tensors: By name.
        metadata: Further text by name.

    Raises:
        OSError: It cannot be written.
    """
    replace_file(path, _tensor_writer(tensors, metadata))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        path: The file.

    Returns:
        The tensors by name.

    Raises:
        RunError: It is anything else, above all a pickle, or cannot be read.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    # torch.save writes zip archives or bare pickles; either can run code when loaded.
    # A safetensors file may begin with the same bytes, the length of its header, but then has that header's brace.
    if start[8:] != b"{" and start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise RunError(f"{path} is a pickle, which can run code when loaded; only safetensors files are read")
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path} is damaged or not a safetensors file ({error}); restore it or train again") from None


def _tensor_writer(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Writer:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return lambda temporary: save_file(plain, temporary, metadata)


def check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], path: Path | str) -> None:
    """Raise unless tensors have the names, shapes and dtypes that are expected, and are all finite.

    Args:
        found: What a file holds, by name.
        expected: What it is to hold.
        path: The file, for the message.

    Raises:
        RunError: They differ; the message says where.
    """
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        lost, more = (values.shown(names) if names else "none" for names in (missing, unknown))
        raise RunError(f"{path} does not fit its config: missing {lost}, unknown {more}")
    for name, tensor in found.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise RunError(
                f"{path} does not fit its config: {name} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"the config needs {wanted.dtype} {tuple(wanted.shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RunError(f"{path} holds NaN or inf in {name}; restore it or train again")
