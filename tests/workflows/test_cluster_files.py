"""The file that says which cluster: what is in it reaches the jobs, and what is wrong with it is told."""

from __future__ import annotations

import pytest
from jobs import Job
from nipype.pipeline.engine import Node

from iqtflow.utils.errors import UsageError
from iqtflow.workflows.execution.cluster import add_resources, is_small, read_plugin_file


@pytest.fixture
def read(tmp_path):
    def from_text(text: str):
        path = tmp_path / "plugin.yml"
        path.write_text(text)
        return read_plugin_file(path)

    return from_text


def node(**inputs) -> Node:
    return Node(Job(**inputs), name="job", mem_gb=3.0, n_procs=4)


def test_a_job_asks_for_what_its_node_states(read):
    heavy = node()
    add_resources(heavy, read("plugin: SLURM"))
    assert heavy.plugin_args["sbatch_args"].split() == ["--cpus-per-task=4", "--mem=3072M"]


def test_what_the_user_asks_for_wins(read):
    heavy = node()
    add_resources(heavy, read("plugin: SLURM\nplugin_args: {sbatch_args: '--mem=9G -c 2'}"))
    assert "sbatch_args" not in heavy.plugin_args


@pytest.mark.parametrize(
    ("text", "option", "words"),
    [
        ("plugin: SLURM", "sbatch_args", "--gres=gpu:1"),
        ("plugin: SLURM\ngpu_args: --gpus=1", "sbatch_args", "--gpus=1"),
        ("plugin: PBS\ngpu_args: '-l nodes=1:gpus=1'", "qsub_args", "-l nodes=1:gpus=1"),
        ("plugin: LSF\ngpu_args: '-gpu num=1'", "bsub_args", "-gpu num=1"),
    ],
)
def test_gpu_nodes_ask_for_a_gpu(read, text, option, words):
    gpu = Node(Job(use_gpu=True), name="job", mem_gb=3.0, n_procs=1)
    add_resources(gpu, read(text))
    assert gpu.plugin_args[option].startswith(" ")
    assert words in gpu.plugin_args[option]


def test_a_training_on_two_gpus_asks_for_two(read):
    gpus = Node(Job(use_gpu=True), name="job", n_procs=2)
    add_resources(gpus, read("plugin: SLURM"))
    assert "--gres=gpu:2" in gpus.plugin_args["sbatch_args"]


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
    ],
)
def test_what_is_wrong_with_the_file_is_told(read, text, words):
    with pytest.raises(UsageError, match=r"docs/clusters\.md") as told:
        read(text)
    assert words in str(told.value)
    assert told.value.exit_code == 2


def test_htcondor_goes_by_its_name(read):
    assert read("plugin: HTCondor").plugin == "Condor"
