"""Settings of Sphinx (``make docs``): warnings are errors; the pages need no network."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import iqtflow

HERE = Path(__file__).parent
sys.path.insert(0, os.fspath(HERE / "_ext"))

# Sections that docs/_ext/interface_specs.py writes itself.
warnings.filterwarnings("ignore", message="Unknown section")

project = "iqtflow"
author = "the iqtflow developers"
version = release = iqtflow.__version__
copyright = f"{author}; Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_remove_toctrees",
    "mathml",
    "command_help",
    "interface_specs",
    "other_pages",
    "api_lists",
]
exclude_patterns = ["README.md", "model-cards/*.remarks.md", "_*", "images"]
templates_path = ["_templates"]
nitpicky = False

html_theme = "furo"
html_title = f"iqtflow {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

# 200 modules would fill the side bar of each page. "Internal modules" lists them.
remove_from_toctrees = ["api/generated/*"]

autosummary_generate = True
autosummary_imported_members = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_validation_checks: set[str] = set()
