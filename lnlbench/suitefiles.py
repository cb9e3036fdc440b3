"""Reading suite files: one TOML file defines a suite and its variants.

The keys are the fields of :class:`lnlbench.contracts.suite.Suite`. A table ``[variants.NAME]`` adds a suite
``<suite>-NAME`` that has everything in common with the first but what the table says: ``title``, and optionally
``facts``, ``tasks`` and ``noise.options``, where options not mentioned stay as they are.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lnlbench.contracts.suite import NoiseSettings, Suite, SuiteTask
from lnlbench.errors import UsageError, suggest

SIZE_LIMIT = 2**20
"""Bytes; no sensible suite comes near, and a mistaken path to a data file is refused at once."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_ModelT = TypeVar("_ModelT", bound=BaseModel)


class _VariantNoise(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    options: dict[str, Any] = Field(default_factory=dict, description="Options that differ.")


class _Variant(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="A line for people.")
    facts: str | None = Field(None, description="Where the definition comes from, if elsewhere.")
    noise: _VariantNoise = Field(default_factory=_VariantNoise, description="The noise, where it differs.")
    tasks: tuple[SuiteTask, ...] | None = Field(None, min_length=1, description="The levels, if they differ.")


def read_suite_file(path: Path) -> tuple[Suite, ...]:
    """Read a suite and its variants.

    Args:
        path: A TOML file.

    Returns:
        The suite, then its variants in the order of the file.

    Raises:
        UsageError: The file cannot be read, is not TOML, or does not describe a suite; one line with file, field and
            what was expected.
    """
    content = _parse(path)
    variants = content.pop("variants", {})
    if not isinstance(variants, dict):
        _refuse(path, "variants", "expected tables [variants.NAME]")
    base = _validate(Suite, content, path, ())
    suites = [base]
    for name, table in variants.items():
        place = ("variants", name)
        variant = _validate(_Variant, table, path, place)
        derived = content | {
            "name": f"{base.name}-{name}",
            "title": variant.title,
            "facts": variant.facts or base.facts,
            "noise": {"generator": base.noise.generator, "options": base.noise.options | variant.noise.options},
            "variant_of": base.name,
        }
        if variant.tasks:
            derived["tasks"] = [task.model_dump() for task in variant.tasks]
        suites.append(_validate(Suite, derived, path, place))
    return tuple(suites)


def _parse(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"cannot read suite file {path}: {error.strerror or error}") from error
    if len(data) > SIZE_LIMIT:
        raise UsageError(f"suite file {path} is larger than {SIZE_LIMIT // 2**20} MiB; is it the right file?")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"suite file {path} is not UTF-8 text (byte {error.start})") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise UsageError(f"suite file {path} is not valid TOML: {_one_line(str(error))}") from error


def _validate(model: type[_ModelT], content: object, path: Path, place: tuple[str, ...]) -> _ModelT:
    # Through JSON, since only there does strict checking take an array for a tuple; and strict it has to be, since
    # `epochs = true` or `rate = "0.2"` is a mistake and not a wish.
    for key, value in content.items() if isinstance(content, dict) else [(None, content)]:
        if not _is_json(value):
            field = _dotted(place if key is None else (*place, key))
            _refuse(path, field, "expected text, finite numbers, true, false, and arrays or tables of these")
    try:
        found = model.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        _refuse_first(model, error, path, place)
    if isinstance(found, Suite):
        _check_values(found, path, place)
    return found


def _is_json(value: object) -> bool:
    # Not JSON are dates, nan and inf; a number of 5,000 digits and a tower of tables make the encoder give up.
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _check_values(suite: Suite, path: Path, place: tuple[str, ...]) -> None:
    # A level is looked up by its number too, so 0.5 beside 0.50 would be one level under two names.
    names = Counter(_as_number(task.name) for task in suite.tasks)
    for task in suite.tasks:
        if names[_as_number(task.name)] > 1:
            _refuse(path, _dotted((*place, "tasks")), f"level {task.name!r} is listed twice; expected different names")
    if not suite.seeds or len(set(suite.seeds)) < len(suite.seeds) or min(suite.seeds) < 0:
        _refuse(path, "seeds", "expected at least one seed, all different, none negative")


def _as_number(name: str) -> float | str:
    try:
        number = float(name)
    except ValueError:
        return name
    return name if math.isnan(number) else number


def _refuse_first(model: type[BaseModel], error: ValidationError, path: Path, place: tuple[str, ...]) -> NoReturn:
    # One mistake at a time: an unknown key first, as it usually explains the missing one.
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    location = first["loc"]
    field = _dotted((*place, *location))
    match first["type"]:
        case "extra_forbidden":
            known = _keys_beside(model, location)
            said = "unknown key" + (suggest(str(location[-1]), known) if known else "")
        case "missing":
            info = model.model_fields.get(str(location[0])) if len(location) == 1 else None
            said = "missing" + (f"; expected: {info.description}" if info else "")
        case "value_error":
            said = first["msg"].removeprefix("Value error, ")
        case _:
            said = first["msg"][:1].lower() + first["msg"][1:]
    others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    _refuse(path, field, said + others)


def _keys_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    match location:
        case (_,):
            return [*model.model_fields, *(["variants"] if model is Suite else [])]
        case ("noise", _):
            return list((NoiseSettings if model is Suite else _VariantNoise).model_fields)
        case ("tasks", _, _):
            return list(SuiteTask.model_fields)
        case _:
            return []


def _dotted(place: tuple[int | str, ...]) -> str:
    parts = [str(part) if isinstance(part, int) or _PLAIN_KEY.fullmatch(part) else json.dumps(part) for part in place]
    return ".".join(parts)


def _refuse(path: Path, field: str, said: str) -> NoReturn:
    raise UsageError(f"suite file {path}: {field + ': ' if field else ''}{_one_line(said)}")


def _one_line(text: str) -> str:
    return " ".join(text.split())
