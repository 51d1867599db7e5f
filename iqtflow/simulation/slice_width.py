"""Slice thickness and in-plane blur of a scanner, measured from the detail in its scans.

**Thickness.** Slices that are thick for their spacing overlap, so neighbours are alike. The likeness ``rho``
is the correlation of neighbouring slices inside the brain: of their in-plane detail of up to 4 mm, without
noise. Along the slice axis, the power of this detail in a brain is ``S(f) = (f^2 + q^2)^-EXPONENT``. With a
Gaussian profile ``G`` of thickness t (FWHM), slices of spacing s have

    rho(t, s) = sum_f S(f) G(f; t)^2 cos(2 pi f s) / sum_f S(f) G(f; t)^2

``q`` was fitted to four skull-stripped and three whole high-field heads, for each axis of the body.

**In-plane blur.** A blur weakens detail below 3 mm more than detail from 3 to 6 mm. Their ratio is compared
with that of a brain with the power spectrum ``(f^2 + DETAIL_Q^2)^-DETAIL_EXPONENT``.

How well both work: docs/results/calibration.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from scipy import ndimage

from iqtflow.simulation.slice_profile import FWHM_TO_SIGMA

#: Power of brain detail along the slice axis: exponent, and q (cycles / mm) along left-right,
#: posterior-anterior and inferior-superior.
EXPONENT = 1.25
Q_OF_AXIS = (0.081, 0.0715, 0.101)
#: Detail for the likeness of slices: between these widths (FWHM). The in-plane blur is a part of the first.
FINE_MM, COARSE_MM = 2.5, 4.0
#: The first blur is at most this; with it, `Q_OF_AXIS` was fitted.
MOST_BLUR_MM = 2.0
#: Power of brain detail in the plane.
DETAIL_EXPONENT, DETAIL_Q = 1.75, 0.08
#: Widths (FWHM) that divide in-plane detail in two, and that of the average across the line.
DETAIL_MM, DETAIL_COARSE_MM, ACROSS_MM = 3.0, 6.0, 4.0
#: Voxels within this distance in the plane from the border of the brain are not used.
BORDER_MM = 6.0
#: With fewer pairs of slices, or of voxels in them, nothing is measured.
LEAST_PAIRS, LEAST_VOXELS = 6, 5000
#: With a larger share of noise in the variance, nothing is measured.
LARGEST_NOISE_SHARE = 0.8
#: Thickness / spacing that can be told from others.
FRACTIONS = (0.2, 1.6)
#: Largest in-plane FWHM, in mm, that can be told.
COARSEST_MM = 4.0


@dataclass(frozen=True)
class Widths:
    """Widths of a scan's details, as FWHM of a Gaussian.

    Attributes
    ----------
    thickness_mm
        Slice thickness; None: not measurable.
    inplane_mm
        Width in the plane, voxels included; mean of both axes. None: not measurable.
    notes
        Reasons for each None.
    """

    thickness_mm: float | None
    inplane_mm: float | None
    notes: tuple[str, ...] = ()


def measure_widths(
    data: np.ndarray, mask: np.ndarray, affine: np.ndarray, *, axis: int, sigma: float
) -> Widths:
    """Measure slice thickness and in-plane blur of a scan.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Thick-slice scan from the scanner, any unit. Neither interpolated along the slice axis nor filtered.
    mask : ndarray of bool, shape (w, h, d)
        Brain.
    affine : ndarray, shape (4, 4)
        Voxel indices to world mm.
    axis
        Slice axis.
    sigma
        Standard deviation of the noise, in the scan's units. The noise is white in the plane.

    Returns
    -------
    Widths
    """
    sizes = voxel_sizes(affine)
    edges = (float(np.delete(sizes, axis)[0]), float(np.delete(sizes, axis)[1]))
    spacing = float(sizes[axis])
    scan = np.moveaxis(np.asarray(data, np.float32), axis, -1)
    inside = _without_border(np.moveaxis(np.asarray(mask, bool), axis, -1), edges)
    if int(inside.sum()) < LEAST_VOXELS:
        note = "In-plane blur and slice thickness not measured: too few voxels inside the brain."
        return Widths(None, None, (note,))
    found = [_inplane_width(scan, inside, along, edges, sigma) for along in (0, 1)]
    # Correlated noise and sharpening look like detail: nothing is narrower than a voxel.
    known = [max(width, edge) for width, edge in zip(found, edges, strict=True) if width is not None]
    if len(known) < 2:
        why = "the noise hides the detail, or the plane is too coarse"
        return Widths(None, None, (f"In-plane blur and slice thickness not measured: {why}.",))
    inplane = float(np.mean(known))
    body_axis = int(io_orientation(affine)[axis, 0])
    thickness, why = _thickness(
        scan, inside, edges, spacing, sigma, (known[0], known[1]), Q_OF_AXIS[body_axis]
    )
    return Widths(thickness, inplane, (f"Slice thickness not measured: {why}.",) if why else ())


def likeness(thickness_mm: float, spacing_mm: float, q: float) -> float:
    """Expected correlation of neighbouring slices, ``rho(t, s)`` of this module, in a brain with this `q`."""
    f = np.arange(0, 1.2, 0.001)
    power = (f**2 + q**2) ** -EXPONENT * np.exp(-((2 * np.pi * thickness_mm * FWHM_TO_SIGMA * f) ** 2))
    power[0] /= 2
    return float((power * np.cos(2 * np.pi * f * spacing_mm)).sum() / power.sum())


def detail_ratio(width_mm: float) -> float:
    """Expected variance of detail below `DETAIL_MM` over that of coarser detail, for a FWHM in the plane."""
    f = np.arange(0.001, 1.5, 0.001)
    fine, coarse = (_transfer(f, width) for width in (DETAIL_MM, DETAIL_COARSE_MM))
    power = (f**2 + DETAIL_Q**2) ** -DETAIL_EXPONENT * _transfer(f, width_mm) ** 2
    return float((power * (1 - fine) ** 2).sum() / (power * (fine - coarse) ** 2).sum())


def _transfer(frequency: np.ndarray, fwhm_mm: float) -> np.ndarray:
    return np.exp(-2 * (np.pi * fwhm_mm * FWHM_TO_SIGMA * frequency) ** 2)


def _thickness(
    scan: np.ndarray,
    inside: np.ndarray,
    edges: tuple[float, float],
    spacing: float,
    sigma: float,
    inplane: tuple[float, float],
    q: float,
) -> tuple[float | None, str]:
    """Return the thickness in mm, or None and the reason."""
    first = [min(np.sqrt(max(FINE_MM**2 - width**2, 0)), MOST_BLUR_MM) for width in inplane]

    def detail(volume: np.ndarray) -> np.ndarray:
        fine = coarse = volume
        for along in (0, 1):
            fine = _blur(fine, along, first[along], edges[along])
            coarse = _blur(coarse, along, COARSE_MM, edges[along])
        return fine - coarse

    details = detail(scan)
    both = inside[..., 1:] & inside[..., :-1]
    below, above = details[..., :-1][both], details[..., 1:][both]
    n_pairs = int((both.sum(axis=(0, 1)) > 0).sum())
    if n_pairs < LEAST_PAIRS or below.size < LEAST_VOXELS:
        return None, "too few slices"
    noise = sigma**2 * _noise_gain(detail)
    variance = np.sqrt(np.mean(below**2, dtype=float) * np.mean(above**2, dtype=float))
    if noise > LARGEST_NOISE_SHARE * variance:
        return None, "the noise hides the detail"
    rho = float(np.mean(below * above, dtype=float)) / (variance - noise)
    fractions = np.linspace(*FRACTIONS, 141)
    expected = [likeness(fraction * spacing, spacing, q) for fraction in fractions]
    if not expected[0] < rho < expected[-1]:
        way = "less" if rho <= expected[0] else "more"
        return None, f"neighbouring slices are {way} alike than in a brain with slices of any thickness"
    return spacing * float(np.interp(rho, expected, fractions)), ""


def _inplane_width(
    scan: np.ndarray, inside: np.ndarray, along: int, edges: tuple[float, float], sigma: float
) -> float | None:
    """FWHM along one axis of the plane, in mm; None: not measurable."""

    def detail(volume: np.ndarray) -> np.ndarray:
        volume = _blur(volume, 1 - along, ACROSS_MM, edges[1 - along])
        return volume - _blur(volume, along, DETAIL_MM, edges[along])

    def coarse(volume: np.ndarray) -> np.ndarray:
        volume = _blur(volume, 1 - along, ACROSS_MM, edges[1 - along])
        return _blur(volume, along, DETAIL_MM, edges[along]) - _blur(
            volume, along, DETAIL_COARSE_MM, edges[along]
        )

    signal = []
    for part in (detail, coarse):
        variance, noise = float(np.mean(part(scan)[inside] ** 2)), sigma**2 * _noise_gain(part)
        if noise > LARGEST_NOISE_SHARE * variance:
            return None
        signal.append(variance - noise)
    widths = np.linspace(COARSEST_MM, 0, 81)
    expected = [detail_ratio(width) for width in widths]
    ratio = signal[0] / signal[1]
    return float(np.interp(ratio, expected, widths)) if ratio > expected[0] else None


def _without_border(mask: np.ndarray, edges: tuple[float, float]) -> np.ndarray:
    reach = [2 * round(BORDER_MM / edge) + 1 for edge in edges]
    return ndimage.minimum_filter(mask, size=(*reach, 1), mode="constant")


def _blur(volume: np.ndarray, along: int, fwhm_mm: float, edge_mm: float) -> np.ndarray:
    sigma = fwhm_mm * FWHM_TO_SIGMA / edge_mm
    return ndimage.gaussian_filter1d(volume, sigma, axis=along, mode="nearest") if sigma > 0 else volume


def _noise_gain(part: Callable[[np.ndarray], np.ndarray]) -> float:
    """Variance of filtered white noise of variance 1."""
    impulse = np.zeros((65, 65, 1))
    impulse[32, 32] = 1
    return float(np.sum(part(impulse) ** 2))
