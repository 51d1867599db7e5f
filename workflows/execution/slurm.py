"""Nodes as jobs of SLURM: nipype writes the scripts, and this module submits them and waits for them.

It asks SLURM once for all jobs. A controller that does not answer is asked again. A job counts as done only
when its result is there.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import glob
from traceback import format_exception
from typing import Any

from nipype.pipeline.engine import Node
from nipype.pipeline.engine.utils import load_resultfile
from nipype.pipeline.plugins.slurm import SLURMPlugin

from iqtflow.utils.errors import IQTFlowError
from iqtflow.workflows.execution.cache import seal

LOGGER = logging.getLogger("nipype.workflow")

#: States of a job that has ended.
GOOD, BAD = {"COMPLETED"}, {
    "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
ADVICE = {
    "CANCELLED": "someone cancelled it (scancel)",
    "OUT_OF_MEMORY": "it took more memory than it asked for: raise --mem in sbatch_args of the plugin file",
    "TIMEOUT": "it took longer than allowed: raise --time in sbatch_args of the plugin file",
    "NODE_FAIL": "the machine that it ran on failed; run again",
    "PREEMPTED": "another job took its place; run again",
}
#: Seconds between two queries of the queue.
POLL_S = 2.0
#: Seconds for which a queue that does not answer is asked again; then its jobs count as failed.
PATIENCE_S = 600.0
#: Seconds until a file that another machine wrote is seen here, on a network file system.
FILE_SYSTEM_S = 60.0
SUBMIT_TRIES, SUBMIT_WAIT_S = 5, 3.0
#: A node that needs no more than this (GB) and one processor runs without a job: it writes a file or sorts a
#: list.
SMALL_GB = 0.3


class SlurmJobLost(IQTFlowError):
    """A job ended and its node has no result."""


class SlurmJobs(SLURMPlugin):
    """Executor for `iqtflow.workflows.execution.scheduler.SchedulerPlugin`: each node is a job.

    Parameters
    ----------
    arguments
        ``plugin_args`` of the plugin file.
    gpu_args
        Options of ``sbatch`` that ask for GPUs; ``{n}`` stands for the number of GPUs.
    """

    def __init__(self, arguments: Mapping[str, Any], gpu_args: str) -> None:
        super().__init__(plugin_args=dict(arguments))
        self._arguments, self._gpu_args = arguments, gpu_args
        self._poll_s = float(arguments.get("poll_s", POLL_S))
        self._running: dict[Node, str] = {}
        self._silent_since: float | None = None
        self._over_since: dict[str, float] = {}
        self._logs: dict[str, str] = {}

    def submit(self, node: Node) -> None:
        """Write the script of a node and submit it."""
        # Else the result of an earlier run would count as that of a job that never starts.
        for result in glob(os.path.join(node.output_dir(), "result_*.pklz")):
            os.unlink(result)
        add_resources(node, self._arguments, self._gpu_args)
        self._config = node.config
        self._running[node] = self._submit_job(node)

    def wait(self) -> list[tuple[Node, list[str] | None]]:
        """Ask SLURM for all jobs; return the nodes whose jobs have ended, with their tracebacks."""
        time.sleep(self._poll_s)
        ended: list[tuple[Node, list[str] | None]] = []
        try:
            states = {number: state for number, (state, _) in squeue().items()}
        except ConnectionError:
            self._silent_since = self._silent_since or time.monotonic()
            silent = time.monotonic() - self._silent_since
            LOGGER.warning("SLURM has not answered for %.0f s.", silent)
            if silent >= PATIENCE_S:
                trace = format_exception(*sys.exc_info())
                ended = [(node, trace) for node in self._running]
        else:
            self._silent_since = None
            for node, job in self._running.items():
                # SLURM deletes the record of a job some minutes after its end.
                over, trace = self._outcome(node, job, states.get(job, "UNKNOWN"))
                if over:
                    ended.append((node, trace or _seal(node)))
        for node, _ in ended:
            del self._running[node]
        return ended

    def close(self) -> None:
        """Cancel all jobs that wait or run."""
        cancel(list(self._running.values()))
        self._running.clear()

    def _outcome(self, node: Node, job: str, state: str) -> tuple[bool, list[str] | None]:
        """Return whether a job is over, and the traceback of its node."""
        if state not in GOOD | BAD | {"UNKNOWN"}:
            self._over_since.pop(job, None)
            return False, None
        try:
            (found,) = glob(os.path.join(node.output_dir(), "result_*.pklz"))
            result = load_resultfile(found)
        except Exception:  # there is none, or only a part of it is seen here
            waited = time.monotonic() - self._over_since.setdefault(job, time.monotonic())
            if state not in BAD and waited < FILE_SYSTEM_S:
                return False, None
            advice = f"{ADVICE.get(state, 'see its output')}; output in {self._logs[job]}"
            return True, [f"SlurmJobLost: job {job} ended as {state}: {advice}\n"]
        trace = result["traceback"] if isinstance(result, dict) else None
        return True, [trace] if isinstance(trace, str) else trace

    def _submit_batchtask(self, scriptfile: str, node: Node) -> str:
        given = f"{self._sbatch_args or ''} {node.plugin_args.get('sbatch_args', '')}"
        output = os.path.join(os.path.dirname(scriptfile), "slurm-%j.out")
        command = [
            "sbatch",
            "--parsable",
            f"--job-name={node.fullname.split('.', 1)[-1]}",
            f"--output={output}",
            *shlex.split(given),
            scriptfile,
        ]
        for attempt in range(1, SUBMIT_TRIES + 1):
            with outside_of_a_job():
                answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                break
            if attempt == SUBMIT_TRIES or "rror: Batch job submission failed: Invalid" in answer.stderr:
                raise SlurmJobLost(f"{shlex.join(command)}: {answer.stderr.strip()}")
            time.sleep(SUBMIT_WAIT_S)
        job = answer.stdout.split(";")[0].strip()
        self._logs[job] = output.replace("%j", job)
        return job


def squeue() -> dict[str, tuple[str, str]]:
    """Return the state of each job of this user, and its name and comment with ``|`` between, by its number.

    Raises
    ------
    ConnectionError
        SLURM does not answer.
    """
    answer = subprocess.run(
        ["squeue", "--noheader", "--me", "--states=all", "--format=%i|%T|%j|%k"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if answer.returncode:
        raise ConnectionError(answer.stderr.strip())
    rows = (line.strip().split("|", 2) for line in answer.stdout.splitlines() if line.count("|") >= 2)
    return {number: (state.split()[0], told) for number, state, told in rows}


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs, whether they run or wait."""
    if jobs:
        subprocess.run(["scancel", *jobs], capture_output=True, check=False)


def add_resources(node: Node, arguments: Mapping[str, Any], gpu_args: str) -> None:
    """Ask, in the job of a node, for the processors, the memory and the GPUs that the node states.

    Parameters
    ----------
    node
        Gets ``plugin_args``.
    arguments
        ``plugin_args`` of the plugin file. Processors and memory that its ``sbatch_args`` name are kept.
    gpu_args
        See `SlurmJobs`.
    """
    given, words = str(arguments.get("sbatch_args", "")), []
    if "--cpus-per-task" not in given and "-c " not in given:
        words.append(f"--cpus-per-task={node.n_procs}")
    if "--mem" not in given:
        words.append(f"--mem={max(int(1024 * node.mem_gb), 256)}M")
    if node.is_gpu_node() and gpu_args:
        words.append(gpu_args.replace("{n}", str(node.n_procs)))
    if words:
        # The leading space: SLURMGraph puts its own options right before.
        node.plugin_args = {**node.plugin_args, "sbatch_args": " " + " ".join(words)}


def is_small(node: Node) -> bool:
    """Return whether a node runs in this process instead of a job."""
    return node.run_without_submitting or (
        node.mem_gb <= SMALL_GB and node.n_procs == 1 and not node.is_gpu_node()
    )


@contextmanager
def outside_of_a_job() -> Iterator[None]:
    """Hide the variables of the job that this process runs in, if any: they would set options of new jobs.

    SLURM refuses a job with both memory for each processor (from this job) and memory in all (from a node).
    """
    hidden = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}
    hidden.pop("SLURM_CONF", None)
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _seal(node: Node) -> list[str] | None:
    """Record what the job of a node has left; return a traceback when its inputs have changed since."""
    try:
        seal(node)
    except Exception:
        return format_exception(*sys.exc_info())
    return None
