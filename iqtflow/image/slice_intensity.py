"""Stripes: odd and even slices of different intensity are detected, and corrected by one gain each.

Interleaved slices are acquired in two passes. If the passes differ (cross-talk of neighbouring slices,
magnetisation transfer, drift), every other slice is darker: the scan has stripes. A network takes the stripes
for anatomy. They are measured on the slices alone, from second differences of the log intensity along the
slice axis. Anatomy changes the sign of these differences at random; stripes change it with every slice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from iqtflow.image.geometry import bounding_box
from iqtflow.image.intensity import PERCENTILE

#: A difference counts as significant below this p value ...
LARGEST_P = 0.01
#: ... and is corrected from this share on. Smaller stripes are hard to see, and anatomy alone reaches 1 % in
#: one of a hundred scans.
LEAST_SHARE = 0.01
#: With fewer pairs of slices there is no test.
LEAST_PAIRS = 5
#: Tissue is brighter than this share of white matter; fluid and air do not count.
TISSUE = 0.3
#: A slice counts if it shares this many voxels of tissue with its neighbours ...
LEAST_VOXELS = 100
#: ... and at least this share of what the middle slices have.
LEAST_AREA = 0.1


@dataclass(frozen=True)
class SliceIntensity:
    """Difference between odd and even slices.

    Attributes
    ----------
    difference
        Log intensity of even slices (0, 2, ...) minus that of odd slices; None: too few slices for a test.
    p_value
        Probability of a difference as large as this one without stripes; None: no test.
    """

    difference: float | None = None
    p_value: float | None = None

    @property
    def share(self) -> float | None:
        """Relative difference of odd and even slices, from 0 on."""
        return None if self.difference is None else float(np.expm1(abs(self.difference)))

    @property
    def striped(self) -> bool:
        """Whether the difference is significant and large enough to be corrected."""
        return (
            self.share is not None
            and self.p_value is not None
            and self.p_value < LARGEST_P
            and self.share >= LEAST_SHARE
        )

    def as_sidecar(self, *, corrected: bool) -> dict[str, Any]:
        """Return the field ``SliceIntensity`` of a sidecar."""
        return {
            "AlternatingShare": None if self.share is None else round(self.share, 4),
            "PValue": None if self.p_value is None else float(f"{self.p_value:.3g}"),
            "Corrected": corrected,
        }


def measure_slice_intensity(data: np.ndarray, mask: np.ndarray, axis: int) -> SliceIntensity:
    """Compare the intensities of odd and even slices.

    For each slice, the median over the brain of its log intensity minus the mean of its two neighbours,
    multiplied by -1 in odd slices. Disjoint pairs of neighbouring slices are averaged, so that a slow change
    along the slice axis has no effect. A t test compares the pairs with 0.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Thick-slice scan, any unit.
    mask : ndarray of bool, shape (w, h, d)
        Brain.
    axis
        Slice axis.

    Returns
    -------
    SliceIntensity
    """
    from scipy.special import stdtr

    if not mask.any():
        return SliceIntensity()
    box = bounding_box(mask, 0)
    first = box[axis].start
    scan, brain = np.moveaxis(data[box], axis, 0), np.moveaxis(mask[box], axis, 0)
    white = np.percentile(scan[brain], PERCENTILE)
    if white <= 0:
        return SliceIntensity()
    tissue = brain & (scan > TISSUE * white)
    level = np.log(np.where(tissue, scan, white), dtype=np.float32)
    common = tissue[:-2] & tissue[1:-1] & tissue[2:]
    area = common.sum(axis=(1, 2))
    usable = np.flatnonzero(area >= max(LEAST_VOXELS, LEAST_AREA * area.max(initial=0))).tolist()
    # Slices i, i + 1, i + 2 of the box; the middle one is slice i + 1 + first of the scan.
    found = {}
    for i in usable:
        below, middle, above = (level[j][common[i]] for j in (i, i + 1, i + 2))
        sign = 1 if (i + 1 + first) % 2 == 0 else -1
        # A difference d between even and odd slices is +d in the even ones and -d in the odd ones.
        found[i] = sign * float(np.median(middle - (below + above) / 2))
    pairs, i = [], 0
    while i < len(common) - 1:
        if i in found and i + 1 in found:
            pairs.append((found[i] + found[i + 1]) / 2)
            i += 1
        i += 1
    if len(pairs) < LEAST_PAIRS or not np.ptp(pairs):
        return SliceIntensity()
    # Student's t test of one sample. scipy.stats has it, but takes a third of a second to load.
    mean, n = float(np.mean(pairs)), len(pairs)
    t = mean / (np.std(pairs, ddof=1) / math.sqrt(n))
    return SliceIntensity(mean, float(2 * stdtr(n - 1, -abs(t))))


def equalise_slices(data: np.ndarray, axis: int, intensity: SliceIntensity) -> np.ndarray:
    """Multiply odd and even slices by one gain each, so that their intensities agree.

    The product of the two gains is 1: the mean log intensity of the scan stays. Contrasts within a slice do
    not change.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Thick-slice scan.
    axis
        Slice axis.
    intensity
        From `measure_slice_intensity`; its difference must not be None.

    Returns
    -------
    ndarray, shape (w, h, d)
        A new array of the same type.

    Raises
    ------
    ValueError
        No difference was measured.
    """
    if intensity.difference is None:
        raise ValueError("no difference was measured")
    half = intensity.difference / 2
    gains = np.where(np.arange(data.shape[axis]) % 2 == 0, np.exp(-half), np.exp(half)).astype(data.dtype)
    return data * np.expand_dims(gains, tuple(a for a in range(3) if a != axis))


def describe_slices(intensity: SliceIntensity, *, corrected: bool) -> list[str]:
    """Return a sentence for the user if odd and even slices differ; else none."""
    if not intensity.striped or intensity.difference is None or intensity.share is None:
        return []
    brighter = "even" if intensity.difference > 0 else "odd"
    found = (
        f"Every other slice is brighter: {brighter} slices (counted from 0) by {intensity.share:.1%} "
        f"(p = {intensity.p_value:.1g})."
    )
    if corrected:
        return [f"{found} Corrected by one gain for odd and one for even slices."]
    return [f"{found} Not corrected; the enhanced volume may show stripes. Use --slice-intensity auto."]
