"""CCL (Fan, Li, AAAI 2025): two networks refurbish each other's labels. The README lists every departure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field

from lnlbench.api import (
    Batch,
    Ensemble,
    Loader,
    Method,
    MethodConfig,
    RandAugment,
    RandomCrop,
    RandomFlip,
    Run,
    Task,
    TaskInfo,
    ViewRecipe,
)
from lnlbench.blocks.contrastive import class_contrast, instance_contrast, mimicry, similarity
from lnlbench.blocks.fixmatch import pseudo_label_losses
from lnlbench.blocks.losses import (
    class_balance_divergence,
    cross_entropy_per_sample,
    negative_entropy,
    soft_cross_entropy_per_sample,
)
from lnlbench.blocks.mixture import clean_probabilities, min_max_normalise
from lnlbench.blocks.schedules import set_learning_rate, step_decay
from lnlbench.blocks.sharpen import sharpen

if TYPE_CHECKING:
    from torch import Tensor, nn

STRONG = ViewRecipe(
    ops=(
        RandomCrop(padding=4),
        RandomFlip(),
        RandAugment(num_ops=3, probability=1.0, levels=(0, 100), top=100),
        # A square of 0 to 16 pixels: up to half the side of a CIFAR image.
        RandAugment(num_ops=1, pool=("cutout",), probability=1.0, levels=(0, 16), top=20, fill=(125, 123, 114)),
    )
)
"""The strong view of Robust LR (Chen et al., AAAI 2023) for images of 32 pixels."""


@dataclass(frozen=True)
class Learner:
    """One of the two networks with all that belongs to it."""

    role: str
    """``net1`` or ``net2``; prefixes its random streams and its log entries."""
    network: nn.Module
    head: nn.Module
    """What features pass through before they are compared; nothing, unless asked for."""
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class Seen:
    """What a network makes of one view of a batch."""

    features: Tensor
    """``features_BD``, f: what is compared."""
    logits: Tensor
    """``logits_BC``, whose softmax is p."""


class Ccl(Method["Ccl.Config"]):
    """Two networks; labels are refurbished by the peer, embeddings aligned across views and across networks.

    Paper: Wenxiao Fan, Kan Li, *Combating Semantic Contamination in Learning with Label Noise*, AAAI 2025 (extended
    version: arXiv 2412.11620). Equation numbers refer to it.

    ==========================  ======================  ==================================================
    symbol of the paper         here                    meaning
    ==========================  ======================  ==================================================
    m, 1 - m                    learner, peer           the network that is trained, and the other one
    x^w, x^s                    weak, strong            two views of the same images
    f, p                        features, softmax of    embedding and prediction
                                logits
    y-hat                       labels                  the given labels
    omega                       clean_probs             probability that a given label is right
    y'                          refurbished_BC          refurbished labels
    tau                         contrast_temperature    temperature of all similarities
    T                           temperature             of sharpening
    c                           pg_threshold            predictions guide from this probability on
    W                           warmup_epochs           epochs of plain training
    L_PG, L_ACL, L_VM           loss_guidance, ...      the parts of L_CVL: across views
    L_CCLRL, L_MM               loss_class, ...         with loss_peer the parts of L_CML: across models
    L_div                       loss_balance            divergence of the mean prediction from uniform
    ==========================  ======================  ==================================================

    Shapes: N training set, B batch, C classes, D features, H and W pixels.
    """

    class Config(MethodConfig):
        """The options; the paper's symbol stands in parentheses."""

        strong_view: str = Field("strong", description="'robust-lr' (for 32 pixels), or a view of the suite by name.")
        warmup_epochs: int = Field(ge=0, description="Epochs of plain training before labels are refurbished (W).")
        warmup_penalty: bool = Field(False, description="Add the negative entropy to the warm-up loss.")
        learning_rate: float = Field(1e-3, gt=0.0, description="Initial learning rate of Adam.")
        momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Of the mean gradient in Adam (its first beta).")
        weight_decay: float = Field(0.0, ge=0.0, description="Weight decay of Adam, on all parameters.")
        lr_drop_epoch: int = Field(ge=0, description="First epoch with the learning rate multiplied by lr_drop_factor.")
        lr_drop_factor: float = Field(0.1, gt=0.0, le=1.0, description="Factor of the learning-rate drop.")

        confidence_view: Literal["strong", "weak", "plain"] = Field(
            "strong", description="View on which the peer's losses are taken for the clean probabilities."
        )
        gmm_max_iter: int = Field(10, ge=1, description="EM iterations of the mixture.")
        gmm_tol: float = Field(1e-2, gt=0.0, description="EM stops when the mean log-likelihood rises by less.")
        gmm_reg_covar: float = Field(5e-4, ge=0.0, description="Added to the variances of the mixture.")

        contrast_temperature: float = Field(0.5, gt=0.0, description="Divides all similarities of embeddings (tau).")
        proj_dim: int = Field(0, ge=0, description="Compare features after a two-layer head of this width; 0: as is.")
        lambda_mimicry: float = Field(1.0, ge=0.0, description="Weight of the mimicry in both (L_VM, L_MM).")

        lambda_cvl: float = Field(1.0, ge=0.0, description="Weight of the losses across views (L_CVL).")
        pg_threshold: float = Field(0.95, ge=0.0, description="Predictions guide from this probability on (c).")
        pg_source: Literal["weak", "strong"] = Field("weak", description="View whose prediction guides the strong one.")
        detach_weak: bool = Field(False, description="No gradient flows through the weak view's embedding.")

        lambda_cml: float = Field(1.0, ge=0.0, description="Weight of the losses across networks (L_CML).")
        sharpen_peer: bool = Field(True, description="Sharpen the peer's prediction before the logits follow it.")
        temperature: float = Field(0.5, gt=0.0, description="Sharpening temperature (T).")
        refurbished_positives: bool = Field(
            True, description="Images of one refurbished label attract each other; off: an image attracts itself only."
        )

        lambda_div: float = Field(1.0, ge=0.0, description="Weight of the balance loss (L_div).")

    net1: nn.Module
    net2: nn.Module

    @classmethod
    def preset(cls, task: TaskInfo) -> Config:
        """Return the published hyper-parameters; for data the paper does not cover, our own choice. Asks nothing."""
        if task.dataset in ("cifar10", "cifar100"):
            return cls.Config(
                epochs=500,
                batch_size=128,
                backbone="resnet18-cifar",
                strong_view="robust-lr",
                warmup_epochs=30 if task.dataset == "cifar100" else 10,
                lr_drop_epoch=400,
            )
        if task.dataset in ("animal10n", "mini-webvision"):
            return cls.Config(
                epochs=500,
                batch_size=128,
                backbone="timm:resnet50",
                warmup_epochs=80 if task.dataset == "mini-webvision" else 30,
                lr_drop_epoch=400,
            )
        return cls.Config(
            epochs=task.default_epochs,
            batch_size=64,
            backbone=task.default_backbone,
            warmup_epochs=max(1, task.default_epochs // 8),
            lr_drop_epoch=max(1, task.default_epochs * 4 // 5),
        )

    def fit(self, task: Task, run: Run) -> None:
        """Train both networks (Algorithm 1)."""
        config = self.config
        first, second = self.build(task, "net1"), self.build(task, "net2")
        self.net1, self.net2 = first.network, second.network
        run.track(
            net1=first.network,
            net2=second.network,
            head1=first.head,
            head2=second.head,
            optimizer1=first.optimizer,
            optimizer2=second.optimizer,
        )
        for epoch in run.epochs(config.epochs):
            rate = step_decay(config.learning_rate, epoch, drops=[config.lr_drop_epoch], factor=config.lr_drop_factor)
            # One after the other: what the second network learns from is the first as this epoch has left it.
            for learner, peer in ((first, second), (second, first)):
                set_learning_rate(learner.optimizer, rate)
                if epoch < config.warmup_epochs:
                    self.warm_up(task, run, learner)
                else:
                    self.train_epoch(task, run, learner, peer)

    def build(self, task: Task, role: str) -> Learner:
        """Build a network, the head of its features and its optimiser."""
        config = self.config
        network = task.network(role, config.backbone)
        head = _projection_head(int(network.num_features), config.proj_dim).to(task.device)  # type: ignore[arg-type]
        optimizer = torch.optim.Adam(
            [*network.parameters(), *head.parameters()],
            lr=config.learning_rate,
            betas=(config.momentum, 0.999),
            weight_decay=config.weight_decay,
        )
        return Learner(role, network, head, optimizer)

    def batches(self, task: Task, role: str, views: tuple[str, ...]) -> Loader:
        """Return full batches only: the contrastive losses grow with the logarithm of the batch size."""
        batch_size = min(self.config.batch_size, task.num_train)
        return task.loader(role, batch_size=batch_size, views=self.recipes(views), drop_last=True)

    def recipes(self, views: tuple[str, ...]) -> tuple[str | ViewRecipe, ...]:
        """Say what weak and strong views are."""
        strong = STRONG if self.config.strong_view == "robust-lr" else self.config.strong_view
        return tuple(strong if view == "strong" else view for view in views)

    def warm_up(self, task: Task, run: Run, learner: Learner) -> None:
        """Make one pass over the weak views with cross-entropy on the given labels."""
        learner.network.train()
        for batch in self.batches(task, f"{learner.role} warm-up", ("weak",)):
            logits_BC = learner.network(batch.images)
            loss = cross_entropy_per_sample(logits_BC, batch.labels).mean()
            if self.config.warmup_penalty:
                loss = loss + negative_entropy(logits_BC)
            _descend(learner, loss)
            run.log(**{f"{learner.role}_loss_warmup": loss.detach()})

    def train_epoch(self, task: Task, run: Run, learner: Learner, peer: Learner) -> None:
        """Make one pass with labels that the peer judges and refurbishes."""
        role = learner.role
        clean_probs_N = self.clean_probs(task, run, learner, peer)
        pseudo_labels_N = torch.full_like(task.labels, -1)
        learner.network.train()
        peer.network.eval()
        for batch in self.batches(task, role, ("weak", "strong")):
            loss, parts, classes_B = self.loss(learner, peer, batch, clean_probs_N[batch.index])
            _descend(learner, loss)
            pseudo_labels_N[batch.index] = classes_B
            run.log(**{f"{role}_{name}": value for name, value in parts.items()})
        run.report(role, clean_probs=clean_probs_N, selected=clean_probs_N >= 0.5, pseudo_labels=pseudo_labels_N)

    def clean_probs(self, task: Task, run: Run, learner: Learner, peer: Learner) -> Tensor:
        """Return ``clean_probs_N``: two Gaussians are fitted to the losses of the peer, in eval mode (eq. 16)."""
        config = self.config
        peer.network.eval()
        loader = task.loader(
            f"{learner.role} confidence",
            batch_size=4 * config.batch_size,
            views=self.recipes((config.confidence_view,)),
            shuffle=False,
        )
        with torch.no_grad():
            losses_N = torch.cat(
                [cross_entropy_per_sample(peer.network(batch.images), batch.labels) for batch in loader]
            )
        return clean_probabilities(
            min_max_normalise(losses_N),
            max_iter=config.gmm_max_iter,
            tol=config.gmm_tol,
            reg_covar=config.gmm_reg_covar,
            random_state=run.rng(f"{learner.role} gmm").seed(),
        )

    def loss(
        self, learner: Learner, peer: Learner, batch: Batch, clean_probs_B: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss of one step (eq. 15), its parts for the log, and the classes of the refurbished labels."""
        config = self.config
        weak_BCHW, strong_BCHW = batch.views
        strong, weak = self.look(learner, strong_BCHW), self.look(learner, weak_BCHW)
        with torch.no_grad():
            peer_weak = self.look(peer, weak_BCHW)
            refurbished_BC = self.refurbish(batch.labels, clean_probs_B, peer_weak)
            classes_B = refurbished_BC.argmax(dim=1)

        label_B = cross_entropy_per_sample(strong.logits, batch.labels)
        across_views_B, view_parts = self.across_views(strong, weak)
        across_models_B, model_parts = self.across_models(strong, peer_weak, classes_B)
        balance = class_balance_divergence(strong.logits)
        # Each sample has its own weights: of a label that is surely right, nothing else is learnt.
        guided_B = config.lambda_cvl * across_views_B + config.lambda_cml * across_models_B
        loss_B = clean_probs_B * label_B + 0.5 * (1.0 - clean_probs_B) * guided_B
        loss = loss_B.mean() + config.lambda_div * balance
        parts = {"loss": loss, "loss_label": label_B, "loss_balance": balance, "clean_prob": clean_probs_B}
        parts |= view_parts | model_parts
        return loss, {name: values.detach().mean() for name, values in parts.items()}, classes_B

    def look(self, learner: Learner, images_BCHW: Tensor) -> Seen:
        """Make one forward pass."""
        embed: Callable[[Tensor], Tensor] = learner.network.embed  # type: ignore[assignment]
        classify: Callable[[Tensor], Tensor] = learner.network.classify  # type: ignore[assignment]
        features_BD = embed(images_BCHW)
        return Seen(learner.head(features_BD), classify(features_BD))

    def refurbish(self, labels_B: Tensor, clean_probs_B: Tensor, peer_weak: Seen) -> Tensor:
        """Return ``refurbished_BC``: given label and prediction of the peer, as far as each is trusted (eq. 10)."""
        probs_BC = F.softmax(peer_weak.logits, dim=1)
        given_BC = torch.zeros_like(probs_BC).scatter_(1, labels_B.unsqueeze(1), 1.0)
        clean_probs_B1 = clean_probs_B.unsqueeze(1)
        return clean_probs_B1 * given_BC + (1.0 - clean_probs_B1) * probs_BC

    def across_views(self, strong: Seen, weak: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """Return ``loss_B``, L_CVL of each sample (eq. 8), and its parts: what the two views of an image share."""
        config = self.config
        guide = weak if config.pg_source == "weak" else strong
        # Eq. 7: a prediction that is sure enough is the label.
        guidance_B, guided_B = pseudo_label_losses(guide.logits, strong.logits, config.pg_threshold, hard=True)
        candidates_BD = weak.features.detach() if config.detach_weak else weak.features
        similarity_BB = similarity(strong.features, candidates_BD, config.contrast_temperature)
        instance_B = instance_contrast(similarity_BB)  # eq. 5
        mimicry_B = mimicry(similarity_BB)  # eq. 6
        loss_B = guidance_B + instance_B + config.lambda_mimicry * mimicry_B
        return loss_B, {
            "loss_guidance": guidance_B,
            "guided": guided_B,
            "loss_instance": instance_B,
            "loss_view_mimicry": mimicry_B,
        }

    def across_models(self, strong: Seen, peer_weak: Seen, classes_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return ``loss_B``, L_CML of each sample (eq. 13), and its parts: what the two networks share."""
        config = self.config
        target_BC = F.softmax(peer_weak.logits, dim=1)
        if config.sharpen_peer:
            target_BC = sharpen(target_BC, config.temperature)
        peer_B = soft_cross_entropy_per_sample(strong.logits, target_BC)
        similarity_BB = similarity(strong.features, peer_weak.features, config.contrast_temperature)
        if config.refurbished_positives:
            class_B = class_contrast(similarity_BB, classes_B)  # eq. 9
        else:
            class_B = instance_contrast(similarity_BB)
        mimicry_B = mimicry(similarity_BB)  # eq. 12
        loss_B = peer_B + class_B + config.lambda_mimicry * mimicry_B
        return loss_B, {"loss_peer": peer_B, "loss_class": class_B, "loss_model_mimicry": mimicry_B}

    def predict(self, images: Tensor) -> Ensemble:
        """Return the logarithm of the mean prediction of both networks, and what each says by itself."""
        first_BC, second_BC = self.net1(images), self.net2(images)
        sum_BC = torch.logaddexp(F.log_softmax(first_BC, dim=1), F.log_softmax(second_BC, dim=1))
        return Ensemble(logits=sum_BC - math.log(2.0), networks={"net1": first_BC, "net2": second_BC})


def _projection_head(num_features: int, width: int) -> nn.Module:
    if width == 0:
        return torch.nn.Identity()
    return torch.nn.Sequential(
        torch.nn.Linear(num_features, num_features), torch.nn.ReLU(inplace=True), torch.nn.Linear(num_features, width)
    )


def _descend(learner: Learner, loss: Tensor) -> None:
    learner.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    learner.optimizer.step()
