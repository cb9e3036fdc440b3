"""Co-teaching and the network of its paper; nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence

from lnlbench.api import BackboneEntry, MethodEntry, Paper, hookimpl

PAPER = Paper(
    title="Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels",
    authors="Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama",
    venue="NeurIPS",
    year=2018,
    url="https://arxiv.org/abs/1804.06872",
    bibtex="""@inproceedings{han2018coteaching,
  title     = {{Co-teaching}: Robust Training of Deep Neural Networks with Extremely Noisy Labels},
  author    = {Han, Bo and Yao, Quanming and Yu, Xingrui and Niu, Gang and Xu, Miao and Hu, Weihua and
               Tsang, Ivor W. and Sugiyama, Masashi},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2018}
}""",
)


@hookimpl
def lnlbench_methods() -> Sequence[MethodEntry]:
    """Add Co-teaching."""
    return [
        MethodEntry(
            name="co-teaching",
            target="co_teaching.co_teaching:CoTeaching",
            summary="Two networks; of each batch, each trains on what has the smallest losses in the other one.",
            paper=PAPER,
        )
    ]


@hookimpl
def lnlbench_backbones() -> Sequence[BackboneEntry]:
    """Add the network of the paper."""
    return [
        BackboneEntry(
            name="cnn9",
            target="co_teaching.cnn9:cnn9",
            summary="Nine convolutions and a linear layer, the CNN of Co-teaching, for 28 to 32-pixel images.",
        )
    ]
