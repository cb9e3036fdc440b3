"""Every error a user can meet, each with the exit code of the command line.

A message is one line: what is wrong, where, and what to do. The command line prints it without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LnlbenchError(Exception):
    """Base of all expected errors; ``exit_code`` is what the command line returns."""

    exit_code = 1


class UsageError(LnlbenchError):
    """The request itself is wrong: an unknown name, a bad option, a value out of range."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that nothing is registered under; the message carries the nearest known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.known = sorted(known)
        super().__init__(f"unknown {kind} {name!r}{suggest(name, self.known)}")


class DataError(LnlbenchError):
    """A data file is missing, damaged, or not what it claims to be."""


class StorageError(LnlbenchError):
    """Writing failed: full disk, read-only folder, I/O error. The previous file is intact."""


class PluginError(LnlbenchError):
    """A plugin could not be loaded or broke its contract; the message names it and its version."""


class CellBusyError(LnlbenchError):
    """Another process owns the folder of this cell."""


class DivergedError(LnlbenchError):
    """A loss, logit, mixture input or metric stopped being finite."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean ...?"`` for near misses, else the list of what is known.

    >>> suggest("dividemx", ["ce", "dividemix"])
    "; did you mean 'dividemix'?"
    >>> suggest("zzz", ["ce", "dividemix"])
    '; known: ce, dividemix'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(repr(each) for each in close)}?"
    return f"; known: {', '.join(names)}" if names else "; none is registered"
