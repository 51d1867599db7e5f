"""Run one unified segmentation as a child process in a private folder, and check that it completed.

Known problems of SPM under Octave (also nipype issue 2562): SPM writes beside the *input*; old outputs can be
taken for new ones; exit codes are ignored; some file names break the m-code; and errors in the batch system
crash Octave up to 10.1. So the image gets a fixed plain name, ``spm_preproc_run`` is called directly, and
only files younger than the start are accepted.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib

from iqtflow.segmentation.spm.install import SpmInstallation
from iqtflow.segmentation.spm.script import (
    DONE,
    FAULT,
    RUNNER,
    STEM,
    TPM_USED,
    UnifiedSegmentationSettings,
    expected_outputs,
    job_script,
)
from iqtflow.utils.errors import InputError, OutputError
from iqtflow.utils.files import require_parent

_SCRIPT = "iqtflow_job.m"
#: SPM's MEX files use all cores and gain nothing.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class SpmError(InputError):
    """SPM did not complete. None of its outputs is kept."""


@dataclass(frozen=True)
class UnifiedSegmentationRun:
    """Outputs of a completed run.

    Attributes
    ----------
    native, dartel, normalised, modulated
        One entry per class (``c1``, ``rc1``, ``wc1``, ``mwc1`` ...); None if not asked for.
    bias_field, bias_corrected, forward_deformation, inverse_deformation
        None if not asked for.
    parameters
        ``_seg8.mat``: affine, Gaussians, deformation.
    seconds, peak_memory_gb
        Wall-clock time and largest resident memory (GB, 1e9 bytes) of the child process.
    runner
        Octave or MATLAB Runtime with its version, for example ``"GNU Octave 7.3.0"``.
    tpm
        The priors that were used; None if a compiled SPM did not print them.
    log
        Everything that the run printed.
    """

    native: list[Path | None]
    dartel: list[Path | None]
    normalised: list[Path | None]
    modulated: list[Path | None]
    bias_field: Path | None
    bias_corrected: Path | None
    forward_deformation: Path | None
    inverse_deformation: Path | None
    parameters: Path
    seconds: float
    peak_memory_gb: float
    runner: str
    tpm: Path | None
    log: str = field(repr=False)


def run_unified_segmentation(
    image: str | os.PathLike | nib.spatialimages.SpatialImage,
    out_dir: str | os.PathLike,
    *,
    installation: SpmInstallation,
    settings: UnifiedSegmentationSettings | None = None,
    stem: str | None = None,
    timeout_s: float | None = None,
) -> UnifiedSegmentationRun:
    """Run SPM's unified segmentation on one 3-D volume, on one thread, in a private folder inside `out_dir`.

    The outputs have SPM's names (``c1STEM.nii`` ...) and appear in `out_dir` only when all are complete. The
    folder of `image` is only read. Two runs can share `out_dir` if their stems differ.

    Parameters
    ----------
    image
        NIfTI file (compressed or not, any name), any image that nibabel reads, or an image in memory.
    out_dir
        Folder for the outputs, made if missing. Writing is tested before the computation starts.
    installation
        From `iqtflow.segmentation.spm.install.find_spm`.
    settings
        None: SPM12's defaults.
    stem
        Name of the outputs; by default the name of the file without extension.
    timeout_s
        Stop after this many seconds; by default never.

    Raises
    ------
    SpmError
        SPM failed, was killed, or did not write all outputs. The message quotes SPM.
    OutputError
        `out_dir` cannot be written, or is too full.
    InputError
        The image cannot be read to its end.
    """
    settings = settings or UnifiedSegmentationSettings()
    name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else (image.get_filename() or "image")
    stem = stem or plain_stem(name)
    out_dir = require_parent(Path(out_dir, "outputs")).parent
    with private_folder(out_dir) as private:
        _place_image(image, private / f"{STEM}.nii", name)
        _require_space(private, settings)
        tpm_names = place_priors(private, settings, installation)
        start_ns = (private / f"{STEM}.nii").stat().st_mtime_ns
        log, seconds, peak_gb = run_m_code(
            job_script(settings, tpm_names),
            private,
            installation=installation,
            name=name,
            timeout_s=timeout_s,
        )
        made = expected_outputs(private, STEM, settings)
        _require_fresh(_flat(made), start_ns, name, log)
        _drop_date(made["parameters"])
        outputs = expected_outputs(out_dir, stem, settings)
        for path, target in zip(_flat(made), _flat(outputs), strict=True):
            os.replace(path, target)
    tpm_said = _line_after(TPM_USED, log)
    return UnifiedSegmentationRun(
        **outputs,
        seconds=seconds,
        peak_memory_gb=peak_gb,
        runner=_line_after(RUNNER, log) or "unknown",
        log=log,
        tpm=installation.tpm or (Path(tpm_said) if tpm_said else None),
    )


def run_m_code(
    code: str,
    folder: Path,
    *,
    installation: SpmInstallation,
    name: str | os.PathLike,
    timeout_s: float | None = None,
) -> tuple[str, float, float]:
    """Run m-code from `iqtflow.segmentation.spm.script` in `folder`, as a child process on one thread.

    Parameters
    ----------
    code
        The m-code.
    folder
        Working folder of the process.
    installation
        From `iqtflow.segmentation.spm.install.find_spm`.
    name
        Name of the image, for error messages.
    timeout_s
        Stop after this many seconds; by default never.

    Returns
    -------
    log : str
    seconds : float
        Wall-clock time.
    peak_memory_gb : float
        Largest resident memory of the child process, 1e9 bytes.

    Raises
    ------
    SpmError
        The process did not start, was killed, ran out of time, or did not print that it completed.
    """
    (folder / _SCRIPT).write_text(code, encoding="ascii")
    command = [*installation.command, _SCRIPT]
    log_file = folder / "iqtflow_job.log"
    start = time.monotonic()
    # A file, not a pipe: a file never blocks, and stays after the process is killed.
    with open(log_file, "wb") as sink:
        try:
            child = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ONE_THREAD},
            )
        except OSError as fault:
            raise SpmError(
                name,
                found=f"{command[0]} that does not start ({fault.strerror})",
                expected="a running SPM",
                next_step="Run iqtflow --doctor.",
            ) from fault
        try:
            peak_gb, timed_out = _wait(child, None if timeout_s is None else start + timeout_s)
        except BaseException:  # also Ctrl-C: the process must not go on
            child.kill()
            child.wait()
            raise
    log = log_file.read_text(encoding="utf-8", errors="replace")
    said = _line_after(FAULT, log)
    if timed_out:
        found = f"SPM still running after {timeout_s:g} s"
    elif (killer := _killer(child.returncode)) is not None:
        found = f"SPM ended by {killer}" + (" (out of memory?)" if killer == "SIGKILL" else "") + _tail(log)
    elif said is not None:
        found = f"SPM's error {said.strip(' |')}"
    elif child.returncode != 0 or not re.search(rf"^{DONE}\s*$", log, re.MULTILINE):
        found = f"no completion of SPM (exit code {child.returncode})" + _tail(log)
    else:
        return log, time.monotonic() - start, peak_gb
    raise SpmError(
        name,
        found=found,
        expected="a completed unified segmentation",
        next_step="Look at the image; iqtflow --doctor checks "
        + ("SPM." if installation.compiled else "SPM and Octave."),
    )


def plain_stem(name: str) -> str:
    """Return a file name without folder and image extension (``sub-01_T1w.nii.gz`` -> ``sub-01_T1w``)."""
    return re.sub(r"\.(nii|img|hdr|mgz|mgh)$", "", re.sub(r"\.gz$", "", Path(name).name))


@contextmanager
def private_folder(parent: str | os.PathLike) -> Iterator[Path]:
    """Make an empty folder in `parent`, and remove it afterwards.

    Raises
    ------
    OutputError
        `parent` does not exist or cannot be written.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=".spm-", dir=parent))
    except OSError as fault:
        raise OutputError(
            parent,
            found=f"{type(fault).__name__} ({fault.strerror})",
            expected="a writable folder",
            next_step="Choose another folder, or change its permissions.",
        ) from fault
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place_image(image: str | os.PathLike | nib.spatialimages.SpatialImage, target: Path, name: str) -> None:
    """Write `image` to `target` as uncompressed NIfTI. NIfTI files are copied byte for byte."""
    try:
        if not isinstance(image, (str, os.PathLike)):
            nib.Nifti1Image.from_image(image).to_filename(target)
        elif name.endswith(".nii"):
            shutil.copyfile(image, target)
        elif name.endswith(".nii.gz"):
            with gzip.open(image, "rb") as source, open(target, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
        else:
            nib.Nifti1Image.from_image(nib.load(image)).to_filename(target)
    except (EOFError, zlib.error, gzip.BadGzipFile, nib.filebasedimages.ImageFileError) as fault:
        raise InputError(
            name,
            found=f"a damaged file ({fault})",
            expected="a complete image",
            next_step="Copy or convert it again.",
        ) from fault
    except OSError as fault:
        raise OutputError(
            target.parent,
            found=f"{type(fault).__name__} ({fault.strerror}) while copying {name}",
            expected="room for an uncompressed copy",
            next_step="Free some space, or check the input.",
        ) from fault
    target.chmod(0o644)


def _require_space(private: Path, settings: UnifiedSegmentationSettings) -> None:
    """Check that the disk has room for the outputs: SPM would fail only at the very end."""
    voxels = math.prod(nib.load(private / f"{STEM}.nii").shape[:3])
    per_voxel = (
        2 * len(settings.tissues) + 4 * sum(settings.write_bias) + 12 * sum(settings.write_deformation)
    )
    needed_gb = (voxels * per_voxel + 50e6) / 1e9
    free_gb = shutil.disk_usage(private).free / 1e9
    if free_gb < needed_gb:
        raise OutputError(
            private.parent,
            found=f"{free_gb:.2f} GB free",
            expected=f"{needed_gb:.2f} GB for SPM's outputs",
            next_step="Free some space, or choose another folder.",
        )


def place_priors(
    private: Path, settings: UnifiedSegmentationSettings, installation: SpmInstallation
) -> list[str | None]:
    """Link (or unpack) the priors under plain names; return a name for each class (None: SPM's own)."""
    names: dict[Path, str] = {}
    placed: list[str | None] = []
    for tissue in settings.tissues:
        source = tissue.tpm or installation.tpm
        if source is None:
            placed.append(None)
            continue
        source = Path(source).absolute()
        if source not in names:
            names[source] = f"TPM{len(names) + 1}.nii"
            if source.suffix == ".gz":
                _place_image(source, private / names[source], os.fspath(source))
            else:
                (private / names[source]).symlink_to(source)
        placed.append(names[source])
    return placed


def _wait(child: subprocess.Popen, deadline: float | None) -> tuple[float, bool]:
    """Wait for `child`; return its peak resident memory (GB), and whether it was stopped at the deadline."""
    timed_out = False
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            unit = 1 if sys.platform == "darwin" else 1024
            return usage.ru_maxrss * unit / 1e9, timed_out
        if deadline is not None and not timed_out and time.monotonic() > deadline:
            timed_out = True
            child.kill()
        time.sleep(0.05)


def _flat(outputs: Mapping[str, Any]) -> list[Path]:
    every = [value if isinstance(value, list) else [value] for value in outputs.values()]
    return [path for group in every for path in group if path is not None]


def _killer(returncode: int) -> str | None:
    """Return the name of the signal that ended the process. A wrapper script reports 128 + its number."""
    number = -returncode if returncode < 0 else returncode - 128
    return signal.Signals(number).name if number in {int(known) for known in signal.Signals} else None


def _require_fresh(paths: Iterable[Path], start_ns: int, image: str, log: str) -> None:
    """Check that every output exists and is younger than the start, by the clock of the same disk."""
    for path in paths:
        if not path.is_file() or path.stat().st_size == 0 or path.stat().st_mtime_ns < start_ns:
            raise SpmError(
                image,
                found=f"a completed SPM, but no new {path.name}" + _tail(log),
                expected="every map that was asked for",
                next_step="Run iqtflow --doctor.",
            )


def _drop_date(mat_file: Path) -> None:
    """Overwrite the text with the date at the head of a MAT-file 5, so that same input gives same bytes."""
    with open(mat_file, "r+b") as stream:
        if stream.read(10) == b"MATLAB 5.0":
            stream.seek(0)
            stream.write(b"MATLAB 5.0 MAT-file, unified segmentation".ljust(116))


def _line_after(mark: str, log: str) -> str | None:
    found = re.findall(rf"^{mark} (.*)$", log, re.MULTILINE)
    return found[-1].strip() if found else None


def _tail(log: str) -> str:
    """Quote the last lines of the log, without Octave's harmless message about an "execution_exception"."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and "execution_exception" not in line]
    return "; it printed: " + " / ".join(lines[-4:]) if lines else ""
