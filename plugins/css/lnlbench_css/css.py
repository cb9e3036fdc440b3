"""CSS (Miao et al., 2023): classifier and CLIP select clean samples together. The README lists every departure."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator

from lnlbench.api import Batch, Method, MethodConfig, Run, Stream, Task, TaskInfo
from lnlbench.blocks.contrastive import nt_xent
from lnlbench.blocks.fixmatch import pseudo_label_loss
from lnlbench.blocks.history import LossHistory
from lnlbench.blocks.losses import class_balance_divergence, cross_entropy_per_sample, negative_entropy
from lnlbench.blocks.mixture import clean_probabilities, min_max_normalise
from lnlbench.blocks.mixture2d import fit_gaussian_pair_2d
from lnlbench.blocks.sampling import class_balanced_draw
from lnlbench.blocks.schedules import set_learning_rate, step_decay
from lnlbench_css.pretraining import pretrained, projection_head
from lnlbench_css.prompt import Prompt, StoredViews, initial_context, stored_views

if TYPE_CHECKING:
    from torch import Tensor, nn

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifier:
    """The trained network with all that belongs to it."""

    network: nn.Module
    head: nn.Module
    """What features pass through before the contrastive loss; nothing, unless asked for."""
    optimizer: torch.optim.Optimizer
    history: LossHistory
    """Normalised per-sample losses of the latest epochs."""


@dataclass(frozen=True)
class Clip:
    """The frozen encoder with its learnable prompt and all that belongs to it."""

    prompt: Prompt
    optimizer: torch.optim.Optimizer
    stored: StoredViews | None
    zero_shot: Tensor
    """``classes_N``: what the encoder takes the images for without any training."""


@dataclass(frozen=True)
class Division:
    """The two parts of the training set in one epoch."""

    labelled: Tensor
    """``index_n``: X, the samples found clean."""
    unlabelled: Tensor
    """``index_n``: U, the others."""


class Css(Method["Css.Config"]):
    """One classifier and CLIP's text prompt select clean samples together, and both learn from the selection.

    Paper: Qing Miao, Xiaohe Wu, Chao Xu, Yanli Ji, Wangmeng Zuo, Yiwen Guo, Zhaopeng Meng, *Learning with Noisy Labels
    Using Collaborative Sample Selection and Contrastive Semi-Supervised Learning*, arXiv 2310.15533, 2023.

    ==========================  ======================  ==================================================
    symbol of the paper         here                    meaning
    ==========================  ======================  ==================================================
    f, h                        embed, classify         features and linear layer of the network
    V_1 .. V_M                  context                 learnable vectors before every class name
    l_i, p_i^CLIP               losses_n, probs_n       loss, and CLIP's probability of the given label
    w_i                         clean_probs_n           probability that the given label of sample i is right
    epsilon                     clean_threshold         a sample is in X iff w_i >= epsilon
    X, U                        labelled, unlabelled    the two parts of the training set
    delta                       confidence              pseudo-labels count above it
    tau                         temperature             of the contrastive loss
    L_X, L_U, L_con, L_reg      loss_labelled, ...      supervised, pseudo-label, contrastive, balance loss
    lambda_u, _c, _r            lambda_u, _c, _r        weights of the last three
    ==========================  ======================  ==================================================

    Shapes: N training set, n samples of an epoch, B batch, C classes, D features.
    """

    class Config(MethodConfig):
        """The options; the paper's symbol stands in parentheses."""

        batch_size: int = Field(ge=1, description="Labelled and, again, unlabelled images per step; warm-up: twice.")
        encoder: str = Field(description="Vision-language encoder (g_I, g_T).")

        pretraining_epochs: int = Field(ge=0, description="Epochs of contrastive pre-training without labels.")
        pretraining_batch_size: int = Field(1024, ge=2, description="Images per step of pre-training.")
        pretraining_learning_rate: float = Field(0.8, gt=0.0, description="Of SGD in pre-training, at the start.")
        pretraining_weight_decay: float = Field(1e-4, ge=0.0, description="Of SGD in pre-training.")
        pretraining_view: str = Field("simclr", description="'simclr', or a view of the suite by name.")

        warmup_epochs: int = Field(ge=0, description="Epochs of plain training before the first selection.")
        warmup_penalty: bool = Field(False, description="Add the negative entropy to the warm-up loss.")
        learning_rate: float = Field(0.02, gt=0.0, description="Initial learning rate of SGD.")
        momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Momentum of SGD (no Nesterov).")
        weight_decay: float = Field(5e-4, ge=0.0, description="Weight decay of SGD, on all parameters.")
        lr_drop_epoch: int = Field(ge=0, description="First epoch with learning rates multiplied by lr_drop_factor.")
        lr_drop_factor: float = Field(0.1, gt=0.0, le=1.0, description="Factor of the learning-rate drop.")
        draw_size: int | None = Field(
            None, ge=1, description="Train on class-balanced draws of so many images per epoch."
        )
        epoch_length: Literal["all", "labelled", "longer"] = Field(
            "all", description="Steps: all images / 2 batch_size, one pass over X, or one over the larger of X and U."
        )

        selection: Literal["2d", "weighted-1d", "loss", "clip"] = Field(
            "2d", description="Mixture in the plane; two on lines, weighted; or one criterion alone ('loss': no CLIP)."
        )
        covariance: Literal["full", "tied"] = Field("full", description="Each Gaussian its own covariance, or one.")
        beta: float = Field(0.2, ge=0.0, le=1.0, description="Weight of the loss in 'weighted-1d' (beta).")
        clean_threshold: float = Field(0.5, ge=0.0, le=1.0, description="Clean from this probability on (epsilon).")
        loss_average_epochs: int = Field(1, ge=1, description="Epochs over which losses are averaged for the mixture.")
        gmm_max_iter: int = Field(10, ge=1, description="EM iterations of the mixture.")
        gmm_tol: float = Field(1e-2, gt=0.0, description="EM stops when the mean log-likelihood rises by less.")
        gmm_reg_covar: float = Field(5e-4, gt=0.0, description="Added to the variances of the mixture.")

        confidence: float = Field(0.95, ge=0.0, le=1.0, description="Pseudo-labels count above it (delta).")
        pseudo_label: Literal["soft", "hard"] = Field("soft", description="All probabilities, or the top class only.")
        lambda_u: float = Field(0.5, ge=0.0, description="Weight of the pseudo-label losses (lambda_u).")
        lambda_c: float = Field(0.025, ge=0.0, description="Weight of the contrastive loss (lambda_c).")
        lambda_r: float = Field(1.0, ge=0.0, description="Weight of the balance loss (lambda_r).")
        temperature: float = Field(0.1, gt=0.0, description="Of both contrastive losses (tau).")
        contrastive_views: Literal["weak", "strong"] = Field("weak", description="Views in the contrastive loss.")
        contrastive_symmetric: bool = Field(False, description="Both views are anchors in the contrastive loss.")
        projection_head: bool = Field(False, description="Two layers between features and contrastive loss.")

        prompt_learning: Literal["full", "supervised", "off"] = Field(
            "full", description="Train the prompt on X and U, on X alone, or not at all."
        )
        n_ctx: int = Field(16, ge=0, description="Context tokens (M); 0: as many as 'a photo of a' has.")
        context_init: Literal["phrase", "random"] = Field("phrase", description="What the context starts from.")
        prompt_learning_rate: float = Field(0.002, gt=0.0, description="Initial learning rate of the prompt's SGD.")
        prompt_momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Momentum of the prompt's SGD.")
        prompt_weight_decay: float = Field(5e-4, ge=0.0, description="Weight decay of the prompt's SGD.")
        prompt_update_every: int = Field(1, ge=1, description="Train the prompt in every so-manieth step.")
        prompt_views: Literal["computed", "cached"] = Field(
            "computed", description="Encode augmented views in each step, or draw from stored ones (faster, not exact)."
        )
        prompt_views_stored: int = Field(4, ge=1, description="Stored views per image and kind, if 'cached'.")

        @model_validator(mode="after")
        def _draws_have_no_history(self) -> Css.Config:
            if self.draw_size is not None and self.loss_average_epochs > 1:
                raise ValueError("draw_size and loss_average_epochs exclude each other: each epoch has other images")
            return self

    network: nn.Module

    @classmethod
    def preset(cls, task: TaskInfo) -> Config:
        """Return the published hyper-parameters; for data the paper does not cover, our own choice. Asks nothing."""
        if task.dataset in ("cifar10", "cifar100"):
            return cls.Config(
                epochs=300,
                batch_size=64,
                backbone="preact-resnet18",
                encoder=task.default_encoder,
                pretraining_epochs=800,
                warmup_epochs=30 if task.dataset == "cifar100" else 10,
                lr_drop_epoch=150,
            )
        if task.dataset == "clothing1m":
            return cls.Config(
                epochs=80,
                batch_size=32,
                backbone="timm:resnet50+pretrained",
                encoder=task.default_encoder,
                pretraining_epochs=0,
                warmup_epochs=1,
                learning_rate=0.001,
                weight_decay=1e-3,
                lr_drop_epoch=40,
                draw_size=32_000,
            )
        if task.dataset == "mini-webvision":
            return cls.Config(
                epochs=80,
                batch_size=32,
                backbone="timm:inception_resnet_v2",
                encoder=task.default_encoder,
                pretraining_epochs=0,
                warmup_epochs=1,
                learning_rate=0.01,
                lr_drop_epoch=40,
            )
        return cls.Config(
            epochs=task.default_epochs,
            batch_size=32,
            backbone=task.default_backbone,
            encoder=task.default_encoder,
            pretraining_epochs=task.default_epochs if task.image_size <= 64 else 0,
            pretraining_batch_size=256,
            pretraining_learning_rate=0.2,
            pretraining_view="strong",
            warmup_epochs=max(1, task.default_epochs // 8),
            lr_drop_epoch=max(1, task.default_epochs // 2),
            # Some hundred steps are all that the prompt has on the digits.
            prompt_learning_rate=0.1 if task.dataset == "digits" else 0.002,
        )

    def fit(self, task: Task, run: Run) -> None:
        """Pre-train, warm up, then select and train in turn."""
        config = self.config
        classifier = self.build_classifier(task, run)
        clip = self.build_clip(task, run) if config.selection != "loss" else None
        self.network = classifier.network
        run.track(
            network=classifier.network,
            head=classifier.head,
            optimizer=classifier.optimizer,
            history=classifier.history,
        )
        if clip is not None:
            run.track(prompt=clip.prompt.context, prompt_optimizer=clip.optimizer)
        for epoch in run.epochs(config.epochs):
            self.set_learning_rates(epoch, classifier, clip)
            if epoch < config.warmup_epochs:
                self.warm_up(task, run, classifier)
                continue
            division = self.divide(task, run, classifier, clip)
            self.train_epoch(task, run, classifier, clip, division)

    def build_classifier(self, task: Task, run: Run) -> Classifier:
        """Build the network, its features pre-trained, and its optimiser."""
        config = self.config
        network = task.network("net", config.backbone)
        if config.pretraining_epochs:
            state = pretrained(
                task,
                run,
                backbone=config.backbone,
                epochs=config.pretraining_epochs,
                batch_size=config.pretraining_batch_size,
                learning_rate=config.pretraining_learning_rate,
                momentum=config.momentum,
                weight_decay=config.pretraining_weight_decay,
                temperature=config.temperature,
                view=config.pretraining_view,
            )
            network.load_state_dict(state)
        num_features = int(network.num_features)  # type: ignore[arg-type]
        head = projection_head(num_features) if config.projection_head else torch.nn.Identity()
        head = head.to(task.device)
        optimizer = torch.optim.SGD(
            [*network.parameters(), *head.parameters()],
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        return Classifier(network, head, optimizer, LossHistory(config.loss_average_epochs))

    def build_clip(self, task: Task, run: Run) -> Clip:
        """Build the prompt and its optimiser; the encoder itself stays as it is."""
        config = self.config
        encoder = task.encoder(config.encoder)
        context_MD = initial_context(encoder, config.n_ctx, config.context_init, run.rng("context"))
        prompt = Prompt(encoder, task.info.class_names, context_MD)
        optimizer = torch.optim.SGD(
            prompt.context.parameters(),
            lr=config.prompt_learning_rate,
            momentum=config.prompt_momentum,
            weight_decay=config.prompt_weight_decay,
        )
        stored = None
        if config.prompt_views == "cached" and config.prompt_learning == "full":
            stored = stored_views(task, run, encoder, config.prompt_views_stored, 4 * config.batch_size)
        return Clip(prompt, optimizer, stored, prompt.zero_shot_classes())

    def set_learning_rates(self, epoch: int, classifier: Classifier, clip: Clip | None) -> None:
        """Lower both learning rates at the epoch of the drop."""
        config = self.config
        rates = [(classifier.optimizer, config.learning_rate)]
        if clip is not None:
            rates.append((clip.optimizer, config.prompt_learning_rate))
        for optimizer, initial in rates:
            rate = step_decay(initial, epoch, drops=[config.lr_drop_epoch], factor=config.lr_drop_factor)
            set_learning_rate(optimizer, rate)

    def warm_up(self, task: Task, run: Run, classifier: Classifier) -> None:
        """Make one pass over all samples with cross-entropy on the given labels."""
        classifier.network.train()
        index_n = self.draw(task, run)
        for batch in task.loader("warm-up", batch_size=2 * self.config.batch_size, index=index_n):
            logits_BC = classifier.network(batch.images)
            loss = cross_entropy_per_sample(logits_BC, batch.labels).mean()
            if self.config.warmup_penalty:
                loss = loss + negative_entropy(logits_BC)
            _descend(classifier.optimizer, loss)
            run.log(loss_warmup=loss.detach())

    def draw(self, task: Task, run: Run) -> Tensor:
        """Return ``index_n``, this epoch's samples: all of them, or a class-balanced draw."""
        if self.config.draw_size is None:
            return torch.arange(task.num_train, device=task.device)
        return class_balanced_draw(task.labels, self.config.draw_size, task.num_classes, run.rng("draw").torch)

    # ---------------------------------------------------------------- collaborative sample selection

    def divide(self, task: Task, run: Run, classifier: Classifier, clip: Clip | None) -> Division:
        """Split the epoch's samples by loss and CLIP's probability of the given label together."""
        config = self.config
        index_n = self.draw(task, run)
        classifier.history.append(min_max_normalise(self.sample_losses(task, classifier, index_n)))
        losses_n = classifier.history.mean()
        probs_n = None if clip is None else self.given_label_probs(task, run, clip, index_n)
        clean_probs_n, score_n = self.clean_probs(run, losses_n, probs_n)
        clean_n = clean_probs_n >= config.clean_threshold

        selected_N = torch.zeros(task.num_train, dtype=torch.bool, device=task.device)
        selected_N[index_n] = clean_n
        if config.draw_size is None:
            run.report(clean_probs=score_n, selected=selected_N)
            # Each criterion by itself, so that what they gain together can be seen.
            run.report("loss", clean_probs=1.0 - losses_n)
            if probs_n is not None:
                run.report("clip", clean_probs=probs_n)
        else:
            # A sample that was not looked at has no clean probability to be scored.
            run.report(selected=selected_N)
        # The host waits for the device here, once an epoch and never in a step: sizes must be known to cut batches.
        return Division(labelled=index_n[clean_n], unlabelled=index_n[~clean_n])

    def sample_losses(self, task: Task, classifier: Classifier, index_n: Tensor) -> Tensor:
        """Return ``losses_n`` of un-augmented images with their given labels, network in eval mode."""
        classifier.network.eval()
        loader = task.loader(
            "losses", batch_size=8 * self.config.batch_size, views=("plain",), index=index_n, shuffle=False
        )
        with torch.no_grad():
            return torch.cat(
                [cross_entropy_per_sample(classifier.network(batch.images), batch.labels) for batch in loader]
            )

    def given_label_probs(self, task: Task, run: Run, clip: Clip, index_n: Tensor) -> Tensor:
        """Return ``probs_n``: the probability CLIP gives to the given labels, with the current prompt (eq. 2)."""
        logits_NC = clip.prompt.training_logits()
        run.log(prompt_agreement=(logits_NC.argmax(dim=1) == clip.zero_shot).float().mean())
        probs_NC = logits_NC[index_n].softmax(dim=1)
        return probs_NC.gather(1, task.labels[index_n].unsqueeze(1)).squeeze(1)

    def clean_probs(self, run: Run, losses_n: Tensor, probs_n: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ``clean_probs_n``, the posterior of the clean component of a mixture of two Gaussians.

        And a score that ranks samples as it does, also where it is 0 or 1 exactly.
        """
        config = self.config
        seed = run.rng("gmm").seed()
        em = {"max_iter": config.gmm_max_iter, "tol": config.gmm_tol, "reg_covar": config.gmm_reg_covar}
        if probs_n is None:
            by_loss_n = clean_probabilities(losses_n, **em, random_state=seed)  # type: ignore[arg-type]
            return by_loss_n, by_loss_n
        if config.selection == "2d":
            pair = fit_gaussian_pair_2d(losses_n, probs_n, covariance=config.covariance, **em, random_state=seed)  # type: ignore[arg-type]
            (clean_loss, clean_prob), (noisy_loss, noisy_prob) = pair.means.tolist()
            run.log(clean_loss=clean_loss, clean_prob=clean_prob, noisy_loss=noisy_loss, noisy_prob=noisy_prob)
            if not pair.agrees:
                _log.warning("loss and CLIP disagree which component is clean: means %s", pair.means.round(3).tolist())
            return pair.clean_probs(losses_n, probs_n), pair.clean_log_odds(losses_n, probs_n)
        # On a line the smaller mean is the clean one.
        by_clip_n = clean_probabilities(1.0 - probs_n, **em, random_state=seed)  # type: ignore[arg-type]
        if config.selection == "clip":
            return by_clip_n, by_clip_n
        by_loss_n = clean_probabilities(losses_n, **em, random_state=seed)  # type: ignore[arg-type]
        weighted_n = config.beta * by_loss_n + (1.0 - config.beta) * by_clip_n
        return weighted_n, weighted_n

    # ---------------------------------------------------------------- contrastive semi-supervised learning

    def train_epoch(self, task: Task, run: Run, classifier: Classifier, clip: Clip | None, division: Division) -> None:
        """Train the classifier, and CLIP's prompt beside it, on the labelled and the unlabelled part."""
        config = self.config
        labelled, unlabelled = division.labelled, division.unlabelled
        run.log(num_labelled=float(len(labelled)))
        if not len(labelled):
            _log.warning("no sample counts as clean: this epoch trains without labels")
        if not len(unlabelled):
            _log.warning("every sample counts as clean: this epoch trains without pseudo-labels")
        labelled_views = ("weak", "weak") if config.contrastive_views == "weak" else ("weak", "strong", "strong")
        labelled_batches = self.batches(task, "labelled", labelled, labelled_views)
        # The first view of an unlabelled image makes the pseudo-label, and the last one, which is strong, learns it.
        unlabelled_batches = self.batches(task, "unlabelled", unlabelled, ("weak", config.contrastive_views, "strong"))

        classifier.network.train()
        learning = clip if config.prompt_learning != "off" else None
        for step in range(self.num_steps(division)):
            x, u = next(labelled_batches), next(unlabelled_batches)
            loss, parts = self.classifier_loss(classifier, x, u)
            _descend(classifier.optimizer, loss)
            run.log(**parts)
            if learning is not None and step % config.prompt_update_every == 0:
                loss, parts = self.prompt_loss(learning, x, u, run.rng("prompt views"))
                _descend(learning.optimizer, loss)
                run.log(**parts)

    def batches(self, task: Task, role: str, index_n: Tensor, views: tuple[str, ...]) -> Iterator[Batch]:
        """Hand out batches for ever; empty ones where there is no sample."""
        if len(index_n):
            return task.loader(role, index=index_n, views=views, batch_size=self.config.batch_size).forever()
        size = task.info.image_size
        images_BCHW = torch.empty(0, task.info.channels, size, size, device=task.device)
        return repeat(Batch(index_n, task.labels[index_n], (images_BCHW,) * len(views)))

    def num_steps(self, division: Division) -> int:
        """Return the steps of an epoch."""
        num_labelled, num_unlabelled = len(division.labelled), len(division.unlabelled)
        if self.config.epoch_length == "labelled":
            return math.ceil(num_labelled / self.config.batch_size)
        if self.config.epoch_length == "longer":
            return math.ceil(max(num_labelled, num_unlabelled) / self.config.batch_size)
        return math.ceil((num_labelled + num_unlabelled) / (2 * self.config.batch_size))

    def classifier_loss(self, classifier: Classifier, x: Batch, u: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_D of one step and its parts for the log. All views share one forward pass."""
        config = self.config
        embed: Callable[[Tensor], Tensor] = classifier.network.embed  # type: ignore[assignment]
        classify: Callable[[Tensor], Tensor] = classifier.network.classify  # type: ignore[assignment]
        sizes = [len(view) for view in (*x.views, *u.views)]
        features_BD = embed(torch.cat([*x.views, *u.views]))
        features = torch.split(features_BD, sizes)
        logits = torch.split(classify(features_BD), sizes)
        first_u = len(x.views)
        x_weak, u_weak, u_strong = logits[0], logits[first_u], logits[-1]

        loss_labelled = cross_entropy_per_sample(x_weak, x.labels).sum() / max(len(x.labels), 1)
        loss_unlabelled, kept = pseudo_label_loss(
            u_weak, u_strong, config.confidence, hard=config.pseudo_label == "hard"
        )
        one, other = (0, 1) if config.contrastive_views == "weak" else (1, 2)
        loss_contrastive = nt_xent(
            classifier.head(torch.cat([features[one], features[first_u + one]])),
            classifier.head(torch.cat([features[other], features[first_u + other]])),
            config.temperature,
            symmetric=config.contrastive_symmetric,
        )
        loss_balance = class_balance_divergence(torch.cat([x_weak, u_weak]))
        loss = (
            loss_labelled
            + config.lambda_u * loss_unlabelled
            + config.lambda_c * loss_contrastive
            + config.lambda_r * loss_balance
        )
        return loss, {
            "loss": loss.detach(),
            "loss_labelled": loss_labelled.detach(),
            "loss_unlabelled": loss_unlabelled.detach(),
            "loss_contrastive": loss_contrastive.detach(),
            "loss_balance": loss_balance.detach(),
            "pseudo_labelled": kept,
        }

    def prompt_loss(self, clip: Clip, x: Batch, u: Batch, stream: Stream) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L_P of one step and its parts for the log. Gradient flows to the context only."""
        config, prompt = self.config, clip.prompt
        class_features_CE = prompt.class_features()
        x_features_BE = prompt.encoder.training_features()[x.index]
        x_logits_BC = prompt.logits(x_features_BE, class_features_CE)
        loss = cross_entropy_per_sample(x_logits_BC, x.labels).sum() / max(len(x.labels), 1)
        parts = {"prompt_loss_labelled": loss.detach()}
        if config.prompt_learning == "full" and len(u.index):
            weak_BE, strong_BE = prompt.view_features(u, clip.stored, stream)
            loss_unlabelled, kept = pseudo_label_loss(
                prompt.logits(weak_BE, class_features_CE),
                prompt.logits(strong_BE, class_features_CE),
                config.confidence,
                hard=config.pseudo_label == "hard",
            )
            loss = loss + config.lambda_u * loss_unlabelled
            parts |= {"prompt_loss_unlabelled": loss_unlabelled.detach(), "prompt_pseudo_labelled": kept}
        return loss, parts | {"prompt_loss": loss.detach()}

    def predict(self, images: Tensor) -> Tensor:
        """Return the classifier's logits; CLIP has no part in it."""
        logits_BC: Tensor = self.network(images)
        return logits_BC


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
