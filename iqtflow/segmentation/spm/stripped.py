"""Input for SPM from a skull-stripped brain: faint noise around it, and priors with one class for the rest.

For SPM, zeros are missing data. So a stripped brain has no outline, and the affine registration can stretch
it into the skull and scalp of the priors: det(affine) was 2.2 instead of 1.5 for a brain of 1.3 l, with a
Dice of .49 for GM. With faint noise instead of zeros, and one class for all that is not GM, WM or CSF, the
outline is the strongest feature of the image.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from iqtflow.image.nifti_file import open_nifti
from iqtflow.segmentation.brainmask import ERASED_BACKGROUND, LARGEST_BRAIN_ML
from iqtflow.segmentation.spm.script import TissueClass, UnifiedSegmentationSettings

#: Noise of the background, as a share of the 99th percentile of the brain; far below any tissue.
NOISE_LEVEL = 0.01


def looks_stripped(present: np.ndarray, affine: np.ndarray) -> bool:
    """Return whether an image is a skull-stripped brain: zeros around it, and not larger than a brain.

    Parameters
    ----------
    present : ndarray of bool, shape (w, h, D)
        True where the image is not zero.
    affine : ndarray, shape (4, 4)
        Voxel indices to world mm.
    """
    remaining_ml = np.count_nonzero(present) * abs(np.linalg.det(affine[:3, :3])) / 1000
    return bool(1 - present.mean() >= ERASED_BACKGROUND and remaining_ml <= LARGEST_BRAIN_ML)


def write_with_background(scan: nib.Nifti1Image, path: Path) -> Path:
    """Write a stripped brain with noise around it. The same brain gets the same noise.

    Parameters
    ----------
    scan
        The stripped brain from `iqtflow.segmentation.spm.checks.check_spm_input`, 0 outside, shape (w, h, D).
    path
        File to write. Zeros inside the brain stay missing data.
    """
    data = scan.get_fdata(dtype=np.float32)
    present = data != 0
    outside = ~ndimage.binary_fill_holes(present)
    noise = np.random.default_rng(0).normal(0, 1, np.count_nonzero(outside)).astype(np.float32)
    level = NOISE_LEVEL * float(np.percentile(data[present], 99))
    filled = data.copy()
    filled[outside] = level * (0.1 + np.abs(noise))
    header = scan.header.copy()
    header.set_data_dtype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(filled, scan.affine, header).to_filename(path)
    return path


def write_brain_priors(tpm: Path, path: Path) -> Path:
    """Write priors of four classes: GM, WM, CSF unchanged, and the rest as one class.

    Parameters
    ----------
    tpm
        SPM's priors, 4-D, in SPM's order.
    path
        File to write (``.nii``).
    """
    priors = open_nifti(tpm, kind="priors")
    brain = np.stack([np.asarray(priors.dataobj[..., i], dtype=np.float32) for i in range(3)], axis=-1)
    rest = np.clip(1 - brain.sum(axis=-1, keepdims=True), 0, 1)
    nib.Nifti1Image(np.concatenate([brain, rest], axis=-1), priors.affine).to_filename(path)
    return path


def stripped_settings(priors: Path, *, sampling_mm: float) -> UnifiedSegmentationSettings:
    """Return settings for a stripped brain: SPM's numbers of Gaussians for its tissues, two for the rest."""
    classes = enumerate((1, 1, 2, 2), start=1)
    tissues = tuple(TissueClass(i, n, native=(i < 4, False), tpm=priors) for i, n in classes)
    return UnifiedSegmentationSettings(tissues=tissues, sampling_mm=sampling_mm)
