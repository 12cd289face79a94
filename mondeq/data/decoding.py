"""From picture files to pixels: decoded by several threads, stored as one .npy file, then memory-mapped."""

import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from mondeq.data.files import foreign, written_whole
from mondeq.errors import DataError

GROUP = 32
"""The most pictures a thread takes at once: handing small ones over singly costs a fifth more time."""
AHEAD = 1024
"""The most pictures decoded ahead of being stored: all threads have work."""
AHEAD_BYTES = 1 << 28
"""The most memory that pictures read and decoded ahead may take, unless a single one takes more."""
PICTURE_BYTES = 1 << 28
"""No larger picture file is read: as many bytes as the pixels of the largest picture that Pillow opens unwarned."""

# While a picture is decoded there are its pixels as Pillow has them, with an alpha channel, converted, and copied.
_BYTES_PER_PIXEL = 16
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_DEPTH = 24  # where the bit depth stands: after the signature, the first chunk's length and kind, width and height
_NO_PICTURE = "is no PNG or JPEG picture of 8 bits per channel, or is damaged"
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright whose EXIF data states this orientation; any other number says nothing."""

Pixels = NDArray[np.uint8]
Opener = Callable[[str], AbstractContextManager[IO[bytes]]]


class _ColourFound(Exception):
    """A picture with colour, where until then all were grey."""


class _OtherSize(Exception):
    """A picture of another (width, height) than was expected; the arguments are the two numbers."""


def stored_pictures(file: Path, sizes: Mapping[str, int], opened: Opener, where: Path) -> Pixels:
    """The pixels of the pictures, mapped from `file`, which is written first unless it is there and whole.

    The mapping is private: what is written to the array stays in memory.

    Args:
        file: The .npy file in which the pixels are kept.
        sizes: The names of the pictures, with the bytes of their files.
        opened: Opens a picture by its name for reading bytes. It is called from several threads.
        where: What messages begin with.

    Returns:
        The pixels, uint8 (N, C, H, W), in the order of `sizes`. C is 1 if all pictures are grey, else 3.

    Raises:
        DataError: A picture cannot be used, or the pixels cannot be stored. The message begins with `where` and, for a
            picture, its name.
    """
    with suppress(Exception):  # absent, or not what was meant to be stored, in whatever way
        return _mapped(file, len(sizes))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            _store(file, sizes, opened, where, "L")
        except _ColourFound:
            _store(file, sizes, opened, where, "RGB")
        return _mapped(file, len(sizes))
    except OSError as error:
        raise DataError(f"{where}: its pixels cannot be stored in the cache {file.parent} ({error})") from error


def decode(content: bytes, mode: str, size: tuple[int, int] | None = None) -> Pixels:
    """One PNG or JPEG file, decoded and set upright. Colour profiles are not applied.

    Args:
        content: The bytes of the file.
        mode: "L" for one grey channel or "RGB" for three.
        size: The (width, height) that the picture must have, if it is known. A picture of another size is decoded
            before it is refused only if it may be one to be turned.

    Returns:
        The pixels, uint8 (C, H, W).

    Raises:
        DataError: The picture is damaged, transparent or of more than 8 bits. The message is to be preceded by the name
            of the file.
        _ColourFound: The picture has colour and the mode has none.
        _OtherSize: The picture is not of `size`.
    """
    with foreign("is damaged or too large"):
        image = _opened(content)
    if size is not None and sorted(image.size) != sorted(size):
        raise _OtherSize(*image.size)
    with foreign("is damaged"):
        image.load()
        _require_palette(image)
    with foreign("has EXIF data that cannot be read, so that it may lie on its side; remove that data"):
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        image = image if turn is None else image.transpose(turn)
    if size is not None and image.size != size:
        raise _OtherSize(*image.size)
    if mode == "L" and image.mode not in _GREY_MODES:
        raise _ColourFound
    with foreign("is damaged"):
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getextrema()[-1] != (255, 255):
                raise DataError("is transparent in places; flatten it onto a background")
        pixels: Pixels = np.asarray(image.convert(mode))
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _opened(content: bytes) -> Image.Image:
    """The picture, of which only the header has been read; `DataError` if 8 bits cannot hold its values."""
    try:
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    except UnidentifiedImageError as error:
        raise DataError(_NO_PICTURE) from error
    if image.format == "PNG" and content[12:16] != b"IHDR":
        raise DataError("is damaged: it does not begin with its header")
    depth = content[_PNG_DEPTH] if image.format == "PNG" else 8
    if depth > 8 or image.mode not in _GREY_MODES + _COLOUR_MODES:
        raise DataError(f"has {depth} bits per channel ({image.mode}); convert it to 8-bit grey or RGB")
    if depth < 8 and image.mode == "L" and "transparency" in image.info:
        # Pillow stretches the values to 0 … 255, but not the value that stands for transparent pixels.
        image.info["transparency"] *= 255 // (2**depth - 1)
    return image


def _require_palette(image: Image.Image) -> None:
    """Raise `DataError` if the decoded picture uses colours that its palette does not have: they would be black."""
    if image.mode == "P" and image.palette is not None:
        colours = len(image.palette.palette) // len(image.palette.mode)
        if np.asarray(image).max() >= colours:
            raise DataError(f"uses more colours than the {colours} of its palette; save it anew")


def _mapped(file: Path, count: int) -> Pixels:
    pixels: Pixels = np.load(file, mmap_mode="c", allow_pickle=False)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != count:
        raise ValueError(f"{file} does not hold {count} pictures")
    return pixels


def _store(file: Path, sizes: Mapping[str, int], opened: Opener, where: Path, mode: str) -> None:
    with written_whole(file) as temporary, temporary.open("wb") as stream, warnings.catch_warnings():
        # Pillow warns of pictures so large that they may be made to fill the memory, and of unreadable EXIF data, in
        # which an orientation may be lost: both are errors here.
        warnings.filterwarnings("error", module=r"PIL\.(Image|TiffImagePlugin)$")
        for number, pixels in enumerate(_decoded(sizes, opened, where, mode)):
            if number == 0:
                header = {"descr": "|u1", "fortran_order": False, "shape": (len(sizes), *pixels.shape)}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(pixels.tobytes())


def _decoded(sizes: Mapping[str, int], opened: Opener, where: Path, mode: str) -> Iterator[Pixels]:
    """The pictures in order. The first alone says how large all are, so that the memory for the rest is known."""
    names = list(sizes)
    size: tuple[int, int] | None = None

    def one(name: str) -> Pixels:
        try:
            with foreign("cannot be read"), opened(name) as stream:
                content = _content(stream, sizes[name])
            return decode(content, mode, size)
        except DataError as error:
            raise DataError(f"{where}: {name} {error}") from error.__cause__ or error
        except _OtherSize as error:
            this, first = ("{}×{}".format(*each) for each in (error.args, size or ()))
            raise DataError(f"{where}: {name} is {this} pixels, but {names[0]} is {first}; make them equal") from error

    def several(group: Sequence[str]) -> list[Pixels]:
        return [one(name) for name in group]

    threads = (os.cpu_count() or 1) + 4  # some wait for the disk
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(names), desc="decoding", unit=" pictures", disable=None) as bar,
    ):
        first = one(names[0])
        size = (first.shape[2], first.shape[1])
        yield first
        bar.update()
        decoding = _BYTES_PER_PIXEL * size[0] * size[1]
        for portion in _portions(names[1:], [2 * sizes[name] + decoding for name in names[1:]]):
            share = min(GROUP, -(-len(portion) // threads))
            groups = [portion[start : start + share] for start in range(0, len(portion), share)]
            for group in pool.map(several, groups):
                yield from group
                bar.update(len(group))


def _portions(names: Sequence[str], costs: Sequence[int]) -> Iterator[Sequence[str]]:
    """The names in portions of at most `AHEAD`, and of at most `AHEAD_BYTES` in costs unless one name costs more."""
    begin = total = 0
    for end, cost in enumerate(costs):
        if end > begin and (end - begin >= AHEAD or total + cost > AHEAD_BYTES):
            yield names[begin:end]
            begin, total = end, 0
        total += cost
    if names:
        yield names[begin:]


def _content(stream: IO[bytes], size: int) -> bytes:
    """The `size` bytes of a file, if it begins as a picture does and is not too large; else it is not read further."""
    head = stream.read(len(_PNG))
    if not head.startswith((_PNG, _JPEG)):
        raise DataError(_NO_PICTURE)
    if size > PICTURE_BYTES:
        raise DataError(f"has {size} bytes; no picture file of more than {PICTURE_BYTES} is read")
    return head + stream.read(max(size - len(head), 0))
