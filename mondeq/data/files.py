"""Reading and writing files without half-truths: foreign files fail in one line, own ones are written whole."""

import gzip
import os
import re
import stat
import sys
import textwrap
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

import pooch

from mondeq.errors import DataError, MondeqError

if sys.platform != "win32":
    import fcntl

GZIP_MAGIC = b"\x1f\x8b"
_PIECE_BYTES = 1 << 20
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{32}\.partial")


def cache_directory() -> Path:
    """The folder in which this package keeps what it downloads and decodes, by the custom of the operating system.

    Returns:
        The path of the folder, which need not exist yet.
    """
    return Path(pooch.os_cache("mondeq"))


@contextmanager
def foreign(complaint: str) -> Iterator[None]:
    """A block around all reading of files that others made: any failure in it becomes a `DataError`.
     No list of exceptions is complete: parsers of damaged files fail in ways that they do not document. What says
    nothing about the file passes: an interruption, a lack of memory, this package's own errors.

    Args:
        complaint: What the message begins with; the reason follows in brackets.

    Yields:
        Nothing.

    Raises:
        DataError: The block failed. The original error is its cause.
    """
    try:
        yield
    except (MondeqError, MemoryError):
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{complaint} ({textwrap.shorten(reason, 200)})") from error


def open_file(path: Path) -> BinaryIO:
    """The file, opened for reading bytes. A pipe, which would wait for a writer, or a device is refused unopened.

    Args:
        path: The file.

    Returns:
        The open file.

    Raises:
        DataError: The file cannot be opened, or is a pipe, a socket or a device.
    """
    with foreign(f"{path} cannot be read"):
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a directory fails with the better message
            raise DataError(f"{path} is a pipe, a socket or a device; a file is needed in its place")
        return path.open("rb")


@contextmanager
def open_contents(path: Path) -> Iterator[BinaryIO]:
    """A block with what is inside the file: decompressed if it begins as gzip does, whatever its name.

    Some servers decompress on the way, and leave the name as it was.

    Args:
        path: The file.

    Yields:
        The contents, opened for reading bytes.

    Raises:
        DataError: The file turns out, while the block reads it, to be unreadable, truncated or damaged. The
            message names it.
    """
    with open_file(path) as raw, foreign(f"{path} is truncated or damaged; delete it and get it again"):
        packed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        raw.seek(0)
        if packed:
            with gzip.open(raw) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield raw


def pieces(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of a stream, a mebibyte at a time.

    Args:
        stream: A stream that is open for reading bytes.

    Yields:
        The next bytes; the last piece may be shorter.
    """
    while piece := stream.read(_PIECE_BYTES):
        yield piece


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A block with a temporary file beside `path` for it to write. The file becomes `path` only if the block succeeds.

    Args:
        path: The file to make or to replace.

    Yields:
        The path of the temporary file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    with _claimed(temporary):
        try:
            yield temporary
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder, and nothing that a living process is writing.

    Args:
        folder: The folder, which need not exist.
    """
    for path in folder.glob(".*.partial"):
        if _PARTIAL.fullmatch(path.name):
            # The writer's lock ends with the writer. Where files cannot be locked, or deleted while open, they stay.
            with suppress(OSError), path.open("rb+") as stream:
                if sys.platform != "win32":
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


@contextmanager
def _claimed(temporary: Path) -> Iterator[None]:
    """The file, made and locked for the block. (Windows needs no lock: it does not delete what is open.)"""
    if sys.platform == "win32":
        yield
        return
    while True:
        with temporary.open("ab") as stream:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            if temporary.exists():  # else `remove_abandoned` came between making and locking it
                yield
                return
