"""Checks before and after SPM: the image, and whether affine, tissue volumes and coverage are plausible."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy.io import loadmat

from iqtflow.image.nifti_file import open_nifti, peek_nifti
from iqtflow.image.validate import check_scan
from iqtflow.segmentation.atropos import BRAIN_ML
from iqtflow.utils.errors import InputError

MIN_EXTENT_MM = 80.0  #: along every axis; on less, SPM completes with useless maps

# Limits beyond which the maps are refused: the affine is impossible, or the maps do not follow the image.
DETERMINANT_LIMITS = (0.5, 2.2)  # template volume / head volume
STRETCH_LIMIT = 1.6  # largest / smallest of the three scalings
#: Real heads 0.85 to 0.9; axes mislabelled by 90 degrees 0.04 to 0.41; a brain stretched by half 0.64.
LEAST_EXPLAINED = 0.65
LEAST_COVERAGE = 0.6  # part of the template's brain inside the field of view

# Limits beyond which the maps get a remark.
USUAL_DETERMINANT = (0.75, 1.6)
USUAL_ROTATION_DEG = 65.0
USUAL_STRETCH = 1.35
USUAL_EXPLAINED = 0.75
USUAL_COVERAGE = 0.9


@dataclass(frozen=True)
class SpmFigures:
    """Measures of plausibility after a run.

    Attributes
    ----------
    determinant
        Of the affine from image to template: template volume / head volume.
    rotation_deg
        Angle of the rotation in that affine (its orthogonal polar factor).
    stretch
        Largest / smallest scaling of that affine.
    gm_ml, wm_ml, csf_ml
        Tissue volumes, in ml.
    explained
        Share of the variance of bias-corrected intensity in the brain that the three tissues explain. It is
        low for maps that are little more than the priors. Volumes do not show these.
    coverage
        Part of the template's brain that is inside the image.
    """

    determinant: float
    rotation_deg: float
    stretch: float
    gm_ml: float
    wm_ml: float
    csf_ml: float
    explained: float
    coverage: float

    @property
    def brain_ml(self) -> float:
        """GM + WM + CSF, in ml."""
        return self.gm_ml + self.wm_ml + self.csf_ml

    def describe(self) -> str:
        """Return all figures in one line."""
        return (
            f"det(affine) {self.determinant:.2f}, rotation {self.rotation_deg:.0f} deg, "
            f"stretch {self.stretch:.2f}, "
            f"GM {self.gm_ml:.0f}, WM {self.wm_ml:.0f}, CSF {self.csf_ml:.0f} ml, "
            f"explained variance {self.explained:.2f}, coverage {self.coverage:.2f}"
        )


def check_spm_input(path: str | os.PathLike) -> nib.Nifti1Image:
    """Open an image and check that SPM can segment it.

    Raises
    ------
    InputError
        `iqtflow.image.validate.check_scan` refuses it (4-D, a single slice, zeros, a constant, NaN, a damaged
        file, neither sform nor qform), or the field of view is less than 80 mm along an axis.
    """
    image = check_scan(path)
    extent_mm = voxel_sizes(image.affine) * image.shape[:3]
    if extent_mm.min() < MIN_EXTENT_MM:
        raise InputError(
            path,
            found=f"a field of view of {' x '.join(f'{mm:.0f}' for mm in extent_mm)} mm",
            expected=f"at least {MIN_EXTENT_MM:.0f} mm along every axis for SPM",
            next_step="Use a whole-brain image, or --segmentation ants.",
        )
    return image


def least_extent_mm(path: str | os.PathLike) -> float | None:
    """Return the smallest extent (mm) of an image from its header; None if that cannot be read."""
    try:
        image = peek_nifti(path)
        return float(np.min(voxel_sizes(image.affine) * image.shape[:3]))
    except InputError:
        return None


def find_unstripped_sibling(path: str | os.PathLike) -> Path | None:
    """Find the whole-head image beside a skull-stripped one, by names of the Human Connectome Project.

    ``T1w_acpc_dc_restore_brain.nii.gz`` -> ``T1w_acpc_dc_restore.nii.gz``, if that exists. SPM needs the
    skull: without it, CSF agrees with a Dice of only .85.
    """
    path = Path(path)
    for extension in (".nii.gz", ".nii"):
        if path.name.endswith(f"_restore_brain{extension}"):
            sibling = path.with_name(path.name.replace(f"_restore_brain{extension}", f"_restore{extension}"))
            return sibling if sibling.exists() else None
    return None


def measure(
    seg8: str | os.PathLike,
    image: nib.Nifti1Image,
    maps: Sequence[np.ndarray],
    bias_corrected: np.ndarray,
    tpm: str | os.PathLike | None,
) -> SpmFigures:
    """Compute measures of plausibility from the maps and the affine in SPM's ``_seg8.mat``.

    Parameters
    ----------
    seg8
        SPM's parameters of this image.
    image
        The image that was segmented, shape (w, h, D).
    maps : three ndarray, shape (w, h, D)
        Probabilities of GM, WM, CSF (c1, c2, c3).
    bias_corrected : ndarray, shape (w, h, D)
        The image without its bias field.
    tpm
        The priors; if None, a box of 140 x 170 x 120 mm replaces the template's brain.
    """
    # Where the image is zero SPM has no data, and its maps are the priors.
    present = image.get_fdata(dtype=np.float32) != 0
    maps = [np.where(present, tissue, 0) for tissue in maps]
    affine = np.asarray(loadmat(seg8, variable_names=["Affine"])["Affine"], dtype=float)
    linear = affine[:3, :3]
    left, scalings, right = np.linalg.svd(linear)
    rotation = left @ right
    cosine = (np.trace(rotation) * np.sign(np.linalg.det(rotation)) - 1) / 2
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    volumes_ml = [float(tissue.sum(dtype=np.float64) * voxel_ml) for tissue in maps]
    return SpmFigures(
        determinant=float(np.linalg.det(linear)),
        rotation_deg=float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        stretch=float(scalings[0] / scalings[-1]),
        gm_ml=volumes_ml[0],
        wm_ml=volumes_ml[1],
        csf_ml=volumes_ml[2],
        explained=explained_variance(maps, bias_corrected),
        coverage=_coverage(affine, image, tpm),
    )


def explained_variance(maps: Sequence[np.ndarray], intensity: np.ndarray) -> float:
    """Return the share of intensity variance in the brain that the tissues explain (R squared).

    Parameters
    ----------
    maps : ndarrays, each of shape (w, h, D)
        Tissue probabilities. The brain is where their sum is above one half.
    intensity : ndarray, shape (w, h, D)
        The image, on the same grid.

    Returns
    -------
    float
        At most 1; 0 if the brain has fewer than 100 voxels.
    """
    brain = sum(maps) > 0.5
    if np.count_nonzero(brain) < 100:
        return 0.0
    # Vessels and dura are few, and much brighter than any tissue.
    values = intensity[brain].astype(np.float64)
    values = np.clip(values, *np.percentile(values, (0.5, 99.5)))
    weights = np.stack([tissue[brain] for tissue in maps]).astype(np.float64)
    means = weights @ values / np.maximum(weights.sum(axis=1), 1e-9)
    predicted = means @ (weights / weights.sum(axis=0))
    return float(1 - np.var(values - predicted) / max(np.var(values), 1e-12))


def judge(figures: SpmFigures, path: str | os.PathLike) -> list[str]:
    """Refuse implausible maps, which would train a model on wrong tissue; return remarks on unusual ones.

    Raises
    ------
    InputError
        The maps are implausible. The message has all measures.
    """
    refused = [
        (_outside(figures.determinant, DETERMINANT_LIMITS), f"a determinant in {_span(DETERMINANT_LIMITS)}"),
        (figures.stretch > STRETCH_LIMIT, f"a stretch below {STRETCH_LIMIT:g}"),
        (_outside(figures.brain_ml, BRAIN_ML), f"GM + WM + CSF of {_span(BRAIN_ML)} ml"),
        (figures.explained < LEAST_EXPLAINED, f"an explained variance of at least {LEAST_EXPLAINED:g}"),
        (figures.coverage < LEAST_COVERAGE, f"a coverage of at least {LEAST_COVERAGE:g}"),
    ]
    faults = [expected for wrong, expected in refused if wrong]
    if faults:
        raise InputError(
            path,
            found=f"an implausible segmentation ({figures.describe()})",
            expected="; ".join(faults),
            next_step="Look at the image: is it a whole T1-weighted brain, with correctly labelled axes?",
        )
    unusual = [
        (_outside(figures.determinant, USUAL_DETERMINANT), "unusual size of the head"),
        (figures.rotation_deg > USUAL_ROTATION_DEG, "strongly rotated head, or mislabelled axes"),
        (figures.stretch > USUAL_STRETCH, "unusual shape of the head, or mislabelled axes"),
        (
            figures.explained < USUAL_EXPLAINED,
            "the maps follow the image only loosely (noise, or mislabelled axes)",
        ),
        (figures.coverage < USUAL_COVERAGE, "part of the brain is outside the image"),
    ]
    return [f"{what}: {figures.describe()}" for strange, what in unusual if strange]


def _coverage(affine: np.ndarray, image: nib.Nifti1Image, tpm: str | os.PathLike | None) -> float:
    """Return the part of the template's brain inside the image; `affine` maps image mm to template mm."""
    if tpm is None:
        grid = np.stack(
            np.meshgrid(np.arange(-70, 71, 10), np.arange(-100, 71, 10), np.arange(-50, 76, 10)), -1
        )
        points = grid.reshape(-1, 3).astype(float)
    else:
        priors = open_nifti(tpm, kind="priors")
        brain = np.asarray(priors.dataobj[::2, ::2, ::2, :3], dtype=np.float64).sum(axis=-1) > 0.5
        points = nib.affines.apply_affine(priors.affine, 2.0 * np.argwhere(brain))
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine) @ np.linalg.inv(affine), points)
    inside = np.all((voxels > -0.5) & (voxels < np.array(image.shape[:3]) - 0.5), axis=1)
    return float(inside.mean())


def _outside(value: float, limits: tuple[float, float]) -> bool:
    return not limits[0] <= value <= limits[1]


def _span(limits: tuple[float, float]) -> str:
    return f"{limits[0]:g} to {limits[1]:g}"
