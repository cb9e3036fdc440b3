"""Datasets: the digits that come with scikit-learn, Fashion-MNIST, and the two CIFARs."""

from __future__ import annotations

from lnlbench.api import DatasetEntry, Paper

_CIFAR = Paper(
    title="Learning Multiple Layers of Features from Tiny Images",
    authors="Krizhevsky",
    venue="Technical report, University of Toronto",
    year=2009,
    url="https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf",
)

ENTRIES: tuple[DatasetEntry, ...] = (
    DatasetEntry(
        name="digits",
        target="lnlbench.builtin.datasets.digits:Digits",
        summary="1,797 grey 8x8 images of handwritten digits in 10 classes; ships inside scikit-learn.",
        paper=Paper(
            title="Optical Recognition of Handwritten Digits",
            authors="Alpaydin, Kaynak",
            venue="UCI Machine Learning Repository",
            year=1998,
            url="https://doi.org/10.24432/C50P49",
        ),
    ),
    DatasetEntry(
        name="fashion",
        target="lnlbench.builtin.datasets.fashion:Fashion",
        summary="Fashion-MNIST: 60,000 + 10,000 grey 28x28 images of clothes in 10 classes.",
        paper=Paper(
            title="Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
            authors="Xiao, Rasul, Vollgraf",
            venue="arXiv",
            year=2017,
            url="https://arxiv.org/abs/1708.07747",
        ),
    ),
    DatasetEntry(
        name="cifar10",
        target="lnlbench.builtin.datasets.cifar:Cifar10",
        summary="CIFAR-10: 50,000 + 10,000 colour 32x32 images in 10 classes.",
        paper=_CIFAR,
    ),
    DatasetEntry(
        name="cifar100",
        target="lnlbench.builtin.datasets.cifar:Cifar100",
        summary="CIFAR-100: 50,000 + 10,000 colour 32x32 images in 100 classes.",
        paper=_CIFAR,
    ),
)
