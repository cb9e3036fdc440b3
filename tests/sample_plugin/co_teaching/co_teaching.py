"""Co-teaching (Han et al., NeurIPS 2018): two networks pick samples for each other. The README lists departures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lnlbench.api import Batch, Ensemble, Method, MethodConfig, Run, Task, TaskInfo
from lnlbench.blocks.losses import cross_entropy_per_sample
from lnlbench.blocks.schedules import linear_rampup, set_learning_rate

_ADAM_BETA2 = 0.999
_UNKNOWN_RATE = 0.2


@dataclass
class Learner:
    """One of the two networks, and what it makes of the training set in the current epoch."""

    role: str
    """``net1`` or ``net2``; names its initial weights, its reports and its log entries."""
    network: nn.Module
    optimizer: torch.optim.Adam
    losses: Tensor
    """``losses_N``, float32: cross-entropy of each sample, when it was seen in this epoch."""
    selected: Tensor
    """``selected_N``, bool: picked for the other network in this epoch."""


class CoTeaching(Method["CoTeaching.Config"]):
    """Of each batch, each network picks the samples with the smallest losses, and its peer is trained on them.

    Paper: Bo Han, Quanming Yao, Xingrui Yu, Gang Niu, Miao Xu, Weihua Hu, Ivor W. Tsang, Masashi Sugiyama,
    *Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels*, NeurIPS 2018. "Released
    code" is the authors' PyTorch release.

    ======================  ===================  ==================================================
    symbol of the paper     here                 meaning
    ======================  ===================  ==================================================
    w_f, w_g                net1, net2           the networks
    D-bar                   batch                a mini-batch
    l(f, D-bar)             losses_B             cross-entropy with the given labels
    D-bar_f, D-bar_g        picked               the samples of a batch with the smallest losses
    R(T)                    keep_rate            share of a batch that is picked in epoch T
    tau                     forget_rate          share that is left out in the end: the noise rate
    T_k                     gradual_epochs       epochs in which R(T) falls from 1 to 1 - tau
    T_max                   epochs               training epochs
    eta                     learning_rate        of Adam
    ======================  ===================  ==================================================

    Shapes: N training samples, B batch, C classes. Epochs are counted from 0.
    """

    class Config(MethodConfig):
        """The options; the paper's symbol stands in parentheses."""

        forget_rate: float = Field(
            ge=0.0, le=1.0, description="Share of each batch that is left out in the end (tau): the noise rate."
        )
        gradual_epochs: int = Field(10, ge=0, description="Epochs in which the share left out rises from 0 (T_k).")
        learning_rate: float = Field(1e-3, gt=0.0, description="Initial learning rate of Adam (eta).")
        lr_decay_epoch: int = Field(ge=0, description="Epoch from which on the learning rate falls linearly to 0.")
        beta1: float = Field(0.9, ge=0.0, lt=1.0, description="beta_1 of Adam before that epoch.")
        late_beta1: float = Field(0.1, ge=0.0, lt=1.0, description="beta_1 of Adam from that epoch on.")
        view: Literal["plain", "weak"] = Field(
            "plain", description="Train on images as they are, or on weakly augmented ones."
        )

    net1: nn.Module
    net2: nn.Module

    @classmethod
    def preset(cls, task: TaskInfo) -> Config:
        """Return the published hyper-parameters; for data the paper does not cover, our own choice.

        Asks for the noise rate, which is tau.
        """
        rate = task.ask_noise_rate()
        forget_rate = _UNKNOWN_RATE if rate is None else rate
        if task.dataset in ("mnist", "cifar10", "cifar100"):
            decay_epoch = 100 if task.dataset == "cifar100" else 80
            return cls.Config(
                epochs=200, batch_size=128, backbone="cnn9", forget_rate=forget_rate, lr_decay_epoch=decay_epoch
            )
        return cls.Config(
            epochs=task.default_epochs,
            batch_size=32,
            backbone=task.default_backbone,
            forget_rate=forget_rate,
            gradual_epochs=min(10, max(1, task.default_epochs // 4)),
            lr_decay_epoch=2 * task.default_epochs // 5,
            view="weak",
        )

    def fit(self, task: Task, run: Run) -> None:
        """Train both networks (Algorithm 1)."""
        config = self.config
        first, second = self._build(task, "net1"), self._build(task, "net2")
        self.net1, self.net2 = first.network, second.network
        run.track(net1=self.net1, net2=self.net2, optimizer1=first.optimizer, optimizer2=second.optimizer)
        loader = task.loader("both", batch_size=config.batch_size, views=(config.view,))
        for epoch in run.epochs(config.epochs):
            keep_rate = self.keep_rate(epoch)
            run.log(keep_rate=keep_rate)
            for learner in (first, second):
                self.begin_epoch(learner, epoch)
            for batch in loader:
                loss1, loss2 = self.step(batch, first, second, keep_rate)
                run.log(net1_loss=loss1, net2_loss=loss2)
            for learner in (first, second):
                run.report(learner.role, clean_probs=torch.exp(-learner.losses), selected=learner.selected)

    def _build(self, task: Task, role: str) -> Learner:
        network = task.network(role, self.config.backbone)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.config.learning_rate)
        losses_N = torch.zeros(task.num_train, device=task.device)
        return Learner(role, network, optimizer, losses_N, torch.zeros_like(losses_N, dtype=torch.bool))

    def begin_epoch(self, learner: Learner, epoch: int) -> None:
        """Forget the last epoch's verdicts; set learning rate and beta_1 as in the released code (departure 3)."""
        config = self.config
        learner.losses, learner.selected = torch.zeros_like(learner.losses), torch.zeros_like(learner.selected)
        learner.network.train()
        elapsed, length = epoch - config.lr_decay_epoch, max(0, config.epochs - config.lr_decay_epoch)
        set_learning_rate(learner.optimizer, config.learning_rate * (1.0 - linear_rampup(elapsed, length)))
        for group in learner.optimizer.param_groups:
            group["betas"] = (config.beta1 if elapsed < 0 else config.late_beta1, _ADAM_BETA2)

    def keep_rate(self, epoch: int) -> float:
        """Return R(T) = 1 - min(T / T_k tau, tau) (Algorithm 1; T has no exponent)."""
        return 1.0 - self.config.forget_rate * linear_rampup(epoch, self.config.gradual_epochs)

    def step(self, batch: Batch, first: Learner, second: Learner, keep_rate: float) -> tuple[Tensor, Tensor]:
        """Train each network on what the other one picked; return both losses."""
        picked1, losses1_B = self.look(first, batch, keep_rate)
        picked2, losses2_B = self.look(second, batch, keep_rate)
        return self.descend(first, losses1_B[picked2].mean()), self.descend(second, losses2_B[picked1].mean())

    def look(self, learner: Learner, batch: Batch, keep_rate: float) -> tuple[Tensor, Tensor]:
        """Return positions of the samples that a network picks of a batch, and the losses of all, with gradient."""
        losses_B = cross_entropy_per_sample(learner.network(batch.images), batch.labels)
        picked = self.smallest(losses_B.detach(), keep_rate)
        learner.losses[batch.index] = losses_B.detach()
        learner.selected[batch.index[picked]] = True
        return picked, losses_B

    @staticmethod
    def smallest(losses_B: Tensor, keep_rate: float) -> Tensor:
        """Return the positions of the smallest losses, ascending: at least R(T) of the batch, and at least one."""
        # 0.3 of 10 is 3, although 0.3 * 10 may be a little more in floating point.
        count = max(1, math.ceil(keep_rate * len(losses_B) - 1e-6))
        return losses_B.argsort(stable=True)[:count]

    @staticmethod
    def descend(learner: Learner, loss: Tensor) -> Tensor:
        """Make one step of Adam; return the loss without its gradient."""
        learner.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        learner.optimizer.step()
        return loss.detach()

    def predict(self, images: Tensor) -> Ensemble:
        """Return the first network's logits, which are the answer (departure 6), and the second's for the log."""
        logits1_BC, logits2_BC = self.net1(images), self.net2(images)
        return Ensemble(logits=logits1_BC, networks={"net1": logits1_BC, "net2": logits2_BC})
