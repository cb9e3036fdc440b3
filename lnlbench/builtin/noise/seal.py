"""SEAL's released labels for CIFAR-10: a trained network's own confusions (Chen et al. 2021)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import DataError, DataStore, Needed, ReleasedLabels, UsageError
from lnlbench.builtin.noise.draws import read_options
from lnlbench.builtin.noise.released import check_labels, check_order
from lnlbench.formats.verify import read_verified, verify_file

FOLDER = "seal"
"""The sub-folder of the data folder that the files are expected in."""

DIGESTS = {
    "0.1": "md5:62aead1a1f36f8a652ceefcff3d52b71",
    "0.2": "md5:ec9e36bb59fdaaef114225c9207916bf",
    "0.3": "md5:280407bbdd4298ab7c9c01d0741b8db9",
    "0.4": "md5:4e509dbb6b8459c76e410fd7640f1144",
}
"""Checksum of the published file of every level."""

_NUM_CLASSES = 10
_SOURCE = (
    "https://github.com/chenpf1025/IDN (or the same file from https://github.com/MrChenFeng/CLIPCleaner_ACMMM2024, "
    "MIT licence)"
)
_LARGEST = 2**22
_HEADER = "label,label_noisy"
_ROW = re.compile(r"([0-9]{1,4}),([0-9]{1,4})")


class Seal(ReleasedLabels):
    """Instance-dependent labels; the option ``level`` is the share of labels that are wrong.

    A network is trained on the clean labels, its predictions are averaged over all epochs, and the samples with the
    largest averaged probability of a wrong class get that class: exactly 5,000, 10,000, 15,000 or 20,000 of 50,000.
    Whatever is wrong at one level is wrong in the same way at every higher one.
    """

    def needs(self, options: Mapping[str, Any]) -> tuple[Needed, ...]:
        """Return the one file that has the level."""
        name = _name(_level(options))
        return (Needed(path=name, what="50,000 true and noisy labels of CIFAR-10, 200,018 bytes", source=_SOURCE),)

    def prepare(self, store: DataStore, options: Mapping[str, Any]) -> None:
        """Verify the file; there is no published address to download it from."""
        level = _level(options)
        verify_file(_path(store, level), DIGESTS[level], hint=_hint(level))

    def load(
        self, store: DataStore, true_labels: NDArray[np.int64], *, num_classes: int, options: Mapping[str, Any]
    ) -> NDArray[np.int64]:
        """Read one level after comparing the file's true labels with the training set's.

        Raises:
            DataError: The file is missing, not the published one, or in another order than the training set.
            UsageError: The level is unknown, or the dataset is not CIFAR-10.
        """
        level = _level(options)
        if num_classes != _NUM_CLASSES:
            raise UsageError(f"the released labels of seal are for cifar10 only, not for {num_classes} classes")
        path = _path(store, level)
        data = read_verified(path, DIGESTS[level], limit=_LARGEST, hint=_hint(level))
        columns = read_label_pairs(data, str(path))
        true, given = (check_labels(column, len(true_labels), num_classes, str(path)) for column in columns)
        check_order(true, true_labels, str(path))
        return given


def read_label_pairs(data: bytes, source: str) -> NDArray[np.int64]:
    """Read a CSV file with the header ``label,label_noisy`` and two whole numbers below 10,000 in every row.

    Args:
        data: The complete file: ASCII, every line ended by a line feed.
        source: How error messages name it.

    Returns:
        ``(2, N)``, int64: true labels, noisy labels.

    Raises:
        DataError: It is anything else; the message has the first bad line.
    """
    # Any byte is a character in Latin-1, and only ASCII passes what follows.
    header, *rows = data.decode("latin-1").split("\n")
    if header != _HEADER:
        raise DataError(f"{source}: its first line is {header[:40]!r}, expected {_HEADER!r}; fetch it again")
    if not rows or rows.pop():
        raise DataError(f"{source}: its last line is cut off; fetch it again")
    pairs = np.empty((2, len(rows)), dtype=np.int64)
    for number, row in enumerate(rows):
        match = _ROW.fullmatch(row)
        if match is None:
            raise DataError(f"{source}: line {number + 2} is {row[:40]!r}, expected two whole numbers; fetch it again")
        pairs[:, number] = int(match[1]), int(match[2])
    return pairs


def _level(options: Mapping[str, Any]) -> str:
    return read_options("seal", options)["level"]


def _name(level: str) -> str:
    return f"dependent{level}.csv"


def _path(store: DataStore, level: str) -> Path:
    return store.folder(FOLDER) / _name(level)


def _hint(level: str) -> str:
    return f"put the published {_name(level)} there; it is in {_SOURCE}"
