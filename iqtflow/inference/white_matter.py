"""White matter keeps its intensity: a check of the estimate against the scan, and a correction of its scale.

The simulator changes the contrast of a training scan and leaves white matter alone (Algorithm 1 of Lin et
al. 2019, with r^WM = 1), so the estimate, averaged back onto the scan's slices, has to agree with the scan
there. On scans of the training's kind it does, within a few per cent. On others (grey and white matter that
hardly differ) networks take part of the white matter for grey and darken all of it. Their units are
arbitrary, but people compare the two volumes side by side, so such an estimate is scaled: by no more than
what brings the ratio back to the border of what evaluation scans of the model showed, which leaves scans of
the training's kind untouched.

One factor for the whole volume changes no contrast, and therefore no lesion's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Percentiles of the averaged estimate within the brain between which a voxel counts as white matter: it is
#: the brightest tissue, about 40 % of the brain; the few brightest voxels are vessels and noise.
BRIGHT = (65.0, 97.0)
#: A factor is never further from 1 than this.
LARGEST_FACTOR = 1.35
#: Fewer voxels give no ratio.
LEAST_VOXELS = 200


@dataclass(frozen=True)
class Correction:
    """The scan's white matter over the estimate's, the range that the model's evaluation scans showed, and
    the factor that the estimate was multiplied with.
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
    """Return the scan's white matter over the estimate's.

    Parameters
    ----------
    scan : ndarray, shape (w, h, d)
        Thick-slice scan, slices last.
    estimate : ndarray, shape (w, h, k d)
        Its enhanced volume.
    mask : ndarray of bool, shape (w, h, d)
        Brain.

    Returns
    -------
    float or None
        Ratio of medians over the voxels that are bright in the estimate, so that the scan's noise does not
        choose them; None when the brain is too small or dark to tell.
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
    """Find the factor for an estimate.

    Parameters
    ----------
    scan, estimate, mask
        See `white_matter_ratio`.
    usual
        Smallest and largest ratio over the model's evaluation scans; None, when nobody has noted them, leaves
        the estimate as it is.
    """
    ratio = white_matter_ratio(scan, estimate, mask)
    if ratio is None or usual is None:
        return Correction(ratio, None if usual is None else (usual[0], usual[1]), 1.0)
    low, high = float(usual[0]), float(usual[1])
    factor = ratio / min(max(ratio, low), high)
    return Correction(ratio, (low, high), min(max(factor, 1 / LARGEST_FACTOR), LARGEST_FACTOR))


def usual_ratios(reference: Mapping[str, Any] | None) -> Sequence[float] | None:
    """Return the range of ratios in a model's reference (`iqtflow.inference.ood.find_reference`)."""
    return None if reference is None else reference.get("white_matter_ratio")
