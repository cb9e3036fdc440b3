"""What a noise generator is: a pure function from true labels to given labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from lnlbench.contracts.method import Paper

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class NoiseEntry(BaseModel):
    """A noise generator as announced by its plugin, with the code still unloaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Id, e.g. 'symmetric'.")
    target: str = Field(description="Where the function is, as 'package.module:function'.")
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
            true_labels: ``(N,)``, int64 in [0, num_classes).
            rate: Nominal noise rate in [0, 1]; what it means depends on the variant.
            num_classes: Number of classes C.
            seed: Noise seed, a non-negative integer.
            **options: The generator's own switches.

        Raises:
            UsageError: The rate or an option is outside what the generator allows.
        """


@dataclass(frozen=True)
class GeneratedLabels:
    """The outcome of a generator."""

    labels: NDArray[np.int64]
    """``(N,)``, int64 in [0, C): the given labels."""
    matrix: NDArray[np.float64]
    """``(C, C)``, rows sum to 1: the *intended* transition matrix P(given = column | true = row)."""
