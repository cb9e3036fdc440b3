"""Per-sample losses remembered over epochs.

Shapes: N training set, K remembered epochs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LossHistory:
    """The per-sample losses of the last ``window`` epochs, and their mean.

    Older entries are forgotten at once, so that a checkpoint does not grow with training. No gradient is kept.

    >>> history = LossHistory(window=5)
    >>> for loss in (0.2, 0.4, 0.1, 0.3, 0.6, 0.5):
    ...     history.append(torch.tensor([loss]))
    >>> len(history), history.mean()
    (5, tensor([0.3800]))
    """

    def __init__(self, window: int) -> None:
        """Start empty.

        Args:
            window: How many epochs are remembered, at least 1.

        Raises:
            ValueError: ``window`` is below 1.
        """
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.window = window
        self._losses: deque[Tensor] = deque(maxlen=window)

    def __len__(self) -> int:
        return len(self._losses)

    def append(self, losses_N: Tensor) -> None:
        """Remember the losses of one more epoch.

        Args:
            losses_N: ``(N,)``, floating point; copied, without its gradient.

        Raises:
            ValueError: The shape differs from that of earlier epochs.
        """
        if self._losses and losses_N.shape != self._losses[-1].shape:
            raise ValueError(
                f"losses must keep their shape {tuple(self._losses[-1].shape)}, got {tuple(losses_N.shape)}"
            )
        self._losses.append(losses_N.detach().clone())

    def mean(self) -> Tensor:
        """Return the mean over the remembered epochs: ``(N,)``, dtype and device of the latest entry.

        Raises:
            ValueError: Nothing has been appended yet.
        """
        if not self._losses:
            raise ValueError("the mean of a loss history needs at least one epoch, got none")
        latest_N = self._losses[-1]
        # A checkpoint may have brought earlier epochs back on another device.
        return torch.stack([losses_N.to(latest_N.device) for losses_N in self._losses]).mean(dim=0)

    def state_dict(self) -> dict[str, Any]:
        """Return the remembered losses, oldest first, as a list of ``(N,)`` tensors."""
        return {"losses": list(self._losses)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Replace the remembered losses by saved ones; of more than ``window``, the latest are kept."""
        self._losses = deque(state_dict["losses"], maxlen=self.window)
