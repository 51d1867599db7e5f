"""The figures of one enhanced scan: what is drawn, in which order, and how large the files may be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from iqtflow.reports.draw import pictures, plots
from iqtflow.reports.draw.pictures import Picture, PictureRow
from iqtflow.reports.draw.slices import Comparison, PlaneDrawer, Rung, Scene, draw_within, planes_in_order
from iqtflow.reports.draw.volumes import Plane, Volumes, choose_slices, crop_box, cut

#: Choices of size and quality, the best first; the first that fits the budget is used.
LADDER = (Rung(9, 560, 86), Rung(9, 460, 80), Rung(9, 380, 70), Rung(4, 380, 65), Rung(1, 380, 60))
THUMBNAIL = Rung(1, 220, 80)
#: Smallest upper end of the colour scale of the standard deviation, in percent of the grey scale: if the
#: networks agree, the map stays dark.
LEAST_STD_TOP_PERCENT = 2.0
#: A lower head is a slab; its thumbnail is axial, not coronal.
SLAB_MM = 60.0
DETAIL_MM = 44.0  #: edge of a detail


@dataclass
class Figures:
    """All figures of one scan.

    Attributes
    ----------
    profile, histogram, thumbnail
        Single pictures.
    details
        Enlarged places.
    planes, uncertainty, errors
        Comparisons: before and after; enhanced volume and standard deviation; both errors. One for each
        plane, or none.
    std_top_percent, error_top_percent
        Upper ends of the colour scales, in percent of the grey scale.
    numbers
        From `measure`.
    files
        Bytes by file name.
    """

    profile: Picture
    histogram: Picture
    thumbnail: Picture
    details: list[PictureRow]
    planes: list[Comparison] = field(default_factory=list)
    uncertainty: list[Comparison] = field(default_factory=list)
    errors: list[Comparison] = field(default_factory=list)
    std_top_percent: float = 0.0
    error_top_percent: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def draw_figures(volumes: Volumes, stem: str, *, convention: str, max_bytes: int) -> Figures:
    """Draw every figure of one scan within a budget.

    Parameters
    ----------
    volumes
        What to show.
    stem
        Beginning of every file name; unique within the subject.
    convention
        ``radiological`` or ``neurological``.
    max_bytes
        Most bytes of all files; fewer and smaller slices are drawn to meet it.

    Returns
    -------
    Figures
    """
    scene = make_scene(volumes, stem, convention)
    percent = 100 / (volumes.window[1] - volumes.window[0])
    files: dict[str, bytes] = {}
    figures = Figures(
        profile=pictures.keep(files, f"{stem}_profile.svg", *plots.slice_profile(volumes)),
        histogram=pictures.keep(files, f"{stem}_histogram.svg", *plots.intensity_histogram(volumes)),
        thumbnail=_draw_thumbnail(scene, files),
        details=[_draw_detail(scene, plane, files) for plane in planes_in_order(volumes)],
        std_top_percent=percent * scene.std_top,
        error_top_percent=percent * scene.error_top,
        numbers=measure(volumes),
        files=files,
    )
    left = max_bytes - sum(map(len, files.values()))
    sheets, drawn = draw_within(left, LADDER, lambda rung, into: draw_sheets(scene, rung, into))
    files |= drawn
    figures.planes, figures.uncertainty, figures.errors = sheets
    return figures


def make_scene(volumes: Volumes, stem: str, convention: str) -> Scene:
    """Set the colour scales by the brain, the same for all pictures of a scan."""
    span = volumes.window[1] - volumes.window[0]
    std_top = error_top = 0.0
    if volumes.std is not None:
        std_top = max(float(np.percentile(volumes.std[volumes.mask], 99)), LEAST_STD_TOP_PERCENT / 100 * span)
        if volumes.has_mask:  # fat of the scalp would be brighter than all else
            volumes = replace(volumes, std=volumes.std * volumes.mask)
    if volumes.truth is not None:
        error = np.abs(volumes.before[volumes.mask] - volumes.truth[volumes.mask])
        error_top = max(float(np.percentile(error, 98)), 1e-6 * span)
    return Scene(volumes, stem, convention, std_top, error_top)


def draw_sheets(
    scene: Scene, rung: Rung, files: dict[str, bytes]
) -> tuple[list[Comparison], list[Comparison], list[Comparison]]:
    """Draw all sheets of a scan.

    Returns
    -------
    planes, uncertainty, errors
        One `Comparison` for each plane; the latter two are empty without ``std`` and without ``truth``.
    """
    sheets: tuple[list[Comparison], list[Comparison], list[Comparison]] = ([], [], [])
    planes, uncertainty, errors = sheets
    volumes = scene.volumes
    for plane in planes_in_order(volumes):
        drawer = PlaneDrawer(scene, plane, files, rung)
        before = drawer.sheet("before", drawer.grey(volumes.before), "before, interpolated by cubic splines")
        after = drawer.sheet("iqt", drawer.grey(volumes.after), "after, the enhanced volume (IQT)")
        planes.append(drawer.compare("planes", before, after, ("Before (spline)", "After (IQT)")))
        if volumes.std is not None:
            std = drawer.sheet("std", drawer.uncertainty(), "standard deviation in colour")
            uncertainty.append(drawer.compare("uncertainty", after, std, ("IQT", "Uncertainty")))
        if volumes.truth is not None:
            first = drawer.sheet("errspline", drawer.error(volumes.before), "absolute error of the spline")
            second = drawer.sheet("erriqt", drawer.error(volumes.after), "absolute error of IQT")
            errors.append(drawer.compare("errors", first, second, ("Error of spline", "Error of IQT")))
    return sheets


def _draw_thumbnail(scene: Scene, files: dict[str, bytes]) -> Picture:
    volumes = scene.volumes
    first, *_, last = planes_in_order(volumes)
    height_mm = volumes.after.shape[first.rows] * volumes.sizes_mm[first.rows]
    drawer = PlaneDrawer(scene, first if height_mm >= SLAB_MM else last, files, THUMBNAIL, file="{name}")
    both = [*drawer.grey(volumes.before), *drawer.grey(volumes.after)]
    return drawer.sheet("thumbnail", both, "left before (spline), right after (IQT)", marked=False)


def _draw_detail(scene: Scene, plane: Plane, files: dict[str, bytes]) -> PictureRow:
    """Draw the busiest place of a plane: before, after, difference, and standard deviation and truth."""
    volumes = scene.volumes
    place = busiest_place(volumes, plane, convention=scene.convention)
    rung, file = Rung(1, 400, 88), "detail-{plane}-{name}"
    drawer = PlaneDrawer(scene, plane, files, rung, file=file, text_px=26, zoom=place)
    half = (volumes.window[1] - volumes.window[0]) / 2
    shown = [
        ("before", "Before (spline)", drawer.grey(volumes.before)),
        ("iqt", "After (IQT)", drawer.grey(volumes.after)),
        ("change", "After − before", drawer.grey(volumes.after - volumes.before, (-half, half))),
    ]
    if volumes.std is not None:
        shown.append(("std", "Uncertainty", drawer.uncertainty()))
    if volumes.truth is not None:
        shown.append(("truth", "Truth", drawer.grey(volumes.truth)))
    found = tuple((tag, drawer.sheet(name, frames, f"enlarged, {tag}")) for name, tag, frames in shown)
    return PictureRow(f"{plane.name.capitalize()}, {drawer.places[0]}", found)


def busiest_place(volumes: Volumes, plane: Plane, *, convention: str) -> tuple[int, tuple[slice, slice]]:
    """Find where in the brain the enhanced volume differs most from the spline, in nine slices of a plane.

    Returns
    -------
    int, (slice, slice)
        The slice, and the rows and columns of a square of `DETAIL_MM` (smaller where the head is smaller).
    """
    rows, columns = crop_box(volumes, plane, convention=convention)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    size = tuple(min(round(DETAIL_MM / mm), n) for mm, n in zip(volumes.pixel_mm(plane), shape, strict=True))
    best, found = -1.0, None
    for index in choose_slices(volumes.mask, plane, 9):
        before, after, mask = (
            cut(data, plane, index, convention=convention)[rows, columns]
            for data in (volumes.before, volumes.after, volumes.mask)
        )
        score = ndimage.uniform_filter(np.abs(after - before) * mask, size, mode="constant")
        peak = np.unravel_index(int(np.argmax(score)), score.shape)
        if score[peak] > best:
            best, found = float(score[peak]), (index, peak)
    index, peak = found
    top, left = (
        int(np.clip(p - s // 2, 0, n - s)) + edge.start
        for p, s, n, edge in zip(peak, size, shape, (rows, columns), strict=True)
    )
    return index, (slice(top, top + size[0]), slice(left, left + size[1]))


def measure(volumes: Volumes) -> dict[str, float]:
    """Measure change, standard deviation, and agreement with the acquired slices, over the mask.

    Returns
    -------
    dict
        ``change_percent``: mean absolute difference of after and before, in percent of the grey scale;
        ``std_median_percent`` and ``std_p95_percent``, likewise, when there is a standard deviation;
        ``agreement``, when the grids nest: correlation of the scan with the enhanced volume averaged over
        each acquired slice.
    """
    mask = volumes.mask
    unit = 100 / (volumes.window[1] - volumes.window[0])
    numbers = {"change_percent": unit * float(np.abs(volumes.after[mask] - volumes.before[mask]).mean())}
    if volumes.std is not None:
        median, high = np.percentile(volumes.std[mask], [50, 95])
        numbers |= {"std_median_percent": unit * float(median), "std_p95_percent": unit * float(high)}
    if volumes.acquired is None:
        return numbers
    scan, axis = volumes.acquired[0], volumes.slice_axis
    k = volumes.after.shape[axis] // scan.shape[axis]
    if volumes.after.shape != tuple(n * (k if a == axis else 1) for a, n in enumerate(scan.shape)):
        return numbers
    slabs = [*scan.shape[: axis + 1], k, *scan.shape[axis + 1 :]]
    inside = mask.reshape(slabs).all(axis=axis + 1)
    if inside.sum() >= 100:
        averaged = volumes.after.reshape(slabs).mean(axis=axis + 1)[inside]
        numbers["agreement"] = float(np.corrcoef(averaged, scan[inside])[0, 1])
    return numbers
