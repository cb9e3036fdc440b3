"""CSS as an lnlbench method."""

from __future__ import annotations

from collections.abc import Sequence

from lnlbench.api import MethodEntry, Paper, hookimpl

PAPER = Paper(
    title="Learning with Noisy Labels Using Collaborative Sample Selection and Contrastive Semi-Supervised Learning",
    authors="Miao, Wu, Xu, Ji, Zuo, Guo, Meng",
    venue="arXiv",
    year=2023,
    url="https://arxiv.org/abs/2310.15533",
    bibtex="""@article{miao2023css,
  title   = {Learning with Noisy Labels Using Collaborative Sample Selection and Contrastive Semi-Supervised Learning},
  author  = {Miao, Qing and Wu, Xiaohe and Xu, Chao and Ji, Yanli and Zuo, Wangmeng and Guo, Yiwen and Meng, Zhaopeng},
  journal = {arXiv preprint arXiv:2310.15533},
  year    = {2023}
}""",
)


@hookimpl
def lnlbench_methods() -> Sequence[MethodEntry]:
    """Add CSS."""
    return [
        MethodEntry(
            name="css",
            target="lnlbench_css.css:Css",
            summary="Classifier and CLIP select clean samples together; both then learn from them semi-supervised.",
            paper=PAPER,
            supervision=("clip",),
        )
    ]
