"""From one regular grid to another one with the same axes, by cubic B-splines.

Along each axis that differs, a volume is interpolated once. An axis that is on the wanted grid already keeps
its values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from iqtflow.image.geometry import sample_spline

#: Steps and positions that differ by less, in voxels, are the same.
SAME = 1e-4


def isotropic_grid(
    shape: Sequence[int], affine: np.ndarray, voxel_mm: float
) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of the grid of cubic voxels over a field of view, whose centre stays in place.

    Parameters
    ----------
    shape
        Of the given grid.
    affine : ndarray, shape (4, 4)
        Its voxel indices to world mm.
    voxel_mm
        Edge of the cubic voxels.

    Returns
    -------
    shape : tuple of int
        As many voxels as fit best into the field of view.
    affine : ndarray, shape (4, 4)
        Voxel indices of the new grid to world mm.

    Examples
    --------
    Ten slices 5 mm apart become fifty; the outer edge stays at -2.5 mm:

    >>> shape, affine = isotropic_grid((20, 20, 10), np.diag([1.0, 1, 5, 1]), 1)
    >>> shape, affine[2].round(6).tolist()
    ((20, 20, 50), [0.0, 0.0, 1.0, -2.0])
    """
    return _with_edges(shape, affine, (voxel_mm,) * 3)


def resample_inplane(data: np.ndarray, affine: np.ndarray, target_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Resample the plane of a slices-last volume to square voxels of edge `target_mm`.

    As `to_grid`. The centre of the field of view stays in place.
    """
    shape, grid = _with_edges(data.shape, affine, (target_mm, target_mm, None))
    return to_grid(data, affine, shape, grid), grid


def to_grid(data: np.ndarray, affine: np.ndarray, shape: Sequence[int], grid: np.ndarray) -> np.ndarray:
    """Resample a volume to another grid with the same axes.

    Cubic B-splines, one interpolation along each axis that differs. Where the step grows, a Gaussian whose
    FWHM is the new voxel (in quadrature) suppresses aliasing before. Outside of the volume, the value at the
    edge is repeated.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Any real type.
    affine : ndarray, shape (4, 4)
        Its voxel indices to world mm.
    shape, grid
        Shape and affine of the other grid.

    Returns
    -------
    ndarray of the given shape, float32

    Raises
    ------
    ValueError
        The axes of the two grids have other directions.
    """
    data = np.asarray(data, dtype=np.float32)
    move = np.linalg.inv(affine) @ grid
    if not same_axes(affine, grid):
        raise ValueError("the two grids have other axes")
    for axis, n_new in enumerate(shape):
        step, first, n_old = float(move[axis, axis]), float(move[axis, 3]), data.shape[axis]
        if n_old == n_new and abs(step - 1) * n_old < SAME and abs(first) < SAME:
            continue
        if n_old == 1:
            data = np.repeat(data, n_new, axis=axis)
            continue
        if step > 1:
            sigma = np.sqrt(step**2 - 1) / np.sqrt(8 * np.log(2))
            data = ndimage.gaussian_filter1d(data, sigma, axis=axis, mode="nearest")
        data = sample_spline(data, axis, first + step * np.arange(n_new))
    return data


def same_axes(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two affines have the same axes in the same order and direction."""
    move = (np.linalg.inv(one) @ other)[:3, :3]
    steps = np.diag(move)
    return bool((steps > 0).all() and np.abs(move - np.diag(steps)).max() < 1e-3 * steps.min())


def _with_edges(
    shape: Sequence[int], affine: np.ndarray, edges_mm: Sequence[float | None]
) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the grid with other voxel edges over the same field of view; None keeps an axis."""
    from nibabel.affines import voxel_sizes

    new, grid, sizes = list(shape), np.array(affine, dtype=float), voxel_sizes(affine)
    for axis, edge in enumerate(edges_mm):
        if edge is None:
            continue
        step = edge / float(sizes[axis])
        new[axis] = max(round(shape[axis] / step), 1)
        first = (shape[axis] - 1) / 2 - step * (new[axis] - 1) / 2
        grid[:3, 3] += grid[:3, axis] * first
        grid[:3, axis] *= step
    return tuple(new), grid
