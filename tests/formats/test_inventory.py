from __future__ import annotations

import hashlib
import io
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lnlbench.errors import DataError, StorageError
from lnlbench.formats import inventory as inventories
from lnlbench.formats.inventory import MISSING, NEVER, Inventory, look, read_inventory, take_stock


def image(seed, side=8):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def named(path, number):
    return Inventory(
        (path,),
        np.array([number]),
        np.array([number]),
        np.full((1, 32), number, np.uint8),
        np.full((1, 2), number, np.int32),
    )


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "images"
    for number in range(6):
        path = root / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number, side=8 + number))
    return root


PATHS = tuple(f"{number % 2}/{number}.png" for number in range(6))


def stock(root, known=None, paths=PATHS, accept_changed=False, saved=None, progress=None):
    return take_stock(
        root,
        paths,
        known or Inventory(),
        (saved if saved is not None else []).append,
        (progress if progress is not None else []).append,
        accept_changed=accept_changed,
        hint="restore it",
    )


def test_every_file_is_described(root):
    saved, progress = [], []
    found = stock(root, saved=saved, progress=progress)
    assert (found.missing, found.changed) == ((), ())
    assert found.inventory.paths == PATHS
    for row, path in enumerate(PATHS):
        data = (root / path).read_bytes()
        assert found.inventory.sizes[row] == len(data)
        assert found.inventory.mtimes[row] == (root / path).stat().st_mtime_ns
        assert found.inventory.digests[row].tobytes() == hashlib.sha256(data).digest()
        assert found.inventory.sides[row].tolist() == [8 + row, 8 + row]
    assert saved[-1].paths == PATHS
    assert sum(progress) == len(PATHS)


def test_only_what_changed_in_size_or_time_is_read_again(root, monkeypatch):
    known = stock(root).inventory
    read = []
    genuine = inventories._read_one
    monkeypatch.setattr(inventories, "_read_one", lambda root, path: (read.append(path), genuine(root, path))[1])
    progress = []
    assert stock(root, known, progress=progress).inventory is known
    assert read == []
    assert sum(progress) == len(PATHS)
    os.utime(root / PATHS[3], ns=(1, 1))
    again = stock(root, known)
    assert read == [PATHS[3]]
    assert (again.changed, again.inventory.mtimes[again.inventory.rows([PATHS[3]])].tolist()) == ((), [1])


def test_missing_files_are_listed_in_their_order(root):
    for path in (PATHS[4], PATHS[1]):
        (root / path).unlink()
    found = stock(root)
    assert found.missing == (PATHS[1], PATHS[4])
    assert len(found.inventory.paths) == 4
    assert stock(root / "absent").missing == PATHS


def test_other_content_is_reported_until_it_is_accepted(root):
    known = stock(root).inventory
    (root / PATHS[2]).write_bytes(image(99))
    row = known.rows([PATHS[2]])
    for _ in range(2):
        saved = []
        found = stock(root, known, saved=saved)
        assert found.changed == (PATHS[2],)
        known = saved[-1]
        assert np.array_equal(
            known.digests[known.rows([PATHS[2]])], found.inventory.digests[found.inventory.rows([PATHS[2]])]
        )
    accepted = stock(root, known, accept_changed=True).inventory
    assert accepted.digests[accepted.rows([PATHS[2]])].tobytes() == hashlib.sha256(image(99)).digest()
    assert stock(root, accepted).changed == ()
    assert row.tolist() == [2]


def test_aged_entries_are_read_again_and_compared(root):
    known = stock(root).inventory
    data = bytearray((root / PATHS[0]).read_bytes())
    before = (root / PATHS[0]).stat()
    data[-20] ^= 1  # a decayed bit; size and time stay
    (root / PATHS[0]).write_bytes(data)
    os.utime(root / PATHS[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stock(root, known).changed == ()
    assert (known.aged().mtimes == NEVER).all()
    assert stock(root, known.aged()).changed == (PATHS[0],)


def test_all_sound_files_are_kept_when_some_are_damaged(root):
    (root / PATHS[1]).write_bytes(b"<html>")
    (root / PATHS[5]).write_bytes(image(5)[:-30])
    saved = []
    with pytest.raises(DataError) as caught:
        stock(root, saved=saved)
    message = str(caught.value)
    assert message.startswith(
        f"2 of 6 image files are damaged, first: {root / PATHS[1]}: not a sound JPEG or PNG image"
    )
    assert message.endswith("; restore it")
    assert set(saved[-1].paths) == set(PATHS) - {PATHS[1], PATHS[5]}


def test_files_that_cannot_be_read_are_named(root):
    def vanish(count):
        (root / PATHS[1]).unlink(missing_ok=True)

    with pytest.raises(DataError, match=r"1\.png: cannot be read: No such file or directory; restore it"):
        take_stock(root, PATHS, Inventory(), lambda _: None, vanish, accept_changed=False, hint="restore it")


def test_an_interruption_keeps_what_was_done(root, monkeypatch):
    monkeypatch.setattr(inventories, "_BLOCK", 2)
    saved = []
    blocks = []

    def interrupt(count):
        blocks.append(count)
        if len(blocks) == 3:  # nothing known, first block, second block
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_stock(root, PATHS, Inventory(), saved.append, interrupt, accept_changed=False, hint="")
    assert saved[-1].paths == PATHS[:4]
    assert stock(root, saved[-1]).inventory.paths == PATHS[4:] + PATHS[:4]


def test_it_is_saved_now_and_then(root, monkeypatch):
    monkeypatch.setattr(inventories, "_BLOCK", 2)
    monkeypatch.setattr(inventories, "_SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(inventories, "_SAVE_SHARE", 0.0)
    saved = []
    stock(root, saved=saved)
    assert [len(each.paths) for each in saved] == [2, 4, 6]


def test_paths_may_be_listed_twice(root):
    assert stock(root, paths=(*PATHS, PATHS[0])).inventory.paths == PATHS


def test_look(root):
    sizes, mtimes = look(root, ["0/0.png", "0/absent.png", "no folder/1.png", "0/0.png/inside.png"])
    assert sizes.tolist() == [(root / "0/0.png").stat().st_size, MISSING, MISSING, MISSING]
    assert mtimes[0] == (root / "0/0.png").stat().st_mtime_ns


def test_links_may_not_lead_out(root, tmp_path):
    (tmp_path / "secret.png").write_bytes(image(1))
    (root / "0" / "out.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"out\.png: a symbolic link out of "):
        look(root, ["0/out.png"])
    (root / "0" / "in.png").symlink_to(root / "1" / "1.png")
    assert look(root, ["0/in.png"])[0].tolist() == [(root / "1/1.png").stat().st_size]
    (root / "0" / "deep").symlink_to(tmp_path)
    with pytest.raises(DataError, match="deep: a symbolic link out of "):
        look(root, ["0/deep/secret.png"])
    (root / "0" / "dangling.png").symlink_to(root / "nowhere.png")
    assert look(root, ["0/dangling.png"])[0].tolist() == [MISSING]


def test_links_in_the_folder_itself_are_the_users_own(root, tmp_path):
    (tmp_path / "disk" / "a").mkdir(parents=True)
    (tmp_path / "disk" / "a" / "1.png").write_bytes(image(1))
    (root / "images").symlink_to(tmp_path / "disk")
    assert look(root, ["images/a/1.png"])[0][0] > 0
    whole = tmp_path / "link"
    whole.symlink_to(root)
    assert look(whole, ["images/a/1.png", PATHS[0]])[0].min() > 0


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_regular_file_is_refused_without_opening_it(root, kind):
    path = root / "0" / "odd.png"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(DataError, match=r"odd\.png: not a regular file"):
        stock(root, paths=("0/odd.png",))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20), unique=True),
    st.randoms(),
)
def test_writing_and_reading_gives_the_same(tmp_path_factory, paths, rng):
    numbers = np.array([rng.randrange(2**60) for _ in paths], np.int64)
    digests = np.array([[rng.randrange(256) for _ in range(32)] for _ in paths], np.uint8).reshape(-1, 32)
    written = Inventory(tuple(paths), numbers, numbers // 3, digests, np.ones((len(paths), 2), np.int32))
    path = tmp_path_factory.mktemp("inventory") / "inventory.npz"
    written.write(path)
    found = read_inventory(path, hint="")
    assert found.paths == written.paths
    for name in ("sizes", "mtimes", "digests", "sides"):
        assert np.array_equal(getattr(found, name), getattr(written, name))
    assert list(path.parent.iterdir()) == [path]


def test_no_file_is_an_empty_inventory(tmp_path):
    assert read_inventory(tmp_path / "absent.npz", hint="").paths == ()


def test_damage_is_noticed(root, tmp_path):
    """100 flipped bits and 20 truncations."""
    path = tmp_path / "inventory.npz"
    stock(root).inventory.write(path)
    sound = path.read_bytes()
    rng = random.Random(3)
    expected = read_inventory(path, hint="")
    refused, harmless = [], 0
    for trial in range(120):
        damaged = bytearray(sound)
        if trial < 100:
            damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(sound)) :]
        path.write_bytes(damaged)
        try:
            found = read_inventory(path, hint="delete it")
        except DataError as error:
            refused.append(str(error))
        else:  # a date, or another field of the zip format that nobody reads
            harmless += 1
            assert found.paths == expected.paths
            assert np.array_equal(found.digests, expected.digests)
            assert np.array_equal(found.mtimes, expected.mtimes)
    assert len(refused) + harmless == 120
    assert len(refused) > 80
    assert all(message.startswith(f"{path}: damaged: ") for message in refused)
    assert all(message.endswith("; delete it") and message.isprintable() for message in refused)


def test_joining_prefers_the_newer():
    both = named("a", 1).join(named("b", 2)).join(named("a", 3))
    assert dict(zip(both.paths, both.sizes.tolist(), strict=True)) == {"a": 3, "b": 2}
    assert both.rows(["b", "c", "a"]).tolist() == [1, -1, 0]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    with pytest.raises(StorageError, match=r"inventory\.npz"):
        named("a", 1).write(tmp_path / "absent" / "inventory.npz")
