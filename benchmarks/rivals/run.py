"""Run methods on the same simulated scans, and measure what they make."""

from __future__ import annotations

import glob
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

from iqtflow.config import tomllib
from iqtflow.evaluation.scores import evaluate_files
from iqtflow.image.nifti import read_volume
from iqtflow.image.nifti_file import open_nifti

HERE = Path(__file__).parent
#: Slice thickness over slice spacing of the simulated scans (the paper's), and their slice axis.
THICKNESS, AXIS = 0.75, 1
TISSUES = ("CSF", "GM", "WM")


@dataclass(frozen=True)
class Method:
    """A method, as a table of ``rivals.toml``."""

    name: str
    title: str
    command: str
    makes: str = ""
    requirements: str = ""
    people: int = 10_000
    absent: str = ""


@dataclass(frozen=True)
class Person:
    """A high-field scan with its tissue maps, and the scan that was simulated from it."""

    label: str
    k: int
    folder: Path

    @property
    def scan(self) -> Path:
        """The simulated scan."""
        return self.folder / f"k{self.k}_scan.nii.gz"

    @property
    def truth(self) -> Path:
        """The high-field scan."""
        return self.folder / "truth_T1w.nii.gz"

    @property
    def mask(self) -> Path:
        """Its brain."""
        return self.folder / "truth_desc-brain_mask.nii.gz"

    def estimate(self, method: str) -> Path:
        """What a method makes, on the grid of the truth."""
        return self.folder / f"k{self.k}_{method}.nii.gz"


def read_methods(*files: Path) -> list[Method]:
    """Return the methods of TOML files; a later table replaces an earlier one of the same name."""
    tables: dict[str, Any] = {}
    for file in files:
        tables.update(tomllib.loads(file.read_text()))
    return [Method(name, **table) for name, table in tables.items()]


def prepare_person(high_field: Path, label: str, seed: int, k: int, output: Path) -> Person:
    """Make tissue maps and the simulated scan, if they are not there."""
    person = Person(label, k, output / f"sub-{label}")
    person.folder.mkdir(parents=True, exist_ok=True)
    if not person.mask.is_file():
        shutil.copy(high_field, person.truth)
        _program("iqtflow-segment", person.truth, "--out-prefix", person.folder / "truth")
    if not person.scan.is_file():
        maps = [person.folder / f"truth_label-{tissue}_probseg.nii.gz" for tissue in ("WM", "GM")]
        options = ["--wm", maps[0], "--gm", maps[1], "--k", k, "--slice-axis", "xyz"[AXIS], "--seed", seed]
        _program("iqtflow-simulate", person.truth, person.scan, *options)
    return person


def run_method(method: Method, person: Person, output: Path, threads: int) -> dict[str, Any]:
    """Run a method on a scan; return seconds and memory.

    Raises
    ------
    RuntimeError
        The command failed, or made nothing; the message has its last lines.
    """
    folder = output / "work" / f"{person.label}_k{person.k}_{method.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = folder / "output.nii.gz"
    programs = environment_of(method, output)
    given = {"scan": person.scan, "output": made, "folder": folder, "here": HERE}
    given |= {"bin": programs, "python": programs / "python"}
    places = {name: shlex.quote(os.fspath(path)) for name, path in given.items()}
    command = method.command.format(**places, k=person.k, thickness=THICKNESS)
    log, used = folder / "log", folder / "used"
    measured = [sys.executable, HERE / "measured.py", used, *shlex.split(command)]
    began = time.monotonic()
    with log.open("w") as stream:
        environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        status = subprocess.call(measured, stdout=stream, stderr=stream, env=environ)
    seconds = time.monotonic() - began
    found = glob.glob(os.fspath(folder / method.makes)) if method.makes else [os.fspath(made)]
    if status or len(found) != 1 or not os.path.isfile(found[0]):
        raise RuntimeError(f"{command}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-8:]))
    result = {"seconds": round(seconds, 1), **json.loads(used.read_text())}
    conform(Path(found[0]), person, person.estimate(method.name))
    shutil.rmtree(folder)
    return result


def environment_of(method: Method, output: Path) -> Path:
    """Return the folder of programs of a method; install its own environment if it has none yet."""
    if not method.requirements:
        return Path(sys.executable).parent
    folder = (output / "environments" / method.name).absolute()
    done = folder / "installed"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pins = [*(HERE / method.requirements).read_text().split()]
        # PyTorch alone first: with other packages, pip may choose a build of several GB.
        for some in ([pin for pin in pins if pin.startswith("torch=")], pins):
            if some:
                subprocess.run([folder / "bin/pip", "install", "--quiet", *some], check=True)
        done.touch()
    return folder / "bin"


def conform(made: Path, person: Person, to: Path) -> None:
    """Bring what a method made to the grid of the truth, as far as the scan's slices reach."""
    truth, image = open_nifti(person.truth), nib.load(made)
    shape = list(truth.shape)
    shape[AXIS] = open_nifti(person.scan).shape[AXIS] * person.k
    image = nib.Nifti1Image(np.squeeze(np.asarray(image.dataobj, dtype=np.float32)), image.affine)
    if list(image.shape) != shape or not np.allclose(image.affine, truth.affine, atol=1e-3):
        image = resample_from_to(image, (shape, truth.affine), order=3)
    image.set_data_dtype(np.float32)
    image.header.set_xyzt_units("mm")
    partial = to.with_name(f"partial_{to.name}")
    image.to_filename(partial)
    partial.replace(to)


def score(method: Method, person: Person, *, dice: bool) -> dict[str, Any]:
    """Return all figures of what a method made, with the overlap of tissues if `dice`."""
    estimate = person.estimate(method.name)
    figures: dict[str, Any] = evaluate_files(
        person.truth, person.mask, {"it": estimate}, across_methods=True
    )["it"]
    if dice:
        figures.update(dice_of(estimate, person))
    return figures


def dice_of(estimate: Path, person: Person) -> dict[str, float]:
    """Return the Dice overlap of tissues that the embedded engine finds in an estimate and in the truth."""
    image, values = read_volume(estimate)
    part = tuple(slice(0, n) for n in image.shape)
    mask = read_volume(person.mask)[1][part] > 0
    prefix = person.folder / "segmented"
    # Noise around a brain would count as brain.
    only_brain = person.folder / "segmented_T1w.nii.gz"
    nib.Nifti1Image(np.where(mask, values, 0).astype(np.float32), image.affine).to_filename(only_brain)
    options = ["--out-prefix", prefix, "--engine", "ants", "--skull-stripped", "yes", "--overwrite"]
    _program("iqtflow-segment", only_brain, *options)
    labels = []
    for start in (prefix, person.folder / "truth"):
        maps = [read_volume(f"{start}_label-{tissue}_probseg.nii.gz")[1][part] for tissue in TISSUES]
        labels.append(np.where(np.max(maps, axis=0) > 0, 1 + np.argmax(maps, axis=0), 0) * mask)
    for file in person.folder.glob("segmented_*"):
        file.unlink()
    found, true = labels
    return {
        f"dice_{tissue.lower()}": float(
            2 * np.sum((found == i) & (true == i)) / max(np.sum(found == i) + np.sum(true == i), 1)
        )
        for i, tissue in enumerate(TISSUES, start=1)
    }


def run_all(
    people: Sequence[tuple[str, Path]],
    methods: Sequence[Method],
    factors: Sequence[int],
    output: Path,
    *,
    threads: int,
    dice: int,
) -> None:
    """Run what is not done; each result is a line of JSON."""
    results = output / "results.jsonl"
    done = {(line["method"], line["subject"], line["k"]) for line in read_results(results)}
    for k in factors:
        for seed, (label, high_field) in enumerate(people):
            person = prepare_person(high_field, label, seed, k, output)
            for method in methods:
                key = (method.name, label, k)
                if key in done or method.absent or seed >= method.people:
                    continue
                line: dict[str, Any] = dict(zip(("method", "subject", "k"), key, strict=True))
                try:
                    line.update(run_method(method, person, output, threads))
                    line.update(score(method, person, dice=seed < dice))
                except (RuntimeError, subprocess.CalledProcessError) as fault:
                    print(f"{method.name}, sub-{label}, k = {k}: failed: {fault}", flush=True)
                    continue
                with results.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
                print(
                    f"{method.name}, sub-{label}, k = {k}: {line['psnr']:.2f} dB, {line['seconds']:.0f} s",
                    flush=True,
                )


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _program(name: str, *arguments: object) -> None:
    command = [Path(sys.executable).parent / name, *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
