"""Pointers of git-annex (DataLad) and Git LFS: files whose content has not been fetched."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

_LARGEST = 32_768  # bytes; pointers of both tools are shorter


def how_to_fetch(path: str | os.PathLike) -> str | None:
    """Return how to fetch a file's content, as a sentence; None if the content is there.

    A pointer of git-annex is a broken link into ``.git/annex/objects`` or (unlocked, repository version 8) a
    line of text ``/annex/objects/KEY``. One of Git LFS begins with the address of its specification.

    Parameters
    ----------
    path
        The file.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        is_annex = "/annex/objects/" in Path(os.readlink(path)).as_posix()
        return _datalad(path) if is_annex else None
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:  # opening a pipe would wait
            return None
        with open(path, "rb") as stream:
            start = stream.read(200)
    except OSError:
        return None
    if start.startswith(b"/annex/objects/"):
        return _datalad(path)
    if start.startswith(b"version https://git-lfs"):
        folder = shlex.quote(os.fspath(path.parent))
        return f"Fetch the content with `git -C {folder} lfs pull --include={shlex.quote(path.name)}`."
    return None


def _datalad(path: Path) -> str:
    return f"Fetch the content with `datalad get {shlex.quote(os.fspath(path))}`, or with git annex get."
