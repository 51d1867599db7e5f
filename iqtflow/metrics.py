"""How close an estimate is to the truth, with the definitions that the figures of Lin et al., MLMI 2019, rest on."""

from __future__ import annotations

import numpy as np

from iqtflow.errors import InputError


def psnr(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal-to-noise ratio inside a mask, ``10 log10(range^2 / MSE)``.

    Parameters
    ----------
    reference, estimate : ndarray, shape (w, h, D)
        Truth and estimate in the same units. The range is the truth's maximum inside the mask.
    mask : ndarray, shape (w, h, D), bool

    Returns
    -------
    float
        In dB; infinite for equal images.

    Raises
    ------
    InputError
        Shapes differ, or the mask is empty.
    """
    _check(reference, estimate, mask)
    truth = np.asarray(reference, np.float64)[mask]
    error = np.mean((truth - np.asarray(estimate, np.float64)[mask]) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(truth.max() ** 2 / error))


def mssim(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> float:
    """Mean structural similarity inside a mask: 3-D Gaussian window, sigma 1.5 voxels (Wang et al. 2004, doi:10.1109/TIP.2003.819861).

    The range is the truth's maximum minus its minimum inside the mask.
    """
    _check(reference, estimate, mask)
    box = _box(mask, margin=8)
    truth, guess, inside = (np.asarray(v)[box] for v in (reference, estimate, mask))
    return float(_similarity(truth.astype(np.float32), guess.astype(np.float32), sigma=1.5, extent=np.ptp(truth[inside]))[inside].mean())


def mssim_slicewise(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> float:
    """Mean structural similarity inside a mask, slice by slice along the last axis with a 2-D Gaussian of sigma 2.5 pixels.

    The window of the authors' later public code; its figures are not comparable with `mssim`.
    """
    _check(reference, estimate, mask)
    extent = np.ptp(np.asarray(reference)[mask])
    total, count = 0.0, 0
    for z in np.flatnonzero(mask.any(axis=(0, 1))):
        inside = mask[:, :, z]
        similarity = _similarity(np.asarray(reference[:, :, z], np.float32), np.asarray(estimate[:, :, z], np.float32), sigma=2.5, extent=extent)
        total, count = total + similarity[inside].sum(dtype=np.float64), count + int(inside.sum())
    return float(total / count)


def wilcoxon(first: np.ndarray, second: np.ndarray) -> tuple[int, float, float]:
    """Two-tailed Wilcoxon signed-rank test of paired values.

    Returns
    -------
    n
        Number of pairs that differ.
    statistic
        The smaller of the two rank sums.
    p
        Exact where there are no ties and at most 50 pairs; 1 when no pair differs.
    """
    from scipy import stats

    difference = np.asarray(first, float) - np.asarray(second, float)
    difference = difference[difference != 0]
    if not len(difference):
        return 0, 0.0, 1.0
    result = stats.wilcoxon(difference, alternative="two-sided")
    return len(difference), float(result.statistic), float(result.pvalue)


def _similarity(truth: np.ndarray, guess: np.ndarray, *, sigma: float, extent: float) -> np.ndarray:
    from skimage.metrics import structural_similarity

    _, similarity = structural_similarity(truth, guess, data_range=float(extent), gaussian_weights=True, sigma=sigma, use_sample_covariance=False, full=True)
    return similarity


def _box(mask: np.ndarray, *, margin: int) -> tuple[slice, ...]:
    """The mask's bounding box and a margin wider than the window: nothing outside changes what is inside."""
    box = []
    for axis, n in enumerate(mask.shape):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(max(hit[0] - margin, 0), min(hit[-1] + 1 + margin, n)))
    return tuple(box)


def _check(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> None:
    if not np.shape(reference) == np.shape(estimate) == np.shape(mask):
        raise InputError("estimate", found=f"shapes {np.shape(reference)}, {np.shape(estimate)}, {np.shape(mask)}", expected="truth, estimate and mask on one grid",
                         next_step="Resample them to one grid.")
    if not np.any(mask):
        raise InputError("mask", found="no voxel inside", expected="a brain", next_step="Check the mask.")
