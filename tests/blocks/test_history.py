from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from lnlbench.blocks.history import LossHistory


def test_worked_numbers() -> None:
    history = LossHistory(window=5)
    means = []
    for loss in (0.2, 0.4, 0.1, 0.3, 0.6, 0.5):
        history.append(torch.tensor([loss], dtype=torch.float64))
        means.append(history.mean().item())
    assert means[2] == pytest.approx(0.233333, abs=5e-7)
    assert means[5] == pytest.approx(0.38)
    assert len(history) == 5


def test_mean_of_the_latest(generator: np.random.Generator) -> None:
    losses = generator.random((9, 30))
    for window in (1, 4, 9, 12):
        history = LossHistory(window)
        for epoch in losses:
            history.append(torch.from_numpy(epoch))
        np.testing.assert_allclose(history.mean().numpy(), losses[-window:].mean(0), rtol=1e-14)


def test_window_of_one_gives_back_the_losses_themselves() -> None:
    losses = torch.rand(50)
    history = LossHistory(window=1)
    history.append(losses)
    assert torch.equal(history.mean(), losses)


def test_keeps_a_copy_without_gradient() -> None:
    losses = torch.tensor([1.0, 2.0], requires_grad=True)
    history = LossHistory(window=2)
    history.append(losses)
    with torch.no_grad():
        losses.zero_()
    assert history.mean().tolist() == [1.0, 2.0]
    assert not history.mean().requires_grad


def test_state_survives_a_safe_checkpoint() -> None:
    history = LossHistory(window=3)
    for value in range(5):
        history.append(torch.full((4,), float(value)))
    file = io.BytesIO()
    torch.save(history.state_dict(), file)
    file.seek(0)
    restored = LossHistory(window=3)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(restored.mean(), history.mean())
    for each in (history, restored):
        each.append(torch.full((4,), 8.0))
    assert restored.mean().tolist() == history.mean().tolist() == [5.0] * 4


def test_loading_an_empty_state_empties() -> None:
    history = LossHistory(window=2)
    history.append(torch.ones(2))
    history.load_state_dict(LossHistory(window=2).state_dict())
    assert len(history) == 0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        LossHistory(window=0)
    history = LossHistory(window=2)
    with pytest.raises(ValueError, match="needs at least one epoch"):
        history.mean()
    history.append(torch.ones(2))
    with pytest.raises(ValueError, match=r"must keep their shape \(2,\), got \(3,\)"):
        history.append(torch.ones(3))
