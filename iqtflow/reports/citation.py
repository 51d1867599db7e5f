"""``logs/CITATION.md`` and ``.bib``: what was done to the data, by which versions, and whom to cite.

A run may be split over many jobs, at the same time or not, and over modes. Each writes its paragraphs under
names made of their content, so that jobs of one method write the same files; then each renders all that is
there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from iqtflow.utils.files import read_text, write_text

PARAGRAPHS = Path("logs", "citation")
CITATION = Path("logs", "CITATION.md")

_PREAMBLE = """\
# What was done to these data

The text below was written by iqtflow, to be copied into manuscripts unchanged; it is in the public domain
([CC0](https://creativecommons.org/publicdomain/zero/1.0/)). `CITATION.bib` beside it has the references.
"""


@dataclass(frozen=True)
class Paragraph:
    """One step of the method.

    Attributes
    ----------
    order
        Place in the text.
    heading
        Heading above it; paragraphs in a row with the same one share it.
    text
        Sentences in Markdown.
    references
        Keys of `boilerplate.bib`.
    """

    order: int
    heading: str
    text: str
    references: tuple[str, ...] = ()


def write_citation(output_dir: str | os.PathLike, paragraphs: Iterable[Paragraph]) -> Path:
    """Add paragraphs to those of a folder of derivatives, and write its citation anew.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    paragraphs
        What this run does. Which subjects, and when, is no part of it.

    Returns
    -------
    Path
        ``logs/CITATION.md``.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    folder = Path(output_dir, PARAGRAPHS)
    for paragraph in paragraphs:
        content = json.dumps(asdict(paragraph), indent=2, ensure_ascii=False) + "\n"
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        path = folder / f"{paragraph.order:02d}_{digest}.json"
        if not path.is_file() or path.read_bytes() != content.encode():
            write_text(path, content)
    citation = Path(output_dir, CITATION)
    while True:
        names = _names(folder)
        # What no run has written, or only half, is left out: this run's own paragraphs are whole.
        known = [one for name in names if (one := _read(folder / name)) is not None]
        write_text(citation, render_citation(known))
        write_text(citation.with_suffix(".bib"), render_bibliography(known))
        # Whichever job writes last looks again afterwards: no other's paragraph is lost.
        if _names(folder) == names:
            return citation


def render_citation(paragraphs: Sequence[Paragraph]) -> str:
    """Return the Markdown of paragraphs, with the references in full at its end."""
    lines, heading = [_PREAMBLE], ""
    for paragraph in sorted(paragraphs, key=lambda one: (one.order, one.heading, one.text)):
        if paragraph.heading != heading:
            heading = paragraph.heading
            lines.append(f"## {heading}\n")
        lines.append(f"{paragraph.text}\n")
    lines.append("## References\n")
    lines += [f"* {_in_words(entry)}" for entry in _entries(paragraphs).values()]
    return "\n".join(lines) + "\n"


def render_bibliography(paragraphs: Sequence[Paragraph]) -> str:
    """Return the BibTeX entries that paragraphs refer to."""
    return "\n".join(_entries(paragraphs).values())


def bibliography() -> dict[str, str]:
    """Return all BibTeX entries by key."""
    text = Path(__file__).with_name("boilerplate.bib").read_text(encoding="utf-8")
    found = {}
    for entry in re.split(r"\n(?=@)", text.strip()):
        key = re.match(r"@\w+\{([^,]+),", entry)
        if key:
            found[key.group(1)] = entry.strip() + "\n"
    return found


def _entries(paragraphs: Sequence[Paragraph]) -> dict[str, str]:
    wanted = {key for paragraph in paragraphs for key in paragraph.references}
    return {key: entry for key, entry in sorted(bibliography().items()) if key in wanted}


def _in_words(entry: str) -> str:
    """One line of a list of references, from a BibTeX entry."""
    fields = {
        key: re.sub(r"[{}]", "", value) for key, value in re.findall(r"^  (\w+) = \{(.*)\}", entry, re.M)
    }
    names = fields["author"].split(" and ")
    authors = "; ".join(names[:3]) + (" et al." if len(names) > 3 or names[-1] == "others" else "")
    authors = authors.replace("; others", "")
    where = ", ".join(
        filter(
            None,
            [fields.get("journal") or fields.get("booktitle"), fields.get("volume"), fields.get("pages")],
        )
    ).replace("--", "-")
    doi = f" https://doi.org/{fields['doi']}" if "doi" in fields else ""
    return f"{authors} ({fields['year']}). {fields['title']}. {where}.{doi}"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[0-9]*.json"))


def _read(path: Path) -> Paragraph | None:
    try:
        fields = json.loads(read_text(path))
        one = Paragraph(**{**fields, "references": tuple(fields["references"])})
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    texts = (one.heading, one.text, *one.references)
    return one if isinstance(one.order, int) and all(isinstance(text, str) for text in texts) else None
