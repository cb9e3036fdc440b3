"""What a dataset is: files that are verified before they are read, and images with true labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field

from lnlbench.contracts.method import Paper

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class DatasetEntry(BaseModel):
    """A dataset as announced by its plugin, with the code still unloaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Id, e.g. 'cifar10'.")
    target: str = Field(description="Where the class is, as 'package.module:Class'.")
    summary: str = Field(description="One sentence.")
    paper: Paper | None = Field(None, description="The publication, if there is one.")


class RemoteFile(BaseModel):
    """A published file: where it is, and how to know it is the right one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="File name under the dataset's folder.")
    url: str = Field(description="Official address.")
    size: int | None = Field(None, description="Bytes.")
    digest: str = Field(description="Checksum as 'md5:<hex>' or 'sha256:<hex>'.")


@dataclass(frozen=True)
class ImageData:
    """A small-image dataset in memory.

    Shapes: N training images, M test images, H height, W width, K channels.
    """

    train_images: NDArray[np.uint8]
    """``(N, H, W, K)``, uint8."""
    train_labels: NDArray[np.int64]
    """``(N,)``, int64 in [0, C): the true labels."""
    test_images: NDArray[np.uint8]
    """``(M, H, W, K)``, uint8."""
    test_labels: NDArray[np.int64]
    """``(M,)``, int64 in [0, C)."""


class DataStore(Protocol):
    """Where data files live, and the only way to fetch one."""

    root: Path
    offline: bool

    def folder(self, dataset: str) -> Path:
        """Return the folder of a dataset (it may not exist yet)."""

    def fetch(self, dataset: str, file: RemoteFile) -> Path:
        """Return the verified file, downloading it with progress if it is absent.

        Raises:
            DataError: It is absent and downloading is forbidden, the download failed, or its checksum is wrong. The
                message names the file, the place where it is expected and where it can be had.
        """

    def edition(self, dataset: str) -> Edition:
        """Return which edition of a dataset the user has declared; ``canonical`` unless told otherwise."""

    def write_edition(self, dataset: str, edition: Edition) -> None:
        """Remember an edition.

        Raises:
            StorageError: The data folder cannot be written to.
        """


class Edition(BaseModel):
    """Which bytes a dataset consists of. Results on any edition but the canonical one are marked on every row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("canonical", description="'canonical', or the name under which other bytes were registered.")
    files: dict[str, str] = Field(
        default_factory=dict,
        description="SHA-256 of each registered file, by path relative to the dataset's folder; empty if canonical.",
    )

    @property
    def is_canonical(self) -> bool:
        """Whether these are the published bytes."""
        return self.name == "canonical"


class Dataset(ABC):
    """One dataset. Facts are class attributes, so that listing them loads nothing."""

    name: ClassVar[str]
    num_classes: ClassVar[int]
    class_names: ClassVar[tuple[str, ...]]
    num_train: ClassVar[int]
    num_test: ClassVar[int]
    image_size: ClassVar[int]
    channels: ClassVar[int]
    mean: ClassVar[tuple[float, ...]]
    """Per-channel mean used for normalisation, on the 0-1 scale."""
    std: ClassVar[tuple[float, ...]]
    """Per-channel standard deviation used for normalisation, on the 0-1 scale."""
    licence: ClassVar[str]
    source: ClassVar[str]
    """Where the data come from, for people."""

    @abstractmethod
    def files(self) -> tuple[RemoteFile, ...]:
        """Return the published files; empty for embedded data."""

    @abstractmethod
    def prepare(self, store: DataStore) -> None:
        """Make sure that every file is there and right; download what may be downloaded.

        Raises:
            DataError: Something is missing or damaged.
        """

    @abstractmethod
    def load(self, store: DataStore) -> ImageData:
        """Read the data; every byte is verified before it is parsed.

        Raises:
            DataError: A file is missing, damaged, or not what it claims to be.
        """

    def register(self, store: DataStore, edition: str) -> Edition:
        """Accept the files that lie in the dataset's folder as another edition and remember their checksums.

        Raises:
            DataError: The files are not in this dataset's format.
            UsageError: This dataset has only one edition.
        """
        from lnlbench.errors import UsageError

        raise UsageError(f"dataset {self.name!r} has only its canonical edition")
