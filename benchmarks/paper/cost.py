"""Estimate time and disk space of a grid before it starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.paper.design import Cell, Design
from benchmarks.paper.run import ROOT, Place, done, settings_of
from iqtflow.bids import find_scans
from iqtflow.image.nifti_file import open_nifti
from iqtflow.utils.errors import IQTFlowError
from iqtflow.utils.files import write_text

#: Seconds on two processors for a head of usual size, as in `iqtflow.workflows.execution.progress`: tissue
#: maps, one simulated scan, one patch library, one comparison with the truth.
MAPS_S, DRAW_S, LIBRARY_S, COMPARISON_S = 120.0, 8.0, 8.0, 10.0
#: Share of the tiles of a skull-stripped volume that contain brain; computed voxels for each voxel of the
#: result (tiles overlap by a quarter).
BUSY_SHARE, OVERLAPPING = 0.35, (1 / 0.75) ** 3
#: Bytes for each voxel: a library's crop (half of the volume at 2 + 1 + 1 bytes), a stored or simulated draw
#: (2 bytes in the library's, 1 in the compressed file's thick voxel), compressed maps and mask; compressed
#: estimate and spline.
LIBRARY_BYTES, DRAW_BYTES, MAPS_BYTES, ESTIMATE_BYTES = 2.0, 3.0, 0.7, 1.2
#: Bytes for each parameter: best and last checkpoint (weights, two moments) and the model.
PARAMETER_BYTES = 28


@dataclass(frozen=True)
class Item:
    """One line of the estimate."""

    name: str
    hours: float
    gigabytes: float
    done: bool


def estimate(
    design: Design, place: Place, cells: Sequence[Cell], split: dict[str, Sequence[str]], device: str
) -> list[Item]:
    """Estimate each preparation and each training, from a timed step of each network on this device.

    Hours are an upper limit: early stopping makes a training shorter. Tissue maps are counted with the time
    of the embedded engine.

    Returns
    -------
    list of Item
        In the order of the runs.
    """
    subject = next(label for labels in split.values() for label in labels)
    shape = open_nifti(find_scans(place.bids_dir, subjects=[subject])[0].path).shape[:3]
    voxels = float(np.prod(shape, dtype=float))
    people, items = sum(map(len, split.values())), []
    maps = "derivatives" not in place.options
    for preparation in design.preparations(cells):
        n, wanted = preparation.draws, settings_of(preparation, design, split)
        seconds = people * (n * DRAW_S + LIBRARY_S + (MAPS_S if maps else 0))
        size = people * voxels * (LIBRARY_BYTES + n * DRAW_BYTES / preparation.k + MAPS_BYTES)
        name = f"prepared_{preparation.name}"
        items.append(Item(name, seconds / 3600, size / 1e9, done(place, name, wanted)))
        maps = False  # the others use its maps
    trained: set[str] = set()
    for cell in cells:
        timed = time_network(cell, place, device)
        members, n = cell.train.get("ensemble", 1), len(split["evaluation"])
        per_volume = voxels * BUSY_SHARE * OVERLAPPING / 32**3 * timed["patch_s"] * members + COMPARISON_S
        seconds, size = n * per_volume, n * voxels * ESTIMATE_BYTES
        if cell.training not in trained:
            steps = cell.train.get("steps") or cell.train["max_epochs"] * cell.train.get(
                "steps_per_epoch", 100
            )
            seconds += members * steps * timed["step_s"]
            size += members * timed["parameters"] * PARAMETER_BYTES
            trained.add(cell.training)
        items.append(Item(cell.name, seconds / 3600, size / 1e9, place.state(cell.name).exists()))
    return items


def time_network(cell: Cell, place: Place, device: str) -> dict[str, float]:
    """Time a step of a network once for each device, and store the result."""
    keys = ("network", "upsampling_factor", "filters", "shrink", "residual", "batch_size")
    train = json.dumps({key: cell.train[key] for key in keys if key in cell.train}, sort_keys=True)
    path = place.output_dir / "state" / "timings.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    threads = place.option("--omp-nthreads", "1")
    name = f"{device} {threads} {train}"
    if name not in known:
        command = [sys.executable, "-m", "benchmarks.paper.timing", train, device, threads]
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if run.returncode != 0:
            raise IQTFlowError(f"{cell.name} cannot be timed on {device}:\n{run.stderr.strip()}")
        known[name] = json.loads(run.stdout.splitlines()[-1])
        write_text(path, json.dumps(known, indent=1) + "\n")
    return known[name]


def format_estimate(items: Sequence[Item], *, device: str, free_gb: float) -> str:
    """Return the estimate as lines of text."""
    width = max(len(item.name) for item in items)
    unit = "GPU hours" if device == "cuda" else "CPU hours"
    lines = [f"{'':{width}}  {unit}      GB"]
    for item in items:
        state = "  done" if item.done else ""
        lines.append(f"{item.name:{width}}  {item.hours:9.2f}  {item.gigabytes:6.2f}{state}")
    left = [item for item in items if not item.done]
    hours, size = sum(item.hours for item in left), sum(item.gigabytes for item in left)
    lines.append(f"{'left':{width}}  {hours:9.2f}  {size:6.2f}  ({free_gb:.0f} GB free)")
    return "\n".join(lines)


def free_gb(folder: Path) -> float:
    """Return the free space (GB) where a folder is or will be."""
    import shutil

    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9
