"""A site's own SNR prior: tissue SNR measured on its low-field scans, and the distribution fitted to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from iqtflow.simulation.noise_estimation import NoiseEstimate, estimate_noise
from iqtflow.simulation.snr_prior import DEFAULT_PRIOR, PUBLISHED, SNRPrior, tissue_mean
from iqtflow.utils.errors import InputError

#: From this number of scans on, the covariance is the site's own (its three numbers are then known to 30 %).
ENOUGH_SCANS = 20
#: Smallest number of scans for the detection of outliers.
SCANS_FOR_SCATTER = 10
#: Share of a normal distribution that is within the outlier limit.
OUTLIER_PROBABILITY = 0.999
#: Share of scans that the robust scatter is computed from (Rousseeuw and Van Driessen 1999).
KEPT_SHARE = 0.75
#: Probability from which a voxel is mostly of one tissue.
MAJORITY = 0.5


@dataclass(frozen=True)
class ScanSNR:
    """Tissue SNR of one scan, and the values that it was computed from.

    Attributes
    ----------
    wm, gm
        SNR: mean intensity over the noise's standard deviation.
    mean_wm, mean_gm
        Mean intensities, in the scan's units.
    noise
        The noise, and how it was estimated.
    """

    wm: float
    gm: float
    mean_wm: float
    mean_gm: float
    noise: NoiseEstimate


@dataclass(frozen=True)
class Calibration:
    """A fitted prior.

    Attributes
    ----------
    prior
        The prior.
    n_scans
        Number of measured scans.
    outliers
        Labels of scans that were left out, with their robust Mahalanobis distance.
    weight
        Weight of the site's own covariance, 0 to 1; the rest is the published one.
    notes
        Sentences for the user.
    """

    prior: SNRPrior
    n_scans: int
    outliers: Mapping[str, float]
    weight: float
    notes: tuple[str, ...]


def measure_snr(
    data: np.ndarray,
    wm: np.ndarray,
    gm: np.ndarray,
    mask: np.ndarray,
    *,
    axis: int,
    voxel_mm: tuple[float, float, float],
) -> ScanSNR:
    """Measure the SNR of white and grey matter of a scan (eq. (4) of Lin et al. 2019).

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Scan from the scanner, without correction of the bias field, which would make the noise uneven.
    wm, gm : ndarray, shape (w, h, d)
        Tissue probabilities.
    mask : ndarray of bool, shape (w, h, d)
        Brain.
    axis
        Slice axis.
    voxel_mm
        Voxel size.

    Returns
    -------
    ScanSNR

    Raises
    ------
    InputError
        A tissue is empty, or the noise cannot be estimated.

    Notes
    -----
    Eq. (4) is computed over voxels that are mostly of one tissue, since thick slices mix tissues and a prior
    is for thin ones. On phantoms of known SNR (k = 4 and 8) eq. (4) over all voxels is 3 to 7 % too low for
    grey matter, over pure voxels (0.9) 5 % too high, over voxels of one majority between -1 and +3 %.
    """
    noise = estimate_noise(data, mask, wm, axis=axis, voxel_mm=voxel_mm)
    if not noise.sigma > 0:
        raise InputError(
            "noise",
            found=f"a standard deviation of {noise.sigma:g} ({noise.note})",
            expected="more than 0",
            next_step="Give the scan as the scanner made it.",
        )
    mean_wm, mean_gm = (
        tissue_mean(data, np.where(probability >= MAJORITY, probability, 0), tissue=tissue)
        for tissue, probability in (("WM", wm), ("GM", gm))
    )
    return ScanSNR(mean_wm / noise.sigma, mean_gm / noise.sigma, mean_wm, mean_gm, noise)


def fit_prior(
    snr: Mapping[str, tuple[float, float]], *, name: str = "site", reference: SNRPrior | None = None
) -> Calibration:
    """Fit ``N(mu, Sigma)`` to the tissue SNR of a site's scans.

    Scans with a robust Mahalanobis distance beyond the 99.9 % limit are named and left out. With fewer scans
    than `SCANS_FOR_SCATTER` none is left out, and the notes say so. With fewer than `ENOUGH_SCANS`, the
    covariance is a weighted mean of the site's own and the published one. The published one is first scaled
    to the site's mean, with its relative spread and its correlation. The weight ``(n - 1) / (ENOUGH_SCANS -
    1)`` grows with the degrees of freedom. The mean is always the site's own.

    Parameters
    ----------
    snr
        (SNR_WM, SNR_GM) by the scan's label.
    name
        Name of the prior.
    reference
        The published prior; None: that of 0.36 T.

    Returns
    -------
    Calibration

    Raises
    ------
    InputError
        There are no scans, or an SNR is not a positive number.
    """
    reference = reference or PUBLISHED[DEFAULT_PRIOR]
    labels = list(snr)
    values = np.array([snr[label] for label in labels], dtype=float).reshape(-1, 2)
    if not len(values) or not np.all(np.isfinite(values) & (values > 0)):
        raise InputError(
            "tissue SNR of the site's scans",
            found="no scan" if not len(values) else "a value that is not above 0",
            expected="at least one scan with positive SNR",
            next_step="Run the participant level of calibrate on low-field scans first.",
        )
    distances, limit = np.zeros(len(values)), np.inf
    if len(values) >= SCANS_FOR_SCATTER:
        distances, limit = robust_distances(values)
    kept = distances <= limit
    outliers = {labels[i]: float(distances[i]) for i in np.flatnonzero(~kept)}
    mean, n = values[kept].mean(axis=0), int(kept.sum())
    weight = min(1.0, (n - 1) / (ENOUGH_SCANS - 1))
    covariance = (1 - weight) * scaled_covariance(reference, mean)
    if weight > 0:
        covariance = covariance + weight * np.cov(values[kept].T)
    notes = _notes(n, weight, outliers, limit, reference)
    prior = SNRPrior(
        name,
        (float(mean[0]), float(mean[1])),
        tuple(tuple(float(v) for v in row) for row in (covariance + covariance.T) / 2),
        f"fitted to {n} scans; {weight:.0%} of the covariance is their own, the rest {reference.name}'s",
    )
    return Calibration(prior, len(values), outliers, weight, notes)


def scaled_covariance(reference: SNRPrior, mean: np.ndarray) -> np.ndarray:
    """Return a covariance with the reference's correlation and relative spread for another mean, (2, 2)."""
    scale = np.asarray(mean, float) / np.asarray(reference.mean, float)
    return np.asarray(reference.covariance, float) * np.outer(scale, scale)


def robust_distances(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the Mahalanobis distance of each scan from the majority, and the limit for outliers.

    The majority is first the most concentrated three quarters, found by the C-steps of Rousseeuw and Van
    Driessen (Technometrics 41(3):212-223, 1999, doi:10.1080/00401706.1999.10485670); their scatter is scaled
    so that the median distance is that of a normal distribution. Then it becomes all scans within the limit,
    until it no longer changes. The limit is that of one more scan, with the scatter known from this number of
    scans (F distribution).

    Parameters
    ----------
    values : ndarray, shape (n, 2)
        At least `SCANS_FOR_SCATTER` scans.

    Returns
    -------
    distances : ndarray, shape (n,)
    limit : float
    """
    start = np.median(values, axis=0)
    floor = np.diag((1e-3 * start) ** 2)  # scans that are all alike still have a scatter to be inverted
    squared = _squared(values, start, np.diag(np.median(np.abs(values - start), axis=0) ** 2) + floor)
    n_kept = int(np.ceil(KEPT_SHARE * len(values)))
    kept = np.zeros(len(values), bool)
    for _ in range(100):
        nearest = np.zeros(len(values), bool)
        nearest[np.argsort(squared, kind="stable")[:n_kept]] = True
        if np.array_equal(nearest, kept):
            break
        kept = nearest
        squared = _squared(values, values[kept].mean(axis=0), np.cov(values[kept].T) + floor)
    squared = squared * stats.chi2.ppf(0.5, 2) / max(float(np.median(squared)), 1e-12)
    for _ in range(100):
        limit = _limit(int(kept.sum()))
        within = squared <= limit**2
        if np.array_equal(within, kept):
            break
        kept = within
        squared = _squared(values, values[kept].mean(axis=0), np.cov(values[kept].T) + floor)
    return np.sqrt(squared), _limit(int(kept.sum()))


def _limit(n: int) -> float:
    """Distance of one more scan from n others that `OUTLIER_PROBABILITY` of normal scans are within."""
    p = 2
    quantile = stats.f.ppf(OUTLIER_PROBABILITY, p, n - p)
    return float(np.sqrt(p * (n + 1) * (n - 1) / (n * (n - p)) * quantile))


def _squared(values: np.ndarray, centre: np.ndarray, scatter: np.ndarray) -> np.ndarray:
    away = values - centre
    return np.einsum("ni,ij,nj->n", away, np.linalg.inv(scatter), away)


def _notes(
    n: int, weight: float, outliers: Mapping[str, float], limit: float, reference: SNRPrior
) -> tuple[str, ...]:
    notes = [
        f"{label} is left out: its SNR is {distance:.1f} standard deviations from the others (limit "
        f"{limit:.1f})."
        for label, distance in outliers.items()
    ]
    if not np.isfinite(limit):
        notes.append(
            f"With too few scans ({n}), none can be told to be unlike the others. Look at the picture."
        )
    if weight < 1:
        notes.append(
            f"{n} scan{'s are' if n > 1 else ' is'} fewer than the {ENOUGH_SCANS} that the covariance of the "
            f"SNR needs. {weight:.0%} of it is your own, {1 - weight:.0%} is that of {reference.name}, "
            "scaled to your mean SNR."
        )
    return tuple(notes)
