"""What all released label files share: they fit one dataset in one order, and the true labels show whether they do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import DataError


def check_labels(labels: object, num_samples: int, num_classes: int, source: str) -> NDArray[np.int64]:
    """Return labels from a file as ``(N,)`` int64.

    Args:
        labels: What was read.
        num_samples: Number of training samples N.
        num_classes: Number of classes C.
        source: How error messages name the labels.

    Raises:
        DataError: They are not N integers in [0, C).
    """
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{source}: not a one-dimensional array of integers; fetch the file again")
    if len(labels) != num_samples:
        raise DataError(
            f"{source}: {len(labels):,} labels for a training set of {num_samples:,} images; it belongs to another "
            "dataset"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise DataError(
            f"{source}: label {labels[outside[0]]} at index {outside[0]} is not one of the classes 0 to "
            f"{num_classes - 1}; it belongs to another dataset"
        )
    return labels.astype(np.int64)


def check_order(found: NDArray[np.int64], true_labels: NDArray[np.int64], source: str) -> None:
    """Compare the true labels that a file repeats with those of the training set.

    Args:
        found: ``(N,)``, int64: the true labels by the file.
        true_labels: ``(N,)``, int64: those of the dataset.
        source: How error messages name the file.

    Raises:
        DataError: They differ anywhere.
    """
    different = np.flatnonzero(found != true_labels)
    if len(different):
        first = different[0]
        raise DataError(
            f"{source}: its true label at index {first} is {found[first]}, that of the training set is "
            f"{true_labels[first]} ({len(different):,} differ): the file or the images are in another order or belong "
            "to another dataset; use the published files of both"
        )
