"""The scheduler: it decides when each node of a graph runs, and which nodes need not run again.

If nipype's own schedulers lose a worker process, the run waits for ever, or all running nodes fail. They also
reserve resources for nodes that are cached, and search the whole graph at every step. This scheduler starts
each node that is ready and fits, through an executor: processes of this machine
(`iqtflow.workflows.execution.local`) or jobs of SLURM (`iqtflow.workflows.execution.slurm`).
"""

from __future__ import annotations

import gc
import heapq
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exception
from typing import Any, Protocol

import networkx as nx
from nipype.pipeline.engine import Node
from nipype.pipeline.plugins.base import PluginBase
from nipype.pipeline.plugins.tools import report_crash

from iqtflow.workflows.execution.cache import forget, is_sound, seal

LOGGER = logging.getLogger("nipype.workflow")
#: Free memory below this (GB) is rounding, not shortage.
TINY_GB = 1e-6


class Executor(Protocol):
    """Interface of what runs nodes."""

    def submit(self, node: Node) -> None:
        """Start a node."""

    def wait(self) -> list[tuple[Node, list[str] | None]]:
        """Wait for some time for a node to end; return each node that has ended with its traceback, or with
        None if it succeeded.
        """

    def close(self) -> None:
        """End all nodes that still run."""


@dataclass(frozen=True)
class Limits:
    """What all nodes that run at the same time may use together: processors, memory (GB), GPU jobs."""

    n_procs: float
    mem_gb: float
    n_gpu_procs: int = 1

    def needs(self, node: Node) -> tuple[float, float, float]:
        """Return the processors, memory (GB) and GPU jobs that a node uses; no more than there are."""
        return (
            min(node.n_procs, self.n_procs),
            min(node.mem_gb, self.mem_gb),
            min(node.n_procs, max(self.n_gpu_procs, 1)) if node.is_gpu_node() else 0,
        )


class JobLimit(Limits):
    """How many nodes may run at a time as jobs of a cluster. The cluster shares out processors and memory."""

    def __init__(self, n_jobs: float) -> None:
        super().__init__(n_jobs, mem_gb=0.0)

    def needs(self, node: Node) -> tuple[float, float, float]:
        """Every node counts as one processor."""
        return 1, 0.0, 0


@dataclass(frozen=True)
class Crash:
    """A node that failed: its full name, the traceback, the crash file (None when none could be written), and
    the memory (GB) that it states.
    """

    node: str
    traceback: str
    file: Path | None
    mem_gb: float | None = None


class GraphRunner(PluginBase):
    """Base of the plugins that run a graph; for ``plugin`` of `nipype.pipeline.engine.Workflow.run`.

    Python's garbage collector is on while the graph runs, also inside `collector_off`. nipype expands the
    graph in the same call, which is faster without the collector.

    Attributes
    ----------
    crashes : list of Crash
        Nodes that failed.
    """

    def __init__(self, status_callback: Callable[[Node, str], None] | None = None) -> None:
        super().__init__({"status_callback": status_callback})
        self.crashes: list[Crash] = []

    def run(self, graph: nx.DiGraph, config: Mapping[str, Any], updatehash: bool = False) -> None:  # noqa: FBT001, FBT002
        """Run the graph, as nipype calls it."""
        with collector_on():
            self.run_graph(graph, config)

    def run_graph(self, graph: nx.DiGraph, config: Mapping[str, Any]) -> None:
        """Run all nodes of an expanded graph, or as many as failures leave possible."""
        raise NotImplementedError


class SchedulerPlugin(GraphRunner):
    """Run a graph with an executor; `nipype.pipeline.engine.Workflow.run` takes it as its plugin.

    Parameters
    ----------
    executor
        What runs the nodes.
    limits
        Resources; a node that needs more runs alone.
    stop_on_first_crash
        End everything when one node fails.
    status_callback
        Called with a node and ``"start"``, ``"end"`` or ``"exception"``; a cached node only ends.
    runs_here
        Returns whether a node runs in this process instead of in the executor.

    Attributes
    ----------
    crashes : list of Crash
        In the order in which nodes failed. No exception is raised for them.
    executed : list of str
        Full names of the nodes that ran; nodes with a result in the cache do not run.
    """

    def __init__(
        self,
        executor: Executor,
        limits: Limits,
        *,
        stop_on_first_crash: bool = False,
        status_callback: Callable[[Node, str], None] | None = None,
        runs_here: Callable[[Node], bool] = lambda node: node.run_without_submitting,
    ) -> None:
        super().__init__(status_callback)
        self._executor, self._limits, self._stop = executor, limits, stop_on_first_crash
        self._runs_here = runs_here
        self.executed: list[str] = []

    def run_graph(self, graph: nx.DiGraph, config: Mapping[str, Any]) -> None:
        """Run all nodes of an expanded graph, or as many as failures leave possible."""
        self._graph = graph
        self._waits_for = {node: set(graph.predecessors(node)) for node in graph}
        self._rank = _ranks(graph)
        self._ready = [(self._rank[node], node) for node, others in self._waits_for.items() if not others]
        heapq.heapify(self._ready)
        self._settled: set[Node] = set()  # done, failed, or not run because of a failure before them
        self._cached: set[Node] = set()
        self._running: dict[Node, tuple[float, float, float]] = {}
        try:
            while self._ready or self._running:
                self._start()
                if self._stop and self.crashes:
                    break
                if self._running:
                    for node, traceback in self._executor.wait():
                        self._end(node, traceback)
        finally:
            self._executor.close()

    def _start(self) -> None:
        """Mark the ready nodes that are cached as done, and start those that fit."""
        too_large = []
        while self._ready and not (self._stop and self.crashes):
            _, node = heapq.heappop(self._ready)
            if node in self._settled or node in self._running or self._waits_for[node]:
                continue
            if not self._fits(node):
                too_large.append((self._rank[node], node))
                continue
            try:
                cached = _is_cached(node)
            except Exception:  # files of an earlier result are gone
                traceback = format_exception(*sys.exc_info())
                if not self._repair(node):
                    self._end(node, traceback)
                continue
            if cached:
                self._cached.add(node)
                self._settle(node)
                continue
            self._running[node] = self._limits.needs(node)
            self.executed.append(node.fullname)
            self._tell(node, "start")
            if self._runs_here(node):
                self._end(node, _run_here(node))
                continue
            try:
                self._executor.submit(node)
            except Exception:
                self._end(node, format_exception(*sys.exc_info()))
        for item in too_large:
            heapq.heappush(self._ready, item)

    def _fits(self, node: Node) -> bool:
        if not self._running:
            return True
        taken = [sum(column) for column in zip(*self._running.values(), strict=True)]
        n_procs, mem_gb, n_gpus = self._limits.needs(node)
        return (
            taken[0] + n_procs <= self._limits.n_procs
            and taken[1] + mem_gb <= self._limits.mem_gb + TINY_GB
            and taken[2] + n_gpus <= max(self._limits.n_gpu_procs, 1)
        )

    def _end(self, node: Node, traceback: list[str] | None) -> None:
        """Record how a node ended."""
        self._running.pop(node, None)
        if traceback is None:
            self._settle(node)
            return
        self._tell(node, "exception")
        file = _write_crash(node, traceback)
        self.crashes.append(Crash(node.fullname, "".join(traceback), file, node.mem_gb))
        self._settled.update({node, *nx.descendants(self._graph, node)})

    def _tell(self, node: Node, status: str) -> None:
        if self._status_callback is not None:
            self._status_callback(node, status)

    def _settle(self, node: Node) -> None:
        self._settled.add(node)
        self._tell(node, "end")
        for follower in self._graph.successors(node):
            self._waits_for[follower].discard(node)
            if not self._waits_for[follower] and follower not in self._settled:
                heapq.heappush(self._ready, (self._rank[follower], follower))

    def _repair(self, node: Node) -> bool:
        """Make the cached nodes before this one run again; return whether there are any."""
        for other in self._graph.predecessors(node):
            if other in self._cached:
                LOGGER.info("Results of %s are gone or moved: it runs again.", other.fullname)
                forget(other.output_dir())
                self._cached.discard(other)
                self._settled.discard(other)
                heapq.heappush(self._ready, (self._rank[other], other))
            if other not in self._settled:
                self._waits_for[node].add(other)
        return bool(self._waits_for[node])


@contextmanager
def collector_off() -> Iterator[None]:
    """Build a graph without Python's garbage collector, which would search it again and again."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def collector_on() -> Iterator[None]:
    """Run a graph with the garbage collector, which does not search what exists already."""
    before = gc.isenabled()
    gc.freeze()
    gc.enable()
    try:
        yield
    finally:
        gc.unfreeze()
        if not before:
            gc.disable()


def _ranks(graph: nx.DiGraph) -> dict[Node, tuple[int, int]]:
    """Return the priority of each node: scan by scan, so that the first are complete early."""
    groups: dict[str, int] = {}
    return {
        node: (groups.setdefault(node._hierarchy or "", len(groups)), place)
        for place, node in enumerate(nx.topological_sort(graph))
    }


def _is_cached(node: Node) -> bool:
    """Return whether a node need not run. Also reads its inputs from the results of the nodes before it."""
    node._get_hashval()
    cached, updated = node.is_cached()
    if cached and not is_sound(node.output_dir()):
        forget(node.output_dir())  # else nipype would not run it
        return False
    forced = node.overwrite or (node.overwrite is None and node.interface.always_run)
    return cached and updated and not forced


def _run_here(node: Node) -> list[str] | None:
    folder = os.getcwd()
    try:
        node.run()
        seal(node)
    except Exception:
        return format_exception(*sys.exc_info())
    finally:
        os.chdir(folder)
    return None


def _write_crash(node: Node, traceback: list[str]) -> Path | None:
    """Write the crash file. If that fails, for example because the disk is full, log the failure instead."""
    try:
        return Path(report_crash(node, traceback=list(traceback)))
    except Exception as fault:
        LOGGER.error("No crash file could be written: %s\n%s", fault, "".join(traceback))
        return None
