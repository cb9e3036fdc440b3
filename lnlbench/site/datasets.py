"""One page per dataset: facts, licence and source, files and editions, and the suites that use it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lnlbench.contracts.dataset import Dataset, Needed, RemoteFile
from lnlbench.contracts.suite import Suite
from lnlbench.leaderboard.store import guard
from lnlbench.records import DataFacts, RunRecord
from lnlbench.site.model import Site, slug, suite_entry
from lnlbench.site.render import render

_NAMED_CLASSES = 200
"""Up to so many classes are listed by name."""


@dataclass(frozen=True)
class Use:
    """A suite on a dataset."""

    name: str
    """Suite id."""
    suite: Suite | None
    """Its definition; ``None`` if it is not installed."""
    levels: tuple[str, ...]
    """Its levels, or those with results."""
    rows: int
    """Measured rows."""
    reported: int
    """Reported numbers."""


@dataclass(frozen=True)
class Used:
    """Data as runs had it."""

    facts: DataFacts
    suites: tuple[str, ...]
    runs: int


def pages(site: Site) -> Iterator[tuple[str, str]]:
    """Yield the page of every dataset that is installed or was used, and the file behind its table of data."""
    used = _used(site)
    uses: dict[str, list[Use]] = {}
    for name in sorted({registered.entry.name for registered in site.registry.suites} | set(site.suites)):
        uses.setdefault(site.dataset_of(name), []).append(_use(site, name))
    for name in site.datasets:
        yield from _page(site, name, uses.get(name, []), used.get(name, []))


def _page(site: Site, name: str, uses: Sequence[Use], used: Sequence[Used]) -> Iterator[tuple[str, str]]:
    path = site.dataset_url(name)
    registered = site.dataset_entry(name)
    dataset = _load(site, name)
    stem = f"data/datasets/{slug(name)}"
    yield (
        path,
        render(
            "dataset.html",
            path,
            site=site,
            name=name,
            entry=registered.entry if registered else None,
            provider=registered.provider if registered else None,
            facts=_facts(dataset) if dataset else [],
            classes=_classes(dataset) if dataset else [],
            files=_files(dataset) if dataset else [],
            needs=_needs(dataset) if dataset else [],
            uses=uses,
            used=used,
            editions=sorted({each.facts.edition for each in used}),
            stem=stem,
        ),
    )
    if used:
        yield from _used_files(stem, used)


def _used_files(stem: str, used: Sequence[Used]) -> Iterator[tuple[str, str]]:
    records = [{**each.facts.model_dump(mode="json"), "runs": each.runs, "suites": list(each.suites)} for each in used]
    target = io.StringIO(newline="")
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(records[0])
    for record in records:
        texts = {
            **record,
            "edition": guard(record["edition"]),
            "num_further_test": " ".join(f"{name}={count}" for name, count in record["num_further_test"].items()),
            "suites": " ".join(record["suites"]),
        }
        writer.writerow(texts.values())
    yield f"{stem}.csv", target.getvalue()
    yield f"{stem}.json", json.dumps(records, indent=1, ensure_ascii=False) + "\n"


def _load(site: Site, name: str) -> Dataset | None:
    """Return the dataset, without looking at its files; ``None`` if it is not installed or its code does not load."""
    registered = site.dataset_entry(name)
    if registered is None:
        return None
    try:
        dataset: Dataset = registered.load()(name)
    except Exception:  # the code is somebody else's; the page then says what the results say
        return None
    return dataset


def _facts(dataset: Dataset) -> list[tuple[str, str]]:
    """Return what the dataset says of itself. What depends on a user's copy is not known, and left out."""

    def known(name: str) -> Any:
        return getattr(dataset, name, None)

    classes, train, test, side = known("num_classes"), known("num_train"), known("num_test"), known("image_size")
    facts = {
        "Classes": f"{classes:,}" if classes else "",
        "Training images": f"{train:,}" if train else "",
        "Test images": f"{test:,}" if test else "",
        "Images": f"{side} x {side} pixels, {known('channels')} channels" if side else "",
        "Mean": ", ".join(f"{each:g}" for each in known("mean") or ()),
        "Standard deviation": ", ".join(f"{each:g}" for each in known("std") or ()),
        "Labels": "" if dataset.labels_are_true else "not known to be true",
        "Licence": known("licence") or "",
        "Source": known("source") or "",
    }
    return [(label, value) for label, value in facts.items() if value]


def _classes(dataset: Dataset) -> Sequence[str]:
    names = getattr(dataset, "class_names", ())
    return names if len(names) <= _NAMED_CLASSES else ()


def _files(dataset: Dataset) -> Sequence[RemoteFile]:
    try:
        return dataset.files()
    except Exception:  # as above
        return ()


def _needs(dataset: Dataset) -> Sequence[Needed]:
    try:
        return [each for each in dataset.needs() if not each.download]
    except Exception:  # as above
        return ()


def _use(site: Site, name: str) -> Use:
    results = site.suites.get(name)
    suite = results.suite if results else suite_entry(site.registry, name)
    rows = results.rows if results else ()
    levels = [task.name for task in suite.tasks] if suite else sorted({row.task for row in rows})
    return Use(name, suite, tuple(levels), len(rows), len(results.reported) if results else 0)


def _used(site: Site) -> dict[str, list[Used]]:
    """Return the data of all runs by dataset, each once."""
    runs = {run.record.cell: run.record for each in site.runs.values() for run in each}
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for cell in sorted(runs):
        record = runs[cell]
        groups.setdefault((record.spec.dataset, record.data.model_dump_json()), []).append(record)
    found: dict[str, list[Used]] = {}
    for (dataset, _), records in sorted(groups.items(), key=lambda group: (group[0][0], _facts_key(group[1][0]))):
        suites = tuple(sorted({record.spec.suite for record in records}))
        found.setdefault(dataset, []).append(Used(records[0].data, suites, len(records)))
    return found


def _facts_key(record: RunRecord) -> str:
    return json.dumps(record.data.model_dump(mode="json"), sort_keys=True)
