"""What a method is: a typed configuration, the paper's hyper-parameter table, and a loop the method owns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from lnlbench.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor

    from lnlbench.contracts.run import Run
    from lnlbench.contracts.task import Selection, Task, TaskInfo


class Paper(BaseModel):
    """The publication a method, dataset or noise comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="Full title.")
    authors: str = Field(description="Family names, comma-separated.")
    venue: str = Field(description="Conference or journal.")
    year: int = Field(description="Year of publication.")
    url: str = Field("", description="Where to read it.")
    bibtex: str = Field("", description="A BibTeX entry.")


class MethodEntry(BaseModel):
    """A method as its plugin announces it: enough to list it, with the code still unloaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Id: the paper's name in lower case without punctuation.")
    target: str = Field(description="Where the class is, as 'package.module:Class'; imported only when used.")
    summary: str = Field(description="One sentence.")
    paper: Paper | None = Field(None, description="The publication, if there is one.")
    supervision: tuple[str, ...] = Field(
        ("scratch",),
        description="What is used beyond the noisy training set: 'scratch' for nothing, else 'imagenet', 'clip', ...",
    )
    networks_at_test: int = Field(1, ge=1, description="Networks that vote on a test image.")
    selects: bool = Field(False, description="Whether it can select clean samples before anything is trained.")
    starts_from_selection: bool = Field(False, description="Whether it can start from another method's selection.")


class MethodConfig(BaseModel):
    """Options every method has; a method's own ``Config`` extends it. Unknown or ill-typed options are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=1, description="Training epochs, warm-up included.")
    batch_size: int = Field(ge=1, description="Images per mini-batch.")
    backbone: str = Field(description="Backbone by name, e.g. 'preact-resnet18' or 'timm:resnet50'.")


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


@dataclass(frozen=True)
class Ensemble:
    """What several networks say of test images: together, which is the method's answer, and each by itself.

    Shapes: B batch, C classes.
    """

    logits: Tensor
    """``logits_BC``, float32: the answer, any monotone score per class. Scores and ranks rest on it."""
    networks: Mapping[str, Tensor]
    """``logits_BC`` of each network by name; the log shows its accuracy on the main test set beside the answer's."""


class Method(ABC, Generic[ConfigT]):
    """One method. The order of members below is the order in which every method's file reads.

    The method owns its training loop; the harness owns the clock and the truth. ``fit`` iterates over
    ``run.epochs(...)``; between two epochs the harness evaluates, scores, logs and checkpoints. A method never
    downloads, picks a device, seeds anything globally, or writes a file.
    """

    Config: ClassVar[type[MethodConfig]]
    skip_checks: ClassVar[Mapping[str, str]] = {}
    """Checks of ``lnlbench check`` that do not apply to this method, each with the reason."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @classmethod
    @abstractmethod
    def preset(cls, task: TaskInfo) -> ConfigT:
        """Return the paper's hyper-parameters for this task.

        Asking the task for its noise rate or noise type is allowed; it is stamped on the row.
        """

    @classmethod
    def supports(cls, task: TaskInfo) -> str | None:
        """Return ``None`` if the method can run on this task, else the reason why not."""
        return None

    @abstractmethod
    def fit(self, task: Task, run: Run) -> None:
        """Train. Everything that must survive an interruption is handed to ``run.track`` before ``run.epochs``."""

    def select(self, task: Task, run: Run) -> Selection:
        """Select clean samples before anything is trained; only of methods whose entry says ``selects``.

        Other methods can start from it (``--select``), and ``lnlbench select`` writes it down.
        """
        raise PluginError(f"{type(self).__name__} has no select(), although its entry says that it selects")

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor | Ensemble:
        """Score test images; called by the harness without gradient, tracked modules in eval mode.

        Args:
            images: ``images_BCHW``, float32, normalised, channels-last, on the run's device.

        Returns:
            ``logits_BC`` (any monotone score per class), float32; or an :class:`Ensemble`, if each network's accuracy
            is to be logged as well.
        """
