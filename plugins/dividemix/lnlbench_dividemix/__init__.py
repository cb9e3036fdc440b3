"""DivideMix as an lnlbench method."""

from __future__ import annotations

from collections.abc import Sequence

from lnlbench.api import MethodEntry, Paper, hookimpl

PAPER = Paper(
    title="DivideMix: Learning with Noisy Labels as Semi-supervised Learning",
    authors="Li, Socher, Hoi",
    venue="ICLR",
    year=2020,
    url="https://arxiv.org/abs/2002.07394",
    bibtex="""@inproceedings{li2020dividemix,
  title     = {{DivideMix}: Learning with Noisy Labels as Semi-supervised Learning},
  author    = {Li, Junnan and Socher, Richard and Hoi, Steven C. H.},
  booktitle = {International Conference on Learning Representations},
  year      = {2020}
}""",
)


@hookimpl
def lnlbench_methods() -> Sequence[MethodEntry]:
    """Add DivideMix."""
    return [
        MethodEntry(
            name="dividemix",
            target="lnlbench_dividemix.dividemix:DivideMix",
            summary="Two networks split the data for each other by loss, then train on the parts semi-supervised.",
            paper=PAPER,
            networks_at_test=2,
            starts_from_selection=True,
        )
    ]
