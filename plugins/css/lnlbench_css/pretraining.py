"""Contrastive pre-training of the classifier's features, without labels (SimCLR, Chen et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lnlbench.api import ColourJitter, Greyscale, RandomFlip, RandomResizedCrop, Run, Stage, Task, ViewRecipe
from lnlbench.blocks.contrastive import nt_xent
from lnlbench.blocks.schedules import set_learning_rate

PROJECTION_WIDTH = 128
SIMCLR = ViewRecipe(
    ops=(
        RandomResizedCrop(area=(0.2, 1.0)),
        RandomFlip(),
        ColourJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, probability=0.8),
        Greyscale(probability=0.2),
    )
)


def projection_head(num_features: int) -> nn.Sequential:
    """Build the two-layer head between features and contrastive loss."""
    return nn.Sequential(
        nn.Linear(num_features, num_features), nn.ReLU(inplace=True), nn.Linear(num_features, PROJECTION_WIDTH)
    )


def cosine_decay(initial: float, epoch: int, epochs: int, *, floor: float = 1e-3) -> float:
    """Return the learning rate of an epoch: half a cosine from ``initial`` towards ``floor * initial``."""
    return initial * (floor + (1.0 - floor) * (1.0 + math.cos(math.pi * epoch / epochs)) / 2.0)


def pretrained(
    task: Task,
    run: Run,
    *,
    backbone: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    temperature: float,
    view: str,
) -> dict[str, Tensor]:
    """Return the state of a network whose features were trained to tell images apart; its linear layer is fresh.

    No label is used, so the result is shared by all tasks of a suite.

    Args:
        task: Where images and the network come from.
        run: Keeps the result.
        backbone: The network.
        epochs: Passes over the images.
        batch_size: Images per step; each gives two views.
        learning_rate: Of SGD, at the start.
        momentum: Of SGD.
        weight_decay: Of SGD.
        temperature: Of the contrastive loss.
        view: ``"simclr"`` (random part, mirrored, colours changed), or a view of the suite by name.
    """
    recipe: str | ViewRecipe = SIMCLR if view == "simclr" else view
    batch_size = min(batch_size, task.num_train)

    def compute(stage: Stage) -> Mapping[str, Tensor]:
        network = task.network("net", backbone)
        embed: Callable[[Tensor], Tensor] = network.embed  # type: ignore[assignment]
        head = projection_head(int(network.num_features)).to(stage.device)  # type: ignore[arg-type]
        optimizer = torch.optim.SGD(
            [*network.parameters(), *head.parameters()], learning_rate, momentum=momentum, weight_decay=weight_decay
        )
        loader = task.loader("pre-training", batch_size=batch_size, views=(recipe, recipe), drop_last=True)
        stage.track(network=network, head=head, optimizer=optimizer)
        for epoch in stage.epochs(epochs):
            set_learning_rate(optimizer, cosine_decay(learning_rate, epoch, epochs))
            network.train()
            for batch in loader:
                first_BD, second_BD = head(embed(torch.cat(batch.views))).chunk(2)
                loss = nt_xent(first_BD, second_BD, temperature)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                stage.log(loss=loss.detach())
        return network.state_dict()

    inputs: dict[str, Any] = {
        "backbone": backbone,
        "classes": task.num_classes,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "temperature": temperature,
        "view": recipe.model_dump(mode="json") if isinstance(recipe, ViewRecipe) else recipe,
    }
    return run.stage("contrastive pre-training", compute, inputs=inputs, uses_labels=False)
