from __future__ import annotations

import builtins
import collections
import copyreg
import datetime
import fractions
import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lnlbench.errors import DataError
from lnlbench.formats.pickles import load_plain_pickle

NUMBERS = hnp.arrays(
    st.sampled_from(["u1", "i1", "<i2", ">i4", "<u4", "<i8", ">u8", "<f4", ">f8", "f2"]),
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
    elements={"allow_nan": False},
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(min_size=1),
    NUMBERS,
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4), st.tuples(inner, inner), st.tuples()
    ),
    max_leaves=12,
)


def refusal(data, source="x"):
    try:
        load_plain_pickle(data, source)
    except DataError as error:
        return str(error)
    return None


def same(left, right):
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and np.array_equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@settings(max_examples=300, deadline=None)
@given(VALUES, st.sampled_from([2, 3, 4]))
def test_plain_values_come_back(value, protocol):
    assert same(load_plain_pickle(pickle.dumps(value, protocol), "x"), value)


# Operands of instructions, by what the standard library says they look like; of lines there is one.
OPERANDS = {
    None: st.just(b""),
    "uint1": st.integers(0, 3).map(lambda number: bytes([number])),
    "uint2": st.binary(min_size=2, max_size=2),
    "int4": st.binary(min_size=4, max_size=4),
    "uint4": st.integers(0, 3).map(lambda number: struct.pack("<I", number)),
    "uint8": st.integers(0, 40).map(lambda number: struct.pack("<Q", number)),
    "float8": st.binary(min_size=8, max_size=8),
    "long1": st.binary(max_size=9).map(lambda text: bytes([len(text)]) + text),
    "string1": st.binary(max_size=9).map(lambda text: bytes([len(text)]) + text),
    "string4": st.binary(max_size=9).map(lambda text: struct.pack("<i", len(text)) + text),
    "bytes1": st.binary(max_size=9).map(lambda text: bytes([len(text)]) + text),
    "bytes4": st.binary(max_size=9).map(lambda text: struct.pack("<I", len(text)) + text),
    "unicodestring1": st.text(max_size=9).map(lambda text: bytes([len(text.encode())]) + text.encode()),
    "unicodestring4": st.text(max_size=9).map(lambda text: struct.pack("<I", len(text.encode())) + text.encode()),
}
TEXT = {"INT", "LONG", "STRING", "UNICODE", "FLOAT", "LIST", "DICT", "GET", "PUT", "INST", "PERSID"}
NOT_PLAIN = {"POP", "POP_MARK", "DUP", "EMPTY_SET", "ADDITEMS", "FROZENSET", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BINPERSID"}
TOO_MUCH = {"LONG4", "BINUNICODE8", "BINBYTES8", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER", "EXT1", "EXT2", "EXT4"}
REFUSED = TEXT | NOT_PLAIN | TOO_MUCH
FOR_ARRAYS = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"}
STEPS = [
    OPERANDS[opcode.arg and opcode.arg.name].map(opcode.code.encode("latin-1").__add__)
    for opcode in pickletools.opcodes
    if opcode.name not in REFUSED | FOR_ARRAYS | {"STOP"}
]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.one_of(STEPS), max_size=12), st.booleans())
def test_whatever_is_accepted_means_what_the_standard_library_says(steps, in_a_list):
    # In a list, so that not all sequences fail for the values they leave over.
    data = b"](" + b"".join(steps) + b"e." if in_a_list else b"".join(steps) + b"."
    try:
        read = load_plain_pickle(data, "x")
    except DataError:
        return
    # repr: what is not a number differs from itself.
    assert repr(read) == repr(with_text_keys(pickle.loads(data, encoding="latin1")))


def with_text_keys(value):
    if isinstance(value, dict):
        keys = (key.decode("latin-1") if isinstance(key, bytes) else key for key in value)
        return dict(zip(keys, map(with_text_keys, value.values()), strict=True))
    return type(value)(map(with_text_keys, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", sorted(opcode.name for opcode in pickletools.opcodes))
def test_an_instruction_is_admitted_or_named(name):
    code = next(opcode.code for opcode in pickletools.opcodes if opcode.name == name).encode("latin-1")
    message = refusal(b"\x80\x02}(" + code)
    assert message is not None
    assert (f"instruction {name} at byte 4 is not allowed" in message) == (name in REFUSED)


def test_the_content_of_an_array_is_not_copied():
    array = np.arange(1000, dtype=np.int32)
    for data in (python_2_array(array.tobytes()), pickle.dumps(array, 3), pickle.dumps(array, 4)):
        whole = np.frombuffer(data, np.uint8)
        for given_as in (data, memoryview(data), memoryview(bytearray(data))):
            read = load_plain_pickle(given_as, "x")
            assert same(read, array)
            assert not read.flags.writeable
        assert np.shares_memory(load_plain_pickle(data, "x"), whole)


def python_2_array(raw):
    """A pickle of an array of 32-bit integers as Python 2 wrote it."""
    content = b"T" + struct.pack("<i", len(raw)) + raw
    little = dtype(b"i4").replace(b"U\x01|", b"U\x01<")
    return array(shape=b"M" + struct.pack("<H", len(raw) // 4) + b"\x85", dtype=little, raw=content)


def test_the_content_of_an_array_is_nothing_else():
    # It is remembered, and asked for once more as a value of its own.
    data = array(raw=b"T\x02\x00\x00\x00abq\x07")[:-1] + b"h\x07\x86."
    assert "where a value should" in refusal(data)


@pytest.mark.parametrize("protocol", [3, 4])
def test_empty_arrays_come_back(protocol):
    array = np.zeros((0, 3), np.float32)
    assert same(load_plain_pickle(pickle.dumps(array, protocol), "x"), array)


def test_an_array_shared_by_two_keys_comes_back_twice():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    for protocol in (2, 3, 4):
        read = load_plain_pickle(pickle.dumps({"a": array, "b": array}, protocol), "x")
        assert same(read, {"a": array, "b": array})


def test_fortran_order_comes_back():
    array = np.asfortranarray(np.arange(24, dtype=np.float64).reshape(2, 3, 4))
    assert same(load_plain_pickle(pickle.dumps(array, 2), "x"), array)


# A dictionary {"data": 2x3 bytes, "labels": [1, 300, -7], "name": "é"} as Python 2 with its NumPy wrote it.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
    b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
    b"K\x00tb\x89T\x06\x00\x00\x00\x00\x01\x02\xfd\xfe\xfftbU\x06labelsq\x08]q\x09(K\x01M\x2c\x01J\xf9\xff\xff\xffe"
    b"U\x04nameq\x0aU\x01\xe9u."
)


def test_the_layout_of_python_2():
    read = load_plain_pickle(PYTHON_2, "x")
    assert same(read, {"data": np.array([[0, 1, 2], [253, 254, 255]], np.uint8), "labels": [1, 300, -7], "name": "é"})
    reference = pickle.loads(PYTHON_2, encoding="latin1")
    assert same(read, reference)


def test_byte_keys_become_text():
    assert load_plain_pickle(pickle.dumps({b"labels": [b"cat"]}, 3), "x") == {"labels": [b"cat"]}


def test_a_huge_memo_index_costs_nothing():
    data = b"\x80\x02}r\xff\xff\xff\xffj\xff\xff\xff\xff0.".replace(b"0.", b".")
    with pytest.raises(DataError, match="left over"):
        load_plain_pickle(data, "x")
    assert load_plain_pickle(b"\x80\x02}r\xff\xff\xff\xff.", "x") == {}


def call(module, name, argument=b"X\x01\x00\x00\x00x"):
    """Pickles that import a name and call it with one argument, in the ways there are."""
    module, name = module.encode(), name.encode()
    short = lambda text: b"\x8c" + bytes([len(text)]) + text  # noqa: E731
    return {
        "global": b"\x80\x02c" + module + b"\n" + name + b"\n" + argument + b"\x85R.",
        "stack global": b"\x80\x04" + short(module) + short(name) + b"\x93" + argument + b"\x85R.",
        "inst": b"(" + argument + b"i" + module + b"\n" + name + b"\n.",
        "obj": b"(c" + module + b"\n" + name + b"\n" + argument + b"o.",
        "newobj": b"\x80\x02c" + module + b"\n" + name + b"\n" + argument + b"\x85\x81.",
    }


class Evil:
    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return self.how


class Slotted:
    pass


MULTIARRAY = b"cnumpy.core.multiarray\n_reconstruct\n"
BEGIN = MULTIARRAY + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
U1 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def array(shape=b"K\x01K\x02\x86", dtype=U1, fortran=b"\x89", raw=b"U\x02ab", version=b"K\x01"):
    return b"\x80\x02" + BEGIN + b"(" + version + shape + dtype + fortran + raw + b"tb."


def dtype(text):
    return U1.replace(b"U\x02u1", b"U" + bytes([len(text)]) + text)


def hostile(canary):
    command = b"X" + struct.pack("<I", len(f"touch {canary}")) + f"touch {canary}".encode()
    python = f"open({str(canary)!r}, 'w').close()"
    source = b"X" + struct.pack("<I", len(python)) + python.encode()
    deep = 200_000
    evil = Evil((os.system, (f"touch {canary}",)))
    long_puts = b"".join(b"r" + struct.pack("<I", 2**32 - 1 - index) for index in range(1_100_000))
    return {
        **{f"os.system by {how}": data for how, data in call("os", "system", command).items()},
        **{f"posix.system by {how}": data for how, data in call("posix", "system", command).items()},
        **{f"eval by {how}": data for how, data in call("builtins", "eval", source).items()},
        **{f"python 2 exec by {how}": data for how, data in call("__builtin__", "exec", source).items()},
        **{
            f"{target} called": call(*target.rsplit(".", 1))["global"]
            for target in (
                "builtins.__import__",
                "builtins.getattr",
                "builtins.bytearray",
                "importlib.import_module",
                "subprocess.Popen",
                "shutil.rmtree",
                "pickle.loads",
                "operator.attrgetter",
                "functools.partial",
                "numpy.load",
                "numpy.fromfile",
                "numpy.core.multiarray.scalar",
                "numpy.core.multiarray.fromfile",
                "numpy.memmap",
                "torch._utils._rebuild_tensor_v2",
                "copyreg._reconstructor",
                "lnlbench.files.remove_leftovers",
            )
        },
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile_\x93.",
        "name out of a word": call("numpy", "ndarray.__class__")["stack global"],
        "name without end": b"\x80\x02cnumpy\nndarray",
        "name of a megabyte": b"\x80\x02c" + b"a" * 2**20 + b"\nb\n.",
        "content beyond the end": array(raw=b"T\x08\x00\x00\x00ab"),
        "content of negative length": array(raw=b"T\xfe\xff\xff\xffab"),
        "memo index cut off": b"\x80\x02}r\x01\x00",
        "string that swallows the end": b"\x80\x02U\x02.",
        "name is not text": b"\x80\x04K\x01K\x02\x93.",
        "reduce of a class": pickle.dumps(Evil((os.system, (f"touch {canary}",)))),
        "reduce in a list": pickle.dumps([1, Evil((os.system, (f"touch {canary}",)))], 2),
        "reduce as a key": pickle.dumps({Evil((builtins.eval, (python,))): 1}, 2),
        "reduce with a state": pickle.dumps(Evil((Slotted, (), {"x": 1})), 2),
        "an object": pickle.dumps(Slotted(), 4),
        "ordered dictionary": pickle.dumps(collections.OrderedDict(a=1), 2),
        "date": pickle.dumps(datetime.date(2020, 1, 1), 4),
        "fraction": pickle.dumps(fractions.Fraction(1, 2), 4),
        "set": pickle.dumps({1, 2}, 4),
        "frozen set": pickle.dumps(frozenset([1]), 4),
        "complex number": pickle.dumps(1j, 2),
        "function": pickle.dumps(copyreg.pickle, 2),
        "extension code 1": b"\x80\x02\x82\x01.",
        "extension code 2": b"\x80\x02\x83\x01\x00.",
        "extension code 4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persistent id": b"Pthing\n.",
        "binary persistent id": b"\x80\x02K\x01Q.",
        "build on a list": b"\x80\x02]}b.",
        "build on a dictionary": b"\x80\x02}}U\x01aK\x01sb.",
        "build on a word": b"\x80\x02cnumpy\nndarray\n}b.",
        "reduce of a number": b"\x80\x02K\x01)R.",
        "word as a value": b"\x80\x02cnumpy\nndarray\n.",
        "word in a tuple": b"\x80\x02cnumpy\nndarray\n\x85.",
        "word in a list": b"\x80\x02]cnumpy\nndarray\na.",
        "encode to another codec": b"\x80\x02c_codecs\nencode\nU\x01aU\x04utf8\x86R.",
        "encode an object": b"\x80\x02c_codecs\nencode\n}U\x06latin1\x86R.",
        "encode what latin-1 has not": b"\x80\x02c_codecs\nencode\nX\x03\x00\x00\x00\xe2\x82\xacU\x06latin1\x86R.",
        "array begun only": b"\x80\x02" + BEGIN + b".",
        "array begun, in a list": b"\x80\x02]" + BEGIN + b"a.",
        "dtype only": b"\x80\x02" + U1 + b".",
        "reconstruct another class": b"\x80\x02" + BEGIN.replace(b"ndarray", b"dtype") + b".",
        "reconstruct without arguments": b"\x80\x02" + MULTIARRAY + b")R.",
        "object array": pickle.dumps(np.array([Slotted(), None], dtype=object), 2),
        "object array with a payload": pickle.dumps(np.array([evil], dtype=object), 4),
        "object dtype over bytes": array(dtype=dtype(b"O8"), shape=b"K\x01\x85", raw=b"U\x08AAAAAAAA"),
        "structured array": pickle.dumps(np.zeros(2, dtype="u1,f4"), 2),
        "text array": pickle.dumps(np.array(["a"]), 2),
        "date array": pickle.dumps(np.array(["2020-01-01"], dtype="M8[D]"), 2),
        "void array": pickle.dumps(np.zeros(2, dtype="V4"), 2),
        "complex array": pickle.dumps(np.zeros(2, dtype=complex), 2),
        "array scalar": pickle.dumps(np.float64(1), 2),
        "array of protocol 5": pickle.dumps(np.zeros(3), 5),
        "shape too small": array(shape=b"K\x01K\x01\x86"),
        "shape too large": array(shape=b"K\x01K\x09\x86"),
        "shape negative": array(shape=b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"),
        "shape of a truth value": array(shape=b"\x88K\x02\x86"),
        "shape overflowing": array(shape=b"\x8a\x09" + bytes(8) + b"\x01K\x00\x86", raw=b"U\x00"),
        "shape of texts": array(shape=b"U\x01aU\x01b\x86"),
        "too many dimensions": array(shape=b"(" + b"K\x01" * 9 + b"t", raw=b"U\x01a"),
        "shape is a list": array(shape=b"]K\x02a"),
        "content is a list": array(raw=b"]"),
        "content is a number": array(raw=b"K\x02"),
        "content not latin-1": array(shape=b"K\x01\x85", raw=b"X\x03\x00\x00\x00\xe2\x82\xac"),
        "order is a number": array(fortran=b"K\x01"),
        "dtype is text": array(dtype=b"U\x02u1"),
        "dtype without order": array(dtype=b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"),
        "dtype of odd order": array(dtype=U1.replace(b"U\x01|", b"U\x01X")),
        "dtype with fields": array(dtype=U1.replace(b"NNN", b"N)}")),
        "dtype set twice": array(dtype=U1 + U1[U1.index(b"(") :]),
        "dtype unknown": array(dtype=dtype(b"u16")),
        "array set twice": array()[:-1] + b"(K\x01K\x02\x85" + U1 + b"\x89U\x02cdtb.",
        "nested lists": b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b".",
        "nested marks": b"\x80\x02" + b"(" * deep + b"t" * deep + b".",
        "nested tuples": b"\x80\x02)" + b"\x85" * deep + b".",
        "nested tuple as key": b"\x80\x02})" + b"\x85" * deep + b"K\x01s.",
        "number as key": b"\x80\x02}K\x01K\x01s.",
        "doubling tuples": b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(100)) + b".",
        "memo bomb": b"\x80\x04}" + b"\x94" * 1_100_000 + b".",
        "memo bomb with long indices": b"\x80\x02}" + long_puts + b".",
        "a million dictionaries": b"\x80\x02" + b"}" * 1_100_000 + b".",
        "a million marks": b"\x80\x02" + b"(" * 1_100_000 + b".",
        "bytes of 2**62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        "bytes of 2**64 - 1": b"\x80\x04\x8e" + b"\xff" * 8 + b".",
        "text of 2**62": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
        "byte array of 2**33": b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b".",
        "text of four gigabytes": b"\x80\x02X\xff\xff\xff\xff.",
        "string of negative length": b"\x80\x02T\xff\xff\xff\xff.",
        "integer of negative length": b"\x80\x02\x8b\xff\xff\xff\xff.",
        "integer of two gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "integer of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
        "frame of 2**62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
        "next buffer": b"\x80\x05\x97.",
        "read-only buffer": b"\x80\x05\x98.",
        "empty": b"",
        "protocol only": b"\x80\x02",
        "protocol 255": b"\x80\xff}.K",
        "no end": b"\x80\x02}",
        "end only": b".",
        "two values": b"\x80\x02}}.",
        "rubbish after the end": b"\x80\x02}.}",
        "open mark": b"\x80\x02(}.",
        "no mark": b"\x80\x02]e.",
        "memo without a value": b"\x80\x02q\x00.",
        "memo never set": b"\x80\x02h\x07.",
        "append to a dictionary": b"\x80\x02}K\x01a.",
        "items of a list": b"\x80\x02](U\x01aK\x01u.",
        "odd number of items": b"\x80\x02}(U\x01au.",
        "pop": b"\x80\x02}}0.",
        "duplicate": b"\x80\x02]2\x86.",
        "unknown instruction": b"\x80\x02\xff.",
        "web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "terminal escapes": call("\x1b[2J", "\x1b]0;owned\x07")["global"],
        "line breaks": call("a\rb", "c\x0bd")["global"],
    }


def test_the_canary_would_sing(tmp_path):
    # The payloads above are live: an ordinary unpickler runs them.
    canary = tmp_path / "canary"
    pickle.loads(hostile(canary)["os.system by global"])
    assert canary.exists()


TRY_ALL = """
import json, sys
from pathlib import Path
from lnlbench.errors import DataError
from lnlbench.formats.pickles import load_plain_pickle

messages = {}
for path in Path(sys.argv[1]).iterdir():
    try:
        load_plain_pickle(path.read_bytes(), "the/file")
    except DataError as error:
        messages[path.name] = str(error)
peak = 0
if sys.platform == "linux":
    # Not ru_maxrss: that one is inherited from the parent process.
    peak = next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([messages, peak]))
"""


def test_hostile_pickles_are_refused_at_little_cost(tmp_path):
    files, empty = tmp_path / "files", tmp_path / "empty"
    files.mkdir()
    empty.mkdir()
    canary = tmp_path / "canary"
    variants = hostile(canary)
    assert len(variants) >= 60
    names = dict(enumerate(variants))
    for number, name in names.items():
        (files / str(number)).write_bytes(variants[name])
    result = subprocess.run(
        [sys.executable, "-c", TRY_ALL, str(files)], capture_output=True, text=True, check=True, cwd=empty
    )
    messages, megabytes = json.loads(result.stdout)
    assert [name for number, name in names.items() if str(number) not in messages] == []
    for message in messages.values():
        assert message.startswith("the/file: not a pickle of plain values and arrays: ")
        assert message.isprintable()
    assert not canary.exists()
    assert list(empty.iterdir()) == []
    assert megabytes < 512


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damaged_pickles_are_read_or_refused(data):
    damaged = bytearray(data.draw(st.sampled_from([PYTHON_2, *(pickle.dumps(np.arange(3), p) for p in (2, 4))])))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    message = refusal(bytes(damaged))
    assert message is None or message.isprintable()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data):
    message = refusal(b"\x80\x02" + data + b".")
    assert message is None or message.isprintable()
