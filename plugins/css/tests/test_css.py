from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lnlbench.api import Batch, DivergedError, TaskInfo
from lnlbench.blocks.history import LossHistory
from lnlbench.blocks.mixture import clean_probabilities
from lnlbench.blocks.mixture2d import fit_gaussian_pair_2d
from lnlbench_css import lnlbench_methods
from lnlbench_css.css import Classifier, Clip, Css, Division
from lnlbench_css.pretraining import SIMCLR, cosine_decay
from lnlbench_css.prompt import Prompt, initial_context

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def config(**changes: Any) -> Css.Config:
    settings: dict[str, Any] = {
        "epochs": 6,
        "batch_size": 8,
        "backbone": "any",
        "encoder": "words",
        "pretraining_epochs": 0,
        "pretraining_batch_size": 32,
        "pretraining_learning_rate": 0.05,
        "warmup_epochs": 2,
        "lr_drop_epoch": 4,
    }
    return Css.Config(**(settings | changes))


def build(method: Css, task: Any, run: Any) -> tuple[Classifier, Clip]:
    return method.build_classifier(task, run), method.build_clip(task, run)


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def halves(task: Any) -> Division:
    index = torch.arange(task.num_train)
    return Division(labelled=index[: task.num_train // 2], unlabelled=index[task.num_train // 2 :])


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


# ---------------------------------------------------------------- preset


@pytest.mark.parametrize(("dataset", "warmup"), [("cifar10", 10), ("cifar100", 30)])
def test_preset_for_cifar(make_info: Callable[..., TaskInfo], dataset: str, warmup: int) -> None:
    info = make_info(dataset, "symmetric", 0.9, image_size=32, channels=3)
    assert Css.preset(info) == Css.Config(
        epochs=300,
        batch_size=64,
        backbone="preact-resnet18",
        encoder="words",
        pretraining_epochs=800,
        pretraining_batch_size=1024,
        pretraining_learning_rate=0.8,
        pretraining_weight_decay=1e-4,
        pretraining_view="simclr",
        warmup_epochs=warmup,
        warmup_penalty=False,
        learning_rate=0.02,
        momentum=0.9,
        weight_decay=5e-4,
        lr_drop_epoch=150,
        lr_drop_factor=0.1,
        epoch_length="all",
        selection="2d",
        covariance="full",
        beta=0.2,
        clean_threshold=0.5,
        loss_average_epochs=1,
        gmm_max_iter=10,
        gmm_tol=1e-2,
        gmm_reg_covar=5e-4,
        confidence=0.95,
        pseudo_label="soft",
        lambda_u=0.5,
        lambda_c=0.025,
        lambda_r=1,
        temperature=0.1,
        contrastive_views="weak",
        contrastive_symmetric=False,
        projection_head=False,
        prompt_learning="full",
        n_ctx=16,
        context_init="phrase",
        prompt_learning_rate=0.002,
        prompt_momentum=0.9,
        prompt_weight_decay=5e-4,
        prompt_update_every=1,
        prompt_views="computed",
    )
    assert info.asked == set()


def test_presets_for_large_images(make_info: Callable[..., TaskInfo]) -> None:
    clothing = Css.preset(make_info("clothing1m", "own", None, num_classes=14, image_size=224, channels=3))
    assert (clothing.epochs, clothing.batch_size, clothing.warmup_epochs, clothing.lr_drop_epoch) == (80, 32, 1, 40)
    assert (clothing.learning_rate, clothing.weight_decay, clothing.draw_size) == (0.001, 1e-3, 32_000)
    assert (clothing.backbone, clothing.pretraining_epochs) == ("timm:resnet50+pretrained", 0)
    web = Css.preset(make_info("mini-webvision", "own", None, num_classes=50, image_size=299, channels=3))
    assert (web.epochs, web.batch_size, web.warmup_epochs, web.lr_drop_epoch) == (80, 32, 1, 40)
    assert (web.learning_rate, web.weight_decay, web.draw_size) == (0.01, 5e-4, None)
    assert (web.backbone, web.pretraining_epochs) == ("timm:inception_resnet_v2", 0)


@pytest.mark.parametrize(("epochs", "warmup", "drop"), [(40, 5, 20), (1, 1, 1)])
def test_preset_elsewhere_follows_the_suite_and_asks_nothing(
    make_info: Callable[..., TaskInfo], epochs: int, warmup: int, drop: int
) -> None:
    info = make_info("digits", "symmetric", 0.9, default_epochs=epochs, default_encoder="glyphs")
    preset = Css.preset(info)
    assert (preset.epochs, preset.backbone, preset.encoder) == (epochs, "small-cnn", "glyphs")
    assert (preset.warmup_epochs, preset.lr_drop_epoch) == (warmup, drop)
    # A mirrored digit is another sign.
    assert preset.pretraining_view == "strong"
    assert preset.prompt_learning_rate == 0.1
    assert info.asked == set()


def test_draws_and_averaged_losses_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="draw_size and loss_average_epochs exclude each other"):
        config(draw_size=32, loss_average_epochs=5)


# ---------------------------------------------------------------- the prompt


class Cosines:
    """An encoder whose classes are axes."""

    name, temperature, embed_dim, context_dim, fingerprint = "axes", 0.01, 3, 2, ""

    def prompt_features(self, context: Tensor, names: list[str]) -> Tensor:
        return torch.eye(3, dtype=torch.float64) + 0 * context.sum()


def test_clip_probability_of_the_given_label_worked_numbers() -> None:
    prompt = Prompt(Cosines(), ("a", "b", "c"), torch.zeros(1, 2))  # type: ignore[arg-type]
    logits = prompt.logits(torch.tensor([[0.28, 0.25, 0.21]], dtype=torch.float64), prompt.class_features())
    np.testing.assert_allclose(logits.softmax(1).detach().numpy(), [[0.951747, 0.047385, 0.000868]], atol=6e-7)


def test_context_ends_with_the_phrase(make_task: Any, make_run: Any) -> None:
    task = make_task()
    encoder, stream = task.encoder("words"), make_run(task).rng("context")
    phrase = encoder.token_embeddings("a photo of a")
    assert len(phrase) == 4
    assert torch.equal(initial_context(encoder, 16, "phrase", stream), phrase.repeat(4, 1))
    assert torch.equal(initial_context(encoder, 0, "phrase", stream), phrase)
    assert torch.equal(initial_context(encoder, 6, "phrase", stream), torch.cat([phrase[2:], phrase]))
    assert torch.equal(initial_context(encoder, 2, "phrase", stream), phrase[2:])
    random = initial_context(encoder, 400, "random", stream)
    assert random.shape == (400, 5)
    assert random.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_short_context_starts_as_the_zero_shot_classifier(make_task: Any, make_run: Any) -> None:
    task = make_task()
    clip = Css(config(n_ctx=0)).build_clip(task, make_run(task))
    expected = task.encoder("words").text_features([f"a photo of a {name}." for name in clip.prompt.names])
    np.testing.assert_allclose(clip.prompt.class_features().detach().numpy(), expected.numpy(), atol=1e-6)
    assert torch.equal(clip.prompt.training_logits().argmax(1), clip.zero_shot)


def test_class_names_are_words(make_task: Any) -> None:
    prompt = Prompt(make_task().encoder("words"), ("aquarium_fish", "bed"), torch.zeros(1, 5))
    assert prompt.names == ["aquarium fish", "bed"]


def test_order_of_classes_does_not_matter(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config())
    run, index = make_run(task), torch.arange(task.num_train)
    straight = method.given_label_probs(task, run, method.build_clip(task, run), index)
    permuted = make_task()
    object.__setattr__(permuted.info, "class_names", permuted.info.class_names[::-1])
    permuted.labels = task.num_classes - 1 - task.labels
    probs = method.given_label_probs(permuted, run, method.build_clip(permuted, run), index)
    np.testing.assert_allclose(probs.numpy(), straight.numpy(), atol=1e-6)


def test_prompt_loss_agrees_with_numpy(make_task: Any, make_run: Any) -> None:
    task = make_task()
    # Without a threshold every row counts, so that the whole formula is exercised.
    method, run = Css(config(confidence=0.3)), make_run(task)
    clip = method.build_clip(task, run)
    x = next(iter(task.loader("labelled", batch_size=5, views=("weak", "weak"))))
    u = next(iter(task.loader("unlabelled", batch_size=7, views=("weak", "weak", "strong"))))
    loss, parts = method.prompt_loss(clip, x, u, run.rng("prompt views"))

    encoder = clip.prompt.encoder
    text = clip.prompt.class_features().detach().double().numpy()
    p_x = softmax(encoder.training_features()[x.index].double().numpy() @ text.T / 0.1)
    p_weak, p_strong = (softmax(encoder.image_features(u.views[k]).double().numpy() @ text.T / 0.1) for k in (0, 2))
    loss_x = -np.log(p_x[np.arange(5), x.labels.numpy()]).mean()
    kept = p_weak.max(1) > 0.3
    loss_u = -(kept[:, None] * p_weak * np.log(p_strong)).sum() / 7
    assert kept.any()
    assert parts["prompt_loss_labelled"].item() == pytest.approx(loss_x, rel=1e-5)
    assert parts["prompt_loss_unlabelled"].item() == pytest.approx(loss_u, rel=1e-5)
    assert parts["prompt_pseudo_labelled"].item() == pytest.approx(kept.mean())
    assert loss.item() == pytest.approx(loss_x + 0.5 * loss_u, rel=1e-5)
    assert parts["prompt_loss"] == loss


# ---------------------------------------------------------------- one step of the classifier


class Linear(nn.Module):
    """Linear features and a linear layer, small enough to be written out in NumPy."""

    def __init__(self, generator: np.random.Generator, pixels: int, features: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(generator.normal(size=(pixels, features))))
        self.last = nn.Parameter(torch.tensor(generator.normal(size=(features, classes))))

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.first

    def classify(self, features: Tensor) -> Tensor:
        return features @ self.last


def slow_nt_xent(a: NDArray[np.float64], b: NDArray[np.float64], symmetric: bool) -> float:
    z = np.concatenate([a, b])
    z = z / np.sqrt((z**2).sum(1, keepdims=True))
    n, losses = len(a), []
    for i in range(2 * n if symmetric else n):
        powers = [math.exp(z[i] @ z[j] / 0.1) for j in range(2 * n) if j != i]
        losses.append(-math.log(math.exp(z[i] @ z[(i + n) % (2 * n)] / 0.1) / sum(powers)))
    return float(np.mean(losses))


@pytest.mark.parametrize(("num_x", "num_u"), [(5, 7), (1, 1), (0, 4), (4, 0)])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("strong", [False, True])
def test_step_agrees_with_numpy(num_x: int, num_u: int, hard: bool, strong: bool) -> None:
    generator = np.random.default_rng(11)
    network = Linear(generator, 9, 4, 3)
    # The labelled batch needs a third view only for contrast between strong ones.
    x = generator.normal(size=(3 if strong else 2, num_x, 9))
    u = generator.normal(size=(3, num_u, 9))
    labels = generator.integers(3, size=num_x)

    def batch(views: NDArray[np.float64], given: NDArray[np.int64]) -> Batch:
        return Batch(
            index=torch.arange(len(given)),
            labels=torch.from_numpy(given),
            views=tuple(torch.from_numpy(view).reshape(-1, 1, 3, 3) for view in views),
        )

    method = Css(
        config(
            confidence=0.9,
            pseudo_label="hard" if hard else "soft",
            contrastive_views="strong" if strong else "weak",
            contrastive_symmetric=hard,
        )
    )
    classifier = Classifier(network, nn.Identity(), torch.optim.SGD(network.parameters()), LossHistory(1))
    loss, parts = method.classifier_loss(classifier, batch(x, labels), batch(u, np.zeros(num_u, dtype=np.int64)))

    first, last = network.first.detach().numpy(), network.last.detach().numpy()
    f_x, f_u = x @ first, u @ first
    p_x = softmax(f_x[0] @ last)
    p_u, p_s = softmax(f_u[0] @ last), softmax(f_u[2] @ last)
    loss_x = -np.log(p_x[np.arange(num_x), labels]).sum() / max(num_x, 1)
    taught = np.eye(3)[p_u.argmax(1)] if hard else p_u
    kept = p_u.max(1) > 0.9
    loss_u = -(kept[:, None] * taught * np.log(p_s)).sum() / max(num_u, 1)
    one, other = (1, 2) if strong else (0, 1)
    views = [np.concatenate([f_x[k], f_u[k]]) for k in (one, other)]
    loss_con = slow_nt_xent(views[0], views[1], symmetric=hard)
    mean = np.concatenate([p_x, p_u]).mean(0)
    loss_reg = float((np.log(1 / 3 / mean) / 3).sum())

    assert parts["loss_labelled"].item() == pytest.approx(loss_x)
    assert parts["loss_unlabelled"].item() == pytest.approx(loss_u)
    assert parts["loss_contrastive"].item() == pytest.approx(loss_con)
    assert parts["loss_balance"].item() == pytest.approx(loss_reg)
    assert parts["pseudo_labelled"].item() == pytest.approx(kept.mean() if num_u else 0)
    assert loss.item() == pytest.approx(loss_x + 0.5 * loss_u + 0.025 * loss_con + loss_reg)
    assert loss_con >= 0
    assert loss_reg >= 0


def test_weights_of_the_losses() -> None:
    parts = config()
    total = 1.2 + parts.lambda_u * 0.8 + parts.lambda_c * 3.0 + parts.lambda_r * 0.05
    assert total == pytest.approx(1.725)


@pytest.mark.parametrize(
    ("option", "part"),
    [("lambda_u", "loss_unlabelled"), ("lambda_c", "loss_contrastive"), ("lambda_r", "loss_balance")],
)
def test_a_loss_can_be_left_out(make_task: Any, make_run: Any, option: str, part: str) -> None:
    task = make_task()
    x = next(iter(task.loader("labelled", batch_size=8, views=("weak", "weak"))))
    u = next(iter(task.loader("unlabelled", batch_size=8, views=("weak", "weak", "strong"))))
    full, without = Css(config(confidence=0.3)), Css(config(confidence=0.3, **{option: 0}))
    classifier = full.build_classifier(task, make_run(task))
    loss, parts = full.classifier_loss(classifier, x, u)
    less, _ = without.classifier_loss(classifier, x, u)
    assert parts[part] > 0
    assert (loss - less).item() == pytest.approx(getattr(full.config, option) * parts[part].item(), rel=1e-4)


def test_all_views_share_one_forward_pass_in_train_mode(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config(batch_size=100))
    run = make_run(task)
    classifier, clip = build(method, task, run)
    method.train_epoch(task, run, classifier, clip, halves(task))
    assert classifier.network.training
    # 90 samples in batches of 100 + 100: one step.
    assert classifier.network.state_dict()["layers.1.num_batches_tracked"] == 1
    assert [(role, facts["views"], facts["batch_size"]) for role, facts in task.loaders] == [
        ("labelled", ("weak", "weak"), 100),
        ("unlabelled", ("weak", "weak", "strong"), 100),
    ]


def test_gradients_of_classifier_and_prompt_are_separate(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config())
    run = make_run(task)
    classifier, clip = build(method, task, run)
    x = next(iter(task.loader("labelled", batch_size=8, views=("weak", "weak"))))
    u = next(iter(task.loader("unlabelled", batch_size=8, views=("weak", "weak", "strong"))))
    method.classifier_loss(classifier, x, u)[0].backward()  # type: ignore[no-untyped-call]
    assert clip.prompt.context["vectors"].grad is None
    assert all(parameter.grad is not None for parameter in classifier.network.parameters())
    classifier.optimizer.zero_grad()
    method.prompt_loss(clip, x, u, run.rng("prompt views"))[0].backward()  # type: ignore[no-untyped-call]
    assert clip.prompt.context["vectors"].grad is not None
    assert all(parameter.grad is None for parameter in classifier.network.parameters())
    assert all(parameter.grad is None for parameter in task.encoder("words").towers.parameters())


def test_no_step_waits_for_the_device(make_task: Any, make_run: Any) -> None:
    class Watch(TorchDispatchMode):
        waits = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Watch.waits += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    class Watched(Css):
        def classifier_loss(self, classifier: Classifier, x: Batch, u: Batch) -> Any:
            with Watch():
                loss, parts = super().classifier_loss(classifier, x, u)
                torch.autograd.grad(loss, list(classifier.network.parameters()), retain_graph=True)
                return loss, parts

        def prompt_loss(self, clip: Clip, x: Batch, u: Batch, stream: Any) -> Any:
            with Watch():
                loss, parts = super().prompt_loss(clip, x, u, stream)
                torch.autograd.grad(loss, list(clip.prompt.context.parameters()), retain_graph=True)
                return loss, parts

    task, method = make_task(), Watched(config())
    run = make_run(task)
    method.train_epoch(task, run, *build(method, task, run), halves(task))
    assert Watch.waits == 0
    with Watch():
        torch.ones(1).item()
    assert Watch.waits == 1


# ---------------------------------------------------------------- epochs


@pytest.mark.parametrize(
    ("length", "labelled", "steps"),
    [("all", 20_000, 391), ("all", 0, 391), ("labelled", 20_000, 313), ("longer", 20_000, 469), ("labelled", 0, 0)],
)
def test_steps_of_an_epoch(length: str, labelled: int, steps: int) -> None:
    division = Division(torch.arange(labelled), torch.arange(labelled, 50_000))
    assert Css(config(batch_size=64, epoch_length=length)).num_steps(division) == steps


def test_parts_are_cycled_independently(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config())
    run = make_run(task)
    index = torch.arange(task.num_train)
    method.train_epoch(task, run, *build(method, task, run), Division(index[:10], index[10:]))
    labelled = [rows for role, rows in task.served if role == "labelled"]
    unlabelled = [rows for role, rows in task.served if role == "unlabelled"]
    assert [len(rows) for rows in labelled] == [8, 2] * 3
    assert [len(rows) for rows in unlabelled] == [8] * 6
    assert sorted(torch.cat(labelled[:2]).tolist()) == list(range(10))
    assert len(set(torch.cat(unlabelled).tolist())) == 48
    assert run.values("num_labelled") == [10.0]


def test_views_are_encoded_once_a_step_and_texts_too(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config())
    run = make_run(task)
    classifier, clip = build(method, task, run)
    encoder = task.encoder("words")
    method.train_epoch(task, run, classifier, clip, halves(task))
    steps = len(run.values("loss"))
    assert steps == 6
    # Weak and strong views of the unlabelled images only, in one call.
    assert encoder.encoded == [16] * 5 + [10]
    assert encoder.prompted == steps


def test_prompt_can_be_trained_in_every_other_step(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config(prompt_update_every=4))
    run = make_run(task)
    method.train_epoch(task, run, *build(method, task, run), halves(task))
    assert len(run.values("loss")) == 6
    assert len(run.values("prompt_loss")) == len(task.encoder("words").encoded) == 2


@pytest.mark.parametrize("learning", ["supervised", "off"])
def test_prompt_learning_can_be_cut_down(make_task: Any, make_run: Any, learning: str) -> None:
    task, method = make_task(), Css(config(prompt_learning=learning))
    run = make_run(task)
    classifier, clip = build(method, task, run)
    before = clip.prompt.context["vectors"].detach().clone()
    method.train_epoch(task, run, classifier, clip, halves(task))
    assert task.encoder("words").encoded == []
    assert torch.equal(clip.prompt.context["vectors"], before) == (learning == "off")
    assert len(run.values("prompt_loss")) == (0 if learning == "off" else 6)
    assert run.values("prompt_loss") == run.values("prompt_loss_labelled")


def test_stored_views_replace_encoding(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config(prompt_views="cached", prompt_views_stored=3))
    run = make_run(task)
    classifier, clip = build(method, task, run)
    encoder = task.encoder("words")
    assert sum(encoder.encoded) == 3 * 2 * task.num_train
    assert run.stages["prompt views"] == {
        "inputs": {"encoder": "words", "weights": "0" * 64, "views": 3},
        "uses_labels": False,
    }
    assert clip.stored is not None
    assert clip.stored.weak.shape == clip.stored.strong.shape == (3, task.num_train, 6)
    assert clip.stored.weak.dtype == torch.float16
    encoder.encoded.clear()
    method.train_epoch(task, run, classifier, clip, halves(task))
    assert encoder.encoded == []

    batch = next(iter(task.loader("unlabelled", batch_size=9, views=("weak", "weak", "strong"))))
    weak, strong = clip.prompt.view_features(batch, clip.stored, run.rng("other"))
    for found, kept in ((weak, clip.stored.weak), (strong, clip.stored.strong)):
        assert found.dtype == torch.float32
        matches = (kept[:, batch.index].float() == found).all(2)
        assert matches.any(0).all()
        np.testing.assert_allclose(found.norm(dim=1).numpy(), 1, atol=2e-3)


def test_without_unlabelled_samples_it_trains_on_the_others(
    make_task: Any, make_run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    task, method = make_task(), Css(config())
    run = make_run(task)
    index = torch.arange(task.num_train)
    with caplog.at_level(logging.WARNING):
        method.train_epoch(task, run, *build(method, task, run), Division(index, index[:0]))
    assert "every sample counts as clean" in caplog.text
    assert run.values("loss_unlabelled") == run.values("pseudo_labelled") == [0.0] * 6
    assert all(math.isfinite(value) and value > 0 for value in run.values("loss_labelled"))
    assert run.values("prompt_loss") == run.values("prompt_loss_labelled")
    assert task.encoder("words").encoded == []


def test_without_labelled_samples_it_trains_on_the_others(
    make_task: Any, make_run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    task, method = make_task(), Css(config())
    run = make_run(task)
    index = torch.arange(task.num_train)
    with caplog.at_level(logging.WARNING):
        method.train_epoch(task, run, *build(method, task, run), Division(index[:0], index))
    assert "no sample counts as clean" in caplog.text
    assert run.values("loss_labelled") == run.values("prompt_loss_labelled") == [0.0] * 6
    assert all(math.isfinite(value) for key in ("loss", "prompt_loss") for value in run.values(key))


def test_a_selection_of_one_class_does_no_harm(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config())
    run = make_run(task)
    one_class = task.labels == 1
    division = Division(one_class.nonzero().flatten(), (~one_class).nonzero().flatten())
    method.train_epoch(task, run, *build(method, task, run), division)
    assert all(math.isfinite(value) for key in ("loss", "prompt_loss") for value in run.values(key))


@pytest.mark.parametrize("penalty", [False, True])
def test_warm_up_loss(make_task: Any, make_run: Any, penalty: bool) -> None:
    task, method = make_task(), Css(config(batch_size=100, warmup_penalty=penalty))
    run = make_run(task)
    classifier = method.build_classifier(task, run)
    seen: list[Tensor] = []
    classifier.network.register_forward_hook(lambda *call: seen.append(call[-1].detach().double()))
    method.warm_up(task, run, classifier)
    probs, labels = softmax(seen[0].numpy()), task.labels[task.served[0][1]].numpy()
    expected = -np.log(probs[np.arange(len(labels)), labels]).mean()
    if penalty:
        expected += (probs * np.log(probs)).sum(1).mean()
    assert run.values("loss_warmup") == [pytest.approx(expected, abs=1e-5)]
    assert task.loaders == [("warm-up", {"batch_size": 200, "views": ("weak",), "shuffle": True})]
    assert task.encoders == {}


# ---------------------------------------------------------------- selection


def divide(method: Css, task: Any, run: Any) -> tuple[Division, dict[str, dict[str, Tensor]]]:
    run.clock.move_to(2)
    classifier = method.build_classifier(task, run)
    clip = method.build_clip(task, run) if method.config.selection != "loss" else None
    division = method.divide(task, run, classifier, clip)
    return division, {name: verdicts for _, name, verdicts in run.reported}


def losses_and_probs(task: Any, run: Any, method: Css) -> tuple[Tensor, Tensor]:
    """Both criteria, written out."""
    network = method.build_classifier(task, run).network.eval()
    rows = np.arange(task.num_train), task.labels.numpy()
    with torch.no_grad():
        losses = -np.log(softmax(network(task.images).double().numpy())[rows])
    encoder = task.encoder("words")
    clip = method.build_clip(task, run)
    cosines = encoder.training_features() @ encoder.prompt_features(clip.prompt.context["vectors"], clip.prompt.names).T
    probs = softmax(cosines.detach().double().numpy() / 0.1)[rows]
    return torch.tensor((losses - losses.min()) / (losses.max() - losses.min())), torch.tensor(probs)


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_selection_in_the_plane(make_task: Any, make_run: Any, covariance: Any) -> None:
    task, method = make_task(), Css(config(covariance=covariance))
    run = make_run(task)
    division, reports = divide(method, task, run)
    losses, probs = losses_and_probs(task, run, method)
    run.clock.move_to(2)
    seed = run.rng("gmm").seed()
    pair = fit_gaussian_pair_2d(
        losses, probs, covariance=covariance, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed
    )
    # Reported are log-odds.
    found = reports[""]["clean_probs"].sigmoid()
    np.testing.assert_allclose(found.numpy(), pair.clean_probs(losses, probs).numpy(), atol=1e-3)
    np.testing.assert_allclose(reports["loss"]["clean_probs"].numpy(), 1 - losses.numpy(), atol=1e-5)
    np.testing.assert_allclose(reports["clip"]["clean_probs"].numpy(), probs.numpy(), atol=1e-5)
    assert "selected" not in reports["loss"]
    assert torch.equal(reports[""]["selected"], found >= 0.5)
    assert ((found >= 0) & (found <= 1)).all()
    assert torch.equal(torch.cat([division.labelled, division.unlabelled]).sort().values, torch.arange(task.num_train))
    assert torch.equal(division.labelled, (found >= 0.5).nonzero().flatten())
    [(clean_loss, clean_prob)] = zip(run.values("clean_loss"), run.values("clean_prob"), strict=True)
    assert (clean_loss, clean_prob) == pytest.approx(pair.means[0].tolist(), abs=1e-3)
    assert run.values("noisy_loss") == pytest.approx([pair.means[1, 0]], abs=1e-3)


@pytest.mark.parametrize("selection", ["weighted-1d", "loss", "clip"])
def test_selection_on_lines(make_task: Any, make_run: Any, selection: str) -> None:
    task, method = make_task(), Css(config(selection=selection, beta=0.3))
    run = make_run(task)
    _, reports = divide(method, task, run)
    assert ("words" in task.encoders) == (selection != "loss")
    losses, probs = losses_and_probs(task, run, method)
    run.clock.move_to(2)
    seed = run.rng("gmm").seed()

    def clean(values: Tensor) -> NDArray[np.float32]:
        return clean_probabilities(values, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed).numpy()

    by_loss, by_clip = clean(losses), clean(1 - probs)
    expected = {"loss": by_loss, "clip": by_clip, "weighted-1d": 0.3 * by_loss + 0.7 * by_clip}[selection]
    np.testing.assert_allclose(reports[""]["clean_probs"].numpy(), expected, atol=1e-3)


def test_split_is_not_strict(make_task: Any, make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task, method = make_task(), Css(config())
    probs = torch.full((task.num_train,), 0.4999)
    probs[:10] = 0.5
    monkeypatch.setattr(method, "clean_probs", lambda *_: (probs, probs))
    division, _ = divide(method, task, make_run(task))
    assert division.labelled.tolist() == list(range(10))


def test_selection_sees_plain_images_in_eval_mode(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config())
    run = make_run(task)
    classifier, clip = build(method, task, run)
    classifier.network.train()
    before = copy_of(classifier.network)
    method.divide(task, run, classifier, clip)
    assert all(torch.equal(value, before[name]) for name, value in classifier.network.state_dict().items())
    assert task.loaders == [("losses", {"batch_size": 64, "views": ("plain",), "shuffle": False})]
    assert run.values("prompt_agreement")[0] == pytest.approx(
        (clip.prompt.training_logits().argmax(1) == clip.zero_shot).float().mean().item()
    )
    assert task.encoder("words").encoded == []


def test_disagreement_of_loss_and_clip_is_reported(
    make_task: Any, make_run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    task, method = make_task(), Css(config())
    losses = torch.tensor([0.1, 0.12, 0.11, 0.15] * 5 + [0.9, 0.95, 1.0, 0.85] * 5)
    with caplog.at_level(logging.WARNING):
        method.clean_probs(make_run(task), losses, 1 - losses)
        assert caplog.text == ""
        method.clean_probs(make_run(task), losses, 0.2 * losses)
    assert "loss and CLIP disagree which component is clean" in caplog.text


def test_losses_are_averaged_over_the_last_epochs(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config(loss_average_epochs=3))
    run = make_run(task)
    classifier, clip = build(method, task, run)
    normalised = []
    for epoch in range(5):
        run.clock.move_to(epoch)
        method.warm_up(task, run, classifier)
        method.divide(task, run, classifier, clip)
        losses = method.sample_losses(task, classifier, torch.arange(task.num_train))
        normalised.append((losses - losses.min()) / (losses.max() - losses.min()))
        assert torch.equal(classifier.history.mean(), torch.stack(normalised[-3:]).mean(0))


def test_a_draw_limits_selection_warm_up_and_training(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config(draw_size=30))
    run = make_run(task)
    classifier, clip = build(method, task, run)
    method.warm_up(task, run, classifier)
    assert len(torch.cat([rows for role, rows in task.served if role == "warm-up"])) == 30
    division = method.divide(task, run, classifier, clip)
    index = torch.cat([division.labelled, division.unlabelled])
    assert torch.bincount(task.labels[index]).tolist() == [10, 10, 10]
    [(_, _, verdicts)] = run.reported
    assert set(verdicts) == {"selected"}
    assert torch.equal(verdicts["selected"].nonzero().flatten(), division.labelled)
    assert method.num_steps(division) == 2


def test_equal_losses_without_clip_leave_every_sample_clean(make_task: Any, make_run: Any) -> None:
    task, method = make_task(), Css(config(selection="loss"))
    run = make_run(task)
    classifier = method.build_classifier(task, run)
    nn.init.zeros_(classifier.network.head.weight)  # type: ignore[union-attr,arg-type]
    nn.init.zeros_(classifier.network.head.bias)  # type: ignore[union-attr,arg-type]
    assert len(method.divide(task, run, classifier, None).labelled) == task.num_train


@pytest.mark.parametrize("selection", ["2d", "weighted-1d", "loss"])
def test_a_network_that_diverged_is_reported(make_task: Any, make_run: Any, selection: str) -> None:
    task, method = make_task(), Css(config(selection=selection))
    run = make_run(task)
    classifier = method.build_classifier(task, run)
    clip = method.build_clip(task, run) if selection != "loss" else None
    nn.init.constant_(classifier.network.head.bias, float("nan"))  # type: ignore[union-attr,arg-type]
    with pytest.raises(DivergedError, match=r"90 of 90 (points|values) are not finite"):
        method.divide(task, run, classifier, clip)


# ---------------------------------------------------------------- pre-training


def test_pretraining_uses_no_label_and_leaves_the_linear_layer_fresh(make_task: Any, make_run: Any) -> None:
    settings = config(pretraining_epochs=3)
    task, other = make_task(), make_task()
    other.labels = torch.zeros_like(other.labels)
    run = make_run(task)
    network = Css(settings).build_classifier(task, run).network
    again = Css(settings).build_classifier(other, make_run(other)).network
    fresh = task.network("net", "any")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    assert torch.equal(network.state_dict()["head.weight"], fresh.state_dict()["head.weight"])
    assert not torch.equal(network.state_dict()["layers.0.weight"], fresh.state_dict()["layers.0.weight"])
    # 90 images in whole batches of 32.
    assert [len(rows) for role, rows in task.served if role == "pre-training"] == [32, 32] * 3
    assert task.loaders[0] == ("pre-training", {"batch_size": 32, "views": (SIMCLR, SIMCLR), "shuffle": True})
    stage = run.stages["contrastive pre-training"]
    assert not stage["uses_labels"]
    assert stage["inputs"]["view"] == SIMCLR.model_dump(mode="json")
    assert (stage["inputs"]["epochs"], stage["inputs"]["classes"]) == (3, 3)


def test_pretraining_may_use_a_view_of_the_suite_and_takes_small_sets_whole(make_task: Any, make_run: Any) -> None:
    task = make_task(num_train=20)
    run = make_run(task)
    Css(config(pretraining_epochs=1, pretraining_view="strong")).build_classifier(task, run)
    assert task.loaders == [("pre-training", {"batch_size": 20, "views": ("strong", "strong"), "shuffle": True})]
    assert run.stages["contrastive pre-training"]["inputs"]["view"] == "strong"


def test_pretraining_brings_views_of_an_image_together(make_task: Any, make_run: Any) -> None:
    def similarity(network: Any) -> float:
        with torch.no_grad():
            features = [nn.functional.normalize(network.eval().embed(images), dim=1) for images in pair]
        own = (features[0] * features[1]).sum(1).mean()
        return float(own - (features[0] @ features[1].T).mean())

    task = make_task()
    pair = next(iter(task.loader("probe", batch_size=90, views=("weak", "weak")))).views
    trained = Css(config(pretraining_epochs=20, pretraining_view="weak")).build_classifier(task, make_run(task))
    assert similarity(trained.network) > 1.5 * similarity(task.network("net", "any"))


def test_cosine_decay() -> None:
    rates = [cosine_decay(0.8, epoch, 800) for epoch in range(801)]
    expected = [0.0008 + (0.8 - 0.0008) * 0.5 * (1 + math.cos(math.pi * epoch / 800)) for epoch in range(801)]
    np.testing.assert_allclose(rates, expected)
    assert (rates[0], rates[800]) == pytest.approx((0.8, 0.0008))


# ---------------------------------------------------------------- the loop


def test_learns_and_finds_the_clean_samples(make_task: Any, make_run: Any) -> None:
    task, clean = make_task(240, 4, 0.4), make_task(240, 4, 0.0)
    settings = config(
        epochs=10, batch_size=16, warmup_epochs=3, lr_drop_epoch=8, pretraining_epochs=3, pretraining_view="strong"
    )
    run, method = make_run(task), Css(settings)
    method.fit(task, run)
    with torch.no_grad():
        accuracy = (method.predict(task.images).argmax(1) == clean.labels).float().mean()
    assert accuracy > 0.95
    verdicts = next(verdicts for _, name, verdicts in reversed(run.reported) if not name)
    selected, right = verdicts["selected"], task.labels == clean.labels
    assert right[selected].float().mean() > 0.9
    assert selected[right].float().mean() > 0.8
    assert [(epoch, name) for epoch, name, _ in run.reported] == [
        (epoch, name) for epoch in range(3, 10) for name in ("", "loss", "clip")
    ]


def test_a_class_without_samples_does_no_harm(make_task: Any, make_run: Any) -> None:
    task = make_task()
    task.labels[task.labels == 2] = 0
    run, method = make_run(task), Css(config(epochs=4))
    method.fit(task, run)
    assert method.predict(task.images).isfinite().all()
    assert all(math.isfinite(value) for key in ("loss", "prompt_loss") for value in run.values(key))


def test_encoder_stays_as_it_is_and_the_context_changes(make_task: Any, make_run: Any) -> None:
    task = make_task()
    towers = task.encoder("words").towers
    before = copy_of(towers)
    run = make_run(task)
    contexts: list[Tensor] = []
    run.after_epoch = lambda _: contexts.append(run.tracked["prompt"]["vectors"].detach().clone())
    Css(config(epochs=4)).fit(task, run)
    assert all(torch.equal(value, before[name]) for name, value in towers.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in towers.parameters())
    # Two epochs of warm-up, in which the prompt is not touched.
    changed = [not torch.equal(one, other) for one, other in pairwise(contexts)]
    assert changed == [False, True, True]
    assert sum(value.numel() for value in run.tracked["prompt"].parameters()) == 16 * 5


def test_without_clip_the_encoder_is_never_built(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run = make_run(task)
    Css(config(selection="loss")).fit(task, run)
    assert task.encoders == {}
    assert set(run.tracked) == {"network", "head", "optimizer", "history"}
    assert {name for _, name, _ in run.reported} == {"", "loss"}


def test_learning_rates_drop_at_their_epoch(make_task: Any, make_run: Any) -> None:
    task = make_task(num_train=6)
    run = make_run(task)
    rates: list[list[float]] = []
    run.after_epoch = lambda _: rates.append(
        [run.tracked[name].param_groups[0]["lr"] for name in ("optimizer", "prompt_optimizer")]
    )
    Css(config(epochs=152, warmup_epochs=152, lr_drop_epoch=150)).fit(task, run)
    assert rates[0] == rates[149] == [0.02, 0.002]
    assert rates[150] == rates[151] == pytest.approx([0.002, 0.0002])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"projection_head": True, "contrastive_views": "strong", "loss_average_epochs": 3, "pretraining_epochs": 2},
        {"prompt_views": "cached", "context_init": "random", "prompt_update_every": 2},
    ],
)
@pytest.mark.parametrize("stop_after", [0, 3])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(
    make_task: Any, make_run: Any, stop_after: int, changes: dict[str, Any]
) -> None:
    settings = config(**changes)
    method, task = Css(settings), make_task()
    method.fit(task, whole := make_run(task))

    Css(settings).fit(first := make_task(), interrupted := make_run(first, stop_after=stop_after))
    assert interrupted.clock.epoch == stop_after
    resumed_method, second = Css(settings), make_task()
    resumed_method.fit(second, resumed := make_run(second, resume=interrupted.saved))

    assert torch.equal(method.predict(task.images), resumed_method.predict(task.images))
    for name in ("network", "head", "prompt"):
        other = resumed.tracked[name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in whole.tracked[name].state_dict().items())
    logged = [(epoch, {key: float(value) for key, value in each.items()}) for epoch, each in whole.logged]
    again = [(epoch, {key: float(value) for key, value in each.items()}) for epoch, each in resumed.logged]
    assert [each for each in logged if each[0] > stop_after] == again


# ---------------------------------------------------------------- registration and page


def test_registration() -> None:
    [entry] = lnlbench_methods()
    assert (entry.name, entry.networks_at_test, entry.supervision) == ("css", 1, ("clip",))
    assert not entry.selects
    assert not entry.starts_from_selection
    assert entry.target == f"{Css.__module__}:{Css.__qualname__}"
    assert entry.paper is not None
    assert entry.paper.bibtex in README


def test_listing_imports_no_pytorch() -> None:
    code = "import sys, lnlbench_css as p; p.lnlbench_methods(); print('torch' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "False\n"


def test_page_names_every_option_and_every_logged_metric(make_task: Any, make_run: Any) -> None:
    task = make_task()
    run = make_run(task)
    Css(config(epochs=3)).fit(task, run)
    metrics = {key for _, values in run.logged for key in values}
    options = set(Css.Config.model_fields)
    assert len(metrics) == 17
    assert [name for name in sorted(metrics | options) if f"| `{name}` |" not in README] == []
    assert all(field.description for field in Css.Config.model_fields.values())
