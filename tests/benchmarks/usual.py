"""How such code is usually written: PIL transforms, a DataLoader, NCHW float32. The other side of each comparison."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot, softmax
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class PilViews(Dataset[tuple[list[Tensor], int, int]]):
    """Decodes nothing, augments each image on its own."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        index: NDArray[np.int64],
        views: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self._images, self._labels, self._index, self._views = images, labels, index, views
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, row: int) -> tuple[list[Tensor], int, int]:
        position = int(self._index[row])
        picture = Image.fromarray(self._images[position])
        return [self._transform(picture) for _ in range(self._views)], int(self._labels[position]), position


def forever(loader: DataLoader[tuple[list[Tensor], int, int]]) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    """Repeat a loader."""
    while True:
        yield from loader


def dividemix_step(
    network: nn.Module,
    peer: nn.Module,
    optimiser: torch.optim.Optimizer,
    labelled: tuple[list[Tensor], Tensor, Tensor],
    unlabelled: tuple[list[Tensor], Tensor, Tensor],
    clean_probs: Tensor,
    device: torch.device,
) -> None:
    """One iteration of DivideMix, from host batches to the optimiser step."""
    (x1, x2), given, index = labelled
    (u1, u2), _, _ = unlabelled
    x1, x2, u1, u2 = (view.to(device) for view in (x1, x2, u1, u2))
    weights = clean_probs[index.to(device)].unsqueeze(1)
    with torch.no_grad():
        votes = [softmax(net(view), 1) for net in (network, peer) for view in (u1, u2)]
        guess = torch.stack(votes).mean(0) ** 2
        guess = guess / guess.sum(1, keepdim=True)
        mean = (softmax(network(x1), 1) + softmax(network(x2), 1)) / 2
        refined = (weights * one_hot(given.to(device), 10) + (1 - weights) * mean) ** 2
        refined = refined / refined.sum(1, keepdim=True)
    weight = max(lam := float(np.random.beta(4, 4)), 1 - lam)
    inputs = torch.cat([x1, x2, u1, u2])
    targets = torch.cat([refined, refined, guess, guess])
    order = torch.randperm(len(inputs), device=device)
    logits = network(weight * inputs + (1 - weight) * inputs[order])
    targets = weight * targets + (1 - weight) * targets[order]
    rows = 2 * len(x1)
    loss = -(targets[:rows] * log_softmax(logits[:rows], 1)).sum(1).mean()
    loss = loss + 25 * ((softmax(logits[rows:], 1) - targets[rows:]) ** 2).mean()
    average = softmax(logits, 1).mean(0)
    loss = loss + (0.1 * (0.1 / average).log()).sum()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
