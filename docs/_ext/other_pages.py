"""Pages that the front page does not name, pages from outside this folder, and links between them.

In the repository, pages link to files beside this folder, and to folders. Here these links become links to
pages, or plain names.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from sphinx.application import Sphinx

#: Pages with the text of a file beside this folder.
OUTER = {"changes": "CHANGES.md", "contributing": "CONTRIBUTING.md"}
#: The page to link to instead of a file beside this folder.
INSIDE = {
    "README.md#what-it-cannot-know": "limits.md",
    "README.md": "index.md",
    **{file: f"{page}.md" for page, file in OUTER.items()},
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def name_other_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace ``OTHER-PAGES`` by the pages of the top folder that the front page does not name."""
    if docname != "index":
        return
    pages = {page for page in app.env.found_docs if page != "index"}
    named = set(re.findall(r"^([\w/*-]+)$", source[0], re.MULTILINE))
    matched = {name: set(fnmatch.filter(pages, name)) for name in named}
    for name, found in matched.items():
        if "*" in name and not found:  # no such page yet
            source[0] = source[0].replace(f"\n{name}\n", "\n")
    rest = sorted(page for page in pages.difference(*matched.values()) if "/" not in page)
    source[0] = source[0].replace("OTHER-PAGES", "\n".join(rest))


def take_outer_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fill a page with the text of a file beside this folder."""
    if docname in OUTER:
        text = (Path(app.srcdir).parent / OUTER[docname]).read_text(encoding="utf-8")
        source[0] = LINK.sub(lambda link: link[0].replace("](", "](../"), text).replace("](../docs/", "](")


def lead_links(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links to folders, and to files outside of this folder, into links to pages, or into names."""
    top = Path(app.srcdir)
    here = Path(app.env.doc2path(docname)).parent

    def lead(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        place = (here / target).resolve()
        if place.is_dir() and (place / "index.md").exists():
            return f"[{text}]({target.rstrip('/')}/index.md)"
        if place.is_relative_to(top) and place.is_file():
            return match[0]
        name = place.relative_to(top.parent).as_posix() if place.is_relative_to(top.parent) else target
        page = INSIDE.get(name + anchor) or INSIDE.get(name)
        if page is not None:
            return f"[{text}]({'../' * (len(Path(docname).parts) - 1)}{page})"
        if place.exists():
            return text if text.strip("`") == name else f"{text} (`{name}`)"
        return match[0]  # Sphinx reports that it is missing

    source[0] = LINK.sub(lead, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx, for the reading of pages."""
    app.connect("source-read", name_other_pages)
    app.connect("source-read", take_outer_pages)
    app.connect("source-read", lead_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
