"""What the documentation shows is run as it stands there."""

from __future__ import annotations

import csv
import doctest
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest

import lnlbench
from lnlbench import errors, hookspecs
from lnlbench.cli.main import _COMMANDS, main
from lnlbench.plugins import discover

ROOT = Path(os.environ.get("LNLBENCH_SOURCE") or Path(__file__).resolve().parents[2])
DOCS = ROOT / "docs"
PACKAGE = Path(lnlbench.__file__).parent
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"_build", "generated", "examples"} & set(page.parts))
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("lnlbench_"))


@pytest.fixture(scope="module")
def small_loss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package as an installer would lay it out: built as a wheel, then unpacked."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    source = DOCS / "examples" / "small_loss"
    script = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    # The backend alone, in this environment: nothing is fetched.
    done = subprocess.run([sys.executable, "-c", script, str(wheels)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(wheels / done.stdout.split()[-1]) as wheel:
        wheel.extractall(site)
    return site


def test_the_example_package_works(cli_process: Callable[..., Any], workplace: Path, small_loss: Path) -> None:
    environment = {"PYTHONPATH": str(small_loss)}
    listed = cli_process("list", "methods", "--json", environment=environment)
    assert (listed.code, listed.err) == (0, "")
    (row,) = [row for row in json.loads(listed.out) if row["name"] == "smallloss"]
    assert row["provider"] == "lnlbench-smallloss 0.1.0"

    command = "run --method smallloss --suite digits-sym --task 0.40 --seeds 1 --epochs 2 --limit-train 200"
    answer = cli_process(*command.split(), environment=environment)
    assert answer.code == 0, answer.err
    board = workplace / "leaderboards" / "measured" / "digits-sym.csv"
    (scored,) = csv.DictReader(board.read_text().splitlines())
    assert (scored["method"], scored["ruleset"], scored["n"]) == ("smallloss", "tuned", "1")
    assert 0 < float(scored["clean_auc_mean"]) < 100
    # Warm-up goes on for three epochs, in which everything is selected.
    assert (scored["clean_size_mean"], scored["clean_precision_mean"]) == ("100.00", "60.00")
    (result,) = workplace.glob("runs/digits-sym/0.40/smallloss/*/result.json")
    everything_is_explained(result.parent)
    everything_is_explained(board.parent / "bundles" / "digits-sym" / scored_cell(result))


def scored_cell(result: Path) -> str:
    cell = json.loads(result.read_text())["cell"]
    assert isinstance(cell, str)
    return cell


def everything_is_explained(folder: Path) -> None:
    """The page about files knows every file of a run or bundle, and every key and array in those that no model has."""
    pages = extension("file_pages")
    files = {f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()}
    if "run.json" in files:
        assert files == {"run.json", "metrics.jsonl.gz", "predictions.npz", "manifest.json"}
        assert set(json.loads((folder / "manifest.json").read_text())) == set(pages.MANIFEST)
        return
    assert files == set(pages.RUN_FILES) - {"failure.json"}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        assert set(pages.METRICS) - {"accuracies", "networks"} == set(json.loads(line))
    assert set(json.loads((folder / "checkpoints" / "latest.json").read_text())) == set(pages.CHECKPOINTS)
    for name, explained in (("predictions.npz", pages.PREDICTIONS), ("samples.npz", pages.SAMPLES)):
        with np.load(folder / name) as arrays:
            assert set(arrays) <= set(explained)


def extension(name: str) -> ModuleType:
    """A module of the documentation's own extensions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS / "_ext")
        return importlib.import_module(name)


def test_the_words_for_types_are_as_their_examples_say() -> None:
    assert doctest.testmod(extension("typenames")) == (0, 3)


def test_the_page_about_configuration_knows_every_variable_and_exit_code() -> None:
    page = (DOCS / "reference" / "configuration.md").read_text()
    used = {name for path in PACKAGE.rglob("*.py") for name in re.findall(r"\bLNLBENCH_[A-Z_]+\b", path.read_text())}
    assert used == set(re.findall(r"^\| `(LNLBENCH_[A-Z_]+)` \|", page, re.M))
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)}
    assert codes == {int(code) for code in re.findall(r"(\d+):", main.__doc__ or "")}
    expected = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.LnlbenchError)]
    assert {cls.exit_code for cls in expected} <= codes


def test_the_link_check_finds_what_is_broken(tmp_path: Path) -> None:
    def check() -> tuple[int, list[str]]:
        command = [sys.executable, str(DOCS / "check_links.py"), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()

    (tmp_path / "sub").mkdir()
    other = '<p id="there">x</p><a href="../index.html">back</a><a href="https://example.org/">elsewhere</a>'
    (tmp_path / "sub" / "other page.html").write_text(other)
    sound = '<a href="sub/other%20page.html#there">a</a><a href="#">top</a><a href="mailto:a@b.c">mail</a>'
    (tmp_path / "index.html").write_text(sound)
    assert check() == (0, ["2 pages, 0 broken links"])
    broken = (
        '<a href="sub/other%20page.html#here">b</a><img src="no.png"><script src="https://cdn.example/x.js"></script>'
    )
    (tmp_path / "index.html").write_text(sound + broken + '<a href="../secret">c</a><a href="#nowhere">d</a>')
    code, lines = check()
    assert code == 1
    assert lines == [
        "index.html: sub/other%20page.html#here: no such place on that page",
        "index.html: no.png: no such file",
        "index.html: loads https://cdn.example/x.js from another host",
        "index.html: ../secret: no such file",
        "index.html: #nowhere: no such place on that page",
        "2 pages, 5 broken links",
    ]


def test_the_page_about_the_example_shows_its_files() -> None:
    page = (DOCS / "howto" / "add-a-method.md").read_text()
    shown = re.findall(r"{literalinclude} (\S+)", page)
    assert len(shown) == 4
    for path in shown:
        assert (DOCS / "howto" / path).resolve().is_file()


def test_the_page_about_extensions_lists_every_hook_with_a_real_example() -> None:
    assert len(HOOKS) == 7
    rows = re.findall(
        r"^\| `(lnlbench_\w+)` \| `(\w+)` \| .* \| `(\S+)` \|$", (DOCS / "howto/extend.md").read_text(), re.M
    )
    assert sorted(hook for hook, _, _ in rows) == HOOKS
    for hook, noun, example in rows:
        assert hasattr(importlib.import_module("lnlbench.api"), noun)
        assert noun in str(hookspecs.__dict__[hook].__annotations__["return"])
        assert (ROOT / example).exists()


def test_every_page_is_in_the_index_and_every_entry_is_a_page() -> None:
    entries = re.findall(r"^([\w-]+(?:/[\w-]+)*)$", (DOCS / "index.md").read_text(), re.M)
    written = {entry for entry in entries if not entry.startswith("reference/generated/")}
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES}
    assert written == pages - {"index"}


def test_links_between_pages_lead_somewhere() -> None:
    checked = 0
    for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            # Building the documentation writes these, and fails if a link leads nowhere.
            if "generated" not in Path(target).parts:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
                checked += 1
    assert checked > 0


def commands() -> list[tuple[str, click.Command]]:
    """Every command and sub-command with its full name."""
    found: list[tuple[str, click.Command]] = []
    for name, (target, _) in _COMMANDS.items():
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {sub}", each) for sub, each in command.commands.items()]
    return found


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_command_and_option_has_a_help_text(name: str, command: click.Command) -> None:
    assert command.help
    assert "\\" not in command.help, "examples stand in lines of their own only after a backspace, not after its name"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]}"
            assert len(parameter.help) > 10


def documented_commands() -> list[tuple[str, str]]:
    """Every ``lnlbench ...`` line inside a code block of the documentation, with its file."""
    found = []
    for page in [ROOT / "README.md", *PAGES]:
        in_block = False
        for line in page.read_text().splitlines():
            if line.startswith("```"):
                in_block = not in_block
            elif in_block and (command := re.search(r"(?:^|&& )(lnlbench [^#]*)", line)):
                found.append((page.name, command[1].strip()))
    return found


def test_documented_commands_parse() -> None:
    lines = [line for _, line in documented_commands()]
    assert any(line.startswith("lnlbench run") for line in lines)
    assert any(line.startswith("lnlbench list suites") for line in lines)
    known = dict(commands())
    for page, line in documented_commands():
        words = line.split()[1:]
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        assert name in known, f"{page}: {line}"
        arguments = words[len(name.split()) :]
        # Parsing alone; an option that does not exist would be refused here.
        with known[name].make_context(name, arguments, resilient_parsing=False):
            pass


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {lnlbench.__version__}" in text or "## Unreleased" in text
    for name in (*discover().methods.names(), *discover().datasets.names()):
        assert f"`{name}`" in text


def test_the_readme_names_methods_and_suites() -> None:
    text = (ROOT / "README.md").read_text()
    registry = discover()
    for name in registry.methods.names():
        assert f"`{name}`" in text
    for item in registry.suites:
        if item.entry.variant_of is None:
            assert f"`{item.entry.name}`" in text


def test_documents_hold_no_path_of_a_machine() -> None:
    home = re.compile(r"(/home/|/Users/|/root/|/opt/|/tmp/)\w")
    for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        if "_build" not in page.parts:
            assert not home.search(page.read_text()), page


def test_every_table_of_the_papers_has_suites_that_exist() -> None:
    papers = tomllib.loads((DOCS / "coverage.toml").read_text())["paper"]
    assert [paper["name"].split(":")[0] for paper in papers] == ["CSS", "CLIPCleaner", "Jo-SRC", "CCL"]
    registry = discover()
    tables: dict[str, set[str]] = {}
    for paper in papers:
        for row in paper["rows"]:
            suite = registry.suites.find(row["suite"]).entry
            assert row["tasks"], row
            for task in row["tasks"]:
                suite.task(task)
            tables.setdefault(paper["name"].split(":")[0], set()).update(re.findall(r"\d+", row["table"].split(";")[0]))
    # The tables that hold results on noisy data; those left out show examples in words.
    assert tables == {
        "CSS": set("12356"),
        "CLIPCleaner": set("12345678"),
        "Jo-SRC": set("12456") | {"3"},
        "CCL": set("123456789"),
    }
