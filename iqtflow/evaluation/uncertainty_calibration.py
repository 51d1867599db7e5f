"""Does the error grow with the uncertainty map? How far to trust a standard deviation, where the truth is
known.

Voxels are sorted by their standard deviation into bins of equal size; a useful map has a root mean square
error that grows from bin to bin, and a calibrated one has an error as large as the standard deviation says
(the curve: Levi et al. 2022, doi:10.3390/s22155540).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from iqtflow.image.nifti import read_volume
from iqtflow.utils.errors import InputError

N_BINS = 20  #: bins of equal numbers of voxels
UNITS = "% of the truth's maximum inside the brain"  #: of curves that are averaged over people

#: Figures that `summarise_reliability` averages.
FIGURES = ("spearman", "spearman_bins", "error_over_std", "within_1_std", "within_2_std")


class NoVariation(InputError):
    """A standard deviation that is the same everywhere: voxels cannot be sorted by it."""


def reliability(
    truth: np.ndarray, estimate: np.ndarray, std: np.ndarray, mask: np.ndarray, *, n_bins: int = N_BINS
) -> dict[str, Any]:
    """Measure how the error depends on the standard deviation.

    Parameters
    ----------
    truth, estimate, std : ndarray, shape (w, h, d)
        In the same units.
    mask : ndarray of bool, shape (w, h, d)
        Where to look.
    n_bins
        Bins of equal numbers of voxels, by standard deviation.

    Returns
    -------
    dict
        ``spearman``: rank correlation of absolute error and standard deviation over voxels;
        ``bins``: for each bin the root mean squares of standard deviation and of error;
        ``spearman_bins``: rank correlation over the bins, 1 when the error grows from each to the next;
        ``error_over_std``: root mean square error over that of the standard deviation, 1 when calibrated
        (above: overconfident); ``within_1_std``, ``within_2_std``: shares of voxels; ``peak``: the truth's
        maximum in the mask, to which `in_percent` relates the bins.

    Raises
    ------
    NoVariation
        The mask is empty, or the standard deviation is the same everywhere in it.
    """
    error = np.abs(np.asarray(estimate, np.float64)[mask] - np.asarray(truth, np.float64)[mask])
    spread = np.asarray(std, np.float64)[mask]
    if spread.size < n_bins or np.ptp(spread) == 0:
        raise NoVariation(
            "standard deviation",
            found=f"{spread.size} voxels in the mask, all {spread[0] if spread.size else 0:g}",
            expected="a map that varies within the brain",
            next_step="Give the desc-iqtstd map that belongs to the estimate.",
        )
    parts = np.array_split(np.argsort(spread, kind="stable"), n_bins)
    curve = [tuple(float(np.sqrt(np.mean(v[p] ** 2))) for v in (spread, error)) for p in parts]
    return {
        "n_voxels": int(spread.size),
        "peak": float(np.asarray(truth)[mask].max()),
        "spearman": float(stats.spearmanr(error, spread).statistic),
        "spearman_bins": float(stats.spearmanr(*np.transpose(curve)).statistic),
        "error_over_std": float(np.sqrt(np.mean(error**2) / np.mean(spread**2))),
        "within_1_std": float(np.mean(error <= spread)),
        "within_2_std": float(np.mean(error <= 2 * spread)),
        "bins": [{"std": s, "error": e} for s, e in curve],
    }


def reliability_of_files(
    reference: str | os.PathLike,
    mask: str | os.PathLike,
    estimate: str | os.PathLike,
    std: str | os.PathLike,
    *,
    n_bins: int = N_BINS,
) -> dict[str, Any]:
    """Do as `reliability` with files; the truth may go on beyond the estimate (the simulator crops).

    Raises
    ------
    InputError
        The files do not lie on one grid.
    NoVariation
        As `reliability`.
    """
    image, truth = read_volume(reference)
    _, inside = read_volume(mask, like=image)
    estimate_image, values = read_volume(estimate)
    _, spread = read_volume(std, like=estimate_image)
    same_place = np.allclose(estimate_image.affine, image.affine, atol=1e-2)
    if not same_place or any(n > m for n, m in zip(values.shape, truth.shape, strict=True)):
        raise InputError(
            estimate,
            found=f"shape {values.shape}, affine {np.round(estimate_image.affine, 2).tolist()}",
            expected=f"the truth's grid, shape {truth.shape}, affine {np.round(image.affine, 2).tolist()}",
            next_step="Resample the estimate to the truth's grid.",
        )
    part = tuple(slice(0, n) for n in values.shape)
    brain = (inside[part] > 0) & (truth[part] != 0)
    return reliability(truth[part], values, spread, brain, n_bins=n_bins)


def in_percent(found: dict[str, Any]) -> dict[str, Any]:
    """Relate the curve of `reliability` to the truth's maximum inside the brain, the peak of the PSNR.

    Intensities of scans are arbitrary: only then can the curves of several people be averaged.

    Returns
    -------
    dict
        As `reliability`, but ``bins`` in percent of ``peak``, and ``units``, which says so.
    """
    factor = 100 / found["peak"]
    bins = [{name: value * factor for name, value in row.items()} for row in found["bins"]]
    return {**found, "units": UNITS, "bins": bins}


def summarise_reliability(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average what `in_percent` returned for several people.

    Returns
    -------
    dict
        ``n``, people; ``units`` of the curve; for each of `FIGURES` ``mean``, ``min`` and ``max`` over the
        people; ``bins``: for each bin the means over the people of standard deviation and root mean square
        error, and the smallest and largest of the latter.

    Raises
    ------
    ValueError
        The curves have different numbers of bins.
    """
    figures = {name: np.array([one[name] for one in found], float) for name in FIGURES}
    bins = []
    for rows in zip(*(one["bins"] for one in found), strict=True):
        std, error = (np.array([row[name] for row in rows]) for name in ("std", "error"))
        bins.append(
            {
                "std": float(std.mean()),
                "error": float(error.mean()),
                "error_min": float(error.min()),
                "error_max": float(error.max()),
            }
        )
    return {
        "n": len(found),
        "units": UNITS,
        **{
            name: {"mean": float(v.mean()), "min": float(v.min()), "max": float(v.max())}
            for name, v in figures.items()
        },
        "bins": bins,
    }


def reliability_phrase(summary: Mapping[str, Any]) -> str:
    """A summary of `summarise_reliability` in one line."""
    return (
        f"error / standard deviation {summary['error_over_std']['mean']:.2f}, within 1 std "
        f"{100 * summary['within_1_std']['mean']:.0f} % of voxels, Spearman's rho over bins "
        f"{summary['spearman_bins']['mean']:.2f}"
    )


def reliability_table(found: dict[str, Any]) -> str:
    """The curve and what it comes to, as lines of text."""
    lines = ["standard deviation  root mean square error"]
    lines += [f"{row['std']:18.4g}  {row['error']:22.4g}" for row in found["bins"]]
    lines += [
        f"Spearman's rho of error and standard deviation: {found['spearman']:.3f} over voxels, "
        f"{found['spearman_bins']:.3f} over bins",
        f"error / standard deviation {found['error_over_std']:.2f}; within 1 std {found['within_1_std']:.0%} "
        f"of voxels, within 2 {found['within_2_std']:.0%}",
    ]
    return "\n".join(lines)
