"""What the processes of the fork server do. Each function receives ``emit`` and the members of its request."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from lnlbench.cli.main import _run as command_line
from lnlbench.contracts.executor import Job
from lnlbench.engine import checkpoint
from lnlbench.engine.device import set_determinism
from lnlbench.engine.runner import run_cell
from lnlbench.files import OsFs
from lnlbench.plugins import Registry, discover

Emit = Callable[[dict[str, Any]], None]

_NEW_NAMESPACES = 0x00020000 | 0x10000000  # CLONE_NEWNS | CLONE_NEWUSER
_READ_ONLY, _REMOUNT = 1, 32  # MS_RDONLY, MS_REMOUNT

_registry = Registry()


def prepare() -> None:
    """Import and discover whatever a run needs; nothing is computed, so no thread exists when processes fork."""
    import sklearn.datasets
    import sklearn.metrics
    import sklearn.mixture

    del sklearn
    global _registry
    torch.set_num_threads(1)
    set_determinism(True, compiled=False)
    _registry = discover()
    for name in ("ccl", "ce", "dividemix", "josrc"):
        _registry.methods.find(name).load()


def run(emit: Emit, job: dict[str, Any], pace: float | None = None, die_at: int | None = None) -> None:
    """Run a cell.

    Args:
        emit: Hears the run's events, and ``{"event": "calls"}`` with the number of file-system calls below.
        job: The job, dumped.
        pace: Replaces the pacing of checkpoints; 0 saves after every epoch.
        die_at: The process kills itself before the file-system call of this number in the checkpoint folder.
    """
    if pace is not None:
        checkpoint._PACE = pace
    calls = _count_calls(die_at)
    run_cell(Job.model_validate(job), "cpu", _registry, emit)
    emit({"event": "calls", "names": calls})


def hold(emit: Emit, job: dict[str, Any]) -> None:
    """Run a cell up to its start and stay there, its lock held."""

    def stop(event: dict[str, Any]) -> None:
        emit(event)
        if event["event"] == "start":
            signal.pause()

    run_cell(Job.model_validate(job), "cpu", _registry, stop)


def save_on_small_disk(emit: Emit, mount: str, free_kib: list[int]) -> None:
    """Save checkpoint after checkpoint to a disk of 1 MiB that has less and less room.

    Tells for each amount of free space what was raised, which checkpoint loads afterwards, and what lies there.
    """
    _mount_small_disk(Path(mount), 1024)
    folder = Path(mount) / "checkpoints"
    ballast = Path(mount) / "ballast"
    state = {"weights": torch.arange(75_000, dtype=torch.float32)}  # 300 kB: two fit, a third one does not always
    warnings: list[str] = []
    saver = checkpoint.Checkpoints(folder, warnings.append)
    for number, kib in enumerate(free_kib):
        saver.discard()
        saver.save(0, {"state": state})
        _leave_free(ballast, Path(mount), kib)
        raised = _attempt(lambda: saver.save(1, {"state": {"weights": state["weights"] + 1}}))
        payload = saver.load(torch.device("cpu"))
        ballast.unlink()
        event: dict[str, Any] = {"event": "saved", "free_kib": kib, "number": number, "raised": raised}
        event["epoch"] = None if payload is None else payload["epoch"]
        event["intact"] = payload is not None and bool(
            torch.equal(payload["state"]["weights"], state["weights"] + payload["epoch"])
        )
        event["files"] = sorted(path.name for path in folder.iterdir())
        event["warnings"] = list(warnings)
        warnings.clear()
        emit(event)


def run_on_small_disk(
    emit: Emit, mount: str, job: dict[str, Any], size_kib: int, free_kib: int, fill_at: int, copy_to: str
) -> None:
    """Run a cell whose folder is on a small disk that fills up after some epoch; then make room and run it again.

    Args:
        emit: Hears the events, and ``{"event": "attempt"}`` with what was raised and what lies in the folder.
        mount: Where the disk is mounted.
        job: The job; its folder is below ``mount``.
        size_kib: Size of the disk.
        free_kib: What is left when it fills up.
        fill_at: The epoch after which it does.
        copy_to: The folder is copied there in the end, since the disk ends with this process.
    """
    disk = Path(mount)
    _mount_small_disk(disk, size_kib)
    ballast = disk / "ballast"
    the_job = Job.model_validate(job)
    checkpoint._PACE = 0.0

    def fill(event: dict[str, Any]) -> None:
        emit(event)
        if event["event"] == "epoch" and event["epoch"] == fill_at and not ballast.exists():
            _leave_free(ballast, disk, free_kib)

    for attempt in ("full", "freed"):
        if attempt == "freed":
            ballast.unlink()
        listen = fill if attempt == "full" else emit
        raised = _attempt(lambda listen=listen: run_cell(the_job, "cpu", _registry, listen))
        emit({"event": "attempt", "disk": attempt, "raised": raised, "files": _files(the_job.folder)})
    shutil.copytree(the_job.folder, copy_to)


def command_on_bad_disk(
    emit: Emit, mount: str, trouble: str, folders: list[str], arguments: list[str], executor: str, copy_to: str
) -> None:
    """Issue a command while the disk below ``mount`` is full or read-only; then again, with the disk in order.

    Args:
        emit: Hears ``{"event": "command"}`` with exit code and standard error.
        mount: Where the disk is mounted.
        trouble: ``full`` or ``read-only``.
        folders: Folders that an earlier command had made while all was well.
        arguments: The command's arguments.
        executor: Executor of the first command; the second one saves time by running inline.
        copy_to: What is on the disk is copied there in the end.
    """
    disk = Path(mount)
    _mount_small_disk(disk, 8192)
    ballast = disk / "ballast"
    for folder in folders:
        Path(folder).mkdir(parents=True)
    if trouble == "full":
        _leave_free(ballast, disk, 0)
    else:
        _mount(disk, _REMOUNT | _READ_ONLY, "")
    _command(emit, [*arguments, "--executor", executor])
    if trouble == "full":
        ballast.unlink()
    else:
        _mount(disk, _REMOUNT, "")
    leftovers = _files(disk)
    _command(emit, [*arguments, "--executor", "inline"])
    emit({"event": "files", "names": leftovers})
    shutil.copytree(disk, copy_to, dirs_exist_ok=True)


def can_mount(emit: Emit, mount: str) -> None:
    """Tell whether a small disk can be had on this machine."""
    with contextlib.suppress(OSError):
        _mount_small_disk(Path(mount), 64)
        emit({"event": "mounted"})


def _command(emit: Emit, arguments: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line(arguments)
    emit({"event": "command", "code": code, "out": out.getvalue(), "err": err.getvalue()})


def _attempt(action: Callable[[], object]) -> list[str] | None:
    try:
        action()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _count_calls(die_at: int | None) -> list[str]:
    calls: list[str] = []

    def count(name: str, path: Path) -> None:
        if path.parent.name == "checkpoints" or path.name == "checkpoints":
            if len(calls) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append(name)

    class Counting(OsFs):
        def open(self, path: Path, mode: str) -> IO[bytes]:
            count("open", path)
            return _CountedFile(super().open(path, mode), lambda: count("write", path))  # type: ignore[return-value]

        def fsync(self, file: IO[bytes]) -> None:
            count("fsync", Path(file.name))
            super().fsync(file)

        def replace(self, source: Path, target: Path) -> None:
            count("replace", target)
            super().replace(source, target)

        def fsync_dir(self, path: Path) -> None:
            count("fsync_dir", path)
            super().fsync_dir(path)

        def unlink(self, path: Path) -> None:
            count("unlink", path)
            super().unlink(path)

    checkpoint.Checkpoints.__init__.__defaults__ = (Counting(),)
    return calls


class _CountedFile:
    """A file that tells of its writes before it makes them."""

    def __init__(self, file: IO[bytes], tell: Callable[[], None]) -> None:
        self._file = file
        self._tell = tell

    def write(self, data: Any) -> int:
        self._tell()
        # What was written so far must be in the kernel's hands, or a kill would always leave an empty file.
        self._file.flush()
        return self._file.write(data)

    def __enter__(self) -> _CountedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _mount_small_disk(folder: Path, size_kib: int) -> None:
    """Mount a RAM disk that only this process sees; it ends with the process."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_NAMESPACES) != 0:
        raise OSError(ctypes.get_errno(), "unshare is not allowed here")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    folder.mkdir(parents=True, exist_ok=True)
    _mount(folder, 0, f"size={size_kib}k")


def _mount(folder: Path, flags: int, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, options.encode() or None) != 0:
        raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}")


def _leave_free(ballast: Path, disk: Path, kib: int) -> None:
    """Fill the disk up to ``kib``."""
    amount = shutil.disk_usage(disk).free - kib * 1024
    with ballast.open("wb") as file:
        file.write(bytes(max(amount, 0)))
