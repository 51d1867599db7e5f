"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from iqtflow.errors import require_parent


def write_atomically(path: str | os.PathLike, fill: Callable[[BinaryIO], Any]) -> Path:
    """Write a file under a name of its own, and give it its final name when it is complete.

    Jobs that write the same file at a time do no harm: the last one wins, whole.

    Parameters
    ----------
    path
        The file; its folder is made when missing.
    fill
        Called with a binary stream to write to.

    Returns
    -------
    Path
        The file, absolute.

    Raises
    ------
    OutputError
        The folder cannot be made or written.
    """
    path = require_parent(path)
    partial = path.with_name(
        f".{path.name}.{uuid.uuid4().hex}.partial"
    )  # the same folder: renaming stays atomic
    try:
        with open(partial, "xb") as stream:  # not mkstemp, whose files only their owner may read
            fill(stream)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file (UTF-8) as :func:`write_atomically` does."""
    return write_atomically(path, lambda stream: stream.write(text.encode()))
