"""Jinja templates into HTML: every value is escaped, and a misspelt one is an error."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).parent
"""Where templates and static files are."""


def render(template: str, path: str, **context: object) -> str:
    """Render a page.

    Args:
        template: File name of the template.
        path: Address of the page from the root of the site, with ``/`` between parts.
        **context: What the template is about. ``root`` is added: the way from the page to the root, ``../`` or so.
    """
    return _environment().get_template(template).render(root="../" * path.count("/"), **context)


def fixed(value: float | None, places: int = 2) -> str:
    """Write a number with a fixed count of decimals; blank if it is missing."""
    return "" if value is None else f"{value:.{places}f}"


def counted(count: int, noun: str) -> str:
    """Write a count with its noun: ``1 run``, ``3 runs``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def web(address: str) -> str:
    """Return an address of the web as it is, and nothing for any other, such as ``javascript:``."""
    return address if address.startswith(("https://", "http://")) else ""


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    made.filters |= {"fixed": fixed, "counted": counted, "web": web}
    return made
