"""What a program tells while it works: nobody may be listening any more, and the work goes on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

#: What a closed terminal or pipe says (``iqtflow ... | head -1``); other errors lose what was to be kept.
NOBODY_LISTENS = (errno.EPIPE, errno.EBADF, errno.EIO)


class PatientStream:
    """A text stream that can be lost without an end to the program.

    Parameters
    ----------
    stream
        Standard output or error; None where the process was started without one.

    Attributes
    ----------
    lost : OSError or None
        Why nothing can be written any more.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.lost: OSError | None = None
        with suppress(AttributeError, ValueError, OSError):  # a name that is no UTF-8 can be told, too
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a text, or drop it when nobody can read it."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as fault:
            self._lose(fault)
            return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as fault:
            self._lose(fault)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, fault: OSError | ValueError) -> None:
        """Send all that follows to nowhere, that of child processes, too."""
        self.lost = self.lost or (fault if isinstance(fault, OSError) else OSError(errno.EBADF, str(fault)))
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def patient_streams() -> Iterator[tuple[PatientStream, PatientStream]]:
    """Let standard output and error be lost without an end to the program; yields both."""
    for number in range(3):  # where one is closed, the next file to be opened would take its place
        try:
            os.fstat(number)
        except OSError:
            # Child processes, too: in theirs a pipe would take the place, and be closed with the stream.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    ours = PatientStream(before[0]), PatientStream(before[1])
    sys.stdout, sys.stderr = ours
    try:
        yield ours
    finally:
        for stream in ours:
            stream.flush()
        sys.stdout, sys.stderr = before


def cannot_be_kept(stream: PatientStream) -> OSError | None:
    """Return why what was told is not where the user wanted to keep it (a full disk, say); None when it is,
    or when nobody was listening any more.
    """
    return None if stream.lost is None or stream.lost.errno in NOBODY_LISTENS else stream.lost
