"""Measure what it costs to read a compressed scan to its end: ``iqtflow-enhance`` with and without.

    python -m benchmarks.bench_reading SCAN.nii.gz [--runs 5] [--threads 1]

Without this check, nibabel stops at the last voxel and compares no checksum. Both ways run in turn, each in
a process of its own; processor time is measured. The time for reading alone is measured, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

import iqtflow.image.validate
from iqtflow.cli.commands.enhance import main as enhance
from iqtflow.image.validate import check_scan

HERE = Path(__file__).resolve().parents[1]


def open_as_far_as_the_voxels(path: Path, *, kind: str) -> nib.Nifti1Image:
    """Open a scan of any kind as nibabel does."""
    image = nib.load(path)
    image.extra["notes"] = []
    return image


def seconds_of_enhancing(scan: Path, *, to_the_end: bool, threads: int) -> float:
    """Return the processor time of one process that enhances a scan."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "benchmarks.bench_reading", "--enhance", scan, f"{folder}/out.nii.gz"]
        if not to_the_end:
            call.append("--as-far-as-voxels")
        child = subprocess.Popen([*call, "--threads", str(threads)], stdout=subprocess.DEVNULL, cwd=HERE)
        _, status, used = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"{scan} was not enhanced")
        return used.ru_utime + used.ru_stime


def seconds_of_reading(scan: Path, runs: int) -> dict[str, float]:
    """Return the fastest of some runs of reading and checking alone."""
    found = {}
    verified = iqtflow.image.validate.open_nifti
    for name, opener in (("to the end", verified), ("as far as voxels", open_as_far_as_the_voxels)):
        iqtflow.image.validate.open_nifti = opener
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            check_scan(scan)
            times.append(time.perf_counter() - began)
        found[name] = min(times)
    iqtflow.image.validate.open_nifti = verified
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("output", type=Path, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--enhance", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--as-far-as-voxels", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.enhance:
        if options.as_far_as_voxels:
            iqtflow.image.validate.open_nifti = open_as_far_as_the_voxels
        call = [str(options.scan), str(options.output), "--num-threads", str(options.threads)]
        raise SystemExit(enhance(call))
    scan = options.scan.resolve()
    alone = seconds_of_reading(scan, 10)
    print(f"reading alone, s      {'  '.join(f'{name} {seconds:.3f}' for name, seconds in alone.items())}")
    ratios = []
    for run in range(options.runs):
        sides = {}
        for end in (True, False) if run % 2 else (False, True):
            sides[end] = seconds_of_enhancing(scan, to_the_end=end, threads=options.threads)
        ratios.append(sides[True] / sides[False])
        print(f"enhancing, s          to the end {sides[True]:.2f}  as far as voxels {sides[False]:.2f}")
    spread = np.ptp(ratios) / 2
    print(f"ratio, median of {options.runs}   {statistics.median(ratios):.3f} (half the range {spread:.3f})")


if __name__ == "__main__":
    main()
