"""Noise of a scan, estimated from the air around the head, or from tissue where there is no usable air."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from iqtflow.utils.errors import InputError

#: Distance from the head from which voxels count as air; closer are ghosts, wrapped fat and blurred edges.
AIR_DISTANCE_MM = 8.0
#: Smallest number of voxels for a noise level with an error of a few per cent.
LEAST_VOXELS = 400
#: Quartiles over the median of a Rayleigh distribution, and largest difference of a scan's from them.
RAYLEIGH_QUARTILES = (np.sqrt(np.log(4 / 3) / np.log(2)), np.sqrt(2.0))
QUARTILE_TOLERANCE = (0.08, 0.12)
#: Median of a Rayleigh distribution over its sigma.
RAYLEIGH_MEDIAN = np.sqrt(2 * np.log(2))
#: A scan with a larger share of negative air voxels is real-valued, not a magnitude image.
NEGATIVE_SHARE = 0.2
#: Median of the absolute value of a normal variable over its sigma.
NORMAL_MAD = 0.6744897501960817
#: Voxels were interpolated if differences over two voxels are larger by this factor than over one.
INTERPOLATED = 1.3
#: Methods of a `NoiseEstimate` in words.
METHOD_WORDS = {"air-rayleigh": "in air", "air-gaussian": "in air, real-valued", "tissue-mad": "in tissue"}
CORE = 0.9  #: probability from which a voxel counts as one tissue


@dataclass(frozen=True)
class NoiseEstimate:
    """Standard deviation of the noise in each channel, in the scan's units, and how it was estimated.

    Attributes
    ----------
    sigma
        Standard deviation.
    method
        "air-rayleigh" (magnitude, from air), "air-gaussian" (real-valued, from air), "tissue-mad" (from the
        diagonal wavelet coefficients inside tissue).
    n_voxels
        Number of voxels (or coefficients) that were used.
    note
        Reason for the method, for the user.
    region
        Where it was estimated: "air", "white matter" or "brain".
    correlated
        Whether the noise is correlated between neighbours: the voxels were interpolated. Not known in air.
    """

    sigma: float
    method: str
    n_voxels: int
    note: str
    region: str = "air"
    correlated: bool = False


def estimate_noise(
    data: np.ndarray,
    mask: np.ndarray,
    wm: np.ndarray,
    *,
    axis: int,
    voxel_mm: tuple[float, float, float],
) -> NoiseEstimate:
    """Estimate the noise of a scan.

    Magnitude noise in air has a Rayleigh distribution, so that its median is ``sigma sqrt(2 ln 2)`` [1]_. The
    median is robust against a few ghosts. Air has another distribution if a scanner or a defacing tool erased
    it, coils were combined, or a filter smoothed it. Then the median absolute diagonal Haar coefficient in
    the plane of the slices is used, inside white matter [2]_, which has the least anatomy.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Scan without correction of the bias field.
    mask : ndarray of bool, shape (w, h, d)
        Brain mask.
    wm : ndarray, shape (w, h, d)
        White-matter probability.
    axis
        Slice axis.
    voxel_mm
        Voxel size.

    Returns
    -------
    NoiseEstimate

    Raises
    ------
    InputError
        Neither air nor tissue gives a noise level above 0.

    References
    ----------
    .. [1] H. Gudbjartsson, S. Patz, "The Rician distribution of noisy MRI data", MRM 34(6):910-914, 1995,
       doi:10.1002/mrm.1910340618
    .. [2] D. L. Donoho, I. M. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika
       81(3):425-455, 1994, doi:10.1093/biomet/81.3.425
    """
    data = np.asarray(data, dtype=np.float32)
    air = data[find_air(data, mask, axis=axis, voxel_mm=voxel_mm)]
    if air.size < LEAST_VOXELS:
        why = f"no air with noise in it ({air.size} voxels): erased, or outside the field of view"
    elif np.mean(air < 0) > NEGATIVE_SHARE:
        sigma = float(np.median(np.abs(air - np.median(air)))) / NORMAL_MAD
        return NoiseEstimate(sigma, "air-gaussian", air.size, "air with values of both signs: real-valued")
    else:
        low, middle, high = np.percentile(air, (25, 50, 75)).tolist()
        shape = (low / middle, high / middle) if middle > 0 else (0.0, 0.0)
        off = np.abs(np.subtract(shape, RAYLEIGH_QUARTILES))
        if np.all(off <= QUARTILE_TOLERANCE):
            return NoiseEstimate(
                float(middle / RAYLEIGH_MEDIAN), "air-rayleigh", air.size, "air with Rayleigh noise"
            )
        why = (
            f"air is not Rayleigh-distributed (quartiles over median {shape[0]:.2f} and {shape[1]:.2f}, "
            f"expected {RAYLEIGH_QUARTILES[0]:.2f} and {RAYLEIGH_QUARTILES[1]:.2f}): ghosts, combined coils, "
            "a threshold or a filter"
        )
    return _from_tissue(data, mask, wm, axis, why)


def noise_voxels(
    noise: NoiseEstimate,
    data: np.ndarray,
    mask: np.ndarray,
    wm: np.ndarray,
    *,
    axis: int,
    voxel_mm: tuple[float, float, float],
) -> np.ndarray:
    """Return the voxels from which `estimate_noise` made an estimate, for a picture: bool, shape (w, h, d).

    The other arguments are those of `estimate_noise`.
    """
    if noise.region == "air":
        return find_air(np.asarray(data, dtype=np.float32), mask, axis=axis, voxel_mm=voxel_mm)
    return wm >= CORE if noise.region == "white matter" else np.asarray(mask, bool)


def find_air(
    data: np.ndarray, mask: np.ndarray, *, axis: int, voxel_mm: tuple[float, float, float]
) -> np.ndarray:
    """Return the voxels of air with noise: away from the head, and not erased.

    Returns
    -------
    ndarray of bool
        Without erased voxels (exact zeros) and their neighbours in the plane: voxels that a threshold did not
        erase are no sample of the noise.
    """
    from skimage.filters import threshold_otsu

    in_plane = [0 if a == axis else 1 for a in range(3)]
    smooth = ndimage.gaussian_filter(np.maximum(data, 0), [2.0 * p for p in in_plane])
    # Half of Otsu's threshold, so that dim tissue (CSF, the skull base) belongs to the head.
    head = (smooth > 0.5 * threshold_otsu(smooth.ravel())) | mask
    reach = [
        max(int(np.ceil(AIR_DISTANCE_MM / edge)), 1) * p for edge, p in zip(voxel_mm, in_plane, strict=True)
    ]
    head = ndimage.maximum_filter(head, size=[2 * r + 1 for r in reach])
    window = [3 if p else 1 for p in in_plane]
    # Without the outermost voxels: scanners and interpolation change borders.
    noisy = ndimage.minimum_filter((data != 0).astype(np.uint8), size=window, mode="constant") > 0
    return noisy & ~head


def _from_tissue(data: np.ndarray, mask: np.ndarray, wm: np.ndarray, axis: int, why: str) -> NoiseEstimate:
    rows, columns = (a for a in range(3) if a != axis)
    for where, region in (("white matter", wm >= CORE), ("brain", mask)):
        sigma, n, interpolated = _from_differences(data, region, rows, columns)
        if sigma > 0:
            note = (
                f"{why}; noise correlated between neighbours (interpolated voxels)" if interpolated else why
            )
            note = f"{note}; from differences in the {where}"
            return NoiseEstimate(sigma, "tissue-mad", n, note, where, interpolated)
    raise InputError(
        "noise",
        found=f"{why}; and too few or constant voxels of tissue",
        expected=f"at least {LEAST_VOXELS} voxels of air or of white matter with noise in them",
        next_step="Give a scan that was not denoised, in its native voxels.",
    )


def noise_from_differences(data: np.ndarray, region: np.ndarray, *, axis: int) -> float:
    """Estimate the noise from second differences in the plane of the slices (Donoho and Johnstone 1994).

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Scan.
    region : ndarray of bool, shape (w, h, d)
        Where there is little anatomy.
    axis
        Slice axis.

    Returns
    -------
    float
        Standard deviation in the scan's units; 0 if there are too few voxels, or no noise.
    """
    rows, columns = (a for a in range(3) if a != axis)
    return _from_differences(np.asarray(data, dtype=np.float32), region, rows, columns)[0]


def _from_differences(
    data: np.ndarray, region: np.ndarray, rows: int, columns: int
) -> tuple[float, int, bool]:
    """Return sigma (0: not known), the number of differences, and whether voxels were interpolated."""
    near, n = _diagonal_mad(data, region, rows, columns, 1)
    far, n_far = _diagonal_mad(data, region, rows, columns, 2)
    if n < LEAST_VOXELS or not near > 0:
        return 0.0, n, False
    if n_far >= LEAST_VOXELS and far > INTERPOLATED * near:
        return far, n_far, True
    return near, n, False


def _diagonal_mad(
    data: np.ndarray, region: np.ndarray, rows: int, columns: int, step: int
) -> tuple[float, int]:
    """Sigma from second differences along both in-plane axes, over `step` voxels; a ramp has no effect."""

    def diagonal(volume: np.ndarray) -> list[np.ndarray]:
        volume = np.moveaxis(volume, (rows, columns), (0, 1))
        return [volume[:-step, :-step], volume[step:, :-step], volume[:-step, step:], volume[step:, step:]]

    inside = np.logical_and.reduce(diagonal(region))
    a, b, c, d = (corner[inside] for corner in diagonal(data))
    if not a.size:
        return 0.0, 0
    return float(np.median(np.abs(a - b - c + d))) / (2 * NORMAL_MAD), int(a.size)
