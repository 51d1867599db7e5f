"""Slice axis, slice spacing, and positions of thick and thin slices.

The simulator, the cubic spline, the residual connection of the networks and the affine of the output all use
this file. Two conventions that differ by half a voxel would cost 6 dB.

Convention ("slab-centred"): thick slice ``i`` covers thin slices ``k i ... k i + k - 1``. Its centre has the
thin index ``k i + (k - 1) / 2``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from iqtflow.config import SETTINGS
from iqtflow.image.metadata import length_mm
from iqtflow.utils.errors import InputError

if TYPE_CHECKING:  # training from patch libraries runs without nibabel
    import nibabel as nib

#: Below this ratio of slice spacing to in-plane voxel size, a scan cannot gain along the slice axis.
NEAR_ISOTROPIC_RATIO = 1.5

#: Above this ratio a network would invent more than eleven of twelve thin slices. No model is trained for it.
LARGEST_RATIO = 12.0

#: Least and largest slice spacing, over k pixels, with which a network gets the plane as it is; beyond them
#: the plane is resampled to spacing / k. With models for 4 and 8 no ratio from `NEAR_ISOTROPIC_RATIO` to
#: `LARGEST_RATIO` is beyond them. Up to a ratio of 6.4 the model for 4 is better than that for 8, and it
#: gains more and more down to 1.5 (docs/results/any-ratio.md).
RATIO_OVER_K = (0.37, 1.6)

#: A plane whose pixels are larger than the wanted voxels by this factor is resampled before the network.
COARSE_PLANE = 1.05

AXIS_NAMES = ("i", "j", "k")  #: BIDS names of the array axes

#: Slices may overlap, but none is thicker than this many times their spacing.
THICKEST = 1.5


@dataclass(frozen=True)
class SliceGeometry:
    """Slice axis, spacing and thickness of a scan.

    Attributes
    ----------
    axis
        Array axis (0, 1, 2) along which slices are stacked.
    spacing_mm
        Distance between the centres of neighbouring slices, from the affine.
    thickness_mm
        Slice thickness; the spacing if the sidecar does not state it.
    gap_mm
        ``spacing_mm - thickness_mm``, never below 0 (overlapping slices have no gap).
    inplane_mm
        Voxel size along the two other axes, in array order.
    ratio
        Spacing over the geometric mean of the in-plane voxel sizes.
    source
        Where spacing and thickness come from.
    notes
        Contradictions between sidecar and header, as sentences.
    thickness_stated
        Whether the sidecar states the thickness.
    """

    axis: int
    spacing_mm: float
    thickness_mm: float
    gap_mm: float
    inplane_mm: tuple[float, float]
    ratio: float
    source: str
    notes: tuple[str, ...] = ()
    thickness_stated: bool = False

    @property
    def near_isotropic(self) -> bool:
        """True if `ratio` is below `NEAR_ISOTROPIC_RATIO`."""
        return self.ratio < NEAR_ISOTROPIC_RATIO


@dataclass(frozen=True)
class Upsampling:
    """How a scan is brought to its model.

    Attributes
    ----------
    k
        Upsampling factor.
    inplane_mm
        In-plane voxel size that the scan is resampled to before the network; None: the plane is kept.
    note
        The choice, in words.
    ratio
        Slice spacing over the in-plane voxel size that was wanted for the network.
    far
        Whether the plane is resampled because `ratio` is too far from `k`.
    """

    k: int
    inplane_mm: float | None
    note: str
    ratio: float
    far: bool = False


def slice_axis(affine: np.ndarray) -> int:
    """Return the array axis along which slices are stacked: the one with the largest voxel edge.

    Examples
    --------
    >>> slice_axis(np.diag([-0.9, 7.2, 0.9, 1]))
    1
    """
    from nibabel.affines import voxel_sizes

    return int(np.argmax(voxel_sizes(affine)))


def find_slice_geometry(image: nib.Nifti1Image, sidecar: Mapping[str, Any] | None = None) -> SliceGeometry:
    """Find slice axis, spacing, thickness and gap of a scan.

    The spacing comes from the header, which places the voxels in the world. The thickness comes from
    ``SliceThickness`` in the sidecar, if stated: NIfTI does not store it.

    Parameters
    ----------
    image
        Three-dimensional image with a valid affine.
    sidecar
        BIDS metadata of the image (``SliceThickness``, ``SpacingBetweenSlices`` in mm).

    Returns
    -------
    SliceGeometry

    Raises
    ------
    InputError
        ``SliceThickness`` or ``SpacingBetweenSlices`` is not a positive number.
    """
    from nibabel.affines import voxel_sizes

    sidecar = sidecar or {}
    sizes, axis = voxel_sizes(image.affine), slice_axis(image.affine)
    spacing = float(sizes[axis])
    first, second = (float(s) for i, s in enumerate(sizes) if i != axis)
    inplane = (first, second)
    source = f"spacing {spacing:.4g} mm from the NIfTI header"
    notes = []
    json_file = f"the JSON sidecar of {image.get_filename() or 'the scan'}"
    stated = _positive_number(sidecar, "SpacingBetweenSlices")
    if stated is not None:
        if abs(stated - spacing) <= 0.02 * spacing:
            source += " (SpacingBetweenSlices in the sidecar agrees)"
        else:
            source += f" (SpacingBetweenSlices in the sidecar is {stated:.4g} mm: not used)"
            notes.append(
                f"SpacingBetweenSlices is {stated:g} mm in {json_file}, but {spacing:.4g} mm in the NIfTI "
                "header: the header is used."
            )
    thickness = _positive_number(sidecar, "SliceThickness")
    if thickness is not None and thickness > THICKEST * spacing:
        notes.append(
            f"SliceThickness is {thickness:g} mm in {json_file}, but slices are {spacing:.4g} mm apart in "
            "the NIfTI header: the thickness is not used."
        )
        thickness = None
    stated_thickness = thickness is not None
    if thickness is None:
        thickness = spacing
        source += "; thickness not stated, set to the spacing"
    else:
        source += f"; thickness {thickness:.4g} mm from SliceThickness in the sidecar"
    gap = max(spacing - thickness, 0.0)
    ratio = spacing / float(np.sqrt(inplane[0] * inplane[1]))
    return SliceGeometry(
        axis, spacing, thickness, gap, inplane, ratio, source, tuple(notes), stated_thickness
    )


def choose_upsampling(
    geometry: SliceGeometry, available_k: Sequence[int], voxel_size: float | str = "native"
) -> Upsampling:
    """Choose the upsampling factor for a scan.

    Parameters
    ----------
    geometry
        Geometry of the scan.
    available_k
        Factors of the available models.
    voxel_size
        Wanted voxel size of the enhanced volume, in mm; "native": the plane of the scan.

    Returns
    -------
    Upsampling
        The smallest factor for which the ratio is not too large, else the largest factor. It has an in-plane
        voxel size if ratio over factor is outside of `RATIO_OVER_K`, or if the plane must be resampled to
        the wanted voxel size before the network (`plane_before`).
    """
    plane = plane_before(geometry, voxel_size)
    ratio = geometry.ratio if plane is None else geometry.spacing_mm / plane
    low, high = RATIO_OVER_K
    k = min((k for k in available_k if ratio <= high * k), default=max(available_k))
    note = f"ratio {ratio:.2f}, model k = {k}"
    if not low <= ratio / k <= high:
        target = geometry.spacing_mm / k
        note += f"; in-plane grid resampled to {target:.3g} mm so that the ratio is {k}"
        return Upsampling(k, target, note, ratio, far=True)
    if plane is None:
        return Upsampling(k, None, f"{note}; in-plane grid kept", ratio)
    return Upsampling(
        k, plane, f"{note}; in-plane grid resampled to the wanted voxel size, {plane:.3g} mm", ratio
    )


def plane_before(geometry: SliceGeometry, voxel_size: float | str) -> float | None:
    """Return the in-plane voxel size that is wanted before the network; None: that of the scan.

    A plane that is coarser than the wanted voxels is resampled to them before the network, which then
    sharpens it. A finer plane is resampled after the network, unless the ratio on it is above
    `LARGEST_RATIO`.

    Parameters
    ----------
    geometry
        Geometry of the scan.
    voxel_size
        Wanted voxel size of the enhanced volume, in mm; "native": the plane of the scan.
    """
    if isinstance(voxel_size, str):
        return None
    coarse = max(geometry.inplane_mm) > COARSE_PLANE * voxel_size
    return voxel_size if coarse or geometry.ratio > LARGEST_RATIO else None


def require_ratio(geometry: SliceGeometry, voxel_size: float | str, name: str | os.PathLike) -> None:
    """Make sure that the slices of a scan are not too far apart for any model.

    Parameters
    ----------
    geometry, voxel_size
        As for `plane_before`.
    name
        The scan, for the message.

    Raises
    ------
    InputError
        Slice spacing over in-plane voxel size is above `LARGEST_RATIO`.
    """
    plane = plane_before(geometry, voxel_size)
    ratio = geometry.ratio if plane is None else geometry.spacing_mm / plane
    if ratio <= LARGEST_RATIO * (1 + 1e-4):  # headers keep voxel sizes in single precision
        return
    first, second = geometry.inplane_mm if plane is None else (plane, plane)
    item = SETTINGS["enhance"]["voxel_size"]
    least = math.ceil(10 * geometry.spacing_mm / LARGEST_RATIO) / 10
    raise InputError(
        name,
        found=f"slices {geometry.spacing_mm:.3g} mm apart and a plane of {first:.3g} x {second:.3g} mm: "
        f"ratio {ratio:.1f}",
        expected=f"a ratio of at most {LARGEST_RATIO:g}",
        next_step=(
            f"Ask for larger voxels with {item.option} {max(least, item.low or 0):g}, or use"
            if least <= (item.high or 0)
            else "Use"
        )
        + " --force to enhance it anyway, on a coarser plane.",
    )


def slices_last(data: np.ndarray, affine: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Permute the array axes so that slices are stacked along the last one; the affine follows."""
    order = [i for i in range(3) if i != axis] + [axis]
    return np.transpose(data, order), _permute(affine, order)


def slices_back(data: np.ndarray, affine: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Undo `slices_last`."""
    order = [i for i in range(3) if i != axis] + [axis]
    inverse = list(np.argsort(order))
    return np.transpose(data, inverse), _permute(affine, inverse)


def thick_affine(affine: np.ndarray, k: float) -> np.ndarray:
    """Affine of the thick-slice grid of a thin-slice grid, slices last (slab-centred).

    Examples
    --------
    The centre of a slice of four voxels of 1 mm is 1.5 mm from the first voxel:

    >>> thick_affine(np.eye(4), 4)[2].tolist()
    [0.0, 0.0, 4.0, 1.5]
    """
    out = np.array(affine, dtype=float)
    out[:3, 3] += out[:3, 2] * (k - 1) / 2
    out[:3, 2] *= k
    return out


def thin_affine(affine: np.ndarray, k: int) -> np.ndarray:
    """Affine of the thin-slice grid of a thick-slice grid, slices last; undoes `thick_affine`."""
    out = np.array(affine, dtype=float)
    out[:3, 2] /= k
    out[:3, 3] -= out[:3, 2] * (k - 1) / 2
    return out


@lru_cache(maxsize=64)
def spline_matrix(n_slices: int, k: int) -> np.ndarray:
    """Matrix of cubic B-spline interpolation from ``n_slices`` thick to ``k n_slices`` thin slices.

    The baseline (NumPy) and the residual connection (torch) use the same matrix. Beyond the outermost centres
    the edge value is repeated.

    Returns
    -------
    ndarray, shape (k n_slices, n_slices), float64
        Rows sum to 1. Read-only, because it is cached.
    """
    if n_slices == 1:
        matrix = np.ones((k, 1))
    else:
        matrix = sample_spline(np.eye(n_slices), 0, (np.arange(k * n_slices) - (k - 1) / 2) / k)
    matrix.setflags(write=False)
    return matrix


def cubic_upsample(data: np.ndarray, k: int) -> np.ndarray:
    """Interpolate thick slices to thin ones by cubic B-splines, the baseline for networks.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Slices last.
    k
        Upsampling factor.

    Returns
    -------
    ndarray, shape (w, h, k d), float32

    Examples
    --------
    >>> cubic_upsample(np.ones((2, 2, 5)), 4).shape
    (2, 2, 20)
    """
    return np.matmul(np.asarray(data, dtype=np.float32), spline_matrix(data.shape[2], k).T.astype(np.float32))


def bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Return the box around a mask and a margin (voxels) around it, as far as it is inside the volume.

    Raises
    ------
    InputError
        The mask is empty.
    """
    if not mask.any():
        raise InputError(
            "brain mask",
            found="no voxel inside",
            expected="a brain",
            next_step="Check the image and its mask.",
        )
    box = []
    for axis, n in enumerate(mask.shape):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(int(hit[0]) - margin, 0), min(int(hit[-1]) + 1 + margin, n)))
    return tuple(box)


def thin_box(box: Sequence[slice], k: int) -> tuple[slice, ...]:
    """Return the same box in thin slices, slices last: k of them for each thick slice."""
    *plane, slices = box
    return (*plane, slice(slices.start * k, slices.stop * k))


def sample_spline(volume: np.ndarray, axis: int, where: np.ndarray) -> np.ndarray:
    """Interpolate along one axis by cubic B-splines at `where` (voxels, fractions allowed); beyond the ends,
    the edge value. Input and result have the same precision, single or double.
    """
    coefficients = ndimage.spline_filter1d(volume, 3, axis=axis, mode="mirror", output=volume.dtype)
    n = volume.shape[axis]
    where = np.clip(where, 0, n - 1)
    base = np.floor(where).astype(int)
    t = where - base
    weights = [
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    ]
    shape = [1] * coefficients.ndim
    shape[axis] = -1
    out: np.ndarray = np.zeros((), coefficients.dtype)
    for shift, weight in zip((-1, 0, 1, 2), weights, strict=True):
        index = base + shift
        # Mirror about the outermost nodes, like the prefilter.
        index = np.abs(index)
        index = np.where(index > n - 1, 2 * (n - 1) - index, index)
        out = out + np.take(coefficients, index, axis=axis) * weight.reshape(shape).astype(coefficients.dtype)
    return out


def _permute(affine: np.ndarray, order: Sequence[int]) -> np.ndarray:
    out = np.array(affine, dtype=float)
    out[:3, :3] = out[:3, list(order)]
    return out


def _positive_number(sidecar: Mapping[str, Any], key: str) -> float | None:
    value = sidecar.get(key)
    if value is None:
        return None
    if (length := length_mm(value)) is None:
        raise InputError(
            f"sidecar field {key}",
            found=repr(value),
            expected="a positive number of millimetres",
            next_step=f"Correct {key} in the JSON sidecar, or remove it.",
        )
    return length
