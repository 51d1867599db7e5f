"""Small BIDS data sets of thick-slice phantoms, and the command run on them as users run it."""

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

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def iqtflow(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "iqtflow.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=600,
        **options,
    )


def dataset(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "test", "BIDSVersion": "1.10.0"}))
    (root / "README").write_text("Phantoms.\n")
    return root


def write_thick_scan(
    path: Path, *, k: int = 4, seed: int = 0, sidecar: dict | None = None
) -> nib.Nifti1Image:
    """A thick-slice brain phantom, skull-stripped, oblique, slices along the second axis."""
    brain = make_brain((64, 68, 64), seed=seed)
    thick = brain.intensity.reshape(64, 17, 4, 64).mean(axis=2) if k == 4 else brain.intensity
    affine = make_affine((1.5, 1.5 * (4 if k == 4 else 1), 1.5))
    write_scan(path, thick.astype(np.float32), affine)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(
        json.dumps({"SkullStripped": True, **(sidecar or {})})
    )
    return nib.load(path)
