"""The page of a method: what it says of the method itself, and all results, measured and reported apart."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from lnlbench.contracts.method import MethodEntry
from lnlbench.plugins import Provider, Registered, Registry
from lnlbench.site.methods import departures, pages, render_section, type_name
from lnlbench.site.model import Site

HOSTILE = "<script>alert(1)</script>"

README = """# A method

[ref]: https://example.org/defined-elsewhere

## Options

Not this.

## Departures

1. **First.** One with a [link][ref], a [place](#options), a [script](javascript:alert(1)) and `code`.
2. HTML: <b onclick="alert(1)">bold</b> ![picture](https://example.org/x.png)

### Details

| a | b |
| --- | ---: |
| 1 | 2 |

    code

## Results

Not this either.
"""


@pytest.fixture
def open_page(built: Path, site: Site, window: Any) -> Any:
    def open_page(name: str) -> Any:
        window.page.goto((built / site.method_url(name)).as_uri())
        return window.page

    return open_page


def column(page: Any, table: str, number: int) -> list[str]:
    cells = page.locator(f"{table} >> tbody tr > :nth-child({number})")
    return [" ".join(text.split()) for text in cells.all_inner_texts()]


def after(heading: str) -> str:
    return f"#{heading} ~ .scroll >> nth=0"


def text_of(pages_made: Iterator[tuple[str, str]], path: str) -> str:
    return dict(pages_made)[path]


class TestTheMethodItself:
    def test_paper_summary_and_supervision(self, open_page: Any, registry: Registry) -> None:
        page, entry = open_page("css"), registry.methods.find("css").entry
        assert page.locator(".lead").inner_text() == entry.summary
        assert entry.paper is not None
        assert page.locator("dl.facts").get_by_role("link").first.get_attribute("href") == entry.paper.url
        facts = page.locator("dl.facts").inner_text()
        assert "clip" in facts
        assert entry.paper.title in facts
        page.get_by_text("BibTeX", exact=True).click()
        assert page.get_by_label("BibTeX entry").inner_text().strip() == entry.paper.bibtex.strip()

    @pytest.mark.parametrize("name", ["ce", "dividemix", "css", "josrc"])
    def test_every_option_with_type_and_meaning(self, open_page: Any, registry: Registry, name: str) -> None:
        page = open_page(name)
        fields = registry.methods.find(name).load().Config.model_fields
        table = page.get_by_role("region", name=f"options of {name}", exact=False)
        assert table.locator("tbody th").all_inner_texts() == list(fields)
        meanings = table.locator("tbody td:nth-child(3)").all_inner_texts()
        assert meanings == [" ".join((field.description or "").split()) for field in fields.values()]
        types = table.locator("tbody td:nth-child(2)").all_inner_texts()
        assert types[list(fields).index("epochs")] == "int"

    def test_departures_are_those_of_the_readme(self, open_page: Any) -> None:
        page = open_page("dividemix")
        items = page.locator("#departures ~ .prose > ol > li")
        assert items.count() == 18
        assert items.first.inner_text().startswith("Unlabelled loss. The paper sums")
        assert page.locator(".prose a").count() == 0
        assert "lnlbench run" not in page.locator(".prose").inner_text()

    def test_a_method_that_is_not_installed_has_what_the_results_say(self, open_page: Any) -> None:
        page = open_page(HOSTILE)
        assert page.locator("h1").inner_text() == HOSTILE
        assert "Not installed" in page.locator(".lead").inner_text()
        assert page.locator("#options").count() == 0
        assert "hostile 0.1.0" in page.locator("dl.facts").inner_text()
        assert len(column(page, after("measured"), 1)) == 2

    def test_code_that_does_not_load_costs_the_options_only(self, site: Site) -> None:
        registry = Registry()
        entry = MethodEntry(name="gone", target="no.such.module:Gone", summary="It went.")
        registry.methods.add(Registered(entry, Provider("lnlbench-gone", "1.0")))
        made = text_of(pages(replace(site, registry=registry)), "methods/gone.html")
        assert "The code of the method could not be loaded" in made
        assert "The description of lnlbench-gone names none." in made

    def test_types_are_written_for_people(self) -> None:
        named: dict[Any, str] = {
            float: "float",
            float | None: "float or none",
            Literal["a", "b"]: "'a' or 'b'",
            tuple[int, ...]: "tuple[int, ...]",
        }
        assert {annotation: type_name(annotation) for annotation in named} == named


class TestResults:
    def test_every_measured_row_is_there_and_leads_to_its_runs(self, open_page: Any, site: Site, built: Path) -> None:
        page = open_page("ce")
        rows = [row for row in site.rows() if row.method == "ce"]
        full = [row for row in rows if not row.reduced]
        assert column(page, after("measured"), 2) == [row.task for row in full]
        shown = column(page, after("measured"), 4)
        assert shown[0] == f"{full[0].last10_mean:.2f} ± {full[0].last10_std:.2f}"
        assert column(page, after("reduced"), 3) == [row.protocol for row in rows if row.reduced]
        links = page.locator(f"{after('measured')} >> tbody th a").evaluate_all("links => links.map(each => each.href)")
        assert links == [(built / site.row_url(row)).as_uri() for row in full]

    def test_other_editions_are_marked(self, open_page: Any) -> None:
        protocols = column(open_page("ce"), after("measured"), 3)
        assert [each for each in protocols if "edition" in each] == ["preset edition jpeg"]

    def test_reported_results_are_apart_with_source_score_and_note(self, open_page: Any, site: Site) -> None:
        page = open_page("dividemix")
        wanted = [
            row for rows in site.reported.results.values() for row in rows if "dividemix" in row.method_id.split("+")
        ]
        assert len(wanted) > 40
        assert [each.split()[0] for each in column(page, after("reported"), 3)] == [row.accuracy for row in wanted]
        sources = column(page, after("reported"), 8)
        assert sources[0].startswith(f"CSS, table {wanted[0].table} quoted")
        assert {"last10", "unstated really best"} <= set(column(page, after("reported"), 5))
        assert any("CLIPCleaner + DivideMix" in each for each in column(page, after("reported"), 4))
        assert page.get_by_text("where 91.7 comes from is not said").count() == 1

    def test_ablations_of_its_paper_are_there_as_printed(self, open_page: Any) -> None:
        page = open_page("css")
        table = page.get_by_role("region", name="Table: table 3 of the paper")
        header = table.locator("thead th").all_inner_texts()
        assert header == ["Row", "20 %", "50 %", "80 %", "90 %"]
        rows = [row.split("\t") for row in table.locator("tbody tr").all_inner_texts()]
        assert rows[0][1:4] == ["78.34", "74.48", "67.21"]
        assert page.locator("#studies ~ h3").all_inner_texts() == [
            "Table 3: accuracy",
            "Table 5: accuracy",
            "Table 6: accuracy",
        ]

    def test_tables_can_be_sorted(self, open_page: Any) -> None:
        page = open_page("ce")
        page.locator(after("measured")).get_by_role("button", name="Last 10", exact=True).click()
        values = [float(each.split()[0]) for each in column(page, after("measured"), 4)]
        assert values == sorted(values, reverse=True)

    def test_files_hold_the_same(self, built: Path, site: Site) -> None:
        folder = built / "data" / "methods" / "css"
        measured = list(csv.DictReader(io.StringIO((folder / "measured.csv").read_text())))
        assert [row["protocol_key"] for row in measured] == [r.protocol_key for r in site.rows() if r.method == "css"]
        assert [row["last10_mean"] for row in json.loads((folder / "measured.json").read_text())] == [
            row.last10_mean for row in site.rows() if row.method == "css"
        ]
        reported = list(csv.DictReader(io.StringIO((folder / "reported.csv").read_text())))
        assert [row["accuracy"] for row in reported] == [
            row["accuracy"] for row in json.loads((folder / "reported.json").read_text())
        ]
        cells = sum(len(each) for name, each in site.reported.studies.items() if name.startswith("css-"))
        assert len(json.loads((folder / "studies.json").read_text())) == cells


class TestDepartures:
    def test_only_the_section_is_rendered(self) -> None:
        html = render_section(README, "departures")
        assert "Not this" not in html
        assert "<h2>" not in html
        assert "<h3>Details</h3>" in html
        assert html.count("<li>") == 2

    def test_links_lead_to_the_web_or_nowhere(self) -> None:
        html = render_section(README, "departures")
        assert re.findall(r'href="([^"]*)"', html) == ["https://example.org/defined-elsewhere"]
        assert "a place, a" in html
        assert "&gt;bold&lt;/b&gt; picture</li>" in html

    def test_nothing_in_it_can_run_or_be_fetched(self) -> None:
        html = render_section(README, "departures")
        assert "<b " not in html
        assert "&lt;b onclick=" in html
        assert "<img" not in html
        assert "style=" not in html

    def test_tables_scroll_and_are_aligned(self) -> None:
        html = render_section(README, "departures")
        assert '<div class="scroll" tabindex="0" role="region" aria-label="Table">\n<table>' in html
        assert '<td class="n">2</td>' in html

    def test_no_such_section_is_nothing(self) -> None:
        assert render_section("# Title\n\n## Options\n", "departures") == ""
        assert render_section("", "departures") == ""

    def test_comes_from_the_metadata_of_a_distribution(self, plugins: Any) -> None:
        plugins.add("lnlbench-described", "described", "")
        metadata = plugins.path / "lnlbench_described-1.0.dist-info" / "METADATA"
        metadata.write_text(f"{metadata.read_text()}Description-Content-Type: text/markdown\n\n{README}")
        assert "<strong>First.</strong>" in departures("lnlbench-described")
        assert departures("lnlbench-nowhere") == ""
