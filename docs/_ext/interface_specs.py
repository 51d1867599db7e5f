"""Adds inputs and outputs of nipype interfaces and workflows, and settings, to their pages."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

from nipype.interfaces.base import BaseInterface, CommandLineInputSpec, TraitedSpec, isdefined
from sphinx.application import Sphinx

#: Inputs from nipype itself, the same for every interface.
COMMON = {*CommandLineInputSpec().copyable_trait_names(), "num_threads"}
#: Sections of a workflow's docstring that numpydoc would drop.
SECTIONS = ("Workflow Graph", "Inputs", "Outputs")
#: Sections of each docstring, kept from the hook before numpydoc to the hook after it.
_taken: dict[str, list[str]] = {}


def take_sections(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Take the sections out that numpydoc would drop; escape the star in shapes such as ``(n, *tile)``."""
    lines[:] = [re.sub(r"(?<=[ (])\*(?=\w+[,)])", r"\\*", line) for line in lines]
    kept: list[str] = []
    taken: list[str] = []
    into = kept
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if re.fullmatch(r"-{3,}", following.strip()) and line.strip():
            into = taken if line.strip() in SECTIONS else kept
        into.append(line)
    if taken:
        lines[:] = kept
        _taken[name] = taken


def add_sections(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Append a workflow's sections, the traits of an interface, or the settings of a section."""
    if name in _taken:
        lines.extend(_as_rubrics(_taken.pop(name)))
    if what == "class" and inspect.isclass(obj) and issubclass(obj, BaseInterface):
        for spec, inputs in ((obj.input_spec, True), (obj.output_spec, False)):
            if spec is not None:
                lines.extend(_describe(spec, inputs=inputs))
    settings = dataclasses.fields(obj) if what == "class" and dataclasses.is_dataclass(obj) else ()
    for item in (item for item in settings if "help" in item.metadata):
        lines.extend(["", f"* **{item.name}** (default ``{item.default}``): {item.metadata['help']}"])


def skip_plumbing(app: Sphinx, what: str, name: str, *_: Any) -> bool | None:
    """Leave out attributes that only nipype needs."""
    return True if name in {"input_spec", "output_spec", "module"} else None


def _as_rubrics(lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if line.strip() in SECTIONS and following.startswith("---"):
            yield from ("", f".. rubric:: {line.strip()}", "")
        elif not re.fullmatch(r"-{3,}", line.strip()):
            yield line
    yield ""


def _describe(spec: type[TraitedSpec], *, inputs: bool) -> Iterator[str]:
    rows = [(n, t) for n, t in spec().traits(transient=None).items() if n not in COMMON]
    if not rows:
        return
    yield from ("", f".. rubric:: {'Inputs' if inputs else 'Outputs'}", "")
    for name, trait in sorted(rows, key=lambda row: (not row[1].mandatory, row[0])):
        marks = (("mandatory", trait.mandatory), ("not in the cache key", trait.nohash))
        notes = [note for note, there in marks if there]
        if inputs and trait.usedefault and isdefined(trait.default) and trait.default not in ("", None):
            notes.append(f"default ``{trait.default}``")
        extra = f" ({', '.join(notes)})" if notes else ""
        yield f"* **{name}**: {(trait.desc or '').strip()}{extra}"
    yield ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with autodoc, before and after numpydoc."""
    app.connect("autodoc-process-docstring", take_sections, priority=100)
    app.connect("autodoc-process-docstring", add_sections, priority=900)
    app.connect("autodoc-skip-member", skip_plumbing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
