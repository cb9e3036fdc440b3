"""Small-loss selection: mislabelled samples are fitted late, so early on they are those with a large loss."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from lnlbench.api import Method, MethodConfig, Run, Task, TaskInfo


class SmallLossConfig(MethodConfig):
    """Options."""

    lr: float = Field(gt=0, description="Learning rate.")
    warm_up: int = Field(ge=0, description="Epochs in which every sample is used.")
    noise_rate: float = Field(ge=0, lt=1, description="Share of each batch that is left out.")


class SmallLoss(Method[SmallLossConfig]):
    """Each batch learns from its (1 - noise rate) share with the smallest loss."""

    Config = SmallLossConfig

    @classmethod
    def preset(cls, task: TaskInfo) -> SmallLossConfig:
        """Use the suite's own schedule and the true noise rate, which is stamped on every row.

        If all labels are wrong, a tenth of each batch is still used.
        """
        return SmallLossConfig(
            epochs=task.default_epochs,
            batch_size=64,
            backbone=task.default_backbone,
            lr=0.05,
            warm_up=3,
            noise_rate=min(task.ask_noise_rate() or 0.0, 0.9),
        )

    def fit(self, task: Task, run: Run) -> None:
        """Train."""
        config = self.config
        self.net = task.network("net", config.backbone)
        optimiser = torch.optim.SGD(self.net.parameters(), lr=config.lr, momentum=0.9, weight_decay=5e-4)
        run.track(net=self.net, optimiser=optimiser)
        loader = task.loader("train", batch_size=config.batch_size, views=("weak",))

        for epoch in run.epochs(config.epochs):
            keep = 1.0 if epoch < config.warm_up else 1.0 - config.noise_rate
            losses_N = torch.zeros(task.num_train, device=task.device)
            selected_N = torch.zeros(task.num_train, dtype=torch.bool, device=task.device)
            self.net.train()
            for batch in loader:
                losses_B = cross_entropy(self.net(batch.images), batch.labels, reduction="none")
                kept = losses_B.argsort()[: max(1, round(keep * len(losses_B)))]
                loss = losses_B[kept].mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses_N[batch.index] = losses_B.detach()
                selected_N[batch.index[kept]] = True
                run.log(loss=loss)
            run.report(clean_probs=torch.exp(-losses_N), selected=selected_N)

    def predict(self, images: Tensor) -> Tensor:
        """Return the network's logits."""
        return self.net(images)
