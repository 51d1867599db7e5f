"""Intensities as scans come with them: air that is not at 0, wild voxels, and slices without any."""

from __future__ import annotations

import os

import numpy as np

from iqtflow.utils.errors import InputError

#: Air that is further below 0 than this share of the range up to the bright tissue is no noise.
AIR_BELOW_ZERO = 0.02
#: A value in more than this share of the voxels is what a program filled a volume up with.
FILLED = 0.01
#: Above this share of the other voxels between air and 0, tissue is below 0, too: air is no filling.
TISSUE_BELOW_ZERO = 0.25
#: Air whose mean is this many times its spread (standard deviation) was moved away from 0 by an offset. Noise
#: of one magnitude coil has 1.9; of the sum of squares of n coils about 2 sqrt(n), 16 for 64 of them
AIR_IN_SPREADS = 17.0
#: (and is above 0 by this share of the range up to the bright tissue, so that it matters).
AIR_ABOVE_ZERO = 0.05
#: Median, median absolute deviation and standard deviation of Rayleigh noise whose two components have 1.
RAYLEIGH_MEDIAN, RAYLEIGH_MAD, RAYLEIGH_STD = 1.177, 0.448, 0.655
#: In an inverted image, air is within this share of the range from its brightest voxels.
INVERTED = 0.2
#: No tissue, fat or vessel is further above the bright tissue than so many times the range from air to it ...
WILD_ABOVE = 10.0
#: ... and no undershoot of a filter is further below air.
WILD_BELOW = 2.0
#: Wild voxels in more than this share of the volume are damage, and no single errors.
WILD_SHARE = 1e-4
#: A magnitude image has nothing as far below 0 as this share of its bright tissue.
SIGNED = 0.5
#: A slice at the end of a volume was lost if more than this share of its neighbour is tissue ...
LOST_AT_END = 0.1
#: (in an image whose air has noise: of less than this share of a slice is 0) ...
LEAST_ERASED = 0.3
#: ... which is brighter than this share of the brightest voxels (their 99th percentile).
TISSUE = 0.15


def settle_intensities(path: str | os.PathLike, data: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Bring air to 0, where magnitude images have it.

    Parameters
    ----------
    path
        The file, for messages.
    data : ndarray of float32, shape (w, h, d)
        Intensities, finite, not all the same; left as they are.

    Returns
    -------
    data : ndarray, shape (w, h, d)
        A number far below 0 that fills the volume up (-1024, as in CT) is replaced by 0, and so is one far
        above everything else (65535, from unsigned numbers); an offset that moved air below 0 is added back.
        The same array where there is nothing to mend.
    notes : list of str
        What was done.

    Raises
    ------
    InputError
        Values reach as far below 0 as above, so that these are no magnitudes; air is brighter than the head;
        or too many voxels are far beyond all others.
    """
    notes: list[str] = []
    highest = data.max()
    filled = data == highest
    if highest > 0 and filled.mean() >= FILLED and 2 * _corner_level(filled) > 1:
        rest = data[~filled]
        if rest.size and 0 < 2 * rest.max() < highest:
            data = np.where(filled, np.float32(0), data)
            notes.append(
                f"{filled.mean():.0%} of the voxels, outside of the head, are {highest:g}: set to 0."
            )
    data, wild = _replace_wild(path, data)
    notes += wild
    lowest = float(data.min())
    if lowest >= 0:
        _refuse_inverted(path, data)
        data, offset = _take_off_pedestal(data)
        return data, notes + offset
    bright = float(np.percentile(data, 99.5))
    air = _corner_level(data)
    if lowest in _corner_levels(data) and np.mean(data == lowest) >= FILLED:
        air = lowest  # fills some corners only
    if air < -AIR_BELOW_ZERO * (bright - air):
        bulk = data <= air + 0.01 * abs(air)
        rest = data[~bulk]
        if bright > 0 and np.mean(rest < 0) <= TISSUE_BELOW_ZERO:
            data = np.maximum(data, np.float32(0))
            notes.append(
                f"{bulk.mean():.0%} of the voxels are {air:g}, far below 0, as air in CT: what is below 0 "
                "was set to 0."
            )
        elif _corner_level(data) == air or bright <= 0:
            data = data - np.float32(air)
            bright -= air
            notes.append(
                f"Air is at {air:g} instead of 0: {-air:g} was added to all voxels, and intensities of "
                "outputs are larger by as much."
            )
    if np.percentile(data, 0.5) < -SIGNED * bright:
        raise InputError(
            path,
            found=f"intensities from {data.min():g} to {data.max():g}, below 0 as far as above",
            expected="magnitudes (>= 0), air dark and white matter bright",
            next_step="Check whether the conversion took unsigned numbers for signed ones, or the contrast "
            "is inverted; give the magnitude image.",
        )
    return data, notes


def _replace_wild(path: str | os.PathLike, data: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Give single voxels that are far beyond all others the median of their neighbours."""
    dark, bright = (float(level) for level in np.percentile(data, (0.5, 99.5)))
    least, most = dark - WILD_BELOW * (bright - dark), bright + WILD_ABOVE * (bright - dark)
    if bright == dark or (data.min() >= least and data.max() <= most):
        return data, []
    wild = (data < least) | (data > most)
    places = np.argwhere(wild)
    first = tuple(int(i) for i in places[0])
    found = (
        f"{len(places)} voxel{'s' * (len(places) > 1)} far beyond all others "
        f"(first: {data[first]:g} at {first}, counted from 0)"
    )
    if len(places) > max(1, WILD_SHARE * data.size):
        raise InputError(
            path,
            found=found,
            expected=f"intensities from {least:.4g} to {most:.4g}, as in the rest of the volume",
            next_step="Convert or copy the image again: voxels were damaged on the way.",
        )
    mended = data.copy()
    for place in places:
        around = tuple(slice(max(i - 1, 0), i + 2) for i in place)
        good = data[around][~wild[around]]
        mended[tuple(place)] = np.median(good) if good.size else dark
    return mended, [f"{found}: set to the median of the voxels around. Check the scan there."]


def _refuse_inverted(path: str | os.PathLike, data: np.ndarray) -> None:
    """Make sure that air is not the brightest part of an image."""
    dark, bright = (float(level) for level in np.percentile(data, (0.5, 99.5)))
    air = min(_corner_levels(data))
    if air > bright - INVERTED * (bright - dark):
        raise InputError(
            path,
            found=f"air of intensity {air:.4g} in all corners, brighter than the head (from {dark:.4g} on)",
            expected="dark air: the contrast of this image is inverted",
            next_step="Give the image as the scanner made it.",
        )


def _take_off_pedestal(data: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Subtract an offset that moved air above 0; the floor of the noise stays."""
    corners = [corner - np.median(corner) for corner in _corners(data)]
    air, bright = _corner_level(data), float(np.percentile(data, 99.5))
    sigma = float(np.median([np.median(np.abs(corner)) for corner in corners])) / RAYLEIGH_MAD
    spread = RAYLEIGH_STD * sigma
    if air <= max(AIR_ABOVE_ZERO * (bright - air), AIR_IN_SPREADS * spread):
        return data, []
    if np.mean(data < air - 4 * sigma) > WILD_SHARE:  # something is darker: the corners show tissue
        return data, []
    offset = np.float32(air - RAYLEIGH_MEDIAN * sigma)
    return np.maximum(data - offset, np.float32(0)), [
        f"Air is at {air:g} instead of near 0, with noise of {spread:.3g} only: {offset:g} was taken off "
        "all voxels, and intensities of outputs are smaller by as much."
    ]


def empty_slices(data: np.ndarray, axis: int) -> list[int]:
    """Indices of slices that were lost: all of one value, between others or beside one that shows the head.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Intensities.
    axis
        Along which slices are stacked.
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
    """Tell whether a slice shows a good part of the head in noise; beside erased air empty ones are usual."""
    return bool(np.mean(values > tissue) > LOST_AT_END and np.mean(values == empty) < LEAST_ERASED)


def bridge_slices(data: np.ndarray, axis: int, missing: list[int]) -> np.ndarray:
    """Fill missing slices from their neighbours, linearly; the same array where none is missing."""
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
    """Intensity of the corners of a volume, which are air in a scan of a head."""
    return float(np.median(_corner_levels(data)))


def _corner_levels(data: np.ndarray) -> list[float]:
    """Median of each of the eight corners of a volume."""
    return [float(np.median(corner)) for corner in _corners(data)]


def _corners(data: np.ndarray) -> list[np.ndarray]:
    """Voxels of each of the eight corners of a volume."""
    ends = [(slice(0, max(n // 10, 1)), slice(n - max(n // 10, 1), n)) for n in data.shape]
    return [data[x, y, z].ravel() for x in ends[0] for y in ends[1] for z in ends[2]]
