"""Writing files so that an interruption leaves the old one or the new one, never half of one; one writer per folder."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from mondeq.errors import RunError

try:
    import fcntl
except ImportError:  # a system that is not POSIX
    fcntl = None  # type: ignore[assignment]

Writer = Callable[[Path], object]

# Hidden names that nobody else would give: a temporary file is `.NAME.k3_9x0ab.mondeq`, NAME what it is to become.
_LOCK = ".mondeq.lock"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.mondeq", re.DOTALL)
_REMEDIES = {
    errno.ENOSPC: "is the disk full?",
    errno.EDQUOT: "is the quota used up?",
    errno.EFBIG: "is there a limit on the size of files (ulimit -f)?",
}
# What flock raises for a file that somebody else holds, and on file systems without locks.
_TAKEN = (errno.EAGAIN, errno.EACCES)
_LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_held = threading.local()


def replace_file(path: Path, write: Writer) -> None:
    """Replace a file in one step, so that an interruption leaves the old one or the new one.

    Args:
        path: The file to make or to replace.
        write: Fills the temporary file beside `path` whose path it is given. That is flushed to disk and moved to
            `path`.

    Raises:
        RunError: The disk says no.
    """
    replace_files({path: write})


def replace_files(writers: dict[Path, Writer]) -> None:
    """Replace several files that belong together.

    All are written in full before the first is moved into place, and where moving one fails those moved before it are
    put back.

    Args:
        writers: For each file to make or to replace, what fills the temporary file whose path it is given.

    Raises:
        RunError: The disk says no.
    """
    temporary: dict[Path, Path] = {}
    path = next(iter(writers))
    try:
        for path, write in writers.items():
            temporary[path] = _reserve(path)
            write(temporary[path])
            _flush(temporary[path])
        if len(temporary) == 1:
            temporary[path].replace(path)
        else:
            _move(temporary)
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from None
    finally:
        for left in temporary.values():
            left.unlink(missing_ok=True)


def clear_temporary(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files that killed writers left.

    Args:
        folder: Where they are.
        name: What they were to become; None stands for anything.
    """
    for each in own(folder):
        match = _TEMPORARY.fullmatch(each)
        if match and name in (None, match["name"]):
            with suppress(OSError):
                (folder / each).unlink()


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """A block in which nobody else writes to the folder, which is made if it is absent.

    Within such a block of the same thread it has no effect. The lock is the operating system's, which a process loses
    however it ends; the file that carries it names process and host. What killed writers left is removed, and so is a
    folder made here and left empty.

    Args:
        folder: The folder to write to.

    Yields:
        Nothing.

    Raises:
        RunError: Somebody else writes there, or nothing can be written.
    """
    made = _make(folder)
    place = folder.resolve()
    places: set[Path] = _held.__dict__.setdefault("places", set())
    if place in places:
        yield
        return
    try:
        with _locked(folder):
            places.add(place)
            try:
                clear_temporary(folder)
                yield
            finally:
                clear_temporary(folder)
                places.discard(place)
    finally:
        with suppress(OSError):
            for each in made:
                each.rmdir()


def own(folder: Path) -> set[str]:
    """The names of what `sole_writer` and `replace_file` made in a folder for their own use.

    Args:
        folder: The folder, which need not exist.

    Returns:
        The names of the lock and of temporary files, without the folder.
    """
    with suppress(OSError):
        return {each for each in os.listdir(folder) if each == _LOCK or _TEMPORARY.fullmatch(each)}
    return set()


def _make(folder: Path) -> list[Path]:
    """Make the folder; what was made for it, itself first."""
    try:
        absent = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"cannot write to {folder}: cannot make the folder {folder}: {reason}") from None
    return absent


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / _LOCK
    try:
        file = _acquire(path)
    except OSError as error:
        raise unwritable(path, error) from None
    with file:
        try:
            try:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            except OSError as error:
                raise unwritable(path, error) from None
            yield
        finally:
            # While it is held, for afterwards it may be somebody else's; elsewhere an open file cannot be removed.
            if fcntl is None:
                file.close()
            with suppress(OSError):
                path.unlink()


def _acquire(path: Path) -> IO[bytes]:
    """The lock file, open and held."""
    while True:
        try:
            file, new = path.open("x+b", buffering=0), True
        except FileExistsError:
            file, new = path.open("a+b", buffering=0), False
        if remedy := _refusal(file, new):
            with file:
                file.seek(0)
                holder = file.read(200).decode(errors="replace") or "another process"
            raise RunError(f"{path.parent} is being written to by {holder}; {remedy}")
        # Where its holder has removed the file since it was opened, this is no lock on anything.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _refusal(file: IO[bytes], new: bool) -> str:
    """Hold the file, or say what can be done about it. Where there are no locks, who made the file holds it."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return "wait until it has ended, or choose another folder"
        if error.errno not in _LOCKLESS:
            raise
        return "" if new else f"if that was killed, delete {_LOCK} there: this file system has no locks that would tell"
    return ""


def _reserve(path: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".mondeq")
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
                kept[path] = _reserve(path)
                shutil.copy2(path, kept[path])
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


def unwritable(path: Path, error: OSError | SafetensorError) -> RunError:
    """What is to be said of a file that could not be written.

    Args:
        path: The file.
        error: Why. An error of safetensors has the number of the system's error in its text.

    Returns:
        The error to raise: one line with the file, the reason and what to do about it.
    """
    hidden = re.search(r"(?:os error |code: )(\d+)", str(error))
    number = error.errno if isinstance(error, OSError) else int(hidden[1]) if hidden else None
    reason = os.strerror(number) if number else str(error).partition("\n")[0]
    return RunError(f"cannot write {path}: {reason}; {_REMEDIES.get(number or 0, 'choose a writable folder')}")


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, in one step.

    Args:
        path: The file to make or to replace.
        text: What it shall hold.

    Raises:
        RunError: The disk says no.
    """

    replace_file(path, text_writer(text))


def text_writer(text: str) -> Writer:
    """What writes a text as UTF-8, for `replace_files`.

    Args:
        text: What the file shall hold.

    Returns:
        A function that fills the file whose path it is given.
    """

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, in one step.

    Args:
        path: The file to make or to replace.
        value: What `json.dumps` takes. inf and NaN, which JSON does not have, become null.

    Raises:
        RunError: The disk says no.
    """
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """A value as indented JSON.

    Args:
        value: What `json.dumps` takes. inf and NaN, which JSON does not have, become null.

    Returns:
        The text, with a line end after it.
    """
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_regular(path: Path) -> None:
    """Refuse what is there and is no file with an end: a pipe, a device, a folder.

    Args:
        path: The file. One that is absent passes, for whoever opens it says what is wrong.

    Raises:
        RunError: There is something else in its place.
    """
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return  # whoever opens it says what is wrong
    if not regular:
        raise RunError(f"cannot read {path}: it is not a regular file; restore it or train again")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.

    Returns:
        The entries of the object.

    Raises:
        RunError: The file is absent, unreadable, no JSON or no object. The message says what is wrong with it.
    """
    check_regular(path)
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
