"""Writing files so that an interruption leaves the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mondeq.errors import RunError

Writer = Callable[[Path], None]


def replace_file(path: Path, write: Writer) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and move it there in one step."""
    replace_files({path: write})


def replace_files(writers: dict[Path, Writer]) -> None:
    """Replace several files that belong together: all are written in full before the first is moved into place, and
    where moving one fails those moved before it are put back. Raises RunError where the disk says no."""
    temporary: dict[Path, Path] = {}
    path = next(iter(writers))
    try:
        for path, write in writers.items():
            temporary[path] = _reserve(path)
            write(temporary[path])
            _flush(temporary[path])
        _move(temporary)
    except OSError as error:
        remedy = "is the disk full?" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose a writable folder"
        raise RunError(f"cannot write {path}: {error.strerror or error}; {remedy}") from None
    finally:
        for left in temporary.values():
            left.unlink(missing_ok=True)


def _reserve(path: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    return Path(name)


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    # mkstemp makes files private; a run is as readable as anything else its user writes.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _move(temporary: dict[Path, Path]) -> None:
    """Move every temporary file to its place, or none."""
    kept: dict[Path, Path] = {}
    done: list[Path] = []
    try:
        for path in temporary:
            if path.is_file():
                kept[path] = path.with_name(f".{path.name}.before")
                kept[path].unlink(missing_ok=True)
                os.link(path, kept[path])
        for path, source in temporary.items():
            source.replace(path)
            done.append(path)
    except BaseException:
        for path in done:
            if path in kept:
                os.replace(kept[path], path)
            else:
                path.unlink()
        raise
    finally:
        for before in kept.values():
            before.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, in one step."""

    replace_file(path, text_writer(text))


def text_writer(text: str) -> Writer:
    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; inf and NaN, which JSON does not have, become null."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises RunError saying what is wrong with the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist; is {path.parent} a run folder made by `mondeq train`?") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers or depths that Python refuses
        raise RunError(f"{path} is not valid JSON ({error}); restore it or train again") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} must hold a JSON object, got a {type(value).__name__}")
    return value
