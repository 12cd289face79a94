"""Where a run's data are on this machine.

config.json may be handed to anyone, so no path of this machine is in it: pictures of one's own are `folder:NAME` there,
NAME without the folders above. `local.json` beside it has the paths, if there are any, and is of use here only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mondeq import values
from mondeq.errors import ConfigError
from mondeq.files import read_json
from mondeq.runs import CONFIG
from mondeq.training.config import is_file_name

LOCAL = "local.json"
_FOLDER = "folder:"


def portable(name: str) -> str:
    """The name of a data set as config.json has it.

    Args:
        name: The name that the user gave, perhaps with the path of a folder of pictures.

    Returns:
        The name, in which a folder of pictures is without the folders above it.
    """
    place = _pictures(name)
    return name if place is None else f"{_FOLDER}{place.name or 'pictures'}"


def local(name: str, data_dir: Path | None, extra: str | None = None) -> dict[str, str]:
    """What local.json holds.

    Args:
        name: The name of the data set that the user gave.
        data_dir: The folder of the files of the data set, if one was given.
        extra: The folder of further pictures, if one was given.

    Returns:
        "data", the name with its whole path, if the data set is a folder of pictures, "extra" if there are further
        ones, and "data_dir" if a folder was given; nothing if there are no paths.
    """
    places = {"data": _pictures(name), "extra": None if extra is None else _pictures(extra)}
    entries = {entry: f"{_FOLDER}{place}" for entry, place in places.items() if place is not None}
    return entries if data_dir is None else {**entries, "data_dir": str(_absolute(data_dir))}


def find(run: Path, data_dir: Path | None) -> tuple[str, Path | None]:
    """Name and folder of a run's data, to be loaded.

    The data are where they were when the run was trained, unless `data_dir` says otherwise.

    Args:
        run: The run folder.
        data_dir: Where the data are now. For a folder of pictures it is that folder, or the one that holds it.

    Returns:
        What `mondeq.data.load` takes: the name, and the folder of the files or None.

    Raises:
        ConfigError: The run names no data set, or where its pictures are is not known.
        RunError: config.json or local.json cannot be read.
    """
    config = read_json(run / CONFIG)
    training = config.get("training")
    if not isinstance(training, dict) or "data" not in training:
        raise ConfigError(f"{run / CONFIG} names no data set: the model was not saved by `mondeq train`")
    name = _entry(training, "data", "the name of a data set", run / CONFIG)
    here = read_json(run / LOCAL) if _has_local(run) else config
    stored = _entry(here, "data_dir", "the path of a folder", run / (CONFIG if here is config else LOCAL))
    if name.startswith(_FOLDER):
        if data_dir is not None:
            below = data_dir / name.removeprefix(_FOLDER)
            return f"{_FOLDER}{below if below.exists() else data_dir}", None
        if here is not config:
            name = _entry(here, "data", "the name of a data set", run / LOCAL) or name
        elif not Path(name.removeprefix(_FOLDER)).exists():
            raise ConfigError(f"where the pictures `{name}` of {run} are on this machine is not known; give --data-dir")
    return name, data_dir if data_dir is not None or not stored else Path(stored)


def find_extra(run: Path, name: str | None) -> str | None:
    """The further pictures of a run, to be loaded: where they were when it was begun.

    Args:
        run: The run folder.
        name: Those that its settings name, None for none.

    Returns:
        What `mondeq.data.with_extra` takes, or None.

    Raises:
        ConfigError: Where they are is not known.
        RunError: local.json cannot be read.
    """
    if name is None:
        return None
    place = _entry(read_json(run / LOCAL), "extra", "the path of a folder", run / LOCAL) if _has_local(run) else ""
    if not place:
        raise ConfigError(f"where the pictures `{name}` of {run} are on this machine is not known; give --extra")
    return place


def _has_local(run: Path) -> bool:
    return (run / LOCAL).exists()


def _pictures(name: str) -> Path | None:
    """The place of one's own pictures, the same from every working directory."""
    path = name.removeprefix(_FOLDER)
    return _absolute(path) if path and path != name else None


def _absolute(path: str | Path) -> Path:
    # Unlike the methods of Path, these take any text: nobody's home, links in a circle.
    return Path(os.path.realpath(os.path.expanduser(path)))


def _entry(entries: dict[str, Any], name: str, needed: str, file: Path) -> str:
    """The text called `name`, "" where there is none."""
    value = entries.get(name)
    if value is None:
        return ""
    if not is_file_name(value):
        raise ConfigError(f"`{name}` in {file} must be {needed}, got {values.shown(value)}")
    return value
