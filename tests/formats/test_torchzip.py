from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lnlbench.errors import DataError
from lnlbench.formats.torchzip import load_torch_zip

LIMIT = 2**20
CONTENT = {
    "clean_label": np.arange(300, dtype=np.int64) % 10,
    "wide": np.arange(-3, 3, dtype=np.int64) * 2**40,
    "coarse": [0, 1, 19, 300, 70_000],
    "name": "labels",
}


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def packed(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def assert_is_content(found: object) -> None:
    assert isinstance(found, dict)
    assert found.keys() == CONTENT.keys()
    for name, expected in CONTENT.items():
        if isinstance(expected, np.ndarray):
            assert found[name].dtype == np.int64
            assert found[name].tolist() == expected.tolist()
        else:
            assert found[name] == expected


def test_what_torch_saves_is_read() -> None:
    assert_is_content(load_torch_zip(saved(CONTENT), LIMIT, "a"))


@pytest.mark.parametrize("folder", ["archive", "CIFAR-10_human", "x"])
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_every_folder_and_both_names_of_numpy(folder: str, module: bytes) -> None:
    data = pickled(CONTENT)
    for known in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        data = data.replace(known + b"\n", module + b"\n")
    assert module in data
    assert_is_content(load_torch_zip(packed({f"{folder}/data.pkl": data, f"{folder}/version": b"3\n"}), LIMIT, "a"))


class Payload:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def with_claim(size: int) -> bytes:
    """A container whose directory claims another size of the pickle."""
    data = bytearray(packed({"archive/data.pkl": pickled([1, 2, 3])}))
    place = data.index(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", size)
    return bytes(data)


def with_crc(data: bytes) -> bytes:
    damaged = bytearray(data)
    place = damaged.index(b"PK\x01\x02")
    damaged[place + 16] ^= 1
    return bytes(damaged)


GOOD = packed({"archive/data.pkl": pickled([1, 2, 3])})
HOSTILE = {
    "empty": (b"", "not a zip file"),
    "web page": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not a zip file"),
    "bare pickle": (pickled(CONTENT), "not a zip file"),
    "cut": (saved(CONTENT)[:-30], "not a file of torch.save"),
    "cut in the pickle": (saved(CONTENT)[:500], "not a zip file"),
    "no members": (packed({}), "0 members are named <folder>/data.pkl"),
    "misnamed": (packed({"archive/data.pk": b"x"}), "0 members are named <folder>/data.pkl"),
    "at the top": (packed({"data.pkl": pickled(1)}), "0 members are named"),
    "deeper": (packed({"a/b/data.pkl": pickled(1)}), "0 members are named"),
    "two pickles": (packed({"a/data.pkl": pickled(1), "b/data.pkl": pickled(2)}), "2 members are named"),
    "too large": (packed({"a/data.pkl": bytes(LIMIT + 1)}), "has 1,048,577 bytes, expected at most 1,048,576"),
    "bomb": (packed({"a/data.pkl": bytes(2**26)}, zipfile.ZIP_DEFLATED), "is compressed"),
    "small but compressed": (packed({"a/data.pkl": pickled([0] * 99)}, zipfile.ZIP_DEFLATED), "is compressed"),
    "claims too much": (with_claim(2**31), "has 2,147,483,648 bytes, expected at most"),
    "claims more than there is": (with_claim(5000), "not a file of torch.save"),
    "claims less": (with_claim(3), "not a file of torch.save"),
    "checksum wrong": (with_crc(GOOD), "Bad CRC-32"),
    "many members": (packed({"a/data.pkl": pickled(1), **{f"m{i}": b"" for i in range(1000)}}), "more than 1,000"),
    "runs a command": (packed({"a/data.pkl": pickled(Payload())}), "which may run code"),
    "tensors": (saved({"x": torch.arange(3)}), "not a pickle of plain values"),
    "terminal escapes": (packed({"\x1b[2J/data.pkl": bytes(LIMIT + 1)}), "x1b"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), HOSTILE.values(), ids=list(HOSTILE))
def test_anything_else_is_one_line(data: bytes, said: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^labels\.pt: ") as caught:
        load_torch_zip(data, LIMIT, "labels.pt")
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        load_torch_zip(data, LIMIT, "a")


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255), cut=st.booleans())
def test_damage_is_noticed_or_harmless(place: int, flip: int, cut: bool) -> None:
    data = bytearray(SAVED)
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place] ^= flip
    with contextlib.suppress(DataError):
        assert_is_content(load_torch_zip(bytes(data), LIMIT, "a"))


SAVED = saved(CONTENT)
