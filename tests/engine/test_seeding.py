from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lnlbench.engine.seeding import (
    SETUP,
    Clock,
    derive_seed,
    hash_index,
    seed_globals,
    uniform_fractions,
    uniform_integers,
)

CPU = torch.device("cpu")
WORD = (1 << 64) - 1


def mix(value: int) -> int:
    """One round of the finaliser, on Python integers, which have no sign bit to trip over."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
    return value ^ (value >> 31)


@given(st.integers(0, WORD), st.integers(0, 2**40), st.integers(0, 5))
def test_hash_equals_integer_arithmetic(key: int, index: int, lane: int) -> None:
    expected = mix(mix((index * 0x9E3779B97F4A7C15 + key + lane * 0xBF58476D1CE4E5B9) & WORD))
    bits = hash_index(key, torch.tensor([index, 7]), lane)
    assert int(bits[0]) & WORD == expected
    assert bits.dtype == torch.int64


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_a_hash_does_not_depend_on_its_neighbours(indices: list[int]) -> None:
    together = hash_index(99, torch.tensor(indices))
    alone = torch.cat([hash_index(99, torch.tensor([index])) for index in indices])
    assert torch.equal(together, alone)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 2**31))
def test_bits_to_numbers(bits: int, count: int) -> None:
    unsigned = bits & WORD
    assert int(uniform_integers(torch.tensor([bits]), count)[0]) == ((unsigned >> 33) * count) >> 31
    fraction = uniform_fractions(torch.tensor([bits]))
    assert fraction.dtype == torch.float32
    assert float(fraction[0]) == (unsigned >> 40) / 2**24
    assert 0.0 <= float(fraction[0]) < 1.0


@pytest.mark.parametrize("count", [2, 9, 10])
@pytest.mark.parametrize("lane", [0, 1, 2])
def test_hashes_are_uniform_over_indices_and_over_keys(count: int, lane: int) -> None:
    over_indices = uniform_integers(hash_index(derive_seed("k"), torch.arange(50_000), lane), count)
    over_keys = torch.cat(
        [uniform_integers(hash_index(derive_seed("k", n), torch.tensor([3]), lane), count) for n in range(3_000)]
    )
    for drawn in (over_indices, over_keys):
        assert stats.chisquare(np.bincount(drawn.numpy(), minlength=count)).pvalue > 1e-4


def test_lanes_and_neighbouring_keys_are_uncorrelated() -> None:
    index = torch.arange(20_000)
    rows = [uniform_fractions(hash_index(key, index, lane)).numpy() for key in (5, 6) for lane in (0, 1, 2)]
    correlations = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlations).max() < 0.035


def test_a_seed_is_a_digest_of_its_parts() -> None:
    digest = hashlib.blake2b(b"3\x1fstream\x1fmixup", digest_size=8).digest()
    assert derive_seed(3, "stream", "mixup") == int.from_bytes(digest, "little")
    parts = [("a", "b"), ("ab",), ("b", "a"), ("a", "b", ""), (1, 23), (12, 3)]
    assert len({derive_seed(*each) for each in parts}) == len(parts)


def test_global_generators_are_seeded_alike() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(()))

    seed_globals(1, "x")
    first = draw()
    assert draw() != first
    seed_globals(1, "x")
    assert draw() == first
    seed_globals(2, "x")
    assert all(a != b for a, b in zip(draw(), first, strict=True))


@pytest.mark.parametrize(
    "draw",
    [
        lambda clock, name: clock.stream(name, CPU).numpy.random(),
        lambda clock, name: float(torch.rand((), generator=clock.stream(name, CPU).torch)),
        lambda clock, name: clock.stream(name, CPU).seed(),
    ],
    ids=["numpy", "torch", "seed"],
)
def test_streams_start_anew_at_each_moment(draw: Callable[[Clock, str], float]) -> None:
    clock = Clock(1)
    clock.move_to("epoch 0")
    first = [draw(clock, "mixup") for _ in range(3)]
    assert len(set(first)) == 3
    clock.move_to("epoch 1")
    assert draw(clock, "mixup") not in first
    clock.move_to("epoch 0")
    # Another stream in between moves nothing.
    again = []
    for _ in range(3):
        draw(clock, "other")
        again.append(draw(clock, "mixup"))
    assert again == first
    # Nor does it matter whether another moment came in between.
    clock.move_to("epoch 0")
    assert draw(clock, "mixup") == first[0]
    elsewhere = Clock(2)
    elsewhere.move_to("epoch 0")
    assert draw(elsewhere, "mixup") not in first


def test_a_stream_is_the_documented_function_of_seed_name_and_moment() -> None:
    clock = Clock(7)
    clock.move_to("epoch 4")
    seed = derive_seed(7, "stream", "gmm", "epoch 4")
    assert clock.stream("gmm", CPU).numpy.random() == np.random.Generator(np.random.PCG64(seed)).random()
    reference = torch.Generator().manual_seed(seed & (2**63 - 1))
    assert torch.equal(torch.rand(3, generator=clock.stream("gmm", CPU).torch), torch.rand(3, generator=reference))


def test_a_stream_keeps_its_generators_within_a_moment() -> None:
    clock = Clock(1)
    stream = clock.stream("a", CPU)
    assert stream is clock.stream("a", CPU)
    assert stream.numpy is stream.numpy
    assert stream.torch is stream.torch
    old = stream.torch
    clock.move_to("epoch 0")
    assert stream.torch is not old
    assert 0 <= stream.seed() < 2**32


def test_the_clock_counts_passes_within_a_moment_and_seeds_the_globals() -> None:
    clock = Clock(1)
    assert clock.moment == SETUP
    assert [clock.next_pass("a"), clock.next_pass("a"), clock.next_pass("b")] == [0, 1, 0]
    clock.move_to("epoch 0")
    drawn = torch.rand(2)
    assert clock.next_pass("a") == 0
    clock.move_to("epoch 1")
    assert not torch.equal(torch.rand(2), drawn)
    clock.move_to("epoch 0")
    assert torch.equal(torch.rand(2), drawn)
