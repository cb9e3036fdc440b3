"""Exact checkpoints: tensors and plain values only, written atomically, verified by SHA-256, two of them kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lnlbench.contracts.run import Stateful
from lnlbench.errors import PluginError, StorageError
from lnlbench.files import (
    OS_FS,
    Fs,
    HashingWriter,
    make_folder,
    read_json,
    storage_errors,
    write_atomically,
    write_json,
)

FORMAT = 1
_KEPT = 2
# The next save waits until the run has worked this many times as long as the last save took: at most 2 % of the time.
_PACE = 50.0
_INDEX = "latest.json"
_NAME = re.compile(r"ckpt-[0-9]{6,}\.pt")

Tracked = Stateful | MutableMapping[str, Any]


class Checkpoints:
    """The checkpoints of one cell (or stage) in one folder. The caller holds the folder's lock."""

    def __init__(self, folder: Path, warn: Callable[[str], None], fs: Fs = OS_FS) -> None:
        self.folder = folder
        self._warn = warn
        self._fs = fs
        self._damaged: set[str] = set()
        self._last_save_ended: float | None = None
        self._last_save_took = 0.0

    def due(self) -> bool:
        """Whether enough work has been done since the last save."""
        if self._last_save_ended is None:
            return True
        return time.monotonic() - self._last_save_ended >= _PACE * self._last_save_took

    def save(self, epoch: int, payload: dict[str, Any]) -> None:
        """Write the state after ``epoch``; the two newest stay.

        Raises:
            StorageError: It could not be written; the earlier checkpoints are intact.
        """
        began = time.monotonic()
        make_folder(self.folder)
        name = f"ckpt-{epoch:06d}.pt"

        def write(writer: HashingWriter) -> None:
            torch.save({"format": FORMAT, "epoch": epoch, **payload}, writer)  # type: ignore[arg-type]

        sha256, size = write_atomically(self.folder / name, write, self._fs)
        entry = {"name": name, "epoch": epoch, "sha256": sha256, "size": size}
        # A checkpoint known to be damaged must not count as one of the two: a sound one would be deleted for it.
        earlier = [each for each in self._entries() or [] if each["name"] not in (name, *self._damaged)]
        entries = [entry, *earlier]
        # The index is written after the file it names, and files it no longer names are deleted after that; a crash
        # in between leaves one file too many, never one too few.
        write_json(self.folder / _INDEX, {"format": FORMAT, "checkpoints": entries[:_KEPT]}, self._fs)
        self._damaged.discard(name)
        kept = {each["name"] for each in entries[:_KEPT]}
        for file in self.folder.glob("ckpt-*.pt"):
            if file.name not in kept:
                with contextlib.suppress(OSError):
                    self._fs.unlink(file)
        self._last_save_ended = time.monotonic()
        self._last_save_took = self._last_save_ended - began

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Return the newest undamaged checkpoint, or ``None``. A damaged one is reported and skipped.

        Raises:
            StorageError: A checkpoint was written by a newer release.
        """
        entries = self._entries()
        if entries is None:
            self._warn(f"{_INDEX} is damaged; starting from the beginning")
            return None
        for number, entry in enumerate(entries, start=1):
            instead = "going back to the one before" if number < len(entries) else "starting from the beginning"
            payload = self._load_one(entry, device, instead)
            if payload is not None:
                return payload
            self._damaged.add(entry["name"])
        return None

    def _load_one(self, entry: dict[str, Any], device: torch.device, instead: str) -> dict[str, Any] | None:
        path = self.folder / entry["name"]
        try:
            content = path.read_bytes()
        except OSError as error:
            self._warn(f"checkpoint {path.name} cannot be read ({error.strerror}); {instead}")
            return None
        # The sum is checked before a byte is parsed: torch.load itself accepts most damaged files.
        if len(content) != entry["size"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
            self._warn(f"checkpoint {path.name} is damaged; {instead}")
            return None
        payload: dict[str, Any] = torch.load(
            io.BytesIO(content), weights_only=True, map_location={"cuda:0": str(device)}
        )
        if payload.get("format") != FORMAT:
            raise StorageError(
                f"checkpoint {path} has format {payload.get('format')}, this release reads {FORMAT}; "
                f"use the release that wrote it, or delete {path.parent} to start over"
            )
        return payload

    def _entries(self) -> list[dict[str, Any]] | None:
        """Return what the index names, newest first; ``None`` if it is damaged."""
        try:
            index = read_json(self.folder / _INDEX)
            return [
                {"name": str(e["name"]), "epoch": int(e["epoch"]), "sha256": str(e["sha256"]), "size": int(e["size"])}
                for e in index["checkpoints"]
                if _NAME.fullmatch(str(e["name"]))
            ]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def discard(self) -> None:
        """Delete all checkpoints."""
        with storage_errors(self.folder):
            for file in [*self.folder.glob("ckpt-*.pt"), self.folder / _INDEX]:
                file.unlink(missing_ok=True)


def collect_state(tracked: Mapping[str, Tracked]) -> dict[str, Any]:
    """Return everything that the tracked objects need to go on, the train/eval flags of modules included.

    Raises:
        PluginError: An object holds something a checkpoint cannot: say, a NumPy array.
    """
    state: dict[str, Any] = {}
    for name, item in tracked.items():
        content = item.state_dict() if isinstance(item, Stateful) else item
        state[name] = _plain(content, name)
        if isinstance(item, nn.Module):
            # state_dict() leaves these flags out, and a run resumed without them differs.
            state[name] = {"state": state[name], "training": [module.training for module in item.modules()]}
    return state


def restore_state(tracked: Mapping[str, Tracked], state: Mapping[str, Any]) -> None:
    """Put a collected state back into the tracked objects.

    Raises:
        PluginError: The method tracks other names now than when the checkpoint was written.
    """
    if set(tracked) != set(state):
        raise PluginError(
            f"the method tracks {sorted(tracked)}, its checkpoint holds {sorted(state)}; delete the cell's folder"
        )
    for name, item in tracked.items():
        content = state[name]
        if isinstance(item, nn.Module):
            item.load_state_dict(content["state"])
            for module, training in zip(item.modules(), content["training"], strict=True):
                module.training = training
        elif isinstance(item, Stateful):
            item.load_state_dict(content)
        else:
            item.clear()
            item.update(content)


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if value is None:
        return value
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            # NumPy's float64 is a float too, but is written as something that a safe load refuses.
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if type(value) in (list, tuple, torch.Size):
        items = [_plain(inner, f"{where}[{position}]") for position, inner in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise PluginError(
        f"tracked state {where!r} is a {type(value).__module__}.{type(value).__name__}; a checkpoint holds tensors, "
        "numbers, strings, None, and lists, tuples and dictionaries of these"
    )
