"""Writing through every failure of the disk: the old file or the new one, and one line that says what is wrong."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import pytest
import torch

from lnlbench.errors import StorageError
from lnlbench.files import (
    HashingWriter,
    OsFs,
    make_folder,
    read_json,
    remove_leftovers,
    sha256_file,
    storage_errors,
    write_atomically,
    write_bytes,
    write_json,
)

OLD, NEW = b"the old content\n" * 40, b"the new content is longer\n" * 60


def save(path: Path, fs: Any = None) -> tuple[str, int]:
    """Write NEW in four pieces."""

    def write(writer: HashingWriter) -> None:
        for start in range(0, len(NEW), len(NEW) // 4):
            writer.write(NEW[start : start + len(NEW) // 4])

    return write_atomically(path, write) if fs is None else write_atomically(path, write, fs)


class FailingFs(OsFs):
    """Fails at the call of one number; a failing write leaves half of its data, as a full disk does."""

    def __init__(self, fail_at: int, code: int) -> None:
        self.fail_at = fail_at
        self.code = code
        self.calls: list[str] = []

    def count(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self.fail_at:
            raise OSError(self.code, os.strerror(self.code))

    @property
    def failed(self) -> str | None:
        return self.calls[self.fail_at - 1] if len(self.calls) >= self.fail_at else None

    def open(self, path: Path, mode: str) -> IO[bytes]:
        self.count("open")
        return FailingFile(super().open(path, mode), self)  # type: ignore[return-value]

    def fsync(self, file: IO[bytes]) -> None:
        self.count("fsync")
        super().fsync(file)

    def replace(self, source: Path, target: Path) -> None:
        self.count("replace")
        super().replace(source, target)

    def fsync_dir(self, path: Path) -> None:
        self.count("fsync_dir")
        super().fsync_dir(path)


class FailingFile:
    def __init__(self, file: IO[bytes], fs: FailingFs) -> None:
        self._file = file
        self._fs = fs

    def write(self, data: Any) -> int:
        try:
            self._fs.count("write")
        except OSError:
            self._file.write(data[: len(data) // 2])
            raise
        return self._file.write(data)

    def flush(self) -> None:
        self._fs.count("flush")
        self._file.flush()

    def __enter__(self) -> FailingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._fs.count("close")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def failures(code: int) -> Iterator[FailingFs]:
    """File systems that fail at the first, second, third call and so on, as long as there are calls."""
    fail_at = 1
    while True:
        fs = FailingFs(fail_at, code)
        yield fs
        if fs.failed is None:
            return
        fail_at += 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("before", [OLD, None], ids=["replacing", "new"])
def test_failure_at_each_call(tmp_path: Path, code: int, before: bytes | None) -> None:
    target = tmp_path / "result.json"
    hit = []
    for fs in failures(code):
        target.unlink(missing_ok=True)
        if before is not None:
            target.write_bytes(before)
        if fs.fail_at <= 10:
            with pytest.raises(StorageError) as caught:
                save(target, fs)
            assert len(str(caught.value).splitlines()) == 1
            assert str(target) in str(caught.value)
            assert ("disk full" in str(caught.value)) == (code in (errno.ENOSPC, errno.EDQUOT))
        else:
            assert save(target, fs) == (sha256_file(target), len(NEW))
        hit.append(fs.failed)
        # Once the file has its name, it is complete, even if the folder could not be flushed.
        expected = NEW if fs.failed in ("fsync_dir", None) else before
        assert (target.read_bytes() if target.exists() else None) == expected
        assert list(tmp_path.iterdir()) == ([target] if expected is not None else [])
    assert hit[:9] == ["open", "write", "write", "write", "write", "flush", "fsync", "close", "replace"]
    assert hit[9:] == ["fsync_dir", None]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_torch_save_keeps_the_cause(tmp_path: Path, code: int) -> None:
    """``torch.save`` reports a failed write as something about positions; the line names the disk all the same."""
    target = tmp_path / "ckpt-000001.pt"
    target.write_bytes(OLD)
    state = {f"layer{number}": torch.arange(100.0) for number in range(4)}
    count = 0
    for fs in failures(code):
        message = ""
        try:
            write_atomically(target, lambda writer: torch.save(state, writer), fs)
        except StorageError as error:
            message = str(error)
        assert list(tmp_path.iterdir()) == [target]
        assert bool(message) == (fs.failed is not None)
        if message:
            count += 1
            assert "\n" not in message
            assert str(target) in message
            assert ("disk full" in message) == (code == errno.ENOSPC)
            assert (target.read_bytes() == OLD) == (fs.failed != "fsync_dir")
    assert count > 10
    assert torch.load(target, weights_only=True)["layer3"].tolist() == state["layer3"].tolist()


def test_a_failing_writer_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(OLD)

    def write(writer: HashingWriter) -> None:
        writer.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, write)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == OLD


def test_a_leftover_that_could_not_be_deleted_is_deleted_later(tmp_path: Path) -> None:
    class Stuck(FailingFs):
        def unlink(self, path: Path) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    target = tmp_path / "inner" / "file"
    make_folder(target.parent)
    target.write_bytes(OLD)
    with pytest.raises(StorageError):
        save(target, Stuck(3, errno.EIO))
    (leftover,) = tmp_path.rglob("*.tmp")
    # A leftover of a dead process stands in nobody's way.
    save(target)
    assert target.read_bytes() == NEW
    assert leftover.exists()
    remove_leftovers(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [target]


# Power cuts


@pytest.fixture(scope="module")
def crashfs() -> ModuleType:
    path = Path(__file__).parent / "faults" / "crashfs.py"
    spec = importlib.util.spec_from_file_location("crashfs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["crashfs"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("before", [OLD, None], ids=["replacing", "new"])
def test_power_cut_leaves_old_or_new(tmp_path: Path, crashfs: ModuleType, before: bytes | None) -> None:
    target = tmp_path / "file"
    if before is not None:
        target.write_bytes(before)
    disk = crashfs.CrashFs(tmp_path)
    save(target, disk)
    found, states = crashfs.faults(disk, target, before, NEW)
    assert found == set()
    assert states >= 15


def without_fsync(target: Path, fs: Any) -> None:
    temporary = target.with_suffix(".tmp")
    with fs.open(temporary, "xb") as file:
        file.write(NEW)
    fs.replace(temporary, target)
    fs.fsync_dir(target.parent)


def without_folder_fsync(target: Path, fs: Any) -> None:
    temporary = target.with_suffix(".tmp")
    with fs.open(temporary, "xb") as file:
        file.write(NEW)
        fs.fsync(file)
    fs.replace(temporary, target)


def remove_then_rename(target: Path, fs: Any) -> None:
    temporary = target.with_suffix(".tmp")
    with fs.open(temporary, "xb") as file:
        file.write(NEW)
        fs.fsync(file)
    fs.unlink(target)
    fs.replace(temporary, target)
    fs.fsync_dir(target.parent)


def in_place(target: Path, fs: Any) -> None:
    with fs.open(target, "wb") as file:
        file.write(NEW)
        fs.fsync(file)
    fs.fsync_dir(target.parent)


def delete_first(target: Path, fs: Any) -> None:
    fs.unlink(target)
    with fs.open(target, "xb") as file:
        file.write(NEW)
        fs.fsync(file)
    fs.fsync_dir(target.parent)


def rename_before_fsync(target: Path, fs: Any) -> None:
    temporary = target.with_suffix(".tmp")
    with fs.open(temporary, "xb") as file:
        file.write(NEW)
        fs.replace(temporary, target)
        fs.fsync(file)
    fs.fsync_dir(target.parent)


def folder_fsync_too_early(target: Path, fs: Any) -> None:
    temporary = target.with_suffix(".tmp")
    with fs.open(temporary, "xb") as file:
        file.write(NEW)
        fs.fsync(file)
    fs.fsync_dir(target.parent)
    fs.replace(temporary, target)


def fsync_before_the_last_write(target: Path, fs: Any) -> None:
    temporary = target.with_suffix(".tmp")
    with fs.open(temporary, "xb") as file:
        file.write(NEW[:-10])
        fs.fsync(file)
        file.write(NEW[-10:])
    fs.replace(temporary, target)
    fs.fsync_dir(target.parent)


@pytest.mark.parametrize(
    ("writer", "expected"),
    [
        (without_fsync, {"torn"}),
        (without_folder_fsync, {"lost"}),
        (remove_then_rename, {"gone"}),
        (in_place, {"torn"}),
        (delete_first, {"torn", "gone"}),
        (rename_before_fsync, {"torn"}),
        (folder_fsync_too_early, {"lost"}),
        (fsync_before_the_last_write, {"torn"}),
    ],
)
def test_bad_writers_are_caught(
    tmp_path: Path, crashfs: ModuleType, writer: Callable[[Path, Any], None], expected: set[str]
) -> None:
    target = tmp_path / "file"
    target.write_bytes(OLD)
    disk = crashfs.CrashFs(tmp_path)
    writer(target, disk)
    # With the power on, each of them looks right.
    assert target.read_bytes() == NEW
    assert crashfs.faults(disk, target, OLD, NEW)[0] == expected


# Real disks


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel refuse to make any file larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 100, 1000, len(NEW) - 1, len(NEW)])
def test_real_limit_of_file_size(tmp_path: Path, size: int) -> None:
    target = tmp_path / "file"
    target.write_bytes(OLD)
    with file_size_limit(size):
        if size < len(NEW):
            with pytest.raises(StorageError, match=r"cannot write .*file: File too large"):
                save(target)
        else:
            save(target)
    assert target.read_bytes() == (OLD if size < len(NEW) else NEW)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("size", [0, 500, 2000, 8000])
def test_real_limit_under_torch_save(tmp_path: Path, size: int) -> None:
    target = tmp_path / "ckpt-000001.pt"
    target.write_bytes(OLD)
    with file_size_limit(size), pytest.raises(StorageError, match=r"cannot write .*ckpt-000001\.pt: File too large"):
        write_atomically(target, lambda writer: torch.save({"weights": torch.arange(10_000.0)}, writer))
    assert target.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [target]


ON_A_SMALL_DISK = """
import json, sys
from pathlib import Path
from lnlbench.errors import StorageError
from lnlbench.files import make_folder, write_bytes

disk = Path(sys.argv[1])
target, told = disk / "file", []
write_bytes(target, b"old" * 1000)
for kib in range(8, 400, 16):
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(kib * 1024))
    try:
        write_bytes(target, b"new" * 100_000)
    except StorageError as error:
        told.append(str(error))
    else:
        told.append("")
        write_bytes(target, b"old" * 1000)
    ballast.unlink()
    told.append([target.read_bytes() == b"old" * 1000, sorted(path.name for path in disk.iterdir())])
print(json.dumps(told))
"""


def test_real_full_disk(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=512k tmpfs "{tmp_path}"'
    probe = subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("no RAM disk can be mounted here: user namespaces are not allowed")
    command = f'{mount} && exec "{sys.executable}" -c "$1" "{tmp_path}"'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", command, "sh", ON_A_SMALL_DISK], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    lines, states = told[::2], told[1::2]
    assert states == [[True, ["file"]]] * 25
    full = [line for line in lines if line]
    assert 5 <= len(full) < 25
    for line in full:
        assert line.startswith(f"disk full while writing {tmp_path / 'file'} (free: ")
        assert "\n" not in line


# The rest


def test_missing_folder_and_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*: No such file or directory"):
        write_bytes(tmp_path / "missing" / "file", b"")
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot write .*taken.*: (File exists|Not a directory)"):
        make_folder(tmp_path / "taken" / "below")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*folder: Is a directory"):
        write_bytes(tmp_path / "folder", b"")
    assert not list(tmp_path.rglob("*.tmp"))


def test_json_is_exact_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"b": [1, 2.5, None, "ä"], "a": {"x": 0.1 + 0.2}}
    digest, size = write_json(path, value)
    assert read_json(path) == value
    assert (digest, size) == (sha256_file(path), path.stat().st_size)
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"score": bad})
    assert read_json(path) == value
    for token in ("NaN", "Infinity", "-Infinity"):
        path.write_text(f'{{"score": {token}}}')
        with pytest.raises(ValueError, match=f"{token} is not allowed"):
            read_json(path)


def test_storage_errors_translates_only_the_disk(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*: Input/output error"), storage_errors(tmp_path / "x"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(ValueError, match="mine"), storage_errors(tmp_path / "x"):
        raise ValueError("mine")
