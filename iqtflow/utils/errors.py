"""Errors that a user can correct, and exit codes."""

from __future__ import annotations

import os
from collections.abc import Iterable

EXIT_OK = 0
EXIT_SUBJECT_FAILED = 1
EXIT_USAGE = 2
EXIT_SOFTWARE = 70  #: sysexits EX_SOFTWARE
EXIT_CANTCREAT = 73  #: sysexits EX_CANTCREAT
EXIT_SUBMITTED = 75  #: sysexits EX_TEMPFAIL
EXIT_INTERRUPTED = 130  #: 128 + SIGINT
EXIT_TERMINATED = 143  #: 128 + SIGTERM

#: What the codes mean, for ``--help`` and the documentation.
EXIT_CODES = {
    EXIT_OK: "every scan was processed, or skipped for a stated reason",
    EXIT_SUBJECT_FAILED: "at least one subject failed, or a file was left out because of its name; the "
    "others are complete",
    EXIT_USAGE: "the command line or the whole data set is not usable",
    EXIT_SOFTWARE: "a defect of this program",
    EXIT_CANTCREAT: "the output cannot be written, or the disk is full",
    EXIT_SUBMITTED: "jobs wait in the queue of a cluster",
    EXIT_INTERRUPTED: "interrupted by Ctrl-C; run the same command again to continue",
    EXIT_TERMINATED: "stopped by a signal (scancel, docker stop, kill); run the same command again to "
    "continue",
}


class IQTFlowError(Exception):
    """An expected error. Its message is for the user, without a traceback."""

    exit_code = EXIT_SUBJECT_FAILED


class InputError(IQTFlowError):
    """A file or value that cannot be processed.

    Parameters
    ----------
    path
        The file, or the name of the setting.
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
        # Pickle, which carries exceptions between processes, calls a class with positional arguments only.
        return _rebuild, (type(self), self.path, self.found, self.expected, self.next_step)


class UsageError(InputError):
    """The command line or the whole data set is not usable."""

    exit_code = EXIT_USAGE


class OutputError(InputError):
    """The output cannot be written."""

    exit_code = EXIT_CANTCREAT


class NotEnoughMemory(IQTFlowError):
    """There is too little memory."""


class Submitted(IQTFlowError):
    """Jobs were submitted to a cluster, and nobody waits for them."""

    exit_code = EXIT_SUBMITTED


def printable(text: str | os.PathLike) -> str:
    """Return a text or a file name that any terminal can show: other characters are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in os.fspath(text))


def exit_code_of_failures(codes: Iterable[int]) -> int:
    """Return the exit code of a run from those of its failed nodes: the largest.

    An output that cannot be written concerns all subjects. It is more important than one failed subject.
    """
    return max(codes, default=EXIT_OK)


def _rebuild(
    cls: type[InputError], path: str | os.PathLike, found: str, expected: str, next_step: str
) -> InputError:
    return cls(path, found=found, expected=expected, next_step=next_step)
