from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lnlbench.contracts.task import Batch, TaskInfo
from lnlbench.contracts.views import PLAIN, RandomCrop, RandomFlip, ViewRecipe
from lnlbench.engine.encoders import Encoders, TrainingImages
from lnlbench.engine.seeding import Clock
from lnlbench.engine.task import DeviceTask
from lnlbench.engine.views import ImageStore
from lnlbench.errors import UnknownNameError, UsageError
from lnlbench.plugins import Registry

N, C = 103, 4
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, 8, 8, 1), dtype=np.uint8))
LABELS = torch.from_numpy(np.random.default_rng(1).integers(0, C, N))
WEAK = ViewRecipe(ops=(RandomCrop(padding=1), RandomFlip()))


@pytest.fixture
def make_task(registry: Registry, tmp_path: Path) -> Callable[..., DeviceTask]:
    def make(clock: Clock | None = None, labels: Tensor = LABELS) -> DeviceTask:
        info = TaskInfo(
            suite="toy-sym",
            task="0.40",
            dataset="toy",
            num_classes=C,
            num_train=N,
            image_size=8,
            channels=1,
            class_names=tuple("abcd"),
            default_backbone="small-cnn",
            default_epochs=5,
            default_encoder="glyphs",
            _noise_type="symmetric",
            _noise_rate=0.4,
            asked=set(),
        )
        views = {"weak": WEAK}
        arguments: tuple[Any, ...] = (clock or Clock(1), registry.backbones, torch.device("cpu"), "float32", False)
        source = ImageStore(IMAGES, (0.3,), (0.4,), 1, torch.device("cpu"))
        images = TrainingImages(source, "0" * 64, (0.3,), (0.4,))
        encoders = Encoders(registry.encoders, images, tmp_path, torch.device("cpu"), "float32", print, offline=True)
        return DeviceTask(info, source, labels, views, *arguments, encoders)

    return make


@pytest.fixture
def task(make_task: Callable[..., DeviceTask]) -> DeviceTask:
    return make_task()


def order(batches: Iterator[Batch] | Any) -> list[int]:
    return torch.cat([batch.index for batch in batches]).tolist()


def pixels(batches: Any) -> Tensor:
    """The first views, sorted by sample, so that only augmentation can make a difference."""
    batches = list(batches)
    images = torch.cat([batch.images for batch in batches])
    return images[torch.cat([batch.index for batch in batches]).argsort()]


def test_a_pass_has_every_sample_once(task: DeviceTask) -> None:
    loader = task.loader("a", batch_size=10)
    batches = list(loader)
    assert sorted(order(batches)) == list(range(N))
    assert len(batches) == len(loader) == 11
    assert [len(batch.index) for batch in batches] == [10] * 10 + [3]


def test_batches_have_given_labels_indices_and_views(task: DeviceTask) -> None:
    for batch in task.loader("a", batch_size=50, views=("weak", "plain", ViewRecipe(ops=(RandomFlip(),)))):
        assert torch.equal(batch.labels, LABELS[batch.index])
        assert batch.labels.dtype == batch.index.dtype == torch.int64
        assert len(batch.views) == 3
        assert batch.images is batch.views[0]
        plain = (IMAGES[batch.index].permute(0, 3, 1, 2) / 255.0 - 0.3) / 0.4
        torch.testing.assert_close(batch.views[1], plain, atol=1e-5, rtol=0)
        assert all(view.dtype == torch.float32 and view.shape == (len(batch.index), 1, 8, 8) for view in batch.views)


def test_two_views_of_one_recipe_differ(task: DeviceTask) -> None:
    (batch,) = task.loader("a", batch_size=N, views=("weak", "weak"))
    same = (batch.views[0] == batch.views[1]).flatten(1).all(1)
    # Nine offsets and two mirrorings: one sample in eighteen draws the same twice.
    assert same.float().mean() < 0.25


def test_each_pass_and_each_epoch_has_its_own_order_and_views(make_task: Callable[..., DeviceTask]) -> None:
    clock = Clock(1)
    task = make_task(clock)
    loader = task.loader("a", batch_size=32)
    passes = []
    for epoch in range(3):
        clock.move_to(f"epoch {epoch}")
        passes += [list(loader), list(loader)]
    for one, other in itertools.combinations(passes, 2):
        assert order(one) != order(other)
        assert not torch.equal(pixels(one), pixels(other))


def test_the_same_moment_gives_the_same_passes(make_task: Callable[..., DeviceTask]) -> None:
    clock = Clock(1)
    task = make_task(clock)
    clock.move_to("epoch 3")
    first = [list(task.loader("a", batch_size=32)) for _ in range(2)]
    clock.move_to("epoch 4")
    list(task.loader("a", batch_size=32))
    clock.move_to("epoch 3")
    again = [list(task.loader("a", batch_size=32)) for _ in range(2)]
    for one, other in zip(first, again, strict=True):
        assert order(one) == order(other)
        assert torch.equal(pixels(one), pixels(other))


def test_order_and_views_do_not_depend_on_the_batch_size(make_task: Callable[..., DeviceTask]) -> None:
    small, large = (list(make_task().loader("a", batch_size=size)) for size in (7, 64))
    assert order(small) == order(large)
    assert torch.equal(pixels(small), pixels(large))


def test_roles_and_seeds_are_independent(make_task: Callable[..., DeviceTask]) -> None:
    mine, role, seed = (
        list(make_task(Clock(number)).loader(name, batch_size=32)) for name, number in (("a", 1), ("b", 1), ("a", 2))
    )
    for other in (role, seed):
        assert order(mine) != order(other)
        assert not torch.equal(pixels(mine), pixels(other))


def test_another_loader_in_between_changes_nothing(make_task: Callable[..., DeviceTask]) -> None:
    alone = order(make_task().loader("a", batch_size=32))
    task = make_task()
    list(task.loader("b", batch_size=5))
    assert order(task.loader("a", batch_size=32)) == alone


def test_a_subset_keeps_positions_in_the_full_set(task: DeviceTask) -> None:
    index = torch.tensor([90, 4, 33, 5])
    batches = list(task.loader("a", batch_size=3, index=index))
    assert sorted(order(batches)) == [4, 5, 33, 90]
    for batch in batches:
        assert torch.equal(batch.labels, LABELS[batch.index])
    assert order(task.loader("b", batch_size=3, index=index, shuffle=False)) == [90, 4, 33, 5]


def test_a_view_of_a_sample_is_the_same_in_every_subset(make_task: Callable[..., DeviceTask]) -> None:
    whole = pixels(make_task().loader("a", batch_size=16))
    half = pixels(make_task().loader("a", batch_size=16, index=torch.arange(0, N, 2)))
    assert torch.equal(half, whole[::2])


def test_drop_last(task: DeviceTask) -> None:
    loader = task.loader("a", batch_size=10, drop_last=True)
    assert len(loader) == 10
    assert [len(batch.index) for batch in loader] == [10] * 10
    assert len(task.loader("a", batch_size=N + 1, drop_last=True)) == 0
    assert list(task.loader("a", batch_size=N + 1, drop_last=True)) == []


def test_forever_starts_new_passes(task: DeviceTask) -> None:
    loader = task.loader("a", batch_size=60)
    batches = list(itertools.islice(loader.forever(), 4))
    first, second = order(batches[:2]), order(batches[2:])
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second
    with pytest.raises(ValueError, match="'empty' has no batch"):
        next(task.loader("empty", batch_size=4, index=torch.tensor([], dtype=torch.int64)).forever())


def test_plain_recipes_and_unknown_views(task: DeviceTask) -> None:
    (by_name,) = task.loader("a", batch_size=N, views=("plain",), shuffle=False)
    (by_recipe,) = task.loader("a", batch_size=N, views=(PLAIN,), shuffle=False)
    assert torch.equal(by_name.images, by_recipe.images)
    with pytest.raises(UnknownNameError, match="unknown view of suite 'toy-sym' 'waek'; did you mean 'weak'"):
        task.loader("a", batch_size=1, views=("waek",))


def test_networks_are_seeded_by_role(make_task: Callable[..., DeviceTask]) -> None:
    def weights(seed: int, role: str) -> Tensor:
        network = make_task(Clock(seed)).network(role, "small-cnn")
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    mine = weights(1, "net1")
    assert torch.equal(mine, weights(1, "net1"))
    assert not torch.equal(mine, weights(1, "net2"))
    assert not torch.equal(mine, weights(2, "net1"))


def test_building_a_network_leaves_the_global_generator_alone(task: DeviceTask) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    task.network("net", "small-cnn")
    assert torch.equal(torch.rand(3), expected)


def test_an_unknown_backbone_is_refused(task: DeviceTask) -> None:
    with pytest.raises(UnknownNameError, match="unknown backbone 'smal-cnn'; did you mean 'small-cnn'"):
        task.network("net", "smal-cnn")


def test_encoders_are_built_once(task: DeviceTask) -> None:
    encoder = task.encoder(task.info.default_encoder)
    assert task.encoder("glyphs") is encoder
    assert encoder.training_features().shape == (N, encoder.embed_dim)
    with pytest.raises(UnknownNameError, match="unknown encoder 'glyph'; did you mean 'glyphs'"):
        task.encoder("glyph")


def test_validation_is_stratified_disjoint_and_seeded(make_task: Callable[..., DeviceTask]) -> None:
    task = make_task()
    assert task.info.asked == set()
    split = task.ask_validation(0.2)
    assert task.info.asked == {"validation"}
    assert torch.equal(torch.cat([split.train_index, split.validation_index]).sort().values, torch.arange(N))
    for index in (split.train_index, split.validation_index):
        assert index.dtype == torch.int64
        assert torch.equal(index, index.sort().values)
    members = np.bincount(LABELS.numpy(), minlength=C)
    held_out = np.bincount(LABELS[split.validation_index].numpy(), minlength=C)
    np.testing.assert_array_equal(held_out, [round(0.2 * count) for count in members])
    assert torch.equal(make_task().ask_validation(0.2).validation_index, split.validation_index)
    assert not torch.equal(make_task(Clock(2)).ask_validation(0.2).validation_index, split.validation_index)


def test_validation_is_the_same_at_every_moment(make_task: Callable[..., DeviceTask]) -> None:
    clock = Clock(1)
    task = make_task(clock)
    before = task.ask_validation().validation_index
    clock.move_to("epoch 3")
    assert torch.equal(task.ask_validation().validation_index, before)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_validation_fractions(task: DeviceTask, fraction: float) -> None:
    with pytest.raises(UsageError, match="not strictly between 0 and 1"):
        task.ask_validation(fraction)
    assert task.info.asked == set()


def test_questions_are_noted(task: DeviceTask) -> None:
    assert task.info.ask_noise_rate() == 0.4
    assert task.info.asked == {"noise rate"}
    assert task.info.ask_noise_type() == "symmetric"
    assert task.info.asked == {"noise rate", "noise type"}
