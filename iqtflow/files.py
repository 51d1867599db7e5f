"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from iqtflow.errors import OutputError, require_parent

#: Errors that say that a disk, or a user's share of it, is full.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Age in seconds at which an unfinished file of another machine has been left behind for certain.
OLD_S = 86_400.0

_HOST = re.sub(r"\W", "", socket.gethostname())[:40] or "host"


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
    # In the same folder, where renaming is atomic. Host and process tell who may clean up after a power cut.
    partial = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:12]}.partial")
    try:
        with open(partial, "xb") as stream:  # not mkstemp, whose files only their owner may read
            fill(stream)
        os.replace(partial, path)
    except OSError as fault:
        if fault.errno in DISK_FULL:
            raise OutputError(
                path,
                found=os.strerror(fault.errno),
                expected="room for the file",
                next_step="Free space, or choose another place, and run again.",
            ) from fault
        raise
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file (UTF-8) as :func:`write_atomically` does."""
    return write_atomically(path, lambda stream: stream.write(text.encode()))


def remove_leftovers(folder: str | os.PathLike) -> int:
    """Remove unfinished files of processes that were killed while they wrote; return how many there were.

    Files of living processes of this machine stay, and those of other machines, until they are a day old.
    """
    removed = 0
    for place, _, names in os.walk(os.fspath(folder)):
        for name in names:
            owner = re.fullmatch(r"\..+\.(?P<host>\w+)-(?P<pid>\d+)-[0-9a-f]{12}\.partial", name)
            if owner and _is_left_behind(Path(place, name), owner["host"], int(owner["pid"])):
                Path(place, name).unlink(missing_ok=True)
                removed += 1
    return removed


def _is_left_behind(path: Path, host: str, pid: int) -> bool:
    try:
        if time.time() - path.stat().st_mtime > OLD_S:
            return True
        if host == _HOST:
            os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # gone by now, or another user's
        pass
    return False
