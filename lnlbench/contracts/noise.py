"""Where noisy labels come from: a generator (a pure function from true labels to given labels), or released files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from lnlbench.contracts.dataset import DataStore, Needed
from lnlbench.contracts.method import Paper

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class NoiseEntry(BaseModel):
    """A source of noisy labels as announced by its plugin, with the code still unloaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Id, e.g. 'symmetric'.")
    target: str = Field(
        description="Where the code is, as 'package.module:name': a function (NoiseGenerator) or a class "
        "(ReleasedLabels), by kind; empty for kind 'own'."
    )
    kind: Literal["generated", "released", "own"] = Field(
        "generated",
        description="'generated': drawn from the true labels, a rate and a seed. 'released': read from published label "
        "files. 'own': the dataset brings its noisy labels itself, and there is no code.",
    )
    uses_images: bool = Field(False, description="Whether a generator also gets the training images.")
    summary: str = Field(description="One sentence.")
    options: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="Named options and their allowed values; the first is the default."
    )
    paper: Paper | None = Field(None, description="The publication, if there is one.")


class NoiseGenerator(Protocol):
    """Pure and deterministic: the same arguments give the same labels on every machine and library version."""

    def __call__(
        self, true_labels: NDArray[np.int64], rate: float, *, num_classes: int, seed: int, **options: Any
    ) -> GeneratedLabels:
        """Corrupt labels.

        Args:
            true_labels: ``(N,)``, int64 from 0. A label of ``num_classes`` or more is that of a class outside the
                task; a generator that does not know open sets refuses it.
            rate: Nominal noise rate in [0, 1]; what it means depends on the variant.
            num_classes: Number of classes C of the task.
            seed: Noise seed, a non-negative integer.
            **options: The generator's own switches; and ``images``, ``(N, H, W, K)`` uint8, if its entry says
                ``uses_images``.

        Raises:
            UsageError: The rate, an option or a label is outside what the generator allows.
        """


@dataclass(frozen=True)
class GeneratedLabels:
    """The outcome of a generator."""

    labels: NDArray[np.int64]
    """``(N,)``, int64 in [0, C): the given labels."""
    matrix: NDArray[np.float64]
    """``(R, C)``, rows sum to 1: the *intended* transition matrix P(given = column | true = row). R is C, or larger
    where there are samples of classes outside the task: the highest label plus one."""


class ReleasedLabels(ABC):
    """Noisy labels that were published as files and are used as they are."""

    @abstractmethod
    def needs(self, options: Mapping[str, Any]) -> tuple[Needed, ...]:
        """Return the files these options need."""

    @abstractmethod
    def prepare(self, store: DataStore, options: Mapping[str, Any]) -> None:
        """Make sure that the files are there and right; download what may be downloaded.

        Raises:
            DataError: A file is missing or damaged; the message says where it is expected and where it can be had.
        """

    @abstractmethod
    def load(
        self, store: DataStore, true_labels: NDArray[np.int64], *, num_classes: int, options: Mapping[str, Any]
    ) -> NDArray[np.int64]:
        """Read the given labels, verified, in the order of the training set.

        Args:
            store: The data folder.
            true_labels: ``(N,)``, int64: the whole training set's true labels, to make sure that the order is right.
            num_classes: Number of classes C.
            options: Which of several label sets.

        Returns:
            ``(N,)``, int64 in [0, C).

        Raises:
            DataError: A file is missing or damaged, or belongs to another dataset or another order.
            UsageError: An option is unknown.
        """
