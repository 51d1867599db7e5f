"""Files whose content a data-management tool has not fetched yet: git-annex (DataLad) and Git LFS."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

_LARGEST = 32_768  # both tools' pointers are shorter, and take nothing longer for a pointer


def how_to_fetch(path: str | os.PathLike) -> str | None:
    """Return what to do to fetch a file's content, as a sentence; None where the content is there.

    A file of git-annex is a link into ``.git/annex/objects``, which leads nowhere without the content, or
    (unlocked, repository version 8) a line of text ``/annex/objects/KEY``. One of Git LFS begins with the
    specification's address.

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
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:  # a pipe would be waited for
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
