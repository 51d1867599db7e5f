"""Runs on a cluster, through one of nipype's plugins: ``--use-plugin FILE.yml``."""

from __future__ import annotations

import getpass
import inspect
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx
import yaml
from nipype.pipeline import plugins
from nipype.pipeline.engine import Node
from nipype.pipeline.plugins.base import GraphPluginBase, SGELikeBatchManagerBase

from iqtflow.utils.errors import Submitted, UsageError
from iqtflow.utils.files import read_text
from iqtflow.workflows.execution.cache import DIGESTS, forget, is_sound, seal
from iqtflow.workflows.execution.scheduler import Crash, GraphRunner, JobLimit, SchedulerPlugin
from iqtflow.workflows.execution.slurm import (
    ADVICE,
    BAD,
    GOOD,
    LOGGER,
    POLL_S,
    SlurmJobs,
    add_resources,
    cancel,
    is_small,
    outside_of_a_job,
    squeue,
)

#: Plugins that are tested here: one job for each node, or all jobs submitted at once.
SLURM, SLURM_GRAPH = "SLURM", "SLURMGraph"


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
        Options of ``sbatch`` that ask for GPUs; ``{n}`` stands for the number of GPUs.
    """

    plugin: str
    arguments: dict[str, Any] = field(default_factory=dict)
    gpu_args: str = "--gres=gpu:{n}"


def read_plugin_file(path: str | os.PathLike) -> ClusterPlan:
    """Read a plugin file.

    Parameters
    ----------
    path
        YAML with ``plugin`` (a name), ``plugin_args`` (a mapping, for nipype) and ``gpu_args`` (a text).

    Raises
    ------
    UsageError
        It cannot be read, or names no plugin for a cluster.
    """

    def wrong(found: str, expected: str) -> UsageError:
        return UsageError(
            path, found=found, expected=expected, next_step="Start from the example in docs/tasks/cluster.md."
        )

    try:
        content = yaml.safe_load(read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as fault:
        raise wrong(" ".join(str(fault).split()), "a readable YAML file") from fault
    known = {"plugin", "plugin_args", "gpu_args"}
    if not isinstance(content, dict) or not set(content) <= known:
        extra = sorted(map(str, set(content) - known)) if isinstance(content, dict) else ["no mapping"]
        raise wrong(", ".join(extra), f"the keys {', '.join(sorted(known))}")
    name, arguments = content.get("plugin"), content.get("plugin_args") or {}
    if not isinstance(name, str) or _plugin_class(name) is None:
        raise wrong(
            f"plugin {name!r}",
            f"{SLURM}, {SLURM_GRAPH} or another plugin of nipype for clusters (without --use-plugin the run "
            "uses this machine, see --nprocs)",
        )
    if not isinstance(arguments, dict):
        raise wrong(f"plugin_args {arguments!r}", "a mapping")
    for key in ("max_jobs", "poll_s"):
        value = arguments.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise wrong(f"{key} {value!r} in plugin_args", "a number above 0")
    for key in ("sbatch_args", "template"):
        if not isinstance(arguments.get(key, ""), str):
            raise wrong(f"{key} {arguments[key]!r} in plugin_args", "a text")
    gpu_args = content.get("gpu_args", ClusterPlan.gpu_args)
    if not isinstance(gpu_args, str):
        raise wrong(f"gpu_args {gpu_args!r}", "a text")
    if "gpu_args" in content and name not in (SLURM, SLURM_GRAPH):
        raise wrong(f"gpu_args with plugin {name}", f"gpu_args with {SLURM} or {SLURM_GRAPH} only")
    return ClusterPlan(name, dict(arguments), gpu_args)


def cluster_plugin(
    path: str | os.PathLike,
    *,
    stop_on_first_crash: bool = False,
    status_callback: Callable[[Node, str], None] | None = None,
) -> GraphRunner:
    """Return what runs a graph with the plugin that a file names.

    Parameters
    ----------
    path
        Plugin file, see `read_plugin_file`.
    stop_on_first_crash
        Submit nothing after the first failure; with SLURM only.
    status_callback
        Called for each node that starts or ends; with SLURM only.

    Raises
    ------
    UsageError
        As for `read_plugin_file`.
    """
    plan = read_plugin_file(path)
    # nipype names jobs by this variable. Cron and containers do not set it.
    os.environ.setdefault("LOGNAME", getpass.getuser())
    if plan.plugin != SLURM:
        return NipypePlugin(plan)
    return SchedulerPlugin(
        SlurmJobs(plan.arguments, plan.gpu_args),
        JobLimit(float(plan.arguments.get("max_jobs", "inf"))),
        stop_on_first_crash=stop_on_first_crash,
        status_callback=status_callback,
        runs_here=is_small,
    )


class NipypePlugin(GraphRunner):
    """Hand a whole graph to a plugin of nipype, and look afterwards which nodes have results.

    The jobs of SLURMGraph are waited for. All other plugins run as nipype runs them.

    Parameters
    ----------
    plan
        The plugin file.

    Attributes
    ----------
    crashes : list of Crash
        Nodes that failed; not those that only lack the results of a failed node.
    """

    def __init__(self, plan: ClusterPlan) -> None:
        super().__init__()
        self._plan = plan
        self._mark = f"iqtflow-{uuid.uuid4().hex}"

    def run_graph(self, graph: nx.DiGraph, config: Mapping[str, Any]) -> None:
        """Run all nodes of an expanded graph.

        Raises
        ------
        Submitted
            The plugin does not wait for its jobs.
        """
        nodes, slurm = list(nx.topological_sort(graph)), self._plan.plugin == SLURM_GRAPH
        arguments = dict(self._plan.arguments)
        for node in nodes:
            if slurm:
                add_resources(node, arguments, self._plan.gpu_args)
            folder = Path(node.output_dir())
            # The jobs would use results that changed. Results without digests are of jobs submitted earlier.
            if (folder / DIGESTS).exists() and not is_sound(folder):
                forget(folder)
        if slurm:  # without the second option, jobs that need a failed one wait for ever
            own = f" --comment={self._mark} --kill-on-invalid-dep=yes"
            arguments["sbatch_args"] = f"{arguments.get('sbatch_args', '')}{own}"
        kind = _plugin_class(self._plan.plugin)
        assert kind is not None, self._plan.plugin
        states: dict[str, str] = {}
        fault: Exception | None = None
        with outside_of_a_job():
            try:
                kind(plugin_args=arguments).run(graph, config)
            except Exception as raised:
                if issubclass(kind, GraphPluginBase):  # the jobs could not be submitted
                    raise
                fault = raised  # some node failed
        if slurm:
            states = self._wait()
        elif issubclass(kind, GraphPluginBase):
            raise Submitted(
                f"{len(nodes)} jobs were submitted by {self._plan.plugin}, which does not wait for them; "
                "give the same command again when they have ended"
            )
        self._look(graph, nodes, states, Path(config["execution"]["crashdump_dir"]))
        if fault is not None and not self.crashes:
            raise fault

    def _wait(self) -> dict[str, str]:
        """Wait for the jobs of this graph; return their last states by name. An interruption cancels them."""
        states: dict[str, str] = {}
        try:
            while True:
                try:
                    now = self._jobs()
                except ConnectionError as fault:
                    LOGGER.warning("SLURM does not answer: %s", fault)
                else:
                    states.update({name: state for name, state in now.values()})
                    if all(state in GOOD | BAD for _, state in now.values()):
                        return states
                time.sleep(POLL_S)
        except BaseException:
            with suppress(ConnectionError):
                cancel([number for number, (_, state) in self._jobs().items() if state not in GOOD | BAD])
            raise

    def _jobs(self) -> dict[str, tuple[str, str]]:
        """Return name and state of each job of this graph by its number."""
        ending = f"|{self._mark}"
        return {
            number: (told.removesuffix(ending), state)
            for number, (state, told) in squeue().items()
            if told.endswith(ending)
        }

    def _look(self, graph: nx.DiGraph, nodes: list[Node], states: Mapping[str, str], logs: Path) -> None:
        """Record the nodes that have results, and those that failed."""
        missing: set[Node] = set()
        crash_files = {_node_of(path): path for path in sorted(logs.glob("crash-*.txt"))}
        for number, node in enumerate(nodes):
            blocked = not missing.isdisjoint(graph.predecessors(node))
            if not blocked and _is_done(node):
                seal(node)
                continue
            missing.add(node)
            if blocked:
                continue
            file = crash_files.get(node.fullname)
            if file is not None:
                text = file.read_text(errors="replace")
            else:
                name = re.sub(r"[-.:]", "_", f"j{number}_{node._id}")
                state = states.get(name, "UNKNOWN")
                text = f"SlurmJobLost: job {name} ended as {state}: {ADVICE.get(state, 'see its output')}\n"
            self.crashes.append(Crash(node.fullname, text, file))


def _plugin_class(name: str) -> type | None:
    """Return nipype's plugin of a name; None when there is none, or none for clusters."""
    kind = getattr(plugins, f"{name}Plugin", None)
    clusters = (SGELikeBatchManagerBase, GraphPluginBase)
    return kind if inspect.isclass(kind) and issubclass(kind, clusters) else None


def _is_done(node: Node) -> bool:
    try:
        node._get_hashval()
        return node.is_cached() == (True, True)
    except Exception:
        return False


def _node_of(crash_file: Path) -> str:
    found = re.search(r"^Node: (\S+)", crash_file.read_text(errors="replace"), re.MULTILINE)
    return found.group(1) if found else ""
