"""Tissue segmentation with an atlas: prior probabilities of each tissue, registered to one scan.

In thick slices, intensities alone do not identify grey matter: most of its voxels are mixed with white matter
or fluid, and a mixture of Gaussians takes mixed voxels for a separate tissue. Prior probabilities of each
place help, as in SPM's unified segmentation [1]_. They are the maps of the ICBM 152 template [2]_, which are
part of nilearn.

References
----------
.. [1] J. Ashburner, K. J. Friston, "Unified segmentation", NeuroImage 26:839-851, 2005,
   doi:10.1016/j.neuroimage.2005.02.018
.. [2] V. S. Fonov et al., "Unbiased average age-appropriate atlases for pediatric studies", NeuroImage
   54(1):313-327, 2011, doi:10.1016/j.neuroimage.2010.07.033
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from iqtflow.image.geometry import slice_axis

ATLAS = "ICBM 152 (nilearn)"
#: From the world of NIfTI to that of ITK, where left and posterior are positive.
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Voxel edge of the atlas. In thicker slices several samples are averaged.
ATLAS_MM = 2
#: Below this overlap with the brain (Dice), the registration of the template has failed.
LEAST_OVERLAP = 0.8
#: Smallest prior. The atlas is of healthy adults, and an affine registration is not exact.
LEAST_PRIOR = 1e-3
N_ITERATIONS = 60


@dataclass(frozen=True)
class AtlasPriors:
    """Prior probabilities on the grid of a scan.

    Attributes
    ----------
    maps : ndarray, shape (3, w, h, d), float32
        CSF, GM, WM; they sum to 1.
    overlap
        Dice of the brains of atlas and scan.
    """

    maps: np.ndarray
    overlap: float


def register_atlas(ants: Any, brain: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> AtlasPriors:
    """Register the atlas to a brain by an affine transform and sample its tissues there.

    Parameters
    ----------
    ants
        The module ``ants``, imported with its number of threads set.
    brain : ndarray, shape (w, h, d)
        Bias-corrected intensities.
    mask : ndarray of bool, shape (w, h, d)
        The brain.
    affine : ndarray, shape (4, 4)
        Voxel indices to world mm, any orientation.
    """
    fixed = itk_image(ants, np.where(mask, brain, 0), affine)
    template, *maps = (itk_image(ants, *volume) for volume in _load())
    # Without this ANTs samples other voxels each time, and GM differs by up to 4 %.
    ants.config.set_ants_deterministic(on=True, seed_value=1)
    try:
        found = ants.registration(fixed, template, type_of_transform="Affine")
    finally:
        ants.config.set_ants_deterministic(on=False, seed_value=None)
    # Thick slices are averages over their thickness, so the priors are averaged, too.
    axis = slice_axis(affine)
    n = max(1, round(float(voxel_sizes(affine)[axis]) / ATLAS_MM))
    fine = itk_image(ants, *_subdivided(mask.shape, affine, axis, n))
    moved = (ants.apply_transforms(fine, m, found["fwdtransforms"], interpolator="linear") for m in maps)
    wm, gm, inside = (_averaged(one.numpy(), axis, n) for one in moved)
    total = np.maximum(wm + gm, 1)
    wm, gm = wm / total, gm / total
    priors = np.stack([1 - wm - gm, gm, wm]) * (1 - 3 * LEAST_PRIOR) + LEAST_PRIOR
    covered = inside > 0.5
    n_both = int(np.count_nonzero(covered & mask))
    n_sum = int(np.count_nonzero(covered) + np.count_nonzero(mask))
    return AtlasPriors(priors.astype(np.float32), 2 * n_both / max(n_sum, 1))


def classify_with_priors(values: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Return tissue probabilities of voxels from three Gaussians and prior probabilities.

    Expectation maximisation of the mixture of unified segmentation (Ashburner and Friston 2005), without its
    deformation. The prior of tissue j in a voxel is ``g_j b_j / sum_l g_l b_l``, with the atlas's
    probability b and a weight g of each tissue.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Bias-corrected intensities.
    priors : ndarray, shape (3, n)
        CSF, GM, WM; columns sum to 1.

    Returns
    -------
    ndarray, shape (3, n), float32
        Columns sum to 1.
    """
    values, priors = np.asarray(values, np.float64), np.asarray(priors, np.float64)
    # Regression on calibrated probabilities gives the means of pure tissues. Weighted means would not.
    mean = np.linalg.lstsq(priors.T, values, rcond=None)[0]
    spread = np.full(3, values.std() / 2)
    least = 1e-3 * float(np.ptp(values))
    weight = np.ones(3)
    for _ in range(N_ITERATIONS):
        place = weight[:, None] * priors
        place /= place.sum(axis=0)
        score = -0.5 * ((values - mean[:, None]) / spread[:, None]) ** 2
        density = place * np.exp(score - score.max(axis=0)) / spread[:, None]
        posterior = density / density.sum(axis=0)
        share = posterior.sum(axis=1) + 1e-9
        mean = posterior @ values / share
        spread = np.sqrt((posterior * (values - mean[:, None]) ** 2).sum(axis=1) / share)
        spread = np.maximum(spread, least)
        weight = share / (priors / (weight @ priors)).sum(axis=1)
    return posterior.astype(np.float32)


def _load() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return template, WM, GM and brain mask with their affines."""
    from nilearn import datasets

    names = ("template", "wm_template", "gm_template", "brain_mask")
    images = [getattr(datasets, f"load_mni152_{name}")(resolution=ATLAS_MM) for name in names]
    return [(image.get_fdata(dtype=np.float32), image.affine) for image in images]


def itk_image(ants: Any, data: np.ndarray, affine: np.ndarray) -> Any:
    """Return an ITK image of a volume; `affine` is to the world of NIfTI."""
    lps = LPS @ affine
    spacing = voxel_sizes(lps)
    return ants.from_numpy(
        np.ascontiguousarray(data, np.float32),
        origin=tuple(lps[:3, 3].tolist()),
        spacing=tuple(spacing.tolist()),
        direction=lps[:3, :3] / spacing,
    )


def _subdivided(
    shape: tuple[int, ...], affine: np.ndarray, axis: int, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return an empty grid with n slices instead of each slice, and its affine."""
    fine = affine.copy()
    fine[:3, 3] -= affine[:3, axis] * (n - 1) / (2 * n)
    fine[:3, axis] /= n
    return np.zeros([m * n if a == axis else m for a, m in enumerate(shape)], np.float32), fine


def _averaged(volume: np.ndarray, axis: int, n: int) -> np.ndarray:
    shape = list(volume.shape)
    shape[axis : axis + 1] = [shape[axis] // n, n]
    return volume.reshape(shape).mean(axis=axis + 1)
