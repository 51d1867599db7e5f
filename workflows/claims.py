"""Whose scans are whose: two runs over one scan in one work directory would empty each other's folders."""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from iqtflow.errors import OutputError, UsageError


@contextmanager
def claimed(work_dir: str | os.PathLike, names: Iterable[str]) -> Iterator[None]:
    """Hold parts of a graph, by name, against other runs in the same work directory.

    Parameters
    ----------
    work_dir
        Work directory.
    names
        Parts of the graph, such as sub-workflows of scans.

    Raises
    ------
    UsageError
        Another run holds one of them.
    OutputError
        The file of locks cannot be opened.

    Notes
    -----
    One byte of one file stands for each part (a lock of the kernel on a range of bytes, which file servers
    know, too, and which ends with the process). Where the file system has no locks nothing is held.
    """
    lock = Path(work_dir, ".lock")
    try:
        # Without waiting: what is no file, such as a pipe, would have no end.
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as fault:
        raise OutputError(
            lock,
            found=f"something that cannot be opened as a file of locks ({fault.strerror})",
            expected="a file, or nothing",
            next_step="Remove it if no other run uses this work directory, or choose another --work-dir.",
        ) from fault
    try:
        for name in names:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, zlib.crc32(name.encode()))
            except BlockingIOError as fault:
                raise UsageError(
                    work_dir,
                    found=f"another run that is at work on {name.split()[-1]}",
                    expected="one run for each scan at a time",
                    next_step="Wait for it, or end it; or give this run other participants, or another "
                    "--work-dir.",
                ) from fault
            except OSError:  # no locks on this file system
                break
        yield
    finally:
        os.close(file)
