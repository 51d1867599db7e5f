"""The scan that belongs to an enhanced volume: its intensities changed to those of the scan, and averaged
over each slice.

The network changes the contrast between tissues on purpose. So the enhanced volume is first given the
contrast of the scan: a monotone, piecewise linear function of the intensity, a gain for each slice, and a
gain that varies slowly in space. All three are fitted to the scan inside the brain. They follow what is the
same all over the brain, or over some centimetres of it. They cannot follow a structure of some millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, optimize

from iqtflow.simulation.slice_profile import profile_matrix

#: Percentiles of the enhanced volume in the brain at which the function of intensity may bend.
BENDS = tuple(np.linspace(2, 99, 10))
SAMPLE = 25_000  #: voxels of the scan to which the function is fitted
STIFFNESS = 0.02  #: weight of changes of slope against the fit, for each voxel
GAIN_MM = 15.0  #: standard deviation of the Gaussian that averages the slowly varying gain
COARSE_MM = 3.0  #: in-plane voxel size on which it is computed
LEAST_VOXELS = 50  #: a slice with fewer bright voxels has the gain 1
LEAST_SLOPE = 0.3  #: smallest slope that the consistency step divides by
STEPS = 3  #: steps of the consistency step
NARROWEST = 0.25  #: narrowest slice profile, in slice spacings


@dataclass(frozen=True)
class ForwardModel:
    """From an enhanced volume to the scan that it predicts.

    Attributes
    ----------
    matrix : ndarray, shape (d, k d)
        Slice profile (`iqtflow.simulation.slice_profile.profile_matrix`).
    knots, levels : ndarray, shape (n,)
        Intensities of the enhanced volume, and those of the scan for them.
    gain : ndarray, shape (w, h, d)
        Factor for each voxel of the scan: gain of the slice times slowly varying gain.
    """

    matrix: np.ndarray
    knots: np.ndarray
    levels: np.ndarray
    gain: np.ndarray

    def predict(self, estimate: np.ndarray) -> np.ndarray:
        """Return the scan, shape (w, h, d), that an enhanced volume, shape (w, h, k d), predicts."""
        return average_slices(change_contrast(estimate, self.knots, self.levels), self.matrix) * self.gain

    def slope(self, estimate: np.ndarray) -> np.ndarray:
        """Return the slope of the function of intensity at each voxel of an enhanced volume."""
        steps = np.diff(self.levels) / np.diff(self.knots)
        place = np.clip(np.searchsorted(self.knots, estimate, side="right") - 1, 0, len(steps) - 1)
        return steps.astype(np.float32)[place]


def fit_forward_model(
    scan: np.ndarray,
    estimate: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_mm: Sequence[float],
    thickness_mm: float,
) -> ForwardModel:
    """Fit the forward model of a scan to its enhanced volume.

    Parameters
    ----------
    scan : ndarray, shape (w, h, d), float32
        Thick-slice scan, slices last.
    estimate : ndarray, shape (w, h, k d), float32
        Enhanced volume.
    mask : ndarray of bool, shape (w, h, d)
        Brain; not empty.
    voxel_mm
        Voxel size of the scan.
    thickness_mm
        Slice thickness: full width at half maximum of a Gaussian slice profile.

    Returns
    -------
    ForwardModel
    """
    n_slices, n_thin = scan.shape[2], estimate.shape[2]
    k = n_thin // n_slices
    matrix = profile_matrix(n_thin, k, k * max(thickness_mm / voxel_mm[2], NARROWEST))
    knots, levels = _fit_contrast(scan, estimate, mask, matrix)
    predicted = average_slices(change_contrast(estimate, knots, levels), matrix)
    gain = np.ones(scan.shape, np.float32) * _slice_gains(scan, predicted, mask)
    gain *= _slow_gain(scan, predicted * gain, mask, voxel_mm)
    return ForwardModel(matrix, knots, levels, gain)


def change_contrast(estimate: np.ndarray, knots: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Apply the function of intensity; above the last knot it has the slope of the last two parts."""
    changed = np.interp(estimate, knots, levels).astype(np.float32)
    if len(knots) > 2:
        slope = (levels[-1] - levels[-3]) / (knots[-1] - knots[-3])
        changed += np.float32(slope) * np.maximum(estimate - np.float32(knots[-1]), 0)
    return changed


def average_slices(volume: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Average thin slices, shape (w, h, k d), with a slice profile, shape (d, k d).

    As one product of matrices: NumPy is ten times slower on a volume whose slices are not together in memory.
    """
    columns = np.ascontiguousarray(volume, dtype=np.float32).reshape(-1, volume.shape[2])
    return (columns @ matrix.T).reshape(*volume.shape[:2], -1)


def make_consistent(
    scan: np.ndarray,
    estimate: np.ndarray,
    mask: np.ndarray,
    model: ForwardModel,
    *,
    noise: float,
    steps: int = STEPS,
) -> np.ndarray:
    """Correct an enhanced volume so that it reproduces the slices of the scan within their noise.

    Back-projection: the part of the residual that exceeds the noise is added to the thin slices of each
    slice, divided by the slope of the contrast. It is the smallest change of a column of voxels that removes
    the residual (``A^T (A A^T)^-1``, as in the algebraic reconstruction of Gordon et al. 1970,
    doi:10.1016/0022-5193(70)90109-8).

    Parameters
    ----------
    scan, estimate, mask
        As for `fit_forward_model`. Voxels outside the mask do not change.
    model
        From `fit_forward_model`.
    noise
        Standard deviation of the noise, in the scan's units.
    steps
        Number of steps: the contrast is not linear.

    Returns
    -------
    ndarray, shape (w, h, k d), float32
        Not below 0.
    """
    gram = (model.matrix @ model.matrix.T).astype(float)
    gram += 0.01 * gram.max() * np.eye(len(gram))  # neighbouring slices overlap: no amplified noise
    back = np.linalg.solve(gram, model.matrix.astype(float)).astype(np.float32)
    thin = np.repeat(mask, estimate.shape[2] // scan.shape[2], axis=2)
    for _ in range(steps):
        residual = scan - model.predict(estimate)
        excess = np.sign(residual) * np.maximum(np.abs(residual) - np.float32(noise), 0)
        change = (excess * mask / np.maximum(model.gain, LEAST_SLOPE)) @ back
        change /= np.maximum(model.slope(estimate), LEAST_SLOPE)
        estimate = np.where(thin, np.maximum(estimate + change, 0), estimate)
    return estimate


def blur(volume: np.ndarray, sigmas: Sequence[float] | np.ndarray) -> np.ndarray:
    """Gaussian average with zeros outside of the volume, cut at three standard deviations."""
    return ndimage.gaussian_filter(volume, sigmas, mode="constant", truncate=3.0)


def bin_plane(volume: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Sum over blocks of voxels in the plane; blocks at the end are filled up with zeros."""
    rows, columns = factors
    padded = np.pad(volume, ((0, -volume.shape[0] % rows), (0, -volume.shape[1] % columns), (0, 0)))
    blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns, -1)
    return blocks.sum(axis=(1, 3))


def _fit_contrast(
    scan: np.ndarray, estimate: np.ndarray, mask: np.ndarray, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the function of intensity on a sample of columns: robust least squares with increments >= 0.

    The function is applied to thin slices before they are averaged. It is linear in its values at the knots.
    """
    columns = np.argwhere(mask.any(axis=2))
    wanted = max(int(SAMPLE / np.count_nonzero(mask) * len(columns)), 1)
    if wanted < len(columns):
        columns = columns[np.random.default_rng(0).choice(len(columns), wanted, replace=False)]
    thin, thick, inside = (volume[columns[:, 0], columns[:, 1]] for volume in (estimate, scan, mask))
    k = thin.shape[1] // thick.shape[1]
    knots = np.unique([0.0, *np.percentile(thin[np.repeat(inside, k, axis=1)], BENDS)])
    if len(knots) < 3:  # a constant volume
        knots = np.array([0.0, 1.0, 2.0]) * max(float(knots[-1]), 1.0)
    weights = np.stack([np.interp(thin, knots, row) for row in np.eye(len(knots))], axis=-1)
    design = np.matmul(matrix, weights)[inside] @ np.tril(np.ones((len(knots),) * 2))
    wanted_values = thick[inside].astype(float)
    gaps = np.diff(knots)
    bends = np.zeros((len(knots) - 2, len(knots)))
    for i in range(len(bends)):
        bends[i, i + 1 : i + 3] = -1 / gaps[i], 1 / gaps[i + 1]
    stiffness = STIFFNESS * len(design) * np.median(gaps) ** 2 * bends.T @ bends
    trust = np.ones(len(design))
    increments = np.zeros(len(knots))
    for _ in range(4):  # Huber weights: structures that only one of the two has must not bend the function
        normal = (design * trust[:, None]).T @ design + stiffness
        normal += 1e-9 * np.trace(normal) * np.eye(len(knots))
        root = np.linalg.cholesky(normal)
        increments, _ = optimize.nnls(
            root.T, np.linalg.solve(root, (design * trust[:, None]).T @ wanted_values)
        )
        off = np.abs(wanted_values - design @ increments)
        trust = 1 / np.maximum(1, off / max(2 * 1.4826 * float(np.median(off)), 1e-12))
    return knots, np.cumsum(increments)


def _slice_gains(scan: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    gains = np.ones(scan.shape[2], np.float32)
    bright = mask & (predicted > 0.3 * np.median(predicted[mask]))
    for i in range(len(gains)):
        where = bright[:, :, i]
        if np.count_nonzero(where) >= LEAST_VOXELS:
            ratio = float(np.median(scan[:, :, i][where] / predicted[:, :, i][where]))
            gains[i] = ratio if ratio > 0 else 1.0
    return gains


def _slow_gain(
    scan: np.ndarray, predicted: np.ndarray, mask: np.ndarray, voxel_mm: Sequence[float]
) -> np.ndarray:
    """Gain that varies slowly: local regression of the scan on the prediction, on coarse voxels."""
    factors = [max(int(COARSE_MM / size), 1) for size in voxel_mm[:2]]
    sigmas = [GAIN_MM / (size * factor) for size, factor in zip(voxel_mm, (*factors, 1), strict=True)]
    upper, lower = (
        blur(bin_plane(np.where(mask, predicted * volume, np.float32(0)), factors), sigmas)
        for volume in (scan, predicted)
    )
    least = 1e-3 * float(lower.max())
    gain = np.where(lower > least, upper / np.maximum(lower, least or 1), np.float32(1))
    fine = ndimage.zoom(gain, (*factors, 1), order=1, mode="nearest", grid_mode=True)
    return np.maximum(fine[: scan.shape[0], : scan.shape[1]], 0.1)
