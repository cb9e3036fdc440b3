from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from lnlbench.blocks import semantics
from lnlbench.blocks.semantics import (
    class_variances,
    draw_pairs,
    embedding_consistency,
    lca_distances,
    logit_wasserstein,
    top2_lca_distance,
    variance_entropy,
)

Float = NDArray[np.float64]
LINES = [
    ("cat", "mammal", "animal", "thing"),
    ("dog", "mammal", "animal", "thing"),
    ("frog", "amphibian", "animal", "thing"),
    ("truck", "vehicle", "thing"),
]


def consistency_by_hand(first: Float, second: Float, pairs: list[tuple[int, int]] | None = None) -> float:
    """Equation 4 of the paper, pair by pair."""
    cosines = []
    for a, b in pairs or itertools.combinations(range(len(first)), 2):
        one, other = first[a] - first[b], second[a] - second[b]
        cosines.append(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
    return float(np.mean(cosines))


def rotation(generator: np.random.Generator, size: int) -> Float:
    return np.asarray(np.linalg.qr(generator.normal(size=(size, size)))[0])


def two(generator: np.random.Generator, count: int = 40, width: int = 7) -> tuple[Float, Float]:
    first = generator.normal(size=(count, width))
    return first, first + generator.normal(size=(count, width))


def test_class_variances_and_their_entropy(generator: np.random.Generator) -> None:
    features = generator.normal(size=(60, 5)) * 3 + 100
    labels = generator.choice([0, 1, 4], size=60)
    expected = []
    for label in (0, 1, 4):
        members = features[labels == label]
        expected.append(np.mean([np.sum((each - members.mean(0)) ** 2) for each in members]))
    variances = class_variances(torch.from_numpy(features), torch.from_numpy(labels))
    np.testing.assert_allclose(variances.numpy(), expected, rtol=1e-12)
    shares = np.array(expected) / sum(expected)
    assert float(variance_entropy(variances)) == pytest.approx(-sum(s * math.log(s) for s in shares), rel=1e-12)


def test_entropy_of_worked_variances() -> None:
    assert float(variance_entropy(torch.tensor([2.0, 2.0, 2.0, 2.0]))) == pytest.approx(math.log(4))
    # Shares 1/2, 1/4, 1/4: 0.5 log 2 + 0.5 log 4.
    assert float(variance_entropy(torch.tensor([0.6, 0.3, 0.3]))) == pytest.approx(1.5 * math.log(2))
    assert float(variance_entropy(torch.tensor([5.0, 0.0]))) == 0.0
    assert math.isnan(float(variance_entropy(torch.zeros(3))))


def test_a_class_of_one_image_has_no_variance() -> None:
    features = torch.tensor([[1.0, 2.0], [0.0, 0.0], [2.0, 0.0]])
    assert class_variances(features, torch.tensor([0, 1, 1])).tolist() == [0.0, 1.0]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_entropy_is_blind_to_axes_scale_place_and_names(seed: int, scale: float, shift: float) -> None:
    generator = np.random.default_rng(seed)
    features, labels = generator.normal(size=(30, 4)), np.arange(30) % 3

    def entropy(features: Float, labels: NDArray[np.int64]) -> float:
        return float(variance_entropy(class_variances(torch.from_numpy(features), torch.from_numpy(labels))))

    usual = entropy(features, labels)
    assert 0.0 <= usual <= math.log(3) + 1e-12
    moved = scale * features @ rotation(generator, 4) + shift
    assert entropy(moved, labels) == pytest.approx(usual, rel=1e-6)
    assert entropy(features, np.array([2, 0, 1])[labels]) == pytest.approx(usual, rel=1e-12)


def test_lca_distances_count_edges() -> None:
    distances = lca_distances(LINES)
    # cat-dog: 2 edges; cat-frog: 4; cat-truck: 3 up and 2 down.
    assert distances.tolist() == [[0, 1, 2, 2.5], [1, 0, 2, 2.5], [2, 2, 0, 2.5], [2.5, 2.5, 2.5, 0]]


def test_a_class_may_be_the_group_of_another() -> None:
    assert lca_distances([("dog", "animal"), ("poodle", "dog", "animal"), ("animal",)]).tolist() == [
        [0.0, 0.5, 0.5],
        [0.5, 0.0, 1.0],
        [0.5, 1.0, 0.0],
    ]


def test_top2_distance_looks_at_the_two_most_probable(generator: np.random.Generator) -> None:
    distances = lca_distances(LINES)
    logits = generator.normal(size=(50, 4))
    expected = []
    for row in logits:
        second, first = np.argsort(row)[-2:]
        expected.append(distances.numpy()[first, second])
    assert float(top2_lca_distance(torch.from_numpy(logits), distances)) == pytest.approx(np.mean(expected))
    surely_pets = torch.tensor([[9.0, 8.0, 1.0, 0.0], [1.0, 2.0, 0.0, -1.0]])
    assert float(top2_lca_distance(surely_pets, distances)) == 1.0


def test_top2_distance_does_not_depend_on_the_order_of_classes(generator: np.random.Generator) -> None:
    logits, order = generator.normal(size=(20, 4)), generator.permutation(4)
    usual = top2_lca_distance(torch.from_numpy(logits), lca_distances(LINES))
    permuted = top2_lca_distance(torch.from_numpy(logits[:, order]), lca_distances([LINES[each] for each in order]))
    assert permuted == usual


def test_logit_distance_is_the_wasserstein_distance(generator: np.random.Generator) -> None:
    first, second = generator.normal(size=(25, 6)), 2 * generator.normal(size=(25, 6)) + 1
    expected = np.mean([wasserstein_distance(*rows) for rows in zip(first, second, strict=True)])
    distance = logit_wasserstein(torch.from_numpy(first), torch.from_numpy(second))
    assert float(distance) == pytest.approx(expected, rel=1e-12)
    assert logit_wasserstein(torch.from_numpy(second), torch.from_numpy(first)) == distance
    permuted = logit_wasserstein(torch.from_numpy(first[:, ::-1].copy()), torch.from_numpy(second))
    assert float(permuted) == pytest.approx(expected, rel=1e-12)
    assert float(logit_wasserstein(torch.from_numpy(first), torch.from_numpy(first + 0.25))) == pytest.approx(0.25)


def test_consistency_is_equation_4(generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two(generator)
    first += 50
    tensors = torch.from_numpy(first), torch.from_numpy(second)
    expected = consistency_by_hand(first, second)
    assert float(embedding_consistency(*tensors)) == pytest.approx(expected, rel=1e-10)
    # Blocks that do not divide the images, and blocks of one row.
    for rows in (13, 1):
        monkeypatch.setattr(semantics, "_ROWS", rows)
        assert float(embedding_consistency(*tensors)) == pytest.approx(expected, rel=1e-10)


def test_consistency_of_listed_pairs(generator: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two(generator)
    pairs = draw_pairs(40, 90, torch.Generator().manual_seed(3))
    expected = consistency_by_hand(first, second, [(a, b) for a, b in pairs.tolist()])
    monkeypatch.setattr(semantics, "_PAIRS", 40)
    found = embedding_consistency(torch.from_numpy(first), torch.from_numpy(second), pairs)
    assert float(found) == pytest.approx(expected, rel=1e-10)
    every = torch.combinations(torch.arange(40))
    listed = embedding_consistency(torch.from_numpy(first), torch.from_numpy(second), every)
    assert float(listed) == pytest.approx(consistency_by_hand(first, second), rel=1e-10)


def test_a_sample_of_pairs_comes_near_all_pairs(generator: np.random.Generator) -> None:
    first, second = (torch.from_numpy(each) for each in two(generator, count=300))
    sample = draw_pairs(300, 20_000, torch.Generator().manual_seed(0))
    exact = float(embedding_consistency(first, second))
    assert float(embedding_consistency(first, second, sample)) == pytest.approx(exact, abs=0.02)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3))
def test_what_consistency_does_not_see(seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    first, second = two(generator, count=12, width=4)
    usual = float(embedding_consistency(torch.from_numpy(first), torch.from_numpy(second)))
    assert -1.0 <= usual <= 1.0
    turn, order = rotation(generator, 4), generator.permutation(12)
    for one, other in (
        (second, first),
        (first @ turn, second @ turn),
        (scale * first, second + generator.normal(size=4)),
        (first[order], second[order]),
    ):
        assert float(embedding_consistency(torch.from_numpy(one), torch.from_numpy(other))) == pytest.approx(
            usual, abs=1e-9
        )


def test_consistency_of_a_network_with_itself_and_its_opposite(generator: np.random.Generator) -> None:
    first = torch.from_numpy(two(generator)[0])
    assert float(embedding_consistency(first, first)) == pytest.approx(1.0, abs=1e-12)
    assert float(embedding_consistency(first, -first)) == pytest.approx(-1.0, abs=1e-12)


def test_images_at_one_point_are_left_out(generator: np.random.Generator) -> None:
    first, second = two(generator, count=6)
    second[3] = second[1]
    pairs = [pair for pair in itertools.combinations(range(6), 2) if pair != (1, 3)]
    tensors = torch.from_numpy(first), torch.from_numpy(second)
    expected = consistency_by_hand(first, second, pairs)
    assert float(embedding_consistency(*tensors)) == pytest.approx(expected, rel=1e-10)
    listed = embedding_consistency(*tensors, torch.combinations(torch.arange(6)))
    assert float(listed) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_no_pair_no_consistency(count: int) -> None:
    same = torch.ones(count, 3)
    assert math.isnan(float(embedding_consistency(same, same)))


def test_drawn_pairs_are_different_images_and_reach_all() -> None:
    pairs = draw_pairs(5, 4000, torch.Generator().manual_seed(1))
    assert pairs.shape == (4000, 2)
    assert not bool((pairs[:, 0] == pairs[:, 1]).any())
    counts = np.bincount((5 * pairs[:, 0] + pairs[:, 1]).numpy(), minlength=25).reshape(5, 5)
    assert counts.diagonal().tolist() == [0] * 5
    # 200 expected in each of 20 cells; 5 standard deviations are 69.
    assert np.abs(counts[~np.eye(5, dtype=bool)] - 200).max() < 69
    assert torch.equal(pairs, draw_pairs(5, 4000, torch.Generator().manual_seed(1)))


def test_no_gradient_and_float64() -> None:
    features, logits = torch.rand(6, 3, requires_grad=True), torch.rand(6, 4, requires_grad=True)
    for value in (
        class_variances(features, torch.arange(6) % 2),
        embedding_consistency(features, features.flip(0)),
        top2_lca_distance(logits, lca_distances(LINES)),
        logit_wasserstein(logits, logits.flip(0)),
    ):
        assert value.dtype == torch.float64
        assert not value.requires_grad


def test_widths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"both networks must give one shape, got \(4, 2\) and \(4, 3\)"):
        embedding_consistency(torch.rand(4, 2), torch.rand(4, 3))
    with pytest.raises(ValueError, match="must give one shape"):
        logit_wasserstein(torch.rand(4, 2), torch.rand(4, 3))
