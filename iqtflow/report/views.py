"""The volumes behind one page, brought to one grid and one orientation, and the cuts through them.

Arrays are permuted and flipped to the nearest RAS+ orientation (`nibabel.as_closest_canonical`): the planes
shown are the scan's own, so an oblique scan is shown without interpolation. Only a volume on another grid
than the output is resampled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from iqtflow.errors import InputError
from iqtflow.geometry import cubic_upsample, slices_back, slices_last, thin_affine, voxel_sizes

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
        Standard deviation over the ensemble; the image that was hidden from the network. Either may be
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
    after_image = _canonical(record, "output")
    if after_image is None:
        raise InputError(
            record.get("output") or "the record",
            found="no output volume",
            expected="a readable NIfTI file",
            next_step="Run the scan again; its outputs were moved or removed.",
        )
    affine = after_image.affine
    after = _array(after_image)
    scan = _canonical(record, "input")
    spline = _canonical(record, "spline")
    if spline is None and scan is None:
        raise InputError(
            record.get("input") or "the record",
            found="neither the scan nor its spline",
            expected="one of them, to compare with",
            next_step="Put the scan back where it was and write the page again.",
        )
    if spline is not None:
        before = _on_grid(spline, affine, after.shape, smooth=True)
    else:
        before = _spline_of(scan, affine, after.shape)
    mask_image, std_image, truth_image = (_canonical(record, key) for key in ("mask", "std", "truth"))
    mask = None
    if mask_image is not None:
        mask = _on_grid(mask_image, affine, after.shape, smooth=False) > 0.5
    has_mask = mask is not None and bool(mask.any())
    if not has_mask:
        mask = _foreground(before)
    scan_sizes = None if scan is None else voxel_sizes(scan.affine)
    return Volumes(
        before=before,
        after=after,
        mask=mask,
        has_mask=has_mask,
        std=None if std_image is None else _on_grid(std_image, affine, after.shape, smooth=False),
        truth=None if truth_image is None else _on_grid(truth_image, affine, after.shape, smooth=True),
        affine=affine,
        slice_axis=None if scan_sizes is None else int(np.argmax(scan_sizes)),
        acquired=None if scan is None else (_array(scan), scan.affine),
        window=_window(before, mask, has_mask=has_mask),
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


def _canonical(record: Mapping[str, Any], key: str) -> nib.Nifti1Image | None:
    path = record.get(key)
    if not path or not Path(path).is_file():
        return None
    image = nib.funcs.squeeze_image(nib.load(path))
    if image.ndim != 3:
        raise InputError(
            path, found=f"{image.ndim} dimensions", expected="3", next_step=f"Give one volume as {key!r}."
        )
    return nib.as_closest_canonical(image)


def _array(image: nib.Nifti1Image) -> np.ndarray:
    data = np.asarray(image.dataobj, dtype=np.float32)
    return data if np.isfinite(data).all() else np.nan_to_num(data, posinf=0, neginf=0)


def _on_grid(
    image: nib.Nifti1Image, affine: np.ndarray, shape: tuple[int, ...], *, smooth: bool
) -> np.ndarray:
    """Bring a volume to another grid, by cubic splines (`smooth`) or linearly; one that is there stays."""
    data = _array(image)
    if image.shape == tuple(shape) and np.allclose(image.affine, affine, atol=1e-3):
        return data
    to_source = np.linalg.inv(image.affine) @ affine
    matrix, offset = to_source[:3, :3], to_source[:3, 3]
    first = np.round(offset).astype(int)
    if np.allclose(matrix, np.eye(3), atol=1e-4) and np.allclose(offset, first, atol=1e-2):
        part = tuple(slice(f, f + n) for f, n in zip(first, shape, strict=True))
        if all(p.start >= 0 and p.stop <= n for p, n in zip(part, image.shape, strict=True)):
            return data[part]  # the same voxels, of which the other volume has more
    aligned = np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-4)
    if aligned and not smooth:
        for axis in range(3):
            data = _linear_axis(data, axis, matrix[axis, axis] * np.arange(shape[axis]) + offset[axis])
        return data
    with warnings.catch_warnings():
        # Speaks of a change in SciPy 0.18; what it changed to is what is meant here.
        warnings.filterwarnings("ignore", message="The behavior of affine_transform with a 1-D array")
        return ndimage.affine_transform(
            data,
            np.diag(matrix) if aligned else matrix,  # aligned, SciPy works axis by axis
            offset,
            output_shape=shape,
            order=3 if smooth else 1,
            mode="nearest",
        )


def _spline_of(scan: nib.Nifti1Image, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate a scan by the baseline's own function where the grids nest, else onto the output's."""
    axis = int(np.argmax(voxel_sizes(scan.affine)))
    data, last_affine = slices_last(_array(scan), scan.affine, axis)
    k = shape[axis] // data.shape[2]
    if k >= 1 and tuple(np.delete(shape, axis)) == data.shape[:2]:
        before, found = slices_back(cubic_upsample(data, k), thin_affine(last_affine, k), axis)
        if before.shape == tuple(shape) and np.allclose(found, affine, atol=1e-2):
            return before
    return _on_grid(scan, affine, shape, smooth=True)


def _linear_axis(data: np.ndarray, axis: int, where: np.ndarray) -> np.ndarray:
    """Interpolate linearly along one axis at `where`; beyond the ends the edge value goes on."""
    n = data.shape[axis]
    where = np.clip(where, 0, n - 1)
    if len(where) == n and np.allclose(where, np.arange(n), atol=1e-3):
        return data
    base = np.floor(where).astype(int)
    weight = (where - base).astype(data.dtype).reshape([-1 if a == axis else 1 for a in range(3)])
    lower = np.take(data, base, axis=axis)
    return lower + weight * (np.take(data, np.minimum(base + 1, n - 1), axis=axis) - lower)


def _foreground(data: np.ndarray) -> np.ndarray:
    bright = np.percentile(data[::2, ::2, ::2], 98)
    mask = data > 0.2 * bright
    return mask if mask.any() else np.ones(data.shape, dtype=bool)


def _window(data: np.ndarray, mask: np.ndarray, *, has_mask: bool) -> tuple[float, float]:
    # Scalp fat is two to three times brighter than white matter: with a brain mask it may saturate, without
    # one most of it should.
    high = float(np.percentile(data[mask], 99.5 if has_mask else 95)) * 1.08
    low = float(np.percentile(data[::2, ::2, ::2], 1))
    low = 0.0 if -0.1 * high < low < 0.25 * high else low
    return (low, high) if high > low else (low, low + 1.0)
