"""Reading the pickles that published datasets consist of, without an unpickler.

A pickle is a program for a stack machine whose instructions can call anything. Here the standard library's tokenizer
(:mod:`pickletools`, which never executes) splits it into instructions, and a machine that knows only those instructions
that build numbers, strings, lists, tuples and dictionaries carries them out. It has no instruction that imports or
calls. The few names that a pickled array mentions are recognised as *words*, and the array is made from its checked
shape, dtype and bytes by ``numpy.frombuffer``: NumPy's own reconstruction, which malformed input can crash, never sees
foreign data.
"""

from __future__ import annotations

import enum
import math
import pickletools
from collections.abc import Callable, Iterator
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


def load_plain_pickle(data: bytes, source: str) -> object:
    """Read a pickle of plain values and numeric NumPy arrays; nothing in it is executed.

    Byte strings of Python 2 become ``str``, character by byte (Latin-1); keys of dictionaries become ``str`` in any
    case. Pickle protocols 2 to 4 are understood, as far as such values need them. Arrays share memory with the input
    where possible and are read-only.

    Args:
        data: The complete file.
        source: How error messages name it.

    Returns:
        Nested ``dict``, ``list``, ``tuple``, ``str``, ``bytes``, ``int``, ``float``, ``bool``, ``None``, ``ndarray``.

    Raises:
        DataError: It is damaged, or has anything but plain values in it.
    """
    try:
        return _Machine().run(data)
    # The tokenizer reports damage as ValueError, UnicodeDecodeError, OverflowError and others; none may escape.
    except Exception as error:
        text = "an instruction lacks its operand" if isinstance(error, LookupError) else reason(error)
        raise DataError(f"{source}: not a pickle of plain values and arrays: {text}; fetch the file again") from error


class _Machine:
    """Carries out the harmless instructions of one pickle."""

    def __init__(self) -> None:
        self._size = 0
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        # A dictionary, since a list would have to be as long as the largest index that a hostile file mentions.
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> object:
        self._size = len(data)
        instructions: Iterator[tuple[pickletools.OpcodeInfo, Any, Any]] = pickletools.genops(data)
        for number, (opcode, argument, position) in enumerate(instructions):
            if number >= _MOST_INSTRUCTIONS:
                raise _RefusedError(f"more than {_MOST_INSTRUCTIONS:,} instructions")
            name = opcode.name
            # The first two make up nearly all of a file.
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _PUTS:
                self._memo[argument] = self._stack[-1]
            elif name in _INSTRUCTIONS:
                _INSTRUCTIONS[name](self, argument)
            elif name == "STOP":
                rest = len(data) - 1 - position
                if rest:
                    raise _RefusedError(f"{rest:,} bytes after its end")
                return self._result()
            elif name not in _IGNORED:
                raise _RefusedError(f"instruction {name} at byte {position} is not allowed")
        raise _RefusedError("it has no end")  # pragma: no cover - the tokenizer itself insists on the end

    def _result(self) -> object:
        value = self._stack.pop()
        if self._stack or self._outer:
            raise _RefusedError("values are left over at its end")
        # Level by level and each container once: nesting or sharing in the input costs neither stack nor time.
        level: list[Any] = [value]
        seen: set[int] = set()
        for _ in range(_DEEPEST + 1):
            strange = set(map(type, level)) - _PLAIN
            if strange:
                raise _RefusedError("an array in it was begun but not finished, or a name stands where a value should")
            fresh = {id(each): each for each in level if type(each) in _CONTAINERS and id(each) not in seen}
            if not fresh:
                return value
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

    def _frame(self, length: int) -> None:
        if length > self._size:
            raise _RefusedError(f"it announces {length:,} bytes")

    def _mark(self, _: Any) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._outer.pop()
        return items

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        value = self._memo[index]
        # The memo remembers an array as it was announced; whoever asks for it later means the finished one.
        if isinstance(value, _Array) and value.value is not None:
            value = value.value
        self._push(value)

    def _tuple_since_mark(self, _: Any) -> None:
        items = tuple(self._since_mark())
        self._push(items)

    def _append(self, _: Any) -> None:
        self._extend(self._take(1))

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise _RefusedError("it appends to something that is not a list")
        target.extend(items)

    def _setitem(self, _: Any) -> None:
        self._update(self._take(2))

    def _setitems(self, _: Any) -> None:
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

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._word(module, name)

    def _stack_global(self, _: Any) -> None:
        module, name = self._take(2)
        self._word(module, name)

    def _word(self, module: Any, name: Any) -> None:
        word = _WORDS.get((module, name)) if type(module) is str and type(name) is str else None
        if word is None:
            raise _RefusedError(f"it asks for {f'{module}.{name}'[:80]!r}, which may run code")
        self._push(word)

    def _reduce(self, _: Any) -> None:
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

    def _build(self, _: Any) -> None:
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
    if type(content) is not bytes:
        raise _RefusedError("the content of an array is not bytes")
    if len(shape) > _MOST_DIMENSIONS or any(type(length) is not int or length < 0 for length in shape):
        raise _RefusedError("an array has an impossible shape")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise _RefusedError(f"an array of {len(content):,} bytes does not have the size of its shape")
    if not content:
        return np.zeros(shape, dtype)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _push_new(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine._push(make())


def _push_tuple(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine._push(tuple(machine._take(count)))


def _names(*names: str) -> frozenset[str]:
    assert set(names) <= {opcode.name for opcode in pickletools.opcodes}  # noqa: S101 - a spelling check at import, not a check of input
    return frozenset(names)


_LITERALS = _names(
    "BININT1", "SHORT_BINSTRING", "BININT", "BININT2", "LONG1", "BINFLOAT", "BINSTRING",
    "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
)  # fmt: skip
_PUTS = _names("BINPUT", "LONG_BINPUT")
_IGNORED = _names("PROTO")
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "FRAME": _Machine._frame,
    "NONE": _push_new(lambda: None),
    "NEWTRUE": _push_new(lambda: True),
    "NEWFALSE": _push_new(lambda: False),
    "EMPTY_LIST": _push_new(list),
    "EMPTY_DICT": _push_new(dict),
    "EMPTY_TUPLE": _push_new(tuple),
    "TUPLE1": _push_tuple(1),
    "TUPLE2": _push_tuple(2),
    "TUPLE3": _push_tuple(3),
    "TUPLE": _Machine._tuple_since_mark,
    "MARK": _Machine._mark,
    "MEMOIZE": _Machine._memoize,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "SETITEM": _Machine._setitem,
    "SETITEMS": _Machine._setitems,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
}
