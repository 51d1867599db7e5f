"""Measure planning for 10, 100 and 1,000 subjects: from the command to the first node.

    python benchmarks/bench_planning.py [--subjects 10 100 1000] [--mode enhance] [--profile]

Each number is measured in a process of its own, which ends where the first node would begin: start of
Python, index of the data set, headers of all scans, graph, and its expansion by nipype. The goals are 15 s
and 1 GB for 1,000 subjects. Processor time is printed, too, because other programs do not change it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

PROGRAM = """
import json, os, resource, sys, time
from iqtflow.workflows.execution import scheduler

def stop(self):
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({
        "nodes": len(self._graph), "edges": self._graph.number_of_edges(),
        "cpu_s": used.ru_utime + used.ru_stime, "wall_s": time.time() - float(sys.argv[1]),
        "peak_gb": used.ru_maxrss * 1024 / 1e9,
    }), flush=True)
    if profile:
        profile.disable()
        import pstats
        pstats.Stats(profile, stream=sys.stderr).sort_stats("cumtime").print_stats(60)
    os._exit(0)

scheduler.SchedulerPlugin._start = stop
profile = None
if sys.argv[2] == "profile":
    import cProfile
    profile = cProfile.Profile()
    profile.enable()
from iqtflow.cli.main import main
raise SystemExit(main(sys.argv[3:]))
"""


def make_dataset(root: Path, n_subjects: int, *, mode: str) -> Path:
    """Write a BIDS data set of tiny scans: thick slices to enhance, thin ones to train on."""
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text('{"Name": "benchmark", "BIDSVersion": "1.10.0"}')
    voxel = (6.0, 6.0, 24.0, 1.0) if mode == "enhance" else (8.0, 8.0, 8.0, 1.0)
    intensities = np.random.default_rng(0).integers(0, 255, (16, 16, 4), np.uint8)
    image = nib.Nifti1Image(intensities, np.diag(voxel))
    image.header.set_xyzt_units("mm")
    content = image.to_bytes()
    for i in range(n_subjects):
        folder = root / f"sub-{i:04d}" / "anat"
        folder.mkdir(parents=True)
        (folder / f"sub-{i:04d}_T1w.nii").write_bytes(content)
        (folder / f"sub-{i:04d}_T1w.json").write_text('{"SkullStripped": true}')
    return root


def plan(bids: Path, *, mode: str, profiled: bool) -> dict[str, float]:
    """Plan a run over a data set; return time and memory."""
    out = bids.with_name(f"{bids.name}-out")
    extra = ["--segmentation", "ants"] if mode == "train" else []
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(time.time()), "profile" if profiled else "plain",
         str(bids), str(out), "participant", "--mode", mode, "--device", "cpu", *extra],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"nodes"')))


def main() -> None:
    """Print one row for each number of subjects."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--mode", choices=("enhance", "train"), default="enhance")
    parser.add_argument("--profile", action="store_true", help="print a profile to stderr")
    options = parser.parse_args()
    print("subjects  nodes  wall (s)  processor (s)  processor per subject (ms)  peak (GB)")
    with tempfile.TemporaryDirectory() as folder:
        first = None
        for n in options.subjects:
            bids = make_dataset(Path(folder, f"bids{n}"), n, mode=options.mode)
            row = plan(bids, mode=options.mode, profiled=options.profile)
            first = first or (n, row["cpu_s"])
            slope = "" if n == first[0] else f"{1000 * (row['cpu_s'] - first[1]) / (n - first[0]):.1f}"
            print(
                f"{n:8d} {row['nodes']:6d} {row['wall_s']:9.1f} {row['cpu_s']:14.1f} {slope:>27} "
                f"{row['peak_gb']:10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
