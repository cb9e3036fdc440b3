from __future__ import annotations

import pytest
import torch

from lnlbench.blocks.schedules import linear_rampup, set_learning_rate, step_decay


@pytest.mark.parametrize(
    ("now", "start", "final", "expected"),
    [
        (9.9, 10, 25, 0),
        (10, 10, 25, 0),
        (14, 10, 25, 6.25),
        (18, 10, 25, 12.5),
        (25.5, 10, 25, 24.218750),
        (26, 10, 25, 25),
        (40, 30, 150, 93.75),
        (46, 30, 150, 150),
    ],
)
def test_rampup_worked_numbers(now: float, start: float, final: float, expected: float) -> None:
    assert final * linear_rampup(now - start, 16) == pytest.approx(expected, abs=1e-9)


def test_rampup_without_length_is_a_step() -> None:
    assert [linear_rampup(elapsed, 0) for elapsed in (-0.5, 0.0, 3.0)] == [0.0, 1.0, 1.0]


def test_rampup_refuses_negative_length() -> None:
    with pytest.raises(ValueError, match="length must not be negative, got -1"):
        linear_rampup(0.0, -1)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.02), (79, 0.02), (80, 0.004), (119, 0.004), (120, 0.0008), (500, 0.0008)]
)
def test_step_decay_multiplies_at_each_drop(epoch: int, expected: float) -> None:
    assert step_decay(0.02, epoch, drops=[80, 120], factor=0.2) == pytest.approx(expected)


def test_step_decay_without_drops_is_constant() -> None:
    assert step_decay(0.3, 1000, drops=[]) == 0.3


def test_learning_rate_reaches_every_group() -> None:
    first, second = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([{"params": [first], "lr": 1.0}, {"params": [second]}], lr=0.5)
    set_learning_rate(optimizer, 0.002)
    assert [group["lr"] for group in optimizer.param_groups] == [0.002, 0.002]
