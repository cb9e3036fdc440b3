"""CLIPCleaner and MixFix (Feng, Tzimiropoulos, Patras, ACM MM 2024). The README lists every departure."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from lnlbench.api import (
    AutoAugment,
    Batch,
    Method,
    MethodConfig,
    RandAugment,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    Run,
    Selection,
    Task,
    TaskInfo,
    UsageError,
    ViewRecipe,
)
from lnlbench.blocks.losses import soft_cross_entropy
from lnlbench.blocks.mixup import draw_mixup_weight, mixup
from lnlbench.blocks.sampling import class_balanced_draw, class_balanced_pass
from lnlbench.blocks.schedules import set_learning_rate, step_decay
from lnlbench_clipcleaner.prompts import class_texts, has_facts
from lnlbench_clipcleaner.selection import (
    consistency_scores,
    fill_empty_classes,
    induced_probabilities,
    loss_scores,
    zero_shot_probabilities,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

_log = logging.getLogger(__name__)

_CIFAR_VIEW = ViewRecipe(ops=(RandomCrop(padding=4), RandomFlip(), AutoAugment(policy="cifar10")))
PAPER_VIEWS: Mapping[str, ViewRecipe] = MappingProxyType(
    {
        "cifar10": _CIFAR_VIEW,
        "cifar100": _CIFAR_VIEW,
        "red-mini-imagenet": _CIFAR_VIEW,
        "animal10n": ViewRecipe(
            ops=(
                RandomCrop(padding=8),
                RandomFlip(),
                RandAugment(
                    pool=(
                        "invert",
                        "cutout",
                        "sharpness",
                        "autocontrast",
                        "posterise",
                        "shear-x",
                        "shear-y",
                        "translate-x",
                        "translate-y",
                        "rotate",
                        "equalise",
                        "contrast",
                        "colour",
                        "solarise",
                        "brightness",
                    ),
                    law="autoaugment",
                    levels=(1, 9),
                    top=9,
                    fill=(125, 122, 113),
                ),
            )
        ),
        "mini-webvision": ViewRecipe(ops=(RandomResizedCrop(), RandomFlip(), AutoAugment(policy="imagenet"))),
        "clothing1m": ViewRecipe(ops=(RandomCrop(padding=0), RandomFlip(), AutoAugment(policy="imagenet"))),
    }
)
"""The released code's training views, by dataset."""


class ClipCleaner(Method["ClipCleaner.Config"]):
    """A frozen vision-language model selects clean samples once; training then absorbs and relabels confident ones.

    Paper: Chen Feng, Georgios Tzimiropoulos, Ioannis Patras, *CLIPCleaner: Cleaning Noisy Labels with CLIP*, ACM MM
    2024. Equation numbers refer to it; "released code" is the authors' PyTorch release.

    ========================  ==================  ========================================================
    symbol of the paper       here                meaning
    ========================  ==================  ========================================================
    g(x), h(t)                features_NE, ...    image and text features of the frozen model
    P(y | x), zero-shot       probs_NC            the zero-shot classifier's probabilities (eq. 4)
    P(y | x), induced         probs_NC            those of a classifier fitted to g(x) and the given labels
    theta_cons, theta_gmm     the same            thresholds of the consistency and of the loss selector
    theta_r, theta_r'         theta_absorb,       thresholds of MixFix
                              theta_relabel
    f(x)                      network             the classifier in training
    y_i                       task.labels         given labels
    ========================  ==================  ========================================================

    Shapes: N training set, n the part of it in use, B batch, C classes, E width of the common space, P prompts.
    """

    class Config(MethodConfig):
        """The options; the paper's symbol stands in parentheses."""

        encoder: str = Field(description="The frozen vision-language model by name.")
        prompts: Literal["class-specific", "single"] = Field(
            "class-specific", description="Texts of a class: one per fact about it, or its name alone."
        )
        tau: float = Field(0.07, gt=0.0, description="Temperature of the zero-shot classifier.")
        zero_shot: bool = Field(True, description="Select by the zero-shot classifier's probabilities.")
        induced: bool = Field(True, description="Select by the probabilities of a classifier fitted to the features.")
        induced_classifier: Literal["logistic", "knn"] = Field(
            "logistic", description="That classifier: logistic regression or nearest neighbours."
        )
        neighbours: int = Field(20, ge=1, description="Nearest neighbours that vote, where they do.")
        consistency: bool = Field(True, description="Select by the ratio of the label's to the largest probability.")
        theta_cons: float = Field(0.8, ge=0.0, description="Least ratio (theta_cons).")
        loss_gmm: bool = Field(True, description="Select by a mixture of two Gaussians fitted to each class's losses.")
        theta_gmm: float = Field(0.5, ge=0.0, description="Least posterior of the small-loss Gaussian (theta_gmm).")
        empty_class_order: Literal["best", "released"] = Field(
            "best", description="Which samples fill a class left empty: of the highest or of the lowest scores."
        )
        theta_absorb: float = Field(
            0.7, ge=0.0, description="Least confidence to absorb a sample (theta_r); 1 and more: never."
        )
        theta_relabel: float = Field(
            0.8, ge=0.0, description="Least confidence to relabel a sample (theta_r'); 1 and more: never."
        )
        protect_initial: bool = Field(False, description="Never relabel what was selected before training.")
        beta: float = Field(1.0, ge=0.0, description="Both parameters of mixup's Beta distribution; 0: no mixup.")
        class_balanced: bool = Field(True, description="Show every class equally often.")
        view: Literal["paper", "strong", "weak"] = Field(
            "strong", description="Training images: as in the paper's code, or the suite's strong or weak view."
        )
        iterations: int | None = Field(None, ge=1, description="Steps per epoch; N / B if not given.")
        learning_rate: float = Field(0.02, gt=0.0, description="Initial learning rate of SGD.")
        momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Momentum of SGD (no Nesterov).")
        weight_decay: float = Field(5e-4, ge=0.0, description="Weight decay of SGD, on all parameters.")
        lr_milestones: tuple[int, ...] = Field(description="Epochs from which on the learning rate is lower.")
        lr_factor: float = Field(0.1, gt=0.0, le=1.0, description="What it is multiplied by at each of them.")
        draw_size: int | None = Field(
            None, ge=1, description="Use a class-balanced draw of so many images, made once, instead of all."
        )

        @model_validator(mode="after")
        def _something_selects(self) -> ClipCleaner.Config:
            if not (self.zero_shot or self.induced):
                raise ValueError("zero_shot and induced are both off: there are no probabilities to select by")
            if not (self.consistency or self.loss_gmm):
                raise ValueError("consistency and loss_gmm are both off: nothing selects")
            return self

    network: nn.Module

    @classmethod
    def preset(cls, task: TaskInfo) -> Config:
        """Return the published hyper-parameters; for data the paper does not cover, our own choice. Asks nothing."""
        common: dict[str, Any] = {
            "encoder": task.default_encoder,
            "prompts": "class-specific" if has_facts(task.dataset) else "single",
            "backbone": task.default_backbone,
        }
        if task.dataset in ("cifar10", "cifar100"):
            common["backbone"] = "preact-resnet18"
            return cls.Config(**common, epochs=300, batch_size=128, lr_milestones=(200, 250), view="paper")
        if task.dataset == "animal10n":
            return cls.Config(
                **common,
                epochs=300,
                batch_size=128,
                lr_milestones=(200, 250),
                view="paper",
                beta=0.5,
                theta_relabel=0.95,
            )
        if task.dataset == "red-mini-imagenet":
            return cls.Config(
                **common,
                epochs=300,
                batch_size=64,
                lr_milestones=(200, 250),
                # The paper's images have 32 pixels, and so has its view.
                view="paper" if task.image_size == 32 else "strong",
                beta=4.0,
                theta_absorb=0.8,
                theta_relabel=0.95,
            )
        if task.dataset == "mini-webvision":
            common["backbone"] = "timm:inception_resnet_v2"
            return cls.Config(
                **common,
                epochs=150,
                batch_size=64,
                lr_milestones=(80, 120),
                view="paper",
                beta=0.5,
                theta_relabel=1.0,
                theta_cons=1.0,
            )
        if task.dataset == "clothing1m":
            common["backbone"] = "timm:resnet50+pretrained"
            return cls.Config(
                **common,
                epochs=80,
                batch_size=64,
                learning_rate=0.002,
                weight_decay=1e-3,
                lr_milestones=(40, 60),
                view="paper",
                beta=0.5,
                theta_relabel=0.95,
                draw_size=64_000,
            )
        return cls.Config(
            **common,
            epochs=task.default_epochs,
            batch_size=64,
            lr_milestones=(max(1, 2 * task.default_epochs // 3), max(1, 5 * task.default_epochs // 6)),
        )

    # ---------------------------------------------------------------- CLIPCleaner: once, before training

    def select(self, task: Task, run: Run) -> Selection:
        """Select what every selector in use finds clean, by every probability in use (eq. 4 to 6)."""
        return self._select_of(task, run, self._draw(task, run))

    def _select_of(self, task: Task, run: Run, index_n: Tensor) -> Selection:
        config = self.config
        labels_n, seed = task.labels[index_n], run.rng("clipcleaner gmm").seed()
        classifiers = list(self.probabilities(task, index_n))
        posteriors = [loss_scores(probs_nC, labels_n, seed) for probs_nC in classifiers]
        selectors: list[tuple[Tensor, float]] = []
        if config.consistency:
            selectors += [(consistency_scores(probs_nC, labels_n), config.theta_cons) for probs_nC in classifiers]
        if config.loss_gmm:
            selectors += [(posterior_n, config.theta_gmm) for posterior_n in posteriors]
        selected_n = torch.stack([scores_n >= threshold for scores_n, threshold in selectors]).all(dim=0)
        clean_probs_n = torch.stack([scores_n for scores_n, _ in selectors]).prod(dim=0)
        # The first classifier is the zero-shot one, whose posterior fills empty classes in the released code too.
        selected_n, filled = fill_empty_classes(
            selected_n, posteriors[0], labels_n, task.num_classes, config.empty_class_order
        )
        if filled:
            _log.warning(
                "no sample of %d of %d classes was selected; they were filled with a few (classes %s)",
                len(filled),
                task.num_classes,
                ", ".join(map(str, filled)),
            )
        selected_N = torch.zeros(task.num_train, dtype=torch.bool, device=task.device)
        clean_probs_N = torch.zeros(task.num_train, device=task.device)
        selected_N[index_n], clean_probs_N[index_n] = selected_n, clean_probs_n
        return Selection(clean_probs_N, selected_N)

    def probabilities(self, task: Task, index_n: Tensor) -> Iterator[Tensor]:
        """Yield ``probs_nC`` of the classifiers in use, the zero-shot one first."""
        config = self.config
        encoder = task.encoder(config.encoder)
        features_nE = encoder.training_features()[index_n]
        if config.zero_shot:
            texts = class_texts(task.info.dataset, task.info.class_names, config.prompts)
            text_features_PE = encoder.text_features([text for of_class in texts for text in of_class])
            class_of_prompt_P = torch.tensor([label for label, of_class in enumerate(texts) for _ in of_class])
            yield zero_shot_probabilities(
                features_nE, text_features_PE, class_of_prompt_P, task.num_classes, config.tau
            )
        if config.induced:
            yield induced_probabilities(
                features_nE, task.labels[index_n], task.num_classes, config.induced_classifier, config.neighbours
            )

    def _draw(self, task: Task, run: Run) -> Tensor:
        if self.config.draw_size is None:
            return torch.arange(task.num_train, device=task.device)
        generator = run.rng("clipcleaner draw").torch
        return class_balanced_draw(task.labels, self.config.draw_size, task.num_classes, generator)

    # ---------------------------------------------------------------- MixFix: training

    def fit(self, task: Task, run: Run) -> None:
        """Select, then train on a set that grows by absorbing and relabelling."""
        config = self.config
        index_n = self._draw(task, run)
        initial = self._select_of(task, run, index_n)
        self.network = task.network("net", config.backbone)
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        training_set = {"labels": task.labels.clone(), "active": initial.selected.clone()}
        run.track(network=self.network, optimizer=optimizer, training_set=training_set)
        steps = config.iterations or max(1, len(index_n) // config.batch_size)
        for epoch in run.epochs(config.epochs):
            labels_N, active_N = training_set["labels"], training_set["active"]
            self._report(task, run, initial, labels_N, active_N)
            rate = step_decay(config.learning_rate, epoch, drops=config.lr_milestones, factor=config.lr_factor)
            set_learning_rate(optimizer, rate)
            self.train_epoch(task, run, optimizer, labels_N, active_N, steps)
            # With both thresholds off nothing can change, and an evaluation would be for nothing.
            if min(config.theta_absorb, config.theta_relabel) < 1.0:
                probs_nC = self.evaluate(task, index_n)
                labels_n, active_n = self.fix(probs_nC, task.labels[index_n], initial.selected[index_n])
                labels_N[index_n], active_N[index_n] = labels_n, active_n

    def _report(self, task: Task, run: Run, initial: Selection, labels_N: Tensor, active_N: Tensor) -> None:
        relabelled_N = labels_N != task.labels
        run.log(
            num_active=active_N.sum(),
            num_absorbed=(active_N & ~relabelled_N & ~initial.selected).sum(),
            num_relabelled=relabelled_N.sum(),
        )
        run.report(
            # What was never looked at has no clean probability to be scored.
            clean_probs=initial.clean_probs if self.config.draw_size is None else None,
            selected=active_N & ~relabelled_N,
            pseudo_labels=labels_N.where(relabelled_N, -1),
        )

    def train_epoch(
        self,
        task: Task,
        run: Run,
        optimizer: torch.optim.Optimizer,
        labels_N: Tensor,
        active_N: Tensor,
        steps: int,
    ) -> None:
        """Train for some steps on the active samples with their current labels."""
        stream = run.rng("mixup")
        weight_generator, partner_generator = stream.numpy, stream.torch
        self.network.train()
        for batch in islice(self.batches(task, run, labels_N, active_N), steps):
            loss = self.loss(batch.images, labels_N[batch.index], task.num_classes, weight_generator, partner_generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            run.log(loss=loss.detach())

    def batches(self, task: Task, run: Run, labels_N: Tensor, active_N: Tensor) -> Iterator[Batch]:
        """Yield batches of active samples without end, all classes equally often in each pass."""
        config = self.config
        # The host waits for the device here, once a pass and never in a step: sizes must be known to cut batches.
        index_n = active_N.nonzero().flatten()
        views = (self._view(task.info),)
        if not config.class_balanced:
            yield from task.loader("net", batch_size=config.batch_size, views=views, index=index_n).forever()
        generator = run.rng("sampler").torch
        while True:
            positions = class_balanced_pass(labels_N[index_n], task.num_classes, generator)
            yield from task.loader(
                "net", batch_size=config.batch_size, views=views, index=index_n[positions], shuffle=False
            )

    def loss(
        self,
        images_BCHW: Tensor,
        labels_B: Tensor,
        num_classes: int,
        weight_generator: np.random.Generator,
        partner_generator: torch.Generator,
    ) -> Tensor:
        """Return the cross-entropy with mixed one-hot labels on mixed images."""
        targets_BC = torch.zeros(len(labels_B), num_classes, device=labels_B.device)
        targets_BC = targets_BC.scatter_(1, labels_B.unsqueeze(1), 1.0)
        if self.config.beta > 0:
            weight = draw_mixup_weight(self.config.beta, weight_generator)
            partners_B = torch.randperm(len(labels_B), generator=partner_generator, device=labels_B.device)
            images_BCHW, targets_BC = mixup(images_BCHW, targets_BC, weight, partners_B)
        return soft_cross_entropy(self.network(images_BCHW), targets_BC)

    def evaluate(self, task: Task, index_n: Tensor) -> Tensor:
        """Return ``probs_nC`` of un-augmented images, network in eval mode."""
        self.network.eval()
        loader = task.loader(
            "evaluate", batch_size=4 * self.config.batch_size, views=("plain",), index=index_n, shuffle=False
        )
        with torch.no_grad():
            return torch.cat([self.network(batch.images).softmax(dim=1) for batch in loader])

    def fix(self, probs_nC: Tensor, given_n: Tensor, initial_n: Tensor) -> tuple[Tensor, Tensor]:
        """Absorb samples that agree confidently with their given labels, relabel those that disagree more so.

        It starts from the given labels each time: what an earlier epoch relabelled is forgotten.

        Args:
            probs_nC: The network's probabilities.
            given_n: Given labels.
            initial_n: What was selected before training, and stays active.

        Returns:
            The labels to train with, and which samples are active.
        """
        config = self.config
        confidence_n, predicted_n = probs_nC.max(dim=1)
        agrees_n = predicted_n == given_n
        # A threshold of 1 is one that float32 probabilities can reach; it stands for never.
        absorbed_n = agrees_n & (confidence_n >= config.theta_absorb) & (config.theta_absorb < 1.0)
        relabelled_n = ~agrees_n & (confidence_n >= config.theta_relabel) & (config.theta_relabel < 1.0)
        if config.protect_initial:
            relabelled_n &= ~initial_n
        return predicted_n.where(relabelled_n, given_n), initial_n | absorbed_n | relabelled_n

    def _view(self, task: TaskInfo) -> str | ViewRecipe:
        if self.config.view != "paper":
            return self.config.view
        if task.dataset not in PAPER_VIEWS:
            raise UsageError(f"the paper has no training view for {task.dataset!r}; use --set view=strong")
        return PAPER_VIEWS[task.dataset]

    def predict(self, images: Tensor) -> Tensor:
        """Return the network's logits."""
        logits_BC: Tensor = self.network(images)
        return logits_BC
