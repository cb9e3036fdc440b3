"""Jo-SRC as an lnlbench method."""

from __future__ import annotations

from collections.abc import Sequence

from lnlbench.api import MethodEntry, Paper, hookimpl

PAPER = Paper(
    title="Jo-SRC: A Contrastive Approach for Combating Noisy Labels",
    authors="Yao, Sun, Zhang, Shen, Wu, Zhang, Tang",
    venue="CVPR",
    year=2021,
    url="https://arxiv.org/abs/2103.13029",
    bibtex="""@inproceedings{yao2021josrc,
  title     = {{Jo-SRC}: A Contrastive Approach for Combating Noisy Labels},
  author    = {Yao, Yazhou and Sun, Zeren and Zhang, Chuanyi and Shen, Fumin and Wu, Qi and Zhang, Jian and
               Tang, Zhenmin},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2021}
}""",
)


@hookimpl
def lnlbench_methods() -> Sequence[MethodEntry]:
    """Add Jo-SRC."""
    return [
        MethodEntry(
            name="josrc",
            target="lnlbench_josrc.josrc:JoSrc",
            summary="Two views of an image tell clean, mislabelled and out-of-distribution samples apart.",
            paper=PAPER,
        )
    ]
