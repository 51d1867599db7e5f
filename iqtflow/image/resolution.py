"""Effective resolution of a volume along each axis: was it interpolated from slices that are further apart?

A scanner or a registration can store slices of 5 mm on a grid of 1 mm. The header then shows 1 mm, and only
the voxels tell.

Along an axis, a line through the brain has a power spectrum. That of tissue falls smoothly, in all directions
alike; noise adds a floor. Interpolation between slices of spacing S removes nearly all power above 1 / (2 S).
The first frequency above which the power stays far below that of tissue and of the other axes gives the
resolution. The spectrum of tissue is that of a random medium of two phases with an exponential correlation
(Debye, Anderson and Brumberger 1957, doi:10.1063/1.1722830, eq. 12), whose length was fitted to high-field
brains.

Most kinds of interpolation also leave a pattern that repeats from slice to slice: the second difference is
largest at the slices themselves (Gallagher 2005, doi:10.1109/CRV.2005.33, section 3). It gives the spacing to
within a few percent, and the places of the slices.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from iqtflow.image.geometry import AXIS_NAMES, NEAR_ISOTROPIC_RATIO

#: Length in the spectrum of tissue, (f^2 + TISSUE^2)^-2, in cycles / mm. Median of 10 high-field brains.
TISSUE = 0.06
#: Frequencies that every scan has, in cycles / mm: there the spectra of all axes are made equal.
COMMON = (0.02, 0.045)
#: The resolution ends where the power is this many dB below that of tissue and of the other axes ...
DROP_DB = -8.0
#: ... and stays so, on average, up to this multiple of the frequency.
LASTS = 1.5
STEP = 0.004  #: between frequencies, in cycles / mm
LINE_MM = 96.0  #: length of the lines: through most of the brain, in it
BUNDLE_MM = 72.0  #: width of the bundle of lines, in the middle of the head
ACROSS_FWHM_MM = 4.0  #: averaged across a line, so that a small rotation does not mix the axes
#: Below this length or number of voxels, nothing can be said about an axis.
SHORTEST_MM, FEWEST_VOXELS = 40.0, 16
BRAIN_HEIGHT_MM = 140.0  #: below the top of the head; lower are neck and shoulders
#: Share of the second difference's variation that repeats, from which on a spacing counts as found: .4 to 1
#: in interpolated scans, up to .28 in scans as acquired.
LEAST_REPEATED = 0.4
#: A repeated pattern is searched at these multiples of the resolution that the spectrum gives.
SEARCH = (0.75, 2.2)
#: If more neighbouring slices than this share are the same, slices were repeated (nearest neighbour).
REPEATED_SLICES = 0.3
#: Slices of a coarser resolution are thick ones. Three-dimensional sequences, with a part of the data left
#: out along one axis, are up to 2.8 mm (docs/results/interpolated.md).
THICK_MM = 3.0
#: With a repeated pattern, this is enough.
THICK_IF_FOUND_MM = 2.0


@dataclass(frozen=True)
class Resolution:
    """Effective resolution of a volume.

    Attributes
    ----------
    mm
        For each array axis: the spacing of slices that hold as much detail, in mm; the voxel size if nothing
        is missing; None if it cannot be measured. From the spectrum alone (not `found`) it is up to a fifth
        too small; after linear interpolation, up to two fifths.
    voxel_mm
        Voxel size along each axis.
    found
        For each axis: whether slices of that spacing were found, as a repeated pattern.
    """

    mm: tuple[float | None, float | None, float | None]
    voxel_mm: tuple[float, float, float]
    found: tuple[bool, bool, bool] = (False, False, False)

    @property
    def coarse_axis(self) -> int | None:
        """Axis along which the volume was interpolated from thick slices; None if there is none."""
        known = [axis for axis in range(3) if self.mm[axis] is not None]
        if len(known) < 3:
            return None
        values = np.array(self.mm, dtype=float)
        axis = int(np.argmax(values))
        others = float(np.sqrt(np.prod(np.delete(values, axis))))
        least = max(
            NEAR_ISOTROPIC_RATIO * others,
            NEAR_ISOTROPIC_RATIO * self.voxel_mm[axis],
            THICK_IF_FOUND_MM if self.found[axis] else THICK_MM,
        )
        return axis if values[axis] >= least else None

    def words(self) -> str:
        """Return the three numbers as text."""
        told = ["not measurable" if mm is None else f"{mm:.3g} mm" for mm in self.mm]
        return ", ".join(f"{text} along {axis}" for text, axis in zip(told, AXIS_NAMES, strict=True))

    def as_sidecar(self) -> dict[str, float | None]:
        """Return the field ``EffectiveResolutionMm``: mm for each axis, null if not measurable."""
        return {
            axis: None if mm is None else round(mm, 2) for axis, mm in zip(AXIS_NAMES, self.mm, strict=True)
        }


def measure_resolution(data: np.ndarray, affine: np.ndarray) -> Resolution:
    """Measure the effective resolution of a head or brain along each array axis.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Intensities, any unit, finite. No brain mask is needed.
    affine : ndarray, shape (4, 4)
        Voxel indices to world mm, any orientation.

    Returns
    -------
    Resolution
    """
    voxel_mm = voxel_sizes(affine)
    inside = _foreground(data)
    box = _brain_box(inside, affine)
    data, inside = np.asarray(data[box], dtype=np.float32), inside[box]
    told: dict[str, Any] = {"voxel_mm": tuple(float(v) for v in voxel_mm)}
    measurable = [
        n >= FEWEST_VOXELS and n * v >= SHORTEST_MM for n, v in zip(data.shape, voxel_mm, strict=True)
    ]
    if not inside.any() or not any(measurable):
        return Resolution((None, None, None), **told)
    bundles = [_bundle(data.shape, axis, voxel_mm) for axis in range(3)]
    repeated = [
        _repeated(data[bundles[axis]], axis, voxel_mm[axis]) if measurable[axis] else None
        for axis in range(3)
    ]
    frequencies = np.arange(COMMON[0], 0.5 / voxel_mm.min(), STEP)
    # Repeated slices have images of the low frequencies in the high ones: no reference for other axes.
    levels = np.full((3, len(frequencies)), np.nan)
    for axis in range(3):
        if measurable[axis] and repeated[axis] is None:
            lines = bundles[axis]
            levels[axis] = _over_tissue(data[lines], inside[lines], axis, voxel_mm, frequencies)
    mm: list[float | None] = []
    found = []
    for axis in range(3):
        value, sure = repeated[axis], repeated[axis] is not None
        if value is None and np.isfinite(levels[axis]).any():
            value = _cut_off_mm(levels, axis, frequencies, voxel_mm[axis])
            if value > voxel_mm[axis]:
                spacing, share = _best_spacing(_roughness(data[bundles[axis]], axis), voxel_mm[axis], value)
                sure = share >= LEAST_REPEATED
                value = spacing if sure else value
        mm.append(None if value is None else float(value))
        found.append(sure)
    return Resolution(tuple(mm), found=tuple(found), **told)  # type: ignore[arg-type]


def find_slices(data: np.ndarray, affine: np.ndarray, axis: int, spacing_mm: float) -> tuple[float, str]:
    """Find where the slices are from which a volume was interpolated.

    Parameters
    ----------
    data, affine
        As for `measure_resolution`.
    axis
        Array axis of the slices.
    spacing_mm
        Their spacing, larger than twice the voxel size for a sure result.

    Returns
    -------
    first : float
        Index, along `axis`, of a slice: at least 0, less than ``spacing_mm`` / voxel size. Centred in the
        volume if it cannot be found.
    how : str
        "repeated slices", "second difference" or "centred".
    """
    voxel_mm = voxel_sizes(affine)
    size, n = float(voxel_mm[axis]), data.shape[axis]
    ratio = spacing_mm / size
    box = _brain_box(_foreground(data), affine)
    part, start = np.asarray(data[box], dtype=np.float32), box[axis].start
    part = part[_bundle(part.shape, axis, voxel_mm)]
    if part.shape[axis] >= FEWEST_VOXELS and part.shape[axis] >= 4 * ratio:
        changes = _changes(part, axis)
        if _repeated(part, axis, size) is not None:
            borders = np.flatnonzero(changes) + 0.5
            turn = np.exp(2j * np.pi * borders / ratio).mean()
            if abs(turn) > 0.5:
                return (start + np.angle(turn) * ratio / (2 * np.pi) + ratio / 2) % ratio, "repeated slices"
        wave, share = _repeats(_roughness(part, axis), size, spacing_mm)
        if share >= LEAST_REPEATED / 2:
            return (start - np.angle(wave) * ratio / (2 * np.pi)) % ratio, "second difference"
    count = max(int(n / ratio), 1)
    return ((n - 1) / 2 - ratio * (count - 1) / 2) % ratio, "centred"


def _foreground(data: np.ndarray) -> np.ndarray:
    """Separate head or brain from air, on every second voxel along the long axes."""
    steps = tuple(2 if n >= 64 else 1 for n in data.shape)
    small = ndimage.uniform_filter(
        np.asarray(data[tuple(slice(None, None, s) for s in steps)], np.float32), 3
    )
    mask = small > 0.15 * np.percentile(small, 99)
    labels, n_parts = ndimage.label(mask)
    if n_parts > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = labels == sizes.argmax()
    mask = ndimage.binary_fill_holes(mask)
    for axis, step in enumerate(steps):
        mask = np.repeat(mask, step, axis=axis)
    return mask[tuple(slice(n) for n in data.shape)]


def _brain_box(inside: np.ndarray, affine: np.ndarray) -> tuple[slice, ...]:
    """Return the box of the head, without what is far below its top."""
    voxel_mm, directions = voxel_sizes(affine), nib.io_orientation(affine)
    box = []
    for axis in range(3):
        there = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (int(there[0]), int(there[-1]) + 1) if there.size else (0, inside.shape[axis])
        if directions[axis, 0] == 2:
            most = max(int(BRAIN_HEIGHT_MM / voxel_mm[axis]), 1)
            first, last = (
                (max(first, last - most), last)
                if directions[axis, 1] > 0
                else (first, min(last, first + most))
            )
        box.append(slice(first, last))
    return tuple(box)


def _bundle(shape: tuple[int, ...], axis: int, voxel_mm: np.ndarray) -> tuple[slice, ...]:
    """Return the part of the box with the lines along an axis: all of its length, and the middle across."""
    widths = [n if a == axis else min(round(BUNDLE_MM / voxel_mm[a]), n) for a, n in enumerate(shape)]
    return tuple(
        slice((n - wide) // 2, (n - wide) // 2 + wide) for n, wide in zip(shape, widths, strict=True)
    )


def _over_tissue(
    data: np.ndarray, inside: np.ndarray, axis: int, voxel_mm: np.ndarray, frequencies: np.ndarray
) -> np.ndarray:
    """Return the power spectrum along an axis in dB above that of tissue; NaN above the grid's highest."""
    size = float(voxel_mm[axis])
    sigma = [0.0 if a == axis else ACROSS_FWHM_MM / np.sqrt(8 * np.log(2)) / voxel_mm[a] for a in range(3)]
    n = min(round(LINE_MM / size), data.shape[axis])
    first = (data.shape[axis] - n) // 2
    middle = tuple(slice(first, first + n) if a == axis else slice(None) for a in range(3))
    lines = np.moveaxis(ndimage.gaussian_filter(data[middle], sigma), axis, -1).reshape(-1, n)
    share = np.moveaxis(inside[middle], axis, -1).reshape(-1, n).mean(axis=1)
    lines = lines[share >= min(0.98, np.quantile(share, 0.9))]  # those inside the head all the way
    window = np.hanning(n + 2)[1:-1]
    lines = (lines - lines.mean(axis=1, keepdims=True)) * window
    power = np.mean(np.abs(np.fft.rfft(lines, axis=1)) ** 2, axis=0)
    at = np.fft.rfftfreq(n, size)
    tissue = (at**2 + TISSUE**2) ** -2
    common = (at >= COMMON[0]) & (at <= COMMON[1])
    if not common.any() or not power[common].all():
        return np.full(len(frequencies), np.nan)
    over = power / tissue / np.mean(power[common] / tissue[common])
    level = 10 * np.log10(np.maximum(np.interp(frequencies, at[1:], over[1:]), 1e-12))
    return np.where(frequencies <= at[-1], level, np.nan)


def _cut_off_mm(levels: np.ndarray, axis: int, frequencies: np.ndarray, size: float) -> float:
    """Return the resolution along an axis, from the spectra of all; the voxel size if nothing is missing."""
    others = np.delete(levels, axis, axis=0)
    reference = np.fmax.reduce([*others, np.zeros(len(frequencies))])
    below = levels[axis] - reference
    highest = 0.5 / size
    for i, frequency in enumerate(frequencies):
        if frequency >= 0.97 * highest:
            break
        lasting = (frequencies >= frequency) & (frequencies <= min(LASTS * frequency, highest))
        if below[i] < DROP_DB and np.nanmean(below[lasting]) < DROP_DB:
            return float(0.5 / frequency)
    return size


def _roughness(data: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean square of the second difference along an axis, for each index."""
    slices = np.moveaxis(data, axis, 0)
    inner = [
        float(np.mean((slices[i] - 0.5 * (slices[i - 1] + slices[i + 1])) ** 2))
        for i in range(1, len(slices) - 1)
    ]
    return np.array([inner[0], *inner, inner[-1]])


def _repeats(roughness: np.ndarray, size: float, spacing_mm: float) -> tuple[complex, float]:
    """Return amplitude and phase of the pattern that repeats at a spacing, and its share of the variation."""
    level = np.log(roughness + 1e-12 * roughness.max() + 1e-30)
    level = level - ndimage.gaussian_filter1d(level, 0.75 * spacing_mm / size, mode="nearest")
    window = np.hanning(len(level) + 2)[1:-1]
    turns = np.exp(-2j * np.pi * np.arange(len(level)) * size / spacing_mm)
    wave = 2 * complex(np.sum(window * level * turns)) / window.sum()
    variation = float(np.sum(window * level**2) / window.sum())
    return wave, abs(wave) ** 2 / 2 / variation if variation > 0 else 0.0


def _best_spacing(roughness: np.ndarray, size: float, about_mm: float) -> tuple[float, float]:
    """Return the spacing near `about_mm` at which the pattern repeats most, and its share."""
    spacings = np.arange(max(SEARCH[0] * about_mm, 1.4 * size), SEARCH[1] * about_mm, 0.01 * about_mm)
    if not spacings.size:
        return about_mm, 0.0
    waves = np.array([abs(_repeats(roughness, size, float(one))[0]) for one in spacings])
    # Linear interpolation has overtones as strong as its pattern: the longest spacing is that of the slices.
    peaks = [
        i
        for i in range(len(waves))
        if waves[i] >= 0.7 * waves.max() and waves[i] == waves[max(i - 3, 0) : i + 4].max()
    ]
    near: list[float] = (spacings[peaks[-1]] * np.linspace(0.985, 1.015, 31)).tolist()
    best = max(near, key=lambda spacing: abs(_repeats(roughness, size, spacing)[0]))
    return best, _repeats(roughness, size, best)[1]


def _changes(data: np.ndarray, axis: int) -> np.ndarray:
    """Return, for each pair of neighbouring slices, whether they differ."""
    slices = np.moveaxis(data, axis, 0)
    change = np.array([float(np.mean(np.abs(b - a))) for a, b in itertools.pairwise(slices)])
    return change > 1e-3 * change.max()


def _repeated(data: np.ndarray, axis: int, size: float) -> float | None:
    """Return the spacing of slices that were repeated (nearest-neighbour interpolation), else None."""
    changes = _changes(data, axis)
    if not changes.any() or changes.mean() > 1 - REPEATED_SLICES:
        return None
    borders = np.flatnonzero(changes)
    return float((borders[-1] - borders[0]) / max(len(borders) - 1, 1) * size) if len(borders) > 3 else None
