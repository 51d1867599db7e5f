"""How close an enhanced volume is to the truth: PSNR, MSSIM, and a test between two methods.

MSSIM has many definitions; on the same images they differ by up to 0.1. Two are here. `mssim` is Wang's, in
three dimensions. `mssim_slicewise` follows the code of the paper's authors. Do not compare one with the
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iqtflow.utils.errors import InputError

WINDOW_IN_SIGMAS = 3.5  #: half width of a Gaussian window: 11 voxels in all for a sigma of 1.5


class SignedRank(NamedTuple):
    """Result of `wilcoxon`: pairs that differ, the smaller sum of ranks, and the exact two-tailed p value."""

    n: int
    statistic: float
    p: float


def psnr(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, ``10 log10(range^2 / MSE)`` over a mask.

    The range is the maximum of the reference in the mask, since MR magnitudes start at 0.

    Parameters
    ----------
    reference, estimate : ndarray, shape (w, h, d)
        Truth and estimate, in the same units.
    mask : ndarray of bool, shape (w, h, d), optional
        Voxels to compare; None: those in which the reference is not 0.

    Returns
    -------
    float
        PSNR in dB; infinity if both are the same.

    Raises
    ------
    InputError
        Shapes differ, the mask is empty, or the reference has no positive value in it.

    Examples
    --------
    Off by a hundredth of the range everywhere is 40 dB:

    >>> truth = np.full((4, 4, 4), 100.0)
    >>> round(psnr(truth, truth + 1), 6)
    40.0
    """
    reference, estimate, mask = _check(reference, estimate, mask)
    peak = float(reference[mask].max())
    if peak <= 0:
        raise InputError(
            "reference",
            found=f"a maximum of {peak:g} in the mask",
            expected="positive intensities",
            next_step="Check that mask and reference belong together.",
        )
    error = float(np.mean((estimate[mask] - reference[mask]) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def mssim(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean structural similarity over a mask, in three dimensions (Wang et al., doi:10.1109/TIP.2003.819861).

    Gaussian window of sigma 1.5 voxels (11 x 11 x 11), K1 = 0.01, K2 = 0.03, population covariances; the
    range is maximum minus minimum of the reference in the mask.

    Parameters
    ----------
    reference, estimate : ndarray, shape (w, h, d)
        Truth and estimate, in the same units.
    mask : ndarray of bool, shape (w, h, d), optional
        Voxels over which the similarity is averaged; windows extend outside of it. None: the voxels in which
        the reference is not 0.

    Returns
    -------
    float
        MSSIM, 1 if both are the same.

    Raises
    ------
    InputError
        Shapes differ, the mask is empty, the reference is constant in it, or the volume is smaller than the
        window.
    """
    reference, estimate, mask = _check(reference, estimate, mask)
    similarity = _similarity(reference, estimate, _range(reference, mask), sigma=1.5, near=mask)
    return float(similarity[mask].mean())


def mssim_slicewise(
    reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray | None = None, *, axis: int = 2
) -> float:
    """Mean structural similarity over a mask, slice by slice with a wide window, as in the authors' code.

    Two-dimensional SSIM of each slice along `axis` with a Gaussian window of sigma 2.5 voxels (19 x 19). Use
    it only to compare with the paper's figures, and `mssim` for everything else.

    Parameters
    ----------
    reference, estimate, mask
        As for `mssim`.
    axis
        Slice axis.

    Returns
    -------
    float
        MSSIM, 1 if both are the same.

    Raises
    ------
    InputError
        As `mssim`.
    """
    reference, estimate, mask = (np.moveaxis(v, axis, 0) for v in _check(reference, estimate, mask))
    span = _range(reference, mask)
    total = 0.0
    for truth, guess, inside in zip(reference, estimate, mask, strict=True):
        if inside.any():
            total += float(_similarity(truth, guess, span, sigma=2.5, near=inside)[inside].sum())
    return total / float(np.count_nonzero(mask))


def wilcoxon(a: Sequence[float], b: Sequence[float]) -> SignedRank:
    """Two-tailed Wilcoxon signed-rank test between paired figures of two methods, exact for any number of
    pairs.

    The null distribution is computed over all assignments of signs to the ranks, also with ties
    (`scipy.stats.wilcoxon` is exact only without ties).

    Parameters
    ----------
    a, b
        One figure for each subject, in the same order.

    Returns
    -------
    SignedRank
        Pairs without a difference are left out (Wilcoxon 1945, doi:10.2307/3001968); ``p`` is 1 if no pair
        differs.

    Raises
    ------
    InputError
        The two have different lengths, or a value is not finite.

    Examples
    --------
    Six subjects with a gain each: the smallest p that is possible with six.

    >>> wilcoxon([31, 30, 32, 29, 33, 34], [24, 25, 24, 23, 24, 24]).p
    0.03125
    """
    from scipy.stats import rankdata

    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    finite = np.isfinite(first).all() and np.isfinite(second).all()
    if first.ndim != 1 or first.shape != second.shape or not finite:
        raise InputError(
            "paired figures",
            found=f"shapes {first.shape} and {second.shape}" + ("" if finite else ", not all finite"),
            expected="two lists of one length, of finite numbers",
            next_step="Give one figure for each subject and method, in the same order.",
        )
    difference = first - second
    difference = difference[difference != 0]
    if len(difference) == 0:
        return SignedRank(0, 0.0, 1.0)
    # Tied ranks are multiples of one half: doubled, they can index an array.
    ranks = np.round(2 * rankdata(np.abs(difference))).astype(int)
    share = np.zeros(ranks.sum() + 1)  # of the assignments of signs, by the sum of the positive ranks
    share[0] = 1.0
    for rank in ranks:
        share[rank:] = (share[rank:] + share[:-rank]) / 2
        share[:rank] /= 2
    smaller = min(int(ranks[difference > 0].sum()), int(ranks[difference < 0].sum()))
    return SignedRank(len(difference), smaller / 2, min(1.0, float(2 * share[: smaller + 1].sum())))


def _check(
    reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    reference, estimate = np.asarray(reference, dtype=np.float64), np.asarray(estimate, dtype=np.float64)
    mask = reference != 0 if mask is None else np.asarray(mask).astype(bool)
    if reference.ndim != 3 or not reference.shape == estimate.shape == mask.shape:
        raise InputError(
            "volumes to compare",
            found=f"shapes {reference.shape}, {estimate.shape} and (mask) {mask.shape}",
            expected="three-dimensional volumes on one grid",
            next_step="Resample them to the reference's grid.",
        )
    if not mask.any():
        raise InputError(
            "mask", found="no voxel", expected="the voxels to compare", next_step="Check the mask."
        )
    return reference, estimate, mask


def _range(reference: np.ndarray, mask: np.ndarray) -> float:
    span = float(np.ptp(reference[mask]))
    if span == 0:
        raise InputError(
            "reference",
            found="one value in the whole mask",
            expected="an image",
            next_step="Check that mask and reference belong together.",
        )
    return span


def _similarity(
    reference: np.ndarray, estimate: np.ndarray, span: float, *, sigma: float, near: np.ndarray
) -> np.ndarray:
    """Map of SSIM in any number of dimensions, computed near the mask `near`, and 0 elsewhere."""
    from skimage.metrics import structural_similarity

    radius = int(WINDOW_IN_SIGMAS * sigma + 0.5)
    if min(reference.shape) < 2 * radius + 1:
        raise InputError(
            "volumes to compare",
            found=f"shape {reference.shape}",
            expected=f"at least {2 * radius + 1} voxels along each axis, the width of the window",
            next_step="Compare larger volumes: structural similarity is not defined on so few slices.",
        )
    box = []
    for axis, n in enumerate(near.shape):
        hit = np.flatnonzero(near.any(axis=tuple(a for a in range(near.ndim) if a != axis)))
        begin = min(max(int(hit[0]) - radius, 0), n - 2 * radius - 1)
        box.append(slice(begin, max(int(hit[-1]) + 1 + radius, begin + 2 * radius + 1)))
    _, similarity = structural_similarity(
        reference[tuple(box)],
        estimate[tuple(box)],
        data_range=span,
        gaussian_weights=True,
        sigma=sigma,
        use_sample_covariance=False,
        full=True,
    )
    out = np.zeros_like(reference)
    out[tuple(box)] = similarity
    return out
