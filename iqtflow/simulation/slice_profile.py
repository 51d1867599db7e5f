"""The slice profile: the weights of thin slices in a thick one (Algorithm 1 of Lin et al., MLMI 2019, steps 1
and 2).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from iqtflow.utils.errors import InputError

FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))

#: The Gaussian is cut at this many standard deviations (rounded to whole voxels), as in SciPy and nibabel;
#: the rest is less than 1e-4 of it.
REACH_SIGMAS = 4.0
#: Thick slices that are computed together: enough to use the processor well, few enough to skip zero weights.
BLOCK = 16


@lru_cache(maxsize=256)
def decimation_matrix(n_thin: int, k: int, thickness_voxels: float, offset_voxels: float = 0.0) -> np.ndarray:
    """Slice profile and down-sampling along the slice axis, as a matrix (Algorithm 1, steps 1 and 2).

    Thick slice ``i`` is a Gaussian-weighted mean of thin slices about the slab's centre ``k i + (k - 1) /
    2``, FWHM = slice thickness. Weights outside the field of view are left out, and the others scaled up so
    that each row sums to 1. Tissue probabilities therefore sum to 1 at the borders, too.

    Parameters
    ----------
    n_thin
        Number of thin slices. They give ``n_thin // k`` thick ones; the remainder at the end is not used.
    k
        Slice spacing in thin voxels.
    thickness_voxels
        Slice thickness in thin voxels (FWHM of the profile).
    offset_voxels
        Shift of all slice centres, in thin voxels; 0 is slab-centred.

    Returns
    -------
    ndarray, shape (n_thin // k, n_thin), float32
        Read-only, since it is shared.

    Raises
    ------
    InputError
        The volume is thinner than one slice, or the thickness is not within (0, k].

    Examples
    --------
    Slices of 3 voxels with gaps of 1, the paper's k = 4. Each is centred on its slab, between the two middle
    voxels.

    >>> matrix = decimation_matrix(16, 4, 3.0)
    >>> matrix.shape
    (4, 16)
    >>> float(matrix[1] @ np.arange(16)).__round__(4)
    5.5
    >>> np.allclose(matrix.sum(axis=1), 1)
    True
    """
    if not 0 < thickness_voxels <= k * (1 + 1e-6):
        raise InputError(
            "slice thickness",
            found=f"{thickness_voxels:g} thin voxels",
            expected=f"more than 0 and at most the spacing ({k})",
            next_step="Make thickness + gap equal to the slice spacing.",
        )
    return profile_matrix(n_thin, k, thickness_voxels, offset_voxels)


@lru_cache(maxsize=256)
def profile_matrix(n_thin: int, ratio: float, fwhm_voxels: float, offset_voxels: float = 0.0) -> np.ndarray:
    """The matrix of `decimation_matrix` for any real ratio of slice spacing to thin voxel edge.

    The profile may be wider than the spacing, since radio-frequency pulses also excite the neighbourhood of a
    slice. It is sampled at the thin slices. From a width of about two of them on, centre and width are exact
    to a hundredth of a slice; a narrower profile may be shifted by a few hundredths.

    Parameters
    ----------
    n_thin
        Number of thin slices. They give as many whole thick ones as fit.
    ratio
        Slice spacing in thin voxels, at least 1.
    fwhm_voxels
        Full width of the profile at half maximum, in thin voxels.
    offset_voxels
        Shift of all slice centres, in thin voxels; at most half a spacing.

    Returns
    -------
    ndarray, shape (floor(n_thin / ratio), n_thin), float32
        Read-only, since it is shared.

    Raises
    ------
    InputError
        The volume is thinner than one slice, the spacing is smaller than a thin voxel, the profile is too
        narrow to reach a voxel, or the offset is larger than half a spacing.
    """
    if not 1 <= ratio < np.inf:
        raise InputError(
            "slice spacing",
            found=f"{ratio:g} thin voxels",
            expected="at least 1",
            next_step="Choose thicker slices, or an image with smaller voxels.",
        )
    n_thick = count_slices(n_thin, ratio)
    if n_thick < 1:
        raise InputError(
            "volume",
            found=f"{n_thin} thin slices",
            expected=f"at least k = {ratio:g}",
            next_step="Use a smaller factor or a larger volume.",
        )
    if not abs(offset_voxels) <= ratio / 2:
        raise InputError(
            "slice offset",
            found=f"{offset_voxels:g} thin voxels",
            expected=f"at most half the spacing ({ratio / 2:g})",
            next_step="Choose a smaller offset: a larger one is another slice.",
        )
    centres = ratio * np.arange(n_thick) + (ratio - 1) / 2 + offset_voxels
    distance = np.arange(n_thin) - centres[:, None]
    sigma = fwhm_voxels * FWHM_TO_SIGMA
    weights = np.exp(-0.5 * (distance / sigma) ** 2) * (np.abs(distance) <= REACH_SIGMAS * sigma + 0.5)
    total = weights.sum(axis=1, keepdims=True)
    if not total.min() > 0:
        raise InputError(
            "slice thickness",
            found=f"{fwhm_voxels:g} thin voxels",
            expected="a profile that reaches the voxels beside it",
            next_step="Choose thicker slices.",
        )
    weights = (weights / total).astype(np.float32)
    weights.setflags(write=False)
    return weights


def count_slices(n_thin: int, ratio: float) -> int:
    """Return the number of whole thick slices that fit; 7.2 mm / 0.9 mm is 8, despite rounding errors.

    Examples
    --------
    >>> count_slices(160, 7.2 / 0.9)
    20
    """
    return int(np.floor(n_thin / ratio + 1e-6))


def apply_profile(
    volume: np.ndarray, axis: int, matrix: np.ndarray, *, out: np.ndarray | None = None
) -> np.ndarray:
    """Blur and down-sample a whole volume along one axis, in its order in memory.

    Only the slices that are kept are computed, each from the thin slices with a weight, plane by plane, which
    suits the processor's cache. The volume is not copied: a volume from NIfTI is in Fortran order, and a copy
    would take longer than the product.

    Parameters
    ----------
    volume : ndarray, shape (w, h, D), float32
        Intensities or tissue probabilities.
    axis
        Slice axis.
    matrix : ndarray, shape (d, n)
        From `decimation_matrix` or `profile_matrix`; n is the volume's size along `axis`.
    out : ndarray, float32
        Array for the result, or any view of one.

    Returns
    -------
    ndarray, float32
        The volume's shape with d instead of n along `axis`.
    """
    if volume.flags.f_contiguous and not volume.flags.c_contiguous:
        return apply_profile(volume.T, 2 - axis, matrix, out=None if out is None else out.T).T
    volume = np.ascontiguousarray(volume, dtype=np.float32)
    if out is None:
        out = np.empty([len(matrix) if a == axis else n for a, n in enumerate(volume.shape)], np.float32)
    blocks = _blocks(matrix)
    across = 1 if axis == 0 else 0
    planes = np.moveaxis(volume, across, 0)
    shape = [len(matrix) if a == axis else n for a, n in enumerate(volume.shape) if a != across]
    thick = np.empty(shape, np.float32)
    for plane, target in zip(planes, np.moveaxis(out, across, 0), strict=True):
        for rows, columns in blocks:
            weights = matrix[rows, columns]
            if axis == 2:
                np.matmul(plane[:, columns], weights.T, out=thick[:, rows])
            else:
                np.matmul(weights, plane[columns], out=thick[rows])
        target[...] = thick
    return out


def _blocks(matrix: np.ndarray) -> list[tuple[slice, slice]]:
    """Cut a profile matrix into groups of thick slices, each with its thin slices of non-zero weight."""
    blocks = []
    for first in range(0, len(matrix), BLOCK):
        rows = slice(first, first + BLOCK)
        reach = np.flatnonzero(matrix[rows].any(axis=0))
        blocks.append((rows, slice(int(reach[0]), int(reach[-1]) + 1)))
    return blocks
