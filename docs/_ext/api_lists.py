"""Writes ``api/index.rst``, the list of all modules."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config

#: Installed name, heading and description of each part.
PARTS = (
    (
        "iqtflow",
        "The science",
        "Functions on arrays and tensors, without nipype. :mod:`iqtflow.bids` handles data sets,"
        " :mod:`iqtflow.reports` makes the pages.",
    ),
    (
        "iqtflow.interfaces",
        "Interfaces",
        "Nipype interfaces: each checks its inputs, calls the science, and declares its outputs. Heavy work"
        " runs in a process of its own.",
    ),
    (
        "iqtflow.workflows",
        "Workflows",
        "Functions ``init_*_wf`` that build graphs of interfaces. They read no global settings. Each node"
        " writes into its own folder only.",
    ),
)
#: Parts of the commands, not for import; the page "Commands" shows how to use them.
NOT_FOR_IMPORT = (
    "iqtflow.cli.main",
    "iqtflow.cli.commands",
    "iqtflow.cli.parser",
    "iqtflow.cli.options",
    "iqtflow.models.weights",
)


def list_modules(package: str) -> list[str]:
    """List the public modules of one part, with those of its packages, without other parts."""
    others = {name for name, _, _ in PARTS} - {package}
    found = []
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        name = module.name
        if any(name == other or name.startswith(f"{other}.") for other in others if other != "iqtflow"):
            continue
        if not any(name.startswith(start) for start in NOT_FOR_IMPORT) and "._" not in name:
            found.append(name)
    return found


def write_index(app: Sphinx, config: Config) -> None:
    """Write the page before Sphinx looks for pages, unless nothing has changed."""
    lines = [
        "API",
        "===",
        "",
        "Import by full name: ``from iqtflow.interfaces.enhance import EnhanceVolume``.",
        "",
    ]
    for package, heading, text in PARTS:
        lines += [heading, "-" * len(heading), "", text, "", ".. autosummary::", "   :toctree: generated", ""]
        lines += [f"   {name}" for name in list_modules(package)] + [""]
    page = Path(app.srcdir) / "api" / "index.rst"
    page.parent.mkdir(exist_ok=True)
    text = "\n".join(lines)
    if not page.exists() or page.read_text() != text:
        page.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx, before it lists the pages."""
    app.connect("config-inited", write_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
