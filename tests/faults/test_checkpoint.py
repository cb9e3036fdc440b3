"""Damaged, torn and foreign checkpoints: found before they are parsed, and the one before is used."""

from __future__ import annotations

import collections
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from lnlbench.engine import checkpoint
from lnlbench.engine.checkpoint import Checkpoints, collect_state, restore_state
from lnlbench.errors import PluginError, StorageError

if TYPE_CHECKING:
    from tests.faults.conftest import Lab

Essence = Callable[[Path], dict[str, Any]]
CPU = torch.device("cpu")


def save_two(folder: Path) -> dict[int, dict[str, Any]]:
    """Save the state of a network with momentum after epochs 3 and 4; return both payloads."""
    network = nn.Sequential(nn.Linear(12, 24), nn.BatchNorm1d(24), nn.Linear(24, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    saver = Checkpoints(folder, pytest.fail)
    payloads = {}
    for epoch in (3, 4):
        network(torch.randn(8, 12)).square().sum().backward()
        optimizer.step()
        state = collect_state({"network": network, "optimizer": optimizer})
        saver.save(epoch, {"state": state})
        payload = saver.load(CPU)
        assert payload is not None
        payloads[epoch] = payload
    return payloads


def load(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Load what there is; return it with the warnings."""
    warnings: list[str] = []
    return Checkpoints(folder, warnings.append).load(CPU), warnings


def weights(payload: dict[str, Any] | None) -> list[float]:
    assert payload is not None
    state = payload["state"]["network"]["state"]
    return [value for name in sorted(state) for value in state[name].flatten().tolist()]


def test_two_are_kept_and_their_names_carry_the_epoch(tmp_path: Path) -> None:
    saver = Checkpoints(tmp_path, pytest.fail)
    for epoch in range(5):
        saver.save(epoch, {"state": {}})
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == [*(f"ckpt-{kept:06d}.pt" for kept in range(max(0, epoch - 1), epoch + 1)), "latest.json"]
        assert saver.load(CPU) == {"format": 1, "epoch": epoch, "state": {}}
    # A repeated epoch takes the place of its earlier checkpoint.
    saver.save(4, {"state": {"again": True}})
    assert [each["epoch"] for each in json.loads((tmp_path / "latest.json").read_text())["checkpoints"]] == [4, 3]
    saver.discard()
    assert list(tmp_path.iterdir()) == []
    assert saver.load(CPU) is None


def test_1000_bit_flips_are_found(tmp_path: Path) -> None:
    payloads = save_two(tmp_path)
    assert weights(payloads[3]) != weights(payloads[4])
    newest = tmp_path / "ckpt-000004.pt"
    sound = newest.read_bytes()
    dice = random.Random(4)
    bits = 8 * len(sound)
    # Evenly spread, and more of them where the file's structure is: its first and last kilobyte.
    chosen = [bits * number // 600 for number in range(600)]
    chosen += [dice.randrange(8192) for _ in range(200)] + [bits - 1 - dice.randrange(8192) for _ in range(200)]
    found = 0
    for bit in chosen:
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        newest.write_bytes(damaged)
        payload, warnings = load(tmp_path)
        assert warnings == ["checkpoint ckpt-000004.pt is damaged; going back to the one before"]
        assert weights(payload) == weights(payloads[3])
        found += 1
    assert found == 1000


def test_truncations_and_additions_are_found(tmp_path: Path) -> None:
    payloads = save_two(tmp_path)
    newest = tmp_path / "ckpt-000004.pt"
    sound = newest.read_bytes()
    lengths = [len(sound) * number // 200 for number in range(200)] + [len(sound) - 1, len(sound) + 1]
    for length in lengths:
        newest.write_bytes((sound + b"\0")[:length])
        payload, warnings = load(tmp_path)
        assert len(warnings) == 1
        assert weights(payload) == weights(payloads[3])
    newest.unlink()
    payload, warnings = load(tmp_path)
    assert warnings == [
        "checkpoint ckpt-000004.pt cannot be read (No such file or directory); going back to the one before"
    ]
    assert weights(payload) == weights(payloads[3])


def test_damage_of_the_older_one_goes_unnoticed_until_it_is_needed(tmp_path: Path) -> None:
    payloads = save_two(tmp_path)
    older = tmp_path / "ckpt-000003.pt"
    older.write_bytes(older.read_bytes()[:-1])
    payload, warnings = load(tmp_path)
    assert warnings == []
    assert weights(payload) == weights(payloads[4])
    (tmp_path / "ckpt-000004.pt").write_bytes(b"")
    payload, warnings = load(tmp_path)
    assert payload is None
    assert warnings == [
        "checkpoint ckpt-000004.pt is damaged; going back to the one before",
        "checkpoint ckpt-000003.pt is damaged; starting from the beginning",
    ]


def test_index_torn_at_every_byte(tmp_path: Path) -> None:
    save_two(tmp_path)
    index = tmp_path / "latest.json"
    sound = index.read_bytes()
    for length in range(len(sound)):
        index.write_bytes(sound[:length])
        payload, warnings = load(tmp_path)
        if length == len(sound) - 1:  # only the last line feed is missing
            assert (payload is not None, warnings) == (True, [])
        else:
            assert (payload, warnings) == (None, ["latest.json is damaged; starting from the beginning"])


def test_index_with_any_bit_flipped(tmp_path: Path) -> None:
    payloads = save_two(tmp_path)
    known = [weights(payloads[3]), weights(payloads[4])]
    index = tmp_path / "latest.json"
    sound = index.read_bytes()
    for bit in range(8 * len(sound)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        index.write_bytes(damaged)
        payload, warnings = load(tmp_path)
        assert payload is None or weights(payload) in known
        assert len(warnings) <= 2
        assert payload is not None or warnings


ENTRY = '{"epoch": 1, "name": "a", "sha256": "", "size": %s}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"5",
        b"null",
        b'{"checkpoints": 5}',
        b'{"checkpoints": [5]}',
        b'{"checkpoints": [{}]}',
        b'{"checkpoints": ["x"]}',
        f'{{"checkpoints": [{ENTRY % "1e999"}]}}'.encode(),
        f'{{"checkpoints": [{ENTRY % "NaN"}]}}'.encode(),
        f'{{"checkpoints": [{ENTRY % "[]"}]}}'.encode(),
        f'{{"checkpoints": [{ENTRY % "1"}]}}'.replace('"a"', '"../../etc/passwd"').encode(),
        f'{{"checkpoints": [{ENTRY % "1"}]}}'.replace('"a"', r'"a\u0000b"').encode(),
        f'{{"checkpoints": [{ENTRY % "1"}]}}'.replace('"a"', '""').encode(),
        b"[" * 100_000,
    ],
)
def test_nonsense_in_the_index_never_raises(tmp_path: Path, content: bytes) -> None:
    save_two(tmp_path)
    (tmp_path / "latest.json").write_bytes(content)
    assert load(tmp_path)[0] is None
    warnings: list[str] = []
    # The next save works, and what it wrote is found.
    Checkpoints(tmp_path, warnings.append).save(7, {"state": {}})
    assert load(tmp_path) == ({"format": 1, "epoch": 7, "state": {}}, [])


def test_newer_format_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    Checkpoints(tmp_path, pytest.fail).save(1, {"state": {}})
    content = (tmp_path / "ckpt-000001.pt").read_bytes()
    monkeypatch.undo()
    with pytest.raises(StorageError) as caught:
        load(tmp_path)
    assert str(caught.value) == (
        f"checkpoint {tmp_path / 'ckpt-000001.pt'} has format 2, this release reads 1; use the release that wrote it, "
        f"or delete {tmp_path} to start over"
    )
    assert (tmp_path / "ckpt-000001.pt").read_bytes() == content


def test_power_cut_while_saving(tmp_path: Path, crashfs: ModuleType) -> None:
    """Whatever a power cut leaves of a save, the checkpoint before or the new one loads; after it, the new one."""
    disk_folder, replay = tmp_path / "disk", tmp_path / "replay"
    saver = Checkpoints(disk_folder, pytest.fail)
    for epoch in (1, 2):
        saver.save(epoch, {"state": {"epoch": epoch}})
    disk = crashfs.CrashFs(disk_folder)
    Checkpoints(disk_folder, pytest.fail, disk).save(3, {"state": {"epoch": 3}})
    count, found = 0, collections.Counter[tuple[bool, int]]()
    for returned, state in disk.states():
        shutil.rmtree(replay, ignore_errors=True)
        replay.mkdir()
        for path, content in state.items():
            (replay / path.name).write_bytes(content)
        payload, warnings = load(replay)
        assert payload is not None
        assert payload["state"] == {"epoch": payload["epoch"]}
        assert warnings == []
        found[returned, payload["epoch"]] += 1
        count += 1
    assert count > 50
    assert set(found) == {(False, 2), (False, 3), (True, 3)}


# What a checkpoint may hold


class Keeper:
    """Keeps whatever it is given."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def state_dict(self) -> dict[str, Any]:
        return {"content": self.content}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.content = state["content"]


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("content", "where", "kind"),
    [
        (np.zeros(3), "keeper.content", "numpy.ndarray"),
        ({"losses": [torch.zeros(1), np.zeros(3)]}, "keeper.content.losses[1]", "numpy.ndarray"),
        (np.int64(3), "keeper.content", "numpy.int64"),
        ({np.int64(3): 1}, "keeper.content", "numpy.int64"),
        ({1, 2}, "keeper.content", "builtins.set"),
        (collections.deque([1]), "keeper.content", "collections.deque"),
        (Point(1, 2), "keeper.content", "Point"),
        (random.Random, "keeper.content", "builtins.type"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_named(content: Any, where: str, kind: str) -> None:
    with pytest.raises(PluginError) as caught:
        collect_state({"keeper": Keeper(content)})
    assert f"{where!r} is a " in str(caught.value)
    assert kind in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whatever_is_collected_loads_again(tmp_path: Path) -> None:
    """NumPy's numbers that are Python numbers too, and containers, come back as plain values."""
    content = {
        "number": np.float64(0.1),
        "text": np.str_("a"),
        "list": [1, 2.5, None, True, "x", (torch.arange(3), [])],
        "ordered": collections.OrderedDict(b=1, a=2),
        "by class": {0: 0.5, 1: 0.25},
        "shape": torch.Size([2, 3]),
    }
    keeper, plain = Keeper(content), {"step": 3}
    Checkpoints(tmp_path, pytest.fail).save(0, {"state": collect_state({"keeper": keeper, "plain": plain})})
    payload, _ = load(tmp_path)
    assert payload is not None
    fresh: dict[str, Any] = {"keeper": Keeper(None), "plain": {"left": "over"}}
    restore_state(fresh, payload["state"])
    assert fresh["plain"] == {"step": 3}
    back = fresh["keeper"].content
    assert torch.equal(back["list"][5][0], torch.arange(3))
    assert back["list"][:5] == content["list"][:5]
    assert (back["number"], type(back["number"])) == (0.1, float)
    assert (back["text"], type(back["text"])) == ("a", str)
    assert (back["ordered"], back["by class"], tuple(back["shape"])) == ({"b": 1, "a": 2}, {0: 0.5, 1: 0.25}, (2, 3))


def test_train_and_eval_flags_are_part_of_the_state(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[1].eval()
    state = collect_state({"network": network})
    fresh = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    restore_state({"network": fresh}, state)
    assert [module.training for module in fresh.modules()] == [True, True, False]


def test_other_tracked_names_are_refused_in_one_line() -> None:
    with pytest.raises(PluginError, match=r"the method tracks \['b'\], its checkpoint holds \['a'\]; delete"):
        restore_state({"b": {}}, {"a": {}})


# Whole runs


@pytest.fixture(scope="module")
def interrupted(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A cell, its finished folder, and one that was interrupted in epoch 5 with checkpoints of epochs 3 and 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_PACE", 0.0)
        cell = lab.cell("ce", epochs=8)
        root = tmp_path_factory.mktemp("interrupted")
        lab.run(cell, root / "whole")
        lab.run(cell, root / "part", stop_after=5)
    assert sorted(path.name for path in (root / "part" / "checkpoints").glob("*.pt")) == [
        "ckpt-000003.pt",
        "ckpt-000004.pt",
    ]
    return cell, root / "whole", root / "part"


def test_a_damaged_one_is_not_kept_in_place_of_a_sound_one(tmp_path: Path) -> None:
    payloads = save_two(tmp_path)
    (tmp_path / "ckpt-000004.pt").write_bytes(b"damaged")
    warnings: list[str] = []
    saver = Checkpoints(tmp_path, warnings.append)
    assert weights(saver.load(CPU)) == weights(payloads[3])
    saver.save(5, {"state": {}})
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["ckpt-000003.pt", "ckpt-000005.pt"]
    (tmp_path / "ckpt-000005.pt").write_bytes(b"damaged")
    assert weights(load(tmp_path)[0]) == weights(payloads[3])


@pytest.mark.parametrize(
    ("damaged", "warned", "goes_on_at"),
    [
        ([], 0, 5),
        (["ckpt-000004.pt"], 1, 4),
        (["ckpt-000004.pt", "ckpt-000003.pt"], 2, None),
        (["latest.json"], 1, None),
    ],
)
def test_run_with_damaged_checkpoints_ends_bit_identical(
    lab: Lab,
    essence: Essence,
    interrupted: tuple[Any, Path, Path],
    tmp_path: Path,
    damaged: list[str],
    warned: int,
    goes_on_at: int | None,
) -> None:
    cell, whole, part = interrupted
    folder = tmp_path / "run"
    shutil.copytree(part, folder)
    for name in damaged:
        path = folder / "checkpoints" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x80
        path.write_bytes(content)
    events = lab.run(cell, folder)
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert len(warnings) == warned
    assert [event["epoch"] for event in events if event["event"] == "resumed"] == (
        [] if goes_on_at is None else [goes_on_at]
    )
    assert json.loads((folder / "result.json").read_text())["resumed"] == (0 if goes_on_at is None else 1)
    assert essence(folder) == essence(whole)
