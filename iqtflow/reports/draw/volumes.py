"""The volumes of one scan on one grid and in one orientation, and slices of them.

Arrays are permuted and flipped to the nearest RAS+ orientation (`nibabel.as_closest_canonical`). The planes
are those of the scan, so an oblique scan is shown without interpolation. Only a volume on another grid than
the enhanced volume is resampled.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from iqtflow.image.geometry import slice_axis
from iqtflow.image.nifti_file import open_nifti
from iqtflow.image.resampling import same_axes, to_grid
from iqtflow.reports.record import TISSUES, Place, Record
from iqtflow.utils.errors import InputError

#: Side of the patient that is on the left of a picture: radiological, the right side; neurological, the left.
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
    """The volumes of one scan, as float32 arrays of one shape (x, y, z), nearest to RAS+.

    Attributes
    ----------
    before, after
        Cubic spline of the scan, and the enhanced volume, on the same grid. Both are the scan itself if it
        was prepared for training.
    mask
        Brain, or the foreground when no mask was given.
    has_mask
        False when `mask` is only a threshold.
    affine
        (4, 4), voxel to world in mm.
    window
        Intensities drawn black and white.
    std, truth
        Standard deviation; the high-field scan that the network did not see. Either may be missing.
    slice_axis
        RAS+ axis across the slices of the scan, or None when the scan cannot be read.
    acquired
        The scan as acquired (nearest RAS+) and its affine, or None.
    """

    before: np.ndarray
    after: np.ndarray
    mask: np.ndarray
    has_mask: bool
    affine: np.ndarray
    window: tuple[float, float]
    std: np.ndarray | None = None
    truth: np.ndarray | None = None
    slice_axis: int | None = None
    acquired: tuple[np.ndarray, np.ndarray] | None = None

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


def load_volumes(record: Record) -> Volumes:
    """Load the volumes of an enhanced scan.

    Parameters
    ----------
    record
        With ``output``; ``input``, ``spline``, ``std``, ``mask``, ``truth`` are optional. Without ``spline``
        the input is interpolated onto the grid of the output.

    Returns
    -------
    Volumes

    Raises
    ------
    InputError
        The output is missing, or both the scan and its spline are, or a volume is not three-dimensional.
    """
    output = load_array(record.output)
    if output is None:
        raise InputError(
            record.output or "the record",
            found="no output volume",
            expected="a readable NIfTI file",
            next_step="Run the scan again; its outputs were moved or removed.",
        )
    after, affine = output
    acquired, spline = load_array(record.input), load_array(record.spline)
    if spline is not None:
        before = on_grid(spline, affine, after.shape, kind="spline")
    elif acquired is not None:
        before = spline_of(acquired, affine, after.shape)
    else:
        raise InputError(
            record.input or "the record",
            found="neither the scan nor its spline",
            expected="one of them, to compare with",
            next_step="Put the scan back where it was and write the page again.",
        )
    std, truth = load_array(record.std), load_array(record.truth)
    mask, has_mask = _find_mask(load_array(record.mask), before, affine)
    return Volumes(
        before=before,
        after=after,
        mask=mask,
        has_mask=has_mask,
        affine=affine,
        window=window_of(before, mask, has_mask=has_mask),
        std=None if std is None else on_grid(std, affine, after.shape),
        truth=None if truth is None else on_grid(truth, affine, after.shape, kind="spline"),
        slice_axis=None if acquired is None else slice_axis(acquired[1]),
        acquired=acquired,
    )


def load_prepared(record: Record) -> tuple[Volumes, dict[str, np.ndarray]]:
    """Load a scan that was prepared for training: the volumes, and its maps ``wm``, ``gm``, ``csf``, ``mask``
    on the same grid, as far as they are there.

    Raises
    ------
    InputError
        The scan is missing, or a volume is not three-dimensional.
    """
    scan = load_array(record.input)
    if scan is None:
        raise InputError(
            record.input or "the record",
            found="no high-field scan",
            expected="a readable NIfTI file",
            next_step="Put the scan back where it was and write the page again.",
        )
    image, affine = scan
    loaded = {name: load_array(getattr(record, name)) for name in (*TISSUES, "mask")}
    maps = {name: on_grid(part, affine, image.shape) for name, part in loaded.items() if part is not None}
    mask, has_mask = _find_mask(loaded["mask"], image, affine)
    if not has_mask:
        maps.pop("mask", None)
    window = window_of(image, mask, has_mask=has_mask)
    return Volumes(image, image, mask, has_mask, affine, window), maps


def cut(data: np.ndarray, plane: Plane, index: int, *, convention: str) -> np.ndarray:
    """Return one slice of an RAS+ array, oriented for display: superior (or anterior) is up.

    Returns
    -------
    ndarray, shape (rows, columns)
        Row 0 is the top of the picture.
    """
    # Indexing gives a view; np.take would first copy the whole volume.
    picture = data[tuple(index if a == plane.normal else slice(None) for a in range(3))].T[::-1]
    return picture[:, ::-1] if is_flipped(plane, plane.columns, convention=convention) else picture


def is_flipped(plane: Plane, axis: int, *, convention: str) -> bool:
    """Return whether the last index of an axis comes first in a picture, from the top or from the left."""
    # Anterior is drawn on the left of a sagittal picture in both conventions.
    return axis == plane.rows or plane.columns == 1 or convention == "radiological"


def choose_slices(mask: np.ndarray, plane: Plane, wanted: int) -> list[int]:
    """Return the indices of `wanted` slices, spread evenly over the mask without its outermost tenth.

    If there are fewer slices, 4 or 1 are chosen: a square number, to fill a square sheet.
    """
    extent = np.flatnonzero(mask.any(axis=(plane.rows, plane.columns)))
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
    """Return the rows and columns of a picture that contain the head, with a margin."""
    low, high = volumes.window
    head = volumes.before > low + 0.12 * (high - low)
    box = []
    for axis in (plane.rows, plane.columns):
        others = tuple(a for a in range(3) if a != axis)
        share = head.mean(axis=others)
        inside = np.flatnonzero((share > 0.02 * share.max()) | volumes.mask.any(axis=others))
        n = head.shape[axis]
        margin = round(margin_mm / volumes.sizes_mm[axis])
        start, stop = max(int(inside[0]) - margin, 0), min(int(inside[-1]) + 1 + margin, n)
        flipped = is_flipped(plane, axis, convention=convention)
        box.append(slice(n - stop, n - start) if flipped else slice(start, stop))
    return box[0], box[1]


def position_label(
    volumes: Volumes, plane: Plane, index: int, box: tuple[slice, slice], *, convention: str
) -> str:
    """Return the position of a slice in the scanner, at the middle of the picture: ``R 12 mm``.

    Parameters
    ----------
    volumes, plane, index
        The slice.
    box
        Rows and columns of the picture.
    convention
        ``radiological`` or ``neurological``.
    """
    middle = np.zeros(3)
    middle[plane.normal] = index
    for axis, part in zip((plane.rows, plane.columns), box, strict=True):
        at, last = (part.start + part.stop - 1) / 2, volumes.after.shape[axis] - 1
        middle[axis] = last - at if is_flipped(plane, axis, convention=convention) else at
    world = float((volumes.affine[:3, :3] @ middle + volumes.affine[:3, 3])[plane.normal])
    return f"{plane.ends[world >= 0]} {abs(world):.0f} mm"


def _find_mask(
    given: tuple[np.ndarray, np.ndarray] | None, data: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Return the brain on the grid of a volume and True; without a brain mask the foreground and False."""
    if given is not None:
        mask = on_grid(given, affine, data.shape) > 0.5
        if mask.any():
            return mask, True
    mask = data > 0.2 * np.percentile(data[::2, ::2, ::2], 98)
    return (mask if mask.any() else np.ones(data.shape, dtype=bool)), False


def window_of(data: np.ndarray, mask: np.ndarray, *, has_mask: bool) -> tuple[float, float]:
    """Return the intensities drawn black and white, from the brain (or the foreground) of a volume."""
    # Scalp fat is two to three times brighter than white matter and may saturate. Without a brain mask, the
    # middle half of the volume stands for the brain; it can have some fat.
    middle = tuple(slice(n // 4, n - n // 4) for n in data.shape)
    if has_mask or not mask[middle].any():
        high = float(np.percentile(data[mask], 99.5)) * 1.08
    else:
        high = float(np.percentile(data[middle][mask[middle]], 95)) * 1.17
    low = float(np.percentile(data[::2, ::2, ::2], 1))
    low = 0.0 if -0.1 * high < low < 0.25 * high else low
    return (low, high) if high > low else (low, low + 1.0)


def load_array(path: Place | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Load a volume nearest to RAS+ as finite float32, and its affine; None when it is not there.

    Raises
    ------
    InputError
        It is not three-dimensional.
    """
    if not path or not Path(path).is_file():
        return None
    image = nib.funcs.squeeze_image(open_nifti(path))
    if image.ndim != 3:
        raise InputError(
            path,
            found=f"{image.ndim} dimensions",
            expected="3",
            next_step="Give one 3-D volume.",
        )
    image = nib.as_closest_canonical(image)
    data = np.asarray(image.dataobj, dtype=np.float32)
    return (data if np.isfinite(data).all() else np.nan_to_num(data, posinf=0, neginf=0)), image.affine


def on_grid(
    volume: tuple[np.ndarray, np.ndarray], affine: np.ndarray, shape: tuple[int, ...], *, kind: str = "linear"
) -> np.ndarray:
    """Bring a volume to another grid; a volume that is on it already is returned as it is.

    Parameters
    ----------
    volume
        Array and affine.
    affine, shape
        The other grid.
    kind
        ``linear``, ``spline`` (cubic), or ``nearest`` (each voxel as a block).
    """
    data, own = volume
    if data.shape == tuple(shape) and np.allclose(own, affine, atol=1e-3):
        return data
    to_source = np.linalg.inv(own) @ affine
    matrix, offset = to_source[:3, :3], to_source[:3, 3]
    first = np.round(offset).astype(int)
    if np.allclose(matrix, np.eye(3), atol=1e-4) and np.allclose(offset, first, atol=1e-2):
        part = tuple(slice(f, f + n) for f, n in zip(first, shape, strict=True))
        if all(p.start >= 0 and p.stop <= n for p, n in zip(part, data.shape, strict=True)):
            return data[part]  # the same voxels; the other volume has more of them
    aligned = np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-4)
    if aligned and kind != "spline":
        for axis in range(3):
            where = matrix[axis, axis] * np.arange(shape[axis]) + offset[axis]
            if kind == "nearest":
                data = np.take(data, np.clip(np.round(where).astype(int), 0, data.shape[axis] - 1), axis=axis)
            else:
                data = _linear_axis(data, axis, where)
        return data
    with warnings.catch_warnings():
        # It announces a change of SciPy 0.18; the new behaviour is wanted here.
        warnings.filterwarnings("ignore", message="The behavior of affine_transform with a 1-D array")
        return ndimage.affine_transform(
            data,
            np.diag(matrix) if aligned else matrix,  # aligned, SciPy works axis by axis
            offset,
            output_shape=shape,
            order={"nearest": 0, "linear": 1, "spline": 3}[kind],
            mode="nearest",
        )


def spline_of(scan: tuple[np.ndarray, np.ndarray], affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate a scan onto another grid; if its axes are the same, with the function of the baseline."""
    if same_axes(scan[1], affine):
        return to_grid(*scan, shape, affine)
    return on_grid(scan, affine, shape, kind="spline")


def _linear_axis(data: np.ndarray, axis: int, where: np.ndarray) -> np.ndarray:
    """Interpolate linearly along one axis at `where`; outside, the value at the edge is used."""
    n = data.shape[axis]
    where = np.clip(where, 0, n - 1)
    if len(where) == n and np.allclose(where, np.arange(n), atol=1e-3):
        return data
    base = np.floor(where).astype(int)
    weight = (where - base).astype(data.dtype).reshape([-1 if a == axis else 1 for a in range(3)])
    lower = np.take(data, base, axis=axis)
    return lower + weight * (np.take(data, np.minimum(base + 1, n - 1), axis=axis) - lower)
