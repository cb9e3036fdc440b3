"""``lnlbench cite`` as users meet it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lnlbench
from lnlbench.plugins import Registry

Cli = Callable[..., Any]

ENTRY = re.compile(r"@(\w+)\{(\w+),\n(.*?)\n\}", re.S)
TWINS = """
    from lnlbench.api import MethodEntry, Paper, hookimpl

    def paper(title):
        bibtex = f"@article{{li2020,\\n  title = {{{title}}}\\n}}"
        return Paper(title=title, authors="Li", venue="arXiv", year=2020, bibtex=bibtex)

    @hookimpl
    def lnlbench_methods():
        titles = {"one": "A Title", "other": "Another Title", "again": "A title"}
        return [
            MethodEntry(name=name, target="twins:None", summary="None.", paper=paper(title))
            for name, title in titles.items()
        ]
"""


def keys(text: str) -> list[str]:
    """Return the keys of well-formed entries, and fail where there is anything else."""
    assert ENTRY.sub("", text).strip() == ""
    for _, _, body in ENTRY.findall(text):
        assert body.count("{") == body.count("}")
        assert {"title", "author", "year"} <= set(re.findall(r"^  (\w+) *= ", body, re.M))
    return [key for _, key, _ in ENTRY.findall(text)]


def test_methods_and_suites_are_cited_once(cli: Cli) -> None:
    answer = cli("cite", "css", "cifar100n", "digits-sym@0.40", "cifar100")
    assert (answer.code, answer.err) == (0, "")
    assert keys(answer.out) == [
        "miao2023css",
        "krizhevsky2009learning",
        "wei2022learning",
        "alpaydin1998optical",
        "han2018coteaching",
    ]


def test_a_method_that_made_noise_is_one_entry(cli: Cli) -> None:
    assert keys(cli("cite", "josrc,cifar80n-o").out) == ["yao2021josrc", "krizhevsky2009learning"]


def test_every_dataset_noise_and_suite_has_entries(cli: Cli, registry: Registry) -> None:
    names = [
        *(each.entry.name for each in registry.datasets if each.entry.paper),
        *(each.entry.name for each in registry.noise if each.entry.paper),
        *registry.suites.names(),
    ]
    answer = cli("cite", *names)
    assert (answer.code, answer.err) == (0, "")
    found = keys(answer.out)
    assert len(set(found)) == len(found) > 10


def test_what_has_no_publication_is_said(cli: Cli) -> None:
    answer = cli("cite", "ce", "dividemix", "open-clip:ViT-B-32")
    assert (answer.code, keys(answer.out)) == (0, ["li2020dividemix", "radford2021learning"])
    assert answer.err == "method ce: no publication is known to lnlbench\n"


def test_a_publication_without_an_entry_is_named(cli: Cli, plugins: Any) -> None:
    plugins.add("lnlbench-twins", "twins", TWINS.replace("bibtex=bibtex", 'bibtex="", url="https://example.org"'))
    answer = cli("cite", "one")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == "method one: no BibTeX entry yet; it is Li: A Title. arXiv 2020, https://example.org\n"


def test_different_papers_have_different_keys(cli: Cli, plugins: Any) -> None:
    plugins.add("lnlbench-twins", "twins", TWINS)
    answer = cli("cite", "one", "other", "again")
    assert answer.code == 0, answer.err
    assert re.findall(r"@article\{(\w+),", answer.out) == ["li2020", "li2020b"]


def test_lnlbench_itself(cli: Cli) -> None:
    answer = cli("cite")
    assert (answer.code, answer.err) == (0, "")
    assert keys(answer.out) == ["lnlbench"]
    assert f"version = {{{lnlbench.__version__}}}" in answer.out
    cff = Path(__file__).parents[2] / "CITATION.cff"
    if cff.exists():
        text = cff.read_text()
        title = re.sub(r"[{}]", "", re.findall(r"title   = \{(.*)\},", answer.out)[0])
        assert f'title: "{title}"' in text
        assert f"version: {lnlbench.__version__}" in text
        assert re.findall(r"date-released: (\d+)", text) == re.findall(r"year    = \{(\d+)\}", answer.out)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dividemx", "unknown name 'dividemx'; did you mean 'dividemix'?"),
        ("digits-sym@0.41", "unknown task of suite 'digits-sym' '0.41'; did you mean '0.40'"),
    ],
)
def test_unknown_names_have_near_misses(cli: Cli, name: str, message: str) -> None:
    answer = cli("cite", "css", name)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert answer.err.count("\n") == 1
