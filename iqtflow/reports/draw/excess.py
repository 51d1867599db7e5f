"""Where the standard deviation of an enhanced volume is larger than usual for such a place.

Every standard deviation map is large along the cortex, because edges are blurred by thick slices, and between
the centres of the slices, because nothing was measured there. Both say nothing about this scan. So the
expected value of a voxel is the mean over all brain voxels at the same distance from the nearest slice centre
and with the same strength of the nearest edge; it is subtracted.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from iqtflow.reports.draw.volumes import Volumes

DEPTHS = 8  #: bins of the distance from a slice's centre, from 0 to half of the spacing
EDGES = 12  #: bins of edge strength, with equal numbers of voxels
#: The difference is smoothed by a Gaussian of this standard deviation: a single voxel is no finding.
SMOOTHED_MM = 1.5


def find_excess(volumes: Volumes) -> np.ndarray:
    """Return the standard deviation above what is usual for such a place.

    Parameters
    ----------
    volumes
        With ``std``.

    Returns
    -------
    ndarray of float32, shape (x, y, z)
        In the units of the volume; negative where the standard deviation is smaller than usual, 0 outside of
        the mask.
    """
    assert volumes.std is not None
    mask = volumes.mask
    strength = ndimage.gaussian_gradient_magnitude(volumes.after, 1.0)[mask]
    borders = np.quantile(strength[:: max(strength.size // 100_000, 1)], np.linspace(0, 1, EDGES + 1)[1:-1])
    place = np.searchsorted(borders, strength) * (DEPTHS + 1) + _depth(volumes)[mask]
    values = volumes.std[mask].astype(np.float64)
    counts = np.bincount(place, minlength=EDGES * (DEPTHS + 1))
    usual = np.bincount(place, values, len(counts)) / np.maximum(counts, 1)
    excess = np.zeros(mask.shape, np.float32)
    excess[mask] = values - usual[place]
    return ndimage.gaussian_filter(excess, SMOOTHED_MM / volumes.sizes_mm, truncate=3) * mask


def _depth(volumes: Volumes) -> np.ndarray:
    """Return the bin of the distance from the nearest slice centre, broadcast to the volume's shape."""
    shape = volumes.after.shape
    if volumes.acquired is None or volumes.slice_axis is None:
        return np.zeros(shape, np.intp)
    axis = volumes.slice_axis
    to_scan = np.linalg.inv(volumes.acquired[1]) @ volumes.affine
    where = to_scan[axis, axis] * np.arange(shape[axis]) + to_scan[axis, 3]
    bins = np.round(2 * DEPTHS * np.abs(where - np.round(where))).astype(np.intp)
    return np.broadcast_to(bins.reshape([-1 if a == axis else 1 for a in range(3)]), shape)
