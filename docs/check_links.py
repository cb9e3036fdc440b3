"""Check the built pages: every link, picture, style and script leads to a file that is there, every anchor exists.

Pages of other hosts are not asked (`tox -e links` does that), but nothing may be *loaded* from one: pages open from the
disk, and tell nobody who reads them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

_LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}
_NAMES = ("alternate", "canonical", "next", "prev", "index", "search", "author", "license")
"""Relations of a ``link`` that loads nothing."""


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each broken link; return 1 if there is any."""
    folders = sys.argv[1:] if arguments is None else arguments
    if len(folders) != 1 or not Path(folders[0]).is_dir():
        print("usage: check_links.py FOLDER-OF-BUILT-PAGES", file=sys.stderr)
        return 2
    root = Path(folders[0]).resolve()
    pages = sorted(root.rglob("*.html"))
    broken = [f"{page.relative_to(root)}: {complaint}" for page in pages for complaint in complaints(page, root)]
    print("\n".join([*broken, f"{len(pages)} pages, {len(broken)} broken links"]))
    return 1 if broken or not pages else 0


def complaints(page: Path, root: Path) -> Iterator[str]:
    """Yield what is wrong with the links of a page."""
    for tag in _parse(page).find_all(["a", *_LOADED]):
        attribute = _LOADED.get(tag.name, "href")
        target = str(tag.get(attribute) or "")
        loaded = tag.name in _LOADED and not set(tag.get("rel") or ()) & set(_NAMES)
        if not target or target.startswith(("mailto:", "data:", "javascript:")):
            continue
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            if loaded:
                yield f"loads {target} from another host"
            continue
        path = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
        if path.is_dir():
            path /= "index.html"
        if not path.is_relative_to(root) or not path.is_file():
            yield f"{target}: no such file"
        elif parts.fragment and path.suffix == ".html" and unquote(parts.fragment) not in _anchors(path):
            yield f"{target}: no such place on that page"


@cache
def _parse(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_bytes(), "html.parser")


@cache
def _anchors(page: Path) -> frozenset[str]:
    soup = _parse(page)
    return frozenset(
        {str(tag["id"]) for tag in soup.find_all(id=True)}
        | {str(a["name"]) for a in soup.find_all("a", attrs={"name": True})}
    )


if __name__ == "__main__":
    sys.exit(main())
