"""A whole graph handed to a cluster at once: SLURMGraph and its like."""

from __future__ import annotations

import logging
import re
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import networkx as nx
from nipype.pipeline import plugins
from nipype.pipeline.engine import Node
from nipype.pipeline.plugins.base import PluginBase

from iqtflow.utils.errors import Submitted
from iqtflow.workflows.execution.cache import DIGESTS, forget, is_sound, seal
from iqtflow.workflows.execution.cluster import POLL_S, ClusterPlan, add_resources
from iqtflow.workflows.execution.scheduler import Crash, collector_on
from iqtflow.workflows.execution.slurm import ADVICE, BAD, GOOD, outside_of_a_job

LOGGER = logging.getLogger("nipype.workflow")


class GraphPlugin(PluginBase):
    """Submit a graph as jobs that depend on each other, wait where that can be done, and look what came out.

    Parameters
    ----------
    plan
        The plugin file.

    Attributes
    ----------
    crashes : list of Crash
        Nodes that did not finish, but for those that could not run for want of another.
    """

    def __init__(self, plan: ClusterPlan) -> None:
        super().__init__({})
        self._plan = plan
        self._mark = f"iqtflow-{uuid.uuid4().hex}"
        self.crashes: list[Crash] = []

    def run(self, graph: nx.DiGraph, config: Mapping[str, Any], updatehash: bool = False) -> None:  # noqa: FBT001, FBT002
        """Submit all nodes.

        Raises
        ------
        Submitted
            This cluster cannot be asked what became of the jobs.
        """
        nodes = list(nx.topological_sort(graph))
        for node in nodes:
            add_resources(node, self._plan)
            folder = Path(node.output_dir())
            # The jobs would take what they find. What a plugin that does not wait has made is not sealed yet.
            if (folder / DIGESTS).exists() and not is_sound(folder):
                forget(folder)
        arguments = dict(self._plan.arguments)
        slurm = self._plan.plugin == "SLURMGraph"
        if slurm:
            # Jobs that wait for one that failed would wait for ever.
            own = f" --comment={self._mark} --kill-on-invalid-dep=yes"
            arguments["sbatch_args"] = f"{arguments.get('sbatch_args', '')}{own}"
        elif self._plan.plugin == "CondorDAGMan":
            arguments.setdefault("block", True)
        plugin = getattr(plugins, f"{self._plan.plugin}Plugin")(plugin_args=arguments)
        states: dict[str, str] = {}
        with outside_of_a_job(), collector_on():
            plugin.run(graph, config, updatehash=updatehash)
        if slurm:
            with collector_on():
                states = self._wait()
        elif not arguments.get("block"):
            raise Submitted(
                f"{len(nodes)} jobs were submitted by {self._plan.plugin}, which does not wait for them; "
                "give the same command again when they have ended: it finds what is done"
            )
        self._look(graph, nodes, states, Path(config["execution"]["crashdump_dir"]))

    def _wait(self) -> dict[str, str]:
        """Wait for the jobs of this graph; return their last states by their names."""
        states: dict[str, str] = {}
        with _cancelled_on_interrupt(self._mark):
            while True:
                now = _jobs(self._mark)
                states.update(now or {})
                if now is not None and all(state in GOOD | BAD for state in now.values()):
                    return states
                time.sleep(POLL_S)

    def _look(self, graph: nx.DiGraph, nodes: list[Node], states: Mapping[str, str], logs: Path) -> None:
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


def _is_done(node: Node) -> bool:
    try:
        node._get_hashval()
        return node.is_cached() == (True, True)
    except Exception:
        return False


def _node_of(crash_file: Path) -> str:
    found = re.search(r"^Node: (\S+)", crash_file.read_text(errors="replace"), re.MULTILINE)
    return found.group(1) if found else ""


def _jobs(mark: str) -> dict[str, str] | None:
    """States of the jobs with a mark, by name; None when the queue does not answer."""
    answer = subprocess.run(
        ["squeue", "--noheader", "--me", "--states=all", "--format=%j|%T|%k"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if answer.returncode:
        LOGGER.warning("The queue does not answer: %s", answer.stderr.strip())
        return None
    rows = (line.strip().split("|") for line in answer.stdout.splitlines())
    return {name: state for name, state, comment in rows if comment == mark}


@contextmanager
def _cancelled_on_interrupt(mark: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        rows = subprocess.run(
            ["squeue", "--noheader", "--me", "--format=%i|%k"], capture_output=True, text=True, check=False
        ).stdout.splitlines()
        jobs = [row.split("|")[0].strip() for row in rows if row.strip().endswith(f"|{mark}")]
        if jobs:
            subprocess.run(["scancel", *jobs], capture_output=True, check=False)
        raise
