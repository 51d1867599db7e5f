"""Sheets of slices, for every picture of a scan, and pairs of sheets that the page lays over each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from iqtflow.reports.draw import pictures
from iqtflow.reports.draw.volumes import PLANES, Plane, Volumes, choose_slices, crop_box, cut, position_label

Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Scene:
    """What all pictures of one scan share: volumes, beginning of file names, convention, tops of colour
    scales.
    """

    volumes: Volumes
    stem: str
    convention: str
    std_top: float = 1.0
    error_top: float = 1.0


@dataclass(frozen=True)
class Rung:
    """How many slices per plane, how large (pixels along the longer side), and at which WebP quality."""

    slices: int = 1
    edge_px: int = 420
    quality: int = 82


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
        Position of each slice, in words.
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
        self.places = tuple(position_label(volumes, plane, i) for i in self.indices)
        shape = self.cuts(volumes.before)[0].shape
        most = np.inf if zoom else pictures.MAX_ENLARGEMENT
        self.size = pictures.picture_size(shape, volumes.pixel_mm(plane), rung.edge_px, max_enlargement=most)
        self.px_per_mm = self.size[0] / (shape[1] * volumes.pixel_mm(plane)[1])

    def cuts(self, data: np.ndarray) -> list[np.ndarray]:
        """Return the slices of a volume, cropped."""
        return [cut(data, self.plane, i, convention=self.scene.convention)[self.box] for i in self.indices]

    def grey(self, data: np.ndarray, window: tuple[float, float] | None = None) -> list[np.ndarray]:
        """Return slices in the grey scale of the page, or in another one."""
        return [pictures.to_grey(c, window or self.scene.volumes.window) for c in self.cuts(data)]

    def uncertainty(self) -> list[np.ndarray]:
        """Return the enhanced volume with its standard deviation in colour."""
        volumes, top = self.scene.volumes, self.scene.std_top
        pairs = zip(self.grey(volumes.after), self.cuts(volumes.std), strict=True)
        return [pictures.overlay(grey, std, top) for grey, std in pairs]

    def error(self, data: np.ndarray) -> list[np.ndarray]:
        """Return the absolute error in colour."""
        pairs = zip(self.cuts(data), self.cuts(self.scene.volumes.truth), strict=True)
        return [pictures.to_colour(np.abs(c - truth), self.scene.error_top) for c, truth in pairs]

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
        images = [f if isinstance(f, Image.Image) else pictures.enlarge(f, self.size) for f in frames]
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

    def compare(
        self, name: str, under: pictures.Picture, over: pictures.Picture, tags: tuple[str, str]
    ) -> Comparison:
        """Return two sheets of this plane as a pair."""
        return Comparison(
            name=f"{self.scene.stem}-{name}-{self.plane.name}",
            plane=self.plane.name,
            under=under,
            over=over,
            under_tag=tags[0],
            over_tag=tags[1],
            side=isqrt(len(self.places)),
            places=self.places,
            width=self.size[0],
            height=self.size[1],
            acquired_plane=self.plane.normal == self.scene.volumes.slice_axis,
        )
