"""Which engine makes the tissue maps of a scan: ready-made ones, SPM, or the embedded engine."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iqtflow.config import SegmentationSettings
from iqtflow.errors import UsageError
from iqtflow.ready_maps import ReadyMaps, find_ready_maps
from iqtflow.spm_install import GENUINE_TPM_BLOB, SpmInstallation, SpmNotFoundError, find_spm, tpm_blob_id

EMBEDDED = "embedded engine (ANTs N4 and Atropos)"


@dataclass(frozen=True)
class EngineChoice:
    """An engine, and why it was taken.

    Attributes
    ----------
    engine
        ``"derivatives"``, ``"spm"`` or ``"ants"``.
    reason
        Why, as a phrase for people.
    maps
        The ready-made maps; None for the other engines, and where maps were insisted on but are not there.
    spm
        The installation; None for the other engines.
    whole_head
        The image before its skull was removed, which SPM segments in its place, if the data set has it.
    """

    engine: str
    reason: str
    maps: ReadyMaps | None = None
    spm: SpmInstallation | None = None
    whole_head: Path | None = None

    def describe(self) -> str:
        """One line for the terminal."""
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
    """Choose the engine for one scan: ready-made maps before SPM, and SPM before the embedded engine.

    Parameters
    ----------
    wanted
        ``"auto"``, or the engine that is insisted on.
    maps
        The scan's ready-made maps, if it has any.
    spm_dir, tpm, octave
        As for `iqtflow.spm_install.find_spm`.

    Raises
    ------
    SpmNotFoundError
        There is no usable SPM, and the user wants it: by ``"spm"``, or by naming one of its parts.
    """
    if wanted == "ants":
        return EngineChoice("ants", "asked for")
    if wanted == "derivatives" or (wanted == "auto" and maps is not None):
        return EngineChoice("derivatives", "asked for" if wanted != "auto" else "they are there", maps=maps)
    try:
        found = find_spm(spm_dir=spm_dir, tpm=tpm, octave=octave)
    except SpmNotFoundError as fault:
        if wanted == "spm" or any(value is not None for value in (spm_dir, tpm, octave)):
            raise
        return EngineChoice("ants", f"no SPM ({fault.found})")
    return EngineChoice("spm", "asked for" if wanted == "spm" else "it is there", spm=found)


def engine_for(image: str | os.PathLike, settings: SegmentationSettings) -> EngineChoice:
    """Choose the engine for one image of a data set, as the settings say.

    Raises
    ------
    SpmNotFoundError
        As `choose_engine`.
    """
    from iqtflow.spm_checks import find_unstripped_sibling

    looks = settings.derivatives is not None and settings.engine in ("auto", "derivatives")
    choice = choose_engine(
        settings.engine,
        maps=find_ready_maps(image, settings.derivatives) if looks else None,
        spm_dir=settings.spm_dir,
        tpm=settings.tpm,
        octave=settings.octave,
    )
    if choice.engine == "spm":
        # Data sets in BIDS' form often are links to files under the names that they came with.
        choice = replace(choice, whole_head=find_unstripped_sibling(os.path.realpath(image)))
    return choice


def check_engine(images: Sequence[str | os.PathLike], settings: SegmentationSettings) -> str:
    """Make sure, before anything is written, that there is an engine; describe it for the terminal.

    Parameters
    ----------
    images
        All images that maps are needed of.
    settings
        What the user asked for.

    Raises
    ------
    UsageError
        Ready-made maps are insisted on and there are none, or named though another engine is insisted on.
    SpmNotFoundError
        As `choose_engine`.
    """
    folder = settings.derivatives
    if settings.engine == "derivatives" and folder is None:
        raise UsageError(
            "--segmentation derivatives",
            found="no --derivatives",
            expected="the folder that holds the maps",
            next_step="Name fMRIPrep's or sMRIPrep's output with --derivatives.",
        )
    if folder is not None and settings.engine not in ("auto", "derivatives"):
        raise UsageError(
            "--derivatives",
            found=f"--segmentation {settings.engine}",
            expected="auto or derivatives: other engines take no ready-made maps",
            next_step="Leave one of the two out.",
        )
    choices = [engine_for(image, settings) for image in images]
    counts = Counter("none" if c.engine == "derivatives" and not c.maps else c.engine for c in choices)
    if settings.engine == "derivatives" and set(counts) == {"none"}:
        raise UsageError(
            folder,
            found="no tissue maps of any image",
            expected="sub-X/anat/sub-X_label-WM_probseg.nii.gz, and the same for GM and CSF",
            next_step="Check the path; or choose --segmentation auto, which lets another engine take over.",
        )
    if folder is None:
        return choices[0].describe()
    lacking = [choice for choice in choices if choice.maps is None]
    text = f"ready-made maps of {len(choices) - len(lacking)} of {len(choices)} images in {folder}"
    if lacking and settings.engine == "auto":
        text += f"; the others by {lacking[0].describe()}"
    return text + ("; the others will fail" if lacking and settings.engine == "derivatives" else "")


def describe_priors(spm: SpmInstallation) -> str:
    """Tell whether the tissue priors are SPM's own."""
    if spm.tpm is None:
        return "tissue priors inside standalone SPM"
    if tpm_blob_id(spm.tpm) == GENUINE_TPM_BLOB:
        return f"SPM's own tissue priors {spm.tpm}"
    return f"tissue priors {spm.tpm}, which are NOT SPM's own"
