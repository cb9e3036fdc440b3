from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lnlbench.errors import UsageError
from lnlbench.leaderboard.standings import Standing, select
from lnlbench.leaderboard.tables import ResultTable, result_table, to_csv, to_latex, to_markdown, write_tables
from lnlbench.records import CellSpec, RunRecord, Scores

Spec = Callable[..., CellSpec]
Record = Callable[..., RunRecord]
Standings = Callable[..., list[Standing]]

BOLD = (
    "Bold: not separable from the best of the task (paired t-test on the same noise and seeds, 5 per cent, Holm's "
    "correction over all pairs of methods). Underlined: the group after these."
)
HOSTILE = '& 50% $x_1$ #{} ~^\\ <b> |y| "q" -- [1] * é中 … \x1b[31m'


@pytest.fixture
def results(spec: Spec, record: Record) -> Callable[..., list[RunRecord]]:
    """``results(method, {task: [(best, last10), ...]}, **of the specification)``; ``None`` is a diverged run."""

    def make(method: str, tasks: dict[str, list[tuple[float, float] | None]], **changes: Any) -> list[RunRecord]:
        return [
            record(
                spec(method, task, seed, **changes),
                None if value is None else Scores(best=value[0], last10=value[1], last=value[1], best_epoch=0),
            )
            for task, values in tasks.items()
            for seed, value in enumerate(values, start=1)
        ]

    return make


Results = Callable[..., list[RunRecord]]


def table_of(records: list[RunRecord], *names: str, kinds: tuple[Any, ...] = ("best", "last10")) -> ResultTable:
    (standing,) = select(records, names)
    return result_table(standing, kinds)


@pytest.fixture
def board(results: Results) -> list[RunRecord]:
    """Three methods: two that are close, one far behind; one of them misses a task, and one diverged once."""
    near = [(0.951, 0.940), (0.962, 0.952), (0.973, 0.960)]
    return [
        *results("css", {"0.20": near, "0.90": [(0.80, 0.70), (0.81, 0.72), (0.82, 0.74)]}),
        *results("ccl", {"0.20": [(0.95, 0.942), (0.963, 0.951), (0.972, 0.962)], "0.90": [(0.7, 0.6), None]}),
        *results("ce", {"0.20": [(0.60, 0.40), (0.61, 0.412), (0.62, 0.421)]}),
    ]


def test_markdown_in_the_layout_of_papers(board: list[RunRecord]) -> None:
    assert to_markdown(table_of(board, "ce", "ccl", "css")).splitlines()[:10] == [
        "**digits-sym**",
        "",
        "| Method | Score | 0.20 | 0.90 |",
        "| --- | --- | ---: | ---: |",
        "| ce | Best | <u>61.00 ± 1.00</u> |  |",
        "|  | Last 10 | <u>41.10 ± 1.05</u> |  |",
        "| ccl | Best | **96.17 ± 1.11** | 70.00 |",
        "|  | Last 10 | **95.17 ± 1.00** | 60.00 |",
        # One run of ccl in common is too few to say more of 0.90.
        "| css | Best | **96.20 ± 1.10** | 81.00 ± 1.00 |",
        "|  | Last 10 | **95.07 ± 1.01** | 72.00 ± 2.00 |",
    ]


def test_the_notes_say_what_a_reader_has_to_know(board: list[RunRecord], results: Results) -> None:
    records = board + results("tuned", {"0.20": [(0.5, 0.5)]}, config={"l": 1}) + results("tuned", {"0.90": [None]})
    assert table_of(records).notes == (
        "Test accuracy in per cent on digits-sym; mean and sample standard deviation over 3 runs.",
        "Other numbers of runs: ccl on 0.90 (1), tuned on 0.20 (1).",
        "Best: highest test accuracy of any epoch, chosen on the test set and hence optimistic.",
        "Last 10: mean test accuracy over the final ten epochs.",
        BOLD,
        "Not ranked: what has fewer than two runs on the noise and seeds of the best.",
        "Diverged, without a score: ccl on 0.90 (seed 2), tuned on 0.90 (seed 1).",
        "Tuned to the noise: tuned.",
    )
    assert "| tuned | Best | 50.00 | diverged |" in to_markdown(table_of(records))


def test_single_runs_have_neither_spread_nor_marks(results: Results) -> None:
    table = table_of(results("a", {"0.40": [(0.9, 0.8)]}) + results("b", {"0.40": [(0.5, 0.4)]}), kinds=("last10",))
    assert to_markdown(table).splitlines()[2:6] == [
        "| Method | 0.40 |",
        "| --- | ---: |",
        "| a | 80.00 |",
        "| b | 40.00 |",
    ]
    assert table.notes[0] == "Test accuracy in per cent on digits-sym; from 1 run."
    assert "Bold" not in " ".join(table.notes)


def test_a_score_that_no_run_has_is_refused(results: Results) -> None:
    records = results("a", {"0.40": [(0.9, 0.8)]})
    with pytest.raises(UsageError, match="no finished run of digits-sym has the score best_val"):
        table_of(records, kinds=("best_val",))
    assert [line.kind for line in table_of(records, kinds=("best_val", "last", "last")).lines] == ["last"]


def test_csv_for_further_work(board: list[RunRecord], results: Results) -> None:
    odd = results("=cmd", {"0.20": [(0.5, 0.5)]}, changed={"note": 'a,"b"'}, config={"note": 'a,"b"'})
    short = results("css", {"0.40": [(0.3, 0.2)]}, reduced=("2 of 12 epochs",))
    tables = [result_table(each, ("last10",)) for each in select(board + odd + short, reduced=True)]
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(to_csv(tables))) if row["table"] == "digits-sym"}
    assert list(rows) == ['\'=cmd (note=a,"b")', "ccl", "ce", "css"]
    assert [rows["css"][f"0.20 {what}"] for what in ("mean", "sd", "n", "rank")] == ["95.07", "1.01", "3", "1"]
    assert [rows["ce"][f"0.20 {what}"] for what in ("mean", "sd", "n", "rank")] == ["41.10", "1.05", "3", "3"]
    assert [rows["ce"][f"0.90 {what}"] for what in ("mean", "sd", "n", "rank")] == ["", "", "0", ""]
    assert [rows["ccl"][f"0.90 {what}"] for what in ("mean", "sd", "n", "rank")] == ["60.00", "", "1", ""]
    last = list(csv.DictReader(io.StringIO(to_csv(tables))))[-1]
    assert (last["table"], last["method"], last["0.40 mean"], last["0.20 mean"], last["0.20 n"]) == (
        "digits-sym, reduced runs",
        "css",
        "20.00",
        "",
        "",
    )


def test_latex_in_the_layout_of_papers(board: list[RunRecord]) -> None:
    lines = to_latex(table_of(board, "ce", "css")).splitlines()
    assert lines[:3] == [r"% needs \usepackage{booktabs}", r"\begin{table}", r"  \centering"]
    assert lines[4:] == [
        r"  \label{tab:digits-sym}",
        r"  \begin{tabular}{llcc}",
        r"    \toprule",
        r"    Method & Score & 0.20 & 0.90 \\",
        r"    \midrule",
        r"    ce & Best & \underline{61.00 $\pm$ 1.00} &  \\",
        r"     & Last 10 & \underline{41.10 $\pm$ 1.05} &  \\",
        r"    \addlinespace",
        r"    css & Best & \textbf{96.20 $\pm$ 1.10} & 81.00 $\pm$ 1.00 \\",
        r"     & Last 10 & \textbf{95.07 $\pm$ 1.01} & 72.00 $\pm$ 2.00 \\",
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]


def hostile(results: Results) -> ResultTable:
    changed = {"note": HOSTILE}
    return table_of(
        results("css", {"0.20": [(0.5, 0.4), (0.6, 0.5)]}) + results("ce", {"0.20": [(0.4, 0.3)]}, changed=changed)
    )


def test_names_are_escaped(results: Results) -> None:
    table = hostile(results)
    latex = to_latex(table)
    assert latex.isascii()
    assert (
        r"ce (note=\& 50\% \$x\_1\$ \#\{\} \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\textless{}b\textgreater{} \textbar{}y\textbar{} \symbol{34}q\symbol{34} "
        r"-{}- {[}1] {*} (U+00E9)(U+4E2D) \ldots{}"
    ) in latex
    (row,) = [line for line in to_markdown(table).splitlines() if line.startswith("| ce")]
    assert "\x1b" not in row
    assert r"(note=\& 50% \$x\_1\$ #{} \~^\\ \<b\> \|y\| " in row


@given(st.text(max_size=20))
def test_escaped_latex_has_balanced_braces_and_no_active_character(name: str) -> None:
    from lnlbench.leaderboard.tables import _latex

    escaped = _latex(name)
    bare = re.sub(r"\\(?:[&%$#_{}]|[a-z]+(?:\{(?:34)?\})?)", "", escaped)
    assert not set(bare) & set('&%$#_~^\\<>|"')
    assert bare.replace("{[}", "").replace("{*}", "").replace("-{}-", "--").count("{") == 0
    assert escaped.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex with booktabs")
def test_latex_compiles(results: Results, board: list[RunRecord], tmp_path: Path) -> None:
    body = write_tables([hostile(results), table_of(board)], "latex")
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_tables_of_what_may_not_be_compared_follow_each_other(board: list[RunRecord], results: Results) -> None:
    records = board + results("css", {"0.20": [(0.3, 0.2)]}, reduced=("2 of 12 epochs",))
    records += results("css", {"0.20": [(0.35, 0.25)]}, edition="jpeg", edition_digest="e" * 64)
    text = write_tables([result_table(each, ("last10",)) for each in select(records, reduced=True)], "markdown")
    assert re.findall(r"^\*\*(.*)\*\*$", text, re.M) == [
        "digits-sym",
        "digits-sym, edition jpeg",
        "digits-sym, reduced runs",
    ]
    assert text.count("- Reduced runs: shorter or smaller than the protocol, not comparable with full ones.") == 1
