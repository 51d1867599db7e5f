"""One volume from several enhanced scans of a head on one grid.

An enhanced scan has measured detail in its plane, and inferred detail between its slices. Its error lies
mostly at spatial frequencies along its own slice axis that the slices cannot sample (above 1 / (2 spacing)).
So each scan counts most for the frequencies that it measured, as in Wiener filtering, and, at each place, the
more the smaller its predicted error is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

#: Error variance at frequencies that slices measure, over that at frequencies between them.
MEASURED_ERROR = 0.02
#: Frequency along the slice axis, times the spacing, at which one turns into the other, and the width of the
#: transition. One half is the limit of sampling.
LIMIT, TRANSITION = 0.6, 0.1
LEAST_ERROR = 0.02  #: smallest predicted error that counts, over its median
SMOOTH_MM = (
    1.5  #: standard deviation of the average of weights: noise in them would become noise in the result
)
#: Correlation of the errors of two enhanced scans with other slice axes: networks share mistakes (0.50, 0.55
#: and 0.57 in three simulated scans of a validation person).
USUAL_CORRELATION = 0.5
#: True over predicted error of the combined volume of this person: the filters remove errors that the formula
#: for a weighted mean keeps.
ERROR_FACTOR = 0.88
FADE_MM = 4.0  #: distance from the border of a scan over which its weight falls to 0


@dataclass(frozen=True)
class Aligned:
    """An enhanced scan on the combined grid.

    Attributes
    ----------
    volume : ndarray, shape (w, h, d), float32
        Intensities in the units of the first scan.
    error : ndarray, shape (w, h, d), float32, or None
        Predicted error (standard deviation), in the same units.
    shown : ndarray of bool, shape (w, h, d)
        What lies within the volume of the scan.
    spacing_mm
        Distance between the centres of its slices.
    direction : ndarray, shape (3,)
        Unit vector along its slice axis, in the axes of the grid.
    """

    volume: np.ndarray
    error: np.ndarray | None
    shown: np.ndarray
    spacing_mm: float
    direction: np.ndarray


@dataclass(frozen=True)
class Fused:
    """The combined volume.

    Attributes
    ----------
    volume : ndarray, shape (w, h, d), float32
        Not below 0.
    error : ndarray, shape (w, h, d), float32, or None
        Its predicted error; None if a scan has none.
    shares : tuple of float
        Mean weight of each scan in the brain; they sum to 1.
    correlation, scale
        Correlation of the errors of two scans, and the factor by which their predicted errors were
        multiplied, from how much the scans differ; None without predicted errors.
    """

    volume: np.ndarray
    error: np.ndarray | None
    shares: tuple[float, ...]
    correlation: float | None
    scale: float | None


def fuse(scans: Sequence[Aligned], brain: np.ndarray, *, edge_mm: float) -> Fused:
    """Combine enhanced scans of one head.

    Parameters
    ----------
    scans
        On one grid of cubic voxels.
    brain : ndarray of bool, shape (w, h, d)
        The brain.
    edge_mm
        Voxel edge.

    Returns
    -------
    Fused
    """
    weights = _local_weights(scans, edge_mm)
    base = sum(w * s.volume for w, s in zip(weights, scans, strict=True))
    differences = [len(scans) * w * (s.volume - base) for w, s in zip(weights, scans, strict=True)]
    volume = np.maximum(base + _measured_part(differences, scans, edge_mm), 0)
    shares = tuple(float(w[brain].mean()) if brain.any() else 1 / len(scans) for w in weights)
    errors = [s.error for s in scans if s.error is not None]
    if len(errors) < len(scans):
        return Fused(volume, None, shares, None, None)
    correlation, scale = _compare_errors(scans, brain)
    variance = (1 - correlation) * sum((w * e) ** 2 for w, e in zip(weights, errors, strict=True))
    variance += correlation * sum(w * e for w, e in zip(weights, errors, strict=True)) ** 2
    error = np.sqrt(variance) * np.float32(ERROR_FACTOR * scale)
    return Fused(volume, error, shares, correlation, scale)


def _local_weights(scans: Sequence[Aligned], edge_mm: float) -> list[np.ndarray]:
    """Inverse predicted variance; 0 where a scan shows nothing. Weights sum to 1 at each place."""
    found = []
    for scan in scans:
        inner = np.pad(scan.shown, 1)
        depth = ndimage.distance_transform_edt(inner, sampling=edge_mm)[1:-1, 1:-1, 1:-1]
        weight = np.clip(depth / FADE_MM, 0, 1).astype(np.float32)
        if scan.error is not None:
            positive = scan.error[scan.error > 0]
            least = max(LEAST_ERROR * float(np.median(positive)), 1e-12) if positive.size else 1.0
            weight = weight * ndimage.gaussian_filter(
                np.maximum(scan.error, least) ** -2, SMOOTH_MM / edge_mm, mode="nearest"
            )
        found.append(weight)
    total = sum(found)
    nowhere = total <= 0
    total = np.where(nowhere, 1, total)
    return [np.where(nowhere, np.float32(i == 0), weight / total) for i, weight in enumerate(found)]


def _measured_part(differences: list[np.ndarray], scans: Sequence[Aligned], edge_mm: float) -> np.ndarray:
    """Sum of differences, each filtered by the share of its scan at each frequency."""
    shape = differences[0].shape
    padded = [fft.next_fast_len(n, real=True) for n in shape]
    axes = [
        fft.fftfreq(padded[0], edge_mm),
        fft.fftfreq(padded[1], edge_mm),
        fft.rfftfreq(padded[2], edge_mm),
    ]
    grid = np.ix_(*(axis.astype(np.float32) for axis in axes))
    filters = []
    for scan in scans:
        along = sum(float(d) * f for d, f in zip(scan.direction, grid, strict=True))
        cycles = np.abs(along) * np.float32(scan.spacing_mm)
        error = MEASURED_ERROR + (1 - MEASURED_ERROR) / (1 + np.exp((LIMIT - cycles) / TRANSITION))
        filters.append(1 / error)
    total = sum(filters)
    spectrum = np.zeros(total.shape, np.complex64)
    for share, difference in zip(filters, differences, strict=True):
        spectrum += share / total * fft.rfftn(difference, padded)
    return fft.irfftn(spectrum, padded)[tuple(slice(n) for n in shape)].astype(np.float32)


def _compare_errors(scans: Sequence[Aligned], brain: np.ndarray) -> tuple[float, float]:
    """Return the correlation of the errors of two scans, and the factor for their predicted errors.

    The variance of a difference is ``a^2 + b^2 - 2 r a b`` for errors a and b with the correlation r. If
    scans differ by less than with the usual correlation, r is larger. If they differ by more, the errors are
    larger than predicted.
    """
    seen, expected, shared = 0.0, 0.0, 0.0
    for i, one in enumerate(scans):
        for other in scans[:i]:
            both = brain & one.shown & other.shown
            a, b = one.error[both].astype(float), other.error[both].astype(float)
            seen += float(((one.volume[both] - other.volume[both]).astype(float) ** 2).sum())
            expected += float((a**2 + b**2).sum())
            shared += float(2 * (a * b).sum())
    if not shared:
        return USUAL_CORRELATION, 1.0
    correlation = float(np.clip((expected - seen) / shared, USUAL_CORRELATION, 1))
    scale = np.sqrt(max(seen / (expected - USUAL_CORRELATION * shared), 1.0))
    return correlation, float(scale)
