"""A run folder: `config.json` and `model.safetensors` make a model; nothing in it is ever a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mondeq.errors import ConfigError, RunError
from mondeq.files import Writer, json_text, read_json, replace_file, replace_files, sole_writer, text_writer
from mondeq.models import Classifier, ModelConfig
from splitting.errors import SplittingError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_FORMAT = 1


def save(model: Classifier, folder: str | Path, **extra: Any) -> None:
    """Write `model` to `folder` (made if absent) as config.json and model.safetensors, each in one atomic step.

    extra: further JSON entries of config.json. Raises RunError where the folder cannot be written, or somebody else
    writes to it.
    """
    folder = Path(folder)
    config, weights = text_writer(json_text(describe(model, **extra))), _tensor_writer(model.state_dict())
    with sole_writer(folder):
        replace_files({folder / CONFIG: config, folder / WEIGHTS: weights})


def describe(model: Classifier, **extra: Any) -> dict[str, Any]:
    """What config.json holds of `model`, with further entries."""
    return {"format": _FORMAT, "model": model.config.to_dict(), **extra}


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> Classifier:
    """The classifier saved in `folder`, in evaluation mode on `device`: images in [0, 1] in, logits out.

    Raises RunError for a folder that is no run, a config that disagrees with its tensors, a pickle offered as
    weights, a damaged file, or tensors that are not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; give the run folder that `mondeq train --out` wrote")
    config = read_json(folder / CONFIG)
    if config.get("format") != _FORMAT or not isinstance(config.get("model"), dict):
        raise RunError(f"{folder / CONFIG} is not of format {_FORMAT}; it was not written by this version of mondeq")
    tensors = read_tensors(folder / WEIGHTS)
    double = bool(tensors) and all(t.dtype == torch.float64 for t in tensors.values())
    dtype = torch.float64 if double else torch.float32
    try:
        model_config = ModelConfig.from_dict(config["model"])
        # Without memory behind it first: a config that asks for absurd sizes is found out by its tensors.
        with torch.device("meta"):
            expected = dict(Classifier(model_config).to(dtype).state_dict())
        check_tensors(tensors, expected, folder / WEIGHTS)
        model = Classifier(model_config).to(dtype)
    except RunError:
        raise
    except (ConfigError, SplittingError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"{folder / CONFIG} describes no model: {reason}") from None
    model.load_state_dict(tensors)
    return model.to(device).eval()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """`tensors` as a safetensors file, in one atomic step."""
    replace_file(path, _tensor_writer(tensors, metadata))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises RunError for anything else, above all for a pickle."""
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


def check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Raise RunError unless `found` has the names, shapes and dtypes of `expected`, all finite."""
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        raise RunError(f"{path} does not fit its config: missing {missing or 'none'}, unknown {unknown or 'none'}")
    for name, tensor in found.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise RunError(
                f"{path} does not fit its config: {name} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"the config needs {wanted.dtype} {tuple(wanted.shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RunError(f"{path} holds NaN or inf in {name}; restore it or train again")
