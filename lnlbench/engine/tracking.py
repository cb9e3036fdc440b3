"""What a run and a stage have in common: tracked state, named streams, the log of the current epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lnlbench.contracts.run import Stateful
from lnlbench.engine.checkpoint import Tracked
from lnlbench.engine.seeding import Clock, NamedStream
from lnlbench.errors import DivergedError, PluginError

Emit = Callable[[dict[str, Any]], None]
"""Receives one event; ``event["event"]`` names it."""


class StepLog:
    """Scalars of the current epoch. Tensors wait on the device until the epoch ends."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor | float]] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Record one step."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else float(value))

    def finish(self, epoch: int) -> dict[str, float]:
        """Return the mean of each scalar and forget them.

        Raises:
            DivergedError: A value is not finite; the message has the epoch and the step, both counted from 0.
        """
        means = {}
        for name, values in self._values.items():
            tensors = [value.reshape(()).double() for value in values if isinstance(value, Tensor)]
            numbers = (
                torch.stack(tensors).cpu().numpy()
                if len(tensors) == len(values)
                else np.array([float(v) for v in values])
            )
            wrong = np.flatnonzero(~np.isfinite(numbers))
            if len(wrong):
                raise DivergedError(f"{name} is {numbers[wrong[0]]} at epoch {epoch}, step {wrong[0]}")
            means[name] = float(numbers.mean())
        self._values = {}
        return means


class Tracker:
    """Keeps what a method registers and records."""

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self.device = device
        self._clock = clock
        self.tracked: dict[str, Tracked] = {}
        self._steps = StepLog()
        self._started = False

    def track(self, **state: Stateful | MutableMapping[str, Any]) -> None:
        """See :meth:`lnlbench.api.Run.track`."""
        if self._started:
            raise PluginError(f"track({', '.join(state)}) came after epochs(); track everything before the loop")
        for name, item in state.items():
            if name in self.tracked:
                raise PluginError(f"{name!r} is tracked twice")
            if not isinstance(item, Stateful | MutableMapping):
                raise PluginError(f"{name!r} has neither state_dict() nor is it a dictionary; it cannot be tracked")
            self.tracked[name] = item

    def rng(self, name: str) -> NamedStream:
        """See :meth:`lnlbench.api.Run.rng`."""
        return self._clock.stream(name, self.device)

    def log(self, **values: Tensor | float) -> None:
        """See :meth:`lnlbench.api.Run.log`."""
        self._steps.add(values)

    def modules(self) -> list[nn.Module]:
        """All tracked modules."""
        return [item for item in self.tracked.values() if isinstance(item, nn.Module)]
