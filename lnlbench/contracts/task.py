"""What a method sees of the data: noisy labels and images, without true labels and without the test set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from lnlbench.contracts.encoder import Encoder
    from lnlbench.contracts.views import ViewRecipe


@dataclass(frozen=True)
class TaskInfo:
    """Facts about a task, known before any data are loaded.

    What a paper may legitimately know is a plain attribute. The noise rate and the noise type are asked for by a call,
    since a result that used them stands on another board; the harness stamps every question on the row.
    """

    suite: str
    """Suite id, e.g. ``cifar10-sym``."""
    task: str
    """Task within the suite, e.g. ``0.50``."""
    dataset: str
    """Dataset id, e.g. ``cifar10``."""
    num_classes: int
    num_train: int
    image_size: int
    """Side of the square images in pixels."""
    channels: int
    class_names: tuple[str, ...]
    default_backbone: str
    """The backbone the suite names for methods without an opinion of their own."""
    default_epochs: int
    """The suite's own schedule length, for datasets that the method's paper does not cover."""
    default_encoder: str
    """The vision-language encoder the suite names."""
    _noise_type: str
    _noise_rate: float | None
    asked: set[str]
    """What has been asked for so far: ``"noise rate"``, ``"noise type"``, ``"validation"``."""

    def ask_noise_rate(self) -> float | None:
        """Return the nominal noise rate in [0, 1], or ``None`` where nobody knows it. Stamped on the row."""
        self.asked.add("noise rate")
        return self._noise_rate

    def ask_noise_type(self) -> str:
        """Return the noise generator's name, e.g. ``"symmetric"``. Stamped on the row."""
        self.asked.add("noise type")
        return self._noise_type


@dataclass(frozen=True)
class Batch:
    """One mini-batch. All tensors are on the run's device.

    Shapes: B batch, C channels, H and W pixels.
    """

    index: Tensor
    """``index_B``, int64: positions in the full training set."""
    labels: Tensor
    """``labels_B``, int64: the given (possibly wrong) labels."""
    views: tuple[Tensor, ...]
    """One ``images_BCHW`` per requested view: float32, normalised, channels-last."""

    @property
    def images(self) -> Tensor:
        """The first view."""
        return self.views[0]


@dataclass(frozen=True)
class Selection:
    """What a method says of the training set before anything is trained.

    Shapes: N training samples.
    """

    clean_probs: Tensor
    """``clean_probs_N``, float32 in [0, 1], on the device."""
    selected: Tensor
    """``selected_N``, bool, on the device: taken for clean."""


class Loader(Protocol):
    """A re-iterable source of mini-batches; every pass has its own order and its own augmentations."""

    def __iter__(self) -> Iterator[Batch]:
        """Make one pass."""

    def __len__(self) -> int:
        """Return the number of batches in a pass."""

    def forever(self) -> Iterator[Batch]:
        """Start a new pass whenever one is exhausted. Raises ``ValueError`` if there is no sample at all."""


@dataclass(frozen=True)
class ValidationSplit:
    """A hold-out cut from the *noisy* training set: its labels are as noisy as the rest."""

    train_index: Tensor
    """int64, ascending positions in the full training set."""
    validation_index: Tensor
    """int64, ascending positions in the full training set."""


class Network(Protocol):
    """What a backbone gives a method: logits, or the features before the last linear layer."""

    num_features: int

    def __call__(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``logits_BC`` (float32)."""

    def embed(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``features_BD`` (float32)."""

    def classify(self, features: Tensor) -> Tensor:
        """Map ``features_BD`` to ``logits_BC`` (float32)."""


class Task(Protocol):
    """A noisy training set, as a method may use it."""

    info: TaskInfo
    num_train: int
    num_classes: int
    device: torch.device
    labels: Tensor
    """``labels_N``, int64, on the device: the given labels."""
    selection: Selection | None
    """Another method's selection to start from, where the user asked for one (``--select``)."""

    def encoder(self, name: str) -> Encoder:
        """Return a frozen vision-language encoder.

        Raises:
            UnknownNameError: No encoder of that name.
            DataError: Its weights are not there.
        """

    def network(self, role: str, backbone: str) -> nn.Module:
        """Build a fresh network whose initial weights come from the random stream ``init:<role>``.

        It is on the device, channels-last, and runs its forward pass in the run's precision; outputs are float32. It
        offers the methods of :class:`Network`.

        Raises:
            UnknownNameError: No backbone of that name.
        """

    def loader(
        self,
        role: str,
        *,
        batch_size: int,
        views: Sequence[str | ViewRecipe] = ("weak",),
        index: Tensor | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> Loader:
        """Return a loader over the training set or a subset of it.

        Args:
            role: Names the random streams; loaders with different roles have independent orders and augmentations.
            batch_size: Images per batch; the last batch of a pass may be smaller.
            views: One image tensor per entry: ``"plain"``, ``"weak"``, or a recipe.
            index: int64 positions in the full training set; all of it if ``None``.
            shuffle: A fresh seeded order each pass; otherwise the order of ``index``.
            drop_last: Leave out an incomplete last batch.
        """

    def ask_validation(self, fraction: float = 0.1) -> ValidationSplit:
        """Cut a validation set from the noisy training set, stratified by given label. Stamped on the row.

        Raises:
            UsageError: ``fraction`` is not strictly between 0 and 1.
        """
