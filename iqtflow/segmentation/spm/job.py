"""One unified segmentation in a private folder: a child process whose success is proven, not assumed.

The traps that this file walks around were all met in practice (nipype issue 2562 and SPM under Octave 7):
outputs that SPM puts beside the *input*, old outputs taken for new ones, exit codes nobody reads, file
names that do not survive a trip through generated m-code, and a batch system whose failures crash Octave up
to 10.1. Hence the image travels under a fixed plain name, ``spm_preproc_run`` is called directly, and only
files younger than the start count.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping
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
    job_script,
    wanted_files,
)
from iqtflow.utils.errors import InputError, OutputError

_SCRIPT = "iqtflow_job.m"


class SpmError(InputError):
    """SPM did not complete; nothing of what it may have written is kept."""


@dataclass(frozen=True)
class UnifiedSegmentationRun:
    """Files and figures of a completed run.

    Attributes
    ----------
    native, dartel, normalised, modulated
        One entry per class, None where that map was not asked for (``c1``, ``rc1``, ``wc1``, ``mwc1`` ...).
    bias_field, bias_corrected, forward_deformation, inverse_deformation
        None where not asked for.
    parameters
        ``_seg8.mat``: affine, Gaussians, deformation.
    seconds, peak_memory_gb
        Wall-clock time and largest resident memory (GB, 1e9 bytes) of the child process.
    runner
        What ran SPM, for instance ``"GNU Octave 7.3.0"``.
    tpm
        The priors that were used; None when a compiled SPM did not say.
    log
        Everything the run printed.
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

    The outputs bear SPM's names (``c1STEM.nii`` ...) and appear in `out_dir` only when all of them are
    there. The folder of `image` is only read. Two runs may share `out_dir` when their stems differ.

    Parameters
    ----------
    image
        NIfTI file (compressed or not, under any name), any image that nibabel reads, or an image in memory.
    out_dir
        Where the outputs go; made if need be. Writing is tried before the computation starts.
    installation
        From `iqtflow.segmentation.spm.install.find_spm`.
    settings
        SPM12's defaults when None.
    stem
        Name of the outputs; the file's name without extension by default.
    timeout_s
        Give up after so many seconds; never by default.

    Raises
    ------
    SpmError
        SPM failed, was killed, or did not write what it should; the message says what SPM said.
    OutputError
        `out_dir` cannot be written, or is too full.
    InputError
        The image cannot be read to its end.
    """
    settings = settings or UnifiedSegmentationSettings()
    name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else (image.get_filename() or "image")
    stem = stem or plain_stem(name)
    out_dir = Path(out_dir).absolute()
    private = _private_folder(out_dir)
    try:
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
        wanted = wanted_files(settings)
        _require_fresh(private, _flat(wanted), start_ns, name, log)
        _drop_date(private / wanted["parameters"])
        outputs = expected_outputs(out_dir, stem, settings)
        for name, target in zip(_flat(wanted), _flat(outputs), strict=True):
            os.replace(private / name, target)
    finally:
        shutil.rmtree(private, ignore_errors=True)
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
        The process did not start, was killed, ran out of time, or did not say that it completed. `name` is
        what the message is about.
    """
    (folder / _SCRIPT).write_text(code, encoding="ascii")
    command = [*installation.command, _SCRIPT]
    log_file = folder / "iqtflow_job.log"
    start = time.monotonic()
    # A file, not a pipe: nobody can block on it, and it outlives a killed process.
    with open(log_file, "wb") as sink:
        try:
            child = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=single_thread_environment(),
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
        except BaseException:  # Ctrl-C too: never leave minutes of computation behind
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


def expected_outputs(
    out_dir: str | os.PathLike, stem: str, settings: UnifiedSegmentationSettings
) -> dict[str, Any]:
    """Say where a run will leave its files, by the fields of `UnifiedSegmentationRun`; look at nothing."""

    def path(name: str | None) -> Path | None:
        return None if name is None else Path(out_dir) / name.replace(STEM, stem)

    return {
        key: [path(one) for one in value] if isinstance(value, list) else path(value)
        for key, value in wanted_files(settings).items()
    }


def plain_stem(name: str) -> str:
    """File name without folder and without image extension (``sub-01_T1w.nii.gz`` -> ``sub-01_T1w``)."""
    return re.sub(r"\.(nii|img|hdr|mgz|mgh)$", "", re.sub(r"\.gz$", "", Path(name).name))


def single_thread_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Hold the child process to one thread: SPM's MEX files take every core unasked and gain nothing."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**(os.environ if environ is None else environ), **dict.fromkeys(names, "1")}


def _private_folder(out_dir: Path) -> Path:
    """Make an empty folder in `out_dir`: proof that we may write there, and results move by renaming."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".spm-", dir=out_dir))
    except OSError as fault:
        raise OutputError(
            out_dir,
            found=f"{type(fault).__name__} ({fault.strerror})",
            expected="a writable folder",
            next_step="Choose another folder, or change its permissions.",
        ) from fault


def _place_image(image: str | os.PathLike | nib.spatialimages.SpatialImage, target: Path, name: str) -> None:
    """Put `image` at `target` as uncompressed NIfTI, byte for byte where it is NIfTI already."""
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
    """SPM notices a full disk at the very end only; count what it will write now."""
    voxels = 1
    for n in nib.load(private / f"{STEM}.nii").shape[:3]:
        voxels *= n
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
    """Link (or unpack) the priors under plain names; one name for each class."""
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
    """Peak resident memory (GB) of `child`, and whether it had to be stopped at the deadline."""
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


def _flat(wanted: Mapping[str, Any]) -> list[Any]:
    every = [value if isinstance(value, list) else [value] for value in wanted.values()]
    return [name for group in every for name in group if name is not None]


def _killer(returncode: int) -> str | None:
    """Name of the signal that ended the process; a wrapper script around Octave reports 128 + its number."""
    number = -returncode if returncode < 0 else returncode - 128
    return signal.Signals(number).name if number in {int(known) for known in signal.Signals} else None


def _require_fresh(folder: Path, names: Iterable[str], start_ns: int, image: str, log: str) -> None:
    """Demand that every output is there and younger than the script, by the clock of the same disk."""
    for name in names:
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0 or path.stat().st_mtime_ns < start_ns:
            raise SpmError(
                image,
                found=f"SPM's completion, but no new {name}" + _tail(log),
                expected="every map that was asked for",
                next_step="Run iqtflow --doctor.",
            )


def _drop_date(mat_file: Path) -> None:
    """Overwrite the free text (with a date) at the head of a MAT-file 5: same input, same bytes."""
    with open(mat_file, "r+b") as stream:
        if stream.read(10) == b"MATLAB 5.0":
            stream.seek(0)
            stream.write(b"MATLAB 5.0 MAT-file, unified segmentation".ljust(116))


def _line_after(mark: str, log: str) -> str | None:
    found = re.findall(rf"^{mark} (.*)$", log, re.MULTILINE)
    return found[-1].strip() if found else None


def _tail(log: str) -> str:
    """Quote the last words of the run, without Octave's harmless farewell about an "execution_exception"."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and "execution_exception" not in line]
    return "; it said: " + " / ".join(lines[-4:]) if lines else ""
