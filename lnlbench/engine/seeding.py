"""Every random number of a run, as a function of (seed, purpose, moment).

Nothing here has state worth saving: streams start anew at each moment (the set-up, or an epoch), and the parameters of
views are a hash of the sample's own index. That is what makes a resumed run exact.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch
from torch import Tensor

SETUP = "setup"
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def derive_seed(*parts: object) -> int:
    """Return 64 bits that depend on every part, and nothing else."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift_right(values: Tensor, count: int) -> Tensor:
    # PyTorch shifts signed integers arithmetically; the mask makes it a logical shift.
    return (values >> count) & ((1 << (64 - count)) - 1)


def hash_index(key: int, index: Tensor, lane: int = 0) -> Tensor:
    """Hash sample indices to uniform bits (the finaliser of SplitMix64, Steele et al., OOPSLA 2014).

    The result is the same on every device and whatever else is in ``index``.

    Args:
        key: 64 bits from :func:`derive_seed`.
        index: ``index_n``, int64.
        lane: Tells several draws for one sample apart.

    Returns:
        ``bits_n``, int64, uniform over all 64-bit patterns.
    """
    start = _signed(key + lane * _MIX_1)
    bits = index * _signed(_GOLDEN) + start
    # Two rounds: one leaves visible structure between neighbouring keys.
    for _ in range(2):
        bits = (bits ^ _shift_right(bits, 30)) * _signed(_MIX_1)
        bits = (bits ^ _shift_right(bits, 27)) * _signed(_MIX_2)
        bits = bits ^ _shift_right(bits, 31)
    return bits


def uniform_integers(bits: Tensor, count: int) -> Tensor:
    """Map bits to integers in [0, count); ``count`` is far below 2**31, so the bias is negligible."""
    return (_shift_right(bits, 33) * count) >> 31


def uniform_fractions(bits: Tensor) -> Tensor:
    """Map bits to float32 in [0, 1)."""
    return _shift_right(bits, 40).to(torch.float32) * (1.0 / (1 << 24))


def seed_globals(*parts: object) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


class NamedStream:
    """A random stream of a run; implements :class:`lnlbench.contracts.run.Stream`."""

    def __init__(self, clock: Clock, name: str, device: torch.device) -> None:
        self._clock = clock
        self._name = name
        self._device = device
        self._entered: int | None = None
        self._numpy = np.random.Generator(np.random.PCG64(0))
        self._torch: torch.Generator | None = None

    def _refresh(self) -> int:
        seed = derive_seed(self._clock.seed, "stream", self._name, self._clock.moment)
        # Not the moment's name: whether a stage was computed in between, or fetched, must make no difference.
        if self._entered != self._clock.entered:
            self._entered = self._clock.entered
            self._numpy = np.random.Generator(np.random.PCG64(seed))
            self._torch = None
        return seed

    @property
    def numpy(self) -> np.random.Generator:
        """A NumPy generator, new at each epoch."""
        self._refresh()
        return self._numpy

    @property
    def torch(self) -> torch.Generator:
        """A PyTorch generator on the run's device, new at each epoch."""
        seed = self._refresh()
        if self._torch is None:
            self._torch = torch.Generator(self._device)
            self._torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
        return self._torch

    def seed(self) -> int:
        """Draw an integer in [0, 2**32)."""
        return int(self.numpy.integers(1 << 32))


class Clock:
    """The run's seed and the current moment: ``"setup"``, ``"epoch 3"``, or an epoch of a stage.

    All streams and loaders look here; moving the clock is what starts them anew.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.moment = SETUP
        self.entered = 0
        """How many moments have been entered; the same one counts anew each time."""
        self._passes: dict[str, int] = {}
        self._streams: dict[tuple[str, torch.device], NamedStream] = {}

    def move_to(self, moment: str) -> None:
        """Enter a moment: streams start anew, passes are counted from 0, global generators are seeded."""
        self.moment = moment
        self.entered += 1
        self._passes.clear()
        seed_globals(self.seed, "global", moment)

    def stream(self, name: str, device: torch.device) -> NamedStream:
        """Return the stream of that name; the same object each time."""
        if (name, device) not in self._streams:
            self._streams[name, device] = NamedStream(self, name, device)
        return self._streams[name, device]

    def next_pass(self, role: str) -> int:
        """Count the passes of a loader within the current moment; returns 0 for the first."""
        count = self._passes.get(role, 0)
        self._passes[role] = count + 1
        return count
