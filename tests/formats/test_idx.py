from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lnlbench.errors import DataError
from lnlbench.formats.idx import read_idx


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x800 | array.ndim, *array.shape) + array.tobytes()


@given(hnp.arrays(np.uint8, st.one_of(st.tuples(st.integers(0, 50)), st.tuples(*[st.integers(0, 6)] * 3))))
def test_round_trip(array):
    read = read_idx(idx(array), "x")
    assert read.shape == array.shape
    assert read.dtype == np.uint8
    assert np.array_equal(read, array)
    assert read.flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x08",
        b"\x00\x00\x08\x01",
        b"\x00\x00\x08\x03\x00\x00\x00\x01",
        b"\x00\x00\x08\x02" + bytes(8),  # two dimensions
        b"\x00\x00\x0d\x01" + bytes(4),  # floats
        b"\x01\x08\x00\x00" + bytes(4),  # little-endian
        b"<!DOCTYPE html><html></html>",
        struct.pack(">II", 0x801, 5) + bytes(4),
        struct.pack(">II", 0x801, 5) + bytes(6),
        struct.pack(">IIII", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1),
    ],
)
def test_what_is_not_idx_is_refused_in_one_line(data):
    with pytest.raises(DataError) as caught:
        read_idx(data, "some/file")
    message = str(caught.value)
    assert message.startswith("some/file: ")
    assert "\n" not in message


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    announced = int.from_bytes(data[:4], "big") if len(data) >= 4 else None
    if announced == len(data) - 4:
        assert read_idx(b"\x00\x00\x08\x01" + data, "x").tobytes() == data[4:]
    else:
        with pytest.raises(DataError, match="fetch the file again"):
            read_idx(b"\x00\x00\x08\x01" + data, "x")
