"""Measure the memory of every step at several sizes, and compare it with what the package states.

    python benchmarks/bench_memory.py [--edges 64 128 192] [--steps simulate extract ...]

Each step runs in a process of its own, on a phantom of edge x edge x edge voxels. The kernel reports the
largest resident memory. The printed line through the sizes (least squares) has a base in GB and bytes for
each voxel.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from iqtflow.workflows.app.memory import ENHANCE, FOOTPRINTS

NODE = """
import sys
from iqtflow.interfaces.{module} import {name}
{name}({inputs}).run()
"""


def peak_gb(command: list[str], folder: Path) -> float:
    """Run a command; return the largest resident memory (GB) of the command or its children."""
    with open(folder / "log.txt", "wb") as log:
        child = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{command}: {(folder / 'log.txt').read_text()[-2000:]}")
    return used.ru_maxrss * 1024 / 1e9


def make_phantom(folder: Path, edge: int) -> None:
    """Write a skull-stripped head of edge x edge x edge voxels, its maps, and a thick-slice scan of it."""
    axes = np.meshgrid(*[np.linspace(-1, 1, edge, dtype=np.float32)] * 3, indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes))
    wm = np.clip((0.55 - radius) * 10, 0, 1)
    brain = np.clip((0.85 - radius) * 10, 0, 1)
    csf = np.clip((0.15 - radius) * 10, 0, 1) + np.clip(brain - (radius < 0.75), 0, 1)
    wm, csf = np.clip(wm - csf, 0, 1), np.clip(csf, 0, 1) * brain
    gm = np.clip(brain - wm - csf, 0, 1)
    noise = np.random.default_rng(0).normal(0, 20, brain.shape).astype(np.float32)
    image = np.where(brain > 0.5, 1000 * wm + 700 * gm + 250 * csf + noise, 0).astype(np.float32)
    affine = np.diag([180 / edge] * 3 + [1])
    for name, data in (("T1w", image), ("WM", wm), ("GM", gm), ("CSF", csf), ("mask", brain > 0.5)):
        made = nib.Nifti1Image(np.asarray(data, np.float32), affine)
        made.header.set_xyzt_units("mm")
        made.to_filename(folder / f"{name}.nii.gz")
    thick = image.reshape(edge, edge, edge // 4, 4).mean(axis=3)
    nib.Nifti1Image(thick, affine @ np.diag([1, 1, 4, 1])).to_filename(folder / "thick.nii.gz")


def steps(folder: Path) -> dict[str, Callable[[], list[str]]]:
    """Return the command line of each step."""

    def command(module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", f"iqtflow.cli.commands.{module}", *arguments]

    def node(module: str, name: str, **inputs: str) -> list[str]:
        text = ", ".join(f"{key}={value!r}" for key, value in inputs.items())
        return [sys.executable, "-c", NODE.format(module=module, name=name, inputs=text)]

    maps = {"wm_file": "WM.nii.gz", "gm_file": "GM.nii.gz", "mask_file": "mask.nii.gz"}
    maps = {key: os.fspath(folder / value) for key, value in maps.items()}
    scan = os.fspath(folder / "T1w.nii.gz")
    return {
        "conform": lambda: node("conform", "ConformScan", in_file=scan),
        "simulate": lambda: command(
            "simulate", "T1w.nii.gz", "low.nii.gz", "--wm", "WM.nii.gz", "--gm", "GM.nii.gz", "--k", "4"
        ),
        "extract": lambda: node("patches", "ExtractPatches", in_file=scan, subject="01", **maps),
        "measure": lambda: node("calibrate", "MeasureSNR", in_file=scan, label="a", **maps),
        "derivatives": lambda: command(
            *("segment", "T1w.nii.gz", "--out-prefix", "ready", "--engine", "derivatives"),
            *("--wm-map", "WM.nii.gz", "--gm-map", "GM.nii.gz", "--csf-map", "CSF.nii.gz"),
        ),
        "enhance": lambda: command(
            *("enhance", "thick.nii.gz", "out.nii.gz", "--spline", "spline.nii.gz", "--model", "iqt-k4"),
            *("--skull-stripped", "yes"),
        ),
        "ants": lambda: command(
            "segment", "T1w.nii.gz", "--out-prefix", "ants", "--engine", "ants", "--skull-stripped", "yes"
        ),
    }


def main() -> None:
    """Print the peak of every step and size, the line through them, and the value of the package."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edges", type=int, nargs="+", default=[64, 128, 192])
    parser.add_argument("--steps", nargs="+", default=list(steps(Path())))
    options = parser.parse_args()
    peaks: dict[str, list[float]] = {step: [] for step in options.steps}
    for edge in options.edges:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            # Not in this process: a child inherits the peak of its parent.
            maker = multiprocessing.get_context("spawn").Process(target=make_phantom, args=(folder, edge))
            maker.start()
            maker.join()
            for step in options.steps:
                peaks[step].append(peak_gb(steps(folder)[step](), folder))
                print(f"# {step} at {edge}: {peaks[step][-1]:.2f} GB", flush=True)
    voxels = np.array([edge**3 for edge in options.edges], float)
    sizes = "".join(f"{edge:>8}" for edge in options.edges)
    print(f"step        {sizes}   base (GB)  bytes/voxel  stated")
    for step, values in peaks.items():
        slope, base = np.polyfit(voxels, values, 1) if len(values) > 1 else (np.nan, np.nan)
        stated = ENHANCE if step == "enhance" else FOOTPRINTS.get(step)
        told = "" if stated is None else " ".join(f"{stated.gb(int(v)):.2f}" for v in voxels)
        measured = "".join(f"{value:8.2f}" for value in values)
        print(f"{step:12}{measured}{base:12.2f}{slope * 1e9:13.0f}  {told}")


if __name__ == "__main__":
    main()
