from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from lnlbench.blocks.sampling import class_balanced_draw


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
