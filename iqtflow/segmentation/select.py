"""Choose the source of a scan's tissue maps: ready-made maps, SPM, or the embedded engine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iqtflow.config import SegmentationSettings
from iqtflow.segmentation.precomputed import ReadyMaps, find_ready_maps
from iqtflow.segmentation.spm.install import (
    GENUINE_TPM_BLOB,
    SpmInstallation,
    SpmNotFoundError,
    find_spm,
    tpm_blob_id,
)
from iqtflow.utils.errors import UsageError

EMBEDDED = "embedded engine (ANTs N4 and Atropos)"


@dataclass(frozen=True)
class EngineChoice:
    """An engine, and the reason for it.

    Attributes
    ----------
    engine
        ``"derivatives"``, ``"spm"`` or ``"ants"``.
    reason
        Why it was chosen.
    maps
        Ready-made maps; None for the other engines, and if ``"derivatives"`` was asked for but has no maps.
    spm
        The installation; None for the other engines.
    whole_head
        The image before skull stripping, if the data set has it. SPM segments it instead.
    """

    engine: str
    reason: str
    maps: ReadyMaps | None = None
    spm: SpmInstallation | None = None
    whole_head: Path | None = None

    def describe(self) -> str:
        """Return one line for the terminal."""
        if self.engine == "spm":
            return f"{self.spm.describe()}; {describe_priors(self.spm)}"
        if self.engine == "derivatives":
            return f"ready-made maps ({self.reason})"
        return f"{EMBEDDED}: {self.reason}"


def choose_engine(
    wanted: str = "auto",
    *,
    maps: ReadyMaps | None = None,
    spm_dir: str | os.PathLike | None = None,
    tpm: str | os.PathLike | None = None,
    octave: str | os.PathLike | None = None,
) -> EngineChoice:
    """Choose the engine for one scan: ready-made maps first, then SPM, then the embedded engine.

    Parameters
    ----------
    wanted
        ``"auto"``, or the engine that the user asks for.
    maps
        Ready-made maps of the scan, if there are any.
    spm_dir, tpm, octave
        As for `iqtflow.segmentation.spm.install.find_spm`.

    Raises
    ------
    SpmNotFoundError
        There is no usable SPM, and the user asks for ``"spm"`` or names one of its parts.
    """
    if wanted == "ants":
        return EngineChoice("ants", "asked for")
    if wanted == "derivatives" or (wanted == "auto" and maps is not None):
        return EngineChoice("derivatives", "asked for" if wanted != "auto" else "found", maps=maps)
    try:
        found = find_spm(spm_dir=spm_dir, tpm=tpm, octave=octave)
    except SpmNotFoundError as fault:
        if wanted == "spm" or any(value is not None for value in (spm_dir, tpm, octave)):
            raise
        return EngineChoice("ants", f"no SPM ({fault.found})")
    return EngineChoice("spm", "asked for" if wanted == "spm" else "found", spm=found)


def engine_for(
    image: str | os.PathLike, settings: SegmentationSettings, *, name: str | None = None
) -> EngineChoice:
    """Choose the engine for one image of a data set.

    With ``"auto"``, an image that shows too little of the head for SPM gets the embedded engine.

    Parameters
    ----------
    image
        The image.
    settings
        Settings of the user.
    name
        Its BIDS name, to find ready-made maps; None: the name of the file.

    Raises
    ------
    SpmNotFoundError
        As `choose_engine`.
    """
    from iqtflow.segmentation.spm.checks import MIN_EXTENT_MM, find_unstripped_sibling, least_extent_mm

    folders = settings.derivatives if settings.engine in ("auto", "derivatives") else ()
    found = (find_ready_maps(name or image, folder) for folder in folders)
    choice = choose_engine(
        settings.engine,
        maps=next((maps for maps in found if maps is not None), None),
        spm_dir=settings.spm_dir,
        tpm=settings.tpm,
        octave=settings.octave,
    )
    if choice.engine == "spm":
        extent_mm = least_extent_mm(image)
        if settings.engine == "auto" and extent_mm is not None and extent_mm < MIN_EXTENT_MM:
            return EngineChoice("ants", f"SPM needs {MIN_EXTENT_MM:.0f} mm along every axis")
        # BIDS data sets are often made of links to files with their original names.
        choice = replace(choice, whole_head=find_unstripped_sibling(os.path.realpath(image)))
    return choice


def check_engine(
    images: Sequence[str | os.PathLike],
    settings: SegmentationSettings,
    *,
    names: Sequence[str] | None = None,
) -> str:
    """Check, before anything is written, that there is an engine; describe it for the terminal.

    Parameters
    ----------
    images
        All images that need maps.
    settings
        Settings of the user.
    names
        BIDS names of the images; None: the names of the files.

    Raises
    ------
    UsageError
        The user asks for ready-made maps and there are none, or names them together with another engine.
    SpmNotFoundError
        As `choose_engine`.
    """
    folders = " and ".join(map(os.fspath, settings.derivatives))
    if settings.engine == "derivatives" and not folders:
        raise UsageError(
            "--segmentation derivatives",
            found="no --derivatives",
            expected="the folder that holds the maps",
            next_step="Name fMRIPrep's or sMRIPrep's output with --derivatives.",
        )
    if folders and settings.engine not in ("auto", "derivatives"):
        raise UsageError(
            "--derivatives",
            found=f"--segmentation {settings.engine}",
            expected="auto or derivatives: other engines do not use ready-made maps",
            next_step="Leave one of the two out.",
        )
    called = names or [None] * len(images)
    choices = [engine_for(image, settings, name=name) for image, name in zip(images, called, strict=True)]
    if settings.engine == "derivatives" and not any(choice.maps for choice in choices):
        raise UsageError(
            folders,
            found="no tissue maps of any image",
            expected="sub-X/anat/sub-X_label-WM_probseg.nii.gz, and the same for GM and CSF",
            next_step="Check the path; or choose --segmentation auto, which uses another engine.",
        )
    # Counted before they are described, because the description reads the tissue priors.
    kinds = Counter((replace(c, maps=None, whole_head=None), c.maps is not None) for c in choices)
    said = {_describe(kind, has_maps=has_maps, folders=folders): n for (kind, has_maps), n in kinds.items()}
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{n} of {len(choices)} images by {text}" for text, n in said.items())


def _describe(choice: EngineChoice, *, has_maps: bool, folders: str) -> str:
    if choice.engine != "derivatives":
        return choice.describe()
    return f"ready-made maps in {folders}" if has_maps else "no ready-made maps: these will fail"


def describe_priors(spm: SpmInstallation) -> str:
    """Return whether the tissue priors are SPM's own, as a phrase."""
    if spm.tpm is None:
        return "tissue priors inside standalone SPM"
    if tpm_blob_id(spm.tpm) == GENUINE_TPM_BLOB:
        return f"SPM's own tissue priors {spm.tpm}"
    return f"tissue priors {spm.tpm}, which are NOT SPM's own"
