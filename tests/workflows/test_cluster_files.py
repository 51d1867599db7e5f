"""The plugin file of a cluster: what is in it reaches the jobs, and errors in it are reported."""

from __future__ import annotations

import gc
import subprocess
from pathlib import Path

import pytest
from jobs import Job, chain, graph
from nipype.pipeline import plugins
from nipype.pipeline.engine import Node
from nipype.pipeline.plugins.base import GraphPluginBase, SGELikeBatchManagerBase

from iqtflow.utils.errors import Submitted, UsageError
from iqtflow.workflows.execution.cluster import cluster_plugin, read_plugin_file
from iqtflow.workflows.execution.nipype_config import configure_nipype
from iqtflow.workflows.execution.scheduler import collector_off
from iqtflow.workflows.execution.slurm import add_resources, is_small


@pytest.fixture
def read(tmp_path):
    def from_text(text: str):
        path = tmp_path / "plugin.yml"
        path.write_text(text)
        return read_plugin_file(path)

    return from_text


def node(**inputs) -> Node:
    return Node(Job(**inputs), name="job", mem_gb=3.0, n_procs=4)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plugin: SLURM", "--cpus-per-task=4 --mem=3072M"),
        ("plugin: SLURM\nplugin_args: {sbatch_args: '--mem=9G -c 2'}", None),
        ("plugin: SLURMGraph\nplugin_args: {sbatch_args: '--mem=9G'}", "--cpus-per-task=4"),
    ],
)
def test_a_job_asks_for_what_its_node_states_and_the_file_does_not(read, text, wanted):
    plan, heavy = read(text), node()
    add_resources(heavy, plan.arguments, plan.gpu_args)
    assert heavy.plugin_args.get("sbatch_args") == (wanted and f" {wanted}")


@pytest.mark.parametrize(
    ("text", "n_gpus", "words"),
    [
        ("plugin: SLURM", 1, "--gres=gpu:1"),
        ("plugin: SLURM", 2, "--gres=gpu:2"),
        ("plugin: SLURM\ngpu_args: --gpus={n}", 1, "--gpus=1"),
    ],
)
def test_gpu_nodes_ask_for_their_gpus(read, text, n_gpus, words):
    plan, gpu = read(text), Node(Job(use_gpu=True), name="job", mem_gb=3.0, n_procs=n_gpus)
    add_resources(gpu, plan.arguments, plan.gpu_args)
    assert words in gpu.plugin_args["sbatch_args"].split()


def test_steps_that_only_store_a_file_are_no_jobs():
    assert is_small(Node(Job(), name="sink", mem_gb=0.3))
    assert not is_small(node())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plugin: Slurm", "SLURM"),
        ("plugin: MultiProc", "--nprocs"),
        ("pluginn: SLURM", "pluginn"),
        ("plugin: [", "readable YAML"),
        ("just a text", "mapping"),
        ("plugin: SLURM\nplugin_args: 3", "mapping"),
        ("plugin: [SLURM]", "plugin ['SLURM']"),
        ("plugin: SLURM\nplugin_args: {max_jobs: many}", "max_jobs 'many'"),
        ("plugin: SLURM\nplugin_args: {poll_s: 0}", "poll_s 0"),
        ("plugin: SLURM\nplugin_args: {sbatch_args: [--mem=9G]}", "sbatch_args ['--mem=9G']"),
        ("plugin: SLURM\ngpu_args: 1", "gpu_args 1"),
        ("plugin: SGE\ngpu_args: -l gpu=1", "gpu_args with plugin SGE"),
    ],
)
def test_what_is_wrong_with_the_file_is_told(read, text, words):
    with pytest.raises(UsageError, match=r"docs/tasks/cluster\.md") as told:
        read(text)
    assert words in str(told.value)
    assert told.value.exit_code == 2


class HerePlugin(SGELikeBatchManagerBase):
    """A cluster of nipype's own kind that runs each job at once."""

    def __init__(self, plugin_args):
        super().__init__("#!/bin/bash", plugin_args)

    def _submit_batchtask(self, scriptfile, node):
        assert gc.isenabled()
        subprocess.run(["bash", scriptfile], check=False)
        self._pending[len(self._pending)] = node.output_dir()
        return len(self._pending) - 1

    def _is_pending(self, taskid):
        return False

    def _clear_task(self, taskid):
        pass


class AwayPlugin(GraphPluginBase):
    """A cluster that takes a whole graph, of which nothing is heard again."""

    def _submit_graph(self, pyfiles, dependencies, nodes):
        assert gc.isenabled()


@pytest.fixture
def other(tmp_path, monkeypatch):
    """A plugin file that names another plugin of nipype's than SLURM's."""

    def named(kind: type):
        monkeypatch.setattr(plugins, kind.__name__, kind, raising=False)
        (tmp_path / "other.yml").write_text(f"plugin: {kind.__name__.removesuffix('Plugin')}\n")
        return cluster_plugin(tmp_path / "other.yml")

    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", tests)
    configure_nipype(crash_dir=str(tmp_path / "logs"), level="CRITICAL")
    return named


def test_other_plugins_run_as_nipype_runs_them_and_failures_are_found(tmp_path, other):
    plugin = other(HerePlugin)
    with collector_off():
        graph(tmp_path, chain("a", n=2), chain("b", fate="raise")).run(plugin=plugin)
        assert not gc.isenabled()
    (crash,) = plugin.crashes
    assert crash.node == "graph.b.job1" and "b1  cannot be worked with" in crash.traceback
    assert (tmp_path / "graph/a/job1/out.txt").read_text() == "a0 a1 "
    assert (tmp_path / "graph/a/job1/_digests.json").exists()


def test_a_plugin_that_does_not_wait_ends_the_run_when_all_is_submitted(tmp_path, other):
    with pytest.raises(Submitted, match="2 jobs were submitted by Away"):
        graph(tmp_path, chain("a", n=2)).run(plugin=other(AwayPlugin))
