"""What the documentation shows is run as it stands there."""

from __future__ import annotations

import csv
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
from typing import Any

import click
import pytest

import lnlbench
from lnlbench import hookspecs
from lnlbench.cli.main import _COMMANDS
from lnlbench.plugins import discover

ROOT = Path(os.environ.get("LNLBENCH_SOURCE") or Path(__file__).resolve().parents[2])
DOCS = ROOT / "docs"
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


def test_the_page_about_the_example_shows_its_files() -> None:
    page = (DOCS / "howto" / "add-a-method.md").read_text()
    shown = re.findall(r"{literalinclude} (\S+)", page)
    assert len(shown) == 3
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
    pages = {
        path.relative_to(DOCS).with_suffix("").as_posix()
        for path in DOCS.rglob("*.md")
        if not {"_build", "generated"} & set(path.relative_to(DOCS).parts)
    }
    assert written == pages - {"index"}


def test_links_between_pages_lead_somewhere() -> None:
    checked = 0
    for page in [*DOCS.glob("*.md"), *DOCS.glob("howto/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
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
    for page in [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("howto/*.md"))]:
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
