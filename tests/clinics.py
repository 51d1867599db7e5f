"""Small BIDS data sets of phantoms, and the command run on them as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from conftest import make_affine, write_scan
from phantoms import make_brain

from iqtflow.bids import Listing
from iqtflow.cli import main as cli
from iqtflow.cli.parser import parse
from iqtflow.config import Settings

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
#: Sidecar of the phantoms.
STRIPPED = {"SkullStripped": True}


def iqtflow(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run the command; `options` are those of `subprocess.run`."""
    return python("-m", "iqtflow.cli", *arguments, **options)


def settle(*arguments: object) -> tuple[Settings, Listing]:
    """Return the settings that arguments of the command mean, and the scans that it would take."""
    settings, (listing, _) = cli.settle(parse([str(argument) for argument in arguments]))
    return settings, listing


def python(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run Python with arguments; `options` are those of `subprocess.run`."""
    return execute(sys.executable, *arguments, **options)


def execute(*command: object, **options: object) -> subprocess.CompletedProcess:
    """Run a program and keep what it prints; `options` are those of `subprocess.run`."""
    given = {"env": ENVIRONMENT, "timeout": 900, "check": False, **options}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, **given)


def dataset(root: Path) -> Path:
    """Make an empty data set."""
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "test", "BIDSVersion": "1.10.0"}))
    (root / "README").write_text("Phantoms.\n")
    return root


def write_thick_scan(
    path: Path, *, k: int = 4, seed: int = 0, sidecar: dict | None = STRIPPED
) -> nib.Nifti1Image:
    """Write a thick-slice brain phantom, skull-stripped, oblique, slices along the second axis."""
    brain = make_brain((64, 68, 64), seed=seed)
    write_scan(path, _thick(brain.intensity, k), make_affine((1.5, 1.5 * k, 1.5)))
    if sidecar is not None:
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    return nib.load(path)


def write_mapped_scans(
    bids: Path, maps: Path, n: int, *, k: int = 1, size: float = 1.6, first: int = 0
) -> None:
    """Write scans of `n` brain phantoms, sub-`first` and on, and their tissue maps as another program makes them.

    Slices are k times as thick as the voxels are wide (`size`, in mm), along the second axis.
    """
    dataset(maps)
    for i in range(first, first + n):
        brain = make_brain((64, 68, 64), seed=i)
        csf = np.clip(brain.mask - brain.wm - brain.gm, 0, 1)
        parts = {"T1w": brain.intensity, "WM": brain.wm, "GM": brain.gm, "CSF": csf}
        for label, data in parts.items():
            folder, name = (bids, label) if label == "T1w" else (maps, f"label-{label}_probseg")
            path = folder / f"sub-{i}/anat/sub-{i}_{name}.nii.gz"
            write_scan(path, _thick(data, k), make_affine((size, size * k, size)))
        (bids / f"sub-{i}/anat/sub-{i}_T1w.json").write_text(json.dumps(STRIPPED))


def _thick(data: np.ndarray, k: int) -> np.ndarray:
    return data.reshape(64, 68 // k, k, 64).mean(axis=2).astype(np.float32)
