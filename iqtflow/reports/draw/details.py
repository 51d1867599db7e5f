"""Enlarged details: the place in each plane that most wants a second look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from iqtflow.reports.draw import pictures
from iqtflow.reports.draw.sheets import Subject
from iqtflow.reports.draw.views import Plane, Volumes, choose_slices, crop_box, cut, position_label

DETAIL_MM = 44.0  #: edge of a detail
DETAIL_PX = 400
LETTER_PX = 26  #: side marks; the page shows details at about half of their pixels


@dataclass(frozen=True)
class Detail:
    """One place, enlarged: its words, and the pictures of it with their tags."""

    plane: str
    place: str
    pictures: tuple[tuple[str, pictures.Picture], ...]


def draw_detail(subject: Subject, plane: Plane, files: dict[str, bytes]) -> Detail:
    """Draw the busiest place of a plane: before, after, their difference, and uncertainty and truth when
    there are any.

    Parameters
    ----------
    subject
        What to draw.
    plane
        In which plane.
    files
        Receives the files by name.
    """
    volumes, convention = subject.volumes, subject.convention
    index, window = busiest_place(volumes, plane, convention=convention)
    place = position_label(volumes, plane, index)

    def crop(data: np.ndarray) -> np.ndarray:
        return cut(data, plane, index, convention=convention)[window]

    before, after = crop(volumes.before), crop(volumes.after)
    half = (volumes.window[1] - volumes.window[0]) / 2
    grey = pictures.to_grey(after, volumes.window)
    shown = [
        ("before", "Before (spline)", pictures.to_grey(before, volumes.window), "the spline"),
        ("iqt", "After (IQT)", grey, "the estimate"),
        ("change", "After − before", pictures.to_grey(after - before, (-half, half)), "their difference"),
    ]
    if volumes.std is not None:
        mixed = pictures.overlay(grey, crop(volumes.std), subject.std_top)
        shown.append(("std", "Uncertainty", mixed, "the estimate with its uncertainty in colour"))
    if volumes.truth is not None:
        shown.append(("truth", "Truth", pictures.to_grey(crop(volumes.truth), volumes.window), "the truth"))
    size = pictures.picture_size(grey.shape, volumes.pixel_mm(plane), DETAIL_PX, max_enlargement=np.inf)
    found = []
    for name, tag, picture, words in shown:
        drawn = pictures.mark(
            pictures.enlarge(picture, size), sides=plane.sides(convention), text_px=LETTER_PX
        )
        file = f"{subject.stem}_detail-{plane.name}-{name}.webp"
        alt = f"Enlarged {plane.name} detail at {place}: {words}."
        found.append((tag, pictures.keep(files, file, pictures.encode(drawn, 88), alt)))
    return Detail(plane.name, place, tuple(found))


def busiest_place(volumes: Volumes, plane: Plane, *, convention: str) -> tuple[int, tuple[slice, slice]]:
    """Find where, in the brain, the estimate differs most from the spline, among nine slices of a plane.

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
