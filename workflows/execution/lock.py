"""Protection of a work directory from other runs and other users.

Two runs over one scan would empty each other's folders. Results are stored as pickles, and reading a pickle
can run any program: so no other user may be able to put one there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from iqtflow.utils.errors import OutputError, UsageError

#: Everything in a work directory, for `claimed`.
ALL = None
#: A run locks bytes of this file.
LOCK = ".lock"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def claimed(work_dir: str | os.PathLike, names: Iterable[str] | None) -> Iterator[None]:
    """Lock parts of a graph, by name, against other runs in the same work directory.

    Parameters
    ----------
    work_dir
        Work directory.
    names
        Parts of the graph, such as sub-workflows of scans; `ALL` for the whole directory.

    Raises
    ------
    UsageError
        Another run has locked one of them, or the lock is no file.
    OutputError
        The lock cannot be written.

    Notes
    -----
    One byte of one file stands for each part, and the kernel locks this byte (a POSIX lock). Such locks also
    work on file servers, and end with the process. A file system without locks gives no protection.
    """
    file = _open_lock(Path(work_dir, LOCK))
    # A length of zero reaches to the end of all files.
    spans = [("it", 0, 0)] if names is ALL else [(name, 1, zlib.crc32(name.encode())) for name in names]
    try:
        for name, length, start in spans:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            except (BlockingIOError, PermissionError) as fault:
                raise UsageError(
                    work_dir,
                    found=f"another run that is at work on {name.split()[-1]}",
                    expected="one run for each scan at a time",
                    next_step="Wait until it ends, or stop it. Or give this run other participants or "
                    "another --work-dir.",
                ) from fault
            except OSError:  # no locks on this file system
                break
        yield
    finally:
        os.close(file)


def clean_work_dir(work_dir: Path) -> None:
    """Empty a work directory, checkpoints included.

    Raises
    ------
    UsageError
        It is not empty and has no settings of an earlier run, so it may be some other folder. Or another run
        uses it.
    OutputError
        Something in it cannot be deleted.
    """
    there = [path for path in work_dir.iterdir() if path.name != LOCK]
    if there and not (work_dir / "settings.toml").is_file():
        raise UsageError(
            work_dir,
            found=f"{there[0].name}, but no settings.toml of an earlier run",
            expected="a work directory of iqtflow, or an empty folder, for --clean-workdir",
            next_step="Choose another folder with -w, or empty this one yourself.",
        )
    with claimed(work_dir, ALL):
        # Settings last: without them a second try is refused. The lock stays: other runs may use it.
        for path in sorted(there, key=lambda path: path.name == "settings.toml"):
            try:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            except FileNotFoundError:
                continue
            except OSError as fault:
                raise OutputError(
                    path,
                    found=f"something that cannot be deleted ({fault.strerror or fault})",
                    expected="a work directory that can be emptied",
                    next_step="Check its permissions, and that no other run uses it.",
                ) from fault


def make_own(folder: str | os.PathLike) -> Path:
    """Make a folder for results that only its user may write to, whatever the umask.

    Raises
    ------
    OutputError
        It cannot be made.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as fault:
        raise _cannot_be_made(folder, fault) from fault
    return folder


def check_own(work_dir: Path) -> None:
    """Check that only this user (or root) can have put results into a work directory.

    An empty folder that its group may write to, as ``mkdir`` makes it on many computers, is closed to the
    group. Root may use any folder: in a container, root is the user who started it. File systems without
    permissions (Windows drives, some network drives) are not checked.

    Raises
    ------
    UsageError
        It belongs to another user, or other users may write to it.
    OutputError
        No folder can be made in it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".iqtflow-", dir=work_dir) as probe:
            mine = os.stat(probe)
    except OSError as fault:
        raise _cannot_be_made(work_dir, fault) from fault
    keeps_permissions = not mine.st_mode & _OTHERS_WRITE
    trusted = {os.geteuid(), mine.st_uid, 0}
    there = [path for path in sorted(work_dir.iterdir()) if not path.name.startswith(".")]
    results = [path for path in there if path.name.startswith(("iqtflow_", "checkpoints"))]
    for folder in (work_dir, *results):
        state = os.stat(folder) if folder == work_dir else os.lstat(folder)
        instead = f"Choose a folder that iqtflow makes itself, for instance -w {work_dir / 'own'}."
        if os.geteuid() != 0 and state.st_uid not in trusted:
            raise UsageError(
                folder,
                found=f"a work directory of the user with the number {state.st_uid}",
                expected=f"one of this user, {os.geteuid()}: results in it are read as programs",
                next_step=instead,
            )
        open_to = state.st_mode & _OTHERS_WRITE
        harmless = stat.S_ISLNK(state.st_mode) or state.st_mode & stat.S_ISVTX
        if not keeps_permissions or not open_to or harmless:
            continue
        if folder == work_dir and not there and open_to == stat.S_IWGRP and _close_to_group(folder):
            continue
        raise UsageError(
            folder,
            found=f"a work directory that others may write (mode {stat.S_IMODE(state.st_mode):o})",
            expected="one that only this user may write: results in it are read as programs",
            next_step=f"{instead} Or, if you trust all who could write there: chmod -R go-w {folder}.",
        )


def _cannot_be_made(folder: Path, fault: OSError) -> OutputError:
    return OutputError(
        folder,
        found=f"a folder that cannot be made or written ({fault.strerror or fault})",
        expected="one that can",
        next_step="Free space, change its permissions, or choose another --work-dir.",
    )


def _close_to_group(folder: Path) -> bool:
    try:
        folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~_OTHERS_WRITE)
    except OSError:  # another user's
        return False
    return True


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except IsADirectoryError as fault:
        raise UsageError(
            path,
            found="a folder",
            expected="no such folder: a file with this name keeps runs apart",
            next_step="Delete it, or choose another --work-dir.",
        ) from fault
    except OSError as fault:
        raise OutputError(
            path,
            found=f"a lock that cannot be opened ({fault.strerror})",
            expected="a file that can be written",
            next_step="Check its permissions, or choose another --work-dir.",
        ) from fault
