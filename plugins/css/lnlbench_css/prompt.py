"""CLIP with a learnable text prompt (CoOp, Zhou et al. 2022): what it thinks of images, and how it learns.

Shapes: N training set, B batch, C classes, E common space, M context tokens, D token width, K stored views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lnlbench.api import Batch, Encoder, Run, Stage, Stream, Task

PHRASE = "a photo of a"


@dataclass(frozen=True)
class StoredViews:
    """Image features of a few augmentations of every training image."""

    weak: Tensor
    """``features_KNE``, float16."""
    strong: Tensor
    """``features_KNE``, float16."""


class Prompt:
    """A frozen encoder, and the context vectors that stand before every class name."""

    def __init__(self, encoder: Encoder, class_names: tuple[str, ...], context_MD: Tensor) -> None:
        self.encoder = encoder
        self.names = [name.replace("_", " ") for name in class_names]
        self.context = nn.ParameterDict({"vectors": nn.Parameter(context_MD)})

    def class_features(self) -> Tensor:
        """Return ``features_CE``; gradient flows to the context."""
        return self.encoder.prompt_features(self.context["vectors"], self.names)

    def logits(self, features_BE: Tensor, class_features_CE: Tensor) -> Tensor:
        """Return ``logits_BC``: cosines over the temperature, whose softmax is P(x) (eq. 2)."""
        return features_BE @ class_features_CE.T / self.encoder.temperature

    def training_logits(self) -> Tensor:
        """Return ``logits_NC`` of the un-augmented training images under the current prompt."""
        with torch.no_grad():
            return self.logits(self.encoder.training_features(), self.class_features())

    def zero_shot_classes(self) -> Tensor:
        """Return ``classes_N``: what the encoder takes the training images for, asked in plain words."""
        text_CE = self.encoder.text_features([f"{PHRASE} {name}." for name in self.names])
        return self.logits(self.encoder.training_features(), text_CE).argmax(dim=1)

    def view_features(self, batch: Batch, stored: StoredViews | None, stream: Stream) -> tuple[Tensor, Tensor]:
        """Return features of the first (weak) and the last (strong) view of a batch, ``features_BE`` each.

        They are encoded together, in one pass; or drawn from the stored ones.
        """
        if stored is None:
            weak_BE, strong_BE = self.encoder.image_features(torch.cat([batch.views[0], batch.views[-1]])).chunk(2)
            return weak_BE, strong_BE
        index_B, count = batch.index, len(stored.weak)
        choice_B = torch.randint(count, index_B.shape, generator=stream.torch, device=index_B.device)
        return stored.weak[choice_B, index_B].float(), stored.strong[choice_B, index_B].float()


def initial_context(encoder: Encoder, num_tokens: int, start: Literal["phrase", "random"], stream: Stream) -> Tensor:
    """Return ``context_MD`` to start from.

    Args:
        encoder: Whose tokens they are.
        num_tokens: M; 0 for as many as the phrase has.
        start: ``"phrase"``: the tokens of "a photo of a", repeated so that the phrase ends right before the class name;
            ``"random"``: normal with standard deviation 0.02.
        stream: Where the randomness comes from.
    """
    phrase_LD = encoder.token_embeddings(PHRASE)
    count = num_tokens or len(phrase_LD)
    if start == "random":
        return 0.02 * torch.randn(count, encoder.context_dim, generator=stream.torch, device=phrase_LD.device)
    return phrase_LD[torch.arange(-count, 0, device=phrase_LD.device) % len(phrase_LD)]


def stored_views(task: Task, run: Run, encoder: Encoder, count: int, batch_size: int) -> StoredViews:
    """Return features of ``count`` weak and as many strong views of every training image; computed once.

    They are kept in half precision, which shifts a cosine by about 1e-4.
    """

    def compute(_: Stage) -> Mapping[str, Tensor]:
        loader = task.loader("stored views", batch_size=batch_size, views=("weak", "strong"), shuffle=False)
        passes = [
            [encoder.image_features(torch.cat(batch.views)).half().chunk(2) for batch in loader] for _ in range(count)
        ]
        weak, strong = ([torch.cat([pair[view] for pair in each]) for each in passes] for view in (0, 1))
        return {"weak": torch.stack(weak), "strong": torch.stack(strong)}

    inputs = {"encoder": encoder.name, "weights": encoder.fingerprint, "views": count}
    stored = run.stage("prompt views", compute, inputs=inputs, uses_labels=False)
    return StoredViews(stored["weak"], stored["strong"])
