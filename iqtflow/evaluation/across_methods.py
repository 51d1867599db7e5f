"""Figures for comparing methods whose intensities differ: after a fit, relative errors, a challenge's score.

A method that changes the contrast of tissues has a low PSNR, even if it shows the anatomy well. After a
linear fit (gain and offset) or a monotone fit (any rising curve) to the truth, that no longer counts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from iqtflow.evaluation.metrics import mssim, psnr
from iqtflow.utils.errors import InputError

#: What each figure is, as in a data dictionary of BIDS.
FIGURES: dict[str, dict[str, str]] = {
    "psnr_linear": {
        "Description": "PSNR after the linear fit of the estimate to the truth inside the brain",
        "Units": "dB",
    },
    "psnr_monotone": {
        "Description": "PSNR after the best rising curve (isotonic regression) from estimate to truth",
        "Units": "dB",
    },
    "mssim_linear": {"Description": "Mean structural similarity (mssim) after the linear fit"},
    "nmse": {"Description": "Mean squared error inside the brain, over the mean square of the truth there"},
    "mae": {"Description": "Mean absolute error inside the brain, over the maximum of the truth there"},
    "ulf_enc": {
        "Description": "Score of the ULF-EnC challenge 2025: .7 SSIM + .1 PSNR / 32 dB + .1 (1 - MAE) + "
        ".1 (1 - NMSE) inside the brain, as in its final_evaluation_script.py"
    },
}
#: Of the score of ULF-EnC: PSNR that counts as 1 (dB), and what is added to a squared error.
_FULL_PSNR, _LEAST_SQUARE = 32.0, 1e-8


def figures_of(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Compute all `FIGURES` of an estimate.

    Parameters
    ----------
    reference, estimate : ndarray, shape (w, h, d)
        Truth and estimate on one grid.
    mask : ndarray of bool, shape (w, h, d)
        The brain.
    """
    linear = fit_linear(reference, estimate, mask)
    return {
        "psnr_linear": psnr(reference, linear, mask),
        "psnr_monotone": psnr(reference, fit_monotone(reference, estimate, mask), mask),
        "mssim_linear": mssim(reference, linear, mask),
        "nmse": nmse(reference, estimate, mask),
        "mae": mae(reference, estimate, mask),
        "ulf_enc": ulf_enc_score(reference, estimate, mask),
    }


def fit_linear(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return gain times estimate plus offset, with the least squared error inside a mask.

    Parameters
    ----------
    reference, estimate, mask
        As for `figures_of`.

    Returns
    -------
    ndarray, shape (w, h, d), float64
        An estimate that is constant in the mask becomes the mean of the truth.
    """
    x, y = _inside(mask, estimate, reference)
    spread = float(np.var(x))
    gain = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread if spread else 0.0
    return (np.asarray(estimate, dtype=np.float64) - x.mean()) * gain + y.mean()


def fit_monotone(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a rising function of the estimate, with the least squared error inside a mask.

    Parameters
    ----------
    reference, estimate, mask
        As for `figures_of`.

    Returns
    -------
    ndarray, shape (w, h, d), float64
        Voxels outside the mask are 0.
    """
    from sklearn.isotonic import IsotonicRegression

    x, y = _inside(mask, estimate, reference)
    out = np.zeros(reference.shape)
    out[mask] = IsotonicRegression().fit_transform(x, y)
    return out


def nmse(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> float:
    """Mean squared error over the mean square of the truth, both inside a mask.

    Parameters
    ----------
    reference, estimate, mask
        As for `figures_of`.
    """
    x, y = _inside(mask, estimate, reference)
    return float(np.mean((x - y) ** 2) / np.mean(y**2))


def mae(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute error over the maximum of the truth, both inside a mask.

    Parameters
    ----------
    reference, estimate, mask
        As for `figures_of`.
    """
    x, y = _inside(mask, estimate, reference)
    return float(np.mean(np.abs(x - y)) / y.max())


def ulf_enc_score(reference: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> float:
    """Score of the Ultra-Low-Field Image Enhancement Challenge (ULF-EnC, MICCAI 2025).

    Both images are scaled to 0 to 1 by minimum and maximum of the whole volume, and set to 0 outside the
    mask. SSIM has a uniform window of 7 voxels. PSNR is the mean over voxels of their own PSNR. All four are
    means inside the mask; NMSE is at most 1.

    Parameters
    ----------
    reference, estimate, mask
        As for `figures_of`.

    Returns
    -------
    float
        About 0 to 1; a perfect estimate has 1.15, since the PSNR of a voxel without error is 80 dB.

    Raises
    ------
    InputError
        An image is constant, or smaller than the window.

    Notes
    -----
    Source: final_evaluation_script.py of https://github.com/khtohidulislam/ULF-EnC-Challenge (2025-09-08).
    """
    from skimage.metrics import structural_similarity

    if min(reference.shape) < 7 or not (np.ptp(reference) and np.ptp(estimate)):
        raise InputError(
            "volumes to compare",
            found=f"shape {reference.shape}, ranges {np.ptp(reference):g} and {np.ptp(estimate):g}",
            expected="images of 7 voxels or more along each axis",
            next_step="Check that these are the right files.",
        )
    truth, guess = (
        (np.asarray(volume, dtype=np.float64) - volume.min()) / np.ptp(volume) * mask
        for volume in (reference, estimate)
    )
    _, similarity = structural_similarity(guess, truth, data_range=1.0, full=True)
    square = (guess - truth)[mask] ** 2
    own_psnr = float(np.mean(10 * np.log10(1 / (square + _LEAST_SQUARE))))
    relative = min(float(square.mean() / np.mean(truth[mask] ** 2)), 1.0)
    absolute = float(np.mean(np.sqrt(square)))
    ssim = float(similarity[mask].mean())
    return 0.7 * ssim + 0.1 * (own_psnr / _FULL_PSNR + (1 - absolute) + (1 - relative))


def _inside(mask: np.ndarray, *volumes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the voxels of volumes inside a mask, in double precision."""
    return (np.asarray(volume, dtype=np.float64)[mask] for volume in volumes)
