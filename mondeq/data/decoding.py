"""From picture files to pixels: decoded by several threads, stored as one .npy file, then memory-mapped."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from mondeq.data.files import written_whole
from mondeq.errors import DataError

GROUP = 32
"""The number of pictures a thread takes at once: handing small ones over singly costs a fifth more time."""
GROUPS_AHEAD = 32
"""The number of groups decoded ahead of being stored: all threads have work, and memory has room."""

_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
# Pillow has no common class for the ways in which a picture can be damaged.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
# RuntimeError: the member of a zip is encrypted or packed in an unknown way.
_UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, RuntimeError)

Pixels = NDArray[np.uint8]


class _ColourFound(Exception):
    """A picture with colour, where until then all were grey."""


def stored_pictures(file: Path, names: Sequence[str], read: Callable[[str], bytes], where: Path) -> Pixels:
    """The pictures as uint8 (N, C, H, W), mapped from `file`, which is written first unless there and whole.

    The mapping is private: what is written to the array stays in memory. Pictures are read by `read`,
    called from several threads; one that cannot be used raises a `DataError` that begins with `where` and
    its name.
    """
    try:
        return _mapped(file, len(names))
    except (OSError, ValueError, EOFError):
        pass  # absent, or not what was meant to be stored
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            _store(file, names, read, where, "L")
        except _ColourFound:
            _store(file, names, read, where, "RGB")
        return _mapped(file, len(names))
    except OSError as error:
        raise DataError(f"{where}: its pixels cannot be stored in the cache {file.parent} ({error})") from error


def decode(content: bytes, mode: str) -> Pixels:
    """One PNG or JPEG file as uint8 (C, H, W), in the mode "L" or "RGB".

    Raises `DataError`, to be preceded by the name of the file, when it is damaged, transparent or of more
    than 8 bits, and `_ColourFound` when it has colour and the mode has none.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        image.load()
    except UnidentifiedImageError as error:
        raise DataError("does not begin as a PNG or JPEG picture does; it is another thing, or damaged") from error
    except _DAMAGE as error:
        raise DataError(f"is damaged ({error})") from error
    if image.mode not in _GREY_MODES + _COLOUR_MODES:
        raise DataError(f"has pixels of the kind {image.mode}; convert it to 8-bit grey or RGB")
    if mode == "L" and image.mode not in _GREY_MODES:
        raise _ColourFound
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[-1] != (255, 255):
            raise DataError("is transparent in places; flatten it onto a background")
    pixels: Pixels = np.asarray(image.convert(mode))
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _mapped(file: Path, count: int) -> Pixels:
    pixels: Pixels = np.load(file, mmap_mode="c", allow_pickle=False)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != count:
        raise ValueError(f"{file} does not hold {count} pictures")
    return pixels


def _store(file: Path, names: Sequence[str], read: Callable[[str], bytes], where: Path, mode: str) -> None:
    shape: tuple[int, ...] = ()
    with written_whole(file) as temporary, temporary.open("wb") as stream:
        for name, pixels in _decoded(names, read, where, mode):
            if not shape:
                shape = pixels.shape
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *shape)}
                np.lib.format.write_array_header_1_0(stream, header)
            elif pixels.shape != shape:
                this, first = (f"{width}×{height}" for _, height, width in (pixels.shape, shape))
                raise DataError(f"{where}: {name} is {this} pixels, but {names[0]} is {first}; make them equal")
            stream.write(pixels.tobytes())


def _decoded(
    names: Sequence[str], read: Callable[[str], bytes], where: Path, mode: str
) -> Iterator[tuple[str, Pixels]]:
    """The pictures in order, at most `GROUP` · `GROUPS_AHEAD` of them decoded before they are asked for."""

    def one(name: str) -> Pixels:
        try:
            return decode(read(name), mode)
        except DataError as error:
            raise DataError(f"{where}: {name} {error}") from error
        except _UNREADABLE as error:
            raise DataError(f"{where}: {name} cannot be read ({error})") from error

    def several(group: Sequence[str]) -> list[Pixels]:
        return [one(name) for name in group]

    groups = [names[start : start + GROUP] for start in range(0, len(names), GROUP)]
    bar = tqdm(total=len(names), desc="decoding", unit=" pictures", disable=None)
    with ThreadPoolExecutor() as pool, bar:
        for start in range(0, len(groups), GROUPS_AHEAD):
            ahead = groups[start : start + GROUPS_AHEAD]
            for group, decoded in zip(ahead, pool.map(several, ahead), strict=True):
                yield from zip(group, decoded, strict=True)
                bar.update(len(group))
