"""From a template to a file: a page beside its folder of figures, which needs no internet."""

from __future__ import annotations

import gzip
import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from iqtflow import __version__
from iqtflow.bids.names import is_label, output_name
from iqtflow.utils.errors import InputError
from iqtflow.utils.files import write_atomically

#: On every page.
NOTICE = (
    "For research only, not for diagnosis. Detail between the acquired slices was not measured in this "
    "patient. A network infers it from other brains; it can be missing, displaced or invented. Check each "
    "finding on the original scan."
)

_TEMPLATES = Path(__file__).with_name("templates")
_VIEWER = Path(__file__).with_name("viewer")


def render(template: str, **values: Any) -> str:
    """Fill a template; every value is escaped.

    Parameters
    ----------
    template
        File name within the templates folder.
    **values
        Values that the template names; a missing one is an error.
    """
    return _environment().get_template(template).render(notice=NOTICE, version=__version__, **values)


def write_page(path: str | os.PathLike, content: str | bytes) -> Path:
    """Write a page or a figure; it gets its name only when it is complete.

    Raises
    ------
    OutputError
        The folder cannot be made or written to.
    """
    content = content.encode("utf-8") if isinstance(content, str) else content
    return write_atomically(path, lambda stream: stream.write(content))


def write_viewer(out_dir: Path) -> str:
    """Write the program of the viewer, once for each folder of derivatives; return its path in the folder.

    It is NiiVue 0.69.0 (BSD 2-Clause licence, https://github.com/niivue/niivue), ``dist/niivue.umd.js`` of
    the npm package ``@niivue/niivue``.
    """
    program = output_name("viewer")
    content = gzip.decompress((_VIEWER / "niivue.umd.js.gz").read_bytes())
    for name, text in (
        (program, content),
        (output_name("viewer_licence"), (_VIEWER / "LICENSE").read_bytes()),
    ):
        path = out_dir / name
        if not path.is_file() or path.stat().st_size != len(text):
            write_page(path, text)
    return program.as_posix()


def bare_label(subject: str) -> str:
    """Return the label of a subject without ``sub-``.

    Raises
    ------
    InputError
        It is not a BIDS label.
    """
    label = str(subject).removeprefix("sub-")
    if not is_label(label):
        raise InputError(
            "subject label",
            found=repr(subject),
            expected="letters and digits",
            next_step="Rename the subject's folder and files.",
        )
    return label


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["url"] = lambda path: quote(Path(path).as_posix())
    return environment
