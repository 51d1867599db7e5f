"""Write files whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import stat
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from iqtflow.utils.errors import OutputError, UsageError

#: Errors of a full disk or quota.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
#: An unfinished file of another machine is removed at this age (s).
OLD_S = 86_400.0

#: Errors of file systems that cannot sync. The disk is fine.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
_HOST = re.sub(r"\W", "", socket.gethostname())[:40] or "host"


def write_atomically(path: str | os.PathLike, fill: Callable[[BinaryIO], Any]) -> Path:
    """Write a file under a temporary name; rename it when it is complete and on the disk.

    Several jobs may write the same file at the same time: the last one wins. After a power cut there is the
    old file or the new one, because the content is synced before the file is renamed, and the folders after.

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
        The folder cannot be made or written, the disk is full, or a folder has the file's name.
    """
    folders = _folders_to_sync(Path(path).absolute())
    path = require_parent(path)
    # In the same folder, where renaming is atomic. Host and process are in the name for `remove_leftovers`.
    # A long name is cut, because the file system limits the length of the whole.
    partial = path.with_name(f".{path.name[:32]}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:12]}.partial")
    try:
        with open(partial, "xb") as stream:  # not mkstemp, whose files only their owner may read
            fill(stream)
            stream.flush()
            _sync(stream.fileno())
        os.replace(partial, path)
        for folder in folders:
            _sync_folder(folder)
    except OSError as fault:
        if fault.filename not in (None, os.fspath(partial)):  # a file that `fill` reads
            raise
        raise cannot_write(path, fault) from fault
    finally:
        with suppress(OSError):  # the disk may be gone; the first error is the one to report
            partial.unlink(missing_ok=True)
    return path


def require_parent(path: str | os.PathLike) -> Path:
    """Return the absolute `path` after making its folder.

    Raises
    ------
    OutputError
        The folder cannot be made or is not writable.
    """
    path = Path(path).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise OutputError(
            path.parent,
            found=f"a folder that cannot be made ({fault.strerror})",
            expected="a writable folder",
            next_step="Choose another output, or check the path and its permissions.",
        ) from fault
    if not os.access(path.parent, os.W_OK):
        raise OutputError(
            path.parent,
            found="a read-only folder",
            expected="a writable folder",
            next_step="Choose another output, or change its permissions.",
        )
    return path


def cannot_write(path: str | os.PathLike, fault: OSError) -> OutputError:
    """Return the error for a file that cannot be written."""
    if isinstance(fault, IsADirectoryError):
        return OutputError(
            path,
            found="a folder of this name",
            expected="a file, or nothing",
            next_step="Move the folder away, or choose another place, and run again.",
        )
    full = fault.errno in DISK_FULL
    return OutputError(
        path,
        found=fault.strerror or str(fault),
        expected="room for the file" if full else "a place where this file can be written",
        next_step="Free space, or choose another place, and run again."
        if full
        else "Check the folder and its permissions, or choose another place, and run again.",
    )


def require_name(value: str, what: str) -> str:
    """Return a name that becomes part of a path, or refuse it if it could lead to another folder.

    Parameters
    ----------
    value
        The name.
    what
        Option or setting, for the message.

    Raises
    ------
    UsageError
        It has characters other than letters, digits and ``. _ + -``, does not begin with a letter or digit,
        or is longer than 100 characters.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", value):
        raise UsageError(
            what,
            found=repr(value),
            expected="a name: letters, digits and . _ + -, at most 100, a letter or digit first",
            next_step="Choose another name, without a folder.",
        )
    return value


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Write a text file (UTF-8) as :func:`write_atomically` does."""
    return write_atomically(path, lambda stream: stream.write(text.encode()))


def read_text(path: str | os.PathLike) -> str:
    """Read a text file (UTF-8, with or without a byte-order mark).

    Raises
    ------
    OSError
        It cannot be read.
    ValueError
        It is a named pipe or a device, or is not UTF-8.
    """
    require_regular(path)
    return Path(path).read_text(encoding="utf-8-sig")


def sha256_of(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def require_regular(path: str | os.PathLike) -> None:
    """Check that a path is a regular file. Opening a named pipe would wait for ever.

    Raises
    ------
    OSError
        It does not exist.
    ValueError
        It is a folder, a pipe or a device.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ValueError("a folder" if stat.S_ISDIR(mode) else "a pipe or a device, not a file")


def remove_leftovers(folder: str | os.PathLike) -> int:
    """Remove unfinished files of killed processes; return their number.

    Files of running processes stay. Files of other machines stay for a day.
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
    import psutil  # a machine that only trains may not have it

    try:
        if time.time() - path.stat().st_mtime > OLD_S:
            return True
        if host == _HOST:
            os.kill(pid, 0)  # /proc may hide the processes of other users
            # A killed process keeps its number, as a zombie, until the process above it has taken note.
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return True
    except (OSError, psutil.Error):  # already removed, or another user's process
        pass
    return False


def _folders_to_sync(path: Path) -> list[Path]:
    """Return the file's folder, and the folders above it in which a folder has to be made."""
    folders = [path.parent]
    while not folders[-1].exists() and folders[-1] != folders[-1].parent:
        folders.append(folders[-1].parent)
    return folders


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # a folder that can be written, but not read
        return
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as fault:
        if fault.errno not in _NO_SYNC:
            raise
