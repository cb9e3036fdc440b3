"""CIFAR-N: the training images of CIFAR-10 and CIFAR-100 as people labelled them (Wei et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import DataError, DataStore, Needed, ReleasedLabels, RemoteFile, UsageError
from lnlbench.builtin.noise.draws import read_options
from lnlbench.builtin.noise.released import check_labels, check_order
from lnlbench.formats.torchzip import load_torch_zip
from lnlbench.formats.verify import read_verified, verify_file

FOLDER = "cifar-n"
"""The sub-folder of the data folder that downloads go to."""

_ADDRESS = "https://raw.githubusercontent.com/UCSC-REAL/cifar-10-100n/49df7d8a69e355470c77c1c2f2424916325a394b/data/"
_TERMS = "CC BY-NC 4.0, no commercial use"
_LARGEST = 2**23
_HINT = "delete it to download the published file"


@dataclass(frozen=True)
class _Part:
    """One of the two files."""

    dataset: str
    num_classes: int
    remote: RemoteFile
    label_sets: tuple[str, ...]


PARTS = (
    _Part(
        dataset="cifar10",
        num_classes=10,
        remote=RemoteFile(
            name="CIFAR-10_human.pt",
            url=_ADDRESS + "CIFAR-10_human.pt",
            size=2_401_007,
            digest="md5:96644db5574813cae939af5f7f2a0aec",
        ),
        label_sets=("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label"),
    ),
    _Part(
        dataset="cifar100",
        num_classes=100,
        remote=RemoteFile(
            name="CIFAR-100_human.pt",
            url=_ADDRESS + "CIFAR-100_human.pt",
            size=1_000_959,
            digest="md5:a67b45c1d7992051865b5c755bd68bb1",
        ),
        label_sets=("noisy_label",),
    ),
)
"""The published files."""


class CifarN(ReleasedLabels):
    """Human labels; the option ``labels`` is the published key of one of the label sets.

    For CIFAR-10 three people labelled every image: ``random_label1`` to ``random_label3``. ``aggre_label`` is their
    majority, and ``worse_label`` a wrong one of the three wherever there is one. CIFAR-100 has one label an image,
    ``noisy_label``. Wrong are 9.01 % (aggre; the paper prints 9.03), 17.23, 18.12 and 17.64 % (random 1 to 3), 40.21 %
    (worse) and 40.20 % (CIFAR-100).

    A file is looked for in ``cifar-n``, then in the folder of its dataset and in the data folder itself, where users
    of other code may have it, and downloaded to ``cifar-n`` if it is nowhere.
    """

    def needs(self, options: Mapping[str, Any]) -> tuple[Needed, ...]:
        """Return the one file that has the label set."""
        remote = _part(options).remote
        return (
            Needed(
                path=remote.name,
                what=f"human labels, {remote.size:,} bytes",
                source=f"{remote.url} ({_TERMS})",
                download=True,
            ),
        )

    def prepare(self, store: DataStore, options: Mapping[str, Any]) -> None:
        """Verify the file, downloading it if it is nowhere."""
        remote = _part(options).remote
        verify_file(_find(store, _part(options)), remote.digest, size=remote.size, hint=_HINT)

    def load(
        self, store: DataStore, true_labels: NDArray[np.int64], *, num_classes: int, options: Mapping[str, Any]
    ) -> NDArray[np.int64]:
        """Read one label set after comparing the file's true labels with the training set's.

        Raises:
            DataError: The file is missing, not the published one, or in another order than the training set.
            UsageError: The label set is unknown, or one of the other dataset.
        """
        part = _part(options)
        key = read_options("cifar-n", options)["labels"]
        if num_classes != part.num_classes:
            fitting = [name for other in PARTS if other.num_classes == num_classes for name in other.label_sets]
            raise UsageError(
                f"label set {key!r} of cifar-n is for {part.dataset}, not for {num_classes} classes"
                + (f"; choose {' or '.join(fitting)}" if fitting else "")
            )
        path = _find(store, part)
        data = read_verified(path, part.remote.digest, size=part.remote.size, limit=_LARGEST, hint=_HINT)
        content = load_torch_zip(data, _LARGEST, str(path))
        if not isinstance(content, dict) or not {"clean_label", key} <= content.keys():
            raise DataError(f"{path}: 'clean_label' and {key!r} are not both in it; {_HINT}")
        clean, given = (
            check_labels(content[name], len(true_labels), num_classes, f"{path}: {name!r}")
            for name in ("clean_label", key)
        )
        check_order(clean, true_labels, str(path))
        return given


def _part(options: Mapping[str, Any]) -> _Part:
    key = read_options("cifar-n", options)["labels"]
    return next(part for part in PARTS if key in part.label_sets)


def _find(store: DataStore, part: _Part) -> Path:
    for folder in (store.folder(FOLDER), store.folder(part.dataset), store.root):
        if (folder / part.remote.name).exists():
            return folder / part.remote.name
    return _fetch(store, part)


def _fetch(store: DataStore, part: _Part) -> Path:
    try:
        return store.fetch(FOLDER, part.remote)
    except DataError as error:
        raise DataError(f"{error}; its terms: {_TERMS}") from error
