from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from lnlbench.blocks.sampling import class_balanced_draw, class_balanced_pass


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(1, 60), st.integers(0, 2**31))
def test_every_class_gives_its_share_or_all_it_has(labels: list[int], count: int, seed: int) -> None:
    drawn = class_balanced_draw(torch.tensor(labels), count, 5, torch.Generator().manual_seed(seed)).tolist()
    assert drawn == sorted(set(drawn))
    for label in range(5):
        assert sum(labels[index] == label for index in drawn) == min(labels.count(label), math.ceil(count / 5))


def test_every_sample_of_a_class_is_equally_likely() -> None:
    labels = torch.tensor([0] * 10 + [1] * 3)
    generator = torch.Generator().manual_seed(1)
    hits = torch.zeros(13)
    for _ in range(4000):
        hits[class_balanced_draw(labels, 8, 2, generator)] += 1
    # Four of ten: 1,600 expected, with a standard deviation of 31.
    assert ((hits[:10] - 1600).abs() < 4 * 31).all()
    assert (hits[10:] == 4000).all()


def test_pass_repeats_small_classes() -> None:
    sizes = (7, 3, 5, 0, 1)
    labels = torch.tensor([label for label, size in enumerate(sizes) for _ in range(size)])
    positions = class_balanced_pass(labels, 5, torch.Generator().manual_seed(2))
    assert len(positions) == 28
    assert labels[positions].bincount(minlength=5).tolist() == [7, 7, 7, 0, 7]
    counts = positions.bincount(minlength=16).tolist()
    assert counts[:7] == [1] * 7
    assert sorted(counts[7:10]) == [2, 2, 3]
    assert sorted(counts[10:15]) == [1, 1, 1, 2, 2]
    assert counts[15] == 7


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(0, 2**31))
def test_pass_takes_every_sample_and_evens_out_the_classes(labels: list[int], seed: int) -> None:
    positions = class_balanced_pass(
        torch.tensor(labels, dtype=torch.int64), 5, torch.Generator().manual_seed(seed)
    ).tolist()
    largest = max((labels.count(label) for label in range(5)), default=0)
    assert set(positions) == set(range(len(labels)))
    for label in set(labels):
        times = [positions.count(each) for each in range(len(labels)) if labels[each] == label]
        assert sum(times) == largest
        assert max(times) - min(times) <= 1


def test_pass_is_shuffled_and_chooses_what_it_repeats_at_random() -> None:
    labels = torch.tensor([0] * 6 + [1] * 4)
    generator = torch.Generator().manual_seed(3)
    extra, first = torch.zeros(4), torch.zeros(2)
    for _ in range(4000):
        positions = class_balanced_pass(labels, 2, generator)
        extra += positions.bincount(minlength=10)[6:] - 1
        first[labels[positions[0]]] += 1
    # Two of four: 2,000 expected, with a standard deviation of 32; likewise for the class that comes first.
    assert ((extra - 2000).abs() < 4 * 32).all()
    assert ((first - 2000).abs() < 4 * 32).all()
