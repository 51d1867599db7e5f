"""Run a command: errors become one line and an exit code, and lost output streams do not stop it."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from iqtflow import __version__
from iqtflow.utils.environment import settle_environment
from iqtflow.utils.errors import (
    EXIT_CANTCREAT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SOFTWARE,
    IQTFlowError,
    NotEnoughMemory,
)
from iqtflow.utils.files import DISK_FULL, cannot_write
from iqtflow.utils.system import (
    is_memory_error,
    keep_freed_memory,
    require_memory,
    too_little_memory,
)

#: Errors of a closed terminal or pipe (``iqtflow ... | head -1``). After others the user has lost output.
CLOSED = (errno.EPIPE, errno.EBADF, errno.EIO)


def run_command(
    prog: str,
    body: Callable[[], int | None],
    *,
    afterwards: str = "",
    least_gb: float = 0.5,
    needs_gb: float | None = None,
    spares_memory: str = "",
) -> int:
    """Run the body of a command; turn expected errors into one line and an exit code.

    Parameters
    ----------
    prog
        Name of the command, as the user typed it.
    body
        The work, the reading of the command line included; returns an exit code, or None for 0.
    afterwards
        Text after an interruption.
    least_gb
        Smallest limit of the process (GB) under which the libraries load.
    needs_gb
        About how much memory the work needs.
    spares_memory
        Advice on how to need less memory: beginning of a sentence that ends "or give the machine more".

    Returns
    -------
    int
        0, or the ``exit_code`` of the error.
    """
    with lenient_streams() as (output, _):
        try:
            settle_environment()
            keep_freed_memory()
            require_memory(least_gb, needs_gb=needs_gb, advice=spares_memory)
            code = body() or EXIT_OK
        except IQTFlowError as fault:
            print(f"{prog}: error: {fault}", file=sys.stderr)
            code = fault.exit_code
        except KeyboardInterrupt:
            print(f"{prog}: interrupted{afterwards}", file=sys.stderr)
            code = EXIT_INTERRUPTED
        except Exception as fault:
            if is_memory_error(fault):
                message = too_little_memory(needs_gb, advice=spares_memory)
                code = NotEnoughMemory.exit_code
            elif isinstance(fault, OSError) and fault.errno in (*DISK_FULL, errno.EROFS):
                message = str(cannot_write(fault.filename or "a file, or the standard output", fault))
                code = EXIT_CANTCREAT
            else:
                traceback.print_exc()
                message = f"this is a defect of iqtflow {__version__}; report the lines above"
                code = EXIT_SOFTWARE
            print(f"{prog}: error: {message}", file=sys.stderr)
        output.flush()
        full = lost_output(output)
        if full is not None and code == EXIT_OK:
            print(
                f"{prog}: error: standard output: found {full.strerror}; expected a place that can be "
                "written. Free space, or send it elsewhere, and run again.",
                file=sys.stderr,
            )
            code = EXIT_CANTCREAT
    return code


class LenientStream:
    """A text stream. When it can no longer be written, the program continues.

    Parameters
    ----------
    stream
        Standard output or error; None where the process was started without one.

    Attributes
    ----------
    lost : OSError or None
        Why it can no longer be written.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        self.lost: OSError | None = None
        with suppress(AttributeError, ValueError, OSError):  # to show file names that are not UTF-8
            self._stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write a text, or drop it if the stream is lost."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as fault:
            self._lose(fault)
            return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as fault:
            self._lose(fault)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, fault: OSError | ValueError) -> None:
        """Send the rest to /dev/null, also that of child processes."""
        self.lost = self.lost or (fault if isinstance(fault, OSError) else OSError(errno.EBADF, str(fault)))
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def lenient_streams() -> Iterator[tuple[LenientStream, LenientStream]]:
    """Replace standard output and error by lenient streams; yield both."""
    for number in range(3):  # the next file that is opened would take the number of a closed stream
        try:
            os.fstat(number)
        except OSError:
            # Child processes need it, too: a pipe would take the number.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    ours = LenientStream(before[0]), LenientStream(before[1])
    sys.stdout, sys.stderr = ours
    try:
        yield ours
    finally:
        for stream in ours:
            stream.flush()
        sys.stdout, sys.stderr = before


def lost_output(stream: LenientStream) -> OSError | None:
    """Return the error if output that the user wanted to keep was lost (a full disk, for example).

    None if nothing was lost, or if a terminal or pipe was closed.
    """
    return None if stream.lost is None or stream.lost.errno in CLOSED else stream.lost
