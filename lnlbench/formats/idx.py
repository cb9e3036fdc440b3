"""The IDX format of MNIST and its relatives: a big-endian header, then unsigned bytes."""

from __future__ import annotations

import math
import struct

import numpy as np
from numpy.typing import NDArray

from lnlbench.errors import DataError

# Third byte 0x08: unsigned bytes. Fourth byte: number of dimensions.
_DIMENSIONS = {0x0000_0801: 1, 0x0000_0803: 3}


def read_idx(data: bytes, source: str) -> NDArray[np.uint8]:
    """Read labels (one dimension) or images (three) from an unpacked IDX file.

    Args:
        data: The complete file.
        source: How error messages name it.

    Returns:
        A writable array of shape ``(N,)`` or ``(N, H, W)``.

    Raises:
        DataError: The magic number is another one, or the length differs from what the header says.
    """
    magic = int.from_bytes(data[:4], "big") if len(data) >= 4 else -1
    dimensions = _DIMENSIONS.get(magic)
    if dimensions is None:
        raise DataError(
            f"{source}: not an IDX file of bytes: it starts with 0x{data[:4].hex()}, expected 0x00000801 or "
            "0x00000803; fetch the file again"
        )
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise DataError(f"{source}: the IDX header is cut off after {len(data)} bytes; fetch the file again")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    expected = start + math.prod(shape)
    if len(data) != expected:
        raise DataError(
            f"{source}: {len(data):,} bytes, but its IDX header announces {expected:,}; fetch the file again"
        )
    # The copy makes the array writable: PyTorch warns about tensors over read-only memory.
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy()
