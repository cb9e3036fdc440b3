"""Fashion-MNIST, read from the files of its authors or from Debian's package of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lnlbench.api import DataError, Dataset, DataStore, ImageData, RemoteFile
from lnlbench.formats.archives import gunzip
from lnlbench.formats.idx import read_idx
from lnlbench.formats.verify import check_digest, read_file

_ADDRESS = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
_AGAIN = "delete it and run `lnlbench prepare fashion`"
# Packed content may be a little longer than unpacked, if it cannot be compressed.
_SLACK = 2**16


@dataclass(frozen=True)
class _Part:
    """One of the four files: what it is called and how to know it, packed and unpacked."""

    name: str
    shape: tuple[int, ...]
    size: int
    md5: str
    packed_size: int
    packed_md5: str

    @property
    def remote(self) -> RemoteFile:
        name = f"{self.name}.gz"
        return RemoteFile(name=name, url=_ADDRESS + name, size=self.packed_size, digest=f"md5:{self.packed_md5}")


_PARTS = (
    _Part(
        name="train-images-idx3-ubyte",
        shape=(60_000, 28, 28),
        size=47_040_016,
        md5="f4a8712d7a061bf5bd6d2ca38dc4d50a",
        packed_size=26_421_880,
        packed_md5="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    ),
    _Part(
        name="train-labels-idx1-ubyte",
        shape=(60_000,),
        size=60_008,
        md5="9018921c3c673c538a1fc5bad174d6f9",
        packed_size=29_515,
        packed_md5="25c81989df183df01b3e8a0aad5dffbe",
    ),
    _Part(
        name="t10k-images-idx3-ubyte",
        shape=(10_000, 28, 28),
        size=7_840_016,
        md5="8181f5470baa50b63fa0f6fddb340f0a",
        packed_size=4_422_102,
        packed_md5="bef4ecab320f06d8554ea6380940ec79",
    ),
    _Part(
        name="t10k-labels-idx1-ubyte",
        shape=(10_000,),
        size=10_008,
        md5="15d484375f8d13e6eb1aabb0c3f46965",
        packed_size=5_148,
        packed_md5="bb300cfdad3c16e7a12a480ee83cd310",
    ),
)


class Fashion(Dataset):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28x28 grey.

    Each file may lie packed (``.gz``) or unpacked in the dataset's folder; otherwise Debian's ``dataset-fashion-mnist``
    is used if installed; otherwise the published files are downloaded.
    """

    name = "fashion"
    num_classes = 10
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    num_train = 60_000
    num_test = 10_000
    image_size = 28
    channels = 1
    # Over all pixels of the training set.
    mean = (0.2860,)
    std = (0.3530,)
    licence = "MIT"
    source = "https://github.com/zalandoresearch/fashion-mnist"

    system_folder: ClassVar[Path] = Path("/usr/share/datasets/fashion-mnist")
    """Where Debian's package puts the files."""

    def files(self) -> tuple[RemoteFile, ...]:
        """Return the four published files."""
        return tuple(part.remote for part in _PARTS)

    def prepare(self, store: DataStore) -> None:
        """Verify the four files, downloading those that are nowhere."""
        for _ in self._contents(store):
            pass

    def load(self, store: DataStore) -> ImageData:
        """Verify and read the four files."""
        arrays = []
        for part, source, content in self._contents(store):
            array = read_idx(content, source)
            if array.shape != part.shape:
                raise DataError(f"{source}: its shape is {array.shape}, expected {part.shape}; {_AGAIN}")
            arrays.append(array)
        train_images, train_labels, test_images, test_labels = arrays
        return ImageData(
            train_images[..., np.newaxis], _labels(train_labels), test_images[..., np.newaxis], _labels(test_labels)
        )

    def _contents(self, store: DataStore) -> Iterator[tuple[_Part, str, bytes]]:
        """Yield each file's unpacked and verified bytes, in the order train images, train labels, test likewise."""
        for part in _PARTS:
            path = self._find(store, part)
            if path.suffix == ".gz":
                packed = read_file(path, limit=part.size + _SLACK, hint=_AGAIN)
                content = gunzip(packed, part.size, str(path))
            else:
                content = read_file(path, limit=part.size, hint=_AGAIN)
            # The unpacked bytes decide: Debian's package and others compress the same content differently.
            check_digest(content, f"md5:{part.md5}", str(path), hint=_AGAIN)
            yield part, str(path), content

    def _find(self, store: DataStore, part: _Part) -> Path:
        for folder in (store.folder(self.name), self.system_folder):
            for path in (folder / part.name, folder / f"{part.name}.gz"):
                if path.exists():
                    return path
        return store.fetch(self.name, part.remote)


def _labels(labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    # The checksum of the published file was right, so the labels are known to lie in 0..9.
    return labels.astype(np.int64)
