"""Run the cells: every step is a command of iqtflow on a settings file.

The output folder has ``split.json``, ``prepared/`` (participant levels), ``cells/`` (group levels; each is
an output folder with links to patch libraries and evaluation scans in ``prepared``), ``work/`` (from which
a run continues) and ``state/`` (what is done, and which process is running what).
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import iqtflow
from benchmarks.paper.design import Cell, Design, Preparation
from iqtflow.bids import find_scans
from iqtflow.config import format_section
from iqtflow.image.geometry import find_slice_geometry
from iqtflow.image.nifti_file import open_nifti
from iqtflow.models.registry import ALLOWED
from iqtflow.training.split import read_split
from iqtflow.utils.errors import UsageError
from iqtflow.utils.files import write_text

ROOT = Path(__file__).parents[2]
#: Settings of ``[train]`` that change the participant level.
PREPARED = ("slice_axes", "patch_step", "patch_size", "background_limit", "patch_fraction")


@dataclass(frozen=True)
class Place:
    """A data set, an output folder, and options for every command.

    Attributes
    ----------
    bids_dir, output_dir
        Absolute paths.
    options
        Options of iqtflow, such as ``--device cuda --n-gpu-procs 2``.
    """

    bids_dir: Path
    output_dir: Path
    options: tuple[str, ...] = ()

    def option(self, name: str, default: str) -> str:
        """Return the value of an option of iqtflow."""
        return self.options[self.options.index(name) + 1] if name in self.options else default

    def cell(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.output_dir / "cells" / cell.name

    def prepared(self, preparation: Preparation) -> Path:
        """Return the folder of a prepared data set."""
        return self.output_dir / "prepared" / preparation.name

    def state(self, name: str) -> Path:
        """Return the file that records a finished step, with its settings and time."""
        return self.output_dir / "state" / f"{name}.json"


def settle_split(design: Design, place: Place, given: Path | None = None) -> dict[str, tuple[str, ...]]:
    """Return the subjects for training, validation and evaluation: as given, as stored, or drawn. Store them.

    Raises
    ------
    UsageError
        The data set has too few subjects.
    """
    stored = place.output_dir / "split.json"
    if given is not None:
        write_text(stored, given.read_text(encoding="utf-8"))
    if stored.exists():
        return read_split(stored)
    sizes = {part: design.split[part] for part in ("train", "validation", "evaluation")}
    scans = find_scans(place.bids_dir)
    subjects = sorted(
        {s.subject for s in scans if find_slice_geometry(open_nifti(s.path), s.sidecar).near_isotropic}
    )
    if len(subjects) < sum(sizes.values()):
        raise UsageError(
            place.bids_dir,
            found=f"{len(subjects)} subjects with a high-field T1w scan",
            expected=f"{sum(sizes.values())}: {', '.join(f'{n} {part}' for part, n in sizes.items())}",
            next_step="Write a TOML file that extends this preset with another split, or give --split.",
        )
    drawn = iter(np.random.default_rng(design.split["seed"]).permutation(subjects).tolist())
    split = {part: sorted(next(drawn) for _ in range(n)) for part, n in sizes.items()}
    write_text(stored, json.dumps({**split, "seed": design.split["seed"]}, indent=1) + "\n")
    return read_split(stored)


def prepare(preparation: Preparation, design: Design, place: Place, *, maps: Preparation | None) -> bool:
    """Run the participant level for the split, unless it is done; return whether it is done now.

    Parameters
    ----------
    preparation
        What to prepare.
    design, place
        The experiment.
    maps
        Prepared data whose tissue maps are used; None makes new maps.
    """
    split = read_split(place.output_dir / "split.json")
    wanted = settings_of(preparation, design, split)
    name = f"prepared_{preparation.name}"
    with lock(place, name, wait=True):
        if done(place, name, wanted):
            return True
        extra: list[str] = []
        if maps is not None:
            extra = ["--segmentation", "derivatives", "--derivatives", os.fspath(place.prepared(maps))]
        return _run(
            place, name, wanted, "participant", place.prepared(preparation), name, wanted["train"],
            ["--participant-label", *wanted["subjects"], *place.options, *extra],
        )  # fmt: skip


def settings_of(
    preparation: Preparation, design: Design, split: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return what decides a prepared data set: settings of the section ``[train]``, and the subjects."""
    shared = {**design.fields["train"], **design.fields.get("always", {})}
    settings = {
        **{key: shared[key] for key in PREPARED if key in shared},
        "upsampling_factor": preparation.k,
        "snr_prior": design.priors[preparation.prior],
        "draws": preparation.draws,
        "patch_library": preparation.patch_library,
    }
    return {"train": settings, "subjects": sorted(label for part in split.values() for label in part)}


def run_cell(cell: Cell, design: Design, place: Place) -> bool | None:
    """Train and evaluate a cell, unless it is done; None if another process runs its training."""
    preparations = {p.prior: p for p in design.preparations([cell])}
    wanted = {"train": dict(cell.train), "split": json.loads((place.output_dir / "split.json").read_text())}
    with lock(place, cell.training, wait=False) as mine:
        if done(place, cell.name, wanted):
            return True
        if not mine:
            return None
        folder = place.cell(cell)
        folder.mkdir(parents=True, exist_ok=True)
        _link(folder / "patches", place.prepared(preparations[cell.prior]) / "patches")
        for source in place.prepared(preparations[cell.evaluation]).glob("sub-*"):
            _link(folder / source.name, source)
        settings = {**cell.train, "model_name": cell.training}
        options = ["--split", os.fspath(place.output_dir / "split.json"), "--uncertainty", "none"]
        options += place.options
        options += ["--random-seed", str(cell.seed)]
        return _run(place, cell.name, wanted, "group", folder, cell.training, settings, options)


def software() -> str:
    """Return the versions of the software that decides the results."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "nipype"))
    return f"iqtflow {iqtflow.__version__}, Python {platform.python_version()}, {packages}"


def done(place: Place, name: str, wanted: dict) -> bool:
    """Return whether a step was finished with these settings."""
    try:
        return json.loads(place.state(name).read_text())["wanted"] == json.loads(json.dumps(wanted))
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def lock(place: Place, name: str, *, wait: bool) -> Iterator[bool]:
    """Lock a training or a preparation for this process; yields False if another process has it."""
    path = place.state(name).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _link(link: Path, target: Path) -> None:
    if link.is_symlink():
        link.unlink()
    link.symlink_to(os.path.relpath(target, link.parent))


def _run(
    place: Place,
    name: str,
    wanted: dict,
    level: str,
    output: Path,
    work: str,
    train: dict,
    options: Sequence[str],
) -> bool:
    settings = write_text(place.state(name).with_suffix(".toml"), format_section("train", train))
    arguments = [
        *(sys.executable, "-c", "import sys; from iqtflow.cli.main import main; sys.exit(main())"),
        *(place.bids_dir, output, level, "--mode", "train"),
        *("--config-file", settings, "-w", place.output_dir / "work" / work, "--overwrite"),
        *options,
    ]
    network = str(train.get("network", ""))
    environment = dict(os.environ)
    if ":" in network:  # a network of this folder: allow its import
        environment[ALLOWED] = network
        environment["PYTHONPATH"] = os.pathsep.join([os.fspath(ROOT), os.environ.get("PYTHONPATH", "")])
    print(f"paper: {name}: {level} level", flush=True)
    began = time.time()
    code = subprocess.run([os.fspath(a) for a in arguments], env=environment, check=False).returncode
    if code != 0:
        print(f"paper: {name} failed (exit code {code}); run the same command again", flush=True)
        return False
    record = {
        "wanted": wanted,
        "seconds": round(time.time() - began, 1),
        "machine": f"{os.cpu_count()} {platform.machine()} processors",
        "options": list(place.options),
        "software": software(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    write_text(place.state(name), json.dumps(record, indent=1) + "\n")
    return True
