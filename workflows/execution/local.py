"""Nodes in processes of this machine, one process for each node.

If a process is killed, for example because memory runs out, only its own node fails. Its memory is freed, and
everything that it started ends with it: each process has a process group of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from traceback import format_exception
from types import ModuleType

from nipype.pipeline.engine import Node

from iqtflow.utils.command import lenient_streams
from iqtflow.utils.environment import place_sockets, working_in
from iqtflow.workflows.execution.cache import seal
from iqtflow.workflows.execution.nipype_config import apply_in_worker

#: What the fork server imports before it starts the first process; the processes then need not import it.
PRELOAD = (
    __name__,
    "matplotlib",
    "nibabel",
    "nipype.interfaces.utility",
    "scipy.ndimage",
    *(
        f"iqtflow.interfaces.{name}"
        for name in ("conform", "enhance", "patches", "report", "segmentation", "simulate", "sink", "train")
    ),
    "iqtflow.reports.assemble.subject",
)
#: Seconds between the request to end (SIGTERM) and the kill (SIGKILL).
GRACE_S = 5.0
#: Seconds that a process may take to end after it has sent its answer.
GOODBYE_S = 10.0

_SIGNALS = {number.value: number.name for number in signal.Signals}


class LocalProcesses:
    """Executor for `iqtflow.workflows.execution.scheduler.SchedulerPlugin`."""

    def __init__(self) -> None:
        # New processes are copies of a small server process without locks, threads or scans in memory.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOAD))
        self._running: dict[Node, tuple[BaseProcess, Connection]] = {}

    def submit(self, node: Node) -> None:
        """Start a process for a node."""
        ours, theirs = self._context.Pipe(duplex=False)
        # The process needs the present environment and folder; the server keeps those of its own start.
        given = (node, theirs, dict(os.environ), os.getcwd())
        process = self._context.Process(target=run_node, args=given, name=node.fullname)
        place_sockets()
        with working_in(util.get_temp_dir()):  # Python looks for libraries in the server's folder first
            forkserver.ensure_running()
        with _without_main():
            process.start()
        theirs.close()
        self._running[node] = (process, ours)

    def wait(self) -> list[tuple[Node, list[str] | None]]:
        """Wait for the first node to end; see `iqtflow.workflows.execution.scheduler.Executor`."""
        wait([end for process, answer in self._running.values() for end in (process.sentinel, answer)])
        ended = []
        for node, (process, answer) in list(self._running.items()):
            if answer.poll() or not process.is_alive():
                ended.append((node, _read(process, answer)))
                del self._running[node]
        return ended

    def close(self) -> None:
        """End all processes, and all that they started."""
        running = list(self._running.values())
        self._running.clear()
        for process, _ in running:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for process, answer in running:
            process.join(max(deadline - time.monotonic(), 0))
            _signal_group(process, signal.SIGKILL)
            process.join()
            answer.close()


def run_node(node: Node, answer: Connection, environ: dict[str, str], folder: str) -> None:
    """Run a node in an environment and a folder; send its traceback, or None when it went well."""
    os.setpgid(0, 0)
    with suppress(OSError):  # the folder may be gone; a node works in its own
        os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    apply_in_worker()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C the parent ends all of this group
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with lenient_streams():
        try:
            node.run()
            seal(node)
            traceback = None
        except BaseException:
            traceback = format_exception(*sys.exc_info())
    answer.send(traceback)
    answer.close()


def _end_with_parent() -> None:
    """End this process and all that it started when its parent has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep new processes from importing the main program again: no node needs it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _read(process: BaseProcess, answer: Connection) -> list[str] | None:
    """Return the traceback that a process has sent; if it sent none, one line on how the process ended."""
    try:
        return answer.recv()
    except (EOFError, OSError):
        process.join()
        _signal_group(process, signal.SIGKILL)  # else its children run on and hold memory or a GPU
        return [_how_it_ended(process.exitcode)]
    finally:
        answer.close()
        process.join(GOODBYE_S)
        if process.is_alive():
            process.kill()
            process.join()


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = _SIGNALS.get(-code, f"signal {-code}")
        return f"WorkerLost: the process of this node was killed ({name})\n"
    return f"WorkerLost: the process of this node ended by itself, with code {code}\n"


def _signal_group(process: BaseProcess, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        if process.is_alive():  # killed before it had a group of its own
            os.kill(process.pid, number)
    except PermissionError:
        pass  # macOS: a group of which only a zombie is left
