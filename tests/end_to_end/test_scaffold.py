"""New packages work as they are written: they install, list, run, and do what every method must."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lnlbench
from lnlbench.testing import CHECKS

Cli = Callable[..., Any]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Build a package's wheel with its backend alone, and lay it out as an installer would: nothing is fetched."""
    site, wheels = tmp_path / "site", tmp_path / "wheels"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    script = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"

    def build(package: Path) -> None:
        command = [sys.executable, "-c", script, str(wheels)]
        done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        with zipfile.ZipFile(wheels / done.stdout.split()[-1]) as wheel:
            wheel.extractall(site)

    yield build
    for name in [name for name in sys.modules if name.split(".")[0] in os.listdir(site)]:  # noqa: PTH208
        del sys.modules[name]


def own_tests(package: Path, *options: str) -> str:
    """Run the tests of a package, with warnings as errors."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "tests"]
    command += ["-W", "error", "-W", "ignore:The pynvml package is deprecated:FutureWarning"]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_new_method_works_as_it_is(cli: Cli, workplace: Path, install: Callable[[Path], None]) -> None:
    made = cli("new-method", "my-own")
    assert (made.code, made.err) == (0, "")
    package = workplace / "lnlbench-my-own"
    written = [
        "README.md",
        "lnlbench_my_own/__init__.py",
        "lnlbench_my_own/my_own.py",
        "pyproject.toml",
        "tests/test_my_own.py",
    ]
    assert files_in(workplace) == [f"lnlbench-my-own/{path}" for path in written]
    assert made.out.splitlines()[: len(written)] == [f"lnlbench-my-own/{path}" for path in written]
    assert "  lnlbench check my-own\n" in made.out
    method = (package / "lnlbench_my_own" / "my_own.py").read_text()
    assert 50 < len([line for line in method.splitlines() if line.strip()]) < 75
    assert not re.search(r"\$\{?\w", "".join((package / path).read_text() for path in written))

    install(package)
    (row,) = [row for row in json.loads(cli("list", "methods", "--json").out) if row["name"] == "my-own"]
    assert row["provider"] == "lnlbench-my-own 0.1.0"
    command = "run --method my-own --suite digits-sym --task 0.40 --seeds 1 --epochs 2 --limit-train 150"
    answer = cli(*command.split(), "--executor", "inline")
    assert answer.code == 0, answer.err
    (scored,) = csv.DictReader((workplace / "leaderboards/measured/digits-sym.csv").read_text().splitlines())
    assert (scored["method"], scored["ruleset"], scored["n"]) == ("my-own", "agnostic", "1")

    checked = cli("check", "my-own", "--json")
    assert checked.code == 0, checked.out
    assert [row["status"] for row in json.loads(checked.out)] == ["passed"] * len(CHECKS)
    assert "5 passed" in own_tests(package, "-k", "not must or no-noise or single-class")


def test_a_new_suite_works_as_it_is(cli: Cli, workplace: Path, install: Callable[[Path], None]) -> None:
    made = cli("new-suite", "digits-turned", "--dir", "packages/turned")
    assert (made.code, made.err) == (0, "")
    package = workplace / "packages" / "turned"
    assert files_in(package) == [
        "README.md",
        "lnlbench_digits_turned/__init__.py",
        "lnlbench_digits_turned/digits-turned.toml",
        "pyproject.toml",
        "tests/test_digits_turned.py",
    ]
    install(package)
    (row,) = [row for row in json.loads(cli("list", "suites", "--json").out) if row["name"] == "digits-turned"]
    assert row["provider"] == "lnlbench-digits-turned 0.1.0"
    assert "4 passed" in own_tests(package)


@pytest.mark.parametrize(
    ("name", "module", "cls"),
    [
        ("class", "class_", "Class"),
        ("none", "none", "NoneMethod"),
        ("task", "task", "TaskMethod"),
        ("a2-b", "a2_b", "A2B"),
    ],
)
def test_every_good_name_gives_code_that_compiles(cli: Cli, workplace: Path, name: str, module: str, cls: str) -> None:
    assert cli("new-method", name).code == 0
    package = workplace / f"lnlbench-{name}"
    for path in package.rglob("*.py"):
        compile(path.read_text(), path, "exec")
    code = package / f"lnlbench_{name.replace('-', '_')}" / f"{module}.py"
    assert f'class {cls}(Method["{cls}.Config"]):' in code.read_text()
    tests = (package / "tests" / f"test_{module}.py").read_text()
    assert f"from lnlbench_{name.replace('-', '_')}.{module} import {cls}\n" in tests
    assert f"lnlbench>={lnlbench.__version__}" in (package / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("new-method", "My_Own"), "'My_Own' is not a good name for a method"),
        (("new-method", "My_Own"), "did you mean 'my-own'?"),
        (("new-method", "2fast"), "with a letter first"),
        (("new-suite", "-"), "Missing argument 'NAME'"),
        (("new-suite", "../up"), "did you mean 'up'?"),
        (("new-suite", "a" * 51), "no more than 50 of them"),
        (("new-method", "con"), "'con' is not a valid name"),
        (("new-method", "ce"), "there is a method 'ce' already, of lnlbench-ce "),
        (("new-suite", "digits-sym"), "there is a suite 'digits-sym' already, of lnlbench "),
        (("new-suite", "ce"), "there is a package lnlbench-ce "),
        (("new-method", "fresh", "--dir", "full"), "full exists already and is not empty; name another folder"),
        (("new-method", "fresh", "--dir", "full/file"), "full/file exists already and is not empty"),
        (("new-method", "fresh", "--dir", "full/file/deeper"), "full/file"),
    ],
)
def test_a_bad_request_is_one_line_and_writes_nothing(
    cli: Cli, workplace: Path, arguments: tuple[str, ...], said: str
) -> None:
    (workplace / "full").mkdir()
    (workplace / "full" / "file").write_text("mine")
    if arguments[1] == "-":
        arguments = arguments[:1]
    answer = cli(*arguments)
    assert answer.code in (1, 2)
    assert answer.out == ""
    assert answer.err.count("\n") == 1
    assert said in answer.err
    assert files_in(workplace.parent / "work") == ["full/file"]
    assert (workplace / "full" / "file").read_text() == "mine"


def test_an_empty_folder_may_be_written_to_and_a_second_call_overwrites_nothing(cli: Cli, workplace: Path) -> None:
    (workplace / "here").mkdir()
    assert cli("new-method", "fresh", "--dir", "here").code == 0
    before = {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()}
    assert cli("new-suite", "fresh", "--dir", "here").code == 2
    assert {path: path.read_bytes() for path in workplace.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in workplace.iterdir()) == ["here"]
