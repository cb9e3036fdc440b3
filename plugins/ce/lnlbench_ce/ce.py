"""Cross-entropy on the given labels: what happens when nothing is done about label noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field

from lnlbench.api import Method, MethodConfig, Run, Task, TaskInfo, UsageError
from lnlbench.blocks.losses import cross_entropy_per_sample
from lnlbench.blocks.schedules import set_learning_rate, step_decay

if TYPE_CHECKING:
    from torch import Tensor, nn


class CrossEntropy(Method["CrossEntropy.Config"]):
    """One network, SGD, the mean of -log softmax(z_b)[y_b] over each batch.

    It looks at the given labels only and reports no selection; nothing but training and prediction is done, so its
    running time is the yardstick of what another method costs. Started from another method's selection (``--select``),
    it trains on the selected samples alone, as in Feng et al. 2024, Table 3.

    ==============  ============  =======================
    symbol          here          meaning
    ==============  ============  =======================
    z_b             logits_BC     the network's output
    y_b             batch.labels  the given labels
    ==============  ============  =======================

    Shapes: B batch, C classes.
    """

    class Config(MethodConfig):
        """The options."""

        learning_rate: float = Field(0.02, gt=0.0, description="Initial learning rate of SGD.")
        momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Momentum of SGD (no Nesterov).")
        weight_decay: float = Field(5e-4, ge=0.0, description="Weight decay of SGD, on all parameters.")
        lr_drop_epoch: int = Field(ge=0, description="First epoch with the learning rate multiplied by lr_drop_factor.")
        lr_drop_factor: float = Field(0.1, gt=0.0, le=1.0, description="Factor of the learning-rate drop.")

    network: nn.Module

    @classmethod
    def preset(cls, task: TaskInfo) -> Config:
        """Return the CIFAR schedule of the DivideMix paper; for other data, our own choice. Asks for nothing."""
        if task.dataset in ("cifar10", "cifar100"):
            return cls.Config(epochs=300, batch_size=128, backbone="preact-resnet18", lr_drop_epoch=150)
        # ImageNet-sized images: the optimiser settings of the same paper for Clothing1M and WebVision.
        large = {
            "clothing1m": {"learning_rate": 0.002, "weight_decay": 1e-3},
            "mini-webvision": {"learning_rate": 0.01},
        }
        return cls.Config(
            epochs=task.default_epochs,
            batch_size=64,
            backbone=task.default_backbone,
            lr_drop_epoch=max(1, task.default_epochs // 2),
            **large.get(task.dataset, {}),
        )

    def fit(self, task: Task, run: Run) -> None:
        """Train on the given labels."""
        config = self.config
        self.network = task.network("net", config.backbone)
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        run.track(network=self.network, optimizer=optimizer)
        index = None if task.selection is None else task.selection.selected.nonzero().flatten()
        if index is not None and not len(index):
            raise UsageError("the selection to start from is empty, so there is nothing to train on")
        for epoch in run.epochs(config.epochs):
            set_learning_rate(
                optimizer,
                step_decay(config.learning_rate, epoch, drops=[config.lr_drop_epoch], factor=config.lr_drop_factor),
            )
            self.network.train()
            if task.selection is not None:
                run.report(clean_probs=task.selection.clean_probs, selected=task.selection.selected)
            for batch in task.loader("net", batch_size=config.batch_size, index=index):
                loss = cross_entropy_per_sample(self.network(batch.images), batch.labels).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                run.log(loss=loss.detach())

    def predict(self, images: Tensor) -> Tensor:
        """Return the network's logits."""
        logits_BC: Tensor = self.network(images)
        return logits_BC
