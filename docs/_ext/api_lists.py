"""Writes ``api/index.rst`` with the public names, and ``api/internal.rst`` with all modules."""

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


def list_public(package: str) -> list[str]:
    """Return the public names of a package, each as the module that defines it documents it."""
    found = importlib.import_module(package)
    public = (getattr(found, name) for name in found.__all__)
    return [f"~{one.__module__}.{one.__qualname__}" for one in public]


def summary(names: list[str], *options: str) -> list[str]:
    """Return the lines of a table of names."""
    return [".. autosummary::", *(f"   {o}" for o in options), "", *(f"   {name}" for name in names), ""]


def write_pages(app: Sphinx, config: Config) -> None:
    """Write both pages before Sphinx looks for pages; leave a page alone when nothing has changed."""
    public = [
        *("API", "===", ""),
        "These names are public. Import them as ``from iqtflow import enhance``,",
        "``from iqtflow.interfaces import EnhanceVolume`` or",
        "``from iqtflow.workflows import init_enhance_wf``. All other names are",
        ":doc:`internal <internal>` and may change from one version to the next.",
        "",
    ]
    modules = [
        *("Internal modules", "================", ""),
        "All modules. Their names may change from one version to the next.",
        ":doc:`Public names <index>` stay.",
        "",
    ]
    for package, heading, text in PARTS:
        public += [f"``{package}``", "-" * (len(package) + 4), "", *summary(list_public(package))]
        modules += [heading, "-" * len(heading), "", text, ""]
        modules += summary(list_modules(package), ":toctree: generated")
    public += [".. toctree::", "   :hidden:", "", "   internal", ""]
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    for name, lines in (("index", public), ("internal", modules)):
        page, text = folder / f"{name}.rst", "\n".join(lines)
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx, before it lists the pages."""
    app.connect("config-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
