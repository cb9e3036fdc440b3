"""DivideMix (Li, Socher, Hoi, ICLR 2020): co-divide, co-refine, co-guess, mix. The README lists every departure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, model_validator

from lnlbench.api import Batch, Method, MethodConfig, Run, Task, TaskInfo
from lnlbench.blocks.history import LossHistory
from lnlbench.blocks.losses import (
    class_balance_divergence,
    cross_entropy_per_sample,
    negative_entropy,
    soft_cross_entropy,
    squared_error_of_probs,
)
from lnlbench.blocks.mixture import clean_probabilities, min_max_normalise
from lnlbench.blocks.mixup import draw_mixup_weight, mixup
from lnlbench.blocks.sampling import class_balanced_draw
from lnlbench.blocks.schedules import linear_rampup, set_learning_rate, step_decay
from lnlbench.blocks.sharpen import sharpen
from lnlbench_dividemix.cross_learning import Seen, cross_loss, look, refine

if TYPE_CHECKING:
    from torch import Tensor, nn

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learner:
    """One of the two networks with all that belongs to it."""

    role: str
    """``net1`` or ``net2``; prefixes its random streams and its log entries."""
    network: nn.Module
    optimizer: torch.optim.Optimizer
    history: LossHistory
    """Its normalised per-sample losses of the latest epochs."""


@dataclass(frozen=True)
class Division:
    """What one network makes of the training set in one epoch."""

    index: Tensor
    """``index_n``: the samples it looked at, ascending: all of them, or the epoch's draw."""
    clean_probs: Tensor
    """``clean_probs_N``: clean probability of each sample of the training set; 0 where it did not look."""


class DivideMix(Method["DivideMix.Config"]):
    """Two networks; each is trained on the clean/noisy division that the other one's losses suggest.

    Paper: Junnan Li, Richard Socher, Steven C. H. Hoi, *DivideMix: Learning with Noisy Labels as Semi-supervised
    Learning*, ICLR 2020. Equation numbers refer to it; "released code" is the authors' PyTorch release.

    ==========================  ==================  ======================================================
    symbol of the paper         here                meaning
    ==========================  ==================  ======================================================
    theta_1, theta_2            net1, net2          the networks
    l_i                         losses_N            cross-entropy of sample i with its given label
    w_i                         clean_probs_N       probability that the given label of sample i is right
    tau                         p_threshold         a sample is labelled iff w_i > tau
    X, U                        labelled,           the two parts of the training set
                                unlabelled
    y_b, p_b                    given_BC,           one-hot given labels; mean prediction over the views
                                probs_BC
    y-hat_b, q-hat_b            targets_BC          refined and guessed labels, sharpened
    T                           temperature         sharpening temperature
    M                           two views           augmentations per sample
    alpha, lambda'              alpha, weight       Beta parameter of mixup and the weight drawn
    X', U'                      logits and targets  the mixed rows; X' comes first
    L_X, L_U, L_reg             loss_labelled, ...  labelled, unlabelled and class-balance loss
    lambda_u                    lambda_u            final weight of L_U
    L_CVL, L_CML                cross_loss          added by Fan & Li 2025, where asked for (departure 18)
    ==========================  ==================  ======================================================

    Shapes: N training set, B batch (the two parts of a step may differ in it), C classes, H and W pixels.
    """

    class Config(MethodConfig):
        """The options; the paper's symbol stands in parentheses."""

        batch_size: int = Field(ge=1, description="Labelled and, again, unlabelled images per step (B); warm-up: 2B.")
        warmup_epochs: int = Field(ge=0, description="Epochs of plain training before the first division.")
        warmup_penalty: bool = Field(False, description="Add the negative entropy to the warm-up loss (-H, eq. 2).")
        learning_rate: float = Field(0.02, gt=0.0, description="Initial learning rate of SGD.")
        momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Momentum of SGD (no Nesterov).")
        weight_decay: float = Field(5e-4, ge=0.0, description="Weight decay of SGD, on all parameters.")
        lr_drop_epoch: int = Field(ge=0, description="First epoch with the learning rate multiplied by lr_drop_factor.")
        lr_drop_factor: float = Field(0.1, gt=0.0, le=1.0, description="Factor of the learning-rate drop.")
        p_threshold: float = Field(
            0.5, ge=0.0, le=1.0, description="Labelled iff the clean probability is above (tau)."
        )
        temperature: float = Field(0.5, gt=0.0, description="Sharpening temperature (T).")
        alpha: float = Field(4.0, gt=0.0, description="Both parameters of mixup's Beta distribution (alpha).")
        lambda_u: float = Field(ge=0.0, description="Final weight of the unlabelled loss (lambda_u).")
        rampup_epochs: float = Field(16.0, ge=0.0, description="Epochs after warm-up in which lambda_u is reached.")
        unlabelled_loss: bool = Field(
            True, description="Train on the mixed unlabelled rows; off: they only serve as mixup partners."
        )
        loss_average_epochs: int = Field(1, ge=1, description="Epochs over which losses are averaged for the mixture.")
        lambda_cvl: float = Field(
            0.0, ge=0.0, description="Weight of cross-view learning, L_CVL of Fan & Li 2025; 0: plain DivideMix."
        )
        lambda_cml: float = Field(
            0.0, ge=0.0, description="Weight of cross-model learning, L_CML of Fan & Li 2025; 0: plain DivideMix."
        )
        contrast_temperature: float = Field(
            0.5, gt=0.0, description="Divides the similarities of features in L_CVL and L_CML."
        )
        confidence: float = Field(
            0.95, ge=0.0, description="In L_CVL, a weak view guides the strong one if its probability is no less."
        )
        gmm_max_iter: int = Field(10, ge=1, description="EM iterations of the mixture.")
        gmm_tol: float = Field(1e-2, gt=0.0, description="EM stops when the mean log-likelihood rises by less.")
        gmm_reg_covar: float = Field(5e-4, ge=0.0, description="Added to the variances of the mixture.")
        draw_size: int | None = Field(
            None, ge=1, description="Train on class-balanced draws of so many images per epoch, twice in warm-up."
        )

        @model_validator(mode="after")
        def _draws_have_no_history(self) -> DivideMix.Config:
            if self.draw_size is not None and self.loss_average_epochs > 1:
                raise ValueError("draw_size and loss_average_epochs exclude each other: each epoch has other images")
            return self

        @property
        def cross_learning(self) -> bool:
            """Whether a term is added to the loss (departure 18)."""
            return self.lambda_cvl > 0.0 or self.lambda_cml > 0.0

    net1: nn.Module
    net2: nn.Module

    @classmethod
    def preset(cls, task: TaskInfo) -> Config:
        """Return the published hyper-parameters; for data the paper does not cover, our own choice.

        CIFAR presets ask for the noise type and, for symmetric noise, for the noise rate, as the paper's table of
        lambda_u and its settings for 90 % noise depend on them. No other preset asks for anything.
        """
        if task.dataset in ("cifar10", "cifar100"):
            return cls._cifar_preset(task)
        if task.dataset == "clothing1m":
            return cls.Config(
                epochs=80,
                batch_size=32,
                backbone="timm:resnet50+pretrained",
                warmup_epochs=1,
                warmup_penalty=True,
                learning_rate=0.002,
                weight_decay=1e-3,
                lr_drop_epoch=40,
                alpha=0.5,
                lambda_u=0.0,
                unlabelled_loss=False,
                draw_size=32_000,
            )
        if task.dataset == "mini-webvision":
            return cls.Config(
                epochs=80,
                batch_size=32,
                backbone="timm:inception_resnet_v2",
                warmup_epochs=1,
                learning_rate=0.01,
                lr_drop_epoch=40,
                alpha=0.5,
                lambda_u=0.0,
                unlabelled_loss=False,
            )
        return cls.Config(
            epochs=task.default_epochs,
            batch_size=32,
            backbone=task.default_backbone,
            warmup_epochs=max(1, task.default_epochs // 8),
            lr_drop_epoch=max(1, task.default_epochs // 2),
            lambda_u=25.0,
        )

    @classmethod
    def _cifar_preset(cls, task: TaskInfo) -> Config:
        hundred_classes = task.dataset == "cifar100"
        symmetric = task.ask_noise_type() == "symmetric"
        # Not asked for under other noise: nothing in the paper's table depends on it there (departures 5 to 7).
        rate = task.ask_noise_rate() if symmetric else None
        extreme = rate is not None and rate >= 0.9
        if not symmetric:
            lambda_u = 0.0
        elif rate is None:
            lambda_u = 150.0 if hundred_classes else 25.0
        elif hundred_classes:
            lambda_u = 25.0 if rate <= 0.3 else 150.0
        else:
            lambda_u = 0.0 if rate <= 0.3 else 25.0 if rate < 0.85 else 50.0
        return cls.Config(
            epochs=300,
            batch_size=64,
            backbone="preact-resnet18",
            warmup_epochs=30 if hundred_classes else 10,
            warmup_penalty=not symmetric,
            lr_drop_epoch=150,
            p_threshold=0.6 if extreme else 0.5,
            lambda_u=lambda_u,
            loss_average_epochs=5 if extreme else 1,
        )

    def fit(self, task: Task, run: Run) -> None:
        """Train both networks (Algorithm 1)."""
        config = self.config
        first, second = self._build(task, "net1"), self._build(task, "net2")
        self.net1, self.net2 = first.network, second.network
        run.track(
            net1=first.network,
            net2=second.network,
            optimizer1=first.optimizer,
            optimizer2=second.optimizer,
            history1=first.history,
            history2=second.history,
        )
        for epoch in run.epochs(config.epochs):
            rate = step_decay(config.learning_rate, epoch, drops=[config.lr_drop_epoch], factor=config.lr_drop_factor)
            set_learning_rate(first.optimizer, rate)
            set_learning_rate(second.optimizer, rate)
            if epoch < config.warmup_epochs:
                self.warm_up(task, run, first)
                self.warm_up(task, run, second)
                continue
            # Co-divide: both divisions come before any training of this epoch, and the networks swap them.
            division1 = self.divide(task, run, first)
            division2 = self.divide(task, run, second)
            self.train_epoch(task, run, epoch, first, second, division2)
            self.train_epoch(task, run, epoch, second, first, division1)

    def _build(self, task: Task, role: str) -> Learner:
        config = self.config
        network = task.network(role, config.backbone)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
        return Learner(role, network, optimizer, LossHistory(config.loss_average_epochs))

    def warm_up(self, task: Task, run: Run, learner: Learner) -> None:
        """Make one pass over all samples with cross-entropy, minus the entropy where asked for (eq. 2)."""
        learner.network.train()
        index_n = self.draw(task, run, learner, times=2)
        if task.selection is not None:
            # Another method found these clean (departure 17).
            index_n = index_n[task.selection.selected[index_n]]
        for batch in task.loader(f"{learner.role} warm-up", batch_size=2 * self.config.batch_size, index=index_n):
            logits_BC = learner.network(batch.images)
            loss = cross_entropy_per_sample(logits_BC, batch.labels).mean()
            if self.config.warmup_penalty:
                loss = loss + negative_entropy(logits_BC)
            _descend(learner, loss)
            run.log(**{f"{learner.role}_loss_warmup": loss.detach()})

    def draw(self, task: Task, run: Run, learner: Learner, times: int = 1) -> Tensor:
        """Return the indices of this epoch's samples: all of them, or a class-balanced draw (departure 16)."""
        if self.config.draw_size is None:
            return torch.arange(task.num_train, device=task.device)
        generator = run.rng(f"{learner.role} draw").torch
        return class_balanced_draw(task.labels, times * self.config.draw_size, task.num_classes, generator)

    def divide(self, task: Task, run: Run, learner: Learner) -> Division:
        """Fit two Gaussians to this network's losses for the clean probabilities (section 3.1 of the paper)."""
        config = self.config
        index_n = self.draw(task, run, learner)
        learner.history.append(min_max_normalise(self.sample_losses(task, learner, index_n)))
        clean_probs_n = clean_probabilities(
            # Averaged losses are not normalised again, as in the released code (departure 7).
            learner.history.mean(),
            max_iter=config.gmm_max_iter,
            tol=config.gmm_tol,
            reg_covar=config.gmm_reg_covar,
            random_state=run.rng(f"{learner.role} gmm").seed(),
        )
        clean_probs_N = torch.zeros(task.num_train, device=task.device)
        clean_probs_N[index_n] = clean_probs_n
        # A sample that was not looked at has no clean probability to be scored.
        scored_N = clean_probs_N if config.draw_size is None else None
        run.report(learner.role, clean_probs=scored_N, selected=clean_probs_N > config.p_threshold)
        return Division(index_n, clean_probs_N)

    def sample_losses(self, task: Task, learner: Learner, index_n: Tensor) -> Tensor:
        """Return ``losses_n`` of un-augmented images with their given labels (eq. 1), network in eval mode."""
        learner.network.eval()
        loader = task.loader(
            f"{learner.role} losses",
            batch_size=4 * self.config.batch_size,
            views=("plain",),
            index=index_n,
            shuffle=False,
        )
        with torch.no_grad():
            return torch.cat(
                [cross_entropy_per_sample(learner.network(batch.images), batch.labels) for batch in loader]
            )

    def train_epoch(
        self, task: Task, run: Run, epoch: int, learner: Learner, peer: Learner, division: Division
    ) -> None:
        """Train one network for an epoch on its peer's division."""
        config, role = self.config, learner.role
        clean_probs_N = division.clean_probs
        is_labelled_n = clean_probs_N[division.index] > config.p_threshold
        # The host waits for the device here, once an epoch and never in a step: sizes must be known to cut batches.
        labelled, unlabelled = division.index[is_labelled_n], division.index[~is_labelled_n]
        run.log(**{f"{role}_num_labelled": float(len(labelled))})
        if not len(labelled):
            _log.warning("epoch %d: no sample counts as clean, so %s is not trained", epoch, role)
            return
        if not len(unlabelled):
            _log.warning("epoch %d: every sample counts as clean, so %s trains on labelled ones only", epoch, role)

        views = ("weak", "weak", "strong") if config.cross_learning else ("weak", "weak")
        labelled_loader = task.loader(f"{role} labelled", index=labelled, views=views, batch_size=config.batch_size)
        unlabelled_loader = task.loader(
            f"{role} unlabelled", index=unlabelled, views=views, batch_size=config.batch_size
        )
        unlabelled_batches = unlabelled_loader.forever() if len(unlabelled) else None
        # One more than there are steps if B divides |X|, as in the released code (departure 4).
        num_steps = len(labelled) // config.batch_size + 1
        mixup_stream = run.rng(f"{role} mixup")
        weight_generator, partner_generator = mixup_stream.numpy, mixup_stream.torch

        learner.network.train()
        peer.network.eval()
        for step, labelled_batch in enumerate(labelled_loader):
            unlabelled_batch = next(unlabelled_batches) if unlabelled_batches is not None else None
            lambda_u = config.lambda_u * linear_rampup(
                epoch + step / num_steps - config.warmup_epochs, config.rampup_epochs
            )
            loss, parts = self.loss(
                learner.network,
                peer.network,
                labelled_batch,
                unlabelled_batch,
                clean_probs_N,
                lambda_u,
                weight_generator,
                partner_generator,
            )
            _descend(learner, loss)
            run.log(**{f"{role}_{name}": value for name, value in parts.items()})

    def loss(
        self,
        network: nn.Module,
        peer: nn.Module,
        labelled: Batch,
        unlabelled: Batch | None,
        clean_probs_N: Tensor,
        lambda_u: float,
        weight_generator: np.random.Generator,
        partner_generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the loss of one step and its parts for the log.

        Every forward pass is a call of its own, in the order of the released code: ``network`` is in train mode, so
        each of them moves the statistics of its batch norm (departure 12).
        """
        config = self.config
        x_views = labelled.views[:2]
        u_views = () if unlabelled is None else unlabelled.views[:2]
        with torch.no_grad():
            own_u, peer_u = self.look_at(network, u_views, own=True), self.look_at(peer, u_views, own=False)
            own_x = self.look_at(network, x_views, own=True)
            targets = [self.co_refine(own_x, labelled.labels, clean_probs_N[labelled.index])] * len(x_views)
            if unlabelled is not None:
                targets += [self.co_guess([*own_u, *peer_u])] * len(u_views)

            images_BCHW, targets_BC = torch.cat([*x_views, *u_views]), torch.cat(targets)
            num_labelled = len(x_views) * labelled.index.shape[0]
            partners_B = torch.randperm(images_BCHW.shape[0], generator=partner_generator, device=images_BCHW.device)
            if not config.unlabelled_loss:
                partners_B = partners_B[:num_labelled]
            # Eq. 5-8; one weight for the whole step, and partners from both parts (departure 11).
            weight = draw_mixup_weight(config.alpha, weight_generator)
            images_BCHW, targets_BC = mixup(images_BCHW, targets_BC, weight, partners_B)

        logits_BC = network(images_BCHW)
        loss_labelled = soft_cross_entropy(logits_BC[:num_labelled], targets_BC[:num_labelled])  # eq. 9
        # Eq. 10 with the mean over classes as well, as in the released code (departure 1); 0 where no row is left.
        loss_unlabelled = squared_error_of_probs(logits_BC[num_labelled:], targets_BC[num_labelled:])
        loss_balance = class_balance_divergence(logits_BC)  # eq. 11
        loss = loss_labelled + lambda_u * loss_unlabelled + loss_balance  # eq. 12 with lambda_r = 1
        parts: dict[str, Tensor | float] = {
            "loss_labelled": loss_labelled.detach(),
            "loss_unlabelled": loss_unlabelled.detach(),
            "loss_balance": loss_balance.detach(),
            "lambda_u": lambda_u,
        }
        if config.cross_learning:
            batches = [labelled] if unlabelled is None else [labelled, unlabelled]
            added, added_parts = cross_loss(
                config, network, peer, batches, [*own_x[:1], *own_u[:1]], peer_u[:1], clean_probs_N
            )
            loss = loss + added
            parts |= added_parts
        return loss, {"loss": loss.detach(), **parts}

    def look_at(self, network: nn.Module, views: Sequence[Tensor], *, own: bool) -> list[Seen]:
        """Pass each view by itself.

        Where views and networks learn from each other, the first view serves for that too, which spares a pass: its
        features are kept, with gradient if they are those of the network in training (``own``) and L_CVL needs it.
        """
        config, seen = self.config, []
        for number, images_BCHW in enumerate(views):
            kept = config.cross_learning and number == 0
            with torch.set_grad_enabled(kept and own and config.lambda_cvl > 0.0):
                seen.append(look(network, images_BCHW, features=kept))
        return seen

    def co_guess(self, seen: Sequence[Seen]) -> Tensor:
        """Return sharpened guesses for unlabelled images: the mean prediction of both networks over all views."""
        return sharpen(_mean_prediction(seen), self.config.temperature)

    def co_refine(self, seen: Sequence[Seen], labels_B: Tensor, clean_probs_B: Tensor) -> Tensor:
        """Return sharpened mixtures of given label and own prediction, weighted by the peer's opinion (eq. 3, 4)."""
        return sharpen(refine(labels_B, clean_probs_B, _mean_prediction(seen)), self.config.temperature)

    def predict(self, images: Tensor) -> Tensor:
        """Return the sum of both networks' logits (departure 9)."""
        logits_BC: Tensor = self.net1(images) + self.net2(images)
        return logits_BC


def _mean_prediction(seen: Sequence[Seen]) -> Tensor:
    return torch.stack([F.softmax(each.logits, dim=1) for each in seen]).mean(dim=0)


def _descend(learner: Learner, loss: Tensor) -> None:
    learner.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    learner.optimizer.step()
