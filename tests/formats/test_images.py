from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import Resize as TorchvisionResize

from lnlbench.contracts.dataset import Resize
from lnlbench.errors import DataError
from lnlbench.formats.images import (
    MOST_PIXELS,
    check_image,
    decode_image,
    header_size,
    resized_size,
)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height=20, width=30, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


PIXELS = noise()
JPEG = encode(Image.fromarray(PIXELS), "JPEG")
PNG = encode(Image.fromarray(PIXELS))


def decoded(data):
    image = decode_image(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def announcing(width, height):
    """A small PNG whose header announces so many pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(2**16))) + png_chunk(b"IEND", b"")


def test_rgb_is_decoded_to_the_bit():
    assert np.array_equal(decoded(PNG), PIXELS)
    assert np.array_equal(decoded(JPEG), np.asarray(Image.open(io.BytesIO(JPEG))))


def test_grey_is_repeated():
    grey = noise(channels=1)[..., 0]
    assert np.array_equal(decoded(encode(Image.fromarray(grey))), np.repeat(grey[..., None], 3, axis=2))


def test_alpha_is_dropped_and_not_blended():
    alpha = np.concatenate([PIXELS, noise(channels=1, seed=1)], axis=2)
    assert np.array_equal(decoded(encode(Image.fromarray(alpha, "RGBA"))), PIXELS)
    grey = noise(channels=2, seed=2)
    assert np.array_equal(decoded(encode(Image.fromarray(grey, "LA"))), np.repeat(grey[..., :1], 3, axis=2))


@pytest.mark.parametrize("transparent", [None, 3, bytes(range(200))], ids=["opaque", "one entry", "every entry"])
def test_a_palette_is_looked_up(transparent):
    index = noise(channels=1, seed=3)[..., 0]
    palette = noise(1, 256, 3, seed=4)[0]
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    data = encode(image, **({} if transparent is None else {"transparency": transparent}))
    assert np.array_equal(decoded(data), palette[index])


def test_bits_become_black_and_white():
    bits = np.random.default_rng(5).integers(0, 2, (9, 11)).astype(bool)
    assert np.array_equal(decoded(encode(Image.fromarray(bits))), np.repeat(bits[..., None], 3, axis=2) * np.uint8(255))


def test_sixteen_bits_keep_the_upper_eight():
    levels = np.random.default_rng(6).integers(0, 2**16, (9, 11)).astype(np.uint16)
    expected = np.repeat((levels // 256).astype(np.uint8)[..., None], 3, axis=2)
    assert np.array_equal(decoded(encode(Image.fromarray(levels))), expected)


def test_cmyk_is_converted():
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 3] = 255  # all black, no colour
    assert decoded(encode(Image.fromarray(ink, "CMYK"), "JPEG")).max() < 8
    assert decoded(encode(Image.fromarray(np.zeros_like(ink), "CMYK"), "JPEG")).min() > 247


def test_a_noted_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data = encode(Image.fromarray(PIXELS), "JPEG", exif=exif)
    assert np.array_equal(decoded(data), decoded(JPEG))


def test_damaged_notes_of_a_camera_do_no_harm():
    data = encode(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x1a\x01")
    data = data.replace(b"JFIF\x00\x01\x01", b"JFIX\x00\x01\x01")  # no resolution elsewhere
    assert np.array_equal(decoded(data), decoded(JPEG))
    assert check_image(data, "x") == (30, 20)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "TIFF", "PPM", "PDF"])
def test_other_formats_are_refused_whatever_they_are_called(kind, tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(encode(Image.fromarray(PIXELS), kind))
    for refused in (decode_image, check_image):
        with pytest.raises(DataError, match=r"cat\.jpg: not a sound JPEG or PNG image"):
            refused(path.read_bytes(), str(path))
    with pytest.raises(DataError, match=r"cat\.jpg"):
        header_size(path)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"<html>not found</html>"])
def test_fragments_are_refused(data):
    for refused in (decode_image, check_image):
        with pytest.raises(DataError, match=r"^some file: not a sound JPEG or PNG image: .*; fetch it again$"):
            refused(data, "some file")


@pytest.mark.parametrize("sound", [JPEG, PNG], ids=["JPEG", "PNG"])
def test_every_truncation_is_noticed_when_checked_and_when_decoded(sound):
    # Of the last 20 bytes of a PNG, its end mark and a checksum, decoding needs nothing.
    for length in range(len(sound) - 20):
        for refused in (decode_image, check_image):
            with pytest.raises(DataError, match="some file: not a sound"):
                refused(sound[:length], "some file")


@pytest.mark.parametrize("sound", [JPEG, PNG], ids=["JPEG", "PNG"])
@pytest.mark.parametrize("rest", [b"", b"\x00" * 9, b"comment of an editor"])
def test_bytes_after_the_end_do_no_harm(sound, rest):
    assert check_image(sound + rest, "x") == (30, 20)
    assert np.array_equal(decoded(sound + rest), decoded(sound))


def test_a_bomb_is_refused_before_it_is_unpacked():
    for width, height in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (MOST_PIXELS // 4096 + 1, 4096)):
        for refused in (decode_image, check_image):
            with pytest.raises(DataError, match="expected at most 67,108,864"):
                refused(announcing(width, height), "x")


def test_a_hair_is_refused():
    assert decode_image(encode(Image.new("RGB", (200, 1))), "x").size == (200, 1)
    with pytest.raises(DataError, match="201 x 1 pixels"):
        decode_image(encode(Image.new("RGB", (201, 1))), "x")


def test_only_the_header_is_read_for_the_size(tmp_path):
    for name, data in (("a.jpg", JPEG), ("b.png", PNG)):
        (tmp_path / name).write_bytes(data[: len(data) * 3 // 4])
        assert header_size(tmp_path / name) == (30, 20)
    with pytest.raises(DataError, match=r"c\.png: not a sound JPEG or PNG image: .*No such file"):
        header_size(tmp_path / "c.png")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([JPEG, PNG]), st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=4)), max_size=8))
def test_damage_gives_an_image_or_one_line(data, edits):
    damaged = bytearray(data)
    for position, replacement in edits:
        place = position % len(damaged)
        damaged[place : place + len(replacement)] = replacement
    try:
        image = decode_image(bytes(damaged), "x")
    except DataError as error:
        message = str(error)
    else:
        message = ""
        assert image.mode == "RGB"
        assert check_image(bytes(damaged), "x") == image.size
    assert message.isprintable()


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 64))
def test_the_shorter_side_decides_as_with_torchvision(width, height, side):
    expected = TorchvisionResize(side)(Image.new("RGB", (width, height))).size
    assert resized_size(width, height, Resize(side, square=False)) == expected
    assert resized_size(width, height, Resize(side, square=True)) == (side, side)
