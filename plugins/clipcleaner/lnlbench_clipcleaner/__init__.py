"""CLIPCleaner and MixFix as an lnlbench method."""

from __future__ import annotations

from collections.abc import Sequence

from lnlbench.api import MethodEntry, Paper, hookimpl

PAPER = Paper(
    title="CLIPCleaner: Cleaning Noisy Labels with CLIP",
    authors="Feng, Tzimiropoulos, Patras",
    venue="ACM MM",
    year=2024,
    url="https://arxiv.org/abs/2408.10012",
    bibtex="""@inproceedings{feng2024clipcleaner,
  title     = {{CLIPCleaner}: Cleaning Noisy Labels with {CLIP}},
  author    = {Feng, Chen and Tzimiropoulos, Georgios and Patras, Ioannis},
  booktitle = {ACM International Conference on Multimedia},
  year      = {2024}
}""",
)


@hookimpl
def lnlbench_methods() -> Sequence[MethodEntry]:
    """Add CLIPCleaner."""
    return [
        MethodEntry(
            name="clipcleaner",
            target="lnlbench_clipcleaner.clipcleaner:ClipCleaner",
            summary="A frozen vision-language model picks clean samples once; training grows the set by confidence.",
            paper=PAPER,
            supervision=("clip",),
            selects=True,
        )
    ]
