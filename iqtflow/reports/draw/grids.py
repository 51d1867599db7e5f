"""Volumes from files, nearest to RAS+, and from one grid to another."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from iqtflow.image.geometry import cubic_upsample, slice_axis, slices_back, slices_last, thin_affine
from iqtflow.image.nifti_file import open_nifti
from iqtflow.utils.errors import InputError


def canonical(record: Mapping[str, Any], key: str) -> nib.Nifti1Image | None:
    """Image of a record, axes permuted and flipped to the nearest RAS+; None when it is not there.

    Raises
    ------
    InputError
        It is not three-dimensional.
    """
    path = record.get(key)
    if not path or not Path(path).is_file():
        return None
    image = nib.funcs.squeeze_image(open_nifti(path))
    if image.ndim != 3:
        raise InputError(
            path, found=f"{image.ndim} dimensions", expected="3", next_step=f"Give one volume as {key!r}."
        )
    return nib.as_closest_canonical(image)


def array_of(image: nib.Nifti1Image) -> np.ndarray:
    """Voxels as finite float32."""
    data = np.asarray(image.dataobj, dtype=np.float32)
    return data if np.isfinite(data).all() else np.nan_to_num(data, posinf=0, neginf=0)


def load_array(record: Mapping[str, Any], key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Load a volume of a record: float32 array nearest to RAS+, and its affine; None when it is not there."""
    image = canonical(record, key)
    return None if image is None else (array_of(image), image.affine)


def on_grid(
    volume: tuple[np.ndarray, np.ndarray], affine: np.ndarray, shape: tuple[int, ...], *, kind: str = "linear"
) -> np.ndarray:
    """Bring a volume to another grid; one that is there stays.

    Parameters
    ----------
    volume
        Array and affine.
    affine, shape
        The other grid.
    kind
        ``linear``, ``spline`` (cubic), or ``nearest`` (each voxel as the block that it is).
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
            return data[part]  # the same voxels, of which the other volume has more
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
        # Speaks of a change in SciPy 0.18; what it changed to is what is meant here.
        warnings.filterwarnings("ignore", message="The behavior of affine_transform with a 1-D array")
        return ndimage.affine_transform(
            data,
            np.diag(matrix) if aligned else matrix,  # aligned, SciPy works axis by axis
            offset,
            output_shape=shape,
            order={"nearest": 0, "linear": 1, "spline": 3}[kind],
            mode="nearest",
        )


def spline_of(scan: nib.Nifti1Image, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate a scan by the baseline's own function where the grids nest, else onto the output's."""
    axis = slice_axis(scan.affine)
    data, last_affine = slices_last(array_of(scan), scan.affine, axis)
    k = shape[axis] // data.shape[2]
    if k >= 1 and tuple(np.delete(shape, axis)) == data.shape[:2]:
        before, found = slices_back(cubic_upsample(data, k), thin_affine(last_affine, k), axis)
        if before.shape == tuple(shape) and np.allclose(found, affine, atol=1e-2):
            return before
    return on_grid((array_of(scan), scan.affine), affine, shape, kind="spline")


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
