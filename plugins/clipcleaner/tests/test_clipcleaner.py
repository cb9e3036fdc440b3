from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lnlbench.api import Selection, TaskInfo, UsageError
from lnlbench_clipcleaner import lnlbench_methods
from lnlbench_clipcleaner.clipcleaner import PAPER_VIEWS, ClipCleaner
from lnlbench_clipcleaner.selection import (
    consistency_scores,
    induced_probabilities,
    loss_scores,
    zero_shot_probabilities,
)

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def config(**changes: Any) -> ClipCleaner.Config:
    settings: dict[str, Any] = {
        "epochs": 6,
        "batch_size": 8,
        "backbone": "any",
        "encoder": "memory",
        "prompts": "single",
        "lr_milestones": (4, 5),
        "view": "weak",
    }
    return ClipCleaner.Config(**(settings | changes))


def correct(task: Any, make_task: Any) -> Tensor:
    """Return which labels of a toy task are right."""
    right: Tensor = task.labels == make_task(task.num_train, task.num_classes, 0.0).labels
    return right


# ---------------------------------------------------------------- preset


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("noise", ["symmetric", "asymmetric", "seal"])
def test_preset_for_cifar_knows_nothing_of_the_noise(
    make_info: Callable[..., TaskInfo], dataset: str, noise: str
) -> None:
    info = make_info(dataset, noise, 0.4, channels=3, image_size=32)
    assert ClipCleaner.preset(info) == ClipCleaner.Config(
        epochs=300,
        batch_size=128,
        backbone="preact-resnet18",
        encoder="memory",
        prompts="class-specific",
        tau=0.07,
        zero_shot=True,
        induced=True,
        induced_classifier="logistic",
        consistency=True,
        theta_cons=0.8,
        loss_gmm=True,
        theta_gmm=0.5,
        empty_class_order="best",
        theta_absorb=0.7,
        theta_relabel=0.8,
        protect_initial=False,
        beta=1.0,
        class_balanced=True,
        view="paper",
        iterations=None,
        learning_rate=0.02,
        momentum=0.9,
        weight_decay=5e-4,
        lr_milestones=(200, 250),
        lr_factor=0.1,
        draw_size=None,
    )
    assert info.asked == set()


@pytest.mark.parametrize(
    ("dataset", "size", "expected"),
    [
        ("animal10n", 64, (128, 300, (200, 250), 0.5, 0.7, 0.95, 0.8, "paper")),
        ("red-mini-imagenet", 32, (64, 300, (200, 250), 4.0, 0.8, 0.95, 0.8, "paper")),
        ("red-mini-imagenet", 84, (64, 300, (200, 250), 4.0, 0.8, 0.95, 0.8, "strong")),
        ("mini-webvision", 299, (64, 150, (80, 120), 0.5, 0.7, 1.0, 1.0, "paper")),
        ("clothing1m", 224, (64, 80, (40, 60), 0.5, 0.7, 0.95, 0.8, "paper")),
        ("fashion", 28, (64, 40, (26, 33), 1.0, 0.7, 0.8, 0.8, "strong")),
    ],
)
def test_presets_of_other_data(
    make_info: Callable[..., TaskInfo], dataset: str, size: int, expected: tuple[Any, ...]
) -> None:
    info = make_info(dataset, "own", None, image_size=size, channels=3)
    preset = ClipCleaner.preset(info)
    found = (preset.batch_size, preset.epochs, preset.lr_milestones, preset.beta)
    assert (*found, preset.theta_absorb, preset.theta_relabel, preset.theta_cons, preset.view) == expected
    assert (preset.theta_gmm, preset.prompts, preset.encoder) == (0.5, "class-specific", "memory")
    assert preset.draw_size == (64_000 if dataset == "clothing1m" else None)
    assert info.asked == set()


def test_own_images_have_the_single_prompt_and_a_schedule_of_any_length(make_info: Callable[..., TaskInfo]) -> None:
    preset = ClipCleaner.preset(make_info("folder:mine", "own", None, default_epochs=1))
    assert (preset.prompts, preset.view, preset.backbone) == ("single", "strong", "small-cnn")
    assert preset.lr_milestones == (1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_shot": False, "induced": False}, "there are no probabilities to select by"),
        ({"consistency": False, "loss_gmm": False}, "nothing selects"),
    ],
)
def test_something_must_select(changes: dict[str, bool], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)


# ---------------------------------------------------------------- selection


def scores_of(task: Any, run: Any) -> dict[tuple[str, str], Tensor]:
    """Return the four scores, by classifier and selector, computed piece by piece."""
    encoder = task.encoder("memory")
    texts = torch.stack([encoder.directions[name] for name in task.info.class_names])
    matrices = {
        "zero_shot": zero_shot_probabilities(
            encoder.features, texts, torch.arange(task.num_classes), task.num_classes, 0.07
        ),
        "induced": induced_probabilities(encoder.features, task.labels, task.num_classes, "logistic", 20),
    }
    seed = run.rng("clipcleaner gmm").seed()
    run.clock.streams.clear()
    scores = {}
    for name, probs in matrices.items():
        scores[name, "consistency"] = consistency_scores(probs, task.labels)
        scores[name, "loss_gmm"] = loss_scores(probs, task.labels, seed)
    return scores


@pytest.mark.parametrize("zero_shot", [True, False])
@pytest.mark.parametrize("induced", [True, False])
@pytest.mark.parametrize("consistency", [True, False])
@pytest.mark.parametrize("loss_gmm", [True, False])
def test_selection_is_the_intersection_of_what_is_on(
    make_task: Any, make_run: Any, zero_shot: bool, induced: bool, consistency: bool, loss_gmm: bool
) -> None:
    if not (zero_shot or induced) or not (consistency or loss_gmm):
        return
    task = make_task(150, 3, 0.4, spread=0.5)
    run = make_run(task)
    switches = {"zero_shot": zero_shot, "induced": induced, "consistency": consistency, "loss_gmm": loss_gmm}
    thresholds = {"consistency": 0.8, "loss_gmm": 0.5}
    expected, probs = torch.ones(150, dtype=torch.bool), torch.ones(150)
    for (classifier, selector), scores in scores_of(task, run).items():
        if switches[classifier] and switches[selector]:
            expected &= scores >= thresholds[selector]
            probs *= scores
    selection = ClipCleaner(config(**switches)).select(task, run)
    assert torch.equal(selection.selected, expected)
    np.testing.assert_allclose(selection.clean_probs.numpy(), probs.numpy(), atol=1e-6)
    assert 0 < expected.sum() < 150


def test_selection_is_precise_whatever_the_seed(make_task: Any, make_run: Any) -> None:
    selections = []
    for seed in (0, 1, 2):
        task = make_task(240, 4, 0.5)
        task.clock.seed = seed
        selections.append(ClipCleaner(config()).select(task, make_run(task)))
    right = correct(task, make_task)
    for selection in selections:
        assert right[selection.selected].float().mean() > 0.95
        assert selection.selected[right].float().mean() > 0.5
        assert selection.clean_probs[right].mean() > selection.clean_probs[~right].mean() + 0.5
        assert torch.equal(selection.selected, selections[0].selected)


def test_texts_are_those_of_the_dataset(make_task: Any, make_run: Any) -> None:
    task = make_task()
    ClipCleaner(config()).select(task, make_run(task))
    assert task.encoder("memory").asked == ["a photo of a a.", "a photo of a b.", "a photo of a c."]
    with pytest.raises(UsageError, match="no class-specific prompts for 'toy'"):
        ClipCleaner(config(prompts="class-specific")).select(task, make_run(task))


def test_an_empty_class_is_filled_and_said(make_task: Any, make_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    task = make_task(90, 3, 0.0)
    # Class 2 is labelled where its images are not: no selector would take any of it.
    true_labels = task.labels.clone()
    task.labels[true_labels == 2] = 0
    task.labels[(true_labels == 1).nonzero().flatten()[:5]] = 2
    settings = config(induced=False, loss_gmm=False, theta_cons=1.0)
    with caplog.at_level(logging.WARNING):
        selection = ClipCleaner(settings).select(task, make_run(task))
    assert selection.selected[task.labels == 2].all()
    assert "no sample of 1 of 3 classes was selected; they were filled with a few (classes 2)" in caplog.text


def test_nothing_selected_still_trains(make_task: Any, make_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    task = make_task()
    method, run = ClipCleaner(config(epochs=1, theta_cons=1.5)), make_run(task)
    with caplog.at_level(logging.WARNING):
        method.fit(task, run)
    assert "no sample of 3 of 3 classes was selected" in caplog.text
    assert run.values("num_active") == [30.0]  # 90 / 9 of each class
    assert np.isfinite(run.values("loss")).all()


def test_one_class_only(make_task: Any, make_run: Any) -> None:
    task = make_task()
    task.labels.zero_()
    run = make_run(task)
    ClipCleaner(config(epochs=2)).fit(task, run)
    _, _, verdicts = run.reported[0]
    assert verdicts["selected"].any()
    assert np.isfinite(run.values("loss")).all()


def test_indistinguishable_images_are_all_taken(make_task: Any, make_run: Any) -> None:
    task = make_task(spread=0.0)
    task.encoder("memory").features = torch.full((90, 8), 8**-0.5)
    selection = ClipCleaner(config(theta_cons=0.0)).select(task, make_run(task))
    assert selection.selected.all()


def test_a_draw_limits_selection_and_training(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run = make_run(task)
    ClipCleaner(config(epochs=3, draw_size=45)).fit(task, run)
    served = torch.cat([rows for role, rows in task.served if role == "evaluate"]).unique()
    assert task.labels[served].bincount().tolist() == [15, 15, 15]
    outside = torch.ones(90, dtype=torch.bool)
    outside[served] = False
    for _, _, verdicts in run.reported:
        assert verdicts["clean_probs"] is None
        assert not (verdicts["selected"] | (verdicts["pseudo_labels"] >= 0))[outside].any()
    assert len(run.values("loss")) == 3 * (45 // 8)


# ---------------------------------------------------------------- MixFix


PROBS = [[0.75, 0.15, 0.1], [0.15, 0.75, 0.1], [0.1, 0.85, 0.05], [0.6, 0.3, 0.1], [0.05, 0.05, 0.9]]


@pytest.mark.parametrize(
    ("changes", "initial", "labels", "active"),
    [
        ({}, [], [0, 0, 1, 0, 2], [0, 2, 4]),
        ({}, [1, 2, 3], [0, 0, 1, 0, 2], [0, 1, 2, 3, 4]),
        ({"protect_initial": True}, [2, 3], [0, 0, 0, 0, 2], [0, 2, 3, 4]),
        ({"theta_absorb": 0.8, "theta_relabel": 0.75}, [], [0, 1, 1, 0, 2], [1, 2, 4]),
        ({"theta_absorb": 1.0}, [3], [0, 0, 1, 0, 2], [2, 3, 4]),
        ({"theta_relabel": 1.0}, [], [0, 0, 0, 0, 0], [0]),
        ({"theta_absorb": 1.0, "theta_relabel": 1.0}, [1], [0, 0, 0, 0, 0], [1]),
    ],
)
def test_rule_worked_numbers(changes: dict[str, Any], initial: list[int], labels: list[int], active: list[int]) -> None:
    selected = torch.zeros(5, dtype=torch.bool)
    selected[initial] = True
    found = ClipCleaner(config(**changes)).fix(torch.tensor(PROBS), torch.zeros(5, dtype=torch.int64), selected)
    assert found[0].tolist() == labels
    assert found[1].nonzero().flatten().tolist() == active


def test_thresholds_include_their_value() -> None:
    probs = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    nothing = torch.zeros(2, dtype=torch.bool)
    rule = ClipCleaner(config(theta_absorb=0.75, theta_relabel=0.75))
    labels, active = rule.fix(probs, torch.tensor([0, 0]), nothing)
    assert (labels.tolist(), active.tolist()) == ([0, 1], [True, True])


def test_a_threshold_of_one_is_off_although_softmax_reaches_it() -> None:
    probs = torch.tensor([[17.4, 0.0, 0.0], [16.0, 0.0, 0.0]]).softmax(1)
    assert (probs[:, 0] == 1.0).tolist() == [True, False]
    rule = ClipCleaner(config(theta_absorb=1.0, theta_relabel=1.0))
    labels, active = rule.fix(probs, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool))
    assert (labels.tolist(), active.tolist()) == ([0, 1], [False, False])


class Linear(nn.Module):
    """A linear classifier of the pixels, small enough to be written out in NumPy."""

    def __init__(self, generator: np.random.Generator, pixels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(generator.normal(size=(pixels, classes)), dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_step_agrees_with_numpy(beta: float) -> None:
    generator = np.random.default_rng(11)
    images, labels = generator.normal(size=(7, 9)), generator.integers(4, size=7)
    method = ClipCleaner(config(beta=beta))
    method.network = Linear(generator, 9, 4)
    loss = method.loss(
        torch.tensor(images, dtype=torch.float32).reshape(7, 1, 3, 3),
        torch.tensor(labels),
        4,
        np.random.default_rng(3),
        torch.Generator().manual_seed(4),
    )
    loss.backward()  # type: ignore[no-untyped-call]

    targets = np.eye(4)[labels]
    if beta:
        lam = np.random.default_rng(3).beta(beta, beta)
        lam = max(lam, 1 - lam)
        partners = torch.randperm(7, generator=torch.Generator().manual_seed(4)).numpy()
        images, targets = lam * images + (1 - lam) * images[partners], lam * targets + (1 - lam) * targets[partners]
    logits = images @ method.network.weight.detach().double().numpy()
    powers = np.exp(logits - logits.max(1, keepdims=True))
    probs = powers / powers.sum(1, keepdims=True)
    assert loss.item() == pytest.approx(-(targets * np.log(probs)).sum() / 7, abs=1e-5)
    gradient = method.network.weight.grad
    assert gradient is not None
    np.testing.assert_allclose(gradient.numpy(), images.T @ (probs - targets) / 7, atol=1e-5)


def served_by(task: Any, method: ClipCleaner, run: Any, labels: Tensor, active: Tensor, count: int) -> list[Tensor]:
    return [batch.index for batch in islice(method.batches(task, run, labels, active), count)]


def test_batches_show_classes_equally_often_by_their_current_labels(make_task: Any, make_run: Any) -> None:
    task = make_task(60, 3, 0.0)
    labels, active = task.labels.clone(), torch.arange(60) < 24
    labels[:3] = 1  # samples 0, 1, 2 count as class 1, whatever was given
    sizes = labels[active].bincount()
    assert sizes.tolist() == [7, 10, 7]
    task.clock.move_to(0)
    batches = served_by(task, ClipCleaner(config()), make_run(task), labels, active, 8)
    assert [len(batch) for batch in batches] == [8, 8, 8, 6] * 2
    first, second = torch.cat(batches[:4]), torch.cat(batches[4:])
    for each in (first, second):
        assert labels[each].bincount().tolist() == [10, 10, 10]
        assert active[each].all()
        assert set(each.tolist()) == set(range(24))
    assert not torch.equal(first, second)
    assert task.loaders[0] == ("net", {"batch_size": 8, "views": ("weak",), "shuffle": False})


def test_without_balance_every_active_sample_comes_once_a_pass(make_task: Any, make_run: Any) -> None:
    task = make_task(60, 3, 0.3)
    active = torch.arange(60) % 4 == 0
    task.clock.move_to(0)
    method = ClipCleaner(config(class_balanced=False))
    batches = served_by(task, method, make_run(task), task.labels, active, 4)
    for each in (torch.cat(batches[:2]), torch.cat(batches[2:])):
        assert sorted(each.tolist()) == active.nonzero().flatten().tolist()
    assert [role for role, _ in task.loaders] == ["net"]


def test_an_epoch_is_as_long_as_the_whole_training_set(make_task: Any, make_run: Any) -> None:
    for changes, steps in (({}, 90 // 8), ({"iterations": 3}, 3), ({"batch_size": 200}, 1)):
        task = make_task()
        run = make_run(task)
        ClipCleaner(config(epochs=2, **changes)).fit(task, run)
        assert len(run.values("loss")) == 2 * steps


def test_evaluation_sees_plain_images_in_eval_mode(make_task: Any) -> None:
    task, method = make_task(), ClipCleaner(config())
    method.network = task.network("net", "any").train()
    before = {name: value.clone() for name, value in method.network.state_dict().items()}
    probs = method.evaluate(task, torch.arange(90))
    assert all(torch.equal(value, before[name]) for name, value in method.network.state_dict().items())
    assert task.loaders == [("evaluate", {"batch_size": 32, "views": ("plain",), "shuffle": False})]
    with torch.no_grad():
        np.testing.assert_allclose(probs.numpy(), method.network(task.images).softmax(1).numpy(), atol=1e-6)


def test_labels_start_from_the_given_ones_each_epoch(make_task: Any, make_run: Any) -> None:
    answers = iter([torch.tensor([0.1, 0.85, 0.05]), torch.tensor([0.6, 0.3, 0.1])])

    class Fixed(ClipCleaner):
        def evaluate(self, task: Any, index_n: Tensor) -> Tensor:
            return next(answers).expand(len(index_n), -1)

    task = make_task()
    run = make_run(task)
    Fixed(config(epochs=2)).fit(task, run)
    labels, initial = run.tracked["training_set"]["labels"], run.reported[0][2]["selected"]
    assert torch.equal(labels, task.labels), "what the first epoch relabelled is forgotten in the second"
    _, _, verdicts = run.reported[1]
    assert torch.equal(verdicts["pseudo_labels"], torch.where(task.labels == 1, -1, 1))
    assert torch.equal(verdicts["selected"], task.labels == 1), "relabelled samples are not taken for clean"
    assert torch.equal(run.tracked["training_set"]["active"], initial)


def test_active_always_holds_the_initial_selection(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run = make_run(task)
    initial = ClipCleaner(config()).select(task, make_run(task)).selected
    task.clock.streams.clear()
    seen: list[Tensor] = []
    run.after_epoch = lambda _: seen.append(run.tracked["training_set"]["active"].clone())
    ClipCleaner(config()).fit(task, run)
    assert all(active[initial].all() for active in seen)
    assert seen[-1].sum() > initial.sum()
    # What is logged is what the epoch was trained on.
    sizes = [float(initial.sum()), *(float(active.sum()) for active in seen[:-1])]
    assert run.values("num_active") == sizes


def test_without_mixfix_nothing_ever_changes(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run = make_run(task)
    ClipCleaner(config(theta_absorb=1.0, theta_relabel=1.0)).fit(task, run)
    first = run.reported[0][2]
    for _, _, verdicts in run.reported:
        assert torch.equal(verdicts["selected"], first["selected"])
        assert (verdicts["pseudo_labels"] == -1).all()
    assert torch.equal(run.tracked["training_set"]["labels"], task.labels)
    assert {role for role, _ in task.loaders} == {"net"}, "no evaluation is made for nothing"
    assert set(run.values("num_absorbed") + run.values("num_relabelled")) == {0.0}


def test_another_methods_selection_is_of_no_interest(make_task: Any, make_run: Any) -> None:
    plain, other = make_task(), make_task()
    nothing = torch.zeros(90, dtype=torch.bool)
    other.selection = Selection(clean_probs=nothing.float(), selected=nothing)
    first, second = (ClipCleaner(config()).select(task, make_run(task)) for task in (plain, other))
    assert torch.equal(first.selected, second.selected)


def test_no_step_waits_for_the_device(make_task: Any, make_run: Any) -> None:
    class Watch(TorchDispatchMode):
        waits = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Watch.waits += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    class Watched(ClipCleaner):
        def loss(self, *args: Any, **kwargs: Any) -> Tensor:
            with Watch():
                loss = super().loss(*args, **kwargs)
                torch.autograd.grad(loss, list(self.network.parameters()), retain_graph=True)
                return loss

        def fix(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            with Watch():
                return super().fix(*args, **kwargs)

    task = make_task()
    Watched(config(epochs=2)).fit(task, make_run(task))
    assert Watch.waits == 0
    with Watch():
        torch.ones(1).item()
    assert Watch.waits == 1


# ---------------------------------------------------------------- the loop


def test_learning_rate_drops_at_its_milestones(make_task: Any, make_run: Any) -> None:
    task = make_task(num_train=12)
    run = make_run(task)
    rates: list[float] = []
    run.after_epoch = lambda _: rates.append(run.tracked["optimizer"].param_groups[0]["lr"])
    ClipCleaner(config(epochs=6, lr_milestones=(2, 5), iterations=1)).fit(task, run)
    assert rates == pytest.approx([0.02, 0.02, 0.002, 0.002, 0.002, 0.0002])


def test_paper_views() -> None:
    kinds = {name: [op.op for op in recipe.ops] for name, recipe in PAPER_VIEWS.items()}
    cifar = ["crop", "flip", "autoaugment"]
    assert kinds == {
        "cifar10": cifar,
        "cifar100": cifar,
        "red-mini-imagenet": cifar,
        "animal10n": ["crop", "flip", "randaugment"],
        "mini-webvision": ["resized-crop", "flip", "autoaugment"],
        "clothing1m": cifar,
    }
    pair = PAPER_VIEWS["animal10n"].ops[2]
    assert len(set(pair.pool)) == 15  # type: ignore[union-attr]


def test_the_papers_view_is_asked_for_by_its_recipe(make_task: Any, make_run: Any, make_info: Any) -> None:
    task = make_task(num_train=12)
    with pytest.raises(UsageError, match="the paper has no training view for 'toy'; use --set view=strong"):
        ClipCleaner(config(epochs=1, view="paper")).fit(task, make_run(task))
    method = ClipCleaner(config(view="paper"))
    assert method._view(make_info("cifar100")) == PAPER_VIEWS["cifar100"]
    assert ClipCleaner(config(view="strong"))._view(make_info("cifar100")) == "strong"


def test_learns_and_grows_a_clean_set(make_task: Any, make_run: Any) -> None:
    task, clean = make_task(240, 4, 0.5), make_task(240, 4, 0.0)
    run, method = make_run(task), ClipCleaner(config(epochs=12, lr_milestones=(10,)))
    method.fit(task, run)
    with torch.no_grad():
        accuracy = (method.predict(task.images).argmax(1) == clean.labels).float().mean()
    assert accuracy > 0.95
    right = task.labels == clean.labels
    _, _, last = run.reported[-1]
    assert right[last["selected"]].float().mean() > 0.9
    relabelled = last["pseudo_labels"] >= 0
    assert relabelled.sum() > 60
    assert (last["pseudo_labels"] == clean.labels)[relabelled].float().mean() > 0.9
    assert [(epoch, name) for epoch, name, _ in run.reported] == [(epoch, "") for epoch in range(12)]


@pytest.mark.parametrize("stop_after", [0, 2, 4])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    make_task: Any, make_run: Any, stop_after: int
) -> None:
    settings = config()
    method, task = ClipCleaner(settings), make_task()
    method.fit(task, whole := make_run(task))

    ClipCleaner(settings).fit(first := make_task(), interrupted := make_run(first, stop_after=stop_after))
    assert interrupted.clock.epoch == stop_after
    resumed_method, second = ClipCleaner(settings), make_task()
    resumed_method.fit(second, resumed := make_run(second, resume=interrupted.saved))

    assert torch.equal(method.predict(task.images), resumed_method.predict(task.images))
    for name in ("labels", "active"):
        assert torch.equal(whole.tracked["training_set"][name], resumed.tracked["training_set"][name])
    logged = [(epoch, {key: float(value) for key, value in each.items()}) for epoch, each in whole.logged]
    again = [(epoch, {key: float(value) for key, value in each.items()}) for epoch, each in resumed.logged]
    assert [each for each in logged if each[0] > stop_after] == again


# ---------------------------------------------------------------- registration and page


def test_registration() -> None:
    [entry] = lnlbench_methods()
    assert (entry.name, entry.networks_at_test, entry.supervision) == ("clipcleaner", 1, ("clip",))
    assert (entry.selects, entry.starts_from_selection) == (True, False)
    assert entry.target == f"{ClipCleaner.__module__}:{ClipCleaner.__qualname__}"
    assert entry.paper is not None
    assert entry.paper.bibtex in README


def test_listing_imports_no_pytorch() -> None:
    code = "import sys, lnlbench_clipcleaner as p; p.lnlbench_methods(); print('torch' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "False\n"


def test_page_names_every_option_and_every_logged_metric(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run = make_run(task)
    ClipCleaner(config(epochs=2)).fit(task, run)
    metrics = {key for _, values in run.logged for key in values}
    options = set(ClipCleaner.Config.model_fields)
    assert len(metrics) == 4
    assert [name for name in sorted(metrics | options) if f"| `{name}` |" not in README] == []
    assert all(field.description for field in ClipCleaner.Config.model_fields.values())
