"""Tables as papers print them: tasks as columns, a row per method and score, the best bold, the next underlined."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lnlbench.errors import UsageError
from lnlbench.leaderboard.standings import SCORE_KINDS, ScoreKind, Standing, TaskResult, compare_tasks
from lnlbench.leaderboard.statistics import Sample
from lnlbench.leaderboard.store import guard

Format = Literal["latex", "markdown", "csv"]

LABELS: dict[ScoreKind, str] = {"best": "Best", "last10": "Last 10", "last": "Last", "best_val": "Best on val"}
"""What rows are called, by score."""

Mark = Literal["best", "second", ""]


@dataclass(frozen=True)
class Cell:
    """A method on a task by one score."""

    sample: Sample
    """Scores summarised."""
    rank: int | None
    """Shared rank among the methods of the table."""
    mark: Mark
    """Whether it is in the best group, or in the one after it."""
    diverged: bool
    """Whether there are runs, and all of them diverged."""


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    method: str
    """Name of the entry."""
    ruleset: str
    """``agnostic`` or ``tuned``."""
    kind: ScoreKind
    """Which score."""
    cells: tuple[Cell, ...]
    """By task."""


@dataclass(frozen=True)
class ResultTable:
    """A table of results that may be compared, ready to be written down."""

    title: str
    """What the results are of."""
    suite: str
    """Suite id."""
    tasks: tuple[str, ...]
    """Columns."""
    lines: tuple[Line, ...]
    """Rows: the methods in their order, each with its scores."""
    notes: tuple[str, ...]
    """What a reader has to know."""


def result_table(standing: Standing, kinds: Sequence[ScoreKind]) -> ResultTable:
    """Lay out a standing.

    Args:
        standing: Results that may be compared.
        kinds: The scores, in the order of their rows; methods are ranked by each of them apart.

    Raises:
        UsageError: No run has any of these scores.
    """
    results = {kind: compare_tasks(standing, kind) for kind in dict.fromkeys(kinds)}
    lines = [
        Line(entry.name, entry.ruleset, kind, tuple(_cells(tasks, entry.name)))
        for entry in standing.entries
        for kind, tasks in results.items()
    ]
    lines = [line for line in lines if any(cell.sample.n or cell.diverged for cell in line.cells)]
    if not any(cell.sample.n for line in lines for cell in line.cells):
        raise UsageError(f"no finished run of {standing.title} has the score {' or '.join(results)}")
    return ResultTable(
        standing.title, standing.suite, standing.tasks, tuple(lines), tuple(_notes(standing, lines, results))
    )


def _cells(results: Sequence[TaskResult], name: str) -> Iterable[Cell]:
    for result in results:
        ranks = sorted({rank for rank in result.ranks.values() if rank is not None})
        rank = result.ranks.get(name)
        mark: Mark = "" if rank is None else "best" if rank == ranks[0] else "second" if rank == ranks[1] else ""
        sample = result.samples[name]
        yield Cell(sample, rank, mark, sample.n == 0 and bool(result.diverged[name]))


def _notes(standing: Standing, lines: Sequence[Line], kinds: Iterable[ScoreKind]) -> Iterable[str]:
    """Say what the numbers are, over how many runs, and how rows differ in what they may be compared with."""
    counts = Counter(cell.sample.n for line in lines for cell in line.cells if cell.sample.n)
    usual = max(counts, key=lambda n: (counts[n], n))
    spread = "mean and sample standard deviation over " if max(counts) > 1 else "from "
    yield f"Test accuracy in per cent on {standing.title}; {spread}{usual} {'run' if usual == 1 else 'runs'}."
    odd = {
        f"{line.method} on {task} ({cell.sample.n})": None
        for line in lines
        for task, cell in zip(standing.tasks, line.cells, strict=True)
        if cell.sample.n not in (0, usual)
    }
    if odd:
        yield f"Other numbers of runs: {', '.join(odd)}."
    for kind in kinds:
        yield f"{LABELS[kind]}: {SCORE_KINDS[kind]}."
    if any(cell.mark for line in lines for cell in line.cells):
        yield (
            "Bold: not separable from the best of the task (paired t-test on the same noise and seeds, 5 per cent, "
            "Holm's correction over all pairs of methods). Underlined: the group after these."
        )
    if any(cell.rank is None for line in lines for cell in line.cells if cell.sample.n):
        yield "Not ranked: what has fewer than two runs on the noise and seeds of the best."
    diverged = {
        f"{entry.name} on {task} (seed {', '.join(map(str, seeds))})": None
        for entry in standing.entries
        for task in standing.tasks
        if (seeds := entry.diverged(task))
    }
    if diverged:
        yield f"Diverged, without a score: {', '.join(diverged)}."
    if standing.reduced:
        yield "Reduced runs: shorter or smaller than the protocol, not comparable with full ones."
    tuned = [entry.name for entry in standing.entries if entry.ruleset == "tuned"]
    if tuned:
        yield f"Tuned to the noise: {', '.join(tuned)}."


def write_tables(tables: Sequence[ResultTable], form: Format) -> str:
    """Write tables down, one after the other, in one of the formats."""
    if form == "csv":
        return to_csv(tables)
    write = to_latex if form == "latex" else to_markdown
    return "\n".join(map(write, tables))


def to_markdown(table: ResultTable) -> str:
    """Write a table in GitHub's Markdown."""
    head = ["Method", *(["Score"] if _several_scores(table) else []), *table.tasks]
    rule = ["---"] * (len(head) - len(table.tasks)) + ["---:"] * len(table.tasks)
    marks = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}
    lines = [_line([_markdown(each) for each in head], " | "), _line(rule, " | ")]
    lines += [_line(cells, " | ") for cells in _body(table, _markdown, marks, "±")]
    notes = "\n".join(f"- {_markdown(note)}" for note in table.notes)
    return f"**{_markdown(table.title)}**\n\n" + "\n".join(f"| {line} |" for line in lines) + f"\n\n{notes}\n"


def to_latex(table: ResultTable) -> str:
    r"""Write a table in LaTeX; it needs ``\usepackage{booktabs}``."""
    several = _several_scores(table)
    head = ["Method", *(["Score"] if several else []), *table.tasks]
    marks = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
    rows = []
    for number, (cells, line) in enumerate(zip(_body(table, _latex, marks, r"$\pm$"), table.lines, strict=True)):
        if several and number and line.method != table.lines[number - 1].method:
            rows.append(r"\addlinespace")
        rows.append(rf"{_line(cells, ' & ')} \\")
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_latex(' '.join(table.notes))}}}",
            rf"  \label{{tab:{''.join(c if c.isalnum() and c.isascii() else '-' for c in table.title)}}}",
            rf"  \begin{{tabular}}{{{'l' * (len(head) - len(table.tasks))}{'c' * len(table.tasks)}}}",
            r"    \toprule",
            rf"    {_line([_latex(each) for each in head], ' & ')} \\",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def to_csv(tables: Sequence[ResultTable]) -> str:
    """Write tables as one CSV: four columns per task, accuracies in per cent, blank for what is missing."""
    tasks = list(dict.fromkeys(task for table in tables for task in table.tasks))
    head = ["table", "method", "ruleset", "score"]
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow([*head, *(f"{task} {what}" for task in tasks for what in ("mean", "sd", "n", "rank"))])
    for table in tables:
        for line in table.lines:
            cells = dict(zip(table.tasks, line.cells, strict=True))
            numbers = [each for task in tasks for each in _numbers(cells.get(task))]
            writer.writerow([guard(table.title), guard(line.method), line.ruleset, line.kind, *numbers])
    return target.getvalue()


def _numbers(cell: Cell | None) -> list[str]:
    if cell is None:
        return [""] * 4
    rank = "" if cell.rank is None else str(cell.rank)
    return [_percent(cell.sample.mean), _percent(cell.sample.sd), str(cell.sample.n), rank]


def _body(
    table: ResultTable, escape: Callable[[str], str], marks: Mapping[str, str], plus_minus: str
) -> Iterable[list[str]]:
    """Return the cells of each row, with the method named only in its first one."""
    previous = ""
    for line in table.lines:
        cells = [escape(line.method) if line.method != previous else ""]
        if _several_scores(table):
            cells.append(LABELS[line.kind])
        for cell in line.cells:
            text = _percent(cell.sample.mean)
            if cell.sample.sd is not None:
                text = f"{text} {plus_minus} {_percent(cell.sample.sd)}"
            cells.append(marks[cell.mark].format(text) if text else "diverged" if cell.diverged else "")
        previous = line.method
        yield cells


def _several_scores(table: ResultTable) -> bool:
    return len({line.kind for line in table.lines}) > 1


def _line(cells: Iterable[str], separator: str) -> str:
    return separator.join(cells)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _markdown(text: str) -> str:
    return "".join(f"\\{char}" if char in "\\`*_[]<>|~$&" else char for char in text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "…": r"\ldots{}",
    '"': r"\symbol{34}",
    # After the end of a row these would be taken for its options.
    "[": "{[}",
    "*": "{*}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def _latex(text: str) -> str:
    """Escape for LaTeX. Characters beyond ASCII, which a document's fonts may lack, are given by their number."""
    escaped = "".join(_LATEX.get(char, char if char.isascii() else f"(U+{ord(char):04X})") for char in text)
    return escaped.replace("--", "-{}-")
