"""Plugins made up on disk, as an installer leaves them: whatever is wrong with one, the others go on."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lnlbench
from lnlbench.contracts.method import MethodEntry
from lnlbench.errors import PluginError, UnknownNameError
from lnlbench.plugins import GROUP, BrokenPlugin, Provider, Registered, discover

HEAVY = ("torch", "torchvision", "timm", "pandas", "sklearn", "scipy")
GOOD = """
from lnlbench.api import MethodEntry, hookimpl

@hookimpl
def lnlbench_methods():
    return [MethodEntry(name="{name}", target="{module}:Method", summary="For tests.")]
"""
HOOK = "from lnlbench.api import *\nfrom lnlbench.api import hookimpl\n\n@hookimpl\n"

BROKEN = {
    "import error": ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'"),
    "syntax error": ("def (", "SyntaxError: invalid syntax"),
    "exit": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "no message": ("raise ValueError", "ValueError"),
    "many lines": ("raise RuntimeError('first\\nsecond')", "RuntimeError: first"),
    "unknown hook": (HOOK + "def lnlbench_method():\n    return []", "PluginError: unknown hook 'lnlbench_method'"),
    "hook with arguments": (HOOK + "def lnlbench_methods(request):\n    return []", "PluginValidationError"),
    "hook returns nothing": (HOOK + "def lnlbench_methods():\n    pass", "lnlbench_methods: TypeError"),
    "hook returns names": (
        HOOK + "def lnlbench_methods():\n    return ['m']",
        "lnlbench_methods returned a str, expected MethodEntry",
    ),
    "hook returns another noun": (
        HOOK + "def lnlbench_noise():\n    return [BackboneEntry(name='b', target='a:b', summary='s')]",
        "lnlbench_noise returned a BackboneEntry, expected NoiseEntry",
    ),
    "hook raises": (HOOK + "def lnlbench_datasets():\n    return 1 / 0", "lnlbench_datasets: ZeroDivisionError"),
    "hook exits": (HOOK + "def lnlbench_executors():\n    raise SystemExit(3)", "lnlbench_executors: SystemExit: 3"),
    "bad name": (
        HOOK + "def lnlbench_methods():\n    return [MethodEntry(name='a/b', target='a:b', summary='s')]",
        "'a/b' is not a valid name",
    ),
    "reserved name": (
        HOOK + "def lnlbench_backbones():\n    return [BackboneEntry(name='CON', target='a:b', summary='s')]",
        "'CON' is not a valid name",
    ),
    "suite file missing": (
        HOOK + "def lnlbench_suites():\n    return [SuiteFile(path='no-such-file.toml')]",
        "cannot read suite file no-such-file.toml: No such file or directory",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_reported_and_hides_no_other(plugins: Any, source: str, reason: str) -> None:
    plugins.add("lnlbench-bad", "bad_plugin", source, version="0.7")
    plugins.add("lnlbench-good", "good_plugin", GOOD.format(name="good", module="good_plugin"))
    registry = discover()
    (broken,) = registry.broken
    assert broken.provider == Provider("lnlbench-bad", "0.7")
    assert broken.entry_point == "bad_plugin"
    assert reason in broken.reason
    assert "\n" not in str(broken)
    assert str(broken).startswith("plugin 'bad_plugin' of lnlbench-bad 0.7 is broken: ")
    assert {"ce", "dividemix", "good"} <= set(registry.methods.names())
    assert registry.methods.find("good").provider == Provider("lnlbench-good", "1.0")


def test_a_suite_with_a_mistake_is_reported(plugins: Any, tmp_path: Path) -> None:
    usual = Path(lnlbench.__file__).parent / "builtin" / "suites" / "digits-sym.toml"
    file = tmp_path / "mine.toml"
    file.write_text(usual.read_text().replace("rate = 0.40", "rate = 1.40").replace("digits-sym", "mine"))
    plugins.add(
        "lnlbench-mine", "mine_plugin", HOOK + f"def lnlbench_suites():\n    return [SuiteFile(path={str(file)!r})]"
    )
    registry = discover()
    (broken,) = registry.broken
    assert str(file) in broken.reason
    assert "rate" in broken.reason
    assert "less than or equal to 1" in broken.reason
    assert "digits-sym" in registry.suites


def test_a_half_uninstalled_plugin_is_reported(plugins: Any) -> None:
    plugins.add("lnlbench-half", "half_plugin", "import gone_with_the_rest", metadata=False)
    (broken,) = discover().broken
    assert broken.entry_point == "half_plugin"
    assert "gone_with_the_rest" in broken.reason


def test_one_bad_hook_leaves_the_other_hooks_of_a_plugin(plugins: Any) -> None:
    source = GOOD.format(name="good", module="mixed_plugin") + "\n@hookimpl\ndef lnlbench_noise():\n    raise OSError\n"
    plugins.add("lnlbench-mixed", "mixed_plugin", source)
    registry = discover()
    assert "good" in registry.methods
    assert [broken.reason for broken in registry.broken] == ["lnlbench_noise: OSError"]


def test_a_name_claimed_twice_is_an_error_that_names_both(plugins: Any) -> None:
    for number in (1, 2):
        module = f"claim{number}_plugin"
        plugins.add(f"lnlbench-claim{number}", module, GOOD.format(name="mine", module=module), version=f"{number}.0")
    registry = discover()
    assert registry.broken == []
    with pytest.raises(PluginError) as caught:
        registry.methods.find("mine")
    assert str(caught.value) == (
        "method 'mine' is claimed by lnlbench-claim1 1.0 and lnlbench-claim2 2.0; uninstall one of them"
    )
    assert registry.methods.find("ce").entry.name == "ce"


def test_a_plugin_cannot_take_a_name_of_the_core(plugins: Any) -> None:
    entry = "return [BackboneEntry(name='small-cnn', target='a:b', summary='s')]"
    plugins.add("lnlbench-taker", "taker_plugin", HOOK + f"def lnlbench_backbones():\n    {entry}")
    with pytest.raises(PluginError, match=r"claimed by lnlbench \S+ and lnlbench-taker 1\.0"):
        discover().backbones.find("small-cnn")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("target_code:Missing", "AttributeError: module 'target_code' has no attribute 'Missing'"),
        ("target_code", "AttributeError"),
        ("no_such_code:X", "ModuleNotFoundError: No module named 'no_such_code'"),
        ("raising_code:X", "RuntimeError: needs a newer library"),
        ("leaving_code:X", "SystemExit: 0"),
    ],
)
def test_code_that_cannot_be_loaded_is_told_with_name_and_version(plugins: Any, target: str, reason: str) -> None:
    plugins.add_module("target_code", "")
    plugins.add_module("raising_code", "raise RuntimeError('needs a newer library')")
    plugins.add_module("leaving_code", "raise SystemExit(0)")
    plugins.add("lnlbench-lost", "lost_plugin", GOOD.format(name="lost", module="x").replace("x:Method", target))
    registry = discover()
    assert registry.broken == []
    with pytest.raises(PluginError) as caught:
        registry.methods.find("lost").load()
    message = str(caught.value)
    assert message.startswith(f"'lost' of lnlbench-lost 1.0 cannot be loaded from {target}: ")
    assert reason in message
    assert "\n" not in message


def test_unknown_names_come_with_near_misses() -> None:
    registry = discover()
    for catalogue, name, hint in (
        (registry.methods, "dividemx", "unknown method 'dividemx'; did you mean 'dividemix'?"),
        (registry.suites, "digits-symm", "unknown suite 'digits-symm'; did you mean 'digits-sym'"),
        (registry.executors, "loca", "unknown executor 'loca'; did you mean 'local'?"),
        (registry.noise, "zzz", "unknown noise 'zzz'; known: asymmetric"),
    ):
        with pytest.raises(UnknownNameError) as caught:
            catalogue.find(name)
        assert str(caught.value).startswith(hint)


def test_a_name_with_a_colon_takes_a_model_name() -> None:
    backbones = discover().backbones
    assert backbones.find("timm:resnet50").entry.name == "timm:"
    assert "timm:resnet50" not in backbones
    with pytest.raises(UnknownNameError):
        backbones.find("tim:resnet50")


def test_warnings_go_to_standard_error_and_lists_still_work(plugins: Any, cli: Callable[..., Any]) -> None:
    plugins.add("lnlbench-bad", "bad_plugin", "import sys; sys.exit(0)", version="0.7")
    warning = "lnlbench: warning: plugin 'bad_plugin' of lnlbench-bad 0.7 is broken: SystemExit: 0\n"
    for command in (("list", "methods"), ("list", "plugins"), ("info", "ce")):
        answer = cli(*command)
        assert (answer.code, answer.err) == (0, warning)
    assert "ce" in cli("list", "methods").out
    assert cli("--help").code == 0
    assert cli("--help").err == ""
    (row,) = [row for row in json.loads(cli("list", "plugins", "--json").out) if row["state"] == "broken"]
    assert row == {"name": "bad_plugin", "provider": "lnlbench-bad 0.7", "state": "broken", "reason": "SystemExit: 0"}


def test_doctor_calls_a_broken_plugin_a_problem(plugins: Any, cli: Callable[..., Any]) -> None:
    plugins.add("lnlbench-bad", "bad_plugin", "1 / 0", version="0.7")
    answer = cli("doctor")
    assert answer.code == 1
    assert "PROBLEM  plugin bad_plugin: lnlbench-bad 0.7: ZeroDivisionError: division by zero" in answer.out
    assert "pip install --upgrade lnlbench-bad" in answer.out


def test_broken_plugins_can_be_made_fatal(
    plugins: Any, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins.add("lnlbench-bad", "bad_plugin", "1 / 0")
    monkeypatch.setenv("LNLBENCH_STRICT_PLUGINS", "1")
    answer = cli("list", "methods")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == (
        "lnlbench: error: plugin 'bad_plugin' of lnlbench-bad 1.0 is broken: ZeroDivisionError: division by zero "
        "(LNLBENCH_STRICT_PLUGINS is set)\n"
    )
    monkeypatch.setenv("LNLBENCH_STRICT_PLUGINS", "0")
    assert cli("list", "methods").code == 0


def test_a_command_that_needs_unloadable_code_fails_in_one_line(plugins: Any, cli: Callable[..., Any]) -> None:
    plugins.add_module("leaving_code", "raise SystemExit(0)")
    plugins.add("lnlbench-lost", "lost_plugin", GOOD.format(name="lost", module="leaving_code"))
    for command in (("info", "lost"), ("run", "--method", "lost", "--suite", "digits-sym")):
        answer = cli(*command)
        assert answer.code == 1
        assert answer.err.startswith("lnlbench: error: 'lost' of lnlbench-lost 1.0 cannot be loaded")
        assert answer.err.count("\n") == 1


def test_the_core_comes_through_the_same_door() -> None:
    entry_points = {each.name: each for each in importlib.metadata.entry_points(group=GROUP)}
    assert entry_points["builtin"].value == "lnlbench.builtin"
    registry = discover()
    assert ("builtin", Provider("lnlbench", lnlbench.__version__)) in registry.providers
    for catalogue in registry.catalogues().values():
        for item in catalogue:
            assert item.provider.distribution.startswith("lnlbench")
    assert {item.provider.distribution for item in registry.methods} >= {"lnlbench-ce", "lnlbench-dividemix"}
    assert all(item.provider.distribution != "lnlbench" for item in registry.methods)


def test_all_that_is_announced_can_be_loaded() -> None:
    for catalogue in discover().catalogues().values():
        for item in catalogue:
            # A dataset's own noise is no code.
            if hasattr(item.entry, "target") and getattr(item.entry, "kind", "") != "own":
                assert callable(item.load())
            assert getattr(item.entry, "summary", "").strip() or item.entry.title


def test_records_of_plugins_read_well() -> None:
    provider = Provider("lnlbench-x", "1.2")
    assert str(BrokenPlugin(provider, "x", "why")) == "plugin 'x' of lnlbench-x 1.2 is broken: why"
    entry = MethodEntry(name="x", target="json:dumps", summary="s")
    assert Registered(entry, provider).load() is json.dumps


def method_names_in(source: str, names: set[str]) -> set[str]:
    """Names of methods in identifiers and in text, docstrings and comments apart."""
    tree = ast.parse(source)
    documentation = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # A docstring, or the line of text under an attribute that documents it.
            documentation |= {id(each.value) for each in body if isinstance(each, ast.Expr)}
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            words |= set(node.value.replace("-", " ").replace("_", " ").replace(".", " ").split())
        elif isinstance(node, ast.Name | ast.Attribute | ast.alias | ast.FunctionDef | ast.ClassDef | ast.arg):
            name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None) or ""
            words |= set(name.replace(".", "_").split("_"))
    return names & words


def test_the_core_names_no_method() -> None:
    """Docstrings and comments may name a method, be it as an example of a command or as the source of a definition.

    Code may not.
    """
    names = set(discover().methods.names())
    assert {"ce", "dividemix"} <= names
    assert method_names_in("import lnlbench_ce\nx = 'dividemix'", names) == {"ce", "dividemix"}
    root = Path(lnlbench.__file__).parent
    found = {
        str(path.relative_to(root)): words
        for path in sorted(root.rglob("*.py"))
        if (words := method_names_in(path.read_text(), names))
    }
    assert found == {}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["run", "--help"], ["list", "methods"], ["list", "suites"], ["list", "plugins"]],
    ids=" ".join,
)
def test_help_and_lists_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from lnlbench.cli.main import _run\n"
        f"code = _run({arguments!r})\n"
        f"print('heavy:', *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "heavy:\n")
    assert done.stdout
