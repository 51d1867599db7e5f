"""``api/index.rst``: all modules of the three floors, found and not listed by hand."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

#: Installed name, heading, and what is said of it.
FLOORS = (
    (
        "iqtflow",
        "The science",
        "On arrays and tensors; nothing here knows of nipype. :mod:`iqtflow.bids` and :mod:`iqtflow.reports`"
        " are the rooms that know of data sets and pages.",
    ),
    (
        "iqtflow.interfaces",
        "Interfaces",
        "Nipype interfaces: each checks its inputs, calls the science, and declares its outputs. Whatever is"
        " heavy runs in a process of its own.",
    ),
    (
        "iqtflow.workflows",
        "Workflows",
        "Factories of graphs, ``init_*_wf``. They read no global settings and write nothing outside their"
        " nodes' folders.",
    ),
)
#: Of the application, not for import; the page of commands tells how to use them.
NOT_FOR_IMPORT = (
    "iqtflow.cli.main",
    "iqtflow.cli.commands",
    "iqtflow.cli.parser",
    "iqtflow.cli.types",
    "iqtflow.models.weights",
)


def list_modules(package: str) -> list[str]:
    """Public modules of one floor, its packages included and other floors not."""
    others = {name for name, _, _ in FLOORS} - {package}
    found = []
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        name = module.name
        if any(name == other or name.startswith(f"{other}.") for other in others if other != "iqtflow"):
            continue
        if not any(name.startswith(start) for start in NOT_FOR_IMPORT) and "._" not in name:
            found.append(name)
    return found


def write_index(app: Sphinx, config: Config) -> None:
    """Write the page before Sphinx looks for pages; leave it alone when nothing has changed."""
    lines = [
        "API",
        "===",
        "",
        "Import by full name: ``from iqtflow.interfaces.enhance import EnhanceVolume``.",
        "",
    ]
    for package, heading, text in FLOORS:
        lines += [heading, "-" * len(heading), "", text, "", ".. autosummary::", "   :toctree: generated", ""]
        lines += [f"   {name}" for name in list_modules(package)] + [""]
    page = Path(app.srcdir) / "api" / "index.rst"
    page.parent.mkdir(exist_ok=True)
    text = "\n".join(lines)
    if not page.exists() or page.read_text() != text:
        page.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Hook in before the sources are listed."""
    app.connect("config-inited", write_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
