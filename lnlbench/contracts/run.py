"""What a method gets from the harness while it trains: epochs, random streams, state keeping, reporting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


@runtime_checkable
class Stateful(Protocol):
    """Anything with PyTorch's state protocol: modules, optimisers, schedulers, EMA, histories."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state: tensors, numbers, strings and containers of these."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take a state over."""


class Stream(Protocol):
    """A named random stream. It starts anew each epoch from (run seed, name, epoch).

    Within an epoch it goes on: asking for the stream again does not restart it.

    Because of that no generator state has to be saved: a resumed run draws exactly what the uninterrupted one drew.
    Streams of different names are independent, and asking for one never moves another.
    """

    @property
    def numpy(self) -> np.random.Generator:
        """A NumPy generator."""

    @property
    def torch(self) -> torch.Generator:
        """A PyTorch generator on the run's device."""

    def seed(self) -> int:
        """Draw an integer seed in [0, 2**32), e.g. for scikit-learn's ``random_state``."""


class Stage(Protocol):
    """The harness inside a stage before training (pre-training, selection): like :class:`Run`, without a test set."""

    device: torch.device

    def epochs(self, total: int) -> Iterator[int]:
        """Hand out epoch numbers; tracked state is checkpointed between them."""

    def track(self, **state: Stateful | MutableMapping[str, Any]) -> None:
        """Register what must survive an interruption."""

    def rng(self, name: str) -> Stream:
        """Return the named random stream of this stage."""

    def log(self, **values: Tensor | float) -> None:
        """Record scalars; averaged per epoch."""


class Run(Protocol):
    """The harness, as a method sees it."""

    device: torch.device

    def epochs(self, total: int) -> Iterator[int]:
        """Hand out epoch numbers 0 .. total-1; the method's outer loop iterates over them.

        Between two of them the harness evaluates on the test set, scores what was reported, writes the log and saves a
        checkpoint. On a resumed run the tracked state is restored first and counting goes on where it stopped.
        """

    def track(self, **state: Stateful | MutableMapping[str, Any]) -> None:
        """Register what must survive an interruption: networks, optimisers, histories, plain dictionaries.

        State is tensors, numbers, strings, ``None``, and lists, tuples and dictionaries of these. Call it before
        :meth:`epochs`.
        """

    def rng(self, name: str) -> Stream:
        """Return the random stream ``name`` of this run (see :class:`Stream`)."""

    def log(self, **values: Tensor | float) -> None:
        """Record scalars of this step, named by Python identifiers; the log shows their mean per epoch.

        A tensor stays on the device until the epoch ends, so logging costs no synchronisation. A value that is not
        finite ends the run as ``diverged``, with epoch and step.
        """

    def report(
        self,
        name: str = "",
        *,
        clean_probs: Tensor | None = None,
        selected: Tensor | None = None,
        pseudo_labels: Tensor | None = None,
        ood: Tensor | None = None,
    ) -> None:
        """Report this epoch's verdicts on the training samples; the harness scores them against the truth.

        Args:
            name: Tells several reports of one epoch apart, e.g. one per network, whose scores are averaged. Beside a
                report without a name, which is then the method's verdict, named ones are scored for themselves only.
            clean_probs: ``clean_probs_N`` in [0, 1], or any score that grows with cleanness: scored by AUC.
            selected: ``selected_N``, bool: taken as clean: scored by precision, recall and size.
            pseudo_labels: ``pseudo_labels_N``, int64, -1 for none: scored by accuracy where given.
            ood: ``ood_N``, bool: taken as out of distribution.

        Raises:
            PluginError: A shape or dtype is not as above.
        """

    def stage(
        self,
        name: str,
        compute: Callable[[Stage], Mapping[str, Tensor]],
        *,
        inputs: Mapping[str, Any],
        uses_labels: bool,
    ) -> dict[str, Tensor]:
        """Run a named stage before training, or fetch its stored result.

        The result is stored under the digest of method version, stage name, ``inputs``, training images, seed and,
        where ``uses_labels``, the given labels; so a stage that ignores labels is shared between noise levels.

        Args:
            name: Shown in progress and timings.
            compute: Receives a :class:`Stage`, returns named tensors.
            inputs: All settings the result depends on (JSON values).
            uses_labels: Whether the given labels influence the result.

        Returns:
            The named tensors, on the run's device.
        """
