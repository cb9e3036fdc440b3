"""The synthetic noise families of the literature, announced without importing NumPy."""

from __future__ import annotations

from lnlbench.api import NoiseEntry, Paper

_PATRINI = Paper(
    title="Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach",
    authors="Patrini, Rozza, Menon, Nock, Qu",
    venue="CVPR",
    year=2017,
    url="https://arxiv.org/abs/1609.03683",
)

_HAN = Paper(
    title="Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels",
    authors="Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama",
    venue="NeurIPS",
    year=2018,
    url="https://arxiv.org/abs/1804.06872",
)

ENTRIES: tuple[NoiseEntry, ...] = (
    NoiseEntry(
        name="symmetric",
        target="lnlbench.builtin.noise.symmetric:symmetric",
        summary="Touched labels are redrawn uniformly, from all classes (inclusive) or the wrong ones (exclusive).",
        options={"count": ("exact", "exact-per-class", "bernoulli"), "replacement": ("exclusive", "inclusive")},
        paper=_HAN,
    ),
    NoiseEntry(
        name="asymmetric",
        target="lnlbench.builtin.noise.asymmetric:asymmetric",
        summary="Touched labels move to the one class that theirs is confused with, by a named map.",
        options={
            "count": ("exact", "exact-per-class", "bernoulli"),
            "map": ("cifar10", "mnist", "superclass", "block5", "next"),
        },
        paper=_PATRINI,
    ),
    NoiseEntry(
        name="pair",
        target="lnlbench.builtin.noise.pair:pair",
        summary="Touched labels move to the next class id, the last one to the first.",
        options={"count": ("bernoulli", "exact", "exact-per-class")},
        paper=_HAN,
    ),
)
