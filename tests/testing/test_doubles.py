"""The doubles keep the contracts that methods rely on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lnlbench.api import (
    PLAIN,
    Batch,
    DivergedError,
    PluginError,
    RandomCrop,
    Stage,
    UnknownNameError,
    UsageError,
    ViewRecipe,
)
from lnlbench.testing import MemoryRun, MemoryTask, SmallNetwork, task_info, toy_task


@pytest.fixture(autouse=True)
def _leave_global_generators() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def order(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.index for batch in batches]).tolist()


# ---------------------------------------------------------------- task


@pytest.mark.parametrize("num_classes", [1, 3, 4, 10])
def test_toy_classes_are_the_brightest_squares(num_classes: int) -> None:
    task = toy_task(60, num_classes, noise=0.0)
    side = task.images.shape[-1] // 4
    brightness = nn.functional.avg_pool2d(task.images, 4).flatten(1)
    assert brightness.shape[1] == side**2 >= num_classes
    assert torch.equal(brightness.argmax(1), task.labels)
    assert task.info.num_classes == len(task.info.class_names) == num_classes
    assert task.info.image_size == 4 * side


def test_noise_changes_an_exact_share_of_the_labels_and_nothing_else() -> None:
    noisy, clean = toy_task(90, 3, noise=0.4), toy_task(90, 3, noise=0.0)
    assert torch.equal(noisy.images, clean.images)
    assert int((noisy.labels != clean.labels).sum()) == 36
    assert set(noisy.labels.tolist()) == {0, 1, 2}


def test_facts_follow_the_tensors() -> None:
    task = MemoryTask(torch.zeros(5, 3, 6, 6), torch.tensor([0, 3, 1, 1, 0]))
    facts = task.info
    assert (facts.num_train, facts.num_classes, facts.image_size, facts.channels) == (5, 4, 6, 3)
    assert task_info("cifar100", "pair", 0.2, channels=3).num_classes == 100
    assert (facts.ask_noise_type(), facts.ask_noise_rate()) == ("symmetric", 0.4)
    assert facts.asked == {"noise type", "noise rate"}


def test_a_pass_has_every_sample_once_and_its_own_order() -> None:
    task = toy_task(25)
    loader = task.loader("train", batch_size=10)
    first, second = list(loader), list(loader)
    assert [len(batch.index) for batch in first] == [10, 10, 5]
    assert len(loader) == 3
    assert sorted(order(first)) == sorted(order(second)) == list(range(25))
    assert order(first) != order(second)
    assert order(list(task.loader("other", batch_size=10))) != order(first)
    assert all(torch.equal(batch.labels, task.labels[batch.index]) for batch in first)
    assert [len(batch.index) for batch in task.loader("short", batch_size=10, drop_last=True)] == [10, 10]
    index = torch.tensor([7, 3, 20])
    assert order(list(task.loader("part", batch_size=2, index=index, shuffle=False))) == [7, 3, 20]
    assert [role for role, _ in task.served[:4]] == ["train"] * 4
    assert torch.equal(task.served[0][1], first[0].index)
    assert task.loaders[0] == ("train", {"batch_size": 10, "views": ("weak",), "shuffle": True})


def test_an_epoch_repeats_and_a_seed_changes_it() -> None:
    orders = []
    for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1)):
        task = MemoryTask(torch.zeros(40, 1, 4, 4), torch.arange(40) % 2, seed=seed)
        task.clock.move_to(epoch)
        orders.append(order(list(task.loader("train", batch_size=40))))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2] != orders[3] != orders[0]


def test_an_empty_loader_has_nothing_to_repeat() -> None:
    loader = toy_task().loader("none", batch_size=4, index=torch.zeros(0, dtype=torch.int64))
    assert len(loader) == 0
    assert list(loader) == []
    with pytest.raises(ValueError, match="no batch to repeat"):
        next(loader.forever())


def views_of(task: MemoryTask, batch_size: int, views: tuple[str | ViewRecipe, ...]) -> list[Tensor]:
    batches = list(task.loader("views", batch_size=batch_size, views=views))
    rank = torch.cat([batch.index for batch in batches]).argsort()
    return [torch.cat([batch.views[view] for batch in batches])[rank] for view in range(len(views))]


def test_views_depend_on_the_sample_and_not_on_the_batch() -> None:
    views: tuple[str | ViewRecipe, ...] = ("plain", "weak", "weak", "strong", PLAIN)
    whole, parts = views_of(toy_task(), 90, views), views_of(toy_task(), 7, views)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
    plain, weak, weak_again, strong, empty = whole
    task = toy_task()
    assert torch.equal(plain, task.images)
    assert torch.equal(empty, plain)
    assert not torch.equal(weak, weak_again)
    # A weak view is the image moved by up to one pixel, which nine images out of ten are.
    moved = {(x, y): plain.roll((x, y), (2, 3)) for x in (-1, 0, 1) for y in (-1, 0, 1)}
    hits = torch.stack([(weak == image).flatten(1).all(1) for image in moved.values()])
    assert torch.equal(hits.sum(0), torch.ones(90, dtype=torch.int64))
    assert (hits.sum(1) > 0).all()
    assert not any((strong == image).flatten(1).all(1).any() for image in moved.values())


def test_views_are_known_by_name() -> None:
    task = toy_task()
    task.views["weak"] = PLAIN
    assert torch.equal(views_of(task, 90, ("weak",))[0], task.images)
    with pytest.raises(UnknownNameError, match="did you mean 'weak'"):
        task.loader("train", batch_size=4, views=("weka",))
    own = ViewRecipe(ops=(RandomCrop(padding=2),))
    assert not torch.equal(views_of(task, 90, (own,))[0], task.images)


def test_networks_follow_their_role_and_leave_global_generators() -> None:
    task = toy_task()
    state = torch.get_rng_state()
    one, same, other = (task.network(role, "any") for role in ("net1", "net1", "net2"))
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(one, SmallNetwork)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert torch.equal(one(task.images), one.classify(one.embed(task.images)))
    assert one.embed(task.images).shape == (90, one.num_features)


def test_validation_is_cut_from_every_class() -> None:
    task = toy_task(90, 3, noise=0.3)
    split = task.ask_validation(0.2)
    assert task.info.asked == {"validation"}
    assert sorted([*split.train_index.tolist(), *split.validation_index.tolist()]) == list(range(90))
    expected = [round(0.2 * count) for count in task.labels.bincount().tolist()]
    assert task.labels[split.validation_index].bincount().tolist() == expected
    assert torch.equal(split.validation_index, toy_task(90, 3, noise=0.3).ask_validation(0.2).validation_index)
    with pytest.raises(UsageError, match="strictly between 0 and 1"):
        task.ask_validation(1.0)


def test_encoder_keeps_the_contract() -> None:
    task = toy_task()
    encoder = task.encoder("words")
    assert task.encoder("words") is encoder
    assert set(task.encoders) == {"words"}
    torch.testing.assert_close(encoder.training_features(), encoder.image_features(task.images))
    texts = encoder.text_features(["a photo of a cat.", "a photo of a dog."])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    context = encoder.token_embeddings("a photo of a").requires_grad_()
    features = encoder.prompt_features(context, ["cat", "dog"])
    torch.testing.assert_close(features.detach(), texts)
    features[0, 0].backward()
    assert context.grad is not None
    assert all(parameter.grad is None for parameter in encoder.towers.parameters())
    given = object()
    assert MemoryTask(task.images, task.labels, encoders={"own": given}).encoder("own") is given  # type: ignore[dict-item]


# ---------------------------------------------------------------- run


class Trainer:
    """A loop with one of each kind of state: momentum, batch norm, a plain dictionary; dropout draws globally."""

    def __init__(self, task: MemoryTask, run: MemoryRun, epochs: int = 5) -> None:
        self.network = task.network("net", "any")
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9)
        counts = {"steps": 0}
        run.track(network=self.network, optimizer=optimizer, counts=counts)
        for epoch in run.epochs(epochs):
            self.network.train()
            for batch in task.loader("train", batch_size=30):
                images = nn.functional.dropout(batch.images, 0.1)
                noise = torch.rand((), generator=run.rng("noise").torch) + float(run.rng("noise").numpy.random())
                loss = nn.functional.cross_entropy(self.network(images), batch.labels) * (1 + 0.01 * noise)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                counts["steps"] += 1
                run.log(loss=loss, steps=counts["steps"])
            run.report(selected=torch.ones(task.num_train, dtype=torch.bool))
            self.epoch = epoch


def test_a_resumed_loop_repeats_the_uninterrupted_one() -> None:
    task, first, second = toy_task(), toy_task(), toy_task()
    whole = Trainer(task, run := MemoryRun(task))
    Trainer(first, interrupted := MemoryRun(first, stop_after=1))
    assert (interrupted.clock.epoch, interrupted.saved["epoch"]) == (1, 1)
    resumed = Trainer(second, again := MemoryRun(second, resume=interrupted.saved))
    assert (whole.epoch, resumed.epoch) == (4, 4)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert run.values("loss")[6:] == again.values("loss")
    assert again.values("steps") == list(range(7, 16))
    assert [epoch for epoch, _, _ in again.reported] == [2, 3, 4]


def test_leaving_something_out_shows() -> None:
    task, first, second = toy_task(), toy_task(), toy_task()
    whole = Trainer(task, MemoryRun(task))
    Trainer(first, interrupted := MemoryRun(first, stop_after=1))
    for buffers in interrupted.saved["state"]["optimizer"]["state"].values():
        buffers["momentum_buffer"].zero_()
    resumed = Trainer(second, MemoryRun(second, resume=interrupted.saved))
    assert not torch.equal(whole.network.state_dict()["head.weight"], resumed.network.state_dict()["head.weight"])
    with pytest.raises(PluginError, match="its checkpoint holds"):
        MemoryRun(task, resume={"epoch": 0, "state": {"other": {}}}).epochs(3).__next__()


def test_modules_are_evaluated_between_epochs_and_get_their_mode_back() -> None:
    task = toy_task()
    run, network = MemoryRun(task), task.network("net", "any")
    run.track(network=network)
    during: list[bool] = []
    run.after_epoch = lambda _: during.append(network.training)
    before = []
    for _ in run.epochs(3):
        before.append(network.training)
    assert (before, during, network.training) == ([True] * 3, [False] * 3, False)


def test_streams_start_anew_each_epoch_and_are_independent() -> None:
    def draws(run: MemoryRun) -> list[Any]:
        found: list[Any] = [run.rng("a").seed()]
        for _ in run.epochs(2):
            found += [run.rng("a").seed(), run.rng("a").seed(), float(run.rng("b").numpy.random())]
            found.append(float(torch.rand((), generator=run.rng("a").torch)))
        return found

    first, second = draws(MemoryRun(toy_task())), draws(MemoryRun(toy_task()))
    assert first == second
    assert len(set(first)) == len(first)
    task = toy_task()
    run = MemoryRun(task)
    task.clock.move_to(3)
    seed = run.rng("a").seed()
    task.clock.move_to(3)
    assert run.rng("a").seed() == seed


def test_global_generators_are_seeded_by_epoch() -> None:
    def drawn() -> list[tuple[float, float, float]]:
        return [
            (random.random(), float(np.random.random()), float(torch.rand(()))) for _ in MemoryRun(toy_task()).epochs(2)
        ]

    first = drawn()
    torch.rand(5)
    assert drawn() == first
    assert first[0] != first[1]


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ({"selected": torch.ones(90)}, "expected bool"),
        ({"clean_probs": torch.ones(89)}, r"expected float of \(90,\)"),
        ({"pseudo_labels": torch.ones(90)}, "expected int64"),
        ({"ood": torch.ones(90, dtype=torch.int64)}, "expected bool"),
    ],
)
def test_reports_are_checked(verdicts: dict[str, Tensor], said: str) -> None:
    with pytest.raises(PluginError, match=said):
        MemoryRun(toy_task()).report(**verdicts)
    with pytest.raises(TypeError, match="'chosen'"):
        MemoryRun(toy_task()).report(chosen=torch.ones(90))


def test_the_order_of_calls_is_checked() -> None:
    run = MemoryRun(toy_task())
    run.track(state={})
    with pytest.raises(PluginError, match="tracked twice"):
        run.track(state={})
    with pytest.raises(PluginError, match="cannot be tracked"):
        run.track(number=3)  # type: ignore[arg-type]
    loop = run.epochs(2)
    next(loop)
    with pytest.raises(PluginError, match="came after epochs"):
        run.track(late={})
    with pytest.raises(PluginError, match="came after epochs"):
        run.stage("late", lambda _: {}, inputs={}, uses_labels=False)
    with pytest.raises(PluginError, match="called twice"):
        next(run.epochs(2))


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    run = MemoryRun(toy_task())
    loop = run.epochs(2)
    next(loop)
    run.log(loss=1.0)
    run.log(loss=torch.tensor(float("nan")))
    with pytest.raises(DivergedError, match="loss is nan at epoch 0, step 1"):
        next(loop)


def test_a_stage_computes_with_streams_of_its_own() -> None:
    task = toy_task()
    run = MemoryRun(task)
    outside = run.rng("noise").seed()
    inside: list[int] = []

    def compute(stage: Stage) -> dict[str, Tensor]:
        for _ in stage.epochs(2):
            inside.append(stage.rng("noise").seed())
        return {"weights": torch.ones(3, requires_grad=True)}

    result = run.stage("first", compute, inputs={"epochs": 2}, uses_labels=False)
    assert not result["weights"].requires_grad
    assert run.stages == {"first": {"inputs": {"epochs": 2}, "uses_labels": False}}
    assert len({outside, *inside}) == 3
    assert (task.clock.epoch, run.rng("noise").seed()) == (-1, outside)
