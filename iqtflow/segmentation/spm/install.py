"""Find SPM, Octave and the tissue priors on this machine, without starting a process."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iqtflow.utils.errors import UsageError

#: Git blob id of TPM.nii in SPM12 ... SPM 26; it can be looked up in SPM's repository.
GENUINE_TPM_BLOB = "dceb466bc7363ba45fdd4e224550a394868bec95"

#: Without graphics, start-up files and history, so that sessions are the same on every machine.
OCTAVE_OPTIONS = ("--no-init-file", "--no-history", "--no-window-system", "--quiet")

#: Environment variables and folders, in the order of the search.
SPM_VARIABLES = ("SPM_HOME", "SPM_PATH", "SPM_DIR")
SPM_FOLDERS = ("/opt/spm12", "/opt/spm")

_CONTENTS_VERSION = re.compile(r"^%\s*Version\s+(?P<revision>\S+)\s+\((?P<release>SPM\w*)\)", re.MULTILINE)


class SpmNotFoundError(UsageError):
    """SPM, Octave or the tissue priors are missing.

    Attributes
    ----------
    causes
        All errors, if there are several.
    """

    causes: tuple[SpmNotFoundError, ...] = ()


class OctaveNotFoundError(SpmNotFoundError):
    """There is no Octave to run SPM with."""


@dataclass(frozen=True)
class SpmInstallation:
    """An SPM that can be started.

    Attributes
    ----------
    command
        Command line, to which the name of an m-file is added.
    compiled
        True for SPM compiled for the MATLAB Runtime, False for SPM under GNU Octave.
    spm_dir
        Folder of SPM; None if only a command is known.
    spm_source
        Setting that named it: ``"argument"``, ``"$SPM_HOME"``, ``"/opt/spm12"`` ...
    octave, octave_source
        Octave, and the setting that named it; None for a compiled SPM.
    tpm
        4-D tissue priors; None if only a running (compiled) SPM knows their place.
    release, revision
        From ``Contents.m`` (``"SPM12"``, ``"7771"``); ``"unknown"`` without that file.
    skipped
        Places that were searched before, and why each was not used.
    """

    command: tuple[str, ...]
    compiled: bool
    spm_dir: Path | None
    spm_source: str
    octave: Path | None
    octave_source: str | None
    tpm: Path | None
    release: str
    revision: str
    skipped: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """Release and revision in one string, for instance ``"SPM12 r7771"``."""
        revision = f"r{self.revision}" if self.revision.isdigit() else self.revision
        return self.release if self.revision == "unknown" else f"{self.release} {revision}"

    def describe(self) -> str:
        """Return one line for the terminal: SPM, Octave, and the settings that named them."""
        runner = "MATLAB Runtime" if self.compiled else f"Octave {self.octave} ({self.octave_source})"
        return f"{self.version} in {self.spm_dir or self.command[0]} ({self.spm_source}), {runner}"


def find_spm(
    *,
    spm_dir: str | os.PathLike | None = None,
    tpm: str | os.PathLike | None = None,
    octave: str | os.PathLike | None = None,
    environ: Mapping[str, str] | None = None,
) -> SpmInstallation:
    """Find SPM, Octave and the tissue priors, without starting a process.

    Search order for SPM: `spm_dir`; ``$SPMMCRCMD`` if ``$FORCE_SPMMCR`` is set (as in nipype); ``$SPM_HOME``,
    ``$SPM_PATH``, ``$SPM_DIR``; ``$SPMSTANDALONE_HOME`` with ``$MCR_HOME`` (as in Clinica); ``/opt/spm12``;
    ``/opt/spm``. For Octave: `octave`; ``$OCTAVE_EXEC``; ``octave-cli``; ``octave``. For the priors: `tpm`;
    ``tpm/TPM.nii`` of that SPM.

    Parameters
    ----------
    spm_dir
        Folder of an SPM compiled for Octave.
    tpm
        Tissue priors, 4-D NIfTI, in SPM's order: GM, WM, CSF, bone, soft tissue, air.
    octave
        Octave executable, by name or path.
    environ
        Environment variables; those of this process by default.

    Raises
    ------
    SpmNotFoundError
        Nothing usable was found. The message lists all places.
    """
    environ = os.environ if environ is None else environ
    skipped: list[str] = []
    causes: list[SpmNotFoundError] = []
    for source, folder, command in _candidates(spm_dir, environ):
        try:
            return _examine(source, folder, command, tpm, octave, environ, tuple(skipped))
        except SpmNotFoundError as fault:
            if source in ("argument", "$SPMMCRCMD"):  # asked for by name: never use another one
                raise
            skipped.append(f"{source}: {fault}")
            causes.extend(fault.causes or (fault,))
    none_found = SpmNotFoundError(
        "SPM",
        found="; ".join(skipped)
        or "none of $SPM_HOME, $SPM_PATH, $SPM_DIR, $SPMSTANDALONE_HOME, /opt/spm12, /opt/spm",
        expected="SPM12 or later, compiled for GNU Octave (make PLATFORM=octave), or standalone SPM",
        next_step="Name it with --spm-dir or $SPM_HOME, or choose --segmentation ants.",
    )
    if not causes:  # no SPM at all: report at once what else is missing
        _, missing = _all_of(lambda: _find_octave(octave, environ), lambda: _find_tpm(tpm, None))
        causes = [copy.copy(none_found), *missing] if missing else []
    none_found.causes = tuple(causes)
    raise none_found


def tpm_blob_id(path: str | os.PathLike) -> str:
    """Return the Git blob id (SHA-1, hex digits) of tissue priors, of the bytes after decompression.

    Only priors with the id `GENUINE_TPM_BLOB` are SPM's own.
    """
    from iqtflow.image.nifti_file import read_content

    content = read_content(path)
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_spm_version(spm_dir: str | os.PathLike | None) -> tuple[str, str]:
    """Read release and revision from SPM's ``Contents.m``; ``("unknown", "unknown")`` without it.

    The line is ``% Version 7771 (SPM12) 13-Jan-20`` or ``% Version 25.01.02 (SPM25) 23-Jan-2025``.
    """
    if spm_dir is not None:
        try:
            head = (Path(spm_dir) / "Contents.m").read_text(encoding="utf-8", errors="replace")[:1000]
        except OSError:
            head = ""
        match = _CONTENTS_VERSION.search(head)
        if match:
            return match["release"], match["revision"]
    return "unknown", "unknown"


def _candidates(
    spm_dir: str | os.PathLike | None, environ: Mapping[str, str]
) -> Iterator[tuple[str, Path | None, tuple[str, ...] | None]]:
    """Yield source, folder, and command of a compiled SPM (or None), in the search order."""
    if spm_dir is not None:
        yield "argument", Path(spm_dir), None
        return
    if "FORCE_SPMMCR" in environ and environ.get("SPMMCRCMD"):
        command = tuple(shlex.split(environ["SPMMCRCMD"]))
        yield "$SPMMCRCMD", Path(command[0]).parent if os.sep in command[0] else None, command
    for name in SPM_VARIABLES:
        if environ.get(name):
            yield f"${name}", Path(environ[name]), None
    if environ.get("SPMSTANDALONE_HOME") and environ.get("MCR_HOME"):
        home = Path(environ["SPMSTANDALONE_HOME"])
        launcher = next(iter(sorted(home.glob("run_spm*.sh"))), home / "run_spm12.sh")
        yield "$SPMSTANDALONE_HOME", home, (str(launcher), environ["MCR_HOME"], "script")
    for folder in SPM_FOLDERS:
        if Path(folder).is_dir():
            yield folder, Path(folder), None


def _examine(
    source: str,
    folder: Path | None,
    compiled: tuple[str, ...] | None,
    tpm: str | os.PathLike | None,
    octave: str | os.PathLike | None,
    environ: Mapping[str, str],
    skipped: tuple[str, ...],
) -> SpmInstallation:
    """Check that one candidate is complete."""
    searches: tuple[Callable[[], Any], ...]
    if compiled:  # it unpacks its own files somewhere below its folder, at its first start
        searches = (
            lambda: _require_executable(compiled[0], environ),
            lambda: (None, None),
            lambda: _find_tpm(tpm, folder, compiled=True),
        )
    else:
        folder = folder.absolute()
        searches = (
            lambda: _require_octave_spm(folder),
            lambda: _find_octave(octave, environ),
            lambda: _find_tpm(tpm, folder),
        )
    found, faults = _all_of(*searches)
    if faults:
        faults[0].causes = tuple(faults) if len(faults) > 1 else ()
        raise faults[0]
    _, (octave_path, octave_source), priors = found
    command = compiled or (str(octave_path), *OCTAVE_OPTIONS, "--path", str(folder))
    release, revision = read_spm_version(_find_contents(folder) if compiled else folder)
    return SpmInstallation(
        command=command,
        compiled=bool(compiled),
        spm_dir=folder,
        spm_source=source,
        octave=octave_path,
        octave_source=octave_source,
        tpm=priors,
        release=release,
        revision=revision,
        skipped=skipped,
    )


def _all_of(*searches: Callable[[], Any]) -> tuple[list[Any], list[SpmNotFoundError]]:
    """Return the results of all searches, and all errors."""
    found, faults = [], []
    for search in searches:
        try:
            found.append(search())
        except SpmNotFoundError as fault:
            faults.append(fault)
    return found, faults


def _require_octave_spm(folder: Path) -> None:
    if not (folder / "spm_preproc_run.m").is_file():
        raise SpmNotFoundError(
            folder,
            found="no spm_preproc_run.m",
            expected="the folder of SPM12 or later",
            next_step="Name the folder that holds spm.m with --spm-dir or $SPM_HOME.",
        )
    if not (folder / "spm_bsplinc.mex").is_file():
        raise SpmNotFoundError(
            folder,
            found="SPM without MEX files for Octave (spm_bsplinc.mex)",
            expected="SPM compiled for GNU Octave",
            next_step="In its src folder: make PLATFORM=octave && make PLATFORM=octave install.",
        )
    if os.pathsep in str(folder):
        raise SpmNotFoundError(
            folder,
            found=f"{os.pathsep!r} in the path, where Octave expects another folder after it",
            expected="a path without it",
            next_step="Make a symbolic link and give its path.",
        )


def _find_octave(octave: str | os.PathLike | None, environ: Mapping[str, str]) -> tuple[Path, str]:
    for name, source in ((octave, "argument"), (environ.get("OCTAVE_EXEC"), "$OCTAVE_EXEC")):
        if name:
            return _require_executable(os.fspath(name), environ, OctaveNotFoundError, source), source
    for name in ("octave-cli", "octave"):
        found = shutil.which(name, path=environ.get("PATH"))
        if found:
            return Path(found), f"{name} on $PATH"
    raise OctaveNotFoundError(
        "Octave",
        found="neither octave-cli nor octave on $PATH",
        expected="GNU Octave 6 or later",
        next_step="Install it (Debian: apt-get install octave), or name it with --octave.",
    )


def _require_executable(
    name: str,
    environ: Mapping[str, str],
    kind: type[SpmNotFoundError] = SpmNotFoundError,
    source: str = "argument",
) -> Path:
    found = shutil.which(name, path=environ.get("PATH"))
    if found is None:
        raise kind(
            name if source == "argument" else f"{source}={name}",
            found="no executable program",
            expected="a program",
            next_step="Correct the path, or its permissions.",
        )
    return Path(found).absolute()


def _find_tpm(tpm: str | os.PathLike | None, folder: Path | None, *, compiled: bool = False) -> Path | None:
    if tpm is not None:
        if not Path(tpm).is_file():
            raise SpmNotFoundError(
                tpm,
                found="no such file",
                expected="tissue priors (TPM.nii)",
                next_step="Correct --tpm, or leave it out to take SPM's own.",
            )
        return Path(tpm).absolute()
    if folder is None:
        return None
    if (folder / "tpm" / "TPM.nii").is_file():
        return (folder / "tpm" / "TPM.nii").absolute()
    if compiled:
        return next(iter(sorted(folder.glob("**/tpm/TPM.nii"))), None)
    if (folder / "spm_preproc_run.m").is_file():  # else it is no SPM, a separate error
        raise SpmNotFoundError(
            folder / "tpm" / "TPM.nii",
            found="no such file",
            expected="SPM's tissue priors",
            next_step="Copy TPM.nii from the SPM distribution, or name it with --tpm.",
        )
    return None


def _find_contents(folder: Path | None) -> Path | None:
    """Return the folder of the Contents.m that a compiled SPM has unpacked; `folder` if there is none."""
    if folder is None or (folder / "Contents.m").is_file():
        return folder
    contents = sorted(folder.glob("**/Contents.m"))
    return next((path.parent for path in contents if (path.parent / "spm.m").exists()), folder)
