"""Types in the words of those who write TOML, CSV or options."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_PLAIN = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    Any: "anything",
    types.NoneType: "nothing",
}
_SEVERAL = {
    "text": "texts",
    "whole number": "whole numbers",
    "number": "numbers",
    "true or false": "true or false",
    "table": "tables",
}


def of_field(field: FieldInfo) -> str:
    """Write the type of a field with its bounds: ``whole number, at least 1``."""
    bounds = [words for each in field.metadata if (words := _bound(each))]
    return ", ".join([of(field.annotation), *bounds])


def may_be_absent(field: FieldInfo) -> bool:
    """Return whether a field may be ``null``."""
    return types.NoneType in typing.get_args(field.annotation)


def of(annotation: Any) -> str:
    """Write a type for people.

    >>> of(float | None), of(tuple[str, ...]), of(dict[str, int])
    ('number', 'list of texts', 'table of whole numbers')
    >>> of(typing.Literal["a", "b"]), of(tuple[float, float])
    ('`"a"` or `"b"`', 'list of 2 numbers')
    >>> of(list[typing.Literal["a", "b"]])
    'list of words: `"a"`, `"b"`'
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is typing.Annotated:
        return of(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f'`"{each}"`' for each in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(of(each) for each in arguments if each is not types.NoneType))
    if origin in (list, tuple):
        count = "" if origin is list or Ellipsis in arguments else f"{len(arguments)} "
        return f"list of {count}{_several(of(arguments[0]))}"
    if origin is dict:
        return "table" if arguments[1] is Any else f"table of {_several(of(arguments[1]))}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    raise TypeError(f"no words for {annotation}")


def _several(words: str) -> str:
    if words.startswith("`"):
        return f"words: {words.replace(' or ', ', ')}"
    return _SEVERAL.get(words, words.replace("list of", "lists of", 1))


def _bound(constraint: object) -> str:
    match constraint:
        case annotated_types.Ge(ge=least):
            return f"at least {least:g}"
        case annotated_types.Gt(gt=least):
            return f"more than {least:g}"
        case annotated_types.Le(le=most):
            return f"at most {most:g}"
        case annotated_types.Lt(lt=most):
            return f"less than {most:g}"
        case annotated_types.MinLen(min_length=least):
            return f"at least {least} of them"
        case annotated_types.MaxLen(max_length=most):
            return f"at most {most} of them"
        case _:
            return ""
