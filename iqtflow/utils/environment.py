"""Settings of the process: user name, home, current and temporary folder, command lines of child processes.

Under ``docker run -u 12345:12345`` the user has no name, and the home folder may be missing or read-only.
PyTorch needs a user name, and Matplotlib writes into the home. Environment variables replace both.
"""

from __future__ import annotations

import atexit
import io
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from multiprocessing import util
from pathlib import Path

from iqtflow.utils.errors import UsageError

#: Variables that `getpass.getuser` reads before it asks the system.
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
#: Variables and folders of the XDG standard, in which Matplotlib keeps settings and fonts.
_FOLDERS = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache"}
#: Variables with paths. They are made absolute, because programs are started in other folders.
_PATHS = ("TMPDIR", "SPM_HOME", "SPM_PATH", "SPM_DIR", "SPMSTANDALONE_HOME", "MCR_HOME")
#: Folders for sockets if the path of $TMPDIR is too long.
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
#: Bytes. The path of a socket has at most 107; multiprocessing's own names take 32 of them.
LONGEST_FOLDER = 75


def settle_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set a user name and a folder for Matplotlib if there is none; make every file name printable.

    Child processes inherit the settings. Variables of the user stay, except Matplotlib's backend.

    Parameters
    ----------
    environ
        Environment variables, changed in place.

    Raises
    ------
    UsageError
        The current folder was deleted.
    """
    for stream in (sys.stdout, sys.stderr):  # a file name can be invalid in the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        here = os.getcwd()
    except OSError as fault:
        raise UsageError(
            "the current folder",
            found="a folder that was deleted",
            expected="a folder that exists",
            next_step="Change to another folder (cd) and run again.",
        ) from fault
    _make_absolute(environ, here)
    environ["MPLBACKEND"] = "Agg"  # figures go to files; another backend may not be installed
    known = _account()
    if known is None and not any(environ.get(name) for name in NAMES):
        environ["LOGNAME"] = environ["USER"] = f"uid{os.getuid()}"
    home = environ.get("HOME") or (known.pw_dir if known else "")
    if "MPLCONFIGDIR" not in environ and not _can_keep_settings(environ, home):
        folder = tempfile.mkdtemp(prefix="iqtflow-matplotlib-")
        environ["MPLCONFIGDIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def place_sockets() -> Path:
    """Give multiprocessing a folder with a short path for its sockets; return the folder.

    Raises
    ------
    UsageError
        There is no such folder.
    """
    own = temporary_folder()
    if _is_short(own):
        return own
    for folder in map(Path, SHORT_FOLDERS):
        if _is_short(folder) and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            before = tempfile.tempdir
            tempfile.tempdir = os.fspath(folder)
            try:
                util.get_temp_dir()  # multiprocessing remembers it; only this user can open it
                return folder
            except OSError:
                continue
            finally:
                tempfile.tempdir = before
    raise UsageError(
        own,
        found=f"a temporary folder with a path of {len(os.fsencode(own))} bytes",
        expected=f"at most {LONGEST_FOLDER}, for the sockets of its processes",
        next_step="Set TMPDIR to a folder with a shorter path, for instance /tmp.",
    )


def temporary_folder() -> Path:
    """Return the folder for temporary files.

    Raises
    ------
    UsageError
        No such folder is writable.
    """
    try:
        return Path(tempfile.gettempdir())
    except OSError as fault:
        raise UsageError(
            os.environ.get("TMPDIR", "/tmp"),
            found="no writable temporary folder",
            expected="one with room for intermediate files",
            next_step="Set TMPDIR to a writable folder.",
        ) from fault


@contextmanager
def working_in(folder: str | os.PathLike) -> Iterator[None]:
    """Change to a folder, and back afterwards if possible."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # deleted meanwhile, or closed to this user
            os.chdir(before)


def command_line(module: str) -> list[str]:
    """Return the beginning of the command line of a child process that runs a module's `main`.

    It uses the same Python, and imports nothing from the current folder (`iqtflow.utils.launch`).
    """
    return [sys.executable, os.fspath(Path(__file__).with_name("launch.py")), module]


def _make_absolute(environ: MutableMapping[str, str], here: str) -> None:
    """Make paths absolute, and drop empty parts of PYTHONPATH, which mean the current folder.

    ``export PYTHONPATH=$PYTHONPATH:...`` leaves such a part.
    """
    if environ.get("PYTHONPATH"):
        parts = [os.path.join(here, part) for part in environ["PYTHONPATH"].split(os.pathsep) if part]
        environ["PYTHONPATH"] = os.pathsep.join(map(os.path.normpath, parts))
    for name in _PATHS:
        if environ.get(name):
            environ[name] = os.path.join(here, environ[name])


def _is_short(folder: Path) -> bool:
    return len(os.fsencode(folder)) <= LONGEST_FOLDER


def _account() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:
        return None


def _can_keep_settings(environ: MutableMapping[str, str], home: str) -> bool:
    """Return whether Matplotlib can write to its own folders."""
    places = [environ.get(name) or (home and f"{home}/{folder}") for name, folder in _FOLDERS.items()]
    return all(place and _writable(Path(place, "matplotlib")) for place in places)


def _writable(folder: Path) -> bool:
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), None)
    return existing is not None and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
