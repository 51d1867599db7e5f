"""Fit three Gaussians to the histogram of a brain: intensities of CSF, GM and WM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Start of the fit: quantiles within CSF, GM and WM of nearly every T1-weighted brain.
START_QUANTILES = (0.05, 0.4, 0.8)
#: Bins of the histogram. The fit uses it instead of the voxels.
N_BINS = 512
#: Iterations. The means of a real brain change by less than 1e-4 of their range after about 100.
N_ITERATIONS = 200


@dataclass(frozen=True)
class TissueMixture:
    """Three Gaussians, ordered by mean: CSF, GM, WM in T1-weighting.

    Attributes
    ----------
    mean, std : ndarray, shape (3,)
        Intensity units of the image.
    share : ndarray, shape (3,)
        Share of the brain's voxels; sums to 1.
    range : tuple of float
        Range of the fitted intensities. Values beyond are clipped to it.
    """

    mean: np.ndarray
    std: np.ndarray
    share: np.ndarray
    range: tuple[float, float]

    def posteriors(self, values: np.ndarray) -> np.ndarray:
        """Return the probability of each tissue at each intensity (Bayes' rule).

        Parameters
        ----------
        values : ndarray, shape (n,)
            Intensities.

        Returns
        -------
        ndarray, shape (3, n)
            Columns sum to 1.
        """
        values = np.clip(values, *self.range)
        scores = -0.5 * ((values - self.mean[:, None]) / self.std[:, None]) ** 2
        scores += np.log(self.share / self.std)[:, None]
        density = np.exp(scores - scores.max(axis=0))
        return density / density.sum(axis=0)


def fit_tissue_mixture(values: np.ndarray) -> TissueMixture:
    """Fit the mixture to the histogram of brain intensities by expectation maximisation.

    Parameters
    ----------
    values : ndarray, shape (n,)
        Bias-corrected intensities of brain voxels, any unit; at least three distinct ones.

    Returns
    -------
    TissueMixture
        The fit, the same each time: nothing is random.

    References
    ----------
    A. P. Dempster, N. M. Laird, D. B. Rubin, "Maximum Likelihood from Incomplete Data via the EM
    Algorithm", J. Royal Statistical Society B 39:1-38, 1977, doi:10.1111/j.2517-6161.1977.tb01600.x
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = np.percentile(values, (0.1, 99.9))
    counts, edges = np.histogram(values, bins=N_BINS, range=(low, high))
    centres, weights = (edges[1:] + edges[:-1]) / 2.0, counts / counts.sum()
    # Without a limit, a class of one bin would shrink to nothing.
    least_std = (high - low) / 200.0
    fit = TissueMixture(
        mean=np.quantile(values, START_QUANTILES),
        std=np.full(3, max(values.std() / 3.0, least_std)),
        share=np.full(3, 1.0 / 3.0),
        range=(float(low), float(high)),
    )
    for _ in range(N_ITERATIONS):
        joint = fit.posteriors(centres) * weights
        share = joint.sum(axis=1) + 1e-12
        mean = joint @ centres / share
        variance = (joint * (centres - mean[:, None]) ** 2).sum(axis=1) / share
        fit = TissueMixture(mean, np.maximum(np.sqrt(variance), least_std), share / share.sum(), fit.range)
    order = np.argsort(fit.mean)
    return TissueMixture(fit.mean[order], fit.std[order], fit.share[order], fit.range)
