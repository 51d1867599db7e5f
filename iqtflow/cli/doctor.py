"""``iqtflow --doctor``: check before a run whether this machine has everything that the run needs."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from iqtflow.segmentation.spm.install import (
    GENUINE_TPM_BLOB,
    OctaveNotFoundError,
    SpmInstallation,
    SpmNotFoundError,
    find_spm,
    tpm_blob_id,
)
from iqtflow.segmentation.spm.job import place_priors, run_m_code
from iqtflow.segmentation.spm.script import UnifiedSegmentationSettings, self_test_script
from iqtflow.utils.environment import place_sockets, temporary_folder
from iqtflow.utils.errors import InputError, IQTFlowError, UsageError
from iqtflow.utils.files import sha256_of
from iqtflow.utils.gpus import resolve_device
from iqtflow.utils.system import available_memory_gb

OK, NOTE, FAULT = "ok", "note", "FAULT"

#: Least memory of each mode, GB: for a whole head in a network, and for SPM on 0.7 mm voxels.
LEAST_MEMORY_GB = {"enhance": 3.0, "train": 6.0, "calibrate": 3.0, "adapt": 6.0}
LEAST_DISK_GB = 2.0

#: Packages that only child processes import: without this check, a missing one is found late.
PACKAGES = {
    "enhance": ("torch", "safetensors", "monai", "deepbet"),
    "train": ("torch", "safetensors", "monai", "lightning", "deepbet"),
    "calibrate": ("deepbet",),
    "adapt": ("torch", "safetensors", "monai", "lightning", "deepbet"),
}


@dataclass(frozen=True)
class Check:
    """One line of the screen.

    Attributes
    ----------
    name
        What was checked.
    state
        `OK`, `NOTE` (the run is possible) or `FAULT` (it is not).
    finding
        What was found.
    next_step
        What to do about it; empty if there is nothing to do.
    """

    name: str
    state: str
    finding: str
    next_step: str = ""


def run_doctor(options: argparse.Namespace) -> int:
    """Check everything that a run with these options needs, and print the result.

    Parameters
    ----------
    options
        From :func:`iqtflow.cli.parser.parse`.

    Returns
    -------
    int
        0 if the run is possible, else 1.
    """
    mode, device, model = options.run__mode, options.run__device, options.enhance__model
    segmentation = options.segmentation__engine
    checks = [*_check_packages(mode, segmentation)]
    if mode != "enhance":  # which makes no tissue maps
        checks += _check_derivatives(segmentation, options.segmentation__derivatives)
        spm = {name: getattr(options, f"segmentation__{name}") for name in ("spm_dir", "tpm", "octave")}
        checks += check_spm(required=segmentation == "spm", segmentation=segmentation, **spm)
    folders = {"Output": options.paths__output_dir, "Work": options.paths__work_dir}
    checks += [
        _check_device(device),
        check_memory(mode),
        *(check_folder(name, folder) for name, folder in folders.items() if folder),
        check_temporary(),
        *check_models(required=mode == "enhance" and model is None),
        *([_check_model_file(model)] if model is not None else []),
    ]
    engine = "" if mode == "enhance" else f"segmentation {segmentation}, "
    print(f"iqtflow --doctor: mode {mode}, {engine}device {device}")
    for check in checks:
        print(f"  {check.state:5s} {check.name:9s} {check.finding}")
        if check.next_step and check.state != OK:
            print(f"  {'':15s} -> {check.next_step}")
    faults = sum(check.state == FAULT for check in checks)
    verdict = (
        f"{faults} fault{'s' * (faults > 1)}: this configuration cannot run." if faults else "Ready to run."
    )
    print(verdict)
    return 1 if faults else 0


def check_spm(
    *,
    required: bool,
    segmentation: str = "spm",
    spm_dir: str | os.PathLike | None = None,
    tpm: str | os.PathLike | None = None,
    octave: str | os.PathLike | None = None,
) -> Iterator[Check]:
    """Find SPM, start it once, call its MEX files, and identify its tissue priors.

    Parameters
    ----------
    required
        Whether a fault of SPM makes the run impossible; otherwise it is a note.
    segmentation
        The engine asked for; ``"ants"`` and ``"derivatives"`` need no SPM.
    spm_dir, tpm, octave
        As for `iqtflow.segmentation.spm.install.find_spm`.
    """
    if segmentation not in ("auto", "spm"):
        yield Check("SPM", OK, f"not needed with --segmentation {segmentation}")
        return
    bad = FAULT if required else NOTE
    otherwise = "" if required else " Until then the embedded engine (ants) is used."
    try:
        installation = find_spm(spm_dir=spm_dir, tpm=tpm, octave=octave)
    except SpmNotFoundError as fault:
        seen = set()
        for cause in fault.causes or (fault,):
            name = "Octave" if isinstance(cause, OctaveNotFoundError) else "SPM"
            check = Check(name, bad, f"{cause.path}: {cause.found}", f"{cause.next_step}{otherwise}")
            if check not in seen:  # a missing Octave is reported for every SPM that was found
                yield check
            seen.add(check)
        return
    place = installation.spm_dir or installation.command[0]
    yield Check("SPM", OK, f"{installation.version} in {place} ({installation.spm_source})")
    if installation.octave is not None:
        yield Check("Octave", OK, f"{installation.octave} ({installation.octave_source})")
    for skipped in installation.skipped:
        yield Check("SPM", NOTE, f"passed over {skipped}")
    yield _check_mex(installation, bad, otherwise)
    yield _check_tpm(installation)


def check_memory(mode: str, *, available_gb: float | None = None) -> Check:
    """Compare the memory that this process may use with the memory that the mode needs.

    Parameters
    ----------
    mode
        ``"enhance"``, ``"train"``, ``"calibrate"`` or ``"adapt"``.
    available_gb
        Measured when None.
    """
    available_gb = available_memory_gb() if available_gb is None else available_gb
    needed_gb = LEAST_MEMORY_GB[mode]
    if available_gb < needed_gb:
        found = f"{available_gb:.1f} GB, {needed_gb:g} GB needed for mode {mode}"
        step = "Raise the limit of the container or the job (docker --memory, sbatch --mem)."
        return Check("Memory", FAULT, found, step)
    return Check("Memory", OK, f"{available_gb:.1f} GB ({needed_gb:g} GB needed for mode {mode})")


def check_folder(name: str, folder: str | os.PathLike) -> Check:
    """Write a test file into a folder, or where it will be made, and check the free space."""
    from iqtflow.workflows.execution.lock import check_own

    folder = Path(folder).absolute()
    existing = next((parent for parent in (folder, *folder.parents) if os.path.exists(parent)), folder)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        if name == "Work" and existing == folder:
            check_own(folder)
    except OSError as fault:
        found = f"{existing} cannot be written ({fault.strerror})"
        return Check(name, FAULT, found, "Choose another folder.")
    except InputError as fault:
        return Check(name, FAULT, f"{fault.path}: {fault.found}", fault.next_step)
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < LEAST_DISK_GB:
        found = f"{free_gb:.1f} GB free in {existing}, {LEAST_DISK_GB:g} GB needed at least"
        return Check(name, FAULT, found, "Free some space, or choose another folder.")
    return Check(name, OK, f"{existing} can be written, {free_gb:.0f} GB free")


def check_temporary() -> Check:
    """Check the folder of temporary files of SPM and ANTs, and the folder of sockets."""
    try:
        folder, sockets = temporary_folder(), place_sockets()
    except UsageError as fault:
        return Check("Temporary", FAULT, f"{fault.path}: {fault.found}", fault.next_step)
    check = check_folder("Temporary", folder)
    if sockets == folder or check.state != OK:
        return check
    return Check("Temporary", OK, f"{check.finding}; its path is long, so sockets go to {sockets}")


def check_models(*, required: bool, folder: str | os.PathLike | None = None) -> Iterator[Check]:
    """Compare the shipped models with their checksums.

    Parameters
    ----------
    required
        Whether a run needs a shipped model.
    folder
        Folder with ``index.json``; that of the package when None.
    """
    folder = Path(__file__).parents[1] / "models/weights" if folder is None else Path(folder)
    bad = FAULT if required else NOTE
    again = "Install the package again; its models are part of it."
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        yield Check("Models", bad, f"{folder / 'index.json'}: {type(fault).__name__}", again)
        return
    good = []
    try:
        entries = index["models"] if isinstance(index, dict) else index
        for entry in entries:
            path = folder / entry["file"]
            if not path.is_file():
                yield Check("Models", bad, f"{path} is missing", again)
            elif sha256_of(path) != entry["sha256"]:
                found = f"{path}: checksum differs from the index, damaged or changed"
                yield Check("Models", bad, found, again)
            else:
                good.append(f"{path.stem} (k = {entry['k']}, {entry.get('contrast', 'T1w')})")
    except (OSError, KeyError, TypeError) as fault:
        yield Check("Models", bad, f"{folder}: cannot be read ({type(fault).__name__}: {fault})", again)
        return
    if good:
        yield Check("Models", OK, "checksums right: " + ", ".join(good))
    elif not entries:
        yield Check("Models", bad, f"none listed in {folder / 'index.json'}", again)


def _check_derivatives(segmentation: str, folders: Sequence[str | os.PathLike]) -> Iterator[Check]:
    for folder in folders:
        n_maps = sum(1 for _ in Path(folder).glob("sub-*/**/anat/*_label-GM_probseg.nii*"))
        if n_maps:
            yield Check("Maps", OK, f"{n_maps} grey-matter maps in {folder}")
        else:
            bad = FAULT if segmentation == "derivatives" else NOTE
            yield Check("Maps", bad, f"no *_label-GM_probseg.nii.gz in {folder}", "Correct --derivatives.")
    if not folders and segmentation == "derivatives":
        yield Check("Maps", FAULT, "no folder named", "Name it with --derivatives.")


def _check_packages(mode: str, segmentation: str) -> Iterator[Check]:
    needed = [*PACKAGES[mode], *(["ants"] if mode != "enhance" and segmentation in ("auto", "ants") else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        step = "Install the package with its dependencies: pip install iqtflow."
        yield Check("Python", FAULT, f"{platform.python_version()}, without {', '.join(missing)}", step)
    else:
        yield Check("Python", OK, f"{platform.python_version()} in {sys.prefix}, with {', '.join(needed)}")


def _check_mex(installation: SpmInstallation, bad: str, otherwise: str) -> Check:
    """Start SPM for a second: only a trial shows whether its MEX files fit this Octave."""
    try:
        with tempfile.TemporaryDirectory(prefix="iqtflow-doctor-") as folder:
            names = place_priors(Path(folder), UnifiedSegmentationSettings(), installation)
            log, seconds, _ = run_m_code(
                self_test_script(names[0]), Path(folder), installation=installation, name="SPM", timeout_s=300
            )
    except IQTFlowError as fault:
        step = (
            "Look at the standalone SPM and its MATLAB Runtime."
            if installation.compiled
            else "Compile SPM for this Octave: in its src folder, make PLATFORM=octave distclean all install."
        )
        return Check("MEX", bad, getattr(fault, "found", str(fault)), step + otherwise)
    runner = next(
        (line.split(" ", 1)[1] for line in log.splitlines() if line.startswith("IQTFLOW-SPM-RUNNER")), ""
    )
    return Check("MEX", OK, f"{runner} runs SPM's MEX files ({seconds:.1f} s)")


def _check_tpm(installation: SpmInstallation) -> Check:
    if installation.tpm is None:
        return Check("TPM", NOTE, "inside the standalone SPM; identified when it runs")
    blob = tpm_blob_id(installation.tpm)
    if blob == GENUINE_TPM_BLOB:
        return Check("TPM", OK, f"{installation.tpm}: SPM's own")
    return Check(
        "TPM",
        NOTE,
        f"{installation.tpm}: not SPM's TPM.nii (git blob {blob[:12]}, SPM's is {GENUINE_TPM_BLOB[:12]})",
        "The maps will differ from SPM's; use TPM.nii of the SPM distribution unless you want this.",
    )


def _check_device(device: str) -> Check:
    try:
        resolved = resolve_device(device)
    except IQTFlowError as fault:
        return Check("Device", FAULT, getattr(fault, "found", str(fault)), getattr(fault, "next_step", ""))
    if resolved.name == "cuda" or device == "cpu":
        return Check("Device", OK, f"{resolved.name} ({resolved.reason}){_driver()}")
    return Check("Device", OK, f"cpu ({resolved.reason})")


def _driver() -> str:
    """Return name and free memory of the GPUs, as the driver reports them."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f": {'; '.join(answer.stdout.split(chr(10))).strip('; ')}" if answer.returncode == 0 else ""


def _check_model_file(model: str | os.PathLike) -> Check:
    from iqtflow.models.model_file import list_shipped, read_card

    if os.fspath(model) in [info.name for info in list_shipped()]:
        return Check("Model", OK, f"{model}, a shipped model")
    if not os.path.isfile(model):
        return Check("Model", FAULT, f"{model}: no such file", "Correct --model.")
    try:
        read_card(model)
        return Check("Model", OK, f"{model}: SHA-256 {sha256_of(model)[:12]}")
    except InputError as fault:
        return Check("Model", FAULT, f"{fault.path}: {fault.found}", fault.next_step)
    except OSError as fault:
        return Check("Model", FAULT, f"{model}: cannot be read ({fault.strerror})", "Check its permissions.")
