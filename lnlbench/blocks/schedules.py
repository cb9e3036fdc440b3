"""Schedules as functions of the epoch: nothing to checkpoint, and any epoch can be asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def linear_rampup(elapsed: float, length: float) -> float:
    r"""Return :math:`\mathrm{clip}(\mathit{elapsed} / \mathit{length}, 0, 1)`.

    Args:
        elapsed: Time since the ramp began, in any unit; negative before it begins.
        length: Duration of the ramp in the same unit; 0 makes it a step.

    Returns:
        A factor in [0, 1].

    Raises:
        ValueError: ``length`` is negative.

    >>> [linear_rampup(epochs, 16) for epochs in (-0.1, 0, 4, 8, 16, 20)]
    [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    """
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    if length == 0:
        return 1.0 if elapsed >= 0 else 0.0
    return min(max(elapsed / length, 0.0), 1.0)


def step_decay(initial: float, epoch: int, *, drops: Sequence[int], factor: float = 0.1) -> float:
    r"""Return ``initial`` times ``factor`` to the number of drops reached: :math:`v_0 f^{|\{d : e \ge d\}|}`.

    Args:
        initial: The value of epoch 0, e.g. a learning rate.
        epoch: The epoch asked for, counted from 0.
        drops: Epochs from which on the value is multiplied once more.
        factor: What it is multiplied by.

    >>> [round(step_decay(0.02, epoch, drops=[150]), 6) for epoch in (0, 149, 150, 299)]
    [0.02, 0.02, 0.002, 0.002]
    """
    return float(initial * factor ** sum(epoch >= drop for drop in drops))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group of an optimiser this learning rate.

    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    >>> set_learning_rate(optimizer, 0.02)
    >>> optimizer.param_groups[0]["lr"]
    0.02
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
