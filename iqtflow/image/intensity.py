"""Intensities of scans: their scale, air that is not at 0, outlying voxels, and empty slices.

The intensities of a scan have no unit, and the network must see the same numbers for the same tissue in
training and in use. They are divided by the 80th percentile of the brain. White matter is the brightest
tissue of a T1w brain and fills about 40 % of it, so this is the middle of white matter. The scale needs no
segmentation, is exactly proportional to the scan's units, and hardly changes when the brain mask includes a
little skull (a few per cent of bright fat) or dark fluid.
"""

from __future__ import annotations

import os

import numpy as np

from iqtflow.utils.errors import InputError

NORMALISATION = "brain-p80"  #: stored with a model; a model trained with another rule is refused
PERCENTILE = 80.0

# Shares below are of the range from air to bright tissue, unless stated otherwise.
#: Noise does not reach further below 0 than this.
AIR_BELOW_ZERO = 0.02
#: A value in more than this share of the voxels was filled in by a program.
FILLED = 0.01
#: If more than this share of the other voxels is between air and 0, tissue is below 0, and air is no filling.
TISSUE_BELOW_ZERO = 0.25
#: Air has an offset if its mean is more than this many of its standard deviations. For noise of one magnitude
#: coil this is 1.9; for the sum of squares of n coils about 2 sqrt(n), 16 for 64 coils.
AIR_IN_SPREADS = 17.0
#: A smaller offset of air is ignored.
AIR_ABOVE_ZERO = 0.05
#: Median, median absolute deviation and standard deviation of Rayleigh noise with components of 1.
RAYLEIGH_MEDIAN, RAYLEIGH_MAD, RAYLEIGH_STD = 1.177, 0.448, 0.655
#: In an inverted image, air is this close to the brightest voxels.
INVERTED = 0.2
#: Outliers are further above bright tissue than this. Tissue, fat and vessels are not.
OUTLIER_ABOVE = 10.0
#: Outliers are further below air than this. The undershoot of a filter is not.
OUTLIER_BELOW = 2.0
#: Outliers in more than this share of the voxels mean a damaged file.
OUTLIER_SHARE = 1e-4
#: A magnitude image does not reach as far below 0 as this share of its bright tissue.
SIGNED = 0.5
#: A slice at the end was lost if more than this share of the next slice is tissue ...
LOST_AT_END = 0.1
#: ... and less than this share of the next slice is 0 (air has noise) ...
LEAST_ERASED = 0.3
#: ... where tissue is brighter than this share of the 99th percentile.
TISSUE = 0.15


def intensity_scale(values: np.ndarray) -> float:
    """Return the intensity that becomes 1 for the network.

    Parameters
    ----------
    values : ndarray, any shape
        Intensities of brain voxels of the thick-slice scan.

    Returns
    -------
    float
        Positive; in the scan's units. Network input is ``scan / scale``, the enhanced volume is ``network
        output * scale``.

    Raises
    ------
    InputError
        There are no brain voxels, or their 80th percentile is not positive.
    """
    values = np.asarray(values)
    scale = float(np.percentile(values, PERCENTILE)) if values.size else float("nan")
    if not np.isfinite(scale) or scale <= 0:
        raise InputError(
            "brain intensities",
            found=f"{values.size} brain voxels, 80th percentile {scale:g}",
            expected="a positive 80th percentile over the brain",
            next_step="Check the scan and its brain mask; intensities must be magnitudes (>= 0).",
        )
    return scale


def correct_intensities(path: str | os.PathLike, data: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Correct intensities so that air is near 0, as in magnitude images.

    Parameters
    ----------
    path
        The file, for messages.
    data : ndarray of float32, shape (w, h, d)
        Intensities, finite, not all the same. Not changed in place.

    Returns
    -------
    data : ndarray, shape (w, h, d)
        A filling value far below 0 (-1024, as in CT) or far above all others (65535) is replaced by 0. An
        offset of air is removed. Single outliers get the median of their neighbours. The same array if
        nothing was changed.
    notes : list of str
        What was done, as sentences.

    Raises
    ------
    InputError
        Values reach as far below 0 as above it (no magnitudes), air is brighter than the head, or there are
        too many outliers.
    """
    notes: list[str] = []
    highest = data.max()
    filled = data == highest
    if highest > 0 and filled.mean() >= FILLED and 2 * _corner_level(filled) > 1:
        rest = data[~filled]
        if rest.size and 0 < 2 * rest.max() < highest:
            data = np.where(filled, np.float32(0), data)
            notes.append(f"{filled.mean():.0%} of the voxels, outside the head, are {highest:g}: set to 0.")
    data, replaced = _replace_outliers(path, data)
    notes += replaced
    lowest = float(data.min())
    if lowest >= 0:
        _refuse_inverted(path, data)
        data, offset = _subtract_offset(data)
        return data, notes + offset
    bright = float(np.percentile(data, 99.5))
    air = _corner_level(data)
    if lowest in _corner_levels(data) and np.mean(data == lowest) >= FILLED:
        air = lowest  # it fills some corners only
    if air < -AIR_BELOW_ZERO * (bright - air):
        bulk = data <= air + 0.01 * abs(air)
        rest = data[~bulk]
        if bright > 0 and np.mean(rest < 0) <= TISSUE_BELOW_ZERO:
            data = np.maximum(data, np.float32(0))
            notes.append(
                f"{bulk.mean():.0%} of the voxels are {air:g}, far below 0, as air in CT: negative "
                "intensities were set to 0."
            )
        elif _corner_level(data) == air or bright <= 0:
            data = data - np.float32(air)
            bright -= air
            notes.append(
                f"Air is at {air:g} instead of 0: {-air:g} was added to all voxels, also in the outputs."
            )
    if np.percentile(data, 0.5) < -SIGNED * bright:
        raise InputError(
            path,
            found=f"intensities from {data.min():g} to {data.max():g}, below 0 as far as above",
            expected="magnitudes (>= 0), air dark and white matter bright",
            next_step="Give the magnitude image. Check whether the contrast is inverted, or the conversion "
            "read unsigned numbers as signed ones.",
        )
    return data, notes


def _replace_outliers(path: str | os.PathLike, data: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Replace single outliers by the median of their neighbours."""
    dark, bright = (float(level) for level in np.percentile(data, (0.5, 99.5)))
    least, most = dark - OUTLIER_BELOW * (bright - dark), bright + OUTLIER_ABOVE * (bright - dark)
    if bright == dark or (data.min() >= least and data.max() <= most):
        return data, []
    outliers = (data < least) | (data > most)
    places = np.argwhere(outliers)
    first = tuple(int(i) for i in places[0])
    found = (
        f"{len(places)} voxel{'s' * (len(places) > 1)} far beyond all others "
        f"(first: {data[first]:g} at {first}, counted from 0)"
    )
    if len(places) > max(1, OUTLIER_SHARE * data.size):
        raise InputError(
            path,
            found=found,
            expected=f"intensities from {least:.4g} to {most:.4g}, as in the rest of the volume",
            next_step="Convert or copy the image again: it is damaged.",
        )
    mended = data.copy()
    for place in places:
        around = tuple(slice(max(i - 1, 0), i + 2) for i in place)
        good = data[around][~outliers[around]]
        mended[tuple(place)] = np.median(good) if good.size else dark
    return mended, [f"{found}: set to the median of their neighbours. Check the scan there."]


def _refuse_inverted(path: str | os.PathLike, data: np.ndarray) -> None:
    """Refuse an image whose air is brighter than the head."""
    dark, bright = (float(level) for level in np.percentile(data, (0.5, 99.5)))
    air = min(_corner_levels(data))
    if air > bright - INVERTED * (bright - dark):
        raise InputError(
            path,
            found=f"air of intensity {air:.4g} in all corners, brighter than the head (from {dark:.4g} on)",
            expected="dark air: the contrast of this image is inverted",
            next_step="Give the image as the scanner made it.",
        )


def _subtract_offset(data: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Subtract an offset of air above 0. The noise floor stays."""
    corners = [corner - np.median(corner) for corner in _corners(data)]
    air, bright = _corner_level(data), float(np.percentile(data, 99.5))
    sigma = float(np.median([np.median(np.abs(corner)) for corner in corners])) / RAYLEIGH_MAD
    spread = RAYLEIGH_STD * sigma
    if air <= max(AIR_ABOVE_ZERO * (bright - air), AIR_IN_SPREADS * spread):
        return data, []
    if np.mean(data < air - 4 * sigma) > OUTLIER_SHARE:  # something is darker: the corners are not air
        return data, []
    offset = np.float32(air - RAYLEIGH_MEDIAN * sigma)
    return np.maximum(data - offset, np.float32(0)), [
        f"Air is at {air:g} instead of near 0, with noise of only {spread:.3g}: {offset:g} was subtracted "
        "from all voxels, also in the outputs."
    ]


def empty_slices(data: np.ndarray, axis: int) -> list[int]:
    """Return the indices of lost slices: all voxels have one value, and a neighbouring slice shows the head.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Intensities.
    axis
        Slice axis.
    """
    rows = np.moveaxis(data, axis, 0).reshape(data.shape[axis], -1)
    there = np.flatnonzero(rows.min(axis=1) != rows.max(axis=1))
    if not there.size:
        return []
    first, last = int(there[0]), int(there[-1])
    if there.size < len(rows):
        tissue = TISSUE * np.percentile(rows, 99)
        first = 0 if _shows_head(rows[first], rows[0, 0], tissue) else first
        last = len(rows) - 1 if _shows_head(rows[last], rows[-1, 0], tissue) else last
    return sorted(set(range(first, last + 1)) - set(there.tolist()))


def _shows_head(values: np.ndarray, empty: float, tissue: float) -> bool:
    """Return whether a slice shows the head in noise. Beside erased air, empty slices are usual."""
    return bool(np.mean(values > tissue) > LOST_AT_END and np.mean(values == empty) < LEAST_ERASED)


def interpolate_slices(data: np.ndarray, axis: int, missing: list[int]) -> np.ndarray:
    """Interpolate missing slices linearly. Returns the same array if none is missing."""
    if not missing:
        return data
    slices = np.moveaxis(data.copy(), axis, 0)
    there = [i for i in range(len(slices)) if i not in missing]
    for i in missing:
        below = max((j for j in there if j < i), default=None)
        above = min((j for j in there if j > i), default=None)
        if below is None or above is None:
            slices[i] = slices[above if below is None else below]
        else:
            weight = np.float32((i - below) / (above - below))
            slices[i] = (1 - weight) * slices[below] + weight * slices[above]
    return np.moveaxis(slices, 0, axis)


def _corner_level(data: np.ndarray) -> float:
    """Median intensity of the corners of a volume, which are air in a scan of a head."""
    return float(np.median(_corner_levels(data)))


def _corner_levels(data: np.ndarray) -> list[float]:
    """Median of each of the eight corners of a volume."""
    return [float(np.median(corner)) for corner in _corners(data)]


def _corners(data: np.ndarray) -> list[np.ndarray]:
    """Voxels of each of the eight corners of a volume."""
    ends = [(slice(0, max(n // 10, 1)), slice(n - max(n // 10, 1), n)) for n in data.shape]
    return [data[x, y, z].ravel() for x in ends[0] for y in ends[1] for z in ends[2]]
