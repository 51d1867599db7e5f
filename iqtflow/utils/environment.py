"""What surrounds a process: user, home, current and temporary folder, and programs that it starts.

Under ``docker run -u 12345:12345`` nobody has a name for this number, and the home directory may be missing
or read-only. PyTorch asks for the name of the user, Matplotlib writes into the home; both have variables.
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

#: Where `getpass.getuser` looks before it asks the system.
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
#: Variables and folders of the XDG standard, in which Matplotlib keeps settings and fonts.
_FOLDERS = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache"}
#: Variables that hold paths; programs are started in other folders.
_PATHS = ("TMPDIR", "SPM_HOME", "SPM_PATH", "SPM_DIR", "SPMSTANDALONE_HOME", "MCR_HOME")
#: Where sockets of processes that speak to each other can lie when $TMPDIR is too long for one.
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
#: The kernel takes 107 bytes for a socket's path, of which multiprocessing's own names are 32.
LONGEST_FOLDER = 75


def settle_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Name the user, and give Matplotlib a folder, where the system has neither; let any name be printed.

    Child processes inherit both; what the user has set stays, but for the backend of Matplotlib.

    Parameters
    ----------
    environ
        Variables to read and to add to.

    Raises
    ------
    UsageError
        The current folder is gone, or there is no temporary folder.
    """
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be text in the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        here = os.getcwd()
    except OSError as fault:
        raise UsageError(
            "the current folder",
            found="one that has been deleted",
            expected="a folder that exists",
            next_step="Change to another folder (cd) and run again.",
        ) from fault
    _make_absolute(environ, here)
    environ["MPLBACKEND"] = "Agg"  # figures go to files only; Jupyter's backend, say, need not be there
    known = _account()
    if known is None and not any(environ.get(name) for name in NAMES):
        environ["LOGNAME"] = environ["USER"] = f"uid{os.getuid()}"
    home = environ.get("HOME") or (known.pw_dir if known else "")
    if "MPLCONFIGDIR" not in environ and not _can_keep_settings(environ, home):
        folder = tempfile.mkdtemp(prefix="iqtflow-matplotlib-")
        environ["MPLCONFIGDIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def place_sockets() -> Path:
    """Give multiprocessing a folder for its sockets whose path is short enough; returns it.

    Raises
    ------
    UsageError
        There is none.
    """
    own = temporary_folder()
    if _is_short(own):
        return own
    for folder in map(Path, SHORT_FOLDERS):
        if _is_short(folder) and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            before = tempfile.tempdir
            tempfile.tempdir = os.fspath(folder)
            try:
                util.get_temp_dir()  # remembered for this process; only its user can look into it
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
        There is none that can be written.
    """
    try:
        return Path(tempfile.gettempdir())
    except OSError as fault:
        raise UsageError(
            os.environ.get("TMPDIR", "/tmp"),
            found="no temporary folder that can be written",
            expected="one with room for intermediate files",
            next_step="Set TMPDIR to a folder that can be written.",
        ) from fault


@contextmanager
def working_in(folder: str | os.PathLike) -> Iterator[None]:
    """Work in a folder, and go back where that is still possible."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # deleted meanwhile, or not to be entered by this user
            os.chdir(before)


def command_line(module: str) -> list[str]:
    """Return the beginning of the command line of a child that runs a module's `main`.

    The interpreter is the one that runs us, not whichever comes first on PATH, and the current folder is no
    place for libraries (`iqtflow.utils.launch`).
    """
    return [sys.executable, os.fspath(Path(__file__).with_name("launch.py")), module]


def _make_absolute(environ: MutableMapping[str, str], here: str) -> None:
    """Make paths absolute; an empty part of PYTHONPATH, left by ``export PYTHONPATH=$PYTHONPATH:...``, would
    be the current folder.
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
    """Return whether Matplotlib's own folders can be written, or made."""
    places = [environ.get(name) or (home and f"{home}/{folder}") for name, folder in _FOLDERS.items()]
    return all(place and _writable(Path(place, "matplotlib")) for place in places)


def _writable(folder: Path) -> bool:
    existing = next((parent for parent in (folder, *folder.parents) if parent.exists()), None)
    return existing is not None and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
