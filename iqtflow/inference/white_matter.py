"""White matter keeps its intensity: the enhanced volume is compared with the scan, and scaled if they differ.

The simulator changes the contrast of a training scan, but not the intensity of white matter (Algorithm 1 of
Lin et al. 2019, with r^WM = 1). So the enhanced volume, averaged over the scan's slices, must agree with the
scan in white matter. On scans like the training scans it does, within a few per cent. On other scans, in
which grey and white matter hardly differ, networks take part of the white matter for grey matter and make all
of it darker. Units are arbitrary, but people compare the two volumes side by side. The enhanced volume is
therefore scaled, just so far that the ratio is in the range of the model's evaluation scans. Scans like the
training scans do not change.

It is one factor for the whole volume, so it changes no contrast, and no contrast of a lesion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: A voxel counts as white matter between these percentiles of the averaged enhanced volume in the brain.
#: White matter is the brightest tissue, about 40 % of the brain; the few brightest voxels are vessels and
#: noise.
BRIGHT = (65.0, 97.0)
LARGEST_FACTOR = 1.35  #: largest factor; the smallest is its inverse
LEAST_VOXELS = 200  #: with fewer voxels there is no ratio


@dataclass(frozen=True)
class Correction:
    """Ratio of white matter in scan and enhanced volume, its range on the model's evaluation scans, and the
    factor for the enhanced volume.
    """

    ratio: float | None
    usual: tuple[float, float] | None
    factor: float

    def as_sidecar(self) -> dict[str, Any]:
        """Return the field ``WhiteMatter`` of a sidecar."""
        return {
            "ScanOverEstimate": None if self.ratio is None else round(self.ratio, 4),
            "UsualRange": None if self.usual is None else [round(v, 4) for v in self.usual],
            "Factor": round(self.factor, 4),
        }


def white_matter_ratio(scan: np.ndarray, estimate: np.ndarray, mask: np.ndarray) -> float | None:
    """Return the ratio of white matter in the scan and in the enhanced volume.

    Parameters
    ----------
    scan : ndarray, shape (w, h, d)
        Thick-slice scan, slices last.
    estimate : ndarray, shape (w, h, k d)
        Its enhanced volume.
    mask : ndarray of bool, shape (w, h, d)
        Brain mask.

    Returns
    -------
    float or None
        Ratio of medians over the bright voxels of the enhanced volume (it has less noise than the scan); None
        if the brain is too small or too dark.
    """
    averaged = estimate.reshape(*scan.shape, -1).mean(axis=3)
    inside = averaged[mask]
    if inside.size < LEAST_VOXELS:
        return None
    low, high = np.percentile(inside, BRIGHT)
    bright = mask & (averaged > low) & (averaged < high)
    if np.count_nonzero(bright) < LEAST_VOXELS:
        return None
    ours, theirs = float(np.median(averaged[bright])), float(np.median(scan[bright]))
    return theirs / ours if ours > 0 and theirs > 0 else None


def correct_white_matter(
    scan: np.ndarray, estimate: np.ndarray, mask: np.ndarray, usual: Sequence[float] | None
) -> Correction:
    """Compute the factor for an enhanced volume.

    Parameters
    ----------
    scan, estimate, mask
        See `white_matter_ratio`.
    usual
        Smallest and largest ratio on the model's evaluation scans; None: no correction.

    Returns
    -------
    Correction
    """
    ratio = white_matter_ratio(scan, estimate, mask)
    if ratio is None or usual is None:
        return Correction(ratio, None if usual is None else (usual[0], usual[1]), 1.0)
    low, high = float(usual[0]), float(usual[1])
    factor = ratio / min(max(ratio, low), high)
    return Correction(ratio, (low, high), min(max(factor, 1 / LARGEST_FACTOR), LARGEST_FACTOR))
