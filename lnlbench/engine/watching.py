"""What a method does in an epoch, seen from outside: forward passes, steps, batches and encodings.

Everything a method computes with comes through its task, so that is where it is watched. Networks are watched by a hook
on their first layer with weights, which a deep copy (a running average of a network, say) keeps.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, median_low
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from lnlbench.contracts.encoder import Encoder
from lnlbench.contracts.method import Method, MethodEntry
from lnlbench.contracts.run import Run
from lnlbench.contracts.task import Batch, Loader, Task
from lnlbench.contracts.views import PLAIN, ViewRecipe
from lnlbench.files import write_json
from lnlbench.plugins import Catalogue, Registered, Registry


class Usage(BaseModel):
    """What a method used in one epoch. "Sets" are multiples of the number of training images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    networks_trained: int = Field(description="Networks with weights that an optimiser changed.")
    networks_run: int = Field(description="Networks that images passed through; averaged copies count.")
    views: tuple[tuple[str, ...], ...] = Field(
        description="Views of an image in a training step, for each kind of batch."
    )
    steps: int = Field(description="Optimiser steps on the weights of networks.")
    passes_with_gradient: float = Field(description="Forward passes with gradient per step; the median.")
    passes_without_gradient: float = Field(description="Forward passes without gradient per step; the median.")
    sets_with_gradient: float = Field(description="Sets through a network with gradient in the whole epoch.")
    sets_without_gradient: float = Field(description="Sets through a network without gradient in the whole epoch.")
    sets_outside_steps: float = Field(description="Of both, those outside of training steps, to judge the samples.")
    reports: tuple[str, ...] = Field(description="Verdicts on training samples that it reported.")
    encoders: tuple[str, ...] = Field(description="Vision-language encoders asked for.")
    sets_encoded: float = Field(description="Sets through an image tower in the epoch; stored features cost nothing.")
    prompts_encoded: float = Field(description="Passes of learnable prompts through a text tower per step.")


@dataclass(frozen=True)
class _Pass:
    network: int
    images: int
    gradient: bool


@dataclass(frozen=True)
class _Fetch:
    views: tuple[str, ...]


@dataclass(frozen=True)
class _Encoding:
    images: int
    """0 for a prompt."""


@dataclass(frozen=True)
class _Step:
    networks: frozenset[int]


_Event = _Pass | _Fetch | _Encoding | _Step


class Watch:
    """Keeps what happened in the latest epoch. What the harness does between two epochs is not counted."""

    def __init__(self) -> None:
        self._events: list[_Event] | None = None
        self._latest: list[_Event] = []
        # Weak, so that a network that the method has done with takes no memory.
        self._network_of: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        """The number of the network that a parameter belongs to."""
        self._num_networks = 0
        self._encoders: dict[str, None] = {}
        self._reports: dict[str, None] = {}
        self._num_train = 0
        self._began = 0.0
        self.processor_seconds: list[float] = []
        """Processor time of each epoch, all threads together."""

    def methods(self, registry: Registry) -> Registry:
        """Return the registry with methods that are watched while they train."""
        watched: Catalogue[MethodEntry] = Catalogue(registry.methods.kind)
        for registered in registry.methods:
            watched.add(_WatchedMethod(registered.entry, registered.provider, self))
        return dataclasses.replace(registry, methods=watched)

    def usage(self) -> Usage | None:
        """Sum up the latest epoch; ``None`` if no network was trained in it."""
        steps, rest = _split(self._latest)
        if not steps:
            return None
        usual = median_low(_num_passes(events) for events, _ in steps)
        # A step that comes with more passes than the others has them from before it: samples were judged.
        parts = [_cut(events, _num_passes(events) - usual) for events, _ in steps]
        own = [[event for event in inside if isinstance(event, _Pass)] for _, inside in parts]
        outside = [event for before, _ in parts for event in before] + rest
        passes = [event for event in self._latest if isinstance(event, _Pass)]
        encodings = [event for event in self._latest if isinstance(event, _Encoding)]
        views = [event.views for _, inside in parts for event in inside if isinstance(event, _Fetch)]

        def sets(events: Sequence[_Event]) -> float:
            return sum(event.images for event in events if isinstance(event, _Pass | _Encoding)) / self._num_train

        return Usage(
            networks_trained=len(frozenset().union(*(step.networks for _, step in steps))),
            networks_run=len({event.network for event in passes}),
            views=tuple(dict.fromkeys(views)),
            steps=len(steps),
            passes_with_gradient=median(sum(event.gradient for event in step) for step in own),
            passes_without_gradient=median(sum(not event.gradient for event in step) for step in own),
            sets_with_gradient=sets([event for event in passes if event.gradient]),
            sets_without_gradient=sets([event for event in passes if not event.gradient]),
            sets_outside_steps=sets([event for event in outside if isinstance(event, _Pass)]),
            reports=tuple(self._reports),
            encoders=tuple(self._encoders),
            sets_encoded=sets(encodings),
            prompts_encoded=sum(event.images == 0 for event in encodings) / len(steps),
        )

    def write(self, path: Path) -> None:
        """Write down what was seen, as JSON."""
        usage = self.usage()
        seen = {
            "usage": None if usage is None else usage.model_dump(mode="json"),
            "processor_seconds": self.processor_seconds,
        }
        write_json(path, seen)

    def begin_epoch(self) -> None:
        """Start afresh."""
        self._events = []
        self._began = time.process_time()

    def end_epoch(self) -> None:
        """Keep the epoch's events; nothing is counted until the next one."""
        if self._events is not None:
            self.processor_seconds.append(time.process_time() - self._began)
            self._latest, self._events = self._events, None

    def note(self, event: _Event) -> None:
        """Write down an event, if it belongs to an epoch."""
        if self._events is not None:
            self._events.append(event)

    def network(self, network: nn.Module) -> nn.Module:
        """Count the passes of a network from now on."""
        for parameter in network.parameters():
            self._network_of[parameter] = self._num_networks
        self._num_networks += 1
        first = next(module for module in network.modules() if next(module.parameters(recurse=False), None) is not None)

        # A function: a bound method would be copied with the network, and this object with it.
        def passed(module: nn.Module, arguments: tuple[Tensor, ...], _output: Tensor) -> None:
            self.note(_Pass(id(module), len(arguments[0]), torch.is_grad_enabled()))

        first.register_forward_hook(passed)
        return network

    def fit(self, fit: Callable[[Task, Run], None], task: Task, run: Run) -> None:
        """Watch a training from its beginning to its end."""
        self._num_train = task.num_train
        hook = register_optimizer_step_post_hook(self._stepped)
        try:
            fit(_WatchedTask(task, self), _WatchedRun(run, self))
        finally:
            hook.remove()
        self.end_epoch()

    def encoder(self, encoder: Encoder) -> Encoder:
        """Return the encoder as the method gets it."""
        self._encoders[encoder.name] = None
        return _WatchedEncoder(encoder, self)

    def report(self, kinds: Iterable[str]) -> None:
        """Remember what kinds of verdicts there are."""
        self._reports.update(dict.fromkeys(kinds))

    def _stepped(self, optimiser: torch.optim.Optimizer, _arguments: Any, _options: Any) -> None:
        changed = (parameter for group in optimiser.param_groups for parameter in group["params"])
        networks = frozenset(self._network_of[each] for each in changed if each in self._network_of)
        # An optimiser of something else, such as a prompt, is no training step of a network.
        if networks:
            self.note(_Step(networks))


@dataclass(frozen=True)
class _WatchedMethod(Registered[MethodEntry]):
    watch: Watch

    def load(self) -> Any:
        """Import the method's class and have its training watched."""
        cls: type[Method[Any]] = super().load()

        def fit(method: Method[Any], task: Task, run: Run) -> None:
            self.watch.fit(partial(cls.fit, method), task, run)

        return type(cls.__name__, (cls,), {"fit": fit, "__module__": cls.__module__})


class _Passing:
    """Hands on everything but what a subclass has itself."""

    def __init__(self, inner: Any, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _WatchedTask(_Passing):
    def network(self, role: str, backbone: str) -> nn.Module:
        return self._watch.network(self._inner.network(role, backbone))

    def encoder(self, name: str) -> Encoder:
        return self._watch.encoder(self._inner.encoder(name))

    def loader(self, role: str, *, views: Sequence[str | ViewRecipe] = ("weak",), **options: Any) -> Loader:
        return _WatchedLoader(self._inner.loader(role, views=views, **options), tuple(map(_name, views)), self._watch)


class _WatchedLoader:
    def __init__(self, loader: Loader, views: tuple[str, ...], watch: Watch) -> None:
        self._loader = loader
        self._views = views
        self._watch = watch

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return self._noting(iter(self._loader))

    def forever(self) -> Iterator[Batch]:
        return self._noting(self._loader.forever())

    def _noting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._watch.note(_Fetch(self._views))
            yield batch


class _WatchedRun(_Passing):
    def epochs(self, total: int) -> Iterator[int]:
        for epoch in self._inner.epochs(total):
            self._watch.begin_epoch()
            yield epoch
            self._watch.end_epoch()

    def report(self, name: str = "", **verdicts: Tensor | None) -> None:
        self._watch.report(kind for kind, values in verdicts.items() if values is not None)
        self._inner.report(name, **verdicts)


class _WatchedEncoder(_Passing):
    def image_features(self, images: Tensor) -> Tensor:
        self._watch.note(_Encoding(len(images)))
        features: Tensor = self._inner.image_features(images)
        return features

    def prompt_features(self, context: Tensor, names: Sequence[str]) -> Tensor:
        self._watch.note(_Encoding(0))
        features: Tensor = self._inner.prompt_features(context, names)
        return features


def _name(view: str | ViewRecipe) -> str:
    if isinstance(view, str):
        return view
    return "plain" if view == PLAIN else " + ".join(op.op for op in view.ops)


def _split(events: Sequence[_Event]) -> tuple[list[tuple[list[_Event], _Step]], list[_Event]]:
    """Return what came before each step, with the step, and what came after the last one."""
    steps: list[tuple[list[_Event], _Step]] = []
    pending: list[_Event] = []
    for event in events:
        if isinstance(event, _Step):
            steps.append((pending, event))
            pending = []
        else:
            pending.append(event)
    return steps, pending


def _num_passes(events: Sequence[_Event]) -> int:
    return sum(isinstance(event, _Pass) for event in events)


def _cut(events: list[_Event], passes: int) -> tuple[list[_Event], list[_Event]]:
    """Cut events after so many passes."""
    if passes <= 0:
        return [], events
    last = [place for place, event in enumerate(events) if isinstance(event, _Pass)][passes - 1]
    return events[: last + 1], events[last + 1 :]
