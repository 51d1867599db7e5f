"""Run a graph, on this machine or on a cluster, and report which nodes failed, and why."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nipype.pipeline.engine import Workflow

from iqtflow.config import Settings
from iqtflow.utils.errors import (
    EXIT_CANTCREAT,
    EXIT_SUBJECT_FAILED,
    EXIT_TERMINATED,
    OutputError,
    exit_code_of_failures,
)
from iqtflow.utils.gpus import visible_gpus
from iqtflow.utils.system import is_memory_error, too_little_memory
from iqtflow.workflows.execution.local import LocalProcesses
from iqtflow.workflows.execution.lock import claimed, make_own
from iqtflow.workflows.execution.nipype_config import configure_nipype
from iqtflow.workflows.execution.progress import followed
from iqtflow.workflows.execution.scheduler import Crash, Limits, SchedulerPlugin

FULL = r"\[Errno (?:28|122)\]|No space left on device|Disk quota exceeded"


@dataclass(frozen=True)
class Failure:
    """A node that failed.

    Attributes
    ----------
    node
        Full name in the graph.
    message
        One sentence of why.
    log
        The crash file; None when none could be written.
    crashed
        Whether a node stopped with an error; only then can there be a crash file.
    exit_code
        Exit code of the run for this failure.
    """

    node: str
    message: str
    log: Path | None
    exit_code: int = EXIT_SUBJECT_FAILED
    crashed: bool = True


def configure_engine(settings: Settings) -> None:
    """Set nipype's global configuration for this run. Crash files go to a folder of this run's own."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4().hex[:8]}"
    logs = settings.paths.output_dir / "logs" / name
    # nipype logs the whole traceback of a failed node. It is also in the crash file, which the last lines on
    # the terminal name.
    level = ("CRITICAL", "INFO", "DEBUG")[min(settings.run.verbose, 2)]
    configure_nipype(crash_dir=os.fspath(logs), level=level, monitor=settings.run.resource_monitor)


def run_graph(workflow: Workflow, settings: Settings) -> list[Failure]:
    """Run a graph to its end. If a node fails, only the nodes that need its results are not run.

    Parameters
    ----------
    workflow
        The graph; its ``base_dir`` is set here.
    settings
        Resources.

    Returns
    -------
    list of Failure
        In the order in which they happened; empty when all went well.
    """
    workflow.base_dir = os.fspath(settings.paths.work_dir)
    make_own(settings.paths.work_dir / workflow.name)
    if settings.run.write_graph:
        draw(workflow)
    parts = [f"{workflow.name} {node.name}" for node in workflow._graph]
    with (
        claimed(settings.paths.work_dir, parts),
        followed(workflow, settings) as callback,
        ended_by_sigterm(),
    ):
        plugin = make_plugin(settings, callback)
        workflow.run(plugin=plugin)
    return [as_failure(crash) for crash in plugin.crashes]


def draw(workflow: Workflow) -> None:
    """Write a graph as text for graphviz, and as a picture where graphviz is installed, into its folder."""
    folder = Path(workflow.base_dir, workflow.name)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = folder / "graph.dot"
    # If the picture cannot be made, nipype raises an error after it has written the text.
    with suppress(OSError):
        drawn = Path(workflow.write_graph(os.fspath(drawn), graph2use="colored", format="svg"))
    print(f"iqtflow: graph {drawn if drawn.exists() else folder / 'graph.dot'}", flush=True)


def make_plugin(settings: Settings, callback: Callable[[Any, str], None] | None = None) -> SchedulerPlugin:
    """Return what runs graphs as the settings say: on this machine, or as jobs of a cluster."""
    run = settings.run
    if run.use_plugin is not None:
        from iqtflow.workflows.execution.cluster import cluster_plugin

        return cluster_plugin(
            run.use_plugin, stop_on_first_crash=run.stop_on_first_crash, status_callback=callback
        )
    limits = Limits(run.nprocs, run.mem_gb, run.n_gpu_procs or len(visible_gpus()) or 1)
    return SchedulerPlugin(
        LocalProcesses(), limits, stop_on_first_crash=run.stop_on_first_crash, status_callback=callback
    )


def report_failures(failures: Sequence[Failure]) -> int:
    """Print failures, and return the exit code for them."""
    for failure in failures:
        print(describe(failure.node, failure), flush=True)
    return exit_code_of_failures(failure.exit_code for failure in failures)


def find_lost(output_dir: Path, names: Iterable[Path | str]) -> OutputError | None:
    """Return an error if a result is not where this run has stored it; None if all are there.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    names
        Files that the run has stored, relative to it.
    """
    folders: dict[Path, set[str]] = {}
    for path in (output_dir / name for name in names):
        if path.parent not in folders:
            # A new listing: a file server may report for a while that a new file is not there.
            try:
                folders[path.parent] = set(os.listdir(path.parent))
            except OSError:
                folders[path.parent] = set()
        if path.name not in folders[path.parent]:
            return OutputError(
                path,
                found="no such file",
                expected="the result that this run has stored there",
                next_step="Something removed it during the run. Run the same command again: finished steps "
                "are not computed anew.",
            )
    return None


def describe(who: str | os.PathLike, failure: Failure) -> str:
    """Return lines for the terminal: what failed, why, and where the log is."""
    lines = [f"  failed: {os.fspath(who)}", f"    why: {failure.message}"]
    if failure.crashed:
        lines.append(f"    log: {failure.log or 'none could be written; see the lines above'}")
    return "\n".join(lines)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """End all processes of the run at SIGTERM (``scancel``, ``docker stop``, shutdown)."""

    def end(*_: object) -> None:
        print("iqtflow: terminated; the same command goes on from here", file=sys.stderr)
        raise SystemExit(EXIT_TERMINATED)

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # only the main thread can handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def as_failure(crash: Crash) -> Failure:
    """Return why a node failed, in one sentence, and the exit code for it."""
    text = crash.traceback
    cannot_write = re.search(rf"{FULL}|Return code: {EXIT_CANTCREAT}\b|\bOutputError: ", text)
    code = EXIT_CANTCREAT if cannot_write else EXIT_SUBJECT_FAILED
    return Failure(crash.node, reason(text, needs_gb=crash.mem_gb), crash.file, code)


def reason(text: str, *, needs_gb: float | None = None) -> str:
    """Return why a node failed, in one sentence: this program's own error message, else the last line.

    Parameters
    ----------
    text
        Traceback of a node, with the output of its child process.
    needs_gb
        Memory that the node states.
    """
    ours = re.findall(r"^\s*iqtflow-\w+: error: (.+)$", text, re.MULTILINE) or re.findall(
        r"^\s*iqtflow\.[\w.]+: (.+)$", text, re.MULTILINE
    )
    if ours:
        said = ours[-1].strip()
        return too_little_memory(needs_gb) if said.startswith("not enough memory") else said
    if re.search(FULL, text):
        return "the disk is full: free space where the work and output directories are, and run again"
    if is_memory_error(text):
        return too_little_memory(needs_gb)
    if re.search(r"Return code: (-9|137)\b", text):
        return too_little_memory(needs_gb, seen="the child process was killed, SIGKILL")
    if re.search(r"Return code: (-7|135)\b", text):
        return (
            "the child process was killed (SIGBUS): a file that it was reading was cut short, or its disk "
            "went away; put it back, and run again"
        )
    lost = re.search(r"^WorkerLost: (.+)$", text, re.MULTILINE)
    if lost:
        return (
            too_little_memory(needs_gb, seen=lost.group(1)) if "SIGKILL" in lost.group(1) else lost.group(1)
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if re.match(r"^[\w.]*(Error|Exception|Interrupt|JobLost)\b", line)]
    return (wrong or lines or ["unknown"])[-1]
