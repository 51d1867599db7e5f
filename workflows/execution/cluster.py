"""Nodes as jobs of a cluster, through nipype's own plugins: ``--use-plugin FILE.yml``."""

from __future__ import annotations

import getpass
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from glob import glob
from traceback import format_exception
from typing import Any

import yaml
from nipype.pipeline import plugins
from nipype.pipeline.engine import Node
from nipype.pipeline.plugins.base import SGELikeBatchManagerBase

from iqtflow.utils.errors import UsageError
from iqtflow.utils.files import read_text
from iqtflow.workflows.execution.cache import seal
from iqtflow.workflows.execution.scheduler import JobLimit, SchedulerPlugin

LOGGER = logging.getLogger("nipype.workflow")

#: nipype's plugins that submit one job for each node; the scheduler here waits for them.
NODE_PLUGINS = ("SLURM", "SGE", "PBS", "LSF", "OAR", "Condor")
#: nipype's plugins that submit the whole graph.
GRAPH_PLUGINS = ("SLURMGraph", "SGEGraph", "PBSGraph", "CondorDAGMan")
ALIASES = {"HTCondor": "Condor"}
#: What asks for a GPU, where there is a usual way.
GPU_ARGS = {"SLURM": "--gres=gpu:{n}", "SLURMGraph": "--gres=gpu:{n}"}
#: The argument of each plugin that takes options of its submission command.
OPTIONS = {
    "SLURM": "sbatch_args",
    "SLURMGraph": "sbatch_args",
    "LSF": "bsub_args",
    "OAR": "oarsub_args",
}
#: Nodes that need no more than this (GB) and one processor write a file or sort a list: not worth a job.
SMALL_GB = 0.3
#: Seconds between two looks at the queue.
POLL_S = 2.0
#: Seconds for which a queue that does not answer is asked again before its jobs are given up.
PATIENCE_S = 600.0


@dataclass(frozen=True)
class ClusterPlan:
    """A plugin file as read.

    Attributes
    ----------
    plugin
        Name of nipype's plugin.
    arguments
        For its ``plugin_args``.
    gpu_args
        Options of the submission command that ask for GPUs; ``{n}`` stands for how many.
    """

    plugin: str
    arguments: dict[str, Any] = field(default_factory=dict)
    gpu_args: str = ""


def read_plugin_file(path: str | os.PathLike) -> ClusterPlan:
    """Read a plugin file.

    Parameters
    ----------
    path
        YAML with ``plugin`` (a name), ``plugin_args`` (a mapping, handed to nipype) and ``gpu_args`` (a
        text).

    Raises
    ------
    UsageError
        It cannot be read, or names no plugin for a cluster.
    """

    def wrong(found: str, expected: str) -> UsageError:
        return UsageError(
            path, found=found, expected=expected, next_step="Start from an example in docs/clusters.md."
        )

    try:
        content = yaml.safe_load(read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as fault:
        raise wrong(" ".join(str(fault).split()), "a readable YAML file") from fault
    known = {"plugin", "plugin_args", "gpu_args"}
    if not isinstance(content, dict) or not set(content) <= known:
        extra = sorted(map(str, set(content) - known)) if isinstance(content, dict) else ["no mapping"]
        raise wrong(", ".join(extra), f"the keys {', '.join(sorted(known))}")
    name = content.get("plugin")
    name = ALIASES.get(name, name) if isinstance(name, str) else None
    if name not in NODE_PLUGINS + GRAPH_PLUGINS:
        here = " (without --use-plugin runs are on this machine, see --nprocs)"
        raise wrong(
            f"plugin {content.get('plugin')!r}", f"one of {', '.join(NODE_PLUGINS + GRAPH_PLUGINS)}{here}"
        )
    arguments = content.get("plugin_args") or {}
    if not isinstance(arguments, dict):
        raise wrong(f"plugin_args {arguments!r}", "a mapping")
    for key in ("max_jobs", "poll_s"):
        value = arguments.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise wrong(f"{key} {value!r} in plugin_args", "a number above 0")
    for key in (OPTIONS.get(name, "qsub_args"), "template", "jobid_arg"):
        if not isinstance(arguments.get(key, ""), str):
            raise wrong(f"{key} {arguments[key]!r} in plugin_args", "a text")
    if not isinstance(content.get("gpu_args", ""), str):
        raise wrong(f"gpu_args {content['gpu_args']!r}", "a text")
    return ClusterPlan(name, dict(arguments), str(content.get("gpu_args", GPU_ARGS.get(name, ""))))


def cluster_plugin(
    path: str | os.PathLike,
    *,
    stop_on_first_crash: bool = False,
    status_callback: Callable[[Node, str], None] | None = None,
) -> Any:
    """Return the plugin that a file names, guarded against the ways in which a queue loses jobs.

    Raises
    ------
    UsageError
        As for `read_plugin_file`.
    """
    plan = read_plugin_file(path)
    os.environ.setdefault(
        "LOGNAME", getpass.getuser()
    )  # nipype names jobs by it; cron and containers lack it
    if plan.plugin in GRAPH_PLUGINS:
        from iqtflow.workflows.execution.cluster_graph import GraphPlugin

        return GraphPlugin(plan)
    if plan.plugin == "SLURM":
        from iqtflow.workflows.execution.slurm import SlurmQueue

        queue: SGELikeBatchManagerBase = SlurmQueue(plugin_args=plan.arguments)
    else:
        queue = getattr(plugins, f"{plan.plugin}Plugin")(plugin_args=plan.arguments)
    return SchedulerPlugin(
        QueuedJobs(queue, plan),
        JobLimit(float(plan.arguments.get("max_jobs", "inf"))),
        stop_on_first_crash=stop_on_first_crash,
        status_callback=status_callback,
        runs_here=is_small,
    )


class QueuedJobs:
    """Executor for `iqtflow.workflows.execution.scheduler.SchedulerPlugin`: each node is a job in a queue.

    Parameters
    ----------
    queue
        One of nipype's plugins; it writes the scripts, submits them and reads the results.
    plan
        Where it comes from.
    """

    def __init__(self, queue: SGELikeBatchManagerBase, plan: ClusterPlan) -> None:
        self._queue, self._plan = queue, plan
        self._running: dict[Node, int] = {}
        self._silent_since: dict[Node, float] = {}
        self._poll_s = float(plan.arguments.get("poll_s", POLL_S))

    def submit(self, node: Node) -> None:
        """Write a node's script and put it into the queue."""
        # A job that never starts leaves the result of an earlier run where nipype takes it for its own.
        for result in glob(os.path.join(node.output_dir(), "result_*.pklz")):
            os.unlink(result)
        add_resources(node, self._plan)
        self._queue._config = node.config
        self._running[node] = self._queue._submit_job(node, updatehash=False)

    def wait(self) -> list[tuple[Node, list[str] | None]]:
        """Look at the queue; return nodes whose jobs have ended."""
        time.sleep(self._poll_s)
        ended = []
        for node, job in list(self._running.items()):
            try:
                result = self._queue._get_result(job)
            except Exception:
                silent = time.monotonic() - self._silent_since.setdefault(node, time.monotonic())
                LOGGER.warning("The queue did not tell about job %s for %.0f s.", job, silent)
                if silent < PATIENCE_S:
                    continue
                result = {"traceback": format_exception(*sys.exc_info())}
            self._silent_since.pop(node, None)
            if result is not None:
                del self._running[node]
                traceback = result.get("traceback") or _sealed(node)
                ended.append((node, [traceback] if isinstance(traceback, str) else traceback))
        return ended

    def close(self) -> None:
        """Take what is still running or waiting out of the queue."""
        jobs = list(self._running.values())
        self._running.clear()
        if not jobs:
            return
        cancel = getattr(self._queue, "cancel", None)
        if cancel is not None:
            cancel(jobs)
        else:
            print(
                f"iqtflow: jobs that are still in the queue: {' '.join(map(str, jobs))}; take them out",
                file=sys.stderr,
            )


def _sealed(node: Node) -> list[str] | None:
    """Note what the job of a node has left; a traceback when its inputs have changed since."""
    try:
        seal(node)
    except Exception:
        return format_exception(*sys.exc_info())
    return None


def add_resources(node: Node, plan: ClusterPlan) -> None:
    """Tell a node's job what the node states: processors, memory, a GPU."""
    option = OPTIONS.get(plan.plugin, "qsub_args")
    words = []
    if option == "sbatch_args":
        given = str(plan.arguments.get(option, ""))
        if "--cpus-per-task" not in given and "-c " not in given:
            words.append(f"--cpus-per-task={node.n_procs}")
        if "--mem" not in given:
            words.append(f"--mem={max(int(1024 * node.mem_gb), 256)}M")
    if node.is_gpu_node() and plan.gpu_args:
        words.append(plan.gpu_args.replace("{n}", str(node.n_procs)))
    if words:
        # The leading space: SLURMGraph puts its own options right before.
        node.plugin_args = {**node.plugin_args, option: " " + " ".join(words)}


def is_small(node: Node) -> bool:
    """Return whether a node is not worth a job."""
    return node.run_without_submitting or (
        node.mem_gb <= SMALL_GB and node.n_procs == 1 and not node.is_gpu_node()
    )
