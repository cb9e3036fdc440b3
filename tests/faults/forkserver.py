"""A process that has imported everything once and forks itself for each run, so that a run starts in milliseconds.

Started as ``python forkserver.py SOCKET``; ends when its standard input is closed. A client connects, sends one line
``{"call": name, ...}`` and reads one JSON event a line: first ``{"event": "pid"}``, then whatever the function of that
name in ``scenarios.py`` tells, last ``{"event": "done"}``. The connection ends with the process, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import ModuleType


def main() -> None:
    scenarios = load(Path(__file__).with_name("scenarios.py"))
    scenarios.prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(sys.argv[1])
        server.listen(16)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([server, sys.stdin], [], [])
            if sys.stdin in readable:
                return
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                serve(connection, scenarios)
            connection.close()


def load(path: Path) -> ModuleType:
    """Import a file by its place; the folder is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def serve(connection: socket.socket, scenarios: ModuleType) -> None:
    """Do what the client asks for, in the forked process, and leave."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG

    def emit(event: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(json.dumps(event).encode() + b"\n")

    emit({"event": "pid", "pid": os.getpid()})
    code = 0
    try:
        with connection.makefile("rb") as lines:
            request = json.loads(lines.readline())
        getattr(scenarios, request.pop("call"))(emit, **request)
        emit({"event": "done"})
    except BaseException as error:
        emit({"event": "raised", "type": type(error).__name__, "message": str(error), "trace": traceback.format_exc()})
        code = 1
    os._exit(code)


if __name__ == "__main__":
    main()
