"""How well a standard deviation map matches the error, where the truth is known.

Voxels are sorted by their standard deviation into bins of equal size. In a useful map the root mean square
error grows from bin to bin. In a calibrated map it is as large as the standard deviation (the curve: Levi et
al. 2022, doi:10.3390/s22155540).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from iqtflow.utils.errors import InputError

N_BINS = 20  #: bins of equal numbers of voxels
UNITS = "% of the truth's maximum inside the brain"  #: of curves that are averaged over subjects

#: Figures that `summarise_reliability` averages.
FIGURES = ("spearman", "spearman_bins", "error_over_std", "within_1_std", "within_2_std")


class NoVariation(InputError):
    """The standard deviation is the same everywhere, so voxels cannot be sorted by it."""


def reliability(
    truth: np.ndarray, estimate: np.ndarray, std: np.ndarray, mask: np.ndarray, *, n_bins: int = N_BINS
) -> dict[str, Any]:
    """Measure how the error depends on the standard deviation.

    Parameters
    ----------
    truth, estimate, std : ndarray, shape (w, h, d)
        High-field truth, enhanced volume and its standard deviation, in the same units.
    mask : ndarray of bool, shape (w, h, d)
        Voxels to compare.
    n_bins
        Number of bins with equal numbers of voxels.

    Returns
    -------
    dict
        ``spearman``: rank correlation of absolute error and standard deviation over voxels;
        ``bins``: root mean square of standard deviation and of error in each bin;
        ``spearman_bins``: rank correlation over the bins, 1 if the error grows from each bin to the next;
        ``error_over_std``: root mean square error over root mean square standard deviation, 1 if calibrated,
        larger if the standard deviation is too small; ``within_1_std``, ``within_2_std``: shares of voxels;
        ``peak``: maximum of the truth in the mask.

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
            next_step="Give the desc-iqtstd map of this enhanced volume.",
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


def in_percent(found: dict[str, Any]) -> dict[str, Any]:
    """Express the curve of `reliability` in percent of ``peak``: intensities of scans are arbitrary, and only
    then can curves of several subjects be averaged.
    """
    factor = 100 / found["peak"]
    bins = [{name: value * factor for name, value in row.items()} for row in found["bins"]]
    return {**found, "units": UNITS, "bins": bins}


def summarise_reliability(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average the results of `in_percent` over subjects.

    Returns
    -------
    dict
        ``n``, number of subjects; ``units`` of the curve; for each of `FIGURES` ``mean``, ``min`` and ``max``
        over subjects; ``bins``: for each bin the mean standard deviation, and mean, smallest and largest root
        mean square error.

    Raises
    ------
    ValueError
        The curves have different numbers of bins.
    """
    bins = []
    for rows in zip(*(one["bins"] for one in found), strict=True):
        error = mean_and_range([row["error"] for row in rows])
        std = mean_and_range([row["std"] for row in rows])["mean"]
        bins.append(
            {"std": std, "error": error["mean"], "error_min": error["min"], "error_max": error["max"]}
        )
    figures = {name: mean_and_range([one[name] for one in found]) for name in FIGURES}
    return {"n": len(found), "units": UNITS, **figures, "bins": bins}


def mean_and_range(values: Sequence[float]) -> dict[str, float]:
    """Return mean, smallest and largest of some numbers."""
    array = np.array(values, float)
    return {"mean": float(array.mean()), "min": float(array.min()), "max": float(array.max())}


def reliability_phrase(summary: Mapping[str, Any]) -> str:
    """Return the result of `summarise_reliability` in one line."""
    return (
        f"error / standard deviation {summary['error_over_std']['mean']:.2f}, within 1 std "
        f"{100 * summary['within_1_std']['mean']:.0f} % of voxels, Spearman's rho over bins "
        f"{summary['spearman_bins']['mean']:.2f}"
    )


def reliability_table(found: dict[str, Any]) -> str:
    """Return the curve and figures of `reliability` as lines of text."""
    lines = ["standard deviation  root mean square error"]
    lines += [f"{row['std']:18.4g}  {row['error']:22.4g}" for row in found["bins"]]
    lines += [
        f"Spearman's rho of error and standard deviation: {found['spearman']:.3f} over voxels, "
        f"{found['spearman_bins']:.3f} over bins",
        f"error / standard deviation {found['error_over_std']:.2f}; within 1 std {found['within_1_std']:.0%} "
        f"of voxels, within 2 {found['within_2_std']:.0%}",
    ]
    return "\n".join(lines)
