"""Reading and writing files without half-truths: gzip known by its magic, checksums, complete writes only."""

import gzip
import hashlib
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pooch

from mondeq.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_PIECE_BYTES = 1 << 20


def cache_directory() -> Path:
    """Where this package keeps what it downloads and decodes, by the custom of the operating system."""
    return Path(pooch.os_cache("mondeq"))


@contextmanager
def open_contents(path: Path) -> Iterator[BinaryIO]:
    """What is inside the file: decompressed if it begins as gzip does, whatever its name.

    (Some servers decompress on the way, and leave the name as it was.) Raises `DataError` naming the file
    when it turns out, while the block reads it, to be unreadable, truncated or damaged.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            raw.seek(0)
            if packed:
                with gzip.open(raw) as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); delete it and get it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


def pieces(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of the stream, a mebibyte at a time."""
    while piece := stream.read(_PIECE_BYTES):
        yield piece


def md5(stream: BinaryIO) -> str:
    """The MD5 of the rest of the stream, in hexadecimal: it finds damage, but does not prevent forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces(stream):
        digest.update(piece)
    return digest.hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` for the block to write; it becomes `path` only if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
