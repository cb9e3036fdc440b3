"""Which source of pixels a set of images gets: the device's memory, or files that are decoded as they are needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lnlbench.contracts.dataset import Dataset, DataStore, ImageFiles, Split
from lnlbench.contracts.views import ViewRecipe
from lnlbench.engine.data import LoadedData
from lnlbench.engine.views import ImageStore, PixelSource, largest_padding


def decoded_folder(root: Path, dataset: Dataset) -> Path:
    """Return the folder for decoded images of a dataset."""
    return root / "decoded" / dataset.name.replace(":", "-")


def open_source(
    images: NDArray[np.uint8] | ImageFiles,
    dataset: Dataset,
    recipes: Iterable[ViewRecipe],
    device: torch.device,
    root: Path,
) -> PixelSource:
    """Return a source for images.

    Args:
        images: In memory, or as files.
        dataset: What they belong to.
        recipes: The views it will be asked for; a source in memory keeps enough padding for them.
        device: Where views are wanted.
        root: The data folder, where decoded images may lie.
    """
    if isinstance(images, ImageFiles):
        from lnlbench.engine.stream import open_files

        folder = decoded_folder(root, dataset)
        return open_files(images, dataset.image_size, dataset.mean, dataset.std, device, folder)
    return ImageStore(torch.from_numpy(images), dataset.mean, dataset.std, largest_padding(list(recipes)), device)


def into_memory(data: LoadedData, store: DataStore) -> LoadedData:
    """Decode the images of a dataset that fits on the device; the others, and images in memory, stay as they are.

    Raises:
        DataError: A file is damaged.
    """
    images = data.images

    def decoded(split: Split) -> Split:
        return Split(_decode(split.images, data.dataset, store), split.labels)

    return replace(
        data,
        images=replace(
            images,
            train_images=_decode(images.train_images, data.dataset, store),
            test_images=_decode(images.test_images, data.dataset, store),
            further_tests={name: decoded(split) for name, split in images.further_tests.items()},
            validation=None if images.validation is None else decoded(images.validation),
        ),
    )


def _decode(
    images: NDArray[np.uint8] | ImageFiles, dataset: Dataset, store: DataStore
) -> NDArray[np.uint8] | ImageFiles:
    if not isinstance(images, ImageFiles) or not images.resident:
        return images
    from lnlbench.engine.imagecache import decode_all

    return decode_all(images, decoded_folder(store.root, dataset), store)


def store_decoded(data: LoadedData, store: DataStore) -> Path | None:
    """Decode and resize all images of a dataset and keep them, so that later epochs read them from there.

    Returns:
        Where they are; ``None`` if the dataset has no image files.

    Raises:
        DataError: A file is damaged.
        StorageError: There is no room.
    """
    images = data.images
    sets = [images.train_images, images.test_images, *(split.images for split in images.further_tests.values())]
    if images.validation is not None:
        sets.append(images.validation.images)
    files = [each for each in sets if isinstance(each, ImageFiles)]
    if not files:
        return None
    from lnlbench.engine.imagecache import build_cache

    folder = decoded_folder(store.root, data.dataset)
    for each in files:
        build_cache(each, folder, store)
    return folder
