"""A disk that can lose power: it records what a writer does and lists all that a power cut may leave.

What counts as legal is what POSIX leaves open, for a careful writer relies on nothing else:

* Data that were written but not flushed may be there, be missing, be cut off, or be zeros of the right length.
* Creating, renaming and deleting a name are each atomic, and each may be missing after a power cut until the folder is
  flushed, whatever became of the others.
* What was flushed stays.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from lnlbench.files import OsFs


@dataclass(frozen=True)
class Content:
    """A file's data: what is on the disk, and what still waits for a flush (``None`` empties the file)."""

    flushed: bytes = b""
    pending: tuple[bytes | None, ...] = ()

    def after_power_cut(self) -> set[bytes]:
        """All contents that the file may have."""
        data = self.flushed
        possible = {data}
        for each in self.pending:
            if each is None:
                data = b""
            else:
                possible |= {data + each[: len(each) // 2], data + bytes(len(each))}
                data += each
            possible.add(data)
        return possible

    @property
    def live(self) -> bytes:
        """What a reader sees while the power is on."""
        data = self.flushed
        for each in self.pending:
            data = b"" if each is None else data + each
        return data


@dataclass(frozen=True)
class Change:
    """One change of a folder: ``new`` names the file from now on, ``old`` does not any more."""

    file: int
    new: Path | None
    old: Path | None

    def apply(self, names: dict[Path, int]) -> None:
        if self.old is not None:
            names.pop(self.old, None)
        if self.new is not None:
            names[self.new] = self.file

    @property
    def folder(self) -> Path:
        path = self.new or self.old
        assert path is not None
        return path.parent


@dataclass(frozen=True)
class Moment:
    """The disk between two calls."""

    files: tuple[Content, ...]
    names: dict[Path, int]
    """Flushed names."""
    pending: tuple[Change, ...]

    def after_power_cut(self) -> Iterator[dict[Path, bytes]]:
        """All that may be found when the power is back."""
        for kept in itertools.product((False, True), repeat=len(self.pending)):
            names = dict(self.names)
            for change in itertools.compress(self.pending, kept):
                change.apply(names)
            for contents in itertools.product(*(self.files[file].after_power_cut() for file in names.values())):
                yield dict(zip(names, contents, strict=True))


@dataclass
class CrashFs(OsFs):
    """Works on the real disk and records every call; what lies in ``folder`` at the start counts as flushed."""

    folder: Path
    moments: list[Moment] = field(default_factory=list)

    def __post_init__(self) -> None:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        files = tuple(Content(path.read_bytes()) for path in paths)
        self._live = {path: number for number, path in enumerate(paths)}
        self.moments.append(Moment(files, dict(self._live), ()))

    def open(self, path: Path, mode: str) -> IO[bytes]:
        file = super().open(path, mode)
        if path not in self._live:
            number = len(self.moments[-1].files)
            self._live[path] = number
            self._record(files=(*self.moments[-1].files, Content()), change=Change(number, path, None))
        elif mode == "wb":
            self._append(self._live[path], None)
        return _RecordedFile(file, self, self._live[path])  # type: ignore[return-value]

    def fsync(self, file: IO[bytes]) -> None:
        super().fsync(file)
        assert isinstance(file, _RecordedFile)
        self._set(file.number, Content(self.moments[-1].files[file.number].live))

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self._live[target] = self._live.pop(source)
        self._record(change=Change(self._live[target], target, source))

    def fsync_dir(self, path: Path) -> None:
        super().fsync_dir(path)
        names = dict(self.moments[-1].names)
        for change in self.moments[-1].pending:
            if change.folder == path:
                change.apply(names)
        rest = tuple(change for change in self.moments[-1].pending if change.folder != path)
        self.moments.append(Moment(self.moments[-1].files, names, rest))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        if path in self._live:
            self._record(change=Change(self._live.pop(path), None, path))

    def states(self) -> Iterator[tuple[bool, dict[Path, bytes]]]:
        """All that a power cut at any moment may leave, and whether the writer had returned by then."""
        seen: set[tuple[bool, frozenset[tuple[Path, bytes]]]] = set()
        for number, moment in enumerate(self.moments):
            returned = number == len(self.moments) - 1
            for state in moment.after_power_cut():
                key = (returned, frozenset(state.items()))
                if key not in seen:
                    seen.add(key)
                    yield returned, state

    def _append(self, number: int, data: bytes | None) -> None:
        content = self.moments[-1].files[number]
        self._set(number, replace(content, pending=(*content.pending, data)))

    def _set(self, number: int, content: Content) -> None:
        files = list(self.moments[-1].files)
        files[number] = content
        self._record(files=tuple(files))

    def _record(self, files: tuple[Content, ...] | None = None, change: Change | None = None) -> None:
        last = self.moments[-1]
        pending = last.pending if change is None else (*last.pending, change)
        self.moments.append(Moment(last.files if files is None else files, last.names, pending))


class _RecordedFile:
    """A file that passes its writes on to the disk and to the record."""

    def __init__(self, file: IO[bytes], disk: CrashFs, number: int) -> None:
        self._file = file
        self._disk = disk
        self.number = number

    def write(self, data: Any) -> int:
        written = self._file.write(data)
        self._disk._append(self.number, bytes(data))
        return written

    def __enter__(self) -> _RecordedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def faults(disk: CrashFs, target: Path, old: bytes | None, new: bytes) -> tuple[set[str], int]:
    """Judge a writer of ``target`` by all states it may leave.

    Returns:
        ``torn``: neither old nor new; ``gone``: neither is there; ``lost``: it had returned, but the old one is there.
        And the number of states.
    """
    found, count = set(), 0
    for returned, state in disk.states():
        count += 1
        content = state.get(target)
        if content is None and old is not None:
            found.add("gone")
        elif content not in (old, new):
            found.add("torn")
        elif returned and content != new:
            found.add("lost")
    return found, count
