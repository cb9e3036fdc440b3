"""Jo-SRC (Yao et al., CVPR 2021): clean, mislabelled or out of distribution? The README lists every departure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field
from torch import nn

from lnlbench.api import Method, MethodConfig, Run, Task, TaskInfo
from lnlbench.blocks.divergences import jensen_shannon_bits, kl_divergence
from lnlbench.blocks.ema import update_average
from lnlbench.blocks.losses import soft_cross_entropy_per_sample
from lnlbench.blocks.schedules import set_learning_rate

if TYPE_CHECKING:
    from torch import Tensor

_ADAM_BETA2 = 0.999


class Classifier(nn.Module):
    """A backbone that ends in its own linear layer, or in a head of two layers instead of it."""

    def __init__(self, network: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Map ``images_BCHW`` to ``logits_BC``, float32."""
        # With a head, the backbone's linear layer is without gradient and stays as it is.
        logits_BC: Tensor = self.network(images) if self.head is None else self.head(self.network.embed(images))  # type: ignore[operator]
        return logits_BC


@dataclass(frozen=True)
class Division:
    """What each sample of a batch is taken for: clean, out of distribution, or, if neither, mislabelled."""

    clean: Tensor
    """``clean_B``, bool: its label is right."""
    ood: Tensor
    """``ood_B``, bool: its true class is none of the task's; never of a clean sample."""


class Verdicts:
    """What an epoch says of the training samples, collected on the device; each sample is seen once.

    A sample that is not seen, the odd one of a last batch of one, is neither selected nor relabelled.
    """

    def __init__(self, num_train: int, device: torch.device) -> None:
        self.clean_probs_N = torch.zeros(num_train, device=device)
        self.clean_N = torch.zeros(num_train, dtype=torch.bool, device=device)
        self.ood_N = torch.zeros(num_train, dtype=torch.bool, device=device)
        self.pseudo_labels_N = torch.full((num_train,), -1, device=device)

    def note(self, index_B: Tensor, clean_probs_B: Tensor, division: Division, pseudo_labels_B: Tensor) -> None:
        """Write down a batch."""
        self.clean_probs_N[index_B] = clean_probs_B
        self.clean_N[index_B] = division.clean
        self.ood_N[index_B] = division.ood
        self.pseudo_labels_N[index_B] = pseudo_labels_B


class JoSrc(Method["JoSrc.Config"]):
    """Two views of each image decide whether it is clean, mislabelled or out of distribution, and what it teaches.

    Paper: Yazhou Yao, Zeren Sun, Chuanyi Zhang, Fumin Shen, Qi Wu, Jian Zhang, Zhenmin Tang, *Jo-SRC: A Contrastive
    Approach for Combating Noisy Labels*, CVPR 2021. "Released code" is the authors' PyTorch release.

    ==========================  ======================  ==================================================
    symbol of the paper         here                    meaning
    ==========================  ======================  ==================================================
    v, v'                       batch.views             two random augmentations of an image
    theta, theta_mt             student, teacher        trained weights and their moving average
    p, p'                       softmax of logits,      the student's predictions for the two views
                                others
    epsilon, y                  smoothing, given_BC     smoothed given labels
    d, P_clean                  clean_probs_B           1 - d, d = Jensen-Shannon divergence of p and y in bits
    tau_c, tau_clean            clean_threshold,        threshold of P_clean at the end of warm-up, and of
                                threshold               an epoch
    t_w                         warmup_epochs           length of the warm-up
    P_ood                       p and p' disagree       whether the most probable classes differ
    y-tilde                     targets_BC              the label a sample is trained with
    L_c, L_o                    loss_classification,    cross-entropy with y-tilde; divergence of p and p',
                                loss_consistency        with the sign turned for samples out of distribution
    alpha                       alpha                   weight of L_o
    ==========================  ======================  ==================================================

    Shapes: N training set, B batch, C classes, F features.
    """

    class Config(MethodConfig):
        """The options; the paper's symbol stands in parentheses."""

        batch_size: int = Field(ge=2, description="Images per step; each gives two views.")
        head: Literal["mlp2", "linear"] = Field(
            "mlp2", description="On top of the features: two layers with batch norm between, or the backbone's linear."
        )
        warmup_epochs: int = Field(ge=0, description="Epochs before any sample is relabelled (t_w).")
        count_from: int = Field(
            0,
            ge=0,
            le=1,
            description="Number of the first epoch in the schedule of the threshold and in the end of warm-up (t).",
        )
        smoothing: float = Field(gt=0.0, lt=1.0, description="What smoothing takes from the given label (epsilon).")
        clean_threshold: float = Field(
            0.75,
            ge=0.0,
            le=1.0,
            description="Threshold of P_clean at the end of warm-up (tau_c).",
        )
        final_threshold: float = Field(0.95, ge=0.0, le=1.0, description="Threshold of P_clean after the last epoch.")
        clean_test: Literal["at-least", "above"] = Field(
            "at-least", description="Whether a sample right at the threshold is clean."
        )
        clean_view: Literal["first", "both"] = Field("first", description="View of P_clean, or the mean over both.")
        soft_label: Literal["both", "first"] = Field(
            "both", description="Teacher's prediction that replaces labels: the mean over both views, or of the first."
        )
        flattening: float = Field(
            10.0, gt=0.0, description="Probabilities are divided by it before they become an almost uniform label (s)."
        )
        trained_on: Literal["clean", "clean+id", "all"] = Field(
            "all", description="Samples that are trained on after warm-up: clean, relabelled, out of distribution."
        )
        alpha: float = Field(0.5, ge=0.0, le=1.0, description="Weight of the consistency loss (alpha).")
        ood_limit: float | None = Field(
            None, gt=0.0, description="Largest divergence in bits that counts for a sample out of distribution."
        )
        ema_decay: float = Field(0.99, ge=0.0, le=1.0, description="What the teacher keeps of itself in a step.")

        optimizer: Literal["adam", "sgd"] = Field(
            "adam", description="Adam with linear decay, or SGD with Nesterov momentum and half a cosine."
        )
        learning_rate: float = Field(gt=0.0, description="Learning rate, at the start.")
        momentum: float = Field(0.9, gt=0.0, lt=1.0, description="Momentum of SGD; beta1 of Adam before its decay.")
        weight_decay: float = Field(0.0, ge=0.0, description="Weight decay, on all parameters.")
        decay_start: float = Field(
            0.4, ge=0.0, le=1.0, description="Share of the epochs after which Adam's learning rate falls to 0."
        )
        late_beta1: float = Field(0.1, ge=0.0, lt=1.0, description="beta1 of Adam from then on.")

    student: Classifier
    teacher: Classifier

    @classmethod
    def preset(cls, task: TaskInfo) -> Config:
        """Return the settings of the released code; for data it does not cover, our own choice. Asks nothing."""
        if task.dataset in ("cifar10", "cifar100"):
            return cls.Config(
                epochs=200, batch_size=128, backbone="cnn7", warmup_epochs=10, smoothing=0.6, learning_rate=1e-3
            )
        if task.dataset == "clothing1m":
            return cls.Config(
                epochs=15,
                batch_size=128,
                backbone="timm:resnet18+pretrained",
                warmup_epochs=5,
                smoothing=0.7,
                clean_threshold=0.9,
                alpha=0.4,
                optimizer="sgd",
                learning_rate=2e-3,
                weight_decay=1e-4,
            )
        if task.dataset == "food101n":
            return cls.Config(
                epochs=50,
                batch_size=128,
                backbone="timm:resnet50+pretrained",
                warmup_epochs=5,
                smoothing=0.65,
                optimizer="sgd",
                learning_rate=1e-3,
                weight_decay=5e-3,
            )
        return cls.Config(
            epochs=task.default_epochs,
            batch_size=32,
            backbone=task.default_backbone,
            warmup_epochs=max(1, task.default_epochs // 4),
            smoothing=0.4,
            learning_rate=1e-3,
        )

    def fit(self, task: Task, run: Run) -> None:
        """Train the student; the teacher follows."""
        config = self.config
        self.student = self.build(task, run)
        # Not a deep copy: that of a compiled network would go on running the original.
        self.teacher = self.build(task, run)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        optimizer = self.build_optimizer()
        run.track(student=self.student, teacher=self.teacher, optimizer=optimizer)
        for epoch in run.epochs(config.epochs):
            self.set_rates(optimizer, epoch)
            self.train_epoch(task, run, optimizer, epoch)

    def build(self, task: Task, run: Run) -> Classifier:
        """Build a network with its head."""
        network = task.network("net", self.config.backbone)
        if self.config.head == "linear":
            return Classifier(network, None)
        # Drawn on the CPU, so that the weights are the same whatever the device.
        generator = torch.Generator().manual_seed(run.rng("head").seed())
        head = two_layer_head(int(network.num_features), task.num_classes, generator)  # type: ignore[arg-type]
        return Classifier(network, head.to(task.device))

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Build the student's optimiser, of a fused kind: those can skip a step (see :func:`step_unless`)."""
        config, parameters = self.config, list(self.student.parameters())
        if config.optimizer == "adam":
            return torch.optim.Adam(
                parameters,
                config.learning_rate,
                betas=(config.momentum, _ADAM_BETA2),
                weight_decay=config.weight_decay,
                fused=True,
            )
        optimizer = torch.optim.SGD(
            parameters,
            config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=True,
            fused=True,
        )
        # A very first step that is skipped would leave the momentum undefined.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer

    def set_rates(self, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Give the optimiser the learning rate and, if it is Adam, the beta1 of an epoch."""
        config = self.config
        if config.optimizer == "sgd":
            set_learning_rate(optimizer, config.learning_rate * (1 + math.cos(math.pi * epoch / config.epochs)) / 2)
            return
        rate, beta1 = config.learning_rate, config.momentum
        start = round(config.decay_start * config.epochs)
        if epoch >= start:
            rate *= (config.epochs - epoch) / (config.epochs - start)
            beta1 = config.late_beta1
        set_learning_rate(optimizer, rate)
        for group in optimizer.param_groups:
            group["betas"] = (beta1, _ADAM_BETA2)

    def warms_up(self, epoch: int) -> bool:
        """Tell whether an epoch, counted from 0, is one of warm-up."""
        return epoch + self.config.count_from < self.config.warmup_epochs

    def threshold(self, epoch: int) -> float:
        """Return tau_clean of an epoch, counted from 0: it rises to tau_c in warm-up, then towards its final value."""
        config = self.config
        time = epoch + config.count_from
        if time < config.warmup_epochs:
            return config.clean_threshold * time / config.warmup_epochs
        elapsed = (time - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1)
        return config.clean_threshold + (config.final_threshold - config.clean_threshold) * elapsed

    def train_epoch(self, task: Task, run: Run, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Make one pass over all samples and report what they were taken for."""
        config, student, teacher = self.config, self.student, self.teacher
        warm_up, threshold = self.warms_up(epoch), self.threshold(epoch)
        student.train()
        # Its running statistics are nobody's average, so the teacher only ever uses those of the batch (departure 8).
        teacher.train()
        verdicts = Verdicts(task.num_train, task.device)
        loader = task.loader(
            "net",
            batch_size=config.batch_size,
            views=("weak", "weak"),
            # A single image has no batch statistics.
            drop_last=task.num_train % config.batch_size == 1,
        )
        for batch in loader:
            # One pass for each view: each is normalised by its own statistics.
            logits_BC, others_BC = student(batch.views[0]), student(batch.views[1])
            given_BC = smoothed_labels(batch.labels, task.num_classes, config.smoothing)
            clean_probs_B = self.clean_probs(logits_BC, others_BC, given_BC)
            division = self.divide(logits_BC, others_BC, clean_probs_B, threshold)
            if warm_up:
                trained_B, pseudo_labels_B = division.clean, torch.full_like(batch.labels, -1)
                loss, parts = self.warm_up_loss(logits_BC, others_BC, given_BC, trained_B)
            else:
                trained_B = self.trained(division)
                targets_BC = self.targets(given_BC, self.soft_labels(batch.views), division)
                pseudo_labels_B = targets_BC.argmax(dim=1).where(trained_B & ~division.clean, -1)
                loss, parts = self.joint_loss(logits_BC, others_BC, targets_BC, division.ood, trained_B)
            skipped = ~trained_B.any()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            step_unless(skipped, optimizer)
            update_average(teacher, student, config.ema_decay)
            verdicts.note(batch.index, clean_probs_B, division, pseudo_labels_B)
            run.log(threshold=threshold, skipped_steps=skipped.float(), **parts)
        if warm_up:
            run.report(clean_probs=verdicts.clean_probs_N, selected=verdicts.clean_N)
        else:
            run.report(
                clean_probs=verdicts.clean_probs_N,
                selected=verdicts.clean_N,
                pseudo_labels=verdicts.pseudo_labels_N,
                ood=verdicts.ood_N,
            )

    @torch.no_grad()
    def clean_probs(self, logits_BC: Tensor, others_BC: Tensor, given_BC: Tensor) -> Tensor:
        """Return P_clean: one minus the divergence of prediction and smoothed label in bits, ``(B,)`` in [0, 1]."""
        log_given_BC = given_BC.log()
        clean_probs_B = 1.0 - jensen_shannon_bits(F.log_softmax(logits_BC, dim=1), log_given_BC)
        if self.config.clean_view == "both":
            others_B = 1.0 - jensen_shannon_bits(F.log_softmax(others_BC, dim=1), log_given_BC)
            clean_probs_B = (clean_probs_B + others_B) / 2
        return clean_probs_B

    @torch.no_grad()
    def divide(self, logits_BC: Tensor, others_BC: Tensor, clean_probs_B: Tensor, threshold: float) -> Division:
        """Take each sample for clean, mislabelled (both views say the same class) or out of distribution."""
        clean_B = clean_probs_B >= threshold if self.config.clean_test == "at-least" else clean_probs_B > threshold
        disagree_B = logits_BC.argmax(dim=1) != others_BC.argmax(dim=1)
        return Division(clean=clean_B, ood=~clean_B & disagree_B)

    def trained(self, division: Division) -> Tensor:
        """Return ``trained_B``, bool: the samples that are trained on after warm-up."""
        if self.config.trained_on == "clean":
            return division.clean
        if self.config.trained_on == "clean+id":
            return ~division.ood
        return torch.ones_like(division.clean)

    @torch.no_grad()
    def soft_labels(self, views: tuple[Tensor, ...]) -> Tensor:
        """Return the teacher's mean prediction over the views, ``(B, C)`` (departure 5)."""
        if self.config.soft_label == "first":
            views = views[:1]
        return torch.stack([F.softmax(self.teacher(images_BCHW), dim=1) for images_BCHW in views]).mean(dim=0)

    @torch.no_grad()
    def targets(self, given_BC: Tensor, soft_BC: Tensor, division: Division) -> Tensor:
        """Return y-tilde: the smoothed label, the teacher's prediction, or that prediction made almost uniform."""
        # A softmax of probabilities, as the paper has it, not of logits.
        flat_BC = F.softmax(soft_BC / self.config.flattening, dim=1)
        relabelled_BC = torch.where(division.ood.unsqueeze(1), flat_BC, soft_BC)
        return torch.where(division.clean.unsqueeze(1), given_BC, relabelled_BC)

    def warm_up_loss(
        self, logits_BC: Tensor, others_BC: Tensor, given_BC: Tensor, trained_B: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the cross-entropy of both views with the smoothed labels, mean over the clean samples."""
        loss = _mean_of(_cross_entropy_of_both(logits_BC, others_BC, given_BC), trained_B)
        return loss, {"loss_warmup": loss.detach()}

    def joint_loss(
        self, logits_BC: Tensor, others_BC: Tensor, targets_BC: Tensor, ood_B: Tensor, trained_B: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (1 - alpha) L_c + alpha L_o, both means over the samples that are trained on.

        L_o is the symmetric divergence of the two predictions in bits (eq. 9, 11; departures 6 and 7).
        """
        config = self.config
        loss_classification = _mean_of(_cross_entropy_of_both(logits_BC, others_BC, targets_BC), trained_B)
        log_probs_BC, log_others_BC = F.log_softmax(logits_BC, dim=1), F.log_softmax(others_BC, dim=1)
        nats_B = kl_divergence(log_probs_BC, log_others_BC) + kl_divergence(log_others_BC, log_probs_BC)
        bits_B = nats_B / math.log(2.0)
        signed_B = torch.where(ood_B, -bits_B.clamp(max=config.ood_limit or math.inf), bits_B)
        loss_consistency = _mean_of(signed_B, trained_B)
        loss = (1.0 - config.alpha) * loss_classification + config.alpha * loss_consistency
        return loss, {
            "loss": loss.detach(),
            "loss_classification": loss_classification.detach(),
            "loss_consistency": loss_consistency.detach(),
        }

    def predict(self, images: Tensor) -> Tensor:
        """Return the student's logits; the teacher is not tested."""
        logits_BC: Tensor = self.student(images)
        return logits_BC


def two_layer_head(num_features: int, num_classes: int, generator: torch.Generator) -> nn.Sequential:
    """Build F -> 2F -> C with batch norm and ReLU between, weights drawn after He et al. (ICCV 2015), biases 0."""
    head = nn.Sequential(
        nn.Linear(num_features, 2 * num_features),
        nn.BatchNorm1d(2 * num_features),
        nn.ReLU(inplace=True),
        nn.Linear(2 * num_features, num_classes),
    )
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    return head


def smoothed_labels(labels_B: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return ``(B, C)``, float32: 1 - smoothing for the label, the rest shared by the C - 1 other classes."""
    rest = smoothing / (num_classes - 1)
    return torch.full((len(labels_B), num_classes), rest, device=labels_B.device).scatter_(
        1, labels_B.unsqueeze(1), 1.0 - smoothing
    )


def step_unless(skipped: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make an optimiser step, unless ``skipped`` (a bool on the device) says no: then nothing at all changes.

    A gradient of zero would not do, as momentum moves weights without one. Fused optimisers have this switch for
    automatic loss scaling, and asking the device for the answer is not needed.
    """
    optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
    optimizer.step()


def _cross_entropy_of_both(logits_BC: Tensor, others_BC: Tensor, targets_BC: Tensor) -> Tensor:
    return soft_cross_entropy_per_sample(logits_BC, targets_BC) + soft_cross_entropy_per_sample(others_BC, targets_BC)


def _mean_of(values_B: Tensor, wanted_B: Tensor) -> Tensor:
    """Return the mean over the wanted samples; 0 if there is none."""
    return values_B.where(wanted_B, 0.0).sum() / wanted_B.sum().clamp(min=1)
