"""Numbers that go with the pictures of one scan."""

from __future__ import annotations

import numpy as np

from iqtflow.reports.draw.views import Volumes


def measure(volumes: Volumes) -> dict[str, float]:
    """Measure change, uncertainty, and agreement with what was acquired, over the mask.

    Returns
    -------
    dict
        ``change_percent``: mean absolute difference of after and before, in percent of the grey scale;
        ``std_median_percent`` and ``std_p95_percent``, likewise, when there is an uncertainty map;
        ``agreement``, when the grids nest: correlation of the scan with the estimate averaged back onto its
        slices.
    """
    mask = volumes.mask
    unit = 100 / (volumes.window[1] - volumes.window[0])
    change = np.abs(volumes.after[mask] - volumes.before[mask]).mean()
    numbers = {"change_percent": unit * float(change)}
    if volumes.std is not None:
        median, high = np.percentile(volumes.std[mask], [50, 95])
        numbers |= {"std_median_percent": unit * float(median), "std_p95_percent": unit * float(high)}
    agreement = _agreement(volumes)
    return numbers if agreement is None else numbers | {"agreement": agreement}


def _agreement(volumes: Volumes) -> float | None:
    if volumes.acquired is None:
        return None
    scan, axis = volumes.acquired[0], volumes.slice_axis
    k = volumes.after.shape[axis] // scan.shape[axis]
    if volumes.after.shape != tuple(n * (k if a == axis else 1) for a, n in enumerate(scan.shape)):
        return None
    slabs = [*scan.shape[: axis + 1], k, *scan.shape[axis + 1 :]]
    inside = volumes.mask.reshape(slabs).all(axis=axis + 1)
    if inside.sum() < 100:
        return None
    averaged = volumes.after.reshape(slabs).mean(axis=axis + 1)[inside]
    return float(np.corrcoef(averaged, scan[inside])[0, 1])
