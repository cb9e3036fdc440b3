"""What a dataset is: files that are verified before they are read, and images with true labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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


class Needed(BaseModel):
    """One thing a user must have before a dataset or a set of released labels can be used, in words for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(description="Where it is expected, relative to the folder of the dataset (or of the labels).")
    what: str = Field(description="What it is: '50,000 images of 64 x 64 pixels'.")
    source: str = Field(description="Where it can be had, as an address, and on what terms.")
    download: bool = Field(False, description="Whether `lnlbench prepare` downloads it; if not, the user must.")


@dataclass(frozen=True)
class Resize:
    """How an image file becomes the image that views are cut from: bilinear, antialiased, as torchvision on uint8."""

    side: int
    """Pixels."""
    square: bool
    """Whether the whole image is squeezed to ``side x side``; otherwise its shorter side becomes ``side``."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images that stay on the disk as files, in index order. Files are JPEG or PNG and are read as RGB.

    Shapes: N images.
    """

    root: Path
    """Folder that the paths start from."""
    paths: tuple[str, ...]
    """N relative paths, ``/`` between parts, without ``..`` and not absolute."""
    digests: NDArray[np.uint8]
    """``(N, 32)``: the SHA-256 of each file, as found when the dataset was prepared."""
    resize: Resize
    """What is done to every image once it is decoded."""
    resident: bool
    """Whether all of them fit on the device once decoded; possible for squares of the dataset's image size only."""

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: NDArray[np.int64]) -> ImageFiles:
        """Return the files at these positions."""
        return ImageFiles(
            self.root, tuple(self.paths[i] for i in index), self.digests[index], self.resize, self.resident
        )


@dataclass(frozen=True)
class Split:
    """Images with labels that are taken for right: a test set or a clean validation set of M images."""

    images: NDArray[np.uint8] | ImageFiles
    """``(M, H, W, K)``, uint8, or M files."""
    labels: NDArray[np.int64]
    """``(M,)``, int64 in [0, C)."""


@dataclass(frozen=True)
class ImageData:
    """A dataset as it was read.

    Shapes: N training images, M test images, H height, W width, K channels, C classes.
    """

    train_images: NDArray[np.uint8] | ImageFiles
    """``(N, H, W, K)``, uint8, or N files."""
    train_labels: NDArray[np.int64]
    """``(N,)``, int64: the true labels; -1 where nobody knows the true class."""
    test_images: NDArray[np.uint8] | ImageFiles
    """``(M, H, W, K)``, uint8, or M files."""
    test_labels: NDArray[np.int64]
    """``(M,)``, int64 in [0, C)."""
    given_labels: NDArray[np.int64] | None = None
    """``(N,)``, int64 in [0, C): the noisy labels the dataset itself comes with; ``None`` if its labels are clean and
    noise is up to the suite."""
    correct: NDArray[np.int8] | None = None
    """``(N,)``: whether the given label is right (1), wrong (0), or nobody knows (-1); ``None`` if the true labels say
    it all. Only with ``given_labels``."""
    further_tests: Mapping[str, Split] = field(default_factory=dict)
    """Test sets beside the first one, by name."""
    validation: Split | None = None
    """A clean validation set, if the dataset has one. Only the harness sees it."""


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

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show how a long piece of work advances, where there is a terminal to show it on.

        Args:
            what: A few words, e.g. ``"clothing1m: reading files"``.
            total: How many units there are.

        Returns:
            A context manager that gives a function to be called with the number of units just done.
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


class DatasetOptions(BaseModel):
    """Switches of a dataset that a suite or a task sets, such as the level of web noise. Most datasets have none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Dataset(ABC):
    """One dataset. Facts are class attributes, so that listing them loads nothing; an instance may correct them."""

    Options: ClassVar[type[DatasetOptions]] = DatasetOptions

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    num_train: int
    """As published; the user's copy may be counted by :meth:`open`."""
    num_test: int
    image_size: int
    """Side of the square images a network gets, in pixels."""
    channels: int
    mean: tuple[float, ...]
    """Per-channel mean used for normalisation, on the 0-1 scale."""
    std: tuple[float, ...]
    """Per-channel standard deviation used for normalisation, on the 0-1 scale."""
    licence: str
    source: str
    """Where the data come from, for people."""
    labels_are_true: bool = True
    """Whether the labels of a dataset without noisy labels of its own count as true when it is used as it is."""

    def __init__(self, name: str = "", options: Mapping[str, Any] | None = None) -> None:
        """Set it up without looking at any file.

        Args:
            name: The name it was asked for by; matters for a family such as ``folder:NAME`` only.
            options: Values for :attr:`Options`.

        Raises:
            UsageError: An option is unknown or has a bad value.
        """
        from lnlbench.errors import UsageError

        try:
            self.options = self.Options.model_validate(dict(options or {}))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"dataset {name or self.name!r}: option {where!r}: {first['msg']}") from None

    def open(self, store: DataStore) -> None:  # noqa: B027 - most datasets need not
        """Look at what is small and tells about the user's copy, such as a list of classes. Called before planning.

        Raises:
            DataError: A dataset whose facts depend on the user's copy is not there.
        """

    @abstractmethod
    def files(self) -> tuple[RemoteFile, ...]:
        """Return the published files that can be downloaded; empty if there are none."""

    def needs(self) -> tuple[Needed, ...]:
        """Return what must be there, in the order in which a user would fetch it; empty for embedded data."""
        return tuple(
            Needed(
                path=file.name, what=f"{file.size:,} bytes" if file.size else "a file", source=file.url, download=True
            )
            for file in self.files()
        )

    @abstractmethod
    def prepare(self, store: DataStore) -> None:
        """Make sure that every file is there and right; download what may be downloaded.

        Raises:
            DataError: Something is missing or damaged; the message names the first such file, the cause and the cure.
        """

    @abstractmethod
    def load(self, store: DataStore) -> ImageData:
        """Read the data; every byte is verified before it is parsed.

        Datasets of many image files are verified when they are prepared. Loading them only makes sure that no file was
        exchanged since, by size and time of change.

        Raises:
            DataError: A file is missing, damaged, or not what it claims to be.
        """

    def forget(self, store: DataStore) -> None:  # noqa: B027 - most datasets remember nothing
        """Forget what an earlier :meth:`prepare` found out, so that the next one checks every byte.

        Raises:
            StorageError: The data folder cannot be written to.
        """

    def register(self, store: DataStore, edition: str) -> Edition:
        """Accept the files that lie in the dataset's folder as another edition and remember their checksums.

        Raises:
            DataError: The files are not in this dataset's format.
            UsageError: This dataset has only one edition.
        """
        from lnlbench.errors import UsageError

        raise UsageError(f"dataset {self.name!r} has only its canonical edition")
