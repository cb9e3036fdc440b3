"""The directive ``terminal``: commands of a page, run when it is built, with what they print.

All commands of a page run in the order of the page in one folder, which is empty at its beginning. They see an empty
data folder, no connection, and no variable of lnlbench that may be set outside. The build warns, and so fails, where a
command ends in another way than the page says, or prints a path of the machine.

Options: ``stderr`` shows standard error too, ``exit-code`` is what the last command must end with, ``first`` shows so
many lines only, ``quiet`` shows none, and ``interrupt`` presses Ctrl-C as soon as a file that matches is there.

``sphinx-build -D terminal_run=0`` runs nothing, for a quick look at the text.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

_LOGGER = logging.getLogger(__name__)
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COLUMNS = "100"
_PATIENCE = 1800.0


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_config_value("terminal_run", True, "env", bool)
    app.add_directive("terminal", Terminal)
    app.connect("env-purge-doc", _empty)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    output: str
    errors: str
    code: int


def execute(command: str, folder: Path, *, merge: bool = False, interrupt: str | None = None) -> Answer:
    """Run a command of a page.

    Args:
        command: A line for the shell.
        folder: Where it runs, in a sub-folder ``work`` beside its data.
        merge: Whether standard error goes to where standard output goes.
        interrupt: Pattern of files below ``work``; Ctrl-C follows once one is there.
    """
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LNLBENCH_")}
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "LNLBENCH_DATA": str(folder / "data"),
        "LNLBENCH_OFFLINE": "1",
        "COLUMNS": _COLUMNS,
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONUTF8": "1",
    }
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out if merge else err}
        # A group of its own, as a terminal gives it to a command: Ctrl-C reaches all of its processes.
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=work,
            env=environment,
            start_new_session=True,
            preexec_fn=_hear_ctrl_c,
            **streams,
        )
        try:
            if interrupt is not None:
                _press_when_there(process, work, interrupt)
            code = process.wait(_PATIENCE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return Answer(_read(out), _read(err), code)


def _hear_ctrl_c() -> None:
    # A build in the background is deaf to it, and so would be what it starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _press_when_there(process: subprocess.Popen[bytes], work: Path, pattern: str) -> None:
    give_up = time.monotonic() + _PATIENCE
    while process.poll() is None and time.monotonic() < give_up:
        if any(work.glob(pattern)):
            os.killpg(process.pid, signal.SIGINT)
            return
        time.sleep(0.05)


def _read(file: Any) -> str:
    file.seek(0)
    text = _COLOURS.sub("", file.read().decode("utf-8"))
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def places(*known: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the beginnings of paths that belong to this machine and no page may show."""
    found = [Path.home(), tempfile.gettempdir(), sys.prefix, sys.base_prefix, *known]
    # "/" and "/usr" are everywhere.
    return tuple(sorted({str(path) for path in found if len(Path(path).parts) > 1 and str(path) != "/usr"}))


class Terminal(SphinxDirective):
    """The commands in the directive's lines, each followed by its output."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "stderr": directives.flag,
        "exit-code": directives.nonnegative_int,
        "first": directives.positive_int,
        "quiet": directives.flag,
        "interrupt": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Run the commands and show them."""
        folder = _folder(self.env, self.env.docname)
        commands = [line for line in self.content if line.strip()]
        lines: list[str] = []
        for number, command in enumerate(commands, 1):
            last = number == len(commands)
            if not self.config.terminal_run:
                lines.append(f"$ {command}")
                continue
            interrupt = self.options.get("interrupt") if last else None
            answer = execute(command, folder, merge="stderr" in self.options, interrupt=interrupt)
            self._check(command, answer, self.options.get("exit-code", 0) if last else 0)
            lines += [f"$ {command}", *self._shown(answer)]
        block = nodes.literal_block("\n".join(lines), "\n".join(lines), language="console")
        self.set_source_info(block)
        return [block]

    def _shown(self, answer: Answer) -> list[str]:
        if "quiet" in self.options or not answer.output:
            return []
        lines = answer.output.splitlines()
        first = self.options.get("first", len(lines))
        return lines[:first] + ["…"] * (first < len(lines))

    def _check(self, command: str, answer: Answer, code: int) -> None:
        location = self.get_location()
        if answer.code != code:
            told = "\n".join(text for text in (answer.output, answer.errors) if text)
            _LOGGER.warning("%r ended with %d, not %d:\n%s", command, answer.code, code, told, location=location)
        for place in places(self.env.srcdir, self.env.doctreedir):
            if place in answer.output:
                _LOGGER.warning("%r prints %r, a path of this machine", command, place, location=location)


def _folder(env: BuildEnvironment, page: str) -> Path:
    return Path(env.doctreedir) / "terminal" / page


def _empty(_app: Sphinx, env: BuildEnvironment, page: str) -> None:
    shutil.rmtree(_folder(env, page), ignore_errors=True)
