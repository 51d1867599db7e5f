"""What can go wrong in a way that a user can mend, and the exit code that says so."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

EXIT_OK = 0  #: every subject was processed or skipped for a stated reason
EXIT_SUBJECT_FAILED = 1  #: a subject failed, or a file was left out for its name; the others are complete
EXIT_USAGE = 2  #: the command line or the data set as a whole cannot be worked with
EXIT_SOFTWARE = 70  #: a defect of this program (sysexits EX_SOFTWARE)
EXIT_CANTCREAT = 73  #: the output cannot be written, or the disk is full (sysexits EX_CANTCREAT)
EXIT_SUBMITTED = 75  #: jobs are queued on a cluster and not done yet (sysexits EX_TEMPFAIL)
EXIT_INTERRUPTED = 130  #: stopped by Ctrl-C (128 + SIGINT)
EXIT_TERMINATED = 143  #: stopped by a request to end: scancel, docker stop, kill (128 + SIGTERM)

#: What the codes mean, for ``--help`` and the documentation.
EXIT_CODES = {
    EXIT_OK: "every scan was processed, or skipped for a stated reason",
    EXIT_SUBJECT_FAILED: "at least one subject failed, or a file was left out for its name; the others are "
    "complete",
    EXIT_USAGE: "the command line, or the data set as a whole, cannot be worked with",
    EXIT_SOFTWARE: "a defect of this program",
    EXIT_CANTCREAT: "the output cannot be written, or the disk is full",
    EXIT_SUBMITTED: "jobs are in the queue of a cluster, and not done yet",
    EXIT_INTERRUPTED: "interrupted by Ctrl-C; the same command goes on from there",
    EXIT_TERMINATED: "asked to end (scancel, docker stop); the same command goes on from there",
}


class IQTFlowError(Exception):
    """An expected fault: its message is meant for the user, without a traceback."""

    exit_code = EXIT_SUBJECT_FAILED


class InputError(IQTFlowError):
    """One file (or value) that cannot be processed.

    Parameters
    ----------
    path
        The file, or the name of the setting, that is at fault.
    found
        The value found.
    expected
        The value expected.
    next_step
        What the user can do about it, as a sentence.
    """

    def __init__(self, path: str | os.PathLike, *, found: str, expected: str, next_step: str) -> None:
        self.path, self.found, self.expected, self.next_step = path, found, expected, next_step
        super().__init__(f"{os.fspath(path)}: found {found}; expected {expected}. {next_step}")

    def __reduce__(self):
        # Exceptions travel between processes by pickle, which calls the class with positional arguments only.
        return _rebuild, (type(self), self.path, self.found, self.expected, self.next_step)


class UsageError(InputError):
    """The command line, or the data set as a whole, cannot be worked with."""

    exit_code = EXIT_USAGE


class OutputError(InputError):
    """The output cannot be written where it was asked for."""

    exit_code = EXIT_CANTCREAT


class Submitted(IQTFlowError):
    """Jobs were handed to a cluster by a plugin that does not wait for them."""

    exit_code = EXIT_SUBMITTED


def printable(text: str | os.PathLike) -> str:
    """Return a text, or a file's name, as any terminal can show it: what is no character is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in os.fspath(text))


def exit_code_of(fault: BaseException | None) -> int:
    """Return the exit code that an exception, which ends the program, stands for."""
    if fault is None:
        return EXIT_OK
    if isinstance(fault, IQTFlowError):
        return fault.exit_code
    if isinstance(fault, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_SOFTWARE


def exit_code_of_failures(codes: Iterable[int]) -> int:
    """Return the exit code of a run some of whose nodes failed, from what each stands for.

    The largest one: an output that cannot be written concerns all subjects, and is told before one that
    failed by itself.
    """
    return max(codes, default=EXIT_OK)


def _rebuild(
    cls: type[InputError], path: str | os.PathLike, found: str, expected: str, next_step: str
) -> InputError:
    return cls(path, found=found, expected=expected, next_step=next_step)


class NotEnoughMemory(IQTFlowError):
    """There is too little memory for what was asked for."""


def run_command(
    prog: str,
    body: Callable[[], int | None],
    *,
    afterwards: str = "",
    least_gb: float = 0.5,
    needs_gb: float | None = None,
    spares_memory: str = "",
) -> int:
    """Run the body of a command and turn expected faults into one line and an exit code.

    Parameters
    ----------
    prog
        Name of the command, as the user typed it.
    body
        The work, the reading of the command line included; returns an exit code, or None for 0.
    afterwards
        What to say after an interruption.
    least_gb
        Limit of the process below which its libraries do not load, and may wait for ever (numpy's do).
    needs_gb
        Memory that the work needs, about.
    spares_memory
        What takes less memory, as the beginning of a sentence that ends "or give the machine more".

    Returns
    -------
    int
        0, or the ``exit_code`` of the fault.
    """
    from iqtflow import __version__
    from iqtflow.utils.environment import settle_environment
    from iqtflow.utils.files import DISK_FULL, cannot_write
    from iqtflow.utils.memory import require_memory, tells_of_memory, too_little_memory
    from iqtflow.utils.streams import cannot_be_kept, patient_streams

    with patient_streams() as (told, _):
        try:
            settle_environment()
            require_memory(least_gb, needs_gb=needs_gb, advice=spares_memory)
            code = body() or EXIT_OK
        except IQTFlowError as fault:
            print(f"{prog}: error: {fault}", file=sys.stderr)
            code = fault.exit_code
        except KeyboardInterrupt:
            print(f"{prog}: interrupted{afterwards}", file=sys.stderr)
            code = EXIT_INTERRUPTED
        except Exception as fault:
            if tells_of_memory(fault):
                told_as = too_little_memory(needs_gb, advice=spares_memory)
                code = NotEnoughMemory.exit_code
            elif isinstance(fault, OSError) and fault.errno in (*DISK_FULL, errno.EROFS):
                told_as = str(cannot_write(fault.filename or "a file, or the standard output", fault))
                code = EXIT_CANTCREAT
            else:
                traceback.print_exc()
                told_as = f"this is a defect of iqtflow {__version__}; report the lines above"
                code = EXIT_SOFTWARE
            print(f"{prog}: error: {told_as}", file=sys.stderr)
        told.flush()
        full = cannot_be_kept(told)
        if full is not None and code == EXIT_OK:
            print(
                f"{prog}: error: standard output: found {full.strerror}; expected a place that can be "
                "written. Free space, or send it elsewhere, and run again.",
                file=sys.stderr,
            )
            code = EXIT_CANTCREAT
    return code


def require_parent(path: str | os.PathLike) -> Path:
    """Return `path` after making its folder, or say plainly that the folder cannot be written.

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
            found=f"no folder, and none can be made ({fault.strerror})",
            expected="a folder that can be made",
            next_step="Choose another output, or check what is there, and its permissions.",
        ) from fault
    if not os.access(path.parent, os.W_OK):
        raise OutputError(
            path.parent,
            found="a read-only folder",
            expected="a writable folder",
            next_step="Choose another output, or change its permissions.",
        )
    return path
