from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lnlbench.blocks.ema import update_average


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def number(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_worked_numbers() -> None:
    teacher, student = number(1), number(3)
    update_average(teacher, student, 0.99)
    assert teacher.weight.item() == pytest.approx(1.02)
    update_average(teacher, student, 0.99)
    assert teacher.weight.item() == pytest.approx(1.0398)
    assert student.weight.item() == 3


def test_formula() -> None:
    teacher, student = network(1), network(2)
    expected = [
        0.9 * old.detach().double().numpy() + 0.1 * new.detach().double().numpy()
        for old, new in zip(teacher.parameters(), student.parameters(), strict=True)
    ]
    places = [each.data_ptr() for each in teacher.parameters()]
    update_average(teacher, student, 0.9)
    for found, value in zip(teacher.parameters(), expected, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), value, rtol=1e-6, atol=1e-7)
    assert [each.data_ptr() for each in teacher.parameters()] == places


def test_leaves_buffers_and_the_model_alone() -> None:
    teacher, student = network(1), network(2)
    student(torch.randn(5, 1, 4, 4))
    buffers = {name: each.clone() for name, each in teacher.named_buffers()}
    state = copy.deepcopy(student.state_dict())
    update_average(teacher, student, 0.5)
    assert all(torch.equal(each, buffers[name]) for name, each in teacher.named_buffers())
    assert not torch.equal(teacher.get_buffer("1.running_mean"), student.get_buffer("1.running_mean"))
    assert all(torch.equal(each, state[name]) for name, each in student.state_dict().items())


def test_bounds_of_the_decay() -> None:
    teacher, student = network(1), network(2)
    before = [each.detach().clone() for each in teacher.parameters()]
    update_average(teacher, student, 1)
    assert all(torch.equal(old, new) for old, new in zip(before, teacher.parameters(), strict=True))
    update_average(teacher, student, 0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))


def test_no_gradient_is_recorded() -> None:
    teacher, student = network(1), network(2)
    update_average(teacher, student, 0.5)
    assert all(each.grad_fn is None and each.is_leaf for each in teacher.parameters())
    # A frozen average moves too.
    frozen = number(1).requires_grad_(False)
    update_average(frozen, number(3), 0.5)
    assert (frozen.weight.item(), frozen.weight.requires_grad) == (2, False)


def test_a_network_without_parameters() -> None:
    layer = nn.Flatten()
    update_average(layer, layer, 0.5)
    assert list(layer.parameters()) == []


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_refuses_other_decays(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got"):
        update_average(number(1), number(3), decay)


def test_refuses_another_network() -> None:
    with pytest.raises(ValueError, match="parameters of the same shapes in the same order"):
        update_average(number(1), nn.Linear(1, 1), 0.5)
    with pytest.raises(ValueError, match="parameters of the same shapes in the same order"):
        update_average(number(1), nn.Linear(2, 1, bias=False), 0.5)
