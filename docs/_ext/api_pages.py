"""Pages of the Python API: shows the fields of pydantic models, and fails the build when a public name has no page."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

import lnlbench.api
import lnlbench.blocks
import lnlbench.testing
from lnlbench import hookspecs, records

_LOGGER = logging.getLogger(__name__)
_MODULES = (lnlbench.api, records)
_ONE_SENTENCE = ("attribute", "property")
_ASIDE: dict[str, list[str]] = {}
_ABOUT_PYDANTIC = inspect.getdoc(BaseModel.__init__)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", describe_fields)
    # Napoleon reads the docstrings between these two.
    app.connect("autodoc-process-docstring", set_aside, priority=400)
    app.connect("autodoc-process-docstring", put_back, priority=600)
    app.connect("autodoc-process-signature", hide_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("env-check-consistency", check_completeness)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def public_names() -> Iterator[str]:
    """Yield the full name of everything that plugins and their tests may import, and of every hook."""
    for module in (lnlbench.api, lnlbench.testing):
        yield from (f"{module.__name__}.{name}" for name in module.__all__)
    for info in pkgutil.iter_modules(lnlbench.blocks.__path__, f"{lnlbench.blocks.__name__}."):
        block = importlib.import_module(info.name)
        yield from (
            f"{info.name}.{name}"
            for name, value in vars(block).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == info.name
        )
    yield from (f"{hookspecs.__name__}.{name}" for name in vars(hookspecs) if name.startswith("lnlbench_"))


def check_completeness(_app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that are on no page."""
    documented = env.domains.python_domain.objects
    for name in public_names():
        if name not in documented:
            _LOGGER.warning("%s is public, and on no page of docs/reference", name)


def describe_fields(_app: Sphinx) -> None:
    """Let the descriptions of fields count as their docstrings, which autodoc otherwise finds in the source."""
    for model in {value for module in _MODULES for value in vars(module).values() if _is_model(value)}:
        for owner in model.__mro__[: model.__mro__.index(BaseModel)]:
            analyser = ModuleAnalyzer.for_module(owner.__module__)
            analyser.analyze()
            for name in inspect.get_annotations(owner):
                if field := model.model_fields.get(name):
                    analyser.attr_docs[owner.__qualname__, name] = _description(field)


def _description(field: FieldInfo) -> list[str]:
    lines = [field.description or "", ""]
    if not field.is_required():
        default = field.get_default(call_default_factory=True, validated_data={})
        lines += [f"Default: ``{default!r}``.", ""]
    return lines


def set_aside(_app: Sphinx, what: str, name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Keep docstrings of attributes from napoleon, which takes what is before a colon for a type."""
    if what == "class" and "\n".join(lines).strip() == _ABOUT_PYDANTIC:
        lines.clear()
    if what in _ONE_SENTENCE:
        _ASIDE[name] = list(lines)


def put_back(_app: Sphinx, what: str, name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Undo :func:`set_aside`."""
    if what in _ONE_SENTENCE:
        lines[:] = _ASIDE.pop(name)


def hide_signature(
    _app: Sphinx, what: str, _name: str, obj: Any, _options: Any, _signature: str | None, _returned: str | None
) -> tuple[str, None] | None:
    """Leave out signatures that say nothing: fields are listed anyway, and nobody constructs a protocol."""
    silent = what == "class" and (_is_model(obj) or getattr(obj, "_is_protocol", False))
    return ("", None) if silent else None


def skip_member(_app: Sphinx, _what: str, name: str, _obj: Any, _skip: bool, _options: Any) -> bool | None:
    """Leave out what pydantic adds."""
    return True if name == "model_config" else None


def _is_model(obj: Any) -> bool:
    return isinstance(obj, type) and issubclass(obj, BaseModel)
