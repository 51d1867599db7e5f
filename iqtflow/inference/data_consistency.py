"""The audit of an enhanced scan: from images to the sidecar's field ``DataConsistency`` and residual map."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from iqtflow.image.geometry import (
    SliceGeometry,
    find_slice_geometry,
    slices_back,
    slices_last,
    thin_affine,
    thin_box,
)
from iqtflow.image.orientation import ReorientedScan, distance_mm
from iqtflow.image.resampling import resample_inplane, same_axes, to_grid
from iqtflow.image.validate import check_scan
from iqtflow.inference.audit import Audit, audit_estimate, unchecked_share
from iqtflow.inference.forward import make_consistent
from iqtflow.models.card import Card
from iqtflow.utils.errors import InputError

#: Slice thickness over spacing if neither the sidecar nor the model's card says anything: that of the paper.
USUAL_FRACTION = 0.75
#: The scan and the enhanced volume may be apart by this share of a voxel.
SAME_GRID_VOXELS = 0.1
SAME_EDGE = 1e-3  #: relative difference up to which two voxel edges are the same


@dataclass(frozen=True)
class Comparison:
    """An enhanced volume that was compared with its scan.

    Attributes
    ----------
    estimate : ndarray, shape (w, h, k d), float32
        The enhanced volume; corrected if that was asked for.
    residual
        Scan minus expected scan on the scan's grid, in standard deviations of the noise.
    fields
        The field ``DataConsistency`` of the sidecar.
    """

    estimate: np.ndarray
    residual: nib.Nifti1Image
    fields: dict[str, Any]


def assumed_thickness(geometry: SliceGeometry, card: Card | None = None) -> tuple[float, bool]:
    """Return the slice thickness for the audit, in mm, and whether the sidecar states it.

    If it does not, the thickness is the middle of the range of the model's training.
    """
    if geometry.thickness_stated:
        return geometry.thickness_mm, True
    try:
        fraction = float(np.mean((card or Card())["slice_profile"]["fwhm_over_spacing"]))
    except (KeyError, TypeError, ValueError):
        fraction = USUAL_FRACTION
    fraction = fraction if 0 < fraction <= 1.5 else USUAL_FRACTION
    return fraction * geometry.spacing_mm, False


def compare_with_scan(
    data: np.ndarray,
    estimate: np.ndarray,
    brain: np.ndarray,
    *,
    affine: np.ndarray,
    laid: ReorientedScan,
    geometry: SliceGeometry,
    card: Card | None = None,
    predicted_error: np.ndarray | None = None,
    correct: bool = False,
) -> Comparison:
    """Audit an enhanced volume, and correct it if that is asked for.

    Parameters
    ----------
    data : ndarray, shape (w, h, d)
        Scan as the network gets it: slices last, plane resampled if needed.
    estimate : ndarray, shape (w, h, k d)
        Enhanced volume.
    brain : ndarray of bool, shape (w, h, d)
        Brain mask, without empty slices.
    affine : ndarray, shape (4, 4)
        Voxels of `data` to world mm.
    laid
        The scan itself.
    geometry
        Of the scan.
    card
        Card of the model, for a thickness that is not stated.
    predicted_error : ndarray, shape (w, h, k d), optional
        Standard deviation map.
    correct
        Make the enhanced volume consistent with the scan (`iqtflow.inference.forward.make_consistent`), and
        audit the result.

    Returns
    -------
    Comparison
    """
    thickness, stated = assumed_thickness(geometry, card)
    voxel_mm = voxel_sizes(affine)

    def audit(volume: np.ndarray) -> Audit:
        return audit_estimate(
            data, volume, brain, voxel_mm=voxel_mm, thickness_mm=thickness, predicted_error=predicted_error
        )

    found = audit(estimate)
    if correct:
        estimate = correct_estimate(data, estimate, brain, found)
        found = audit(estimate)
    share = unchecked_share(geometry.spacing_mm, thickness if stated else None)
    fields = {
        "ResidualRMS": round(found.residual_rms, 3),
        "NoiseStd": float(f"{found.noise:.4g}"),
        "UncheckedShare": None if share is None else round(share, 3),
        "ThicknessMM": round(thickness, 3),
        "ThicknessStated": stated,
        "Places": _places(found, affine, laid.scan.affine),
        "CorrectionApplied": correct,
    }
    return Comparison(estimate, _on_scan_grid(found.residual, affine, laid), fields)


def correct_estimate(scan: np.ndarray, estimate: np.ndarray, mask: np.ndarray, found: Audit) -> np.ndarray:
    """Make an enhanced volume consistent with its scan (`iqtflow.inference.forward.make_consistent`).

    Parameters
    ----------
    scan, estimate, mask
        As for `iqtflow.inference.audit.audit_estimate`.
    found
        Its result for them.

    Returns
    -------
    ndarray, shape (w, h, k d)
        A new array.
    """
    box, thin = found.box, thin_box(found.box, estimate.shape[2] // scan.shape[2])
    corrected = estimate.copy()
    corrected[thin] = make_consistent(scan[box], estimate[thin], mask[box], found.model, noise=found.noise)
    return corrected


def audit_files(
    scan: str | os.PathLike,
    enhanced: str | os.PathLike,
    *,
    mask: str | os.PathLike | None = None,
    std: str | os.PathLike | None = None,
    sidecar: Mapping[str, Any] | None = None,
    num_threads: int = 1,
) -> Comparison:
    """Audit an enhanced volume of any method.

    Parameters
    ----------
    scan
        Thick-slice scan.
    enhanced
        Its enhanced volume in the same place: thin slices or cubic voxels along the axes of the scan. If each
        slice of the scan does not hold a whole number of its slices, it is resampled once, by cubic
        B-splines.
    mask
        Brain mask on the scan's grid; None: the brain is searched.
    std
        Standard deviation map on the grid of `enhanced`; it says where differences are usual.
    sidecar
        BIDS metadata of the scan (``SliceThickness`` in mm, ``SkullStripped``).
    num_threads
        CPU threads for the search of the brain.

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        A file cannot be used, or the files do not belong together.
    """
    image, fields = check_scan(scan), dict(sidecar or {})
    geometry = find_slice_geometry(image, fields)
    laid = ReorientedScan(image, geometry.axis)
    brain = _read_mask(mask, laid) if mask is not None else _find_brain(laid, fields, num_threads)
    data, affine = slices_last(laid.data, laid.affine, laid.axis)
    inside, grid = slices_last(brain, laid.affine, laid.axis)

    def read(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
        volume = check_scan(path)
        its_axis = int(
            np.argmax(np.abs(np.linalg.inv(volume.affine)[:3, :3] @ image.affine[:3, geometry.axis]))
        )
        turned = ReorientedScan(volume, its_axis)
        return slices_last(turned.data, turned.affine, turned.axis)

    estimate, thin = read(enhanced)
    error = None if std is None else read(std)[0]
    if error is not None and error.shape != estimate.shape:
        raise InputError(
            std,
            found=f"{error.shape} voxels",
            expected=f"those of the enhanced volume, {estimate.shape}",
            next_step="Give the map that belongs to the enhanced volume.",
        )
    edges = voxel_sizes(thin)
    k = max(round(geometry.spacing_mm / float(edges[2])), 1)
    if not np.allclose(edges[:2], voxel_sizes(affine)[:2], rtol=SAME_EDGE):
        pixel_mm = float(np.sqrt(edges[0] * edges[1]))
        data, affine = resample_inplane(data, affine, pixel_mm)
        inside = resample_inplane(inside, grid, pixel_mm)[0] > 0.5
    shape, expected = (*data.shape[:2], k * data.shape[2]), thin_affine(affine, k)
    limit = SAME_GRID_VOXELS * float(edges.min())
    if estimate.shape != shape or distance_mm(thin, expected, shape) > limit:
        if not same_axes(thin, expected) or not _covers(thin, estimate.shape, affine, data.shape):
            raise InputError(
                enhanced,
                found=f"another grid than that of the scan: {' x '.join(map(str, estimate.shape))} voxels, "
                "slices last",
                expected="thin slices or cubic voxels along the axes of the scan, over the whole field of "
                f"view of {os.fspath(scan)}",
                next_step="Give the enhanced volume of this scan.",
            )
        estimate = to_grid(estimate, thin, shape, expected)
        error = None if error is None else np.maximum(to_grid(error, thin, shape, expected), 0)
    return compare_with_scan(
        data, estimate, inside, affine=affine, laid=laid, geometry=geometry, predicted_error=error
    )


def _covers(
    affine: np.ndarray, shape: tuple[int, ...], scan_affine: np.ndarray, scan_shape: tuple[int, ...]
) -> bool:
    """Return whether a volume covers the scan's field of view, but for half a voxel at each edge."""
    move = np.linalg.inv(affine) @ scan_affine
    corners = nib.affines.apply_affine(move, [(-0.5,) * 3, np.array(scan_shape) - 0.5])
    slack = 0.5 + SAME_GRID_VOXELS
    return bool((corners[0] >= -0.5 - slack).all() and (corners[1] <= np.array(shape) - 0.5 + slack).all())


def _places(found: Audit, affine: np.ndarray, stored: np.ndarray) -> list[dict[str, Any]]:
    """Return the places for the sidecar; slices are counted as in the file, whose affine is `stored`."""
    to_file = np.linalg.inv(stored) @ affine
    axis = int(np.argmax(np.abs(to_file[:3, 2])))
    return [
        {
            "Kind": place.kind,
            "PositionMM": [round(float(v), 1) for v in affine[:3, :3] @ place.position + affine[:3, 3]],
            "VolumeML": round(place.volume_ml, 3),
            "Slices": sorted(
                round(float(to_file[axis] @ [*place.position[:2], i, 1]))
                for i in range(place.slices[0], place.slices[1] + 1)
            ),
            "Contrast": round(place.contrast, 3),
            "Score": round(place.score, 1),
        }
        for place in found.places
    ]


def _on_scan_grid(residual: np.ndarray, affine: np.ndarray, laid: ReorientedScan) -> nib.Nifti1Image:
    """Put the residual back on the scan's own grid; a resampled plane is interpolated linearly."""
    empty, grid = slices_last(laid.data, laid.affine, laid.axis)
    if residual.shape != empty.shape:
        step = np.linalg.inv(affine) @ grid
        residual = ndimage.affine_transform(
            residual, step[:3, :3], step[:3, 3], output_shape=empty.shape, order=1
        )
    return laid.put_back(*slices_back(residual, grid, laid.axis))


def _read_mask(path: str | os.PathLike, laid: ReorientedScan) -> np.ndarray:
    image = nib.load(path)
    if image.shape[:3] != laid.scan.shape[:3]:
        raise InputError(
            path,
            found=f"{' x '.join(map(str, image.shape))} voxels",
            expected=f"those of the scan, {' x '.join(map(str, laid.scan.shape[:3]))}",
            next_step="Give the brain mask on the grid of the scan.",
        )
    mask = ReorientedScan(nib.Nifti1Image(np.asarray(image.dataobj), laid.scan.affine), 0).data > 0
    if not mask.any():
        raise InputError(path, found="no voxel inside", expected="a brain", next_step="Give another mask.")
    return mask


def _find_brain(laid: ReorientedScan, fields: Mapping[str, Any], num_threads: int) -> np.ndarray:
    from iqtflow.segmentation.brainmask import find_brain_mask

    stripped = fields.get("SkullStripped")
    return find_brain_mask(laid.data, laid.affine, skull_stripped=stripped, num_threads=num_threads).mask
