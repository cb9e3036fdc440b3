"""Two terms that align views and networks, as an addition to DivideMix's loss (Fan & Li, AAAI 2025, Table 5).

Equation numbers are those of *Combating Semantic Contamination in Learning with Label Noise*. How the terms go into
DivideMix's loss is our reading of it (departure 18).

Shapes: B batch, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

from lnlbench.blocks.contrastive import class_contrast, instance_contrast, mimicry, similarity
from lnlbench.blocks.fixmatch import pseudo_label_losses
from lnlbench.blocks.losses import soft_cross_entropy_per_sample
from lnlbench.blocks.sharpen import sharpen

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lnlbench.api import Batch
    from lnlbench_dividemix.dividemix import DivideMix


@dataclass(frozen=True)
class Seen:
    """What a network makes of images in one forward pass."""

    features: Tensor
    """``features_BD``, float32: what its last linear layer gets; D is 0 where nobody asked for them."""
    logits: Tensor
    """``logits_BC``, float32."""


def look(network: nn.Module, images_BCHW: Tensor, *, features: bool = True) -> Seen:
    """Make one forward pass."""
    if not features:
        logits_BC: Tensor = network(images_BCHW)
        return Seen(logits_BC[:, :0], logits_BC)
    embed: Callable[[Tensor], Tensor] = network.embed  # type: ignore[assignment]
    classify: Callable[[Tensor], Tensor] = network.classify  # type: ignore[assignment]
    features_BD = embed(images_BCHW)
    return Seen(features_BD, classify(features_BD))


def together(parts: Sequence[Seen]) -> Seen:
    """Return passes over parts of a batch as one."""
    return Seen(torch.cat([each.features for each in parts]), torch.cat([each.logits for each in parts]))


def refine(labels_B: Tensor, clean_probs_B: Tensor, probs_BC: Tensor) -> Tensor:
    """Return given labels and predictions, mixed by how far the labels are trusted."""
    given_BC = torch.zeros_like(probs_BC).scatter_(1, labels_B.unsqueeze(1), 1.0)
    clean_probs_B1 = clean_probs_B.unsqueeze(1)
    return clean_probs_B1 * given_BC + (1.0 - clean_probs_B1) * probs_BC


def cross_loss(
    config: DivideMix.Config,
    network: nn.Module,
    peer: nn.Module,
    batches: Sequence[Batch],
    own_weak: Sequence[Seen],
    peer_weak: Sequence[Seen],
    clean_probs_N: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what is added to the loss of a step, and its parts for the log.

    Args:
        config: Weights and temperatures; a term of weight 0 is not computed.
        network: The network being trained, in train mode.
        peer: The other one, in eval mode.
        batches: The labelled images of the step and, if there are any, the unlabelled ones; the third view is strong.
        own_weak: What ``network`` made of the first view of each batch.
        peer_weak: What ``peer`` made of the first view of the unlabelled images.
        clean_probs_N: The peer's clean probabilities.
    """
    strong = look(network, torch.cat([batch.views[2] for batch in batches]))
    clean_probs_B = clean_probs_N[torch.cat([batch.index for batch in batches])]
    terms: dict[str, tuple[float, Tensor]] = {}
    if config.lambda_cvl > 0.0:
        terms["loss_cvl"] = config.lambda_cvl, across_views(config, strong, together(own_weak))
    if config.lambda_cml > 0.0:
        with torch.no_grad():
            peer_seen = together([look(peer, batches[0].views[0]), *peer_weak])
        labels_B = torch.cat([batch.labels for batch in batches])
        terms["loss_cml"] = config.lambda_cml, across_networks(config, strong, peer_seen, labels_B, clean_probs_B)

    added, parts = strong.logits.new_zeros(()), {}
    for name, (weight, term_B) in terms.items():
        # Eq. 15: the less its label is trusted, the more an image learns from elsewhere.
        term = (0.5 * (1.0 - clean_probs_B) * term_B).mean()
        added = added + weight * term
        parts[name] = term.detach()
    return added, parts


def across_views(config: DivideMix.Config, strong: Seen, weak: Seen) -> Tensor:
    """Return L_CVL of each image (eq. 8): two views of one network guide, find and mimic each other.

    Gradient flows to both views' features and to the strong view's logits.
    """
    guidance_B, _ = pseudo_label_losses(weak.logits, strong.logits, config.confidence, hard=True)  # eq. 7
    similarity_BB = similarity(strong.features, weak.features, config.contrast_temperature)
    return guidance_B + instance_contrast(similarity_BB) + mimicry(similarity_BB)  # eq. 5, 6


def across_networks(
    config: DivideMix.Config, strong: Seen, peer: Seen, labels_B: Tensor, clean_probs_B: Tensor
) -> Tensor:
    """Return L_CML of each image (eq. 13): a network's strong view follows, finds and mimics its peer's weak view.

    An image is to be found among those whose refurbished labels are of its class. Gradient flows to ``strong``.
    """
    peer_probs_BC = F.softmax(peer.logits, dim=1)
    agreement_B = soft_cross_entropy_per_sample(strong.logits, sharpen(peer_probs_BC, config.temperature))
    # Eq. 10, with the prediction as it is: sharpened, it could outweigh the label.
    classes_B = refine(labels_B, clean_probs_B, peer_probs_BC).argmax(dim=1)
    similarity_BB = similarity(strong.features, peer.features, config.contrast_temperature)
    return agreement_B + class_contrast(similarity_BB, classes_B) + mimicry(similarity_BB)  # eq. 9, 12
