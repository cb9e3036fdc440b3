"""What CLIPCleaner selects by: two probability matrices, two scores of each, and what is done about empty classes.

Equation numbers refer to Feng et al., *CLIPCleaner: Cleaning Noisy Labels with CLIP*, ACM MM 2024.

Shapes: N samples, C classes, P prompts, E width of the common space of images and texts.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lnlbench.blocks.mixture import clean_probabilities_per_class

_ROWS = 16_384
_LEAST_PROBABILITY = 1e-12


def zero_shot_probabilities(
    image_features_NE: Tensor, text_features_PE: Tensor, class_of_prompt_P: Tensor, num_classes: int, tau: float
) -> Tensor:
    r"""Compute the zero-shot classifier's :math:`Z_{ik} \propto \sum_j \exp(g(x_i) \cdot h(t_{kj}) / \tau)` (eq. 4).

    It is the exponentials that are summed over the prompts of a class, neither their embeddings nor their logits.

    Args:
        image_features_NE: Of length 1.
        text_features_PE: Of length 1.
        class_of_prompt_P: int64 in [0, C).
        num_classes: C.
        tau: Temperature, above 0.

    Returns:
        ``probs_NC``, rows sum to 1.
    """
    membership_PC = F.one_hot(class_of_prompt_P, num_classes).to(text_features_PE)
    return torch.cat(
        [
            (rows_nE @ text_features_PE.T / tau).softmax(dim=1) @ membership_PC
            for rows_nE in torch.split(image_features_NE, _ROWS)
        ]
    )


def induced_probabilities(
    image_features_NE: Tensor,
    labels_N: Tensor,
    num_classes: int,
    classifier: Literal["logistic", "knn"],
    neighbours: int,
) -> Tensor:
    """Fit a classifier to features and given labels, and return what it says of the very same samples.

    Args:
        image_features_NE: Of length 1.
        labels_N: int64 in [0, C).
        num_classes: C.
        classifier: Logistic regression with balanced classes, or the votes of the nearest neighbours (itself included).
        neighbours: How many neighbours vote.

    Returns:
        ``probs_NC``, float32, rows sum to 1; 0 for classes without samples.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    present = torch.bincount(labels_N, minlength=num_classes).nonzero().flatten()
    probs_NC = torch.zeros(len(labels_N), num_classes, device=labels_N.device)
    if len(present) == 1:
        probs_NC[:, present] = 1.0
        return probs_NC
    features, labels = image_features_NE.double().cpu().numpy(), labels_N.cpu().numpy()
    if classifier == "logistic":
        model = LogisticRegression(class_weight="balanced", max_iter=10_000, random_state=0)
    else:
        model = KNeighborsClassifier(n_neighbors=min(neighbours, len(labels)), algorithm="brute")
    with warnings.catch_warnings():
        # Where it stops is good enough to rank samples by.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    probs_NC[:, present] = torch.from_numpy(model.predict_proba(features)).to(probs_NC)
    return probs_NC


def consistency_scores(probs_NC: Tensor, labels_N: Tensor) -> Tensor:
    r"""Compute :math:`c_i = Q_{i y_i} / \max_k Q_{ik}` (eq. 5): 1 where the label is the most probable class.

    Args:
        probs_NC: Rows of probabilities Q.
        labels_N: int64 in [0, C).

    Returns:
        ``(N,)``, in [0, 1].
    """
    return _of_label(probs_NC, labels_N) / probs_NC.max(dim=1).values


def loss_scores(probs_NC: Tensor, labels_N: Tensor, random_state: int) -> Tensor:
    r"""Return the posterior of the Gaussian of small losses :math:`-\log Q_{i y_i}`, fitted class by class (eq. 6).

    Args:
        probs_NC: Rows of probabilities Q.
        labels_N: int64 in [0, C).
        random_state: Seed of the mixtures.

    Returns:
        ``(N,)``, float32, in [0, 1].
    """
    losses_N = -_of_label(probs_NC, labels_N).clamp_min(_LEAST_PROBABILITY).log()
    return clean_probabilities_per_class(
        losses_N, labels_N, probs_NC.shape[1], max_iter=100, tol=1e-3, reg_covar=1e-6, random_state=random_state
    )


def fill_empty_classes(
    selected_N: Tensor, scores_N: Tensor, labels_N: Tensor, num_classes: int, order: Literal["best", "released"]
) -> tuple[Tensor, list[int]]:
    """Add samples of classes of which none is selected.

    Each gets as many as the smallest other class has, and at least N / C² and one.

    Args:
        selected_N: bool.
        scores_N: How clean a sample is.
        labels_N: int64 in [0, C).
        num_classes: C.
        order: ``best`` takes those of the highest scores first, ``released`` those of the lowest.

    Returns:
        The selection, and the classes it was added to; a class without samples is not among them.
    """
    selected_N = selected_N.clone()
    sizes = torch.bincount(labels_N[selected_N], minlength=num_classes).tolist()
    there_are = torch.bincount(labels_N, minlength=num_classes).tolist()
    count = max(min((size for size in sizes if size), default=0), len(labels_N) // num_classes**2, 1)
    empty = [label for label in range(num_classes) if there_are[label] and not sizes[label]]
    for label in empty:
        members = (labels_N == label).nonzero().flatten()
        ranked = members[torch.argsort(scores_N[members], descending=order == "best", stable=True)]
        selected_N[ranked[:count]] = True
    return selected_N, empty


def _of_label(probs_NC: Tensor, labels_N: Tensor) -> Tensor:
    return probs_NC.gather(1, labels_N.unsqueeze(1)).squeeze(1)
