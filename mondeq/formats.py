"""Networks as JSON and back: a list of pieces by name, each with its settings. Formats of older versions are read.

Format 2: {"in_shape": …, "class_names": …, "pieces": [{"name": …, "piece": a name in PIECES, …its settings}, …]}.
Format 1 (versions up to 0.1): the settings of a preset, flat, those of all presets together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from mondeq import scrutiny, values
from mondeq.errors import ConfigError
from mondeq.network import Network, require_network
from mondeq.pieces import PIECES, arithmetic
from mondeq.presets import PRESETS, Classifier, Images, ModelConfig
from splitting import InvalidArgument, SplittingError

FORMAT = 2
_LONGEST_NAME, _LONGEST_REASON, _MOST_SIDES = 100, 400, 16
# A matter of the program, not of the network.
_OF_THE_PROGRAM = ("on_failure", "monitor", "_kept")


def describe(model: Network) -> dict[str, Any]:
    """What makes a network, weights aside, in format 2: of what it is, however it came to be.

    `on_failure` and `monitor` of its layers are a matter of the program, not of the network.

    Args:
        model: Any network.

    Returns:
        Its description, as JSON can hold it.

    Raises:
        InvalidType: It is no network.
        InvalidArgument: No description makes it; the message says which piece and why.
    """
    require_network(model)
    scrutiny.check_untouched(model)
    described = {
        "in_shape": list(model.in_shape),
        "class_names": list(model.class_names),
        "pieces": [_described(place.name, place.module) for place in model.places],
    }
    free = {f"model.{name}.{each}" for name, _ in model.named_modules() for each in _OF_THE_PROGRAM}
    with torch.device("meta"):
        fresh = build(described)
    for name, module in fresh.named_children():
        scrutiny.check_same(model.get_submodule(name), module, free, f"model.{name}")
    return described


def _described(name: str, module: nn.Module) -> dict[str, Any]:
    piece = arithmetic(module)
    kind = PIECES.name_of(type(piece))
    if kind is None:
        known = ", ".join(PIECES)
        raise InvalidArgument(f"the piece `{name}` is a {type(module).__name__}; a saved network knows {known}")
    try:
        piece.check()
        return {"name": name, "piece": kind, **piece.settings().to_dict()}
    except (SplittingError, ConfigError) as error:
        raise InvalidArgument(f"the piece `{name}`: {error}") from None


def build(described: Any) -> Network:
    """The network of a description in format 2, with initial weights.

    Args:
        described: What `describe` returned, or a file that a user wrote. "name" may be left out, and so may
            "class_names" and settings that have defaults.

    Returns:
        The network.

    Raises:
        ConfigError: It describes none; the message names the piece.
    """
    if not isinstance(described, dict) or set(described) - {"in_shape", "class_names", "pieces"}:
        raise ConfigError('a network is described by {"in_shape": …, "pieces": […]}, and "class_names" where known')
    shape, rows = values.entries(described.get("in_shape")), described.get("pieces")
    if shape is None or not _is_shape(shape):
        raise ConfigError(
            f"`in_shape` must be whole numbers ≥ 1, at most {_MOST_SIDES} of them and of a product < 2^63, got "
            f"{values.shown(described.get('in_shape'))}"
        )
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"`pieces` must be a list of settings, got {values.shown(rows)}")
    names = described.get("class_names", [])
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"`class_names` must be names, got {values.shown(names)}")
    pieces: dict[str, nn.Module] = {}
    within = torch.Size(shape)
    for number, row in enumerate(rows):
        name = row.get("name", str(number))
        if not isinstance(name, str) or name in pieces or len(name) > _LONGEST_NAME:
            raise ConfigError(f"`name` of piece {number} must be a name of its own, got {values.shown(name)}")
        pieces[name], within = _piece(name, row, within)
    try:
        return Network(pieces, shape, class_names=names)
    except SplittingError as error:
        raise ConfigError(_reason(error)) from None


def _is_shape(sides: Sequence[Any]) -> bool:
    """Whether a sample may have this shape: torch counts dimensions and entries, and has no room for more."""
    whole = all(type(side) is int and 1 <= side < 2**63 for side in sides)
    return whole and 1 <= len(sides) <= _MOST_SIDES and math.prod(sides) < 2**63


def _reason(error: Exception) -> str:
    """One short line, of whatever a foreign file brought about."""
    line = str(error).strip().partition("\n")[0]
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} …"


def _piece(name: str, row: dict[str, Any], in_shape: torch.Size) -> tuple[nn.Module, torch.Size]:
    """The piece of one row, and the shape of what it gives."""
    kind = PIECES[row.get("piece")]
    given = {key: value for key, value in row.items() if key not in ("name", "piece")}
    try:
        module = kind.make(kind.Settings.from_dict(given), in_shape)
        shape = arithmetic(module).out_shape(in_shape)
    except (ConfigError, SplittingError) as error:
        raise ConfigError(f"the piece `{name}`: {_reason(error)}") from None
    except RuntimeError as error:
        # Of all that torch may complain of here, the allocator is what is left.
        raise ConfigError(f"the piece `{name}` does not fit in memory; reduce its width ({_reason(error)})") from None
    if not _is_shape(shape):
        raise ConfigError(
            f"the piece `{name}` gives samples of shape {values.shown(tuple(shape))}, which nothing holds"
        )
    return module, shape


def read(config: dict[str, Any]) -> Network:
    """The network that an entry of config.json describes, of any format, with initial weights.

    Args:
        config: All entries of config.json.

    Returns:
        The network.

    Raises:
        ConfigError: It is of no format that is known, or describes no network.
    """
    if config.get("format") == 1:
        if not isinstance(config.get("model"), dict):
            raise ConfigError(f"`model` must be settings by name, got {values.shown(config.get('model'))}")
        return Classifier(preset_of(config["model"]))
    if config.get("format") != FORMAT:
        raise ConfigError(f"it is not of format 1 or {FORMAT}, which this version of mondeq reads")
    return build(config.get("model"))


def preset_of(settings: dict[str, Any]) -> ModelConfig:
    """The configuration that format 1 has flat, with the settings of all presets together.

    Args:
        settings: "kind" and all that any preset of then could be given.

    Returns:
        Those that are of its preset.

    Raises:
        ConfigError: An entry was unknown then, or is not as it has to be.
    """
    preset = PRESETS[settings.get("kind")]
    own = {"kind", *(each.name for kind in (Images, preset) for each in fields(kind))}
    others = {each.name for _, kind in PRESETS.items() for each in fields(kind)}
    if unknown := sorted(settings.keys() - own - others):
        first = ", ".join(name[:60] for name in unknown[:6]) + (", …" if len(unknown) > 6 else "")
        raise ConfigError(f"unknown model setting(s) {first}; known are {', '.join(sorted(own))}")
    return ModelConfig.from_dict({name: value for name, value in settings.items() if name in own})
