"""A user without a name or a home, as containers have them: libraries trip over both unless told.

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
from collections.abc import MutableMapping
from pathlib import Path

#: Where `getpass.getuser` looks before it asks the system.
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
#: Variables and folders of the XDG standard, in which Matplotlib keeps settings and fonts.
_FOLDERS = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache"}


def settle_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Name the user, and give Matplotlib a folder, where the system has neither; let any name be printed.

    Child processes inherit both; what the user has set stays.

    Parameters
    ----------
    environ
        Variables to read and to add to.
    """
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be text in the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    known = _account()
    if known is None and not any(environ.get(name) for name in NAMES):
        environ["LOGNAME"] = environ["USER"] = f"uid{os.getuid()}"
    home = environ.get("HOME") or (known.pw_dir if known else "")
    if "MPLCONFIGDIR" not in environ and not _can_keep_settings(environ, home):
        folder = tempfile.mkdtemp(prefix="iqtflow-matplotlib-")
        environ["MPLCONFIGDIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


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
