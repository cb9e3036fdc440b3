"""One digest for the content of an image dataset, whatever files it was read from."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlbench.contracts.dataset import ImageData, ImageFiles

PIECE = 2**24
"""Bytes of images that are hashed in one go; pieces are hashed side by side, as a dataset has many."""


def data_digest(
    train_images: NDArray[np.uint8],
    train_labels: NDArray[np.int64],
    test_images: NDArray[np.uint8],
    test_labels: NDArray[np.int64],
) -> str:
    """Return :func:`image_data_digest` of a dataset that is these four arrays and nothing else."""
    return image_data_digest(ImageData(train_images, train_labels, test_images, test_labels))


def image_data_digest(data: ImageData) -> str:
    """Return the SHA-256 (hex) of a dataset in canonical form.

    The canonical form is the concatenation of

    1. training images, true training labels, test images, test labels: four blocks;
    2. if there are given labels: the word ``given``, a space, and their block; if it is known which of them are
       correct: the word ``correct``, a space, and the block of that;
    3. for each further test set, ordered by name: the line ``test <name>``, then the blocks of its images and labels;
    4. if there is a validation set: the line ``validation``, then the blocks of its images and labels.

    A line ends in one line feed, and names are in UTF-8. A block is one of these lines, followed by its content:

    - ``uint8 <N>x<H>x<W>x<K>``, images in memory: their elements in C order; of more than :data:`PIECE` bytes, instead
      the SHA-256 sums, 32 bytes each, of pieces of that many bytes, the last of which may be shorter;
    - ``files <N>``, images in files: the SHA-256 sums of the files, 32 bytes each;
    - ``int64 <N>``, labels, -1 where unknown: little-endian 64-bit integers;
    - ``int8 <N>``, whether labels are correct: one byte each, 1, 0, or 255 where unknown.

    The lines make the form unambiguous: no two different datasets have the same bytes. Where image files lie and how
    they are resized is no part of it.

    Raises:
        ValueError: An array has another dtype or number of dimensions, or the name of a test set has a line feed.
    """
    total = hashlib.sha256()
    _add_split(total, data.train_images, data.train_labels)
    _add_split(total, data.test_images, data.test_labels)
    if data.given_labels is not None:
        total.update(b"given ")
        _add_array(total, data.given_labels, "int64", 1)
    if data.correct is not None:
        total.update(b"correct ")
        _add_array(total, data.correct, "int8", 1)
    for name, split in sorted(data.further_tests.items()):
        if "\n" in name:
            raise ValueError(f"the name of a test set, {name!r}, has a line feed")
        total.update(f"test {name}\n".encode())
        _add_split(total, split.images, split.labels)
    if data.validation is not None:
        total.update(b"validation\n")
        _add_split(total, data.validation.images, data.validation.labels)
    return total.hexdigest()


def _add_split(total: Any, images: NDArray[np.uint8] | ImageFiles, labels: NDArray[np.int64]) -> None:
    if isinstance(images, ImageFiles):
        _add_files(total, images)
    else:
        _add_array(total, images, "uint8", 4)
    _add_array(total, labels, "int64", 1)


def _add_files(total: Any, files: ImageFiles) -> None:
    sums = files.digests
    if sums.dtype != np.uint8 or sums.shape != (len(files), 32):
        raise ValueError(f"expected 32 uint8 for each of {len(files)} files, got {sums.dtype} of shape {sums.shape}")
    total.update(f"files {len(files)}\n".encode())
    total.update(np.ascontiguousarray(sums).data)


def _add_array(total: Any, array: NDArray[Any], name: str, dimensions: int) -> None:
    if array.dtype != np.dtype(name) or array.ndim != dimensions:
        raise ValueError(f"expected a {dimensions}-dimensional {name} array, got {array.dtype} of shape {array.shape}")
    shape = "x".join(str(length) for length in array.shape)
    total.update(f"{name} {shape}\n".encode())
    # No copy is made of a contiguous array: the hash reads its memory, and releases the interpreter lock meanwhile.
    content = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
    if dimensions == 1 or len(content) <= PIECE:
        total.update(content)
        return
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    with ThreadPoolExecutor() as pool:
        total.update(b"".join(pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces)))
