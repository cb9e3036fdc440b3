"""A small harness for unit tests of a method: a task and a run in memory that keep the contracts.

Shapes: N training samples, B batch, K channels, H and W pixels, C classes, D and E widths of an encoder's spaces.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lnlbench.api import (
    PLAIN,
    Batch,
    Encoder,
    PluginError,
    RandAugment,
    RandomCrop,
    Selection,
    Stage,
    TaskInfo,
    UnknownNameError,
    UsageError,
    ValidationSplit,
    ViewRecipe,
)
from lnlbench.engine.checkpoint import collect_state, restore_state
from lnlbench.engine.seeding import (
    SETUP,
    Clock,
    NamedStream,
    derive_seed,
    hash_index,
    uniform_fractions,
    uniform_integers,
)
from lnlbench.engine.task import DeviceLoader
from lnlbench.engine.tracking import Tracker

CPU = torch.device("cpu")
_VIEWS = {
    "plain": PLAIN,
    "weak": ViewRecipe(ops=(RandomCrop(padding=1),)),
    "strong": ViewRecipe(ops=(RandomCrop(padding=1), RandAugment())),
}
_VERDICTS = {"clean_probs": "float", "selected": "bool", "pseudo_labels": "int64", "ood": "bool"}


def task_info(dataset: str = "toy", noise: str = "symmetric", rate: float | None = 0.4, **changes: Any) -> TaskInfo:
    """Return facts about a task, as ``preset`` and ``supports`` get them.

    Args:
        dataset: Its name; ``cifar100`` has 100 classes, every other one 10.
        noise: What ``ask_noise_type`` answers.
        rate: What ``ask_noise_rate`` answers.
        **changes: Any other field of :class:`lnlbench.api.TaskInfo`.
    """
    facts: dict[str, Any] = {
        "suite": f"{dataset}-noise",
        "task": "0.40",
        "dataset": dataset,
        "num_classes": 100 if dataset == "cifar100" else 10,
        "num_train": 1437,
        "image_size": 8,
        "channels": 1,
        "class_names": (),
        "default_backbone": "small-cnn",
        "default_epochs": 40,
        "default_encoder": "words",
        "_noise_type": noise,
        "_noise_rate": rate,
        "asked": set(),
    }
    return TaskInfo(**(facts | changes))


def toy_task(num_train: int = 90, num_classes: int = 3, noise: float = 0.3) -> MemoryTask:
    """Return a task that is learned in seconds: the class is the brightest square of a grey image.

    Calls that differ in ``noise`` only have the same images, so that ``toy_task(noise=0.0).labels`` are the true ones.

    Args:
        num_train: Number of images; classes take turns.
        num_classes: Number of classes, named ``a``, ``b``, ...; images of up to four have 8 x 8 pixels.
        noise: Share of the samples that have a wrong label, uniform over the other classes.
    """
    generator = torch.Generator().manual_seed(5)
    squares = max(2, math.ceil(math.sqrt(num_classes)))
    true_labels = torch.arange(num_train) % num_classes
    images = 0.3 * torch.randn(num_train, 1, 4 * squares, 4 * squares, generator=generator)
    for image, label in zip(images, true_labels.tolist(), strict=True):
        top, left = divmod(label, squares)
        image[0, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 1.5
    labels = true_labels.clone()
    wrong = torch.randperm(num_train, generator=generator)[: int(noise * num_train)]
    others = torch.randint(max(1, num_classes - 1), (len(wrong),), generator=generator)
    labels[wrong] = (labels[wrong] + 1 + others) % num_classes
    info = task_info(
        num_classes=num_classes,
        num_train=num_train,
        image_size=4 * squares,
        class_names=tuple(chr(ord("a") + label) for label in range(num_classes)),
    )
    return MemoryTask(images, labels, info)


class SmallNetwork(nn.Module):
    """Two convolutions with batch norm, and a linear layer; implements :class:`lnlbench.api.Network`."""

    num_features = 16

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.head = nn.Linear(16, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Map ``images_BKHW`` to ``features_BD``."""
        maps: Tensor = self.layers(images)
        return maps.mean((2, 3))

    def classify(self, features: Tensor) -> Tensor:
        """Map ``features_BD`` to ``logits_BC``."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images_BKHW`` to ``logits_BC``."""
        return self.classify(self.embed(images))


class MemoryClock(Clock):
    """The moment that streams and loaders depend on; a test may move it to an epoch by its number."""

    epoch = -1
    """The epoch, -1 before the first."""

    def move_to(self, moment: str | int) -> None:
        """Enter an epoch, or a moment by name: streams start anew, global ones too."""
        if isinstance(moment, int):
            self.epoch = moment
            moment = f"epoch {moment}"
        elif moment == SETUP:
            self.epoch = -1
        super().move_to(moment)

    @property
    def streams(self) -> dict[tuple[str, torch.device], NamedStream]:
        """The streams that were asked for; without its entry a stream starts anew within the epoch."""
        return self._streams


class MemorySource:
    """Images as they are in ``plain`` views, moved by up to one pixel in others, with noise where pixels change.

    As in a real run, what a view looks like depends on its key and the sample alone.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.size, self.channels, self.height, self.width = images.shape

    def batches(
        self, order: Tensor, batch_size: int, count: int, recipes: tuple[ViewRecipe, ...], keys: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the views of a pass, batch by batch."""
        for batch in range(count):
            index = order[batch * batch_size : (batch + 1) * batch_size]
            yield tuple(self._view(recipe, key, index) for recipe, key in zip(recipes, keys, strict=True))

    def _view(self, recipe: ViewRecipe, key: int, index: Tensor) -> Tensor:
        images = self.images[index]
        if not recipe.ops:
            return images
        rows, columns = (
            (torch.arange(side) - _shifts(key, index, lane)[:, None]) % side
            for lane, side in enumerate((self.height, self.width))
        )
        samples, channels = torch.arange(len(index))[:, None, None, None], torch.arange(self.channels)[:, None, None]
        images = images[samples, channels, rows[:, None, :, None], columns[:, None, None, :]]
        if recipe.pixel_ops:
            pixels = torch.arange(images[0].numel() if len(images) else 0)
            noise = uniform_fractions(hash_index(key, index[:, None] * len(pixels) + pixels, 2))
            images = images + 0.7 * (noise.view(images.shape) - 0.5)
        return images


def _shifts(key: int, index: Tensor, lane: int) -> Tensor:
    return uniform_integers(hash_index(key, index, lane), 3) - 1


class MemoryLoader(DeviceLoader):
    """The loader of real runs, which keeps an account of the batches it hands out."""

    def __init__(self, task: MemoryTask, role: str, *arguments: Any) -> None:
        super().__init__(MemorySource(task.images), task.labels, task.clock, role, *arguments)
        self._task = task

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            self._task.served.append((self._role, batch.index))
            yield batch


class Towers(nn.Module):
    """Frozen parameters of an image and a text tower."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.image = nn.Linear(pixels, 6, bias=False)
        self.tokens = nn.Embedding(64, 5)
        self.text = nn.Linear(5, 6, bias=False)
        self.requires_grad_(False)


class MemoryEncoder:
    """An encoder of words: a text's feature is a non-linear function of the mean of its words' embeddings.

    Implements :class:`lnlbench.api.Encoder`. Its weights are random, so it knows nothing of the classes.
    """

    embed_dim, context_dim, temperature, fingerprint = 6, 5, 0.1, "0" * 64

    def __init__(self, images: Tensor, name: str = "words") -> None:
        self.name = name
        self.images = images
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.towers = Towers(images[0].numel())
        self.encoded: list[int] = []
        """Sizes of the batches given to :meth:`image_features`."""
        self.prompted = 0
        """Calls of :meth:`prompt_features`."""

    def training_features(self) -> Tensor:
        """Return ``features_NE``."""
        return F.normalize(self.towers.image(self.images.flatten(1)), dim=1)

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """Map ``images_BKHW`` to ``features_BE``."""
        self.encoded.append(len(images))
        return F.normalize(self.towers.image(images.flatten(1)), dim=1)

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Map T texts to ``features_TE``."""
        return F.normalize(torch.stack([self._encode(self.token_embeddings(text)) for text in texts]), dim=1)

    def token_embeddings(self, text: str) -> Tensor:
        """Return one row per word."""
        words = [derive_seed(word) % self.towers.tokens.num_embeddings for word in text.removesuffix(".").split()]
        embeddings: Tensor = self.towers.tokens(torch.tensor(words))
        return embeddings

    def prompt_features(self, context: Tensor, names: Sequence[str]) -> Tensor:
        """Map ``context_MD`` and C class names to ``features_CE``; gradients flow to the context."""
        self.prompted += 1
        texts = [torch.cat([context, self.token_embeddings(name)]) for name in names]
        return F.normalize(torch.stack([self._encode(tokens) for tokens in texts]), dim=1)

    def _encode(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.towers.text(torch.tanh(tokens.mean(0)))
        return features


class MemoryTask:
    """A noisy training set of any images and labels; implements :class:`lnlbench.api.Task`.

    Networks are :class:`SmallNetwork`, whatever backbone is asked for.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        info: TaskInfo | None = None,
        *,
        seed: int = 0,
        views: Mapping[str, ViewRecipe] | None = None,
        encoders: Mapping[str, Encoder] | None = None,
    ) -> None:
        """Take the data as they are.

        Args:
            images: ``images_NKHW``, float32, handed out as they are in ``plain`` views.
            labels: ``labels_N``, int64: the given labels.
            info: Facts about the task; those of the tensors if ``None``.
            seed: Of networks, streams and loaders.
            views: Recipes by name, in place of or beside ``plain``, ``weak`` and ``strong``.
            encoders: Encoders by name; any other name gives a :class:`MemoryEncoder`.
        """
        self.images, self.labels = images, labels
        self.info = info or task_info(
            num_classes=int(labels.max()) + 1,
            num_train=len(labels),
            image_size=images.shape[-1],
            channels=images.shape[1],
        )
        self.num_train, self.num_classes = len(labels), self.info.num_classes
        self.device = CPU
        self.selection: Selection | None = None
        self.clock = MemoryClock(seed)
        self.views = _VIEWS | dict(views or {})
        self.encoders: dict[str, Any] = dict(encoders or {})
        """Encoders given and asked for, by name."""
        self.loaders: list[tuple[str, dict[str, Any]]] = []
        """Role, batch size, views and order of every loader that was asked for."""
        self.served: list[tuple[str, Tensor]] = []
        """Role and ``index_B`` of every batch that was handed out."""

    def encoder(self, name: str) -> Any:
        """See :meth:`lnlbench.api.Task.encoder`."""
        if name not in self.encoders:
            self.encoders[name] = MemoryEncoder(self.images, name)
        return self.encoders[name]

    def network(self, role: str, backbone: str) -> nn.Module:
        """See :meth:`lnlbench.api.Task.network`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.clock.seed, "stream", f"init:{role}") & 0x7FFFFFFFFFFFFFFF)
            return SmallNetwork(self.images.shape[1], self.num_classes)

    def loader(
        self,
        role: str,
        *,
        batch_size: int,
        views: Sequence[str | ViewRecipe] = ("weak",),
        index: Tensor | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> MemoryLoader:
        """See :meth:`lnlbench.api.Task.loader`."""
        self.loaders.append((role, {"batch_size": batch_size, "views": tuple(views), "shuffle": shuffle}))
        recipes = tuple(self._recipe(view) for view in views)
        index = torch.arange(self.num_train) if index is None else index
        return MemoryLoader(self, role, batch_size, recipes, index, shuffle, drop_last)

    def ask_validation(self, fraction: float = 0.1) -> ValidationSplit:
        """See :meth:`lnlbench.api.Task.ask_validation`."""
        if not 0.0 < fraction < 1.0:
            raise UsageError(f"validation fraction {fraction} is not strictly between 0 and 1")
        self.info.asked.add("validation")
        order = torch.randperm(self.num_train, generator=torch.Generator().manual_seed(self.clock.seed))
        held_out = torch.zeros(self.num_train, dtype=torch.bool)
        for label in range(self.num_classes):
            members = order[self.labels[order] == label]
            held_out[members[: round(fraction * len(members))]] = True
        return ValidationSplit(*(mask.nonzero().flatten() for mask in (~held_out, held_out)))

    def _recipe(self, view: str | ViewRecipe) -> ViewRecipe:
        if isinstance(view, ViewRecipe):
            return view
        if view not in self.views:
            raise UnknownNameError(f"view of suite {self.info.suite!r}", view, self.views)
        return self.views[view]


class MemoryStage(Tracker):
    """The harness inside a stage; implements :class:`lnlbench.api.Stage`."""

    def __init__(self, name: str, clock: MemoryClock) -> None:
        super().__init__(clock, CPU)
        self._name = name
        clock.move_to(f"{name} {SETUP}")

    def epochs(self, total: int) -> Iterator[int]:
        """See :meth:`lnlbench.api.Stage.epochs`."""
        self._started = True
        for epoch in range(total):
            self._clock.move_to(f"{self._name} epoch {epoch}")
            yield epoch
            self._steps.finish(epoch)


class MemoryRun(Tracker):
    """A run that keeps what a method does; implements :class:`lnlbench.api.Run`.

    After each epoch tracked modules are in eval mode for ``after_epoch``, and after the last one they stay in it, so
    that a test can go on with ``predict``.
    """

    def __init__(
        self, task: MemoryTask, *, stop_after: int | None = None, resume: Mapping[str, Any] | None = None
    ) -> None:
        """Begin, or go on.

        Args:
            task: What is trained on; its clock is moved.
            stop_after: The epoch after which the loop ends, as if interrupted; the state is then in ``saved``.
            resume: ``saved`` of the run to go on with.
        """
        super().__init__(task.clock, task.device)
        self.clock = task.clock
        self.clock.move_to(SETUP)
        self._num_train = task.num_train
        self._stop_after, self._resume = stop_after, resume
        self.logged: list[tuple[int, dict[str, Any]]] = []
        """Epoch and values of each call of :meth:`log`; epoch -1 is before the first."""
        self.reported: list[tuple[int, str, dict[str, Any]]] = []
        """Epoch, name and verdicts of each call of :meth:`report`."""
        self.stages: dict[str, dict[str, Any]] = {}
        """What each stage said of itself, by name."""
        self.saved: dict[str, Any] = {}
        """The state at ``stop_after``: what ``resume`` takes."""
        self.after_epoch: Callable[[int], object] = int
        """Called with its number after each epoch."""

    def epochs(self, total: int) -> Iterator[int]:
        """See :meth:`lnlbench.api.Run.epochs`."""
        if self._started:
            raise PluginError("epochs() was called twice; a method has one outer loop")
        self._started = True
        start = 0
        if self._resume is not None:
            restore_state(self.tracked, copy.deepcopy(self._resume["state"]))
            start = self._resume["epoch"] + 1
        for epoch in range(start, total):
            self.clock.move_to(epoch)
            yield epoch
            self._steps.finish(epoch)
            modules = [each for module in self.modules() for each in module.modules()]
            training = [module.training for module in modules]
            self._evaluate()
            self.after_epoch(epoch)
            for module, flag in zip(modules, training, strict=True):
                module.training = flag
            if epoch == self._stop_after:
                self.saved = {"epoch": epoch, "state": copy.deepcopy(collect_state(self.tracked))}
                break
        self._evaluate()

    def _evaluate(self) -> None:
        for module in self.modules():
            module.eval()

    def log(self, **values: Tensor | float) -> None:
        """See :meth:`lnlbench.api.Run.log`."""
        super().log(**values)
        detached = {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
        self.logged.append((self.clock.epoch, detached))

    def report(self, name: str = "", **verdicts: Tensor | None) -> None:
        """See :meth:`lnlbench.api.Run.report`."""
        for what, values in verdicts.items():
            if what not in _VERDICTS:
                raise TypeError(f"report() got an unexpected keyword argument {what!r}")
            if values is not None:
                self._check(what, values)
        self.reported.append((self.clock.epoch, name, verdicts))

    def stage(
        self,
        name: str,
        compute: Callable[[Stage], Mapping[str, Tensor]],
        *,
        inputs: Mapping[str, Any],
        uses_labels: bool,
    ) -> dict[str, Tensor]:
        """See :meth:`lnlbench.api.Run.stage`. Nothing is stored: each call computes."""
        if self._started:
            raise PluginError(f"stage({name!r}) came after epochs(); stages come before training")
        self.stages[name] = {"inputs": json.loads(json.dumps(inputs)), "uses_labels": uses_labels}
        result = compute(MemoryStage(name, self.clock))
        self.clock.move_to(SETUP)
        return {key: value.detach().clone() for key, value in result.items()}

    def values(self, key: str) -> list[float]:
        """Return what was logged under a key, in order."""
        return [float(values[key]) for _, values in self.logged if key in values]

    def _check(self, what: str, values: Tensor) -> None:
        kind = _VERDICTS[what]
        found = "float" if values.is_floating_point() else str(values.dtype).removeprefix("torch.")
        if tuple(values.shape) != (self._num_train,) or found != kind:
            raise PluginError(
                f"report({what}=...) got {values.dtype} of shape {tuple(values.shape)}; "
                f"expected {kind} of ({self._num_train},)"
            )
