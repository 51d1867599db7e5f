"""The volumes behind one page, brought to one grid and one orientation, and the cuts through them.

Arrays are permuted and flipped to the nearest RAS+ orientation (`nibabel.as_closest_canonical`): the planes
shown are the scan's own, so an oblique scan is shown without interpolation. Only a volume on another grid
than the output is resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes

from iqtflow.reports.draw.grids import array_of, canonical, on_grid, spline_of
from iqtflow.utils.errors import InputError

#: Which side of the patient is drawn on the left: radiological, as if seen from the feet; neurological, from
#: above.
CONVENTIONS = ("radiological", "neurological")


@dataclass(frozen=True)
class Plane:
    """A plane of an RAS+ array: the axis it cuts, the axes along columns and rows, letters of its ends."""

    name: str
    normal: int
    columns: int
    rows: int
    ends: tuple[str, str]

    def sides(self, convention: str) -> tuple[str, str]:
        """Letters for the left and the right edge of the picture."""
        if self.columns == 1:
            return "A", "P"
        return ("R", "L") if convention == "radiological" else ("L", "R")


PLANES = {
    "coronal": Plane("coronal", 1, 0, 2, ("P", "A")),
    "sagittal": Plane("sagittal", 0, 1, 2, ("L", "R")),
    "axial": Plane("axial", 2, 0, 1, ("I", "S")),
}


@dataclass(frozen=True)
class Volumes:
    """Everything a page shows of one scan, as float32 arrays of one shape (x, y, z), nearest to RAS+.

    Attributes
    ----------
    before, after
        Cubic spline of the scan, and the estimate (IQT), on the same grid.
    mask
        Brain, or the foreground when no mask was given.
    has_mask
        False when `mask` is only a threshold.
    std, truth
        Standard deviation of the estimate; the image that was hidden from the network. Either may be
        absent.
    affine
        (4, 4), voxel to world in mm.
    slice_axis
        RAS+ axis along which the scan was sliced, or None when the scan itself cannot be read.
    acquired
        The scan as acquired (nearest RAS+) and its affine, or None.
    window
        Intensities drawn black and white.
    """

    before: np.ndarray
    after: np.ndarray
    mask: np.ndarray
    has_mask: bool
    std: np.ndarray | None
    truth: np.ndarray | None
    affine: np.ndarray
    slice_axis: int | None
    acquired: tuple[np.ndarray, np.ndarray] | None
    window: tuple[float, float]

    @property
    def sizes_mm(self) -> np.ndarray:
        """Voxel edges (mm) along x, y, z."""
        return voxel_sizes(self.affine)

    def pixel_mm(self, plane: Plane) -> tuple[float, float]:
        """Height and width (mm) of a pixel of a plane."""
        return float(self.sizes_mm[plane.rows]), float(self.sizes_mm[plane.columns])

    @property
    def tilt_degrees(self) -> float:
        """Largest angle between an array axis and the scanner axis it stands for."""
        directions = np.abs(np.diag(self.affine[:3, :3])) / self.sizes_mm
        return float(np.degrees(np.arccos(np.clip(directions.min(), -1, 1))))


def load_volumes(record: Mapping[str, Any]) -> Volumes:
    """Load what a record of an enhanced scan points to.

    Parameters
    ----------
    record
        Keys ``output`` (required), and ``input``, ``spline``, ``std``, ``mask``, ``truth``: paths, or None.
        Without ``spline`` the input is interpolated onto the output's grid; without both there is nothing to
        compare with.

    Returns
    -------
    Volumes

    Raises
    ------
    InputError
        The output, or everything to compare it with, is missing; or a volume is not three-dimensional.
    """
    after_image = canonical(record, "output")
    if after_image is None:
        raise InputError(
            record.get("output") or "the record",
            found="no output volume",
            expected="a readable NIfTI file",
            next_step="Run the scan again; its outputs were moved or removed.",
        )
    affine = after_image.affine
    after = array_of(after_image)
    scan = canonical(record, "input")
    spline = canonical(record, "spline")
    if spline is None and scan is None:
        raise InputError(
            record.get("input") or "the record",
            found="neither the scan nor its spline",
            expected="one of them, to compare with",
            next_step="Put the scan back where it was and write the page again.",
        )
    if spline is not None:
        before = on_grid((array_of(spline), spline.affine), affine, after.shape, kind="spline")
    else:
        before = spline_of(scan, affine, after.shape)
    mask_image, std_image, truth_image = (canonical(record, key) for key in ("mask", "std", "truth"))
    mask = None
    if mask_image is not None:
        mask = on_grid((array_of(mask_image), mask_image.affine), affine, after.shape) > 0.5
    has_mask = mask is not None and bool(mask.any())
    if not has_mask:
        mask = _foreground(before)
    scan_sizes = None if scan is None else voxel_sizes(scan.affine)
    return Volumes(
        before=before,
        after=after,
        mask=mask,
        has_mask=has_mask,
        std=None
        if std_image is None
        else on_grid((array_of(std_image), std_image.affine), affine, after.shape),
        truth=None
        if truth_image is None
        else on_grid((array_of(truth_image), truth_image.affine), affine, after.shape, kind="spline"),
        affine=affine,
        slice_axis=None if scan_sizes is None else int(np.argmax(scan_sizes)),
        acquired=None if scan is None else (array_of(scan), scan.affine),
        window=window_of(before, mask, has_mask=has_mask),
    )


def cut(data: np.ndarray, plane: Plane, index: int, *, convention: str) -> np.ndarray:
    """Cut one plane out of an RAS+ array, oriented for display: superior (or anterior) is up.

    Returns
    -------
    ndarray, shape (rows, columns)
        Row 0 is the top of the picture.
    """
    # Indexing gives a view; np.take would first copy the whole volume.
    picture = data[tuple(index if a == plane.normal else slice(None) for a in range(3))].T[::-1]
    # Anterior is drawn on the left of a sagittal picture in both conventions.
    flip = plane.columns == 1 or convention == "radiological"
    return picture[:, ::-1] if flip else picture


def choose_slices(mask: np.ndarray, plane: Plane, wanted: int) -> list[int]:
    """Indices of `wanted` slices spread evenly over the extent of the mask, its outermost tenth left out.

    Fewer slices than wanted give a smaller square number (4 or 1), so that they still fill a square sheet.
    """
    extent = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != plane.normal)))
    first, last = (extent[0], extent[-1]) if extent.size else (0, mask.shape[plane.normal] - 1)
    margin = 0.1 * (last - first)
    for count in (n for n in (9, 4, 1) if n <= wanted):
        if count == 1:
            return [round((first + last) / 2)]
        chosen = sorted({round(i) for i in np.linspace(first + margin, last - margin, count)})
        if len(chosen) == count:
            return chosen
    return [int(first)]


def crop_box(
    volumes: Volumes, plane: Plane, *, convention: str, margin_mm: float = 6.0
) -> tuple[slice, slice]:
    """Rows and columns of a picture that hold the head (not the air around it), with a margin."""
    low, high = volumes.window
    head = volumes.before > low + 0.12 * (high - low)
    box = []
    for axis in (plane.rows, plane.columns):
        share = head.mean(axis=tuple(a for a in range(3) if a != axis))
        inside = np.flatnonzero(
            (share > 0.02 * share.max()) | volumes.mask.any(axis=tuple(a for a in range(3) if a != axis))
        )
        n = head.shape[axis]
        margin = round(margin_mm / volumes.sizes_mm[axis])
        start, stop = max(int(inside[0]) - margin, 0), min(int(inside[-1]) + 1 + margin, n)
        flipped = axis == plane.rows or plane.columns == 1 or convention == "radiological"
        box.append(slice(n - stop, n - start) if flipped else slice(start, stop))
    return box[0], box[1]


def position_label(volumes: Volumes, plane: Plane, index: int) -> str:
    """Where a slice is in the scanner's world, at the middle of the picture: for example ``R 12 mm``."""
    middle = (np.array(volumes.after.shape) - 1) / 2
    middle[plane.normal] = index
    world = float((volumes.affine[:3, :3] @ middle + volumes.affine[:3, 3])[plane.normal])
    return f"{plane.ends[world >= 0]} {abs(world):.0f} mm"


def _foreground(data: np.ndarray) -> np.ndarray:
    bright = np.percentile(data[::2, ::2, ::2], 98)
    mask = data > 0.2 * bright
    return mask if mask.any() else np.ones(data.shape, dtype=bool)


def window_of(data: np.ndarray, mask: np.ndarray, *, has_mask: bool) -> tuple[float, float]:
    """Intensities to draw black and white, from the brain (or the foreground) of a volume."""
    # Scalp fat is two to three times brighter than white matter: with a brain mask it may saturate, without
    # one most of it should.
    high = float(np.percentile(data[mask], 99.5 if has_mask else 95)) * 1.08
    low = float(np.percentile(data[::2, ::2, ::2], 1))
    low = 0.0 if -0.1 * high < low < 0.25 * high else low
    return (low, high) if high > low else (low, low + 1.0)
