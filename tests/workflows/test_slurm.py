"""Graphs as jobs of a real SLURM on this machine; skipped where there is none (root, slurm-wlm, munge)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clinics import dataset, iqtflow, write_mapped_scans, write_thick_scan
from jobs import ShowGpu, chain, graph
from nipype.pipeline.engine import Node

from iqtflow.workflows.execution.cluster import cluster_plugin
from iqtflow.workflows.execution.nipype_config import configure_nipype
from iqtflow.workflows.execution.run import as_failure

START = Path(__file__).parents[1] / "start_slurm.sh"
TESTS = os.fspath(Path(__file__).parents[1])


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    """A SLURM of our own, and an environment in which its jobs find the tests' interfaces."""
    folder = tmp_path_factory.mktemp("slurm")
    with open(folder / "start.log", "w+") as log:  # a file: the daemons keep it open
        started = subprocess.run([START, folder], stdout=log, stderr=log, timeout=120, check=False)
        log.seek(0)
        said = log.read().strip()
    if started.returncode:
        pytest.skip(f"no SLURM here ({said.splitlines()[-1] if said else started.returncode})")
    before = dict(os.environ)
    os.environ["SLURM_CONF"] = os.fspath(folder / "slurm.conf")
    os.environ["PYTHONPATH"] = os.pathsep.join([TESTS, *filter(None, [before.get("PYTHONPATH")])])
    os.environ.pop("LOGNAME", None)  # as in a container
    yield folder
    subprocess.run(["scancel", "--me"], check=False)
    subprocess.run([START, folder, "stop"], timeout=60, check=False)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def plugin_file(tmp_path):
    def write(plugin: str = "SLURM", **arguments: object) -> Path:
        lines = [f"plugin: {plugin}", "plugin_args:", "  poll_s: 0.5"]
        lines += [f"  {key}: {value!r}" for key, value in arguments.items()]
        path = tmp_path / f"{plugin}.yml"
        path.write_text("\n".join(lines) + "\n")
        return path

    configure_nipype(crash_dir=str(tmp_path / "logs"), level="CRITICAL")
    return write


def queue() -> list[tuple[int, str, str]]:
    rows = subprocess.run(
        ["squeue", "--noheader", "--format=%i|%T|%j"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [(int(job), state, name) for job, state, name in (row.strip().split("|") for row in rows)]


def wait_for_job(ending: str, state: str = "RUNNING", timeout_s: float = 120) -> int:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for job, now, name in queue():
            if name.endswith(ending) and now == state:
                return job
        time.sleep(0.2)
    raise TimeoutError(f"no job {ending} {state}: {queue()}")


def large(workflow):
    """Not to be run on the spot, as small nodes are."""
    for path in workflow.list_node_names():
        workflow.get_node(path)._mem_gb = 0.5
    return workflow


@pytest.fixture
def in_thread():
    """Run a function beside the test; the future has its result."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


@pytest.mark.parametrize("name", ["SLURM", "SLURMGraph"])
def test_jobs_run_in_order_and_a_failing_one_fails_its_chain_only(tmp_path, plugin_file, name):
    """One by one, or all submitted at once: without --kill-on-invalid-dep those after a failed one would wait
    for ever.
    """
    workflow = large(graph(tmp_path, chain("a", n=2), chain("b", n=3, fate="raise")))
    plugin = cluster_plugin(plugin_file(name))
    workflow.run(plugin=plugin)
    (crash,) = plugin.crashes
    assert crash.node == "graph.b.job1"
    assert as_failure(crash).message == "ValueError: b1  cannot be worked with"
    assert (tmp_path / "graph/a/job1/out.txt").read_text() == "a0 a1 "
    assert queue() == []


def test_a_cancelled_job_is_reported_at_once_and_others_go_on(tmp_path, plugin_file, in_thread):
    workflow = large(graph(tmp_path, chain("a", n=2), chain("b", n=2, seconds=600.0)))
    plugin = cluster_plugin(plugin_file())
    run = in_thread(workflow.run, plugin=plugin)
    job = wait_for_job("b.job1")
    while not (tmp_path / "graph/a/job1/out.txt").exists():
        time.sleep(0.2)
    subprocess.run(["scancel", str(job)], check=True)
    cancelled = time.monotonic()
    run.result(120)
    assert time.monotonic() - cancelled < 30
    (crash,) = plugin.crashes
    assert crash.node == "graph.b.job1"
    assert f"job {job} ended as CANCELLED" in as_failure(crash).message


def test_a_job_cancelled_before_it_began_fails_although_there_is_an_old_result(
    tmp_path, plugin_file, in_thread
):
    """Nipype would find the result file of the run before, and count the job as done."""
    first = large(graph(tmp_path, chain("a", n=2)))
    first.run(plugin=cluster_plugin(plugin_file()))
    changed = large(graph(tmp_path, chain("a", n=2, text="new ")))
    plugin = cluster_plugin(plugin_file(sbatch_args="--begin=now+1hour"))
    run = in_thread(changed.run, plugin=plugin)
    subprocess.run(["scancel", str(wait_for_job("a.job1", "PENDING"))], check=True)
    run.result(120)
    (crash,) = plugin.crashes
    assert "CANCELLED" in as_failure(crash).message
    assert not list((tmp_path / "graph/a/job1").glob("result_*.pklz"))


def test_a_controller_that_does_not_answer_for_a_while_loses_no_job(tmp_path, plugin_file, in_thread, slurm):
    """Nipype counts a node as failed after one failed squeue."""
    workflow = large(graph(tmp_path, chain("a", n=2, seconds=4.0)))
    plugin = cluster_plugin(plugin_file())
    run = in_thread(workflow.run, plugin=plugin)
    wait_for_job("a.job1")
    controller = int((slurm / "slurmctld.pid").read_text())
    os.kill(controller, 15)  # as for an upgrade: it saves its state
    time.sleep(3)
    subprocess.run(["slurmctld"], check=True, env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin"})
    run.result(180)
    assert plugin.crashes == []
    assert (tmp_path / "graph/a/job1/out.txt").read_text() == "a0 a1 "


def test_gpu_nodes_ask_for_a_gpu_and_others_do_not(tmp_path, plugin_file):
    names = {"with": True, "without": False}
    nodes = [Node(ShowGpu(use_gpu=gpu), name=name, mem_gb=0.5) for name, gpu in names.items()]
    plugin = cluster_plugin(plugin_file())
    graph(tmp_path, *nodes).run(plugin=plugin)
    assert plugin.crashes == []
    shown = {name: (tmp_path / f"graph/{name}/out.txt").read_text() for name in names}
    assert shown["with"] in ("0", "1")
    assert shown["without"] == "none"


def test_an_interrupted_run_leaves_nothing_in_the_queue(tmp_path, plugin_file):
    workflow = large(graph(tmp_path, chain("a", n=2, seconds=600.0)))
    plugin = cluster_plugin(plugin_file())
    end = threading.Timer(0, lambda: (wait_for_job("a.job1"), os.kill(os.getpid(), 2)))
    end.start()
    with pytest.raises(KeyboardInterrupt):
        workflow.run(plugin=plugin)
    deadline = time.monotonic() + 30
    while queue() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert queue() == []


@pytest.fixture
def clinic(tmp_path, untrained_model):
    """Two thick-slice scans, and the arguments that enhance them as jobs."""
    bids = dataset(tmp_path / "bids")
    for i in (1, 2):
        write_thick_scan(bids / f"sub-{i}/anat/sub-{i}_T1w.nii.gz", seed=i)
    return [bids, tmp_path / "out", "participant", "--model", untrained_model, "-w", tmp_path / "work"]


@pytest.mark.slow
def test_subjects_are_enhanced_as_jobs_and_a_cancelled_one_is_reported(tmp_path, plugin_file, clinic):
    command = [sys.executable, "-m", "iqtflow.cli", *map(str, clinic), "--use-plugin", str(plugin_file())]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, env=environ, **pipes) as run:
        job = wait_for_job("sub_2_T1w.enhance", timeout_s=400)
        subprocess.run(["scancel", str(job)], check=True)
        said = run.communicate(timeout=500)[0]
    assert run.returncode == 1, said
    tail = "\n".join(said.splitlines()[-8:])
    assert f"job {job} ended as CANCELLED" in tail
    assert "sub-2_T1w.nii.gz" in tail
    assert (tmp_path / "out/sub-1/anat/sub-1_desc-iqt_T1w.nii.gz").exists()
    assert not list((tmp_path / "out/sub-2").rglob("*_desc-iqt_T1w.nii.gz"))
    again = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=500)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "out/sub-2/anat/sub-2_desc-iqt_T1w.nii.gz").exists()


@pytest.mark.slow
def test_a_network_is_trained_as_jobs_at_both_levels(tmp_path, plugin_file):
    bids, maps = dataset(tmp_path / "bids"), tmp_path / "maps"
    write_mapped_scans(bids, maps, 3)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["0"], "validation": ["1"], "evaluation": ["2"]}))
    arguments = [
        *(bids, tmp_path / "out", "participant", "group", "--mode", "train", "--split", split),
        *("--segmentation", "derivatives", "--derivatives", maps, "-w", tmp_path / "work"),
        *("--filters", "2", "--batch-size", "2", "--steps", "4", "--steps-per-epoch", "2"),
        *("--model-name", "tiny", "--use-plugin", plugin_file()),
    ]
    done = iqtflow(*arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out/models/tiny.safetensors").exists()
    assert (tmp_path / "out/group_metrics.tsv").exists()
    assert queue() == []
