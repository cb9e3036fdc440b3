"""New packages from templates: a method, or a suite, that works as it is and is then made into one's own.

A template is a folder of files ending in ``.tmpl``; ``${name}`` and the like are replaced in names and contents.
"""

from __future__ import annotations

import keyword
import os
import re
import secrets
import shutil
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from string import Template
from typing import Literal

import lnlbench
from lnlbench.errors import UsageError
from lnlbench.files import make_folder, storage_errors, write_bytes
from lnlbench.plugins import Registry
from lnlbench.plugins import check_name as check_entry_name

Kind = Literal["method", "suite"]
_SUFFIX = ".tmpl"
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,48}[a-z0-9])?")
# Names that the templates use already.
_TAKEN = {"Field", "Method", "MethodConfig", "Run", "Task", "TaskInfo", "Tensor"}


def write_package(kind: Kind, name: str, folder: Path | None, registry: Registry) -> tuple[Path, list[str]]:
    """Write a package; all of it appears at once, or nothing does.

    Args:
        kind: What it adds.
        name: Of the method or suite.
        folder: Where to write it, absent or empty; ``lnlbench-<name>`` in the current folder if ``None``.
        registry: What is installed, whose names are taken.

    Returns:
        The folder, and the files in it.

    Raises:
        UsageError: The name is not one, or is taken, or the folder is in use.
        StorageError: The folder cannot be written to.
    """
    _check_name(kind, name, registry)
    folder = folder or Path(f"lnlbench-{name}")
    with storage_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} exists already and is not empty; name another folder with --dir")
        written = _render(kind, name)
        parent = make_folder(folder.absolute().parent)
        draft = parent / f".{folder.name}.{secrets.token_hex(4)}.draft"
        try:
            for path, content in written.items():
                make_folder((draft / path).parent)
                write_bytes(draft / path, content)
            os.replace(draft, folder)  # noqa: PTH105 - Path.replace() says the same
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder, sorted(written)


def _check_name(kind: Kind, name: str, registry: Registry) -> None:
    if not _NAME.fullmatch(name):
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        near = f"; did you mean {slug!r}?" if _NAME.fullmatch(slug) else ""
        raise UsageError(
            f"{name!r} is not a good name for a {kind}: use lower-case letters, digits and '-', "
            f"with a letter first, and no more than 50 of them{near}"
        )
    check_entry_name(name)
    catalogue = registry.methods if kind == "method" else registry.suites
    if name in catalogue:
        raise UsageError(f"there is a {kind} {name!r} already, of {catalogue.find(name).provider}; choose another name")
    for _, provider in registry.providers:
        if provider.distribution == f"lnlbench-{name}":
            raise UsageError(f"there is a package {provider} already; choose another name")


def _render(kind: Kind, name: str) -> dict[str, bytes]:
    module = name.replace("-", "_")
    package = f"lnlbench_{module}"
    cls = "".join(part[:1].upper() + part[1:] for part in name.split("-"))
    values = {
        "name": name,
        "package": package,
        "module": f"{module}_" if keyword.iskeyword(module) else module,
        "cls": f"{cls}Method" if cls in _TAKEN or keyword.iskeyword(cls) else cls,
        "version": lnlbench.__version__,
    }
    rendered = {}
    for path, text in _templates(files(__name__) / kind, PurePosixPath()):
        parts = [package if part == "package" else part for part in path.parts]
        target = Template(str(PurePosixPath(*parts))).substitute(values)
        rendered[target.removesuffix(_SUFFIX)] = Template(text).substitute(values).encode()
    return rendered


def _templates(folder: Traversable, inner: PurePosixPath) -> list[tuple[PurePosixPath, str]]:
    found = []
    for item in folder.iterdir():
        if item.is_dir():
            found += _templates(item, inner / item.name)
        elif item.name.endswith(_SUFFIX):
            found.append((inner / item.name, item.read_text(encoding="utf-8")))
    return found
