"""Turning what a low-level reader says about damaged input into a piece of a one-line message."""

from __future__ import annotations

_LONGEST = 160


def reason(error: BaseException | str) -> str:
    r"""Describe a failure in one short printable line.

    The text may quote bytes of a hostile file, so control characters (line breaks, terminal escapes) are escaped.

    >>> reason(ValueError("bad name 'a\x1b[2J'\nmore"))
    "bad name 'a\\x1b[2J' more"
    """
    text = str(error) or type(error).__name__
    text = " ".join(text.split())
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
