"""One digest for the content of an image dataset, whatever files it was read from."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def data_digest(
    train_images: NDArray[np.uint8],
    train_labels: NDArray[np.int64],
    test_images: NDArray[np.uint8],
    test_labels: NDArray[np.int64],
) -> str:
    """Return the SHA-256 (hex) of images and labels in canonical form.

    The canonical form is the concatenation of four blocks: training images, training labels, test images, test labels.
    A block is an ASCII line, ``uint8 <N>x<H>x<W>x<K>`` and a line feed for images, ``int64 <N>`` and a line feed for
    labels, followed by the elements in C order, labels as little-endian 64-bit integers. The line makes the form
    unambiguous: no two different sets of arrays have the same bytes.

    Raises:
        ValueError: An array has another dtype or number of dimensions.
    """
    total = hashlib.sha256()
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        _add(total, images, "uint8", "u1", 4)
        _add(total, labels, "int64", "<i8", 1)
    return total.hexdigest()


def _add(total: Any, array: NDArray[Any], name: str, stored: str, dimensions: int) -> None:
    if array.dtype != np.dtype(name) or array.ndim != dimensions:
        raise ValueError(f"expected a {dimensions}-dimensional {name} array, got {array.dtype} of shape {array.shape}")
    shape = "x".join(str(length) for length in array.shape)
    total.update(f"{name} {shape}\n".encode("ascii"))
    # No copy is made of a contiguous array: the hash reads its memory, and releases the interpreter lock meanwhile.
    total.update(np.ascontiguousarray(array, dtype=stored).data)
