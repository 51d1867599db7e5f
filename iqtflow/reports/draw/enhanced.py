"""The figures of one enhanced scan: what is drawn, in which order, and how large the files may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from iqtflow.reports.draw import pictures, plots
from iqtflow.reports.draw.excess import find_excess
from iqtflow.reports.draw.pictures import Picture, PictureRow
from iqtflow.reports.draw.slices import (
    Comparison,
    Layer,
    PlaneDrawer,
    Rung,
    Scene,
    draw_within,
    planes_in_order,
)
from iqtflow.reports.draw.volumes import Plane, Volumes, choose_slices, crop_box, cut, is_flipped, on_grid
from iqtflow.reports.places import AuditPlace

#: Choices of size and quality, the best first; the first that fits the budget is used.
LADDER = (Rung(9, 560, 86), Rung(9, 460, 80), Rung(9, 380, 70), Rung(4, 380, 65), Rung(1, 380, 60))
THUMBNAIL = Rung(1, 220, 80)
#: Smallest upper ends of the scales of the uncertainty and of the difference, in percent of the grey scale:
#: if there is nearly nothing, the pictures stay dark or grey.
LEAST_TOP_PERCENT = 2.0
#: Of the brain's voxels, this percentile of uncertainty and difference is the upper end of their scales.
TOP_PERCENTILE = 99.5
#: A lower head is a slab; its thumbnail is axial, not coronal.
SLAB_MM = 60.0
RESIDUAL_SPAN = 5.0  #: the residual is black below and white above, in standard deviations of the noise
DETAIL_MM = 44.0  #: edge of a detail
MOST_PLACES = 6  #: places of the audit that are drawn, those with the largest score


@dataclass
class Figures:
    """All figures of one scan.

    Attributes
    ----------
    profile, histogram, thumbnail
        Single pictures.
    details
        Enlarged places of the largest change, one for each plane.
    places
        Enlarged places that the audit found, those with the largest scores.
    planes, uncertainty, errors
        Comparisons: acquired slices or spline and enhanced volume; enhanced volume and uncertainty; both
        errors. One for each plane, or none.
    excess_top_percent, error_top_percent, change_top_percent
        Upper ends of the scales, in percent of the grey scale.
    numbers
        From `measure`.
    files
        Bytes by file name.
    """

    profile: Picture
    histogram: Picture
    thumbnail: Picture
    details: list[PictureRow]
    places: list[PictureRow]
    planes: list[Comparison] = field(default_factory=list)
    uncertainty: list[Comparison] = field(default_factory=list)
    errors: list[Comparison] = field(default_factory=list)
    excess_top_percent: float = 0.0
    error_top_percent: float = 0.0
    change_top_percent: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def draw_figures(scene: Scene, *, max_bytes: int, places: Sequence[AuditPlace] = ()) -> Figures:
    """Draw every figure of one scan within a budget.

    Parameters
    ----------
    scene
        From `make_scene`.
    max_bytes
        Most bytes of all files; fewer and smaller slices are drawn to meet it.
    places
        Places that differ from the acquired slices.

    Returns
    -------
    Figures
    """
    volumes, stem = scene.volumes, scene.stem
    percent = 100 / (volumes.window[1] - volumes.window[0])
    files: dict[str, bytes] = {}
    figures = Figures(
        profile=pictures.keep(files, f"{stem}_profile.svg", *plots.slice_profile(volumes)),
        histogram=pictures.keep(files, f"{stem}_histogram.svg", *plots.intensity_histogram(volumes)),
        thumbnail=_draw_thumbnail(scene, files),
        details=[_draw_busiest(scene, plane, files) for plane in planes_in_order(volumes)],
        places=_draw_places(scene, places, files),
        excess_top_percent=percent * scene.excess_top,
        error_top_percent=percent * scene.error_top,
        change_top_percent=percent * scene.change_top,
        numbers=measure(volumes),
        files=files,
    )
    left = max_bytes - sum(map(len, files.values()))
    sheets, drawn = draw_within(left, LADDER, lambda rung, into: draw_sheets(scene, rung, into))
    files |= drawn
    figures.planes, figures.uncertainty, figures.errors = sheets
    return figures


def make_scene(
    volumes: Volumes, stem: str, convention: str, *, residual: tuple[np.ndarray, np.ndarray] | None = None
) -> Scene:
    """Set the scales by the brain, the same for all pictures of a scan.

    Parameters
    ----------
    volumes
        What to show.
    stem
        Beginning of every file name; unique within the subject.
    convention
        ``radiological`` or ``neurological``.
    residual
        Difference from the acquired slices and its affine, on the grid of the scan.

    Returns
    -------
    Scene
    """
    mask, least = volumes.mask, LEAST_TOP_PERCENT / 100 * (volumes.window[1] - volumes.window[0])

    def top(values: np.ndarray, percentile: float) -> float:
        return max(float(np.percentile(values, percentile)), least)

    excess = None if volumes.std is None else find_excess(volumes)
    change = np.abs(volumes.after[mask] - volumes.before[mask])
    error = None if volumes.truth is None else np.abs(volumes.before[mask] - volumes.truth[mask])
    return Scene(
        volumes,
        stem,
        convention,
        excess=excess,
        residual=None if residual is None else on_grid(residual, volumes.affine, mask.shape, kind="nearest"),
        excess_top=0.0 if excess is None else top(excess[mask], TOP_PERCENTILE),
        error_top=0.0 if error is None else top(error, 98),
        change_top=top(change, TOP_PERCENTILE),
    )


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
        left = []
        if volumes.acquired is not None:
            acquired = drawer.sheet("acquired", drawer.acquired(), "the acquired slices")
            left.append(Layer("acquired", "Acquired", acquired))
        before = drawer.sheet(
            "before", drawer.grey(volumes.before), "the scan, interpolated by cubic splines"
        )
        left.append(Layer("spline", "Spline", before))
        after = Layer(
            "iqt", "Enhanced", drawer.sheet("iqt", drawer.grey(volumes.after), "the enhanced volume")
        )
        planes.append(drawer.compare("planes", left, after))
        if scene.excess is not None:
            std = drawer.sheet("std", drawer.uncertainty(), "uncertainty above the usual, in colour")
            uncertainty.append(drawer.compare("uncertainty", [after], Layer("std", "Uncertainty", std)))
        if volumes.truth is not None:
            first = drawer.sheet("errspline", drawer.error(volumes.before), "absolute error of the spline")
            second = drawer.sheet(
                "erriqt", drawer.error(volumes.after), "absolute error of the enhanced volume"
            )
            spline = Layer("errspline", "Error of spline", first)
            errors.append(drawer.compare("errors", [spline], Layer("erriqt", "Error of enhanced", second)))
    return sheets


def _draw_thumbnail(scene: Scene, files: dict[str, bytes]) -> Picture:
    volumes = scene.volumes
    first, *_, last = planes_in_order(volumes)
    height_mm = volumes.after.shape[first.rows] * volumes.sizes_mm[first.rows]
    drawer = PlaneDrawer(scene, first if height_mm >= SLAB_MM else last, files, THUMBNAIL, file="{name}")
    known = volumes.acquired is not None
    left = drawer.acquired() if known else drawer.grey(volumes.before)
    words = "left the acquired slices" if known else "left the spline"
    both = [*left, *drawer.grey(volumes.after)]
    return drawer.sheet("thumbnail", both, f"{words}, right the enhanced volume", marked=False)


def _draw_busiest(scene: Scene, plane: Plane, files: dict[str, bytes]) -> PictureRow:
    """Draw the place of a plane with the largest change."""
    place = busiest_place(scene.volumes, plane, convention=scene.convention)
    return _draw_detail(scene, plane, files, place, f"detail-{plane.name}")


def _draw_places(scene: Scene, places: Sequence[AuditPlace], files: dict[str, bytes]) -> list[PictureRow]:
    """Draw the first places of the audit in the first plane across the slices."""
    plane, volumes = planes_in_order(scene.volumes)[0], scene.volumes
    found = []
    for number, place in enumerate(places[:MOST_PLACES], start=1):
        world = np.array([*place.position_mm, 1.0])
        voxel = (np.linalg.inv(volumes.affine) @ world)[:3]
        index = int(np.clip(round(voxel[plane.normal]), 0, volumes.after.shape[plane.normal] - 1))
        centre = []
        for axis in (plane.rows, plane.columns):
            n, at = volumes.after.shape[axis], voxel[axis]
            flipped = is_flipped(plane, axis, convention=scene.convention)
            centre.append(int(np.clip(round(n - 1 - at if flipped else at), 0, n - 1)))
        shape = tuple(volumes.after.shape[axis] for axis in (plane.rows, plane.columns))
        box = _square(centre, shape, volumes.pixel_mm(plane), (slice(0, shape[0]), slice(0, shape[1])))
        middle = tuple((c - part.start + 0.5) for c, part in zip(centre, box, strict=True))
        found.append(_draw_detail(scene, plane, files, (index, box), f"place{number:02d}", middle))
    return found


def _draw_detail(
    scene: Scene,
    plane: Plane,
    files: dict[str, bytes],
    place: tuple[int, tuple[slice, slice]],
    file: str,
    ring: tuple[float, float] | None = None,
) -> PictureRow:
    """Draw an enlarged place: what was acquired, spline, enhanced volume, difference, and what else is known.

    With `ring` (row, column), a ring is drawn around a point.
    """
    volumes = scene.volumes
    drawer = PlaneDrawer(
        scene, plane, files, Rung(1, 400, 88), file=f"{file}-{{name}}", text_px=26, zoom=place
    )
    shown: list[tuple[str, str, Sequence[Any]]] = []
    if volumes.acquired is not None:
        shown.append(("acquired", "Acquired", drawer.acquired()))
    shown += [
        ("before", "Spline", drawer.grey(volumes.before)),
        ("iqt", "Enhanced", drawer.grey(volumes.after)),
    ]
    if ring is not None and scene.residual is not None:
        span = (-RESIDUAL_SPAN, RESIDUAL_SPAN)
        tag = f"Scan − expected scan (± {RESIDUAL_SPAN:.0f} SD of the noise)"
        shown.append(("residual", tag, drawer.grey(scene.residual, span)))
    else:
        shown.append(("change", "Enhanced − spline", drawer.change()))
    if scene.excess is not None:
        shown.append(("std", "Uncertainty", drawer.uncertainty()))
    if volumes.truth is not None:
        shown.append(("truth", "Truth", drawer.grey(volumes.truth)))
    found = []
    for name, tag, frames in shown:
        if ring is not None:
            at = (ring[1] / drawer.shape[1], ring[0] / drawer.shape[0])
            frames = [pictures.ring(drawer.enlarged(frame), at) for frame in frames]
        found.append((tag, drawer.sheet(name, frames, f"enlarged, {tag}")))
    return PictureRow(f"{plane.name.capitalize()}, {drawer.places[0]}", tuple(found))


def _square(
    centre: Sequence[int],
    shape: Sequence[int],
    pixel_mm: Sequence[float],
    within: tuple[slice, slice],
) -> tuple[slice, slice]:
    """Return rows and columns of a square of `DETAIL_MM`, smaller where the part `within` is smaller."""
    parts = []
    for at, n, mm, edge in zip(centre, shape, pixel_mm, within, strict=True):
        size = min(round(DETAIL_MM / mm), n)
        first = int(np.clip(at - size // 2, 0, n - size)) + edge.start
        parts.append(slice(first, first + size))
    return parts[0], parts[1]


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
    return index, _square([int(p) for p in peak], shape, volumes.pixel_mm(plane), (rows, columns))


def measure(volumes: Volumes) -> dict[str, float]:
    """Measure change and standard deviation over the mask.

    Returns
    -------
    dict
        ``change_percent``: mean absolute difference of enhanced volume and spline, in percent of the grey
        scale; ``std_median_percent`` and ``std_p95_percent``, likewise, when there is a standard deviation.
    """
    mask = volumes.mask
    unit = 100 / (volumes.window[1] - volumes.window[0])
    numbers = {"change_percent": unit * float(np.abs(volumes.after[mask] - volumes.before[mask]).mean())}
    if volumes.std is not None:
        median, high = np.percentile(volumes.std[mask], [50, 95])
        numbers |= {"std_median_percent": unit * float(median), "std_p95_percent": unit * float(high)}
    return numbers
