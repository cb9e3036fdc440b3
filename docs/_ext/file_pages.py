"""Pages about files: suite files, what a run and a board leave behind, CSV columns. From the models that read them."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import typenames
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lnlbench import records, suitefiles
from lnlbench.api import NoiseSettings, Suite, SuiteTask
from lnlbench.contracts import views
from lnlbench.contracts.dataset import Edition
from lnlbench.engine import realisation
from lnlbench.leaderboard import reported, submission, trust
from lnlbench.leaderboard.aggregate import Row
from lnlbench.plugins import Registry

RUN_FILES = {
    "job.json": ("at the start", "what the worker process was told: specification, suite, folders, threads"),
    "spec.json": ("before training", "the cell's specification"),
    "environment.json": ("before training", "where it runs"),
    "noise.json": ("before training", "the noisy labels: digest, rate, counts"),
    "metrics.jsonl": ("after each epoch", "one line per epoch"),
    "checkpoints/": ("between epochs", "the last two checkpoints, and `latest.json` with their SHA-256 sums"),
    "predictions.npz": ("at the end", "predictions on the test images"),
    "samples.npz": ("at the end", "the last epoch's verdicts on the training samples"),
    "result.json": ("last, atomically", "the result: a run is finished when this file is there"),
    "failure.json": ("if it failed", "why; removed when the run goes on"),
    "log.txt": ("all the time", "what the worker printed"),
    ".lock": ("all the time", "held while a process works on the folder; it frees itself when the process ends"),
}
"""Files of a run's folder: when they are written, and what is in them."""

METRICS = {
    "epoch": "number of the epoch, from 0",
    "test_accuracy": "accuracy on the main test set, as a fraction",
    "logged": "mean of each value that the method gave to `run.log`, by name",
    "selection": "scores of what the method reported, by name; absent where they cannot be computed",
    "seconds": "`train`, `evaluate` and `harness`",
    "accuracies": "accuracy on each further test set, on the clean validation set (`validation`), and among the first "
    "five (`top5`), where there are such",
    "networks": "accuracy of each network by itself, of methods that return an `Ensemble`",
}
"""Keys of a line of ``metrics.jsonl``."""

PREDICTIONS = {
    "epochs": "`(K,)`: the epochs whose predictions are kept: the final ten, the best one of each test set, and the "
    "best one of the clean validation set",
    "test_labels": "`(M,)`: true labels of the test images",
    "predictions": "`(K, M)`: predicted classes",
    "top5": "`(K, M)`: whether the true class was among the first five; where the suite scores that",
}
"""Arrays of ``predictions.npz``; those of a further test set are named ``<test set>.<array>``."""

SAMPLES = {
    "given_labels": "`(N,)`: the noisy labels",
    "clean_probs": "`(N,)`: the method's clean probability, or score of cleanness",
    "selected": "`(N,)`: what it took for clean",
    "pseudo_labels": "`(N,)`: labels it put itself; -1 for none",
    "ood": "`(N,)`: what it took for out of distribution",
}
"""Arrays of ``samples.npz``; those of a named report are called ``<array>.<name>``."""

FAILURE = {
    "status": "`failed`, or `oom` if the device had not enough memory",
    "message": "one line",
    "details": "where in the code, if the error was not an expected one",
    "cell": "cell id",
}
"""Keys of ``failure.json``."""

CHECKPOINTS = {
    "format": "layout of this file",
    "checkpoints": "up to two, the newest first: `name`, `epoch`, `sha256`, `size`",
}
"""Keys of ``checkpoints/latest.json``."""

MANIFEST = {
    "format": "layout of this file",
    "files": "`sha256` and `size` of each of the other files, by name",
}
"""Keys of a bundle's ``manifest.json``."""


def suite_files_page(registry: Registry) -> str:
    """Every key of a suite file."""
    lines = [
        "# Suite files",
        "",
        "A suite is one TOML file. A plugin announces it by the hook `lnlbench_suites`;",
        "[Extend it](../../howto/extend.md) shows one from end to end, and `lnlbench new-suite` writes one.",
        "",
        'Types are taken at their word: `rate = "0.2"` and `epochs = true` are refused, and so is a key that is not',
        "listed here. The message names the file, the key, and what was expected. `version` must be raised when a",
        "change to the file would change a result.",
        "",
        "## Keys at the top",
        "",
        *keys(Suite),
        "## `[[tasks]]`: the levels",
        "",
        *keys(SuiteTask),
        "## `[noise]`",
        "",
        "A suite without generated noise names the released labels, or `own` where the dataset brings its labels",
        "itself. Switches of each are listed under [noise](extensions.md#noise); those of a task come on top.",
        "",
        *keys(NoiseSettings),
        "## `[views.NAME]`",
        "",
        "`ops` is a list of operations, applied first to last; an empty list is the image as it is. Crops and flips",
        "cut the view out of the image and come first. Each operation is a table that says which one it is (`op`), and",
        "has keys of its own. [](../api-methods.md#views) explains what they do.",
        "",
    ]
    for operation in _operations():
        lines += [f'### `op = "{operation.model_fields["op"].default}"`', ""]
        lines += [_first_sentence(operation), ""]
        lines += keys(operation, without=("op",))
    lines += [
        "## `[variants.NAME]`",
        "",
        "A variant is a suite `<suite>-NAME` that has everything in common with the first but what its table says.",
        "Options of the noise that the variant does not mention stay as they are.",
        "",
        *keys(suitefiles._Variant),
        "### `[variants.NAME.noise]`",
        "",
        *keys(suitefiles._VariantNoise),
        "## `data`: options of datasets",
        "",
        "Most datasets have none.",
        "",
    ]
    for registered in registry.datasets:
        options = registered.load().Options
        if options.model_fields:
            lines += [f"### `{registered.entry.name}`", "", *keys(options)]
    return "\n".join(lines)


def files_page() -> str:
    """Every file of a run folder, a bundle, a submission and the data folder."""
    lines = [
        "# Files of runs, boards and data",
        "",
        "Fractions are in [0, 1]; only CSV files and pages have per cent. Times are seconds. Files are written aside",
        "and renamed when they are complete, except `metrics.jsonl`, which grows line by line.",
        "",
        "## The folder of a run",
        "",
        "`<runs>/<suite>/<task>/<method>/seed<seed>-<cell id>/`. The cell id is the digest of everything that can",
        "change the result.",
        "",
        "| file | when | what |",
        "| --- | --- | --- |",
        *(f"| `{name}` | {when} | {what} |" for name, (when, what) in RUN_FILES.items()),
        "",
        "### `spec.json`",
        "",
        *content(records.CellSpec),
        "`method` and `selector`:",
        "",
        *content(records.MethodSpec),
        "`noise`:",
        "",
        *content(records.NoiseSpec),
        "### `environment.json`",
        "",
        *content(records.Environment),
        "### `noise.json`",
        "",
        *content(records.NoiseFacts),
        "### `metrics.jsonl`",
        "",
        *listed("key", METRICS),
        "### `predictions.npz`",
        "",
        "NumPy arrays; K epochs, M test images. Those of a further test set have its name before theirs:",
        "`<test set>.predictions`.",
        "",
        *listed("array", PREDICTIONS),
        "### `samples.npz`",
        "",
        "NumPy arrays in the order of the training set, as far as the method reports them; N training samples. Those",
        "of a report with a name have it behind theirs: `clean_probs.<name>`.",
        "",
        *listed("array", SAMPLES),
        "### `result.json`",
        "",
        *content(records.RunRecord),
        "`data`:",
        "",
        *content(records.DataFacts),
        "`scores`, and each of `further_scores`:",
        "",
        *content(records.Scores),
        "`timing`:",
        "",
        *content(records.Timing),
        "`spec`, `environment` and `noise` are as in the files of these names.",
        "",
        "### `failure.json`",
        "",
        *listed("key", FAILURE),
        "### `checkpoints/latest.json`",
        "",
        *listed("key", CHECKPOINTS),
        "A checkpoint `ckpt-<epoch>.pt` is read by `torch.load(..., weights_only=True)`. One whose SHA-256 is another",
        "one is skipped for the one before.",
        "",
        "## A bundle of a board",
        "",
        "`<leaderboards>/measured/bundles/<suite>/<cell id>/` holds what is needed to recompute every score of a run.",
        "It never changes once it is there.",
        "",
        "| file | what |",
        "| --- | --- |",
        "| `run.json` | the run's `result.json`, byte for byte |",
        "| `metrics.jsonl.gz` | the run's `metrics.jsonl`, packed |",
        "| `predictions.npz` | the run's |",
        "| `manifest.json` | sizes and SHA-256 sums of the other three |",
        "",
        "### `manifest.json`",
        "",
        *listed("key", MANIFEST),
        "How far bundles were checked is told [beside them](csv.md#how-far-rows-were-checked).",
        "",
        "## A submission",
        "",
        "A folder with `bundles/<suite>/<cell id>/` as on a board, and a list of them, `submission.json`:",
        "",
        *content(submission._List),
        "Each of `bundles`:",
        "",
        *content(submission._Listed),
        "## The data folder",
        "",
        "| folder or file | what |",
        "| --- | --- |",
        "| `<dataset>/` | files of a dataset, or of released labels; `folder:NAME` lives in `folder-NAME/` |",
        "| `<dataset>/edition.json` | the edition that was registered, if any |",
        "| `noise/<suite>@<version>/<task>/seed-<noise seed>-<8 hex>/` | drawn labels: `labels.npy`, `noise.json` |",
        "| `stages/` | results of stages before training, such as a pre-training, by what they depend on |",
        "| `features/` | image and text features of vision-language encoders |",
        "| `decoded/` | decoded images of large datasets, after `lnlbench prepare --decode` |",
        "",
        "Everything but the datasets' own files is made anew if it is deleted.",
        "",
        "### `edition.json`",
        "",
        *content(Edition),
        "### `noise.json` beside drawn labels",
        "",
        *content(realisation._Stored),
    ]
    return "\n".join(lines)


def csv_page() -> str:
    """The columns of leaderboards and of reported results."""
    lines = [
        "# CSV files of leaderboards",
        "",
        "UTF-8, commas, line feeds. What is unknown is blank. A text that a spreadsheet would take for a formula",
        "starts with an apostrophe.",
        "",
        "## Measured: `measured/<suite>.csv`",
        "",
        "Accuracies are in per cent, standard deviations are those of a sample (n - 1). The file is written from the",
        "bundles beside it; `lnlbench score` writes it anew, byte for byte.",
        "",
        *_columns(Row),
        "### How far rows were checked",
        "",
        "`measured/trust/<suite>.json` names the bundles that are more than claimed.",
        "",
        *content(trust._Trust),
        "Each of `cells`:",
        "",
        *content(trust._Entry),
        "## Reported: `reported/<suite>.csv`",
        "",
        "What papers print, cell by cell; never ranked together with what was measured.",
        "",
        *_columns(reported.ReportedRow),
        "The words of `score_kind` and `score_actual`:",
        "",
        *_words(reported, "Score"),
        "The words of `provenance`:",
        "",
        *_words(reported, "Provenance"),
        "## Reported: `reported/other/<paper>-table-<k>.csv`",
        "",
        "Tables that take a method apart, or look at something else than test accuracy.",
        "",
        *_columns(reported.StudyRow),
        "## Reported: `reported/papers.toml`",
        "",
        "A table for each paper; its name is the key that the CSV files use.",
        "",
        *keys(reported.ReportedPaper),
    ]
    return "\n".join(lines)


def keys(model: type[BaseModel], without: Sequence[str] = ()) -> list[str]:
    """Return a table of what may stand in a file that people write: key, type, default, meaning."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if name not in without:
            kind = cell(typenames.of_field(field))
            lines.append(f"| `{name}` | {kind} | {_default(field)} | {cell(_text(name, field))} |")
    return [*lines, ""]


def content(model: type[BaseModel]) -> list[str]:
    """Return a table of what is in a file that the program writes: key, type, meaning."""
    lines = ["| key | type | meaning |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        kind = cell(typenames.of_field(field)) + (" or null" if typenames.may_be_absent(field) else "")
        lines.append(f"| `{name}` | {kind} | {cell(_text(name, field))} |")
    return [*lines, ""]


def listed(what: str, meanings: dict[str, str]) -> list[str]:
    """Return a table of names with their meanings."""
    return [f"| {what} | meaning |", "| --- | --- |", *(f"| `{k}` | {cell(v)} |" for k, v in meanings.items()), ""]


def cell(text: str | None) -> str:
    """Make a text fit into a cell of a table; what looks like HTML outside of code is text."""
    parts = (text or "").replace("|", "\\|").replace("\n", " ").split("`")
    return "`".join(part if number % 2 else part.replace("<", "\\<") for number, part in enumerate(parts))


def _columns(model: type[BaseModel]) -> list[str]:
    return listed("column", {name: _text(name, field) for name, field in model.model_fields.items()})


def _text(name: str, field: FieldInfo) -> str:
    if not field.description:
        raise ValueError(f"field {name!r} has no description")
    return field.description


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    match value:
        case None:
            return "-"
        case "" | () | {}:
            return "empty"
        case bool():
            return f"`{str(value).lower()}`"
        case str() | int() | float():
            return f"`{value:.3g}`" if isinstance(value, float) else f"`{value}`"
        case tuple():
            return f"`{', '.join(f'{each:.3g}' if isinstance(each, float) else str(each) for each in value)}`"
        case BaseModel():
            return "empty"
        case _:
            raise TypeError(f"no words for the default {value!r}")


def _words(module: ModuleType, name: str) -> list[str]:
    """Return what a module says about the words of one of its literal types, each of which must be explained."""
    # The tests read the tables above, and need no Sphinx for it.
    from sphinx.pycode import ModuleAnalyzer

    analyser = ModuleAnalyzer.for_module(module.__name__)
    analyser.analyze()
    lines = analyser.attr_docs["", name]
    text = " ".join(" ".join(lines).split())
    missing = [word for word in typing.get_args(getattr(module, name)) if f"``{word}``" not in text]
    if missing:
        raise ValueError(f"{module.__name__}.{name} does not explain {', '.join(missing)}")
    return [text, ""]


def _operations() -> Iterable[type[BaseModel]]:
    """Return the operations of a view, cuts first."""

    def members(annotation: Any) -> Iterable[Any]:
        arguments = typing.get_args(annotation)
        return [each for argument in arguments for each in members(argument)] if arguments else [annotation]

    return [each for each in members(views.ViewOp) if isinstance(each, type) and issubclass(each, BaseModel)]


def _first_sentence(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())
