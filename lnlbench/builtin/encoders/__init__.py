"""Vision-language encoders: a small one that comes with the package, and every open_clip model of CLIP's kind."""

from __future__ import annotations

from lnlbench.api import EncoderEntry, Paper

ENTRIES = (
    EncoderEntry(
        name="glyphs",
        target="lnlbench.builtin.encoders.glyphs:glyphs",
        summary="A tiny embedded encoder, trained on digits rendered from fonts; needs no download.",
    ),
    EncoderEntry(
        name="open-clip:",
        target="lnlbench.builtin.encoders.open_clip_models:open_clip_model",
        summary="open_clip models: 'open-clip:MODEL/TAG' with published weights, 'open-clip:MODEL//PATH' from a file.",
        paper=Paper(
            title="Learning Transferable Visual Models From Natural Language Supervision",
            authors="Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever",
            venue="ICML",
            year=2021,
            url="https://arxiv.org/abs/2103.00020",
            bibtex="""@inproceedings{radford2021learning,
  title     = {Learning Transferable Visual Models From Natural Language Supervision},
  author    = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and
               Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and
               Krueger, Gretchen and Sutskever, Ilya},
  booktitle = {International Conference on Machine Learning},
  year      = {2021}
}""",
        ),
    ),
)
