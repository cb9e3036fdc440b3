"""Reading the pickles that published datasets consist of, without an unpickler.

A pickle is a program for a stack machine whose instructions can call anything. The machine here knows only those
instructions that build numbers, strings, lists, tuples and dictionaries. It has no instruction that imports or calls.
The few names that a pickled array mentions are recognised as *words*, and the array is made from its checked shape,
dtype and bytes by ``numpy.frombuffer``: NumPy's own reconstruction, which malformed input can crash, never sees foreign
data.
"""

from __future__ import annotations

import enum
import math
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lnlbench.errors import DataError
from lnlbench.formats.messages import reason

# An instruction takes one byte in the file but up to some hundred in memory; CIFAR-100 has 200,000 of them.
_MOST_INSTRUCTIONS = 1_000_000
_DEEPEST = 8
_MOST_DIMENSIONS = 8
_LONGEST_NAME = 256
_UINT4 = struct.Struct("<I").unpack_from

_DTYPES = {
    f"{kind}{size}" for kind, sizes in (("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)), ("f", (2, 4, 8))) for size in sizes
}


class _RefusedError(Exception):
    """Internal: the pickle is not one of plain values."""


class _Word(enum.Enum):
    """A name that pickled arrays mention; it stands for itself and can do nothing."""

    RECONSTRUCT = "_reconstruct"
    NDARRAY = "ndarray"
    DTYPE = "dtype"
    ENCODE = "encode"


# NumPy 2 renamed numpy.core; Python 3 writes bytes into old protocols as _codecs.encode(text, "latin1").
_WORDS = {
    ("numpy.core.multiarray", "_reconstruct"): _Word.RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _Word.RECONSTRUCT,
    ("numpy", "ndarray"): _Word.NDARRAY,
    ("numpy", "dtype"): _Word.DTYPE,
    ("_codecs", "encode"): _Word.ENCODE,
}


@dataclass(eq=False)
class _Dtype:
    """A dtype under construction: named first, given its byte order by a later instruction."""

    name: str
    dtype: np.dtype[Any] | None = None


@dataclass(eq=False)
class _Array:
    """An array under construction: announced first, filled by a later instruction."""

    value: NDArray[Any] | None = None


_CONTAINERS = (dict, list, tuple)
_PLAIN = {str, bytes, int, float, bool, type(None), np.ndarray, *_CONTAINERS}


def load_plain_pickle(data: bytes | memoryview, source: str) -> object:
    """Read a pickle of plain values and numeric NumPy arrays; nothing in it is executed.

    Byte strings of Python 2 become ``str``, character by byte (Latin-1); keys of dictionaries become ``str`` in any
    case. Pickle protocols 2 to 4 are understood, as far as such values need them. Arrays share memory with the input
    where possible and are read-only.

    Args:
        data: The complete file, as bytes that nobody changes.
        source: How error messages name it.

    Returns:
        Nested ``dict``, ``list``, ``tuple``, ``str``, ``bytes``, ``int``, ``float``, ``bool``, ``None``, ``ndarray``.

    Raises:
        DataError: It is damaged, or has anything but plain values in it.
    """
    try:
        return _Machine(memoryview(data).toreadonly()).run()
    # Damage shows as IndexError, KeyError, UnicodeDecodeError, TypeError and others; none may escape.
    except Exception as error:
        text = "an instruction lacks its operand" if isinstance(error, LookupError) else reason(error)
        raise DataError(f"{source}: not a pickle of plain values and arrays: {text}; fetch the file again") from error


class _Machine:
    """Carries out the harmless instructions of one pickle."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        # A dictionary, since a list would have to be as long as the largest index that a hostile file mentions.
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        data, memo, stack, at = self._data, self._memo, self._stack, 0
        for _ in range(_MOST_INSTRUCTIONS):
            code = data[at]
            # These four make up nearly all of a file, so they are done in place. Whatever reaches beyond the end of
            # the data fails at the next instruction: there is none.
            if code == _BININT1:
                stack.append(data[at + 1])
                at += 2
            elif code == _SHORT_BINSTRING:
                end = at + 2 + data[at + 1]
                stack.append(str(data[at + 2 : end], "latin-1"))
                at = end
            elif code == _BINPUT:
                memo[data[at + 1]] = stack[-1]
                at += 2
            elif code == _LONG_BINPUT:
                memo[_UINT4(data, at + 1)[0]] = stack[-1]
                at += 5
            elif code in _INSTRUCTIONS:
                self._at = at + 1
                _INSTRUCTIONS[code](self)
                stack, at = self._stack, self._at
            elif code == _STOP:
                rest = len(data) - 1 - at
                if rest:
                    raise _RefusedError(f"{rest:,} bytes after its end")
                return self._result()
            else:
                name = _NAMES.get(code, f"0x{code:02x}")
                raise _RefusedError(f"instruction {name} at byte {at} is not allowed")
        raise _RefusedError(f"more than {_MOST_INSTRUCTIONS:,} instructions")

    def _result(self) -> object:
        value = self._stack.pop()
        if self._stack or self._outer:
            raise _RefusedError("values are left over at its end")
        # Level by level and each container once: nesting or sharing in the input costs neither stack nor time.
        level: list[Any] = [value]
        seen: set[int] = set()
        for _ in range(_DEEPEST + 1):
            kinds = set(map(type, level))
            if kinds - _PLAIN:
                raise _RefusedError("an array in it was begun but not finished, or a name stands where a value should")
            if kinds.isdisjoint(_CONTAINERS):
                return value
            fresh = {id(each): each for each in level if type(each) in _CONTAINERS and id(each) not in seen}
            seen.update(fresh)
            level = [item for each in fresh.values() for item in (each.values() if type(each) is dict else each)]
        raise _RefusedError(f"nested more than {_DEEPEST} levels deep")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _take(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError(count)
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _operand(self, length: int) -> memoryview:
        """Read so many bytes; negative lengths, which old protocols can express, are refused with all others."""
        start, self._at = self._at, self._at + length
        if not start <= self._at <= len(self._data):
            raise _RefusedError(f"{length:,} bytes are announced and {len(self._data) - start:,} are left")
        return self._data[start : self._at]

    def _number(self, length: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._operand(length), "little", signed=signed)

    def _line(self) -> str:
        line, end, _ = bytes(self._data[self._at : self._at + _LONGEST_NAME]).partition(b"\n")
        if not end:
            raise _RefusedError("a name in it has no end")
        self._at += len(line) + 1
        return line.decode("ascii")

    def _protocol(self) -> None:
        self._number(1)

    def _frame(self) -> None:
        length = self._number(8)
        if length > len(self._data) - self._at:
            raise _RefusedError(f"it announces {length:,} bytes")

    def _float(self) -> None:
        self._stack += struct.unpack(">d", self._operand(8))

    def _binstring(self) -> None:
        content = self._operand(self._number(4, signed=True))
        self._push(content if self._fills_array() else str(content, "latin-1"))

    def _binbytes(self) -> None:
        content = self._operand(self._number(4))
        self._push(content if self._fills_array() else bytes(content))

    def _fills_array(self) -> bool:
        """Whether the values since the last mark are the state of an array, which needs no copy of its content."""
        return bool(self._outer and self._outer[-1]) and type(self._outer[-1][-1]) is _Array

    def _mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._outer.pop()
        return items

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        value = self._memo[index]
        # The memo remembers an array as it was announced; whoever asks for it later means the finished one.
        if isinstance(value, _Array) and value.value is not None:
            value = value.value
        self._push(value)

    def _tuple_since_mark(self) -> None:
        items = tuple(self._since_mark())
        self._push(items)

    def _append(self) -> None:
        self._extend(self._take(1))

    def _appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise _RefusedError("it appends to something that is not a list")
        target.extend(items)

    def _setitem(self) -> None:
        self._update(self._take(2))

    def _setitems(self) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise _RefusedError("it sets items of something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is bytes:
                key = key.decode("latin-1")
            # Only strings: hashing a deeply nested tuple overflows the C stack, and integers can be made to collide.
            if type(key) is not str:
                raise _RefusedError("a dictionary key in it is not a string")
            target[key] = value

    def _global(self) -> None:
        module, name = self._line(), self._line()
        self._word(module, name)

    def _stack_global(self) -> None:
        module, name = self._take(2)
        self._word(module, name)

    def _word(self, module: Any, name: Any) -> None:
        word = _WORDS.get((module, name)) if type(module) is str and type(name) is str else None
        if word is None:
            raise _RefusedError(f"it asks for {f'{module}.{name}'[:80]!r}, which may run code")
        self._push(word)

    def _reduce(self) -> None:
        word, arguments = self._take(2)
        match word, arguments:
            case _Word.RECONSTRUCT, (_Word.NDARRAY, tuple(), str() | bytes()):
                self._push(_Array())
            case (_Word.DTYPE, (str(name), _, _)) | (_Word.DTYPE, (str(name),)):
                if name not in _DTYPES:
                    raise _RefusedError(f"arrays of dtype {name[:20]!r} are not allowed")
                self._push(_Dtype(name))
            case _Word.ENCODE, (str(text), "latin1" | "latin-1"):
                self._push(text.encode("latin-1"))
            case _:
                raise _RefusedError("it makes a call that no array needs")

    def _build(self) -> None:
        (state,) = self._take(1)
        target = self._stack[-1]
        match target, state:
            case _Dtype(dtype=None), (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_):
                target.dtype = np.dtype(order + target.name)
            case _Array(value=None), (int(), tuple(shape), _Dtype(dtype=np.dtype() as dtype), bool(fortran), raw):
                self._stack[-1] = target.value = _array(shape, dtype, raw, fortran)
            case _:
                raise _RefusedError("it sets a state that no numeric array has")


def _array(shape: tuple[Any, ...], dtype: np.dtype[Any], raw: Any, fortran: bool) -> NDArray[Any]:
    content = raw.encode("latin-1") if type(raw) is str else raw
    if type(content) not in (bytes, memoryview):
        raise _RefusedError("the content of an array is not bytes")
    if len(shape) > _MOST_DIMENSIONS or any(type(length) is not int or length < 0 for length in shape):
        raise _RefusedError("an array has an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise _RefusedError(f"an array of {len(content):,} bytes does not have the size of its shape")
    if not content:
        return np.zeros(shape, dtype)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _push_new(make: Callable[[], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine._push(make())


def _push_tuple(count: int) -> Callable[[_Machine], None]:
    return lambda machine: machine._push(tuple(machine._take(count)))


def _push_integer(length: int, *, signed: bool = False) -> Callable[[_Machine], None]:
    return lambda machine: machine._push(machine._number(length, signed=signed))


def _push_text(length: int) -> Callable[[_Machine], None]:
    """UTF-8 after its length; surrogates, which ``str`` allows and UTF-8 does not, are written as if it did."""
    return lambda machine: machine._push(str(machine._operand(machine._number(length)), "utf-8", "surrogatepass"))


_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_CODES = {name: code for code, name in _NAMES.items()}
_BININT1, _SHORT_BINSTRING = _CODES["BININT1"], _CODES["SHORT_BINSTRING"]
_BINPUT, _LONG_BINPUT, _STOP = _CODES["BINPUT"], _CODES["LONG_BINPUT"], _CODES["STOP"]
_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    _CODES[name]: instruction
    for name, instruction in {
        "PROTO": _Machine._protocol,
        "FRAME": _Machine._frame,
        "NONE": _push_new(lambda: None),
        "NEWTRUE": _push_new(lambda: True),
        "NEWFALSE": _push_new(lambda: False),
        "EMPTY_LIST": _push_new(list),
        "EMPTY_DICT": _push_new(dict),
        "EMPTY_TUPLE": _push_new(tuple),
        "BININT2": _push_integer(2),
        "BININT": _push_integer(4, signed=True),
        "LONG1": lambda machine: machine._push(machine._number(machine._number(1), signed=True)),
        "BINFLOAT": _Machine._float,
        "BINSTRING": _Machine._binstring,
        "BINBYTES": _Machine._binbytes,
        "SHORT_BINBYTES": lambda machine: machine._push(bytes(machine._operand(machine._number(1)))),
        "BINUNICODE": _push_text(4),
        "SHORT_BINUNICODE": _push_text(1),
        "TUPLE1": _push_tuple(1),
        "TUPLE2": _push_tuple(2),
        "TUPLE3": _push_tuple(3),
        "TUPLE": _Machine._tuple_since_mark,
        "MARK": _Machine._mark,
        "MEMOIZE": _Machine._memoize,
        "BINGET": lambda machine: machine._get(machine._number(1)),
        "LONG_BINGET": lambda machine: machine._get(machine._number(4)),
        "APPEND": _Machine._append,
        "APPENDS": _Machine._appends,
        "SETITEM": _Machine._setitem,
        "SETITEMS": _Machine._setitems,
        "GLOBAL": _Machine._global,
        "STACK_GLOBAL": _Machine._stack_global,
        "REDUCE": _Machine._reduce,
        "BUILD": _Machine._build,
    }.items()
}
