"""The ``lnlbench`` command. Commands are imported when they are called, so that help costs nothing."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, Never

import click

import lnlbench
from lnlbench.errors import LnlbenchError, suggest

DEBUG_VARIABLE = "LNLBENCH_DEBUG"
_COMMANDS = {
    "run": ("lnlbench.cli.run:run", "Train methods on noisy suites and score them into a leaderboard."),
    "list": ("lnlbench.cli.list:list_", "List methods, suites, datasets, noise, backbones or executors."),
    "info": ("lnlbench.cli.info:info", "Tell all about a method, suite, task, dataset, noise or backbone."),
    "prepare": ("lnlbench.cli.prepare:prepare", "Fetch and verify data ahead of a run."),
    "noise": ("lnlbench.cli.noise:noise", "Show or export the noisy labels of a task."),
    "select": ("lnlbench.cli.select:select", "Select clean samples before any training, and write them down."),
    "score": ("lnlbench.cli.score:score", "Score finished runs; rebuild the leaderboard from its bundles."),
    "profile": ("lnlbench.cli.profile:profile", "Measure what methods use and cost on one task."),
    "analyse": ("lnlbench.cli.analyse:analyse", "Measure what the networks of finished runs make of the classes."),
    "compare": ("lnlbench.cli.compare:compare", "Compare methods on the same noise and seeds, with tests."),
    "table": ("lnlbench.cli.table:table", "Write the results of a suite as a table for a paper."),
    "cite": ("lnlbench.cli.cite:cite", "Print BibTeX of methods, suites, datasets and noise."),
    "reproduce": ("lnlbench.cli.reproduce:reproduce", "Tell how to run a row again, and whether it came out alike."),
    "submit": ("lnlbench.cli.submit:submit", "Bundle runs for a pull request."),
    "validate": ("lnlbench.cli.validate:validate", "Check submitted runs against their predictions, data and suites."),
    "check": ("lnlbench.cli.check:check", "Check that a method does what every method must."),
    "new-method": ("lnlbench.cli.new:new_method", "Write a package with a new method, which works as it is."),
    "new-suite": ("lnlbench.cli.new:new_suite", "Write a package with a new suite, which works as it is."),
    "site": ("lnlbench.cli.site:site", "Make the leaderboard pages."),
    "doctor": ("lnlbench.cli.doctor:doctor", "Check the installation, devices, data and plugins."),
}


class LazyGroup(click.Group):
    """A group whose commands are modules that are imported only when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of a first use."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Offer the nearest name for an unknown command."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"unknown command {args[0]!r}{suggest(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; ``--help`` and ``--version`` print here."""
        with _reader_may_leave():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _reader_may_leave():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(lnlbench.__version__, prog_name="lnlbench")
def cli() -> None:
    """Benchmark methods for learning with noisy labels.

    First run, a few minutes on a CPU:  lnlbench run --method dividemix --suite digits-sym
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    0: done, 1: something failed, 2: the request was wrong, 130: interrupted (Ctrl-C), 143: told to end (SIGTERM).
    """
    with _ended_like_interrupted():
        code = _run(arguments)
    sys.exit(code)


class _Ended(KeyboardInterrupt):
    """SIGTERM came. Whatever tidies up after Ctrl-C does so now."""


@contextlib.contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    def end(_number: int, _frame: object) -> Never:
        raise _Ended

    # Python lets the main thread alone handle signals.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str] | None) -> int:
    try:
        result: Any = cli.main(args=arguments, prog_name="lnlbench", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort as stop:
        # What click makes of an interruption while it runs a command.
        return _interrupted(stop.__cause__)
    except click.ClickException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # no command was given, which click answers with the help text
            click.echo(message, err=True)
        else:
            _complain(message)
        return 2
    except LnlbenchError as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt as stop:
        return _interrupted(stop)
    except (Exception, SystemExit) as error:
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        first = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
        _complain(f"internal error, please report it: {what} ({DEBUG_VARIABLE}=1 shows where)")
        return 1


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    # A reader (head, less) that has seen enough is no failure. Click would exit with 1, and so would rich, by itself.
    try:
        yield
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Python would complain again while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None


def _interrupted(by: BaseException | None) -> int:
    click.echo("interrupted; issue the same command again to go on", err=True)
    return 128 + (signal.SIGTERM if isinstance(by, _Ended) else signal.SIGINT)


def _complain(message: str) -> None:
    printable = "".join(c if c.isprintable() else " " for c in message)
    click.echo(f"lnlbench: error: {printable}", err=True)
