"""Whether an enhanced volume agrees with the slices that were acquired, and where it does not.

The enhanced volume is put through the forward model of the scan (`iqtflow.inference.forward`) and compared
with the scan. A network makes small errors everywhere, most at the borders of tissues. So the difference is
divided by what is usual at such a place, not only by the noise. Filters of several sizes then look for
differences of the size of small lesions.

A structure that lies in a gap between two slices is in no slice. No comparison can find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, optimize

from iqtflow.image.geometry import bounding_box, thin_box
from iqtflow.inference.forward import ForwardModel, average_slices, bin_plane, blur, fit_forward_model
from iqtflow.simulation.noise_estimation import noise_from_differences
from iqtflow.simulation.slice_profile import FWHM_TO_SIGMA

#: Kinds of places: in the scan and not in the estimate, and the reverse.
MISSING, UNSUPPORTED = "missing", "unsupported"
#: Score from which a place is listed: about one place in a scan without inserted structures (6 in 6 simulated
#: scans of unseen people, shipped iqt-k4).
THRESHOLD = 9.0
LEAST_CONTRAST = 0.08  #: smallest contrast of a place; networks change fainter differences everywhere
MOST_PLACES = 20  #: with more, those with the highest scores are listed
SCALES_MM = (1.3, 2.0, 3.0, 4.5)  #: standard deviations of the filters: spheres of about 0.03 to 1 ml
PLANE_MM = 1.6  #: pixel size on which the filters run; smaller pixels are averaged
SURROUNDINGS_MM = 8.0  #: standard deviation of the average that is subtracted before
KINDS_OF_PLACE = 8  #: classes of voxels by the usual size of the difference
EDGE_MM = 2.0  #: distance over which the border of the brain makes the difference larger
MARGIN = 2  #: voxels around the brain that are kept
SLICE_AXIS = 2


@dataclass(frozen=True)
class Place:
    """A place at which scan and enhanced volume differ more than is usual.

    Attributes
    ----------
    kind
        `MISSING` or `UNSUPPORTED`.
    position
        Voxel of the scan (fractions allowed), slices last.
    volume_ml
        Volume in which the difference is at least half of its largest value.
    slices
        First and last slice of this volume, counted from 0.
    contrast
        (Scan - expected scan) / expected scan around it: above 0 where the scan is brighter.
    score
        Difference in standard deviations of what is usual at such a place.
    """

    kind: str
    position: tuple[float, float, float]
    volume_ml: float
    slices: tuple[int, int]
    contrast: float
    score: float


@dataclass(frozen=True)
class Audit:
    """Comparison of an enhanced volume with its scan.

    Attributes
    ----------
    residual : ndarray, shape (w, h, d), float32
        Scan minus expected scan, in standard deviations of the noise; 0 outside of the brain.
    residual_rms
        Its root mean square in the brain.
    noise
        Standard deviation of the noise, in the scan's units.
    places
        Highest score first.
    model
        The fitted forward model of the box `box` around the brain.
    box
        Slices of the scan's axes.
    """

    residual: np.ndarray
    residual_rms: float
    noise: float
    places: tuple[Place, ...]
    model: ForwardModel
    box: tuple[slice, ...]


def audit_estimate(
    scan: np.ndarray,
    estimate: np.ndarray,
    mask: np.ndarray,
    *,
    voxel_mm: Sequence[float],
    thickness_mm: float,
    predicted_error: np.ndarray | None = None,
    threshold: float = THRESHOLD,
    most: int = MOST_PLACES,
) -> Audit:
    """Compare an enhanced volume with its scan.

    Parameters
    ----------
    scan : ndarray, shape (w, h, d)
        Thick-slice scan, slices last.
    estimate : ndarray, shape (w, h, k d)
        Enhanced volume, in any contrast that rises with that of the scan.
    mask : ndarray of bool, shape (w, h, d)
        Brain.
    voxel_mm
        Voxel size of the scan, in mm.
    thickness_mm
        Slice thickness, in mm.
    predicted_error : ndarray, shape (w, h, k d), optional
        Standard deviation of the error that the network predicts. It says where differences are usual.
    threshold
        Smallest score of a place.
    most
        Largest number of places.

    Returns
    -------
    Audit

    Raises
    ------
    InputError
        The mask is empty.
    """
    box = bounding_box(mask, MARGIN)
    thin = thin_box(box, estimate.shape[2] // scan.shape[2])
    given, inside = np.asarray(scan[box], np.float32), mask[box]
    fine = np.ascontiguousarray(estimate[thin], np.float32)
    model = fit_forward_model(given, fine, inside, voxel_mm=voxel_mm, thickness_mm=thickness_mm)
    expected = model.predict(fine)
    difference = np.where(inside, given - expected, np.float32(0))
    noise = _noise(given, expected, inside)
    error = None if predicted_error is None else average_slices(predicted_error[thin], model.matrix)
    residual = np.zeros(scan.shape, np.float32)
    residual[box] = difference / noise
    rms = float(np.sqrt(np.mean(residual[box][inside] ** 2, dtype=float)))
    search = _Search(given, expected, difference, inside, error, voxel_mm, thickness_mm, noise)
    places = tuple(_shifted(place, box) for place in search.places(threshold, most))
    return Audit(residual, rms, noise, places, model, box)


def unchecked_share(spacing_mm: float, thickness_mm: float | None) -> float | None:
    """Return the share of the enhanced volume that lies in gaps between slices; None if not known.

    Parameters
    ----------
    spacing_mm
        Distance between the centres of slices.
    thickness_mm
        Slice thickness; None if it is not stated.
    """
    return None if thickness_mm is None else max(1 - thickness_mm / spacing_mm, 0.0)


class _Search:
    """Search for places, on averaged pixels.

    Attributes
    ----------
    difference, usual : ndarray
        Scan minus expected scan, and its usual size at each voxel, both in the scan's units.
    """

    def __init__(self, scan, expected, difference, mask, error, voxel_mm, thickness_mm, noise) -> None:
        factors = [max(round(PLANE_MM / size), 1) for size in voxel_mm[:2]]
        self.factors = (*factors, 1)
        self.voxel_mm = np.multiply(voxel_mm, self.factors)
        self.thickness_mm = thickness_mm
        self.weight = bin_plane(mask.astype(np.float32), factors)  # voxels of the scan in each averaged one
        self.mask = self.weight >= np.prod(factors) / 2
        count = np.maximum(self.weight, 1)

        def averaged(volume: np.ndarray) -> np.ndarray:
            return bin_plane(np.where(mask, volume, np.float32(0)), factors) / count

        self.scan, self.expected, self.difference = map(averaged, (scan, expected, difference))
        error = None if error is None else averaged(error)
        self.usual = self._usual(error, noise / np.sqrt(np.prod(factors)))

    def places(self, threshold: float, most: int) -> list[Place]:
        """Return the places with a score from a threshold on, highest first."""
        scores = self.scores()
        largest = np.abs(scores).max(axis=0)
        # Only the highest score within the radius of the smallest filter is a peak.
        size = [2 * max(round(SCALES_MM[0] / edge), 1) + 1 for edge in self.voxel_mm]
        peaks = np.argwhere((largest == ndimage.maximum_filter(largest, size)) & (largest >= threshold))
        found: list[Place] = []
        taken = np.zeros(largest.shape, bool)
        for peak in sorted(map(tuple, peaks), key=lambda p: -largest[p]):
            if taken[peak] or len(found) == most:
                continue
            scale = int(np.argmax(np.abs(scores[(slice(None), *peak)])))
            region = self._region(scores[scale], peak)
            taken |= ndimage.binary_dilation(region, iterations=2)
            place = self._describe(region, peak, float(largest[peak]))
            if abs(place.contrast) >= LEAST_CONTRAST:
                found.append(place)
        return found

    def scores(self) -> np.ndarray:
        """Return the difference at each scale, shape (scales, w, h, d), in standard deviations of what is
        usual; above 0 where the scan is brighter.

        Each filter is a Gaussian, wider along the slice axis by the slice profile. Differences are weighted
        by the inverse of their usual variance (a matched filter for white noise of this variance). They are
        not white; so they are divided by their spread (median absolute deviation) over places of the same
        kind.
        """
        weight = np.where(self.mask, self.usual**-2, np.float32(0))
        wide = SURROUNDINGS_MM / self.voxel_mm
        around = blur(weight * self.difference, wide) / np.maximum(blur(weight, wide), 1e-12)
        local = np.where(self.mask, self.difference - around, np.float32(0))
        inside = self.mask.astype(np.float32)
        scores = np.zeros((len(SCALES_MM), *local.shape), np.float32)
        for scale, score in zip(SCALES_MM, scores, strict=True):
            sigmas = self._sigmas(scale)
            value = blur(weight * local, sigmas)[self.mask]
            value /= np.sqrt(blur(weight, sigmas / np.sqrt(2))[self.mask]) + 1e-12
            usual = (blur(weight, sigmas) / np.maximum(blur(inside, sigmas), 1e-3))[self.mask]
            kinds = np.digitize(usual, np.quantile(usual, np.arange(1, KINDS_OF_PLACE) / KINDS_OF_PLACE))
            for kind in range(KINDS_OF_PLACE):
                same = kinds == kind
                if same.any():
                    value[same] /= max(1.4826 * float(np.median(np.abs(value[same]))), 1e-12)
            score[self.mask] = value
        return scores

    def _sigmas(self, scale_mm: float) -> np.ndarray:
        along = np.hypot(scale_mm, self.thickness_mm * FWHM_TO_SIGMA)
        return np.array([scale_mm, scale_mm, along]) / self.voxel_mm

    def _usual(self, error: np.ndarray | None, noise: float) -> np.ndarray:
        """Fit the usual size of the difference: a sum of noise, edges in the plane, distance from the border
        of the brain, and the predicted error, each with a factor >= 0.
        """
        mask = self.mask
        rows, columns = np.gradient(blur(self.expected, (0.7, 0.7, 0)), axis=(0, 1))
        depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=self.voxel_mm)[1:-1, 1:-1, 1:-1]
        parts = [np.ones(mask.shape, np.float32), np.hypot(rows, columns), np.exp(-depth / EDGE_MM)]
        parts += [error] if error is not None else []
        design = np.stack([part[mask] for part in parts], axis=1).astype(float)
        design /= np.maximum(design.mean(axis=0), 1e-12)
        size = np.abs(self.difference[mask]).astype(float) / np.sqrt(2 / np.pi)  # mean of |normal variable|
        size = np.minimum(size, np.percentile(size, 99.5))
        factors, _ = optimize.nnls(design, size)
        usual = np.full(mask.shape, np.float32(1))
        usual[mask] = np.maximum(design @ factors, max(noise, 1e-3 * float(size.mean()), 1e-12))
        return usual

    def _region(self, score: np.ndarray, peak: tuple[int, ...]) -> np.ndarray:
        """Return the connected voxels around a peak with at least half of its score."""
        labels, _ = ndimage.label(score / score[peak] >= 0.5)
        return labels == labels[peak]

    def _describe(self, region: np.ndarray, peak: tuple[int, ...], score: float) -> Place:
        shell = ndimage.binary_dilation(region, iterations=3) & ~region & self.mask
        shell = shell if shell.any() else self.mask

        def stands_out(volume: np.ndarray) -> float:
            return float(volume[region].mean() - volume[shell].mean())

        seen, told = stands_out(self.scan), stands_out(self.expected)
        around = max(float(self.expected[shell].mean()), 1e-12)
        levels = np.flatnonzero(region.any(axis=(0, 1)))
        place = [f * (p + 0.5) - 0.5 for f, p in zip(self.factors, peak, strict=True)]
        return Place(
            MISSING if abs(seen) >= abs(told) else UNSUPPORTED,
            (place[0], place[1], place[2]),
            float(np.count_nonzero(region) * np.prod(self.voxel_mm) / 1000),
            (int(levels[0]), int(levels[-1])),
            float(self.difference[region].mean()) / around,
            score,
        )


def _noise(scan: np.ndarray, expected: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of the noise, from the scan where the enhanced volume is bright and even."""
    rows, columns = np.gradient(blur(expected, (1, 1, 0)), axis=(0, 1))
    edges = np.hypot(rows, columns)
    bright = mask & (expected > np.percentile(expected[mask], 40))
    even = bright & (edges < np.median(edges[bright])) if bright.any() else bright
    for region in (even, mask):
        found = noise_from_differences(scan, region, axis=SLICE_AXIS)
        if found:
            return found
    return max(1e-3 * float(np.abs(scan[mask]).mean()), 1e-12)  # a scan without noise


def _shifted(place: Place, box: tuple[slice, ...]) -> Place:
    """Return a place in the voxels of the whole scan."""
    first = [part.start for part in box]
    moved = [p + f for p, f in zip(place.position, first, strict=True)]
    low, high = (s + first[SLICE_AXIS] for s in place.slices)
    return Place(
        place.kind, (moved[0], moved[1], moved[2]), place.volume_ml, (low, high), place.contrast, place.score
    )
