"""What a built site is as a folder: complete, self-contained, the same each time, and never half-written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlparse

import pytest

from lnlbench.errors import DataError, StorageError, UsageError
from lnlbench.plugins import Registry
from lnlbench.site import build as building
from lnlbench.site.build import MARKER, build
from lnlbench.site.model import Site, read_site, slug


class Page(HTMLParser):
    """Links, ids and whatever else a page has that leads somewhere or runs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.handlers: list[str] = []
        self.styles = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.handlers += [name for name in values if name.startswith("on")]
        self.styles += tag == "style" or "style" in values
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [value for name in ("href", "src") if (value := values.get(name)) and tag != "use"]
        if tag == "script":
            self.scripts.append(values)


@pytest.fixture(scope="module")
def parsed(built: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in sorted(built.rglob("*.html"))}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_row_suite_method_and_dataset_has_a_page(built: Path, site: Site) -> None:
    wanted = {"index.html", *map(site.suite_url, site.suites), *map(site.method_url, site.methods)}
    wanted |= {*map(site.dataset_url, site.datasets), *map(site.row_url, site.rows())}
    assert wanted == {path.relative_to(built).as_posix() for path in built.rglob("*.html")}
    assert len(list(site.rows())) == len(set(map(site.row_url, site.rows())))


def test_links_lead_to_pages_and_places_of_the_site(built: Path, parsed: dict[Path, Page]) -> None:
    followed = 0
    for path, page in parsed.items():
        for link in page.links:
            if urlparse(link).scheme in ("https", "http", "data"):
                continue
            target, anchor = urldefrag(link)
            place = (path.parent / unquote(target)).resolve() if target else path
            assert place.is_file(), f"{path.relative_to(built)}: {link}"
            if anchor:
                assert anchor in parsed[place].ids, f"{path.relative_to(built)}: {link}"
            followed += 1
    assert followed > 100


def test_nothing_runs_but_the_script_of_the_site(built: Path, parsed: dict[Path, Page]) -> None:
    for path, page in parsed.items():
        sources = [(script.get("src") or "").rpartition("/")[2] for script in page.scripts]
        assert sources == ["site.js"], path
        assert page.handlers == [], path
        assert page.styles == 0, path
        assert "script-src 'self'" in path.read_text()


def test_ids_are_unique(parsed: dict[Path, Page]) -> None:
    for path, page in parsed.items():
        assert len(page.ids) == len(set(page.ids)), path


def test_names_of_plugins_are_escaped(built: Path) -> None:
    for path in built.rglob("*.html"):
        assert "<script>alert" not in path.read_text(), path
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in (built / "index.html").read_text()


def test_same_results_same_bytes(built: Path, leaderboards: Path, registry: Registry, tmp_path: Path) -> None:
    build(read_site(leaderboards, registry), tmp_path / "again")
    assert snapshot(tmp_path / "again") == snapshot(built)


@pytest.fixture
def bare(leaderboards: Path, registry: Registry, tmp_path: Path) -> Site:
    """A site of a single measured suite, without bundles."""
    folder = tmp_path / "bare" / "measured"
    folder.mkdir(parents=True)
    shutil.copy(leaderboards / "measured" / "cifar10-sym.csv", folder)
    return read_site(folder.parent, registry)


def test_without_bundles_there_are_pages_and_no_ranks(bare: Site, tmp_path: Path) -> None:
    assert build(bare, tmp_path / "out") > 3
    text = (tmp_path / "out" / "suites" / "cifar10-sym.html").read_text()
    assert "the runs behind these rows are not at hand" in text
    assert 'class="n rank"' not in text


def test_a_site_is_replaced_as_a_whole(bare: Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(bare, out)
    first = snapshot(out)
    (out / "suites" / "cifar10-sym.html").unlink()
    build(bare, out)
    assert snapshot(out) == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("fails_at", ["page", "rename"])
def test_a_failure_leaves_the_old_site(
    bare: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    out = tmp_path / "out"
    build(bare, out)
    first = snapshot(out)

    def fail(*arguments: object) -> Any:
        raise OSError(28, "No space left on device")

    if fails_at == "page":
        monkeypatch.setattr(building.datasets, "pages", fail)
    else:
        real = Path.replace
        monkeypatch.setattr(
            Path, "replace", lambda self, target: fail() if self.suffix == ".tmp" else real(self, target)
        )
    with pytest.raises(StorageError, match="disk full"):
        build(bare, out)
    assert snapshot(out) == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_with_something_else_is_refused(bare: Site, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="neither empty nor a site"):
        build(bare, tmp_path / "mine")
    build(bare, tmp_path / "out")
    (tmp_path / "out" / "CNAME").write_text("example.org")
    with pytest.raises(UsageError, match="holds CNAME, which is not of the site"):
        build(bare, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        build(bare, tmp_path / "file")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "out" / MARKER).is_file()


def test_no_results_is_said_in_one_line(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(UsageError, match=r"no results in .*; score some runs first"):
        read_site(tmp_path, registry)


def test_a_csv_that_is_not_that_of_its_bundles_is_refused(
    leaderboards: Path, registry: Registry, tmp_path: Path
) -> None:
    shutil.copytree(leaderboards / "measured", tmp_path / "measured")
    csv = tmp_path / "measured" / "cifar10-sym.csv"
    header, *rows = csv.read_text().splitlines(keepends=True)
    csv.write_text(header)
    with pytest.raises(DataError, match=r"cifar10-sym\.csv is not that of the bundles beside it; run `lnlbench score`"):
        read_site(tmp_path, registry)
    csv.write_text(header + rows[0] + rows[0])
    with pytest.raises(DataError, match="has a row twice"):
        read_site(tmp_path, registry)
    csv.rename(csv.with_name("other.csv"))
    with pytest.raises(DataError, match="has a row of suite 'cifar10-sym'"):
        read_site(tmp_path, registry)


def test_damaged_metrics_are_said_in_one_line(leaderboards: Path, registry: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "boards" / "measured"
    shutil.copytree(leaderboards / "measured" / "bundles" / "cifar10-sym", folder / "bundles" / "cifar10-sym")
    shutil.copy(leaderboards / "measured" / "cifar10-sym.csv", folder)
    site = read_site(folder.parent, registry)
    (run, *_) = next(iter(site.runs.values()))
    path = run.folder / "metrics.jsonl.gz"
    whole = path.read_bytes()
    assert [epoch.logged["loss"] for epoch in run.epochs()][:2] == [1.0, 0.5]
    for damage, told in ((whole[:-9], "cut off"), (b"[]", "not gzip"), (None, "missing")):
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(DataError, match=rf"metrics\.jsonl\.gz: .*{told}.*; restore the original files") as caught:
            build(site, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["..", ".", "", "con/../../etc", "a b", "CSS", "css ", "ä", "x" * 300, "<script>", "-rf", "\n"]
)
def test_a_name_becomes_a_file_name_of_its_own(name: str) -> None:
    made = slug(name)
    assert re.fullmatch(r"[a-z0-9_][a-z0-9._+-]{0,80}", made)
    assert made != slug(name + "'")
    assert made != slug("css")


def test_usual_names_are_kept() -> None:
    for name in ("css", "cifar10-sym", "0.50", "clothing1m+clean-train", "deadbeef"):
        assert slug(name) == name


def test_the_command(leaderboards: Path, cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "boards" / "reported").mkdir(parents=True)
    for name in ("papers.toml", "animal10n.csv"):
        shutil.copy(leaderboards / "reported" / name, tmp_path / "boards" / "reported")
    out = tmp_path / "pages"
    answer = cli("site", "build", "--out", out, "--leaderboards", tmp_path / "boards")
    assert answer.code == 0, answer.err
    assert answer.out.startswith(f"site: {out / 'index.html'} (")
    assert (out / "suites" / "animal10n.html").is_file()
    refused = cli("site", "build", "--out", tmp_path, "--leaderboards", tmp_path / "boards")
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1


def test_two_pages_of_one_address_are_refused(bare: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building.datasets, "pages", lambda _: iter([("datasets/A.html", ""), ("datasets/a.html", "")]))
    with pytest.raises(DataError, match=r"two pages would be datasets/a\.html"):
        build(bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()
