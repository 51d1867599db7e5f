"""SLURM as nipype's plugin has it, asked less often and believed less easily."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from typing import Any

from nipype.pipeline.engine import Node
from nipype.pipeline.engine.utils import load_resultfile
from nipype.pipeline.plugins.slurm import SLURMPlugin

from iqtflow.utils.errors import IQTFlowError

LOGGER = logging.getLogger("nipype.workflow")

#: States of a job that is over.
GOOD, BAD = {"COMPLETED"}, {
    "BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
ADVICE = {
    "CANCELLED": "someone took it out of the queue (scancel)",
    "OUT_OF_MEMORY": "it took more memory than it asked for: raise --mem in sbatch_args of the plugin file",
    "TIMEOUT": "it took longer than allowed: raise --time in sbatch_args of the plugin file",
    "NODE_FAIL": "the machine that it ran on failed; run again",
    "PREEMPTED": "another job took its place; run again",
}
#: Seconds until a file that another machine wrote is seen here, on a network file system.
FILE_SYSTEM_S = 60.0
#: Seconds for which the answer of the queue is taken to hold.
ANSWER_HOLDS_S = 1.0
SUBMIT_TRIES, SUBMIT_WAIT_S = 5, 3.0


class SlurmJobLost(IQTFlowError):
    """A job ended without its node having finished."""


class SlurmQueue(SLURMPlugin):
    """nipype's SLURM plugin for `iqtflow.workflows.execution.cluster.QueuedJobs`.

    One ``squeue`` for all jobs instead of one for each; a controller that does not answer is asked again,
    where nipype takes its jobs for failed; a cancelled job is told at once, by its state.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args or {})
        self._states: dict[int, str] = {}
        self._logs: dict[int, str] = {}
        self._asked = 0.0
        self._over_since: dict[int, float] = {}

    def _submit_batchtask(self, scriptfile: str, node: Node) -> int:
        folder = os.path.dirname(scriptfile)
        given = f"{self._sbatch_args or ''} {node.plugin_args.get('sbatch_args', '')}"
        command = [
            "sbatch",
            "--parsable",
            f"--job-name={node.fullname.split('.', 1)[-1]}",
            f"--output={os.path.join(folder, 'slurm-%j.out')}",
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
        job = int(answer.stdout.split(";")[0])
        self._pending[job] = node.output_dir()
        self._logs[job] = os.path.join(folder, f"slurm-{job}.out")
        self._states[job] = "PENDING"
        return job

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        state = self._state(taskid)
        if state not in GOOD | BAD | {"UNKNOWN"}:
            self._over_since.pop(taskid, None)
            return None
        folder = self._pending[taskid]
        found = glob(os.path.join(folder, "result_*.pklz"))
        if found:
            result = load_resultfile(found[0])
            trace = result["traceback"] if isinstance(result, dict) else None
            return {"traceback": trace}
        waited = time.monotonic() - self._over_since.setdefault(taskid, time.monotonic())
        if state not in BAD and waited < FILE_SYSTEM_S:
            return None
        advice = ADVICE.get(state, "see its output")
        log = self._logs[taskid]
        return {"traceback": f"SlurmJobLost: job {taskid} ended as {state}: {advice}; output in {log}\n"}

    def cancel(self, jobs: Sequence[int]) -> None:
        """Take jobs out of the queue, running or not."""
        subprocess.run(["scancel", *map(str, jobs)], capture_output=True, check=False)

    def _state(self, job: int) -> str:
        """State of a job, from one look at all of them."""
        if time.monotonic() - self._asked > ANSWER_HOLDS_S:
            answer = subprocess.run(
                ["squeue", "--noheader", "--me", "--states=all", "--format=%i|%T"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if answer.returncode:
                raise ConnectionError(answer.stderr.strip())
            seen = dict(line.strip().split("|") for line in answer.stdout.splitlines() if "|" in line)
            # Jobs that are over for some minutes are forgotten by the controller.
            self._states = {j: seen.get(str(j), "UNKNOWN") for j in self._pending}
            self._asked = time.monotonic()
        return self._states.get(job, "PENDING").split()[0]


@contextmanager
def outside_of_a_job() -> Iterator[None]:
    """Hide the variables of the job that this process is in, if it is: they would speak for new jobs, and
    memory for each processor of that job and memory in all of a new one exclude each other.
    """
    hidden = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}
    hidden.pop("SLURM_CONF", None)
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
