"""The figures of one enhanced scan: what is drawn, in which order, and how much it may weigh."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from iqtflow.reports.draw import pictures, plots
from iqtflow.reports.draw.checks import measure
from iqtflow.reports.draw.details import Detail, draw_detail
from iqtflow.reports.draw.sheets import Comparison, Rung, Subject, draw_sheets, planes_in_order
from iqtflow.reports.draw.views import Volumes, choose_slices, crop_box, cut

#: Choices of size and quality, the best first; the first that fits the budget is used.
LADDER = (
    Rung(slices=9, edge_px=560, quality=86),
    Rung(slices=9, edge_px=460, quality=80),
    Rung(slices=9, edge_px=380, quality=70),
    Rung(slices=4, edge_px=380, quality=65),
    Rung(slices=1, edge_px=380, quality=60),
)
THUMBNAIL_PX = 220
#: Least upper end of the uncertainty's colours, in percent of the grey scale: networks that agree stay dark.
LEAST_STD_TOP_PERCENT = 2.0
#: A slab is recognised by its axial slices, a head by its coronal ones.
SLAB_MM = 60.0


@dataclass
class Figures:
    """All figures of one scan.

    Attributes
    ----------
    files
        Bytes by file name.
    planes, uncertainty, errors
        Comparisons: before and after; estimate and uncertainty; both errors. One for each plane, or none.
    details
        Enlarged places.
    profile, histogram, thumbnail
        Single pictures.
    std_top_percent, error_top_percent
        Upper ends of the colour scales, in percent of the grey scale.
    numbers
        From `iqtflow.reports.draw.checks.measure`.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    planes: list[Comparison] = field(default_factory=list)
    uncertainty: list[Comparison] = field(default_factory=list)
    errors: list[Comparison] = field(default_factory=list)
    details: list[Detail] = field(default_factory=list)
    profile: pictures.Picture | None = None
    histogram: pictures.Picture | None = None
    thumbnail: pictures.Picture | None = None
    std_top_percent: float = 0.0
    error_top_percent: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)


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
        Budget for all files; met by drawing fewer and smaller slices.

    Returns
    -------
    Figures
    """
    subject = _scaled(volumes, stem, convention)
    span = volumes.window[1] - volumes.window[0]
    figures = Figures(
        numbers=measure(volumes),
        std_top_percent=100 * (subject.std_top or 0) / span,
        error_top_percent=100 * (subject.error_top or 0) / span,
    )
    figures.profile = pictures.keep(figures.files, f"{stem}_profile.svg", *plots.slice_profile(volumes))
    figures.histogram = pictures.keep(
        figures.files, f"{stem}_histogram.svg", *plots.intensity_histogram(volumes)
    )
    figures.thumbnail = _draw_thumbnail(subject, figures.files)
    figures.details = [draw_detail(subject, plane, figures.files) for plane in planes_in_order(volumes)]
    left = max_bytes - sum(len(content) for content in figures.files.values())
    for rung in LADDER:
        files: dict[str, bytes] = {}
        sheets = draw_sheets(subject, rung, files)
        if sum(len(content) for content in files.values()) <= left:
            break
    figures.files |= files
    figures.planes, figures.uncertainty, figures.errors = sheets
    return figures


def _scaled(volumes: Volumes, stem: str, convention: str) -> Subject:
    """Fix the colour scales over the brain, so that all pictures of a scan share them."""
    span = volumes.window[1] - volumes.window[0]
    least = 1e-6 * span
    std_top = error_top = None
    if volumes.std is not None:
        std_top = max(float(np.percentile(volumes.std[volumes.mask], 99)), LEAST_STD_TOP_PERCENT / 100 * span)
        if volumes.has_mask:
            # Fat of the scalp would outshine everything; where the brain is known, only the brain is
            # coloured.
            volumes = replace(volumes, std=volumes.std * volumes.mask)
    if volumes.truth is not None:
        error = np.abs(volumes.before[volumes.mask] - volumes.truth[volumes.mask])
        error_top = max(float(np.percentile(error, 98)), least)
    return Subject(volumes, stem, convention, std_top, error_top)


def _draw_thumbnail(subject: Subject, files: dict[str, bytes]) -> pictures.Picture:
    volumes = subject.volumes
    planes = planes_in_order(volumes)
    height_mm = volumes.after.shape[planes[0].rows] * volumes.sizes_mm[planes[0].rows]
    plane = planes[0] if height_mm >= SLAB_MM else planes[-1]
    index = choose_slices(volumes.mask, plane, 1)[0]
    box = crop_box(volumes, plane, convention=subject.convention)
    both = []
    for data in (volumes.before, volumes.after):
        grey = pictures.to_grey(cut(data, plane, index, convention=subject.convention)[box], volumes.window)
        size = pictures.picture_size(grey.shape, volumes.pixel_mm(plane), THUMBNAIL_PX)
        both.append(pictures.enlarge(grey, size))
    content = pictures.encode(pictures.sheet(both, 2), 80)
    alt = f"A {plane.name} slice, left before (spline), right after (IQT)."
    return pictures.keep(files, f"{subject.stem}_thumbnail.webp", content, alt)
