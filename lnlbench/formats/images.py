"""Image files: JPEG and PNG by their first bytes, nothing else, with limits before anything is decoded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from lnlbench.contracts.dataset import Resize
from lnlbench.errors import DataError
from lnlbench.formats.messages import reason

MOST_BYTES = 2**27
"""Largest image file that is read, in bytes."""

MOST_PIXELS = 2**26
"""Largest image that is decoded; a small file can announce far more than memory holds."""

# Scaled to a fixed shorter side, a hair-thin image would become as large as its shape is extreme.
_MOST_ELONGATED = 200

_JPEG_START = b"\xff\xd8\xff"
_JPEG_SCAN = b"\xff\xda"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


class _RefusedError(Exception):
    """Internal: the bytes are not an image that is accepted."""


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Do nothing: resolution is of no use here, and reading it warns of every flaw in what cameras note."""


def decode_image(data: bytes, source: str) -> Image.Image:
    """Decode an image file to RGB.

    Grey, palette and CMYK images are converted, of 16-bit levels the upper eight bits are kept, transparency is
    dropped, and an orientation noted in the file is ignored, as all published loaders of these datasets do.

    Args:
        data: The complete file.
        source: How error messages name it.

    Returns:
        An image of mode ``RGB``, loaded.

    Raises:
        DataError: It is neither JPEG nor PNG, is truncated or damaged, or has more than :data:`MOST_PIXELS` pixels.
    """
    try:
        image = _open(io.BytesIO(data))
        image.load()
        return _as_rgb(image)
    # Damaged input makes the decoders raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise _unreadable(source, error) from error


def check_image(data: bytes, source: str) -> tuple[int, int]:
    """Make sure that bytes are an acceptable image, decoding it only if its end looks cut off.

    Damage in the middle of a file goes unnoticed here; it shows when the image is decoded.

    Args:
        data: The complete file.
        source: How error messages name it.

    Returns:
        Width and height in pixels.

    Raises:
        DataError: As :func:`decode_image`.
    """
    try:
        image = _open(io.BytesIO(data))
        if _seems_truncated(data):
            image.load()
        return image.size
    except Exception as error:
        raise _unreadable(source, error) from error


def header_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels as the header of an image file says; nothing else of it is read.

    Raises:
        DataError: The file cannot be read, or as :func:`decode_image`.
    """
    try:
        with path.open("rb") as file:
            return _open(file).size
    except Exception as error:
        raise _unreadable(str(path), error) from error


def resized_size(width: int, height: int, resize: Resize) -> tuple[int, int]:
    """Return width and height after :func:`resized`; the longer side is rounded down, as torchvision does."""
    if resize.square:
        return resize.side, resize.side
    if width <= height:
        return resize.side, int(resize.side * height / width)
    return int(resize.side * width / height), resize.side


def _open(file: IO[bytes]) -> ImageFile:
    """Read the header. The formats are called directly: ``Image.open`` would warn of large images before we refuse."""
    start = file.read(len(_PNG_START))
    file.seek(0)
    image: ImageFile
    if start.startswith(_JPEG_START):
        image = _Jpeg(file)
    elif start == _PNG_START:
        image = PngImageFile(file)
    else:
        raise _RefusedError(f"it starts with 0x{start[:4].hex()}" if start else "it is empty")
    width, height = image.size
    if min(width, height) < 1 or width * height > MOST_PIXELS:
        raise _RefusedError(f"it has {width:,} x {height:,} pixels, expected at most {MOST_PIXELS:,} in all")
    if max(width, height) > _MOST_ELONGATED * min(width, height):
        raise _RefusedError(f"it has {width:,} x {height:,} pixels; that is no picture of anything")
    return image


def _seems_truncated(data: bytes) -> bool:
    if data.startswith(_PNG_START):
        return not data.endswith(_PNG_END)
    # A scan has no end marker inside, so a sound file has one behind its last scan. An embedded preview has its own
    # markers, but comes before the picture.
    return data.rfind(_JPEG_END) <= data.rfind(_JPEG_SCAN)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # The library's own conversion clips 16-bit levels at 255 instead of scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        # Otherwise a warning asks for just this step.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _unreadable(source: str, error: Exception) -> DataError:
    return DataError(f"{source}: not a sound JPEG or PNG image: {reason(error)}; fetch it again")
