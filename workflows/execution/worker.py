"""The process of one node.

Imported by multiprocessing's fork server, from which these processes are forked: what is imported here is
imported once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from traceback import format_exception

from nipype.pipeline.engine import Node

from iqtflow.utils.command import patient_streams
from iqtflow.workflows.execution.cache import seal
from iqtflow.workflows.execution.nipype_config import apply_in_worker

apply_in_worker()


def run_node(node: Node, answer: Connection, environ: dict[str, str], folder: str) -> None:
    """Run a node in an environment and a folder; send its traceback, or None when it went well."""
    os.setpgid(0, 0)
    with suppress(OSError):  # it may be gone; nodes have folders of their own
        os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    apply_in_worker()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the parent makes an end, for all of this group
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with patient_streams():
        try:
            node.run()
            seal(node)
            traceback = None
        except BaseException:
            traceback = format_exception(*sys.exc_info())
    answer.send(traceback)
    answer.close()


def _end_with_parent() -> None:
    """End this process and all that it started when the run that wants its result has died."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)
