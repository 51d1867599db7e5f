"""Sheets of slices, for every picture of a scan, and pairs of sheets that the page lays over each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from iqtflow.reports.draw import pictures
from iqtflow.reports.draw.volumes import (
    PLANES,
    Plane,
    Volumes,
    choose_slices,
    crop_box,
    cut,
    is_flipped,
    on_grid,
    position_label,
)

Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Scene:
    """What all pictures of one scan share.

    Attributes
    ----------
    volumes
        What is drawn.
    stem
        Beginning of file names.
    convention
        ``radiological`` or ``neurological``.
    excess
        Standard deviation above what is usual for such a place (`iqtflow.reports.draw.excess`), on the grid
        of the enhanced volume; None without a standard deviation.
    residual
        Difference from the acquired slices in standard deviations of the noise, each voxel of the scan as a
        block on the grid of the enhanced volume; or None.
    excess_top, error_top, change_top
        Upper ends of the scales of `excess`, of errors, and of the difference of the enhanced volume from the
        spline.
    """

    volumes: Volumes
    stem: str
    convention: str
    excess: np.ndarray | None = None
    residual: np.ndarray | None = None
    excess_top: float = 1.0
    error_top: float = 1.0
    change_top: float = 1.0


@dataclass(frozen=True)
class Rung:
    """How many slices per plane, how large (pixels along the longer side), and at which WebP quality."""

    slices: int = 1
    edge_px: int = 420
    quality: int = 82


@dataclass(frozen=True)
class Layer:
    """One sheet of a comparison: a word for the page's scripts, its name for readers, and the picture."""

    key: str
    tag: str
    picture: pictures.Picture


@dataclass(frozen=True)
class Comparison:
    """Sheets of the same slices.

    Attributes
    ----------
    name
        Unique on a scan's part of the page.
    plane
        Name of the plane.
    left, right
        The sheets that the page can show on the left, the first at first, and the sheet on the right.
    side
        Slices along each side of a sheet.
    places
        Position of each slice, in words.
    width, height
        Pixels of one slice.
    acquired_plane
        True for the plane in which the scan was acquired.
    """

    name: str
    plane: str
    left: tuple[Layer, ...]
    right: Layer
    side: int
    places: tuple[str, ...]
    width: int
    height: int
    acquired_plane: bool


def planes_in_order(volumes: Volumes) -> list[Plane]:
    """Return the planes to show, first those across the slices of the scan, where most has changed."""
    return sorted(PLANES.values(), key=lambda plane: plane.normal == volumes.slice_axis)


def draw_within(
    max_bytes: int, ladder: Sequence[Rung], draw: Callable[[Rung, dict[str, bytes]], Drawn]
) -> tuple[Drawn, dict[str, bytes]]:
    """Draw as large as a budget allows; return what was drawn, and the files."""
    for rung in ladder:
        files: dict[str, bytes] = {}
        drawn = draw(rung, files)
        if sum(map(len, files.values())) <= max_bytes:
            break
    return drawn, files


class PlaneDrawer:
    """One plane of one scan: slices, crop and size are chosen once and used for every sheet.

    Parameters
    ----------
    scene
        What to draw.
    plane
        In which plane.
    files
        Receives the files by name.
    rung
        How many slices, and how large.
    file
        Pattern of the file names after the stem.
    text_px
        Height of the letters; None chooses it by the width of a slice and adds a 5 cm bar.
    zoom
        Slice, and rows and columns, of a place to enlarge; None shows the head.
    """

    def __init__(
        self,
        scene: Scene,
        plane: Plane,
        files: dict[str, bytes],
        rung: Rung = Rung(),
        *,
        file: str = "{plane}-{name}",
        text_px: int | None = None,
        zoom: tuple[int, tuple[slice, slice]] | None = None,
    ) -> None:
        self.scene, self.plane, self.rung, self.files = scene, plane, rung, files
        self.file, self.text_px = file, text_px
        volumes = scene.volumes
        if zoom is None:
            self.indices = choose_slices(volumes.mask, plane, rung.slices)
            self.box = crop_box(volumes, plane, convention=scene.convention)
        else:
            self.indices, self.box = [zoom[0]], zoom[1]
        self.places = tuple(
            position_label(volumes, plane, i, self.box, convention=scene.convention) for i in self.indices
        )
        shape = self.cuts(volumes.before)[0].shape
        most = np.inf if zoom else pictures.MAX_ENLARGEMENT
        self.size = pictures.picture_size(shape, volumes.pixel_mm(plane), rung.edge_px, max_enlargement=most)
        self.px_per_mm = self.size[0] / (shape[1] * volumes.pixel_mm(plane)[1])
        self.shape = shape

    def cuts(self, data: np.ndarray) -> list[np.ndarray]:
        """Return the slices of a volume, cropped."""
        return [cut(data, self.plane, i, convention=self.scene.convention)[self.box] for i in self.indices]

    def grey(self, data: np.ndarray, window: tuple[float, float] | None = None) -> list[np.ndarray]:
        """Return slices in the grey scale of the page, or in another one."""
        return [pictures.to_grey(c, window or self.scene.volumes.window) for c in self.cuts(data)]

    def acquired(self) -> list[Image.Image]:
        """Return the acquired slices at the same places, on their own grid: each voxel as thick as the slice
        spacing, with nothing interpolated across the slices.
        """
        volumes, plane, convention = self.scene.volumes, self.plane, self.scene.convention
        assert volumes.acquired is not None
        scan, own = volumes.acquired
        to_scan = np.linalg.inv(own) @ volumes.affine
        step, start = np.diag(to_scan)[:3], to_scan[:3, 3]
        if not np.allclose(to_scan[:3, :3], np.diag(step), atol=1e-3):  # turned: not on one of its own planes
            blocks = on_grid(volumes.acquired, volumes.affine, volumes.after.shape, kind="nearest")
            return [pictures.enlarge(frame, self.size) for frame in self.grey(blocks)]
        spans = []
        for axis, part in zip((plane.rows, plane.columns), self.box, strict=True):
            flipped = is_flipped(plane, axis, convention=convention)
            n, n_scan = volumes.after.shape[axis], scan.shape[axis]
            spans.append(_span(part, n, n_scan, step[axis], start[axis], flipped=flipped))
        (top, bottom), (left, right) = spans
        axis, images = plane.normal, []
        for i in self.indices:
            own_index = int(np.clip(round(step[axis] * i + start[axis]), 0, scan.shape[axis] - 1))
            grey = pictures.to_grey(cut(scan, plane, own_index, convention=convention), volumes.window)
            images.append(
                pictures.resize_part(
                    grey,
                    (left, top, right, bottom),
                    self.size,
                    blocks=(plane.columns == volumes.slice_axis, plane.rows == volumes.slice_axis),
                )
            )
        return images

    def uncertainty(self) -> list[np.ndarray]:
        """Return the enhanced volume, in colour where its standard deviation is larger than usual."""
        assert self.scene.excess is not None
        pairs = zip(self.grey(self.scene.volumes.after), self.cuts(self.scene.excess), strict=True)
        return [pictures.overlay(grey, excess, self.scene.excess_top) for grey, excess in pairs]

    def change(self) -> list[np.ndarray]:
        """Return the difference of the enhanced volume from the spline; grey is no difference."""
        volumes, top = self.scene.volumes, self.scene.change_top
        return self.grey(volumes.after - volumes.before, (-top, top))

    def error(self, data: np.ndarray) -> list[np.ndarray]:
        """Return the absolute error in colour."""
        pairs = zip(self.cuts(data), self.cuts(self.scene.volumes.truth), strict=True)
        return [pictures.to_colour(np.abs(c - truth), self.scene.error_top) for c, truth in pairs]

    def enlarged(self, frame: np.ndarray | Image.Image) -> Image.Image:
        """Return an 8-bit frame in the size of the page; a picture has it already."""
        return frame if isinstance(frame, Image.Image) else pictures.enlarge(frame, self.size)

    def sheet(self, name: str, frames: Sequence[Any], words: str, *, marked: bool = True) -> pictures.Picture:
        """Make a sheet of 8-bit frames, or of pictures that have the size of the page already.

        Parameters
        ----------
        name
            For the file.
        frames
            One for each slice; unmarked ones are put beside each other.
        words
            What is shown, for those who cannot see it.
        marked
            Whether to draw side letters and positions.
        """
        images = [self.enlarged(frame) for frame in frames]
        if marked:
            bar = self.px_per_mm if self.text_px is None else None
            sides = self.plane.sides(self.scene.convention)
            for image, place in zip(images, self.places, strict=True):
                pictures.mark(image, sides=sides, note=place, px_per_mm=bar, text_px=self.text_px)
        columns = isqrt(len(images)) if marked else len(images)
        content = pictures.encode(pictures.sheet(images, columns), self.rung.quality)
        several = len(self.indices) > 1
        what = f"{len(images)} {self.plane.name} slices" if several else f"{self.plane.name} slice"
        alt = f"{what if several else f'{what} at {self.places[0]}'}: {words}."
        file = f"{self.scene.stem}_{self.file.format(plane=self.plane.name, name=name)}.webp"
        return pictures.keep(self.files, file, content, alt[0].upper() + alt[1:])

    def compare(self, name: str, left: Sequence[Layer], right: Layer) -> Comparison:
        """Return sheets of this plane, to be compared."""
        return Comparison(
            name=f"{self.scene.stem}-{name}-{self.plane.name}",
            plane=self.plane.name,
            left=tuple(left),
            right=right,
            side=isqrt(len(self.places)),
            places=self.places,
            width=self.size[0],
            height=self.size[1],
            acquired_plane=self.plane.normal == self.scene.volumes.slice_axis,
        )


def _span(
    rows: slice, n: int, n_other: int, step: float, start: float, *, flipped: bool
) -> tuple[float, float]:
    """Return the edges of a part of a picture on another grid along the same axis.

    Parameters
    ----------
    rows
        The part, in pixels of the picture.
    n, n_other
        Pixels of the picture, and of the picture on the other grid.
    step, start
        Index on the other grid of pixel 0, and its change from one pixel to the next.
    flipped
        Whether the last index comes first in the picture.
    """

    def edge(at: float) -> float:
        index = n - 0.5 - at if flipped else at - 0.5
        other = step * index + start
        return n_other - 0.5 - other if flipped else other + 0.5

    return edge(rows.start), edge(rows.stop)
