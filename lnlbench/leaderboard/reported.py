"""Numbers that papers report, as data: a CSV per suite, apart from what was measured.

A folder of reported results holds ``<suite>.csv`` (result tables), ``other/<paper>-table-<k>.csv`` (ablations and
selection quality) and ``papers.toml``. A row is a printed cell; a table is spread over the files of its suites.
"""

from __future__ import annotations

import csv
import io
import re
import tomllib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from lnlbench.errors import DataError, suggest
from lnlbench.leaderboard.store import guard, unguard

PAPERS = "papers.toml"
"""Name of the file that says which papers the numbers are from."""
STUDIES = "other"
"""Name of the folder with ablation and selection tables."""

Score = Literal["last", "last10", "last10-2net", "best", "best-val", "untrained", "unstated"]
"""Which epochs a number is of.

``last``: the final one. ``last10``: mean over the final ten. ``last10-2net``: over the final ten and over both networks
one by one. ``best``: the epoch that is best on the test set. ``best-val``: that is best on held-out data.
``untrained``: nothing was trained. ``unstated``: the paper does not say.
"""
Provenance = Literal["published", "rerun", "quoted"]
"""``published``: in the method's own paper. ``rerun``: another paper's method, run anew by the authors of this one.
``quoted``: printed by a paper about another method, which copied it or does not say that it did not."""
Measure = Literal["accuracy", "precision", "similarity", "lca-distance"]
"""What the cells of a study are. The first two are in percent; of the last, less is better."""

_OWN = "Ours"
_PERCENT = ("accuracy", "precision")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_LineT = TypeVar("_LineT", bound="_Line")


def _line(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError(f"{text!r} is not one line without blanks at its ends")
    return text


def _number(text: str) -> str:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number")
    return text


def _percent(text: str) -> str:
    if not 0 <= float(_number(text)) <= 100:
        raise ValueError(f"{text} is not between 0 and 100")
    return text


def _deviation(text: str) -> str:
    if text and float(_number(text)) < 0:
        raise ValueError(f"{text} is negative")
    return text


def _count(value: object) -> object:
    if value == "":
        return None
    if isinstance(value, str) and not re.fullmatch("[1-9][0-9]*", value):
        raise ValueError(f"{value!r} is not a count")
    return value


Text = Annotated[str, AfterValidator(_line)]
Name = Annotated[str, Field(min_length=1), AfterValidator(_line)]
Printed = Annotated[str, AfterValidator(_number)]
Percent = Annotated[str, AfterValidator(_percent)]
Deviation = Annotated[str, AfterValidator(_deviation)]
Count = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_count)]


class _Line(BaseModel):
    """A line of a CSV file. Its fields, in their order, are the columns; numbers stay the text that was printed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    @abstractmethod
    def cell(self) -> tuple[str, ...]:
        """What tells the printed cell apart from all others; no two lines share it."""


class ReportedRow(_Line):
    """A printed cell of a result table."""

    suite: Name = Field(description="Suite id: the one whose definition the column of the table comes closest to.")
    task: Text = Field(description="Level within the suite; blank if the number is about no level by itself.")
    test_set: Text = Field(description="Test set, where the level has several.")
    mean_of: Text = Field(description="If the number is a mean over levels: these, as suite@task, with blanks between.")
    paper: Name = Field(description="Key of the paper that prints it.")
    table: Name = Field(description="Number of the table.")
    method: Name = Field(description="Method, as printed.")
    method_id: Text = Field(
        description="Its id in lnlbench or in a package of somebody else's, if there is one; 'a+b' is b started from "
        "the selection of a (--select)."
    )
    variant: Text = Field(description="How the row differs from that method's preset; blank if it does not.")
    metric: Literal["top1", "top5"] = Field(description="Whether the class must be the first or among the first five.")
    accuracy: Percent = Field(description="Test accuracy in percent, with the decimals it is printed with.")
    sd: Deviation = Field(description="Its standard deviation as printed; whether of a sample no paper says.")
    trials: Count = Field(description="Runs behind it; blank if not stated.")
    score_kind: Score = Field(description="Which epochs it is of, as the paper says.")
    score_actual: Score | Literal[""] = Field(
        description="Which epochs it is known to be of, where the paper is silent or mistaken; the note says more."
    )
    backbone: Text = Field(description="Network; blank if not stated.")
    initialisation: Text = Field(description="Weights it starts from, and CLIP if it is used anywhere.")
    provenance: Provenance = Field(description="'published', 'rerun' or 'quoted'.")
    origin: Text = Field(description="Where a quoted number comes from; blank if not stated.")
    note: Text = Field(description="What must be known before the number is compared with another one.")

    @model_validator(mode="after")
    def _is_consistent(self) -> ReportedRow:
        if self.mean_of and self.task:
            raise ValueError("a mean over levels has no task of its own")
        if self.test_set and not self.task:
            raise ValueError("a test set needs its task")
        if self.score_actual == self.score_kind:
            raise ValueError("score_actual repeats score_kind; leave it blank")
        return self

    @property
    def cell(self) -> tuple[str, ...]:
        """Paper, table, method with its backbone, column."""
        place = (self.suite, self.task, self.test_set, self.metric)
        return (self.paper, self.table, self.method, self.backbone, *place)

    @property
    def level(self) -> str:
        """What the column ``task`` of a measured row would say: the test set where there are several, else the task."""
        return self.test_set or self.task

    @property
    def score(self) -> str:
        """Which epochs the number is of, as far as known."""
        return self.score_actual or self.score_kind


class StudyRow(_Line):
    """A printed cell of a table that takes a method apart, or looks at something else than test accuracy."""

    paper: Name = Field(description="Key of the paper that prints it.")
    table: Name = Field(description="Number of the table.")
    row: Name = Field(description="Name of its row.")
    column: Name = Field(description="Name of its column.")
    suite: Name = Field(description="Suite id.")
    task: Name = Field(description="Level within the suite.")
    measure: Measure = Field(
        description="'accuracy' (of the test set) and 'precision' (of a selection) in percent, 'similarity' of two "
        "embeddings, 'lca-distance' of the two most probable classes."
    )
    value: Printed = Field(description="The number, with the decimals it is printed with.")
    sd: Deviation = Field(description="Its standard deviation as printed.")
    trials: Count = Field(description="Runs behind it; blank if not stated.")
    score_kind: Score = Field(description="Which epochs it is of, as the paper says.")
    note: Text = Field(description="What must be known before the number is compared with another one.")

    @model_validator(mode="after")
    def _is_in_range(self) -> StudyRow:
        if self.measure in _PERCENT:
            _percent(self.value)
        return self

    @property
    def cell(self) -> tuple[str, ...]:
        """Paper, table, row and column."""
        return (self.paper, self.table, self.row, self.column)


class ReportedPaper(BaseModel):
    """A paper whose tables are here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Name = Field(description="What the paper calls its method.")
    method_id: Text = Field(description="Its id here, if there is one.")
    title: Name = Field(description="Full title.")
    authors: Name = Field(description="Names in full, comma-separated.")
    venue: Name = Field(description="Conference or journal.")
    year: int = Field(description="Year of publication.")
    url: Name = Field(description="Where to read it.")
    bibtex: str = Field(description="A BibTeX entry.")


@dataclass(frozen=True)
class Reported:
    """All reported numbers of a folder."""

    papers: dict[str, ReportedPaper]
    """By key."""
    results: dict[str, tuple[ReportedRow, ...]]
    """Cells of result tables by suite, in the order of the file."""
    studies: dict[str, tuple[StudyRow, ...]]
    """Cells of the other tables by table (``css-table-3``), in the order of the file."""

    def name(self, row: ReportedRow) -> str:
        """Return the name of a row's method, for people: papers print their own one as 'Ours'."""
        return re.sub(rf"^{_OWN}\b", lambda _: self.papers[row.paper].method, row.method)


def read_reported(folder: Path) -> Reported:
    """Read a folder of reported results.

    Raises:
        DataError: A file is missing, cannot be read, or holds something that is not as described; one line with file,
            line and column.
    """
    papers = _read_papers(folder / PAPERS)
    results = {path.stem: _read(path, ReportedRow, papers) for path in sorted(folder.glob("*.csv"))}
    studies = {path.stem: _read(path, StudyRow, papers) for path in sorted((folder / STUDIES).glob("*.csv"))}
    return Reported(papers, results, studies)


def to_csv(rows: Sequence[ReportedRow] | Sequence[StudyRow]) -> bytes:
    """Serialise rows, at least one: UTF-8, line feeds, texts guarded for spreadsheets.

    What :func:`read_reported` reads from it is equal to ``rows``.
    """
    columns = tuple(type(rows[0]).model_fields)
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = {column: getattr(row, column) for column in columns}
        writer.writerow("" if value is None else _guarded(column, str(value)) for column, value in values.items())
    return file.getvalue().encode()


def _guarded(column: str, text: str) -> str:
    # A negative number is no formula.
    return text if column == "value" else guard(text)


def _read_papers(path: Path) -> dict[str, ReportedPaper]:
    try:
        tables = tomllib.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not TOML ({error})") from error
    papers = {}
    for key, table in tables.items():
        try:
            papers[key] = ReportedPaper.model_validate(table)
        except ValidationError as error:
            raise DataError(f"{path}: table [{key}], {_first(error)}") from error
    return papers


def _read(path: Path, model: type[_LineT], papers: dict[str, ReportedPaper]) -> tuple[_LineT, ...]:
    """Read a CSV file whose lines are those of ``model``, and belong into a file of this name."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows: list[_LineT] = []
    lines: dict[tuple[str, ...], int] = {}
    try:
        _check_header(path, next(reader, []), tuple(model.model_fields))
        for values in reader:
            row = _parse(f"{path}: line {reader.line_num}", values, model, papers)
            if _stem(row) != path.stem:
                raise DataError(f"{path}: line {reader.line_num}: belongs into {_stem(row)}.csv")
            first = lines.setdefault(row.cell, reader.line_num)
            if first != reader.line_num:
                raise DataError(f"{path}: line {reader.line_num}: the same cell as in line {first}; remove one of them")
            rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not CSV ({error})") from error
    if not rows:
        raise DataError(f"{path}: no rows; remove the file or fill it")
    return tuple(rows)


def _parse(place: str, values: list[str], model: type[_LineT], papers: dict[str, ReportedPaper]) -> _LineT:
    columns = tuple(model.model_fields)
    if len(values) != len(columns):
        raise DataError(f"{place}: {len(values)} cells, not {len(columns)}")
    try:
        row = model.model_validate(dict(zip(columns, map(unguard, values), strict=True)))
    except ValidationError as error:
        raise DataError(f"{place}, {_first(error)}") from error
    paper = row.cell[0]
    if paper not in papers:
        raise DataError(f"{place}, column paper: {paper!r} is not in {PAPERS}{suggest(paper, papers)}")
    return row


def _stem(row: _Line) -> str:
    return row.suite if isinstance(row, ReportedRow) else "{}-table-{}".format(*row.cell[:2])


def _check_header(path: Path, header: list[str], columns: tuple[str, ...]) -> None:
    for column in header:
        if column not in columns:
            raise DataError(f"{path}: line 1: unknown column {column!r}{suggest(column, columns)}")
    for column in columns:
        if column not in header:
            raise DataError(f"{path}: line 1: column {column!r} is missing")
    if tuple(header) != columns:
        raise DataError(f"{path}: line 1: the columns must be {', '.join(columns)}, once each and in this order")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; is this a folder of reported results?") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _first(error: ValidationError) -> str:
    """Describe the first complaint in one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error":
        message += f", not {first['input']!r}"
    return f"column {first['loc'][0]}: {message}" if first["loc"] else message
