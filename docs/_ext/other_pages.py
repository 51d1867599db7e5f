"""The front page takes in pages that it does not name, and links out of the folder lead where they can."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from sphinx.application import Sphinx

#: What stands for a file beside this folder, when a page links to it as it does on a code host.
INSIDE = {
    "README.md#what-it-cannot-know": "limits.md",
    "README.md": "index.md",
    "CHANGES.md": "changes.md",
}
LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+)([^)\s]+)\)")


def name_other_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put pages of the top folder that the front page does not name in the place of ``OTHER-PAGES``."""
    if docname != "index":
        return
    pages = {page for page in app.env.found_docs if page != "index"}
    named = set(re.findall(r"^([\w/*-]+)$", source[0], re.MULTILINE))
    matched = {name: set(fnmatch.filter(pages, name)) for name in named}
    for name, found in matched.items():
        if "*" in name and not found:  # a place kept for a page that is not there yet
            source[0] = source[0].replace(f"\n{name}\n", "\n")
    rest = sorted(page for page in pages.difference(*matched.values()) if "/" not in page)
    source[0] = source[0].replace("OTHER-PAGES", "\n".join(rest))


def lead_links(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn links to files outside of this folder into links to their page, or into the file's name."""
    here = Path(app.env.doc2path(docname)).parent
    top = Path(app.srcdir)

    def lead(match: re.Match[str]) -> str:
        text, up, target = match.groups()
        place = (here / up / target.partition("#")[0]).resolve()
        if place.is_relative_to(top):
            return match.group()
        name = "".join(target.partition("#")) if target in INSIDE else target.partition("#")[0]
        page = INSIDE.get(name)
        if page is None:
            return f"{text} (`{place.relative_to(top.parent)}`)" if text != f"`{target}`" else text
        return f"[{text}]({'../' * len(Path(docname).parent.parts)}{page})"

    source[0] = LINK.sub(lead, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook into the reading of sources."""
    app.connect("source-read", name_other_pages)
    app.connect("source-read", lead_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
