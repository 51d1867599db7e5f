"""Tissue probability maps from SPM's unified segmentation, in the form of the embedded engine.

Unified segmentation: J. Ashburner and K. J. Friston, NeuroImage 26:839-851, 2005,
doi:10.1016/j.neuroimage.2005.02.018. This package contains nothing of SPM. It finds the user's SPM
(`iqtflow.segmentation.spm.install`) and runs it under GNU Octave, or as standalone SPM, in a child process
(`iqtflow.segmentation.spm.job`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from iqtflow.segmentation.atropos import TissueMaps
from iqtflow.segmentation.spm.checks import SpmFigures, check_spm_input, judge, measure
from iqtflow.segmentation.spm.install import GENUINE_TPM_BLOB, SpmInstallation, find_spm, tpm_blob_id
from iqtflow.segmentation.spm.job import UnifiedSegmentationRun, private_folder, run_unified_segmentation
from iqtflow.segmentation.spm.script import UnifiedSegmentationSettings
from iqtflow.segmentation.spm.stripped import (
    looks_stripped,
    stripped_settings,
    write_brain_priors,
    write_with_background,
)

#: Memory (GB) of a run on 0.7 mm voxels, for schedulers. A head of 1 mm voxels needs a third of it.
MEMORY_GB = 2.0


def segment_with_spm(
    image: str | os.PathLike | nib.Nifti1Image,
    *,
    installation: SpmInstallation | None = None,
    skull_stripped: bool | None = None,
    sampling_mm: float = 3.0,
    work_dir: str | os.PathLike | None = None,
    timeout_s: float | None = None,
) -> TissueMaps:
    """Segment one T1-weighted volume with the SPM of this machine.

    Parameters
    ----------
    image
        File (``.nii`` or ``.nii.gz``; only read) or image in memory, shape (w, h, D).
    installation
        From `find_spm`; found in the documented order when None.
    skull_stripped
        True: the skull has been removed. SPM then gets a background and suitable priors
        (`iqtflow.segmentation.spm.stripped`), and the maps are 0 where the image is 0. None: decide by the
        number of voxels that are not zero.
    sampling_mm
        SPM's sampling distance. It changes the result: maps with 3 and 2 mm differ.
    work_dir
        Where the run makes its private folder (0.2 GB for a 1 mm head); by default the system's temporary
        folder.
    timeout_s
        Stop after this many seconds; by default never.

    Returns
    -------
    TissueMaps
        Probabilities of WM, GM, CSF from SPM's c2, c1, c3; brain mask from c1 + c2 + c3; bias-corrected
        image; all of shape (w, h, D). `details` holds version, runner, priors (genuine or not), sampling
        distance, seconds, peak memory, measures of plausibility, and `remarks` for the user. The three maps
        may sum to less than 1 in the mask: the rest is bone and soft tissue.

    Raises
    ------
    SpmNotFoundError
        There is no usable SPM.
    InputError
        The image is not one that SPM can segment, SPM failed, or its maps are implausible.
    OutputError
        `work_dir` cannot be written.
    """
    installation = installation or find_spm()
    settings = UnifiedSegmentationSettings(sampling_mm=float(sampling_mm))
    with private_folder(work_dir or tempfile.gettempdir()) as folder:
        path = _on_disk(image, folder)
        scan = check_spm_input(path)
        present = scan.get_fdata(dtype=np.float32) != 0
        if skull_stripped is None:
            skull_stripped = looks_stripped(present, scan.affine)
        source = path
        if skull_stripped and installation.tpm is not None and not present.all():
            source = write_with_background(scan, folder / "filled" / path.name)
            priors = write_brain_priors(installation.tpm, folder / "brain-priors.nii")
            settings = stripped_settings(priors, sampling_mm=float(sampling_mm))
        elif scan.extra["notes"]:  # affine or intensities were corrected: SPM must not read the file itself
            source = folder / "corrected" / f"{path.name.split('.')[0]}.nii"
            source.parent.mkdir()
            scan.to_filename(source)
        run = run_unified_segmentation(
            source, folder, installation=installation, settings=settings, stem="T1", timeout_s=timeout_s
        )
        made = (*run.native[:3], run.bias_corrected)
        volumes = [nib.load(path).get_fdata(dtype=np.float32) for path in made]
        if skull_stripped:
            volumes = [np.where(present, values, np.float32(0)) for values in volumes]
        gm, wm, csf, bias_corrected = volumes
        mask = brain_from_tissues(gm + wm + csf)
        if skull_stripped:
            mask &= ndimage.binary_fill_holes(present)
        figures = measure(run.parameters, scan, (gm, wm, csf), bias_corrected, run.tpm)
        remarks = judge(figures, path)
        details = _details(
            installation, settings, run, figures, skull_stripped=skull_stripped, remarks=remarks
        )
    return TissueMaps(
        wm=wm,
        gm=gm,
        csf=csf,
        mask=mask,
        bias_corrected=np.nan_to_num(bias_corrected),
        engine="SPM unified segmentation",
        version=installation.version,
        details=details,
    )


def brain_from_tissues(probability: np.ndarray) -> np.ndarray:
    """Make a brain mask from c1 + c2 + c3: the largest connected part above one half, closed, without holes.

    Parameters
    ----------
    probability : ndarray, shape (w, h, D)
        Sum of GM, WM and CSF probabilities.

    Returns
    -------
    ndarray of bool, shape (w, h, D)
    """
    above = probability > 0.5
    parts, n_parts = ndimage.label(above)
    if n_parts > 1:
        above = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    # Padded, because closing would erode a brain that touches the border.
    closed = ndimage.binary_closing(np.pad(above, 2), iterations=2)[2:-2, 2:-2, 2:-2]
    return ndimage.binary_fill_holes(closed)


def _on_disk(image: str | os.PathLike | nib.Nifti1Image, folder: Path) -> Path:
    """Return the path of the image. An image in memory is written, even if it has a file name."""
    if isinstance(image, (str, os.PathLike)):
        return Path(image)
    path = folder / Path(image.get_filename() or "image.nii").name
    # With an affine nibabel would write an sform, and hide that there was none.
    placed = image.header["sform_code"] > 0 or image.header["qform_code"] > 0
    nib.Nifti1Image(image.dataobj, image.affine if placed else None, image.header).to_filename(path)
    return path


def _details(
    installation: SpmInstallation,
    settings: UnifiedSegmentationSettings,
    run: UnifiedSegmentationRun,
    figures: SpmFigures,
    *,
    skull_stripped: bool,
    remarks: Sequence[str],
) -> dict:
    """Return the fields for the sidecar of the maps."""
    blob = tpm_blob_id(run.tpm) if run.tpm is not None and Path(run.tpm).exists() else None
    remarks = list(remarks)
    if blob != GENUINE_TPM_BLOB:
        remarks.append(f"the tissue priors {run.tpm} are not SPM's TPM.nii; volumes differ from SPM's")
    if skull_stripped:
        remarks.append("skull-stripped input: CSF is less certain than in a whole head")
    return {
        "spm_version": installation.version,
        "spm_found_by": installation.spm_source,
        "spm_runner": run.runner,
        "tpm": None if run.tpm is None else str(run.tpm),
        "tpm_git_blob": blob,
        "tpm_genuine": blob == GENUINE_TPM_BLOB,
        "tissue_classes": len(settings.tissues),
        "sampling_distance_mm": settings.sampling_mm,
        "mask_method": "c1 + c2 + c3",
        "skull_stripped": bool(skull_stripped),
        "volumes_ml": {t: round(getattr(figures, f"{t.lower()}_ml"), 2) for t in ("CSF", "GM", "WM")},
        "brain_ml": round(figures.brain_ml, 2),
        "affine_determinant": round(figures.determinant, 4),
        "affine_rotation_deg": round(figures.rotation_deg, 2),
        "affine_stretch": round(figures.stretch, 4),
        "explained_variance": round(figures.explained, 4),
        "coverage": round(figures.coverage, 4),
        "seconds": {"spm": round(run.seconds, 2)},
        "peak_memory_gb": round(run.peak_memory_gb, 3),
        "remarks": remarks,
    }
