"""The one geometry: which axis holds the slices, how far apart they are, and where each slice sits.

Every place that relates a thick-slice grid to a thin one (simulator, cubic-spline baseline, residual
connection of the networks, affine of the output) calls this file, because two conventions that differ by half
a voxel cost 6 dB between them.

Convention ("slab-centred"): thick slice ``i`` stands for thin slices ``k i ... k i + k - 1`` and sits at
their centre, thin index ``k i + (k - 1) / 2``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from iqtflow.image.metadata import length_mm
from iqtflow.utils.errors import InputError

#: Spacing over in-plane voxel size below which a scan has nothing to gain along the slice axis.
NEAR_ISOTROPIC_RATIO = 1.5

#: Largest ``|log2(ratio / k)|`` at which a network sees the scan's own in-plane grid; past it the plane is
#: resampled to spacing / k.
#: Half an octave is the anisotropy that training data (up to 1 : 1.33 voxels on any axis) contain.
IN_PLANE_TOLERANCE_OCTAVES = 0.5

AXIS_NAMES = ("i", "j", "k")  #: BIDS names of the array axes

#: Slices may overlap, but none is thicker than this many times their spacing.
THICKEST = 1.5


@dataclass(frozen=True)
class SliceGeometry:
    """Where the slices of a scan are.

    Attributes
    ----------
    axis
        Array axis (0, 1, 2) along which slices are stacked.
    spacing_mm
        Distance between the centres of neighbouring slices, from the affine.
    thickness_mm
        Slice thickness; equal to the spacing when nothing says otherwise.
    gap_mm
        ``spacing_mm - thickness_mm``, never below 0 (overlapping slices have no gap).
    inplane_mm
        Voxel size along the two other axes, in array order.
    ratio
        Spacing over the geometric mean of the in-plane voxel sizes.
    source
        Where spacing and thickness come from, as a phrase for people.
    notes
        What the sidecar says and the header contradicts, as sentences.
    """

    axis: int
    spacing_mm: float
    thickness_mm: float
    gap_mm: float
    inplane_mm: tuple[float, float]
    ratio: float
    source: str
    notes: tuple[str, ...] = ()

    @property
    def near_isotropic(self) -> bool:
        """True when the slices are hardly thicker than the plane is fine (see `NEAR_ISOTROPIC_RATIO`)."""
        return self.ratio < NEAR_ISOTROPIC_RATIO


@dataclass(frozen=True)
class Upsampling:
    """How a scan meets a network: factor `k`, and the in-plane voxel size to resample to (None keeps the
    scan's own).
    """

    k: int
    inplane_mm: float | None
    note: str


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Edge lengths (mm) of a voxel along the three array axes of a (4, 4) affine.

    Examples
    --------
    >>> voxel_sizes(np.diag([-0.9, 0.9, 7.2, 1])).tolist()
    [0.9, 0.9, 7.2]
    """
    return np.linalg.norm(np.asarray(affine, dtype=float)[:3, :3], axis=0)


def find_slice_geometry(image: nib.Nifti1Image, sidecar: Mapping[str, Any] | None = None) -> SliceGeometry:
    """Find slice axis, spacing, thickness and gap of a scan.

    The axis with the largest voxel edge holds the slices. The spacing is the header's (it defines where
    voxels are in the world); the thickness is the sidecar's ``SliceThickness`` when there is one, since NIfTI
    does not store it.

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
    sidecar = sidecar or {}
    sizes = voxel_sizes(image.affine)
    axis = int(np.argmax(sizes))
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
            source += (
                f" (SpacingBetweenSlices in the sidecar says {stated:.4g} mm: not used, the header "
                "places the voxels)"
            )
            notes.append(
                f"SpacingBetweenSlices is {stated:g} mm in {json_file}, and {spacing:.4g} mm in the NIfTI "
                "header: the header's is used."
            )
    thickness = _positive_number(sidecar, "SliceThickness")
    if thickness is not None and thickness > THICKEST * spacing:
        notes.append(
            f"SliceThickness is {thickness:g} mm in {json_file}, and slices are {spacing:.4g} mm apart in "
            "the NIfTI header: the thickness is not used."
        )
        thickness = None
    if thickness is None:
        thickness = spacing
        source += "; thickness not stated, taken as the spacing"
    else:
        source += f"; thickness {thickness:.4g} mm from SliceThickness in the sidecar"
    gap = max(spacing - thickness, 0.0)
    return SliceGeometry(
        axis,
        spacing,
        thickness,
        gap,
        inplane,
        spacing / float(np.sqrt(inplane[0] * inplane[1])),
        source,
        tuple(notes),
    )


def choose_upsampling(geometry: SliceGeometry, available_k: Sequence[int]) -> Upsampling:
    """Choose the up-scaling factor for a scan among those that models exist for.

    Parameters
    ----------
    geometry
        Geometry of the scan.
    available_k
        Factors of the models at hand.

    Returns
    -------
    Upsampling
        The factor nearest to the scan's ratio in octaves; with an in-plane voxel size when ratio and factor
        differ by more than `IN_PLANE_TOLERANCE_OCTAVES`.
    """
    octaves, _, k = min((abs(np.log2(geometry.ratio / k)), -k, k) for k in available_k)
    note = f"ratio {geometry.ratio:.2f}, nearest model k = {k}"
    if octaves <= IN_PLANE_TOLERANCE_OCTAVES:
        return Upsampling(k, None, f"{note}; in-plane grid kept")
    target = geometry.spacing_mm / k
    return Upsampling(
        k, target, f"{note}; in-plane grid resampled to {target:.3g} mm so that the ratio is {k}"
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
    """Affine of the thick-slice grid that stands for a thin-slice grid, slices last (slab-centred).

    Examples
    --------
    The first slice of four voxels of 1 mm is centred 1.5 mm past the first voxel:

    >>> thick_affine(np.eye(4), 4)[2].tolist()
    [0.0, 0.0, 4.0, 1.5]
    """
    out = np.array(affine, dtype=float)
    out[:3, 3] += out[:3, 2] * (k - 1) / 2
    out[:3, 2] *= k
    return out


def thin_affine(affine: np.ndarray, k: int) -> np.ndarray:
    """Affine of the thin-slice grid behind a thick-slice grid, slices last; undoes `thick_affine`."""
    out = np.array(affine, dtype=float)
    out[:3, 2] /= k
    out[:3, 3] -= out[:3, 2] * (k - 1) / 2
    return out


@lru_cache(maxsize=64)
def spline_matrix(n_slices: int, k: int) -> np.ndarray:
    """Cubic B-spline interpolation from ``n_slices`` thick slices to ``k n_slices`` thin ones, as a matrix.

    Interpolation is linear in the data, so one matrix serves the baseline (NumPy) and the residual connection
    (torch). Beyond the outermost centres the edge value goes on.

    Returns
    -------
    ndarray, shape (k n_slices, n_slices), float64
        Rows sum to 1. Read-only, since it is shared.
    """
    if n_slices == 1:
        matrix = np.ones((k, 1))
    else:
        coefficients = ndimage.spline_filter1d(np.eye(n_slices), 3, axis=0, mode="mirror")
        matrix = _sample_axis(coefficients, 0, (np.arange(k * n_slices) - (k - 1) / 2) / k)
    matrix.setflags(write=False)
    return matrix


def cubic_upsample(data: np.ndarray, k: int) -> np.ndarray:
    """Interpolate thick slices to thin ones by cubic B-splines: the baseline that no network may lose to.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Slices last.
    k
        Up-scaling factor.

    Returns
    -------
    ndarray, shape (w, h, k d), float32

    Examples
    --------
    >>> cubic_upsample(np.ones((2, 2, 5)), 4).shape
    (2, 2, 20)
    """
    return np.matmul(np.asarray(data, dtype=np.float32), spline_matrix(data.shape[2], k).T.astype(np.float32))


def resample_inplane(data: np.ndarray, affine: np.ndarray, target_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Resample the plane of a slices-last volume to square voxels of edge `target_mm`; the centre of the
    field of view stays.

    Cubic B-splines; before down-sampling a Gaussian whose FWHM is the new voxel (in quadrature) suppresses
    aliasing.
    """
    data, affine = np.asarray(data, dtype=np.float32), np.array(affine, dtype=float)
    for axis in (0, 1):
        step = target_mm / voxel_sizes(affine)[axis]
        n_old = data.shape[axis]
        n_new = max(round(n_old / step), 1)
        if step > 1:
            data = ndimage.gaussian_filter1d(
                data, np.sqrt(step**2 - 1) / np.sqrt(8 * np.log(2)), axis=axis, mode="nearest"
            )
        first = (n_old - 1) / 2 - step * (n_new - 1) / 2
        if n_old > 1:
            coefficients = ndimage.spline_filter1d(data, 3, axis=axis, mode="mirror", output=np.float32)
            data = _sample_axis(coefficients, axis, first + step * np.arange(n_new))
        affine[:3, 3] += affine[:3, axis] * first
        affine[:3, axis] *= step
    return data, affine


def _sample_axis(coefficients: np.ndarray, axis: int, where: np.ndarray) -> np.ndarray:
    """Evaluate cubic B-spline coefficients along one axis at the positions `where` (edge value beyond the
    ends).
    """
    n = coefficients.shape[axis]
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
        # Mirror about the outermost nodes, as the prefilter's boundary does.
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
    length = length_mm(value)
    if length is None:
        raise InputError(
            f"sidecar field {key}",
            found=repr(value),
            expected="a positive number of millimetres",
            next_step=f"Correct {key} in the JSON sidecar, or remove it.",
        )
    return length
