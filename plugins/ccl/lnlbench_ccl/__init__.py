"""CCL as an lnlbench method."""

from __future__ import annotations

from collections.abc import Sequence

from lnlbench.api import MethodEntry, Paper, hookimpl

PAPER = Paper(
    title="Combating Semantic Contamination in Learning with Label Noise",
    authors="Fan, Li",
    venue="AAAI",
    year=2025,
    url="https://arxiv.org/abs/2412.11620",
    bibtex="""@inproceedings{fan2025combating,
  title     = {Combating Semantic Contamination in Learning with Label Noise},
  author    = {Fan, Wenxiao and Li, Kan},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2025}
}""",
)


@hookimpl
def lnlbench_methods() -> Sequence[MethodEntry]:
    """Add CCL."""
    return [
        MethodEntry(
            name="ccl",
            target="lnlbench_ccl.ccl:Ccl",
            summary="Two networks refurbish each other's labels and align embeddings across views and networks.",
            paper=PAPER,
            networks_at_test=2,
        )
    ]
