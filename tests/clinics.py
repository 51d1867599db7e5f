"""Small BIDS data sets of phantoms, and the command run on them as users run it."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from conftest import make_affine, write_scan
from nipype.interfaces.base import CommandLine
from nipype.pipeline.plugins.linear import LinearPlugin
from phantoms import make_brain

from iqtflow.bids import Listing
from iqtflow.cli import main as cli
from iqtflow.cli.parser import parse
from iqtflow.config import Settings
from iqtflow.workflows.execution import run

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


def run_here(monkeypatch, after_node: Callable[[Any], None] = lambda node: None) -> list[str]:
    """Run all nodes, and their commands, in this process: PyTorch is loaded once. `after_node` is called with
    each node that has ended.

    Returns
    -------
    list of str
        Names of the models that are trained, filled in later.
    """
    begun: list[str] = []

    def command(self, runtime, *_):
        if self.module == "train":
            begun.append(self.inputs.name)
        main = importlib.import_module(f"iqtflow.cli.commands.{self.module}").main
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            runtime.returncode = main(shlex.split(self.cmdline)[len(shlex.split(self.cmd)) :])
        if runtime.returncode:
            raise RuntimeError(said.getvalue())
        return runtime

    def make_plugin(settings, callback):
        def tell(node, status):
            callback(node, status)
            if status == "end":
                after_node(node)

        plugin = LinearPlugin({"status_callback": tell})
        plugin.crashes = []
        return plugin

    monkeypatch.setattr(CommandLine, "_run_interface", command)
    monkeypatch.setattr(run, "make_plugin", make_plugin)
    return begun


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
    """Write scans of `n` brain phantoms, sub-`first` and on, and tissue maps as another program makes them.

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
