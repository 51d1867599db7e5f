"""Sheets of slices, in pairs that the page lays over each other: before and after, estimate and uncertainty,
both errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import numpy as np
from PIL import Image

from iqtflow.reports.draw import pictures
from iqtflow.reports.draw.views import PLANES, Plane, Volumes, choose_slices, crop_box, cut, position_label


@dataclass(frozen=True)
class Subject:
    """What all pictures of one scan share: volumes, stem of file names, convention, tops of colour scales."""

    volumes: Volumes
    stem: str
    convention: str
    std_top: float | None
    error_top: float | None


@dataclass(frozen=True)
class Rung:
    """How many slices per plane, how large (pixels along the longer side), and at which WebP quality."""

    slices: int
    edge_px: int
    quality: int


@dataclass(frozen=True)
class Comparison:
    """Two sheets of the same slices.

    Attributes
    ----------
    name
        Unique on a scan's part of the page.
    plane
        Name of the plane.
    under, over
        The sheets; the page cuts `over` open to show `under`.
    under_tag, over_tag
        Their names in a word or two.
    side
        Slices along each side of a sheet.
    places
        Where each slice lies, in words.
    width, height
        Pixels of one slice.
    acquired_plane
        True for the plane in which the scan was acquired.
    """

    name: str
    plane: str
    under: pictures.Picture
    over: pictures.Picture
    under_tag: str
    over_tag: str
    side: int
    places: tuple[str, ...]
    width: int
    height: int
    acquired_plane: bool


Comparisons = tuple[list[Comparison], list[Comparison], list[Comparison]]


def draw_sheets(subject: Subject, rung: Rung, files: dict[str, bytes]) -> Comparisons:
    """Draw all sheets of a scan.

    Parameters
    ----------
    subject
        What to draw.
    rung
        How large.
    files
        Receives the files by name.

    Returns
    -------
    planes, uncertainty, errors
        Lists of `Comparison`, one for each plane; the latter two are empty without ``std`` and without
        ``truth``.
    """
    planes: list[Comparison] = []
    uncertainty: list[Comparison] = []
    errors: list[Comparison] = []
    volumes = subject.volumes
    for plane in planes_in_order(volumes):
        drawer = PlaneDrawer(subject, plane, rung, files)
        before = drawer.sheet(
            "before", drawer.grey(volumes.before), "before: the scan interpolated by cubic splines"
        )
        after = drawer.sheet(
            "iqt", drawer.grey(volumes.after), "after: the estimate (IQT), same places and grey scale"
        )
        planes.append(drawer.compare("planes", before, after, ("Before (spline)", "After (IQT)")))
        if volumes.std is not None:
            std = drawer.sheet(
                "std", drawer.uncertainty(), "of the estimate, its standard deviation in colour"
            )
            uncertainty.append(drawer.compare("uncertainty", after, std, ("IQT", "Uncertainty")))
        if volumes.truth is not None:
            first = drawer.sheet(
                "errspline", drawer.error(volumes.before), "of the absolute error of the spline"
            )
            second = drawer.sheet(
                "erriqt", drawer.error(volumes.after), "of the absolute error of the estimate (IQT)"
            )
            errors.append(drawer.compare("errors", first, second, ("Error of spline", "Error of IQT")))
    return planes, uncertainty, errors


def planes_in_order(volumes: Volumes) -> list[Plane]:
    """Planes to show, those that cross the slices first: there is the most to see."""
    return sorted(PLANES.values(), key=lambda plane: plane.normal == volumes.slice_axis)


class PlaneDrawer:
    """One plane of one scan: its slices, its crop and its size, chosen once and used for every sheet."""

    def __init__(self, subject: Subject, plane: Plane, rung: Rung, files: dict[str, bytes]) -> None:
        self.subject, self.plane, self.rung, self.files = subject, plane, rung, files
        volumes = subject.volumes
        self.indices = choose_slices(volumes.mask, plane, rung.slices)
        self.box = crop_box(volumes, plane, convention=subject.convention)
        self.places = tuple(position_label(volumes, plane, i) for i in self.indices)
        shape = self.cuts(volumes.before)[0].shape
        self.size = pictures.picture_size(shape, volumes.pixel_mm(plane), rung.edge_px)
        self.px_per_mm = self.size[0] / (shape[1] * volumes.pixel_mm(plane)[1])

    def cuts(self, data: np.ndarray) -> list[np.ndarray]:
        """The slices of a volume, cropped."""
        return [cut(data, self.plane, i, convention=self.subject.convention)[self.box] for i in self.indices]

    def grey(self, data: np.ndarray) -> list[np.ndarray]:
        """Slices in the grey scale of the page."""
        return self._each(lambda c: pictures.to_grey(c, self.subject.volumes.window), data)

    def uncertainty(self) -> list[np.ndarray]:
        """The estimate with its uncertainty in colour."""
        volumes, top = self.subject.volumes, self.subject.std_top
        pairs = zip(self.grey(volumes.after), self.cuts(volumes.std), strict=True)
        return [pictures.overlay(grey, std, top) for grey, std in pairs]

    def error(self, data: np.ndarray) -> list[np.ndarray]:
        """Absolute error in colour."""
        pairs = zip(self.cuts(data), self.cuts(self.subject.volumes.truth), strict=True)
        return [pictures.to_colour(np.abs(c - truth), self.subject.error_top) for c, truth in pairs]

    def sheet(self, name: str, frames: list[np.ndarray], words: str) -> pictures.Picture:
        """Make a sheet of 8-bit frames."""
        return self.sheet_of([pictures.enlarge(frame, self.size) for frame in frames], name, words)

    def sheet_of(self, images: list[Image.Image], name: str, words: str) -> pictures.Picture:
        """Make a sheet of images that have been enlarged already; marks are added here."""
        sides = self.plane.sides(self.subject.convention)
        drawn = [
            pictures.mark(image, sides=sides, note=place, px_per_mm=self.px_per_mm)
            for image, place in zip(images, self.places, strict=True)
        ]
        content = pictures.encode(pictures.sheet(drawn, isqrt(len(drawn))), self.rung.quality)
        alt = f"{len(images)} {self.plane.name} slice{'s' if len(images) > 1 else ''} {words}."
        return pictures.keep(self.files, f"{self.subject.stem}_{self.plane.name}-{name}.webp", content, alt)

    def compare(
        self, name: str, under: pictures.Picture, over: pictures.Picture, tags: tuple[str, str]
    ) -> Comparison:
        """Two sheets of this plane, to be laid over each other."""
        return Comparison(
            name=f"{self.subject.stem}-{name}-{self.plane.name}",
            plane=self.plane.name,
            under=under,
            over=over,
            under_tag=tags[0],
            over_tag=tags[1],
            side=isqrt(len(self.places)),
            places=self.places,
            width=self.size[0],
            height=self.size[1],
            acquired_plane=self.plane.normal == self.subject.volumes.slice_axis,
        )

    def _each(self, draw: Callable[[np.ndarray], np.ndarray], data: np.ndarray) -> list[np.ndarray]:
        return [draw(c) for c in self.cuts(data)]
