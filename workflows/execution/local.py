"""Nodes in processes of this machine, one process for each node.

A process that dies (a machine short of memory kills the largest) fails its own node and no other, whatever it
allocated is given back, and everything that it started ends with it: each has a process group of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import ModuleType

from nipype.pipeline.engine import Node

from iqtflow.utils.environment import place_sockets, working_in
from iqtflow.workflows.execution.worker import run_node

#: What the fork server imports before it forks the first process.
PRELOAD = ("iqtflow.workflows.execution.worker", "iqtflow.workflows.execution.preload")
#: Seconds between a polite and an impolite end.
GRACE_S = 5.0
#: A process that has sent its answer ends at once, or is made to.
GOODBYE_S = 10.0

_SIGNALS = {number.value: number.name for number in signal.Signals}


class LocalProcesses:
    """Executor for `iqtflow.workflows.execution.scheduler.SchedulerPlugin`."""

    def __init__(self) -> None:
        # Forked from a small process that holds no lock, no thread and no scan, and knows the imports.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOAD))
        self._running: dict[Node, tuple[BaseProcess, Connection]] = {}

    def submit(self, node: Node) -> None:
        """Start a process for a node."""
        ours, theirs = self._context.Pipe(duplex=False)
        # Environment and folder as they are now: the fork server has those of its own beginning.
        given = (node, theirs, dict(os.environ), os.getcwd())
        process = self._context.Process(target=run_node, args=given, name=node.fullname)
        place_sockets()
        with working_in(util.get_temp_dir()):  # where it starts is where Python looks for libraries first
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


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep new processes from importing the program that starts them once more: no node needs it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _read(process: BaseProcess, answer: Connection) -> list[str] | None:
    """Return the traceback that a process has sent, or say how it died without an answer."""
    try:
        return answer.recv()
    except (EOFError, OSError):
        process.join()
        _signal_group(process, signal.SIGKILL)  # what it started lives on without it, holding memory or a GPU
        return [_how_it_died(process.exitcode)]
    finally:
        answer.close()
        process.join(GOODBYE_S)
        if process.is_alive():
            process.kill()
            process.join()


def _how_it_died(code: int | None) -> str:
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
