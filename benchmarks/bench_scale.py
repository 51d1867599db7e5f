"""Compare two processes with one, and measure a repeated run over 100 finished subjects.

    python benchmarks/bench_scale.py [--nodes 16] [--subjects 100]

* Speed-up: independent nodes that keep a processor busy, run by the scheduler with one process and with
  two. The same work in plain processes, without a scheduler, shows what is possible on this machine at that
  time. The goal is 1.7.
* Warm: `iqtflow` over subjects that are finished. The goal is 20 s for 100 subjects. To make the results
  quickly, the first run writes noise instead of using the network, and pages without pictures.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_planning import make_dataset
from nipype.interfaces.utility import Function
from nipype.pipeline.engine import Node, Workflow

from iqtflow.workflows.execution.local import LocalProcesses
from iqtflow.workflows.execution.nipype_config import configure_nipype
from iqtflow.workflows.execution.scheduler import Limits, SchedulerPlugin

#: Loops of the busy node: about a second.
LOOPS = 12_000_000

FIRST_RUN = """
import json, sys
from pathlib import Path
import numpy as np, nibabel as nib
from iqtflow.interfaces import enhance
from iqtflow.reports.assemble import subject

def pretend(self, runtime, correct_return_codes=(0,)):
    image = nib.Nifti1Image(np.random.default_rng(0).random((64, 64, 64), np.float32), np.eye(4))
    for name in (self.inputs.out_file, self.inputs.spline_file, self.inputs.mask_file, self.inputs.std_file):
        image.to_filename(Path(runtime.cwd, name))
    details = {"Model": {"Name": "none", "SHA256": ""}, "Warnings": []}
    Path(runtime.cwd, self.inputs.details_file).write_text(json.dumps(details))
    runtime.returncode = 0
    return runtime

enhance.EnhanceVolume._run_interface = pretend
subject._draw = lambda *_, **__: None
"""


def busy(number: int, loops: int) -> int:
    """Keep a processor busy."""
    total = 0
    for i in range(loops):
        total += i * i
    return total + number


def run_busy_nodes(n_nodes: int, n_procs: int) -> float:
    """Return seconds for busy nodes in the scheduler."""
    with tempfile.TemporaryDirectory() as folder:
        configure_nipype(crash_dir=folder, level="CRITICAL")
        workflow = Workflow(name="busy", base_dir=folder)
        nodes = []
        for i in range(n_nodes):
            node = Node(Function(["number", "loops"], ["out"], function=busy), name=f"n{i}", mem_gb=0.1)
            node.inputs.number, node.inputs.loops = i, LOOPS
            nodes.append(node)
        workflow.add_nodes(nodes)
        plugin = SchedulerPlugin(LocalProcesses(), Limits(n_procs, 8.0))
        began = time.perf_counter()
        workflow.run(plugin=plugin)
        if plugin.crashes:
            raise SystemExit(plugin.crashes[0].traceback)
        return time.perf_counter() - began


def run_plain(n_nodes: int, n_procs: int) -> float:
    """Return seconds for the same work in a pool of processes."""
    with multiprocessing.get_context("forkserver").Pool(n_procs) as pool:
        pool.starmap(busy, [(i, 1000) for i in range(n_procs)])
        began = time.perf_counter()
        pool.starmap(busy, [(i, LOOPS) for i in range(n_nodes)], chunksize=1)
        return time.perf_counter() - began


def speed_up(n_nodes: int) -> None:
    """Print the speed-up by a second process, in the scheduler and in plain processes, in turn."""
    run_busy_nodes(2, 2)  # start the fork server
    rows = [[f(n_nodes, n) for f in (run_busy_nodes, run_plain) for n in (1, 2)] for _ in range(2)]
    one, two, plain_one, plain_two = (min(column) for column in zip(*rows, strict=True))
    print(f"{n_nodes} busy nodes: one process {one:.1f} s, two {two:.1f} s: {one / two:.2f} times as fast")
    print(
        f"   no scheduler: one process {plain_one:.1f} s, two {plain_two:.1f} s: {plain_one / plain_two:.2f}"
    )


def warm(n_subjects: int) -> None:
    """Print the time of a run over finished subjects."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bids = make_dataset(folder / "bids", n_subjects, mode="enhance")
        arguments = [
            str(bids),
            str(folder / "out"),
            "participant",
            "-w",
            str(folder / "work"),
            "--device",
            "cpu",
        ]
        (folder / "pretend.py").write_text(FIRST_RUN)
        environ = {**os.environ, "PYTHONPATH": name}
        program = (
            "import sys; from iqtflow.workflows.execution import local; "
            "local.PRELOAD = (*local.PRELOAD, 'pretend'); import pretend; "
            "from iqtflow.cli.main import main; raise SystemExit(main(sys.argv[1:]))"
        )
        began = time.perf_counter()
        first = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        if first.returncode:
            raise SystemExit(first.stdout + first.stderr)
        print(
            f"{n_subjects} subjects, first run (no network): {time.perf_counter() - began:.1f} s", flush=True
        )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        again = subprocess.run(
            [sys.executable, "-m", "iqtflow.cli", *arguments], capture_output=True, text=True, check=False
        )
        wall = time.perf_counter() - began
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        print(again.stdout.strip().splitlines()[-1])
        print(f"{n_subjects} subjects, warm: {wall:.1f} s, of which {cpu:.1f} s of a processor", flush=True)
        if again.returncode:
            raise SystemExit(again.stdout + again.stderr)


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=16, help="0: skip the speed-up")
    parser.add_argument("--subjects", type=int, default=100, help="0: skip the warm run")
    options = parser.parse_args()
    if options.nodes:
        speed_up(options.nodes)
    if options.subjects:
        warm(options.subjects)


if __name__ == "__main__":
    main()
