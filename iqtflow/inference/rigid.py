"""Rigid registration of two scans of one head, and how well it went."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from iqtflow.segmentation.atlas import LPS, itk_image

#: Edge (mm) of the voxels on which two brains are compared.
COMPARED_MM = 2.0
#: Mutual information of fewer voxels is noisy: small brains are sampled more densely.
LEAST_SAMPLES = 100_000


@dataclass(frozen=True)
class Brain:
    """A brain to register.

    Attributes
    ----------
    volume : ndarray, shape (w, h, d), float32
        Intensities on a grid of thin slices.
    mask : ndarray of bool, shape (w, h, d)
        The brain.
    affine : ndarray, shape (4, 4)
        Voxels to world mm.
    """

    volume: np.ndarray
    mask: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Alignment:
    """Where a head is in one scan, seen from another scan.

    Attributes
    ----------
    matrix : ndarray, shape (4, 4)
        World mm of the first scan to world mm of the other one.
    translation_mm
        Distance by which the centre of the brain moved.
    rotation_degrees
        Angle by which the head turned.
    coverage
        Share of the first scan's brain that lies within the volume of the other scan.
    overlap
        Dice overlap of the two brain masks, where both scans show something.
    correlation
        Of the two volumes in the brain, where both show something.
    gain
        Factor that brings the other scan to the intensities of the first: median ratio in bright tissue.
    """

    matrix: np.ndarray
    translation_mm: float
    rotation_degrees: float
    coverage: float
    overlap: float
    correlation: float
    gain: float


def register(fixed: Brain, moving: Brain) -> Alignment:
    """Find the rigid motion from one scan to another of the same head.

    Mattes mutual information, optimised by ANTs [1]_ from coarse to fine (voxels of 6, 4 and 2 mm); the
    start is the place that the scanner states.

    Parameters
    ----------
    fixed, moving
        Two brains of one contrast.

    Returns
    -------
    Alignment
        Same input, same bits: samples are drawn with a constant seed, and one thread computes.

    References
    ----------
    .. [1] B. B. Avants et al., "A reproducible evaluation of ANTs similarity metric performance in brain
       image registration", NeuroImage 54(3):2033-2044, 2011, doi:10.1016/j.neuroimage.2010.09.025
    """
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
    import ants

    target, source = (_itk(ants, brain) for brain in (fixed, moving))
    edge = float(voxel_sizes(fixed.affine).mean())
    shrink = tuple(max(round(mm / edge), 1) for mm in (6, 4, 2))
    rate = float(np.clip(LEAST_SAMPLES * shrink[-1] ** 3 / fixed.volume.size, 0.3, 1))
    ants.config.set_ants_deterministic(on=True, seed_value=1)
    with tempfile.TemporaryDirectory(prefix="iqtflow-") as folder:
        try:
            found = ants.registration(
                target,
                source,
                type_of_transform="Rigid",
                initial_transform="Identity",
                outprefix=os.path.join(folder, "found"),
                aff_random_sampling_rate=rate,
                aff_iterations=(1000, 500, 200),
                aff_shrink_factors=shrink,
                aff_smoothing_sigmas=tuple(mm / edge for mm in (3, 2, 1)),
            )
        finally:
            ants.config.set_ants_deterministic(on=False, seed_value=None)
        matrix = _world_matrix(ants, found["fwdtransforms"])
    return compare(fixed, moving, matrix)


def compare(fixed: Brain, moving: Brain, matrix: np.ndarray) -> Alignment:
    """Describe how two brains fit after a motion, on voxels of `COMPARED_MM`.

    Parameters
    ----------
    fixed, moving
        The two brains.
    matrix : ndarray, shape (4, 4)
        World mm of `fixed` to world mm of `moving`.
    """
    step = COMPARED_MM / voxel_sizes(fixed.affine)
    shape = tuple(int(n) for n in np.maximum(np.array(fixed.mask.shape) // step, 1))
    grid = fixed.affine @ np.diag([*step, 1.0])

    def sampled(brain: Brain, volume: np.ndarray, motion: np.ndarray) -> np.ndarray:
        sigmas = COMPARED_MM / voxel_sizes(brain.affine) / 2.355
        smooth = ndimage.gaussian_filter(np.asarray(volume, np.float32), sigmas, mode="nearest")
        return resample(smooth, np.linalg.inv(brain.affine) @ motion @ grid, shape, order=1)

    here = np.eye(4)
    inside = sampled(fixed, fixed.mask, here) > 0.5
    shown = sampled(moving, np.ones(moving.mask.shape), matrix) > 0.5
    other = sampled(moving, moving.mask, matrix) > 0.5
    seen = sampled(fixed, np.ones(fixed.mask.shape), here) > 0.5
    both = inside & other
    n_both, n_inside, n_shown, n_other = (
        int(np.count_nonzero(region)) for region in (both, inside, inside & shown, other & seen)
    )
    dice = 2 * n_both / max(n_shown + n_other, 1)
    coverage = n_shown / max(n_inside, 1)
    one, two = (sampled(b, b.volume, m)[both] for b, m in ((fixed, here), (moving, matrix)))
    correlation, gain = 0.0, 1.0
    if one.size > 1 and one.std() > 0 and two.std() > 0:
        correlation = float(np.corrcoef(one, two)[0, 1])
        bright = two > np.median(two)
        gain = float(np.median(one[bright]) / np.median(two[bright]))
    centre = apply_affine(
        fixed.affine, np.argwhere(fixed.mask).mean(axis=0) if fixed.mask.any() else np.zeros(3)
    )
    angle = np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))
    moved = float(np.linalg.norm(apply_affine(matrix, centre) - centre))
    return Alignment(matrix, moved, float(angle), float(coverage), float(dice), correlation, gain)


def resample(
    volume: np.ndarray, step: np.ndarray, shape: tuple[int, ...], *, order: int = 3, outside: float = 0.0
) -> np.ndarray:
    """Sample a volume once on another grid, by B-splines.

    Parameters
    ----------
    volume : ndarray, shape (w, h, d)
        To sample.
    step : ndarray, shape (4, 4)
        Voxels of the new grid to voxels of the volume.
    shape
        Of the new grid.
    order
        Of the splines.
    outside
        Value beyond the volume.

    Returns
    -------
    ndarray of `shape`, float32
    """
    return ndimage.affine_transform(
        np.asarray(volume, np.float32),
        step[:3, :3],
        step[:3, 3],
        output_shape=shape,
        order=order,
        output=np.float32,
        mode="constant",
        cval=outside,
    )


def _itk(ants: Any, brain: Brain) -> Any:
    """Make an ITK image of the brain; what is outside of it is 0."""
    near = ndimage.binary_dilation(brain.mask, iterations=1)
    return itk_image(ants, np.where(near, brain.volume, 0), brain.affine)


def _world_matrix(ants: Any, files: list[str]) -> np.ndarray:
    """Return the matrix of a linear ITK transform in the world of NIfTI."""
    matrix = np.eye(4)
    for file in files:
        transform = ants.read_transform(file)
        values, centre = np.array(transform.parameters), np.array(transform.fixed_parameters)
        one = np.eye(4)
        one[:3, :3] = values[:9].reshape(3, 3)
        one[:3, 3] = values[9:] + centre - one[:3, :3] @ centre
        matrix = matrix @ one
    return LPS @ matrix @ LPS
