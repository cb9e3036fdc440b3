"""The tutorial and the explanations: how their output, pictures and numbers come about."""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy import stats
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from lnlbench.leaderboard.aggregate import Row
from lnlbench.plugins import discover

ROOT = Path(os.environ.get("LNLBENCH_SOURCE") or Path(__file__).resolve().parents[2])
DOCS = ROOT / "docs"
NOISE = (DOCS / "explanation" / "noise.md").read_text()
SCORES = (DOCS / "explanation" / "scores.md").read_text()
TUTORIAL = (DOCS / "tutorial" / "first-run.md").read_text()

Build = Callable[[str], tuple[str, str]]


@pytest.fixture(autouse=True)
def _extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "_ext")


@pytest.fixture
def pictures() -> ModuleType:
    import pictures

    return pictures


@pytest.fixture
def evidence() -> ModuleType:
    import evidence

    return evidence


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Build a page; returns its HTML and the warnings. Built twice, it is written anew in the same folder."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "conf.py").write_text(
        'extensions = ["myst_parser", "terminal", "pictures", "evidence"]\nroot_doc = "page"\nhtml_theme = "basic"\n'
    )

    def run(text: str) -> tuple[str, str]:
        (source / "page.md").write_text(f"# Page\n\n{text}\n")
        warnings = io.StringIO()
        out, trees = str(tmp_path / "html"), str(tmp_path / "trees")
        with patch_docutils(str(source)), docutils_namespace():
            app = Sphinx(str(source), str(source), out, trees, "html", status=None, warning=warnings, freshenv=True)
            app.build(force_all=True)
        return (tmp_path / "html" / "page.html").read_text(), warnings.getvalue()

    return run


def shown(html: str) -> list[str]:
    """The text of every block of commands."""
    blocks = re.findall(r'<div class="highlight-console.*?<pre>(.*?)</pre>', html, re.S)
    return [re.sub("<[^>]*>", "", block).replace("&gt;", ">").replace("&quot;", '"').rstrip("\n") for block in blocks]


def test_commands_run_in_the_order_of_the_page_in_one_folder_that_is_empty_at_first(build: Build) -> None:
    text = "```{terminal}\nls\necho one >> kept\n```\n\n```{terminal}\ncat kept\necho two >> kept\ncat kept\n```"
    for _ in range(2):
        html, warnings = build(text)
        assert warnings == ""
        assert shown(html) == [
            "$ ls\n$ echo one >> kept",
            "$ cat kept\none\n$ echo two >> kept\n$ cat kept\none\ntwo",
        ]


def test_commands_see_no_colours_no_connection_and_nothing_of_the_surroundings(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LNLBENCH_RUNS", "elsewhere")
    html, warnings = build(
        '```{terminal}\nenv | grep -c LNLBENCH_RUNS || echo "$LNLBENCH_OFFLINE $COLUMNS $NO_COLOR"\n```'
    )
    assert warnings == ""
    assert shown(html)[0].splitlines()[-2:] == ["0", "1 100 1"]
    html, _ = build("```{terminal}\nprintf '\\033[1mbold\\033[0m and blank   \\n'\n```")
    assert shown(html)[0].splitlines()[-1] == "bold and blank"


@pytest.mark.parametrize(
    ("block", "warning"),
    [
        ("false", r"'false' ended with 1, not 0"),
        ("echo why >&2; exit 3", r"ended with 3, not 0:\s+why"),
        (":exit-code: 2\n\ntrue", r"'true' ended with 0, not 2"),
        ("no-such-command", r"ended with 127, not 0"),
        ("pwd", r"'pwd' prints '.*', a path of this machine"),
        ("python3 -c 'import sys; print(sys.prefix)'", r"a path of this machine"),
    ],
)
def test_a_page_that_is_not_true_is_a_warning(build: Build, block: str, warning: str) -> None:
    _, warnings = build(f"```{{terminal}}\n{block}\n```")
    assert re.search(warning, warnings)
    assert "page.md" in warnings


def test_what_is_shown_can_be_chosen(build: Build) -> None:
    command = "echo error >&2; seq 3"
    html, warnings = build(
        f"```{{terminal}}\n{command}\n```\n\n```{{terminal}}\n:stderr:\n\n{command}\n```\n\n"
        f"```{{terminal}}\n:first: 2\n\n{command}\n```\n\n```{{terminal}}\n:quiet:\n:exit-code: 4\n\n{command};"
        " exit 4\n```"
    )
    assert warnings == ""
    outputs = [block.split("\n", 1)[1] if "\n" in block else "" for block in shown(html)]
    assert outputs == ["1\n2\n3", "error\n1\n2\n3", "1\n2\n…", ""]


def test_an_interrupt_reaches_the_command_even_where_the_build_ignores_it(build: Build) -> None:
    script = "import pathlib, time; pathlib.Path('here').touch(); time.sleep(60)"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        html, warnings = build(
            f'```{{terminal}}\n:stderr:\n:interrupt: he*\n\npython3 -c "{script}" || echo stopped\n```'
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert "KeyboardInterrupt" in html
    # The shell that runs the line is interrupted as well, as it would be in a terminal.
    assert re.search("ended with -2, not 0", warnings)


def test_commands_can_be_left_out_for_a_quick_look(tmp_path: Path, build: Build) -> None:
    source = tmp_path / "source" / "conf.py"
    source.write_text(source.read_text() + "terminal_run = False\n")
    html, warnings = build("```{terminal}\ntouch made\nfalse\n```")
    assert (shown(html), warnings) == (["$ touch made\n$ false"], "")
    assert not list(tmp_path.rglob("made"))


def test_the_numbers_in_the_text_of_the_tutorial(pictures: ModuleType) -> None:
    _, true = pictures.digits()
    wrong = (pictures.draw("symmetric", 0.4, count="exact", replacement="exclusive").labels != true).sum()
    assert f"Of the {len(true):,} training labels {wrong} are wrong" in TUTORIAL


def test_every_picture_is_on_the_page_and_the_same_each_time(pictures: ModuleType) -> None:
    used = [name for names in re.findall(r"{pictures} (.+)", NOISE) for name in names.split()]
    assert sorted(used) == sorted(pictures.PICTURES)
    for name in ("strip-open-set", "map-block5"):
        first, second = (pictures.PICTURES[name]() for _ in range(2))
        assert first.svg() == second.svg()
        assert first.alternative == second.alternative
        tree = ET.fromstring(first.svg())  # noqa: S314 - drawn just now
        assert tree.tag.endswith("svg")
        assert b"<dc:date>" not in first.svg()
        outside = [value for node in tree.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert all(value.startswith(("#", "data:image/png;base64,")) for value in outside)


def test_the_words_for_a_picture_are_what_it_shows(pictures: ModuleType) -> None:
    matrix = np.array([[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.1, 0.3, 0.6]])
    words = pictures.matrix_picture("some noise", matrix, 0.217, "abc", "abc").alternative
    assert words == (
        "Transition matrix of some noise: 21.7 % of the labels are wrong. Of a class, 60 to 100 % keep their label; "
        "the largest other cell is c to b, 30 %."
    )
    assert pictures.PICTURES["map-block5"]().alternative.startswith("Map block5: 6 of 100 classes")
    assert "574 of 1,437 labels are wrong" in pictures.PICTURES["count-exact"]().alternative


def test_pictures_come_with_their_words_and_lie_among_the_pages_own_files(build: Build, tmp_path: Path) -> None:
    html, warnings = build("```{pictures} map-next map-superclass\n```")
    assert warnings == ""
    (box,) = re.findall(r'<div class="pictures docutils container">(.*?)</div>', html, re.S)
    images = re.findall(r'<img alt="(.*?)" src="(.*?)"', box)
    assert [alt.split(":")[0] for alt, _ in images] == ["Map next", "Map superclass"]
    for _, place in images:
        assert (tmp_path / "html" / place).read_bytes().startswith(b"<?xml")


def test_rates_are_those_of_the_formulas(pictures: ModuleType) -> None:
    rows = dict(re.findall(r"^\| `(\S+)` \|.*\| ([^|]*) \|$", pictures.rates_table(), re.M))
    drawn = [suite for suite in discover().suites if suite.entry.noise.generator not in ("own", "seal", "cifar-n")]
    assert sorted(rows) == sorted(suite.entry.name for suite in drawn)

    def number(share: float) -> str:
        return f"{100 * share:.1f}".removesuffix(".0")

    assert rows["cifar100-sym"] == " / ".join(number(rate * 99 / 100) for rate in (0.2, 0.5, 0.8, 0.9))
    assert rows["cifar10-sym"] == " / ".join(number(rate * 9 / 10) for rate in (0.2, 0.5, 0.8, 0.9))
    assert rows["cifar10-sym-excl"] == "20 / 50 / 80"
    assert rows["cifar10-asym"] == "5 / 15 / 20"
    assert rows["cifar80n-o"] == " / ".join(number(0.2 + 0.8 * rate) for rate in (0.2, 0.5, 0.8, 0.4))
    assert rows["cifar10-idn-pdn"].startswith("20.6 / ")
    # 287, 574 and 862 of 1,437.
    assert rows["digits-sym"] == "20 / 39.9 / 60"


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
def test_flip_rates_are_a_truncated_normal_distribution(pictures: ModuleType, rate: float) -> None:
    rates = pictures.flip_rates(rate, 1_437)
    law = stats.truncnorm(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1)
    assert stats.kstest(rates, law.cdf).pvalue > 0.01
    # They are those of the suite: what the classes keep on average is the same.
    images, labels = pictures.digits()
    drawn = pictures.draw("part-dependent", rate, labels=labels, images=images, features="normalised")
    kept = [1 - rates[labels == label].mean() for label in range(10)]
    np.testing.assert_allclose(np.diag(drawn.matrix), kept)


def test_rates_of_released_labels_are_those_that_the_suites_state() -> None:
    section = NOISE.split("## Human labels")[1].split("\n## ")[0]
    facts = " ".join(
        tomllib.loads((ROOT / "lnlbench/builtin/suites" / f"{name}.toml").read_text())["facts"]
        for name in ("cifar10n", "cifar100n")
    )
    numbers = re.findall(r"\d+\.\d+", section)
    assert len(numbers) == 7
    for number in numbers:
        assert number in facts


def test_every_reported_number_on_the_page_is_a_cell_of_a_table(evidence: ModuleType) -> None:
    places = re.findall(r"{reported}`([^`]+)`", SCORES)
    assert len(places) >= 15
    for place in places:
        assert re.fullmatch(r"\d+(\.\d+)?", evidence.find(place).accuracy)
    assert evidence.find("css/1/Cross-Entropy/cifar10-sym@0.50").accuracy == "79.4"
    for wrong in ("css/1/Cross-Entropy/cifar10-sym@0.55", "josrc/3/Standard/clothing1m@noisy", "css/1/x/no-suite@0.5"):
        with pytest.raises(LookupError):
            evidence.find(wrong)


def test_a_number_that_nobody_reported_is_a_warning(build: Build) -> None:
    html, warnings = build(
        "It is {reported}`css/1/Cross-Entropy/cifar10-sym@0.50`, {reported}`css/1/Nobody/cifar10-sym@0.50`."
    )
    assert "It is 79.4, ." in html
    assert "'css/1/Nobody/cifar10-sym@0.50' names 0 printed cells" in warnings


def test_tables_of_reported_numbers_agree_with_the_files(evidence: ModuleType) -> None:
    lines = []
    for path in (ROOT / "leaderboards" / "reported").glob("*.csv"):
        lines += list(csv.DictReader(path.read_text().splitlines()))
    stated = sum(line["score_kind"] != "unstated" for line in lines)
    assert f"| which epochs the number is of | {stated} of {len(lines)} |" in evidence.silence()

    table = evidence.two_rows_of_dividemix()
    # Li et al. 2020, Table 1.
    assert "| `cifar10-sym@0.50` | 94.6 | CSS T1, CLIPCleaner T4 | 94.4 | CCL T1 | 0.2 |" in table
    assert "| `cifar10-asym@0.40` | 93.4 | CLIPCleaner T4 | 92.1 | CCL T1 | 1.3 |" in table
    for row in re.findall(r"^\| (.*) \|$", table, re.M)[2:]:
        cells = row.split(" | ")
        assert float(cells[1]) - float(cells[3]) == pytest.approx(float(cells[5]), abs=1e-9)

    (row,) = re.findall(r"^\| Co-teaching .*", evidence.disagreements(), re.M)
    printed = [
        float(line["accuracy"])
        for line in lines
        if (line["method_id"], line["suite"], line["task"]) == ("co-teaching", "cifar10-idn-seal", "0.40")
    ]
    assert row.endswith(f"| {max(printed) - min(printed):.1f} |")


def row(**values: Any) -> Row:
    """A row of a board that has no more than these values."""
    return Row.model_construct(**values)


def test_tables_of_measured_numbers_are_computed_from_rows_and_absent_without(
    evidence: ModuleType, tmp_path: Path
) -> None:
    rows = [
        row(method="weak", suite="s", task="a", gap_mean=6.0, last10_std=0.5),
        row(method="weak", suite="s", task="b", gap_mean=1.0, last10_std=None),
        row(method="good", suite="t", task="a", gap_mean=0.25, last10_std=0.75),
    ]
    assert "| `weak` | 2 | 3.50 | 1.00 | 6.00 | `s@a` |\n| `good` | 1 | 0.25 | 0.25 | 0.25 | `t@a` |" in evidence.gaps(
        rows
    )
    assert "| `s` | 1 | 0.50 | 0.50 |\n| `t` | 1 | 0.75 | 0.75 |" in evidence.spreads(rows)
    assert (evidence.gaps([]), evidence.spreads([])) == ("", "")
    assert evidence.measured(tmp_path) == []


def test_columns_that_the_page_names_exist() -> None:
    table = SCORES.split("| question | where lnlbench says it |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", table)
    assert len(named) > 20
    scores = {"last10", "last", "best", "best_val"}
    for name in named:
        assert name in Row.model_fields or (name in scores and f"{name}_mean" in Row.model_fields), name
