"""Trees of classes, one TOML file each: every class and every group names its parent, and the root has none."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lnlbench.api import UsageError

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Taxonomy:
    """A tree that classes are the leaves of."""

    name: str
    """For people: the dataset it comes with, or its file."""
    parents: Mapping[str, str]
    """The parent of every class and group but the root."""

    def lines(self, class_names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return each class with all its ancestors, the root last.

        Raises:
            UsageError: A class is not in the tree.
        """
        missing = [name for name in class_names if name not in self.parents]
        if missing:
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise UsageError(f"taxonomy {self.name}: class {missing[0]!r}{others} has no parent; name one")
        return [_line(self.parents, name) for name in class_names]


def taxonomy_of(dataset: str) -> Taxonomy | None:
    """Return the tree that comes with a dataset, if there is one."""
    path = _HERE / f"{dataset}.toml"
    return Taxonomy(dataset, read_taxonomy(path).parents) if path.is_file() else None


def read_taxonomy(path: Path) -> Taxonomy:
    """Read a tree from a TOML file of lines ``class = "parent"``.

    Raises:
        UsageError: The file cannot be read, is not TOML, or does not hold one tree; one line says why.
    """
    try:
        parents = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read taxonomy {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # neither text nor TOML
        raise UsageError(f"taxonomy {path} is not valid TOML: {' '.join(str(error).split())}") from error
    for name, parent in parents.items():
        if not isinstance(parent, str):
            raise UsageError(f"taxonomy {path}: {name!r}: expected the name of its parent in quotes")
    for name in parents:
        line = _line(parents, name)
        if line[-1] in parents:
            circle = " -> ".join((*line, parents[line[-1]]))
            raise UsageError(f"taxonomy {path}: the parents of {name!r} go in a circle: {circle}")
    roots = sorted({_line(parents, name)[-1] for name in parents})
    if len(roots) > 1:
        raise UsageError(f"taxonomy {path} has {len(roots)} roots, {', '.join(map(repr, roots))}; give them one parent")
    return Taxonomy(str(path), parents)


def _line(parents: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Follow parents to the root, or once around a circle."""
    line = [name]
    while (above := parents.get(line[-1])) is not None and above not in line:
        line.append(above)
    return tuple(line)
